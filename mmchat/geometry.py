"""Places on a picture, and the one object that fits a picture to a model and maps places in and back.

Everywhere inside the program a place lives in the unit square of the *upright* original picture: x to the right, y
down, (0, 0) the top left corner of the top left pixel, (1, 1) the bottom right corner of the last pixel. Pixels exist
only at the program's edge (command line, page, export), model numbers only inside a dialect.

numpy and PIL are imported where they are used: the dialects stand on this file and must be there in a fraction of a
second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from mmchat.picture import PIXEL_LIMIT, narrowed, open_image, short, squashed

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "KINDS", "Box", "Fit", "Frame", "Mask", "Pixels", "Place", "Placement", "Point", "Polygon", "Region", "Resample",
    "clipped", "native", "open_image", "outline", "region", "region_in", "region_on", "tiling",
]  # fmt: skip

Pixels = tuple[float, float, float, float]
Fit = Literal["squash", "pad", "pad_end", "crop", "native", "tiles"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]

KINDS = ("box", "point", "scribble", "polygon", "mask")  # what a user can draw
MOST_POINTS = 2000  # of a line or an outline: a hand that draws for a minute gives fewer
SQUARE_LIMIT = (
    8192  # a longer picture is shrunk to this before it is padded: 1:40 at 100 megapixels would need a square of 12 GB
)


def _finite(*numbers: float) -> None:
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"A place needs finite numbers, not {number}.")


@dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle with corners (x0, y0) and (x1, y1); readers make x0 <= x1 and y0 <= y1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        # A sum is finite exactly if all four are, short of overflow: one look instead of four, as readers make
        # thousands of boxes.
        if not math.isfinite(self.x0 + self.y0 + self.x1 + self.y1):
            _finite(self.x0, self.y0, self.x1, self.y1)

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        """Of the unit square, in 0..1; 0 for a box with swapped corners."""
        return max(0.0, self.width) * max(0.0, self.height)

    @property
    def centre(self) -> Point:
        return Point((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    def iou(self, other: Box) -> float:
        """Intersection over union in 0..1; 0 where neither has an area."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(0.0, width) * max(0.0, height)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def ordered(self) -> Box:
        """The same two corners with x0 <= x1 and y0 <= y1."""
        return Box(min(self.x0, self.x1), min(self.y0, self.y1), max(self.x0, self.x1), max(self.y0, self.y1))

    def clipped(self) -> Box:
        """Cut to the unit square; a box outside becomes a line or a point of its edge (area 0)."""
        return Box(_unit(self.x0), _unit(self.y0), _unit(self.x1), _unit(self.y1))

    def pixels(self, size: tuple[int, int]) -> Pixels:
        """(x0, y0, x1, y1) in pixels of a picture of `size` (width, height), not rounded."""
        return (self.x0 * size[0], self.y0 * size[1], self.x1 * size[0], self.y1 * size[1])

    @staticmethod
    def from_pixels(corners: Sequence[float], size: tuple[int, int]) -> Box:
        """From (x0, y0, x1, y1) in pixels of a picture of `size` (width, height)."""
        x0, y0, x1, y1 = corners
        return Box(x0 / size[0], y0 / size[1], x1 / size[0], y1 / size[1])


@dataclass(frozen=True)
class Point:
    """A single place (x, y) in the unit square."""

    x: float
    y: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.x + self.y):
            _finite(self.x, self.y)

    def clipped(self) -> Point:
        return Point(_unit(self.x), _unit(self.y))


@dataclass(frozen=True)
class Polygon:
    """A closed outline, three points or more, in the unit square."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ValueError(f"A polygon needs three points or more, not {len(self.points)}.")

    def clipped(self) -> Polygon:
        return Polygon(tuple(point.clipped() for point in self.points))


@dataclass(frozen=True)
class Mask:
    """A bitmap over the whole unit square: `size` (width, height) cells, row by row, as run lengths, zeros first."""

    size: tuple[int, int]
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        cells = self.size[0] * self.size[1]
        if min(self.size) < 1 or min(self.runs, default=0) < 0 or sum(self.runs) != cells:
            raise ValueError(
                f"The run lengths of a {self.size[0]} x {self.size[1]} mask must be at least 0 and add up to {cells}."
            )

    def array(self) -> np.ndarray:
        """bool [height, width]."""
        import numpy as np  # kept off the path of the dialects

        cells = np.repeat(np.arange(len(self.runs)) % 2 == 1, np.asarray(self.runs, dtype=np.int64))
        return cells.reshape(self.size[1], self.size[0])

    @staticmethod
    def from_array(array: np.ndarray) -> Mask:
        """From an array [height, width]; what is not 0 belongs to the mask."""
        import numpy as np  # kept off the path of the dialects

        cells = np.asarray(array).astype(bool)
        flat = cells.ravel()
        edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
        runs = np.diff(edges).tolist()
        return Mask((cells.shape[1], cells.shape[0]), tuple([0, *runs] if flat[0] else runs))

    @property
    def box(self) -> Box:
        """The smallest box around the mask; of no area at the top left where the mask is empty."""
        cells = self.array()
        columns, rows = cells.any(axis=0).nonzero()[0], cells.any(axis=1).nonzero()[0]
        if not len(columns):
            return Box(0.0, 0.0, 0.0, 0.0)
        width, height = self.size
        return Box(
            float(columns[0]) / width,
            float(rows[0]) / height,
            (float(columns[-1]) + 1) / width,
            (float(rows[-1]) + 1) / height,
        )


Place = Box | Point | Polygon | Mask


def outline(place: Place) -> Box:
    """The smallest box that holds a place."""
    if isinstance(place, Box):
        return place
    if isinstance(place, Mask):
        return place.box
    points = (place,) if isinstance(place, Point) else place.points
    across, down = [point.x for point in points], [point.y for point in points]
    return Box(min(across), min(down), max(across), max(down))


def clipped(place: Place) -> Place:
    """A place cut to the unit square, corner by corner."""
    return place if isinstance(place, Mask) else place.clipped()


@dataclass(frozen=True)
class Region:
    """What a user drew: kind, bounding box, for other kinds the points; `image` counts the talk's pictures from 0.

    The box of a point has no area. `region` makes one from what a client sends and says what is wrong with it. `size`:
    (width, height) in pixels of the upright picture, where it is known: some models look at a region pixel by pixel.
    """

    kind: Literal["box", "point", "scribble", "polygon", "mask"]
    box: Box
    points: tuple[Point, ...] = ()
    mask: Mask | None = None
    image: int = 0
    size: tuple[int, int] | None = None

    @property
    def place(self) -> Place:
        """What was drawn, as a place (a scribble: the box around it)."""
        if self.kind == "point":
            return self.points[0]
        if self.kind == "polygon":
            return Polygon(self.points)
        return self.mask if self.kind == "mask" and self.mask is not None else self.box


def region_in(given: Sequence[float] | Mapping[str, Any], size: tuple[int, int], number: int = 1) -> Region:
    """A region from [x0, y0, x1, y1], [x, y] or what `region` takes, in pixels of a picture of `size` (width, height);
    errors as `region`.

    A mask covers the whole picture with cells of its own. "point": [x, y] may stand for "points", as in an answer.
    """
    if not isinstance(given, Mapping):
        unit = [value / size[axis % 2] for axis, value in enumerate(given)]
        return region({"kind": "point", "points": [unit]} if len(unit) == 2 else {"kind": "box", "box": unit}, number)
    name, data = f"Region {number}", dict(given)
    kind, points = data.get("kind", "box"), data.get("points", [data["point"]] if "point" in data else None)
    if kind == "box":
        corners = _numbers(data.get("box"), 4, name)
        data["box"] = [value / size[axis % 2] for axis, value in enumerate(corners)]
    elif kind != "mask" and isinstance(points, Sequence) and not isinstance(points, str):
        if len(points) > MOST_POINTS:
            raise ValueError(_too_many(len(points), name))
        pairs = [_numbers(pair, 2, name) for pair in points]
        data["points"] = [(x / size[0], y / size[1]) for x, y in pairs]
    return region(data, number)


def region_on(given: Sequence[float] | Mapping[str, Any], sizes: Sequence[tuple[int, int]], number: int = 1) -> Region:
    """A region on one of several pictures of these sizes, the first one where it names none ("image", from 0); else as
    `region_in`.
    """
    at = given.get("image", 0) if isinstance(given, Mapping) else 0
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(sizes):
        known = f"a number from 0 to {len(sizes) - 1}" if len(sizes) > 1 else "0, there is one picture alone"
        raise ValueError(f'Region {number} names no picture with "image": {str(at)[:20]!r}: give {known}.')
    return region_in(given, sizes[at], number)


def region(data: Mapping[str, Any], number: int = 1) -> Region:
    """A region from client data: {"kind", "box": [x0, y0, x1, y1] | "points": [[x, y], ...] | "mask": {...}, "image"}.

    Numbers are in the unit square of the upright picture; what sticks out is cut off, corners may come in any order.
    ValueError with one sentence that names the region by `number` where nothing usable remains.
    """
    name = f"Region {number}"
    kind, image = data.get("kind", "box"), data.get("image", 0)
    if not isinstance(image, int) or isinstance(image, bool) or image < 0:
        raise ValueError(f"{name} must name its picture by a number from 0, not {image!r}.")
    if kind == "box":
        box = Box(*_numbers(data.get("box"), 4, name)).ordered().clipped()
        if box.area <= 0:
            raise ValueError(
                f"{name} has no area inside the picture: draw a box with width and height that lies on the picture."
            )
        return Region("box", box, image=image)
    if kind == "mask":
        given = data.get("mask")
        if not isinstance(given, Mapping):
            raise ValueError(
                f'{name} is a mask and needs "mask" with "size" (width, height) and "runs" (run lengths, zeros first).'
            )
        mask = _mask(given, name)
        if mask.box.area <= 0:
            raise ValueError(f"{name} is an empty mask: mark at least one cell.")
        return Region("mask", mask.box, mask=mask, image=image)
    least = {"point": 1, "scribble": 1, "polygon": 3}.get(kind) if isinstance(kind, str) else None
    if least is None:
        raise ValueError(f"{name} has the unknown kind {kind!r}: it must be box, point, scribble, polygon or mask.")
    given = data.get("points")
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) < least
        or (kind == "point" and len(given) != 1)
    ):
        raise ValueError(
            f'{name} is a {kind} and needs "points" [x, y]: {"one" if kind == "point" else f"{least} or more"}.'
        )
    if len(given) > MOST_POINTS:
        raise ValueError(_too_many(len(given), name))
    points = tuple(Point(*_numbers(pair, 2, name)) for pair in given)
    if not any(0 <= point.x <= 1 and 0 <= point.y <= 1 for point in points):
        raise ValueError(f"{name} lies outside the picture: draw it on the picture.")
    points = tuple(point.clipped() for point in points)
    across, down = [point.x for point in points], [point.y for point in points]
    box = Box(min(across), min(down), max(across), max(down))
    if kind == "polygon" and box.area <= 0:
        raise ValueError(f"{name} has no area inside the picture: draw an outline that lies on the picture.")
    return Region(kind, box, points, image=image)


def _too_many(count: int, name: str) -> str:
    return f"{name} has {count} points, at most {MOST_POINTS} are taken: draw it with fewer."


def _numbers(given: Any, count: int, name: str) -> tuple[float, ...]:
    wanted = "four numbers [x0, y0, x1, y1]" if count == 4 else "two numbers [x, y]"
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != count:
        raise ValueError(f"{name} needs {wanted}, not {short(given)}.")
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int | float) or not -1e12 < number < 1e12:
            raise ValueError(f"{name} needs {wanted}, all finite, not {short(given)}.")
    return tuple(float(number) for number in given)


def _mask(given: Mapping[str, Any], name: str) -> Mask:
    size, runs = given.get("size"), given.get("runs")
    lists = isinstance(size, Sequence) and isinstance(runs, Sequence) and not isinstance(runs, str) and len(size) == 2
    if not lists or not all(type(number) is int for number in chain(size, runs)) or size[0] * size[1] > PIXEL_LIMIT:
        raise ValueError(
            f'{name} needs a mask of whole numbers: "size" (width, height) of at most {PIXEL_LIMIT} cells and "runs".'
        )
    try:
        return Mask((size[0], size[1]), tuple(runs))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _unit(number: float) -> float:
    return 0.0 if number < 0 else 1.0 if number > 1 else number


@dataclass(frozen=True)
class Placement:
    """Where the upright original lies in the fitted picture: a scale and an offset per axis, in unit squares.

    `size` (width, height) of the original in pixels, `fitted` of the fitted picture. A place p of the original's unit
    square lies at p * scale + offset of the fitted one's.
    """

    size: tuple[int, int]
    fitted: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def into(self, place: Place) -> Place:
        """From the unit square of the original to that of the fitted picture; a mask keeps its cells where both are
        one.
        """
        (sx, sy), (ox, oy) = self.scale, self.offset
        if isinstance(place, Mask) and self.scale == (1.0, 1.0) and self.offset == (0.0, 0.0):
            return place
        return _moved(place, lambda x: x * sx + ox, lambda y: y * sy + oy, self.back, self.fitted)

    def back(self, place: Place) -> Place:
        """From the unit square of the fitted picture to that of the original (not clipped)."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        return _moved(place, lambda x: (x - ox) / sx, lambda y: (y - oy) / sy, self.into, self.size)


def _moved(
    place: Place,
    x: Callable[[float], float],
    y: Callable[[float], float],
    inverse: Callable[[Place], Place],
    size: tuple[int, int],
) -> Place:
    """A place under the map (x, y). A mask is sampled at the target's cell centres through the `inverse` map."""
    if isinstance(place, Box):
        return Box(x(place.x0), y(place.y0), x(place.x1), y(place.y1))
    if isinstance(place, Point):
        return Point(x(place.x), y(place.y))
    if isinstance(place, Polygon):
        return Polygon(tuple(Point(x(point.x), y(point.y)) for point in place.points))
    import numpy as np  # only masks need it; kept off the path of the dialects

    (width, height), (cells_x, cells_y) = size, place.size
    # The map is the same straight line for every cell, so two of its points give it: no call per cell.
    low, high = inverse(Point(0.0, 0.0)), inverse(Point(1.0, 1.0))
    across = np.floor((low.x + (np.arange(width) + 0.5) / width * (high.x - low.x)) * cells_x).astype(np.int64)
    down = np.floor((low.y + (np.arange(height) + 0.5) / height * (high.y - low.y)) * cells_y).astype(np.int64)
    source = place.array()[np.clip(down, 0, cells_y - 1)][:, np.clip(across, 0, cells_x - 1)]
    inside = ((down >= 0) & (down < cells_y))[:, None] & ((across >= 0) & (across < cells_x))[None, :]
    return Mask.from_array(source & inside)


def native(
    size: tuple[int, int], factor: int = 28, least: int = 56 * 56, most: int = 28 * 28 * 1280
) -> tuple[int, int]:
    """The size (width, height) at which models of native resolution see a picture of `size`: both sides multiples of
    `factor`, the area between `least` and `most` pixels, the shape kept as well as that allows.

    `factor` is 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL. ValueError where a side is more than 200 times the
    other.
    """
    width, height = size
    if max(width, height) > 200 * min(width, height):
        raise ValueError(f"A picture of {size[0]} x {size[1]} is too long: one side is more than 200 times the other.")
    across, down = (max(factor, round(length / factor) * factor) for length in (width, height))
    if across * down > most:
        shrink = math.sqrt(width * height / most)
        return max(factor, int(width / shrink / factor) * factor), max(factor, int(height / shrink / factor) * factor)
    if across * down < least:
        grow = math.sqrt(least / (width * height))
        return math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return across, down


def tiling(size: tuple[int, int], least: int = 1, most: int = 12, side: int = 448) -> tuple[int, int]:
    """How many tiles (across, down) of `side` pixels InternVL cuts a picture of `size` into: `least` to `most` in all,
    the grid whose shape is nearest; of equally near ones the larger if the picture fills half of it.
    """
    width, height = size
    grids = sorted(
        ((i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most),
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest = (1, 1), math.inf
    for across, down in grids:
        off = abs(width / height - across / down)
        if off < nearest or (off == nearest and width * height > 0.5 * side * side * across * down):
            best, nearest = (across, down), off
    return best


@dataclass(frozen=True)
class Frame:
    """How a model wants its picture: side in pixels, way of fitting, fill colour, normalisation, resampling.

    `squash` ignores the shape (see `squashed`); `pad` centres the picture in a square (offset rounded down) and resizes
    that; `pad_end` puts it at the top left; `crop` brings the short side to `side` and keeps the middle. Steps and
    rounding are those of CLIPImageProcessor and LLaVA's expand2square, on 8-bit values, with PIL's antialiased filters.
    `native` keeps size and shape as well as `factor` and `area` (least and most pixels) allow, as `native` says; `side`
    is then that of a usual picture. `tiles` squashes it onto a grid of squares, `tiles` (least and most) in all, as
    `tiling` says; `views` tells where the picture lies in each of them.
    """

    side: int
    way: Fit = "pad"
    fill: tuple[int, int, int] = (122, 116, 104)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resample: Resample = "bicubic"
    factor: int = 28
    area: tuple[int, int] = (56 * 56, 28 * 28 * 1280)
    tiles: tuple[int, int] = (1, 12)

    def among(self, pictures: int) -> Frame:
        """The frame in a talk of so many pictures: this one, but for models that look less closely at several."""
        return self

    def fit(self, image: Image.Image) -> tuple[np.ndarray, Placement]:
        """An upright RGB picture as float32 [3, height, width] (`side` each; native and tiles give others), RGB,
        (value / 255 - mean) / std, and its Placement.
        """
        import numpy as np  # kept off the path of the dialects

        picture, placement = self.fitted(image)
        # A channel has 256 values: what each becomes is reckoned once and looked up for every pixel.
        levels = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
        levels = (levels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        values = np.asarray(picture)
        return np.stack([levels[:, channel].take(values[..., channel]) for channel in range(3)]), placement

    def fitted(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        """An upright RGB picture as the model sees it, still 8-bit, and its Placement."""
        from PIL import Image  # kept off the path of the dialects

        placement = self.place(image.size)
        square, filter_ = (self.side, self.side), Image.Resampling[self.resample.upper()]
        if self.way == "squash":
            return squashed(image, self.side, filter_), placement
        if self.way in ("native", "tiles"):
            return image.resize(placement.fitted, filter_), placement
        if self.way == "crop":
            return self._cropped(image, placement, filter_), placement
        inner, side, left, top = self._square(image.size)
        image = image if inner == image.size else image.resize(inner, filter_)
        # A resize goes by width first and rounds to 8 bits before it goes by height: rows of mere fill colour need no
        # first pass, so a wide picture takes it alone and is padded between the two.
        across = self.side if inner[0] == side else side
        if across not in (side, image.width):
            image = narrowed(image, across, filter_)
        canvas = Image.new("RGB", (across, side), self.fill)
        canvas.paste(image, (left, top))
        if canvas.size == square:
            return canvas, placement
        return narrowed(canvas, self.side, filter_).resize(square, filter_), placement

    def place(self, size: tuple[int, int]) -> Placement:
        """Where a picture of `size` (width, height) would lie; needs no picture."""
        fitted = (self.side, self.side)
        if self.way == "squash":
            return Placement(size, fitted, (1.0, 1.0), (0.0, 0.0))
        if self.way == "native":
            return Placement(size, native(size, self.factor, *self.area), (1.0, 1.0), (0.0, 0.0))
        if self.way == "tiles":
            across, down = tiling(size, *self.tiles, self.side)
            return Placement(size, (across * self.side, down * self.side), (1.0, 1.0), (0.0, 0.0))
        if self.way == "crop":
            short = min(size)
            width, height = (int(self.side * length / short) for length in size)
            left, top = (width - self.side) // 2, (height - self.side) // 2
            return Placement(
                size, fitted, (width / self.side, height / self.side), (-left / self.side, -top / self.side)
            )
        (width, height), side, left, top = self._square(size)
        return Placement(size, fitted, (width / side, height / side), (left / side, top / side))

    def views(self, size: tuple[int, int]) -> tuple[Placement, ...]:
        """Where a picture of `size` lies in each square that the model sees: the tiles row by row, and behind several
        the whole picture squashed; of the other ways the one placement.
        """
        whole = self.place(size)
        if self.way != "tiles":
            return (whole,)
        square = (self.side, self.side)
        across, down = (length // self.side for length in whole.fitted)
        grid = [(float(-column), float(-row)) for row in range(down) for column in range(across)]
        out = [Placement(size, square, (float(across), float(down)), offset) for offset in grid]
        return (*out, Placement(size, square, (1.0, 1.0), (0.0, 0.0))) if len(out) > 1 else tuple(out)

    def _square(self, size: tuple[int, int]) -> tuple[tuple[int, int], int, int, int]:
        """Size of the picture inside the square, side of that square before resizing, offset from left and top."""
        width, height = size
        side = max(size)
        if side > SQUARE_LIMIT:
            width, height = (max(1, round(length * SQUARE_LIMIT / side)) for length in size)
            side = SQUARE_LIMIT
        middle = self.way == "pad"
        return (width, height), side, (side - width) // 2 if middle else 0, (side - height) // 2 if middle else 0

    def _cropped(self, image: Image.Image, placement: Placement, filter_: Image.Resampling) -> Image.Image:
        width, height = (round(scale * self.side) for scale in placement.scale)
        left, top = (round(-offset * self.side) for offset in placement.offset)
        if max(width, height) <= 16 * self.side:
            return image.resize((width, height), filter_).crop((left, top, left + self.side, top + self.side))
        # A thread of a picture, 1 : 1000 say, would grow to gigabytes: resize only the part that is kept.
        across, down = image.width / width, image.height / height
        kept = (left * across, top * down, (left + self.side) * across, (top + self.side) * down)
        return image.resize((self.side, self.side), filter_, box=kept)
