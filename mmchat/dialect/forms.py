"""How one place stands in a text: the code of its numbers, and the marks around them.

Numbers refer to the fitted picture; a code maps them into its unit square and back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mmchat.dialect.spans import Scene
from mmchat.geometry import Box, Mask, Place, Point, Polygon, clipped, outline

LONGEST = 4000  # characters of one mark; a longer one is text, so that a reader never holds back for ever
UNKNOWN = 448  # cells of a mask where nobody says how large the fitted picture is
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)"


@dataclass(frozen=True)
class Scaled:
    """Numbers 0..scale from edge to edge of the fitted picture (0: its pixels), printed with `decimals`, in `order`.

    `step` says how a value becomes a whole number where decimals is 0: rounded (halves up, or to the even number),
    cut off, or the number of the bin (read at its centre); "even" holds for decimals too. Some models waver, and
    their own readers know it: four numbers whose sum is less than `fractions_below` are fractions, numbers of which
    one is more than `thousandths_above` are thousandths.
    """

    scale: float = 1.0
    decimals: int = 2
    order: Literal["xyxy", "yxyx"] = "xyxy"
    step: Literal["round", "even", "floor", "bin"] = "round"
    largest: float | None = None  # largest number written; None: the scale
    width: int = 0  # digits, padded with zeros
    fractions_below: float = 0.0
    thousandths_above: float = math.inf

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        """The place that 2, 4, or 6 and more (a polygon) numbers stand for, or None; neither clipped nor ordered."""
        across, down = (self.scale, self.scale) if self.scale else (scene.size[0] or 1, scene.size[1] or 1)
        if self.fractions_below and len(numbers) == 4 and sum(numbers) < self.fractions_below:
            across = down = 1.0
        elif self.thousandths_above < math.inf and max(numbers) > self.thousandths_above:
            across = down = 1000.0
        shift = 0.5 if self.step == "bin" else 0.0
        if len(numbers) == 4:  # nearly always, and readers make thousands
            x0, y0, x1, y1 = numbers if self.order == "xyxy" else (numbers[1], numbers[0], numbers[3], numbers[2])
            return Box((x0 + shift) / across, (y0 + shift) / down, (x1 + shift) / across, (y1 + shift) / down)
        if self.order == "yxyx":
            numbers = [number for y, x in zip(numbers[::2], numbers[1::2], strict=False) for number in (x, y)]
        pairs = [((x + shift) / across, (y + shift) / down) for x, y in zip(numbers[::2], numbers[1::2], strict=False)]
        if len(numbers) == 2:
            return Point(*pairs[0])
        return Polygon(tuple(Point(x, y) for x, y in pairs)) if len(numbers) >= 6 and len(numbers) % 2 == 0 else None

    def write(self, place: Place, scene: Scene) -> tuple[str, ...]:
        """The numbers of a place as they are printed, clipped to the picture."""
        across, down = (self.scale, self.scale) if self.scale else (scene.size[0] or 1, scene.size[1] or 1)
        place = clipped(place)
        if isinstance(place, Point):
            points: tuple[Point, ...] = (place,)
        elif isinstance(place, Polygon):
            points = place.points
        else:
            box = outline(place)
            points = (Point(box.x0, box.y0), Point(box.x1, box.y1))
        pairs = [(self._print(point.x, across), self._print(point.y, down)) for point in points]
        return tuple(text for x, y in pairs for text in ((y, x) if self.order == "yxyx" else (x, y)))

    def _print(self, value: float, scale: float) -> str:
        if self.decimals:
            if self.step == "even":  # nine digits first: what a half lost on its way through the unit square comes back
                value, scale = round(round(value * scale * 10**self.decimals, 9)), 10**-self.decimals
            # Twelve digits first: 105 of 400 is 0.2625 to the letter again, and halves go where the originals' go.
            return f"{round(value * scale, 12):.{self.decimals}f}"
        if self.step == "even":
            whole = round(value * scale)
        else:
            whole = math.floor(value * scale + (0.5 if self.step == "round" else 1e-9))
        edge = scale if self.scale else scale - 1  # of pixels the last one
        return f"{int(min(whole, edge if self.largest is None else self.largest)):0{self.width}d}"

    @property
    def tolerance(self) -> float:
        """How far a number may lie outside the picture (unit square) without being reported: a step and a half."""
        return 1.5 * 10**-self.decimals / (self.scale or 1000)


@dataclass(frozen=True)
class Cells:
    """A box as the numbers of the grid cells of its corners, row by row (Kosmos-2: 32 x 32)."""

    side: int = 32
    tolerance = 1e-6

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        if len(numbers) != 2 or not all(0 <= number < self.side * self.side for number in numbers):
            return None
        (y0, x0), (y1, x1) = (divmod(int(number), self.side) for number in numbers)
        # Cells in one row or column are taken whole, others from centre to centre: so does the library's decoder.
        low, high = (0.0, 1.0) if x0 == x1 or y0 == y1 else (0.5, 0.5)
        return Box((x0 + low) / self.side, (y0 + low) / self.side, (x1 + high) / self.side, (y1 + high) / self.side)

    def write(self, place: Place, scene: Scene) -> tuple[str, ...]:
        box, side = outline(clipped(place)), self.side
        x0, y0 = (min(side - 1, math.floor(value * side)) for value in (box.x0, box.y0))
        x1, y1 = (max(0, math.ceil(value * side - 1)) for value in (box.x1, box.y1))
        return (f"{y0 * side + x0:04d}", f"{max(y0, y1) * side + max(x0, x1):04d}")


@dataclass(frozen=True)
class Index:
    """A number that points at a candidate. `least`: the IoU a place must have with a candidate to be written so."""

    least: float = 0.0
    tolerance = 0.0

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        number = numbers[0]
        return scene.candidates[int(number)] if 0 <= number < len(scene.candidates) else None

    def write(self, place: Place, scene: Scene) -> tuple[str, ...]:
        box = outline(place)
        best = max(range(len(scene.candidates)), key=lambda index: scene.candidates[index].iou(box), default=None)
        if best is None or scene.candidates[best].iou(box) < self.least:
            return ()
        return (str(best),)


@dataclass(frozen=True)
class Segments:
    """Sixteen numbers of a codebook that stand for a mask inside the box before them (PaliGemma). Only the model's own
    mask decoder can draw it: where the scene has none (`Scene.masks`), the numbers are kept in the report.
    """

    largest: int = 127
    tolerance = 0.0

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        return None

    def write(self, place: Place, scene: Scene) -> tuple[str, ...]:
        return ()

    def drawn(self, numbers: Sequence[float], box: Box, scene: Scene) -> Place | None:
        """The mask on the whole fitted picture, drawn small and stretched over its box (bilinear, as the original)."""
        if scene.masks is None or not all(0 <= number <= self.largest for number in numbers):
            return None
        import numpy as np  # only masks need it; kept off the path of the dialects

        small = np.asarray(scene.masks([int(number) for number in numbers]), dtype=np.float64)
        columns, rows = (side or UNKNOWN for side in scene.size)

        def sampled(low: float, high: float, cells: int, most: int) -> tuple[Any, Any, Any, Any]:
            """Which cells of the picture lie in the box, the two rows of the small picture for each, and the blend."""
            at = (np.arange(cells) + 0.5) / cells
            inside = np.flatnonzero((at >= low) & (at < high))
            spot = np.clip((at[inside] - low) / (high - low) * most - 0.5, 0, most - 1)
            first = np.minimum(spot.astype(np.int64), most - 2)
            return inside, first, first + 1, spot - first

        across, left, right, x = sampled(box.x0, box.x1, columns, small.shape[1])
        down, top, bottom, y = sampled(box.y0, box.y1, rows, small.shape[0])
        halves = small[top] * (1 - y)[:, None] + small[bottom] * y[:, None]
        canvas = np.zeros((rows, columns), dtype=bool)
        canvas[np.ix_(down, across)] = halves[:, left] * (1 - x) + halves[:, right] * x > 0
        return Mask.from_array(canvas)


@dataclass(frozen=True)
class Times:
    """Two numbers that are a stretch of time, not a place; they become a `Moment`."""

    tolerance = 0.0

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        return None

    def write(self, place: Place, scene: Scene) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Form:
    """One way in which places stand in the text: an opening mark, characters of `body` only, a closing mark.

    `body` is the inside of a regular character class and must not be able to hold `open`: so reading stays linear.
    `run` above 0 says that each mark holds one number and that so many in a row make a place (`<loc_12>` four times).
    A mark with no closing mark ends where the characters of `body` end.
    Otherwise one mark holds one or several places, parted by `split`. `several`: whether more places are written into
    one mark, joined by `join`, or into marks of their own with `join` between them. `number`: a pattern of a number,
    or of a pair, in its groups. `polygons`: six numbers and more are an outline. `pairs`: two numbers are a point,
    however many stand in a mark. `plain`: brackets that prose uses too, so that [2019] or [1, 2] may be no place at
    all. `wrap`: written inside of the mark around all places. `gather`: makes one mark of the numbers of all places and
    the phrase, where no pattern can.
    """

    open: tuple[str, ...]
    body: str
    close: tuple[str, ...]
    code: Scaled | Cells | Index | Segments | Times
    place: str = "{},{},{},{}"
    point: str | None = None
    join: str = ";"
    several: bool = True
    split: str = r"[;\[\]]+"
    number: str = NUMBER
    run: int = 0
    polygons: bool = False
    pairs: bool = False
    plain: bool = False
    wrap: tuple[str, str] = ("", "")
    gather: Callable[[Sequence[tuple[str, ...]], str | None], str] | None = None

    @cached_property
    def parts(self) -> re.Pattern[str]:
        return re.compile(self.split)

    @cached_property
    def numbers(self) -> re.Pattern[str]:
        return re.compile(self.number)

    @property
    def _inside(self) -> str:
        """One character of the body; a digit of any script is a digit."""
        return f"[{self.body}]".replace("0-9", r"\d")

    @property
    def pattern(self) -> str:
        """The whole mark; of marks that make a place together, as many as stand in a row."""
        if self.run:
            return f"(?:{self._one}){{1,64}}"
        return f"{either(self.open)}{self._inside}{{0,{LONGEST}}}{either(self.close)}"

    @property
    def _one(self) -> str:
        return f"{either(self.open)}{self._inside}{{0,40}}{either(self.close)}"

    @cached_property
    def single(self) -> re.Pattern[str]:
        """One mark of a row, its number the group."""
        return re.compile(f"{either(self.open)}({self._inside}{{0,40}}){either(self.close)}")

    @cached_property
    def plainest(self) -> re.Pattern[str] | None:
        """A whole mark with four numbers and nothing odd in it, the numbers its groups: nearly all marks are such.

        Every length in it is bounded, so that a try takes no time. None where four numbers are not one box.
        """
        if self.run or self.number != NUMBER or not isinstance(self.code, Scaled) or self.counts(4) != 4:
            return None
        around = r"[\s,()<>\[\]]{0,9}"
        between = "".join(sign for sign in " ,\n()<>" if not self.parts.match(sign))
        number = r"([-+]?\d{1,20}(?:\.\d{0,20})?)"
        numbers = f"[{between}]{{1,9}}".join([number] * 4)
        return re.compile(f"{either(self.open)}{around}{numbers}{around}{either(self.close)}")

    @property
    def half(self) -> str:
        return "|".join([*(starts(mark) for mark in self.open if len(mark) > 1), self.open_end])

    @property
    def open_end(self) -> str:
        """The mark once it is open, up to the beginning of what closes it."""
        most = 40 if self.run else LONGEST
        closes = "|".join(starts(mark) for mark in self.close if len(mark) > 1)
        return f"{either(self.open)}{self._inside}{{0,{most}}}{f'(?:{closes})?' if closes else ''}"

    def counts(self, count: int) -> int:
        """How many of `count` numbers make one place; 0 where they make none."""
        if isinstance(self.code, Segments):
            return 0
        if isinstance(self.code, Times):
            return 2 if count == 2 else 0
        if isinstance(self.code, Index | Cells):
            least = 1 if isinstance(self.code, Index) else 2
            return least if count % least == 0 else 0
        if self.pairs:
            return 2 if count % 2 == 0 else 0
        if count == 2:
            return 2 if self.point is not None else 0
        if count % 4 == 0 and not (self.polygons and count > 4):
            return 4
        return count if self.polygons and count >= 6 and count % 2 == 0 else 0

    def meant(self, numbers: Sequence[float]) -> bool:
        """Whether plain brackets were meant as a place: a right count, or three numbers that look like coordinates."""
        if isinstance(self.code, Times):
            return len(numbers) == 2
        if len(numbers) != 2 and self.counts(len(numbers)):
            return True
        scale = getattr(self.code, "scale", 1.0) or 4096
        inside = all(-0.5 * scale <= number <= 1.5 * scale for number in numbers)
        if len(numbers) == 2:
            return self.point is not None and inside
        return len(numbers) > 2 and inside and (scale > 1 or any(number % 1 for number in numbers))

    def _pointed(self, place: Place) -> Place:
        """In a language of points the middle of a place."""
        return outline(place).centre if self.pairs and not isinstance(place, Point) else place

    def gathered(self, places: Sequence[Place], phrase: str | None, scene: Scene) -> str | None:
        """All places and their phrase in one mark; None where this form writes places by themselves."""
        if self.gather is None or not places:
            return None
        return self.gather([self.code.write(self._pointed(place), scene) for place in places], phrase)

    def write(self, places: Sequence[Place], scene: Scene) -> str | None:
        """All places in this form, or None where one of them has none (an index for what is no candidate)."""
        written = []
        for place in places:
            place = self._pointed(place)
            if self.polygons and self.run and not isinstance(place, Polygon):
                box = outline(place)
                corners = ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1))
                place = Polygon(tuple(Point(x, y) for x, y in corners))
            pointed = isinstance(place, Point) and self.point is not None
            if isinstance(place, Polygon) and self.polygons:
                numbers = self.code.write(place, scene)
                mark = f"{self.open[0]}{{}}{self.close[0]}"
                written.append("".join(map(mark.format, numbers)) if self.run else ",".join(numbers))
                continue
            numbers = self.code.write(place if pointed else outline(place), scene)
            if not numbers:
                return None
            written.append((self.point if pointed else self.place).format(*numbers))
        if self.run:
            return self.join.join(written)
        if self.several:
            return f"{self.open[0]}{self.wrap[0]}{self.join.join(written)}{self.wrap[1]}{self.close[0]}"
        return self.join.join(f"{self.open[0]}{numbers}{self.close[0]}" for numbers in written)


def either(marks: Sequence[str]) -> str:
    if tuple(marks) == ("",):
        return ""
    return "(?:" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")"


def starts(mark: str) -> str:
    """A pattern of every proper beginning of a mark."""
    pattern = ""
    for character in reversed(mark[:-1]):
        pattern = f"{re.escape(character)}(?:{pattern})?" if pattern else re.escape(character)
    return pattern


def brackets(
    scale: float = 1.0,
    decimals: int = 2,
    comma: str = ", ",
    double: bool = False,
    point: bool = False,
    several: bool = False,
    join: str = ";",
    step: Literal["round", "floor", "bin"] = "round",
    largest: float | None = None,
    width: int = 0,
) -> Form:
    """The form of numbers in square brackets, single or double when read: [x0, y0, x1, y1]."""
    return Form(
        open=("[[", "[") if double else ("[", "[["),
        body=r"-+0-9.,;eE \t\n",
        close=("]]", "]") if double else ("]", "]]"),
        code=Scaled(scale, decimals, step=step, largest=largest, width=width),
        place=comma.join(["{}"] * 4),
        point=comma.join(["{}"] * 2) if point else None,
        join=join,
        several=several,
        plain=True,
    )
