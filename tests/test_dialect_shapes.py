"""Twelve picture shapes, every EXIF orientation, every dialect: what is drawn comes back where it was drawn.

A rectangle is painted into a picture, the picture stored as a camera that was turned would store it, opened, and the
rectangle looked for in what came out: so the whole way is walked, and a turned or a shifted picture shows.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmchat.dialect import DIALECTS, Cells, Index, Json, Marks, Scaled, Scene, home
from mmchat.geometry import Box, Frame, Placement, Point, native, open_image, outline

SHAPES = [(1, 12), (1, 8), (1, 4), (9, 21), (1, 2), (3, 4), (1, 1), (4, 3), (2, 1), (21, 9), (5, 1), (12, 1)]
STORED = {  # EXIF orientation -> what the camera stores of an upright picture [height, width, 3]
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
TAG = 0x0112
SIDE = 1200  # pixels of the longer side
SPEAKING = [name for name, dialect in DIALECTS.items() if isinstance(dialect, Json) or dialect.forms]


def painted(shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A black picture of that shape with a white rectangle off its middle, and the rectangle in pixels."""
    width, height = (SIDE * side // max(shape) for side in shape)
    x0, y0, x1, y1 = width * 3 // 10, height * 2 // 10, width * 8 // 10, height * 6 // 10
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    return picture, (x0, y0, x1, y1)


def opened(picture: np.ndarray, orientation: int) -> Image.Image:
    """The picture after a camera stored it in that orientation and the program opened the file."""
    stored, exif = Image.fromarray(np.ascontiguousarray(STORED[orientation](picture))), Image.Exif()
    exif[TAG] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    return open_image(file.getvalue())


def seen(picture: np.ndarray) -> Box:
    """The white rectangle of a picture [height, width, 3] as a place."""
    white = picture[..., 0] > 127
    columns, rows = white.any(axis=0).nonzero()[0], white.any(axis=1).nonzero()[0]
    corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return Box.from_pixels([float(number) for number in corners], (white.shape[1], white.shape[0]))


def placement(dialect: Marks | Json, size: tuple[int, int]) -> Placement:
    """How the dialect's models see a picture of `size`: in its frame, or resized to multiples of 28 where numbers are
    pixels of that.
    """
    if dialect.way == "squash":
        return Placement(size, native(size), (1.0, 1.0), (0.0, 0.0))
    return Frame(336, dialect.way).place(size)


def step(dialect: Marks | Json, fitted: tuple[int, int]) -> tuple[float, float]:
    """One quantisation step of the dialect's coarsest numbers across and down the fitted picture, in its unit square;
    where candidates are named instead of numbers written, none.
    """
    codes = [dialect.code] if isinstance(dialect, Json) else [form.code for form in dialect.forms]
    steps = [(1e-9, 1e-9)]
    for code in codes:
        if isinstance(code, Cells):
            steps.append((1 / code.side,) * 2)
        elif isinstance(code, Scaled):
            across, down = (code.scale, code.scale) if code.scale else fitted
            steps.append((10**-code.decimals / across, 10**-code.decimals / down))
    return max(across for across, _ in steps), max(down for _, down in steps)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}to{shape[1]}")
def test_what_is_drawn_comes_back_through_every_dialect(shape: tuple[int, int], orientation: int) -> None:
    picture, corners = painted(shape)
    upright = opened(picture, orientation)
    size = upright.size
    drawn = seen(np.asarray(upright))
    assert drawn.pixels(size) == pytest.approx(corners)
    for name in SPEAKING:
        dialect = DIALECTS[name]
        place = placement(dialect, size)
        inside = outline(place.into(drawn))
        codes = () if isinstance(dialect, Json) else tuple(form.code for form in dialect.forms)
        named = any(isinstance(code, Index) for code in codes) and not any(isinstance(code, Scaled) for code in codes)
        scene = Scene((inside,) if named else (), place.fitted)
        read = home(dialect.read(dialect.write((inside,), "the thing", scene), scene), place)
        assert len(read.spans) == 1 and not read.dropped, name
        (back,) = read.spans[0].places
        across, down = step(dialect, place.fitted)
        across, down = (1.001 * across / place.scale[0], 1.001 * down / place.scale[1])
        wanted, came = (drawn.centre, back) if isinstance(back, Point) else (drawn, outline(back))
        pairs = (
            [(wanted.x, came.x, across), (wanted.y, came.y, down)]
            if isinstance(came, Point)
            else [(wanted.x0, came.x0, across), (wanted.y0, came.y0, down)]
            + [(wanted.x1, came.x1, across), (wanted.y1, came.y1, down)]
        )
        for value, found, most in pairs:
            assert abs(value - found) <= most, (name, value, found, most)


@pytest.mark.parametrize("way", ["squash", "pad", "pad_end"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}to{shape[1]}")
def test_the_frame_puts_the_pixels_where_it_says(shape: tuple[int, int], way: str) -> None:
    """The painted rectangle is found in the fitted picture where the placement maps it, within a pixel."""
    picture, _ = painted(shape)
    upright = opened(picture, 6)
    frame = Frame(448, way, fill=(0, 0, 0))  # type: ignore[arg-type]
    fitted, where = frame.fitted(upright)
    mapped = outline(where.into(seen(np.asarray(upright)))).pixels(where.fitted)
    assert seen(np.asarray(fitted)).pixels(where.fitted) == pytest.approx(mapped, abs=1.0)
