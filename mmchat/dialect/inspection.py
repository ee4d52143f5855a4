"""One answer read in every frame and convention, to find out which one its numbers were written in.

A box in the wrong place is mostly a right answer read with the wrong scale, order or frame. `inspect` is pure; whoever
looks at the views picks the one that fits the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmchat.dialect.forms import Scaled
from mmchat.dialect.listing import Json
from mmchat.dialect.marks import Marks
from mmchat.dialect.spans import Grounded, Scene, home
from mmchat.geometry import Box, Fit, Frame, Place, Placement

Corners = Literal["corners", "y first", "centre and size"]
SCALES = (1.0, 100.0, 99.0, 999.0, 1000.0, 1024.0, 0.0)  # 0: pixels
FITS: tuple[Fit, ...] = ("squash", "pad", "pad_end", "crop")
ORDERS: tuple[Corners, ...] = ("corners", "y first", "centre and size")


@dataclass(frozen=True)
class Centred(Scaled):
    """Four numbers that are a centre, a width and a height."""

    def read(self, numbers: Sequence[float], scene: Scene) -> Place | None:
        place = super().read(numbers, scene)
        if not isinstance(place, Box):
            return place
        across, down = place.x1 / 2, place.y1 / 2
        return Box(place.x0 - across, place.y0 - down, place.x0 + across, place.y0 + down)


@dataclass(frozen=True)
class View:
    """One way of reading: the largest number (0: pixels), the frame, the order of the numbers; what it gave at home.

    `whole` counts the places that lay inside the picture as they were written, `spoilt` those that were dropped,
    clipped or turned round: a right way spoils few.
    """

    scale: float
    fit: Fit
    order: Corners
    answer: Grounded
    whole: int
    spoilt: int

    @property
    def name(self) -> str:
        """Words for it: "/1000, padded, y first"."""
        scale = {0.0: "pixels", 1.0: "0 to 1"}.get(self.scale, f"/{self.scale:g}")
        fit = {"squash": "squashed", "pad": "padded", "pad_end": "padded at the end", "crop": "cropped"}[self.fit]
        return ", ".join([scale, fit, *([] if self.order == "corners" else [self.order])])


def inspect(
    dialect: Marks | Json, text: str, size: tuple[int, int], seen: tuple[int, int] | None = None
) -> tuple[View, ...]:
    """The answer `text`, whose marks are the dialect's, in every scale, frame and order; the likeliest ways first.

    size: of the upright picture (width, height); seen: of the picture as the model saw it, for its pixels. Marks whose
    numbers are no coordinates (an index, a grid cell) read the same in every view. Likely is what spoils few places;
    views that nothing parts stay in the order of the scales, so that the numbers' own size decides nothing unseen.
    """
    views = [
        _view(dialect, text, size, seen, scale, fit, order) for scale in SCALES for fit in FITS for order in ORDERS
    ]
    return tuple(sorted(views, key=lambda view: (view.spoilt, -view.whole)))


def _view(
    dialect: Marks | Json,
    text: str,
    size: tuple[int, int],
    seen: tuple[int, int] | None,
    scale: float,
    fit: Fit,
    order: Corners,
) -> View:
    placement = placed(size, seen, fit)
    read = _spoken(dialect, scale, order).read(text, Scene(size=placement.fitted))
    answer = home(read, placement)
    spoilt = {(item.start, item.end) for item in answer.dropped}
    sources = [where for span in answer.spans for where in span.source]
    return View(scale, fit, order, answer, sum(where not in spoilt for where in sources), len(spoilt))


def placed(size: tuple[int, int], seen: tuple[int, int] | None, fit: Fit) -> Placement:
    """Where the picture lies in what the model saw; without `seen`, unresized."""
    if fit == "squash":
        return Placement(size, seen or size, (1.0, 1.0), (0.0, 0.0))
    side = min if fit == "crop" else max
    return replace(Frame(side(size), fit).place(size), fitted=(side(seen or size),) * 2)


def _spoken(dialect: Marks | Json, scale: float, order: Corners) -> Marks | Json:
    """The dialect with its marks, but other numbers."""
    kind = Centred if order == "centre and size" else Scaled
    code = kind(scale, 3 if scale == 1 else 0, order="yxyx" if order == "y first" else "xyxy")
    if isinstance(dialect, Json):
        return replace(dialect, code=code)
    forms = tuple(replace(form, code=code) if isinstance(form.code, Scaled) else form for form in dialect.forms)
    return replace(dialect, forms=forms)
