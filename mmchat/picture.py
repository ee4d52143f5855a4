"""Open a picture: whatever a user brings becomes upright 8-bit RGB once, or one clear sentence.

numpy and PIL are imported where they are used, as in `geometry`, which offers `open_image` to everybody.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

BANDS_FROM = 1_000_000  # pixels of a picture that several threads resize
PIXEL_LIMIT = 100_000_000  # pixels of a picture that is opened; the header is looked at before anything is decoded
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "TGA")  # EPS would run a program
NAMED = "a JPEG, PNG, WebP, GIF, BMP or TIFF picture"
# What decoders raise on damaged files. MemoryError is told apart: it is the machine's, not the file's.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip


def open_image(source: object) -> Image.Image:
    """A path, bytes, file object or PIL picture as upright RGB; ValueError with cause and remedy otherwise.

    EXIF orientation is applied here and nowhere else (the result carries none). Transparency is laid over white, 16-bit
    and float values are brought to 8 bits, CMYK is converted, of an animation the first frame is taken. The size in the
    header is judged before anything is decoded: at most PIXEL_LIMIT pixels.
    """
    from PIL import Image  # kept off the path of the dialects

    if isinstance(source, Image.Image):
        name, image = "The picture", source
    else:
        name, data = _bytes(source)
        if not data:
            raise ValueError(f"{name} is empty (0 bytes): save or upload it again.")
        image = _header(name, data)
    if image.width * image.height > PIXEL_LIMIT:
        raise ValueError(_too_large(name, f"{image.width} x {image.height} pixels"))
    if min(image.size) < 1:
        raise ValueError(f"{name} has no pixels: choose another picture.")
    try:
        image.seek(0)
        image.load()
        upright = _upright(image)
        return _rgb(upright)
    except BROKEN as error:
        raise ValueError(f"{name} is damaged or cut off ({error}): save it again or choose another picture.") from error
    except MemoryError as error:
        raise ValueError(f"{name} needs more memory than there is: make it smaller.") from error


def _bytes(source: object) -> tuple[str, bytes]:
    """A name for sentences and the content."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "The picture", bytes(source)
    if isinstance(source, str | os.PathLike):
        name = os.path.basename(os.fspath(source)) or os.fspath(source)
        try:
            with open(source, "rb") as file:
                return str(name), file.read()
        except FileNotFoundError:
            raise ValueError(f"There is no picture {short(os.fspath(source))}: check the path.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"{short(os.fspath(source))} cannot be read ({reason}): choose a picture file that can."
            ) from None
    read = getattr(source, "read", None)
    if read is None:
        raise ValueError(f"A picture must be a path, bytes, a file or a PIL image, not {type(source).__name__}.")
    data = read()
    if not isinstance(data, bytes):
        raise ValueError("The picture's file was opened as text: open it in binary mode.")
    return "The picture", data


def _header(name: str, data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    from PIL import Image  # kept off the path of the dialects

    Image.init()  # PIL registers formats lazily and does not know every one in every build
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        with warnings.catch_warnings():  # PIL warns below our limit and names no remedy
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name, "far too many pixels")) from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that can be read: choose {NAMED}.") from None
    except BROKEN as error:
        raise ValueError(f"{name} is damaged or cut off ({error}): save it again or choose another picture.") from error


def _too_large(name: str, amount: str) -> str:
    return f"{name} has {amount}, the limit is {PIXEL_LIMIT // 1_000_000} megapixels: make it smaller."


def _upright(image: Image.Image) -> Image.Image:
    from PIL import Image  # kept off the path of the dialects

    try:
        orientation = image.getexif().get(0x0112)
    except BROKEN:
        orientation = None  # damaged EXIF says nothing about the pixels
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as plain RGB that carries nothing along (no EXIF, no profile)."""
    import numpy as np  # kept off the path of the dialects
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        top = values.max()
        # Floats are mostly in 0..1; integers fill 16 bits unless they stay within 8 or go beyond.
        full = (
            1.0
            if image.mode == "F" and top <= 1
            else 255.0
            if top <= 255 and image.mode != "I;16"
            else max(65535.0, top)
        )
        image = Image.fromarray((values.clip(0, full) * (255.0 / full)).round().astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    image = image.convert("RGB")
    plain = Image.new("RGB", image.size)
    plain.paste(image)
    return plain


def short(value: object) -> str:
    """A value as it may stand in a sentence: never longer than 60 characters."""
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def squashed(image: Image.Image, side: int, resample: int | None = None) -> Image.Image:
    """The picture as a square of `side`, whatever its shape.

    The two passes of a resize round to 8 bits between them, so their order shows (up to five grey levels on tiny
    pictures). PIL goes by width first; the recorded numbers of the originals were taken with one that brings a tall
    picture that shrinks to its height first.
    """
    if image.width < image.height and side < image.height:
        image = image.resize((image.width, side), resample)
    return image.resize((side, side), resample)


def narrowed(image: Image.Image, width: int, resample: int | None = None) -> Image.Image:
    """The first of a resize's two passes: `width` columns, the rows as they are.

    It takes most of the time and each row goes by itself, so a large picture goes in bands, a thread each (PIL lets
    other threads run meanwhile): with two cores 0.6 of the time, the same pixels. The caller does a band itself: where
    it only waits, two fresh threads are often put on the same core, and nothing is won.
    """
    if image.width == width:
        return image
    bands = min(4, os.cpu_count() or 1)
    if bands == 1 or image.width * image.height < BANDS_FROM:
        return image.resize((width, image.height), resample)
    from concurrent.futures import ThreadPoolExecutor  # kept off the path of the dialects

    from PIL import Image

    edges = [image.height * number // bands for number in range(bands + 1)]
    out = Image.new(image.mode, (width, image.height))

    def one(top: int, bottom: int) -> None:
        part = image.crop((0, top, image.width, bottom))
        out.paste(part.resize((width, bottom - top), resample), (0, top))

    with ThreadPoolExecutor(bands - 1) as pool:
        others = pool.map(one, edges[1:-1], edges[2:])
        one(0, edges[1])
        list(others)  # what went wrong in one is raised here
    return out
