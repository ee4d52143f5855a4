"""Open a clip: a video becomes a bounded number of upright pictures, a sound its samples, or one clear sentence.

Neither is ever held whole: a video is decoded frame by frame and all but a few are let go. OpenCV decodes videos, the
standard library WAV, PyAV other sounds where it is there. Heavy libraries are imported where they are used.
"""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmchat.picture import short

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES = 64  # pictures that are kept of a video at most
LARGEST = 36_000_000  # pixels of a frame that is decoded: a little above 8K
SIDE = 720  # pixels of the longer side of a kept picture at most: what models see is smaller
SHORTEST, LONGEST = 0.1, 600.0  # seconds
RATES = range(1000, 768_001)  # samples of a sound a second
HEAVIEST = 2 << 30  # bytes of a file
NAMED = "an MP4, WebM, MKV, MOV or AVI video, or a WAV, FLAC, MP3 or OGG sound"
# How files begin. A decoder that guesses for itself would also follow a playlist to other files and machines.
FILMS = re.compile(
    rb"RIFF....AVI |\x1a\x45\xdf\xa3|OggS|FLV\x01|\0\0\x01\xba|\x30\x26\xb2\x75|G.{187}G|"
    rb"....(?:ftyp(?!M4A |avi[fs]|hei|hev|mif1|msf1)|moov|mdat|wide|free|skip)",
    re.DOTALL,
)
SOUNDS = re.compile(rb"RIFF....WAVE|fLaC|ID3|FORM....AIF|....ftypM4A |\xff[\xe0-\xfd]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Clip:
    """A video's `frames` (upright RGB, evenly picked, the first one first) or a sound's `samples` (float32 [N] in
    -1..1, the first channel, `rate` a second).
    """

    kind: Literal["video", "sound"]
    seconds: float
    frames: tuple[Image.Image, ...] = ()
    samples: np.ndarray | None = None
    rate: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures; a sound has none and says (1, 1)."""
        return self.frames[0].size if self.frames else (1, 1)


def evenly(count: int, most: int) -> list[int]:
    """Which of `count` are looked at: at most `most`, evenly from the first on."""
    picked = min(count, most)
    return [int(number * count / picked) for number in range(picked)]


def is_clip(source: object) -> bool:
    """Whether a path is that of a file which begins as a video or a sound does."""
    try:
        return isinstance(source, str | os.PathLike) and _begins(Path(source)) is not None
    except (OSError, ValueError):
        return False


def open_clip(path: str | os.PathLike[str], frames: int = FRAMES) -> Clip:
    """A file with a video or a sound; of a video at most `frames` pictures are kept, its own sound is not.

    Rotation that the file asks for is applied. ValueError, with cause and remedy, where it cannot be read, is too
    large, too long or too short.
    """
    name = Path(path).name or short(os.fspath(path))
    try:
        size, begins = os.stat(path).st_size, _begins(Path(path))
    except FileNotFoundError:
        raise ValueError(f"There is no clip {short(os.fspath(path))}: check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{short(os.fspath(path))} cannot be read ({reason}): choose another file.") from None
    if not size:
        raise ValueError(f"{name} is empty (0 bytes): save or upload it again.")
    if begins is None:
        raise ValueError(f"{name} is no video or sound that can be read: choose {NAMED}.")
    if size > HEAVIEST:
        raise ValueError(f"{name} has {size >> 20} MiB, the limit is {HEAVIEST >> 20} MiB: cut a shorter piece.")
    whole = os.path.abspath(path)  # with nothing in front that a decoder could take for a protocol
    try:
        clip = _video(whole, name, frames) if begins == "film" else None
        return clip or _wav(whole, name) or _sound(whole, name)
    except MemoryError as error:
        raise ValueError(f"{name} needs more memory than there is: cut a shorter piece.") from error


def _begins(path: Path) -> Literal["film", "sound"] | None:
    """What the first bytes say; a film may turn out to hold a sound alone."""
    with path.open("rb") as file:
        head = file.read(256)
    return "film" if FILMS.match(head) else "sound" if SOUNDS.match(head) else None


def _checked(seconds: float, name: str) -> float:
    """The length, where it can be taken."""
    if seconds > LONGEST:
        raise ValueError(f"{name} is longer than the limit of {LONGEST / 60:.0f} minutes: cut a shorter piece.")
    return seconds


def _damaged(name: str, reason: object) -> ValueError:
    return ValueError(f"{name} is damaged or cut off ({reason}): save it again or choose another file.")


# Videos


def _video(path: str, name: str, most: int) -> Clip | None:
    """The video of a file; None where it holds none."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our sentence says it; read when the first file is opened
    import cv2  # kept off the path of the dialects

    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        film = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        if not film.isOpened():
            return None
        width, height = int(film.get(cv2.CAP_PROP_FRAME_WIDTH)), int(film.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > LARGEST:
            limit = f"the limit is {LARGEST // 1_000_000} megapixels"
            raise ValueError(f"{name} has frames of {width} x {height} pixels, {limit}: make it smaller.")
        rate = film.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else 25.0  # some containers do not say
        told = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
        if not 0 < told < 1 << 31:
            told = _counted(film, rate, name)
            film = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        _checked(told / rate, name)
        found, count = _picked(film, evenly(told, most))
        if count and count < evenly(told, most)[-1] + 1:  # the header promised more than there is
            found, count = _picked(cv2.VideoCapture(path, cv2.CAP_FFMPEG), evenly(count, most))
            told = count
    except cv2.error as error:
        raise _damaged(name, error.err or "no frame can be decoded") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not found:
        raise _damaged(name, "no frame can be decoded")
    return Clip("video", told / rate, tuple(found))


def _counted(film: Any, rate: float, name: str) -> int:
    """How many frames there are, where the container does not say."""
    count = 0
    while film.grab():
        count += 1
        _checked(count / rate, name)
    return count


def _picked(film: Any, wanted: list[int]) -> tuple[list[Image.Image], int]:
    """The frames of these numbers (ascending), and how many frames were passed to find them."""
    import cv2
    from PIL import Image

    found, count, left = [], 0, set(wanted)
    while left and film.grab():
        if count in left:
            left.remove(count)
            good, frame = film.retrieve()
            if good:
                height, width = frame.shape[:2]
                scale = SIDE / max(height, width)
                if scale < 1:
                    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
                    frame = cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA)
                found.append(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
        count += 1
    return found, count


# Sounds


def _wav(path: str, name: str) -> Clip | None:
    """A WAV file of whole numbers; None where it is no WAV or of another kind, which wants a decoder."""
    import numpy as np

    try:
        with wave.open(path, "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if rate not in RATES or width > 4:
                return None
            _checked(file.getnframes() / rate, name)
            data = file.readframes(int(LONGEST * rate))
    except (wave.Error, EOFError, RuntimeError):  # the last: a piece that is said to go on behind the file's end
        return None
    whole = len(data) // (width * channels)
    first = np.frombuffer(data, np.uint8, whole * width * channels).reshape(whole, width * channels)[:, :width]
    if width == 1:  # unsigned, where all others are signed
        return _heard(first[:, 0].astype(np.float32) / 128 - 1, rate, name)
    wide = np.zeros((whole, 4), np.uint8)
    wide[:, 4 - width :] = first
    return _heard(wide.view("<i4")[:, 0].astype(np.float32) / 2**31, rate, name)


def _sound(path: str, name: str) -> Clip:
    """Any other sound, where there is a decoder."""
    try:
        import av
    except ImportError:
        raise ValueError(
            f"{name} is no WAV of whole numbers, and no decoder for other sounds is here: save it as 16 bit WAV, or "
            "install PyAV (pip install av)."
        ) from None
    import numpy as np

    try:
        with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise ValueError(f"{name} holds no video and no sound: choose {NAMED}.")
            rate = getattr(file.streams.audio[0], "rate", 0) or 0
            if rate not in RATES:
                raise _damaged(name, f"{rate} samples a second")
            parts = list(_channel(file, rate, name))
    except av.error.FFmpegError as error:
        raise _damaged(name, error.strerror) from None
    except (OSError, EOFError, IndexError, UnicodeError) as error:
        raise _damaged(name, error) from None
    return _heard(np.concatenate(parts) if parts else np.zeros(0, np.float32), rate, name)


def _channel(file: Any, rate: int, name: str) -> Iterator[np.ndarray]:
    """The first channel, piece by piece."""
    import av

    flat, heard = av.AudioResampler(format="fltp"), 0
    for frame in file.decode(audio=0):
        for piece in flat.resample(frame):
            channel = piece.to_ndarray()[0]
            heard += len(channel)
            _checked(heard / rate, name)
            yield channel


def _heard(samples: np.ndarray, rate: int, name: str) -> Clip:
    """A sound of these samples."""
    if len(samples) < SHORTEST * rate:
        raise ValueError(f"{name} holds less than {SHORTEST:g} seconds of sound: choose a longer one.")
    return Clip("sound", len(samples) / rate, samples=samples, rate=rate)
