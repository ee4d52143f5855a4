"""From a model's text to places and back, without a model: what the commands and the endpoint `read` and `write` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmchat.dialect import DIALECTS, Json, Marks, Scene, home, inspect, markdown, table
from mmchat.export import reading_json
from mmchat.geometry import Box, Frame, Placement, outline, region_in

__all__ = ["DIALECTS", "dialect_named", "inspect_json", "markdown", "placement_for", "read_json", "table", "write_text"]

Size = tuple[int, int]
LARGEST = 1_000_000  # pixels of one side
LONGEST = 2_000_000  # characters of a text


def dialect_named(name: str) -> Marks | Json:
    """The dialect of that name; ValueError with the known ones otherwise."""
    if name not in DIALECTS:
        raise ValueError(f"There is no dialect {name!r}: choose one of {', '.join(DIALECTS)}.")
    return DIALECTS[name]


def placement_for(dialect: Marks | Json, size: Size, fit: Size | None = None) -> Placement:
    """Where a picture of `size` lies in the fitted one as the dialect's models fit it.

    Sizes are (width, height). fit: of the fitted picture; without it the picture is taken as it is, or as the smallest
    square that its way of fitting asks for.
    """
    if dialect.way == "squash":
        return Placement(size, fit or size, (1.0, 1.0), (0.0, 0.0))
    if fit is not None and fit[0] != fit[1]:
        raise ValueError(f"{dialect.name} reads a square picture, not {fit[0]}x{fit[1]}: give --fit with equal sides.")
    side = fit[0] if fit else min(size) if dialect.way == "crop" else max(size)
    return Frame(side, dialect.way).place(size)


def read_json(
    dialect: str, text: str, size: object, fit: object = None, candidates: Sequence[object] | None = None
) -> dict[str, Any]:
    """Clean words, phrases with places and what was dropped, in pixels of the upright picture of `size`.

    size, fit: (width, height); candidates: [x0, y0, x1, y1] each, in pixels of the upright picture, which the marks
    of some dialects number. ValueError, one sentence, for what cannot be meant.
    """
    known = dialect_named(dialect)
    width_height = checked_size(size, "size")
    placement = placement_for(known, width_height, None if fit is None else checked_size(fit, "fit"))
    if len(text) > LONGEST:
        raise ValueError(f"The text has {len(text)} characters, at most {LONGEST} are read: cut it.")
    boxes = tuple(
        outline(placement.into(box_in(corners, width_height, f"Candidate {number}")))
        for number, corners in enumerate(candidates or ())
    )
    scene = Scene(boxes, placement.fitted)
    return reading_json(home(known.read(text, scene), placement), width_height)


def inspect_json(dialect: str, text: str, size: object, fit: object = None) -> list[dict[str, Any]]:
    """`text` in every scale, frame and order, the likeliest first: "view" names the way, the rest is as in `read_json`.

    size, fit and errors as in `read_json`.
    """
    known, width_height = dialect_named(dialect), checked_size(size, "size")
    seen = None if fit is None else checked_size(fit, "fit")
    if len(text) > LONGEST:
        raise ValueError(f"The text has {len(text)} characters, at most {LONGEST} are read: cut it.")
    views = inspect(known, text, width_height, seen)
    return [{"view": view.name, **reading_json(view.answer, width_height)} for view in views]


def write_text(
    dialect: str, boxes: Sequence[Sequence[float]], size: Size, phrase: str | None = None, fit: Size | None = None
) -> str:
    """What a prompt would hold for these boxes (pixels of the upright picture of `size`; fit as in `read_json`).

    Dialects that number candidates write the numbers of the boxes themselves, in order from 0.
    """
    known = dialect_named(dialect)
    placement = placement_for(known, checked_size(size, "size"), None if fit is None else checked_size(fit, "fit"))
    drawn = tuple(region_in(corners, size, number).place for number, corners in enumerate(boxes, 1))
    places = tuple(outline(placement.into(place)) for place in drawn)
    places = tuple(place.clipped() for place in places)
    if any(place.area <= 0 for place in places):
        raise ValueError(f"The box lies where {dialect} does not look (it crops the picture): choose another one.")
    return known.write(places, phrase, Scene(places, placement.fitted))


def box_in(corners: object, size: Size, name: str) -> Box:
    """A candidate in the unit square, corners in order."""
    if not _numbers(corners, 4):
        raise ValueError(f"{name} must be [x0, y0, x1, y1] in pixels, not {str(corners)[:60]}.")
    return Box.from_pixels(corners, size).ordered()  # type: ignore[arg-type]


def checked_size(size: object, name: str) -> Size:
    """(width, height) as whole numbers of pixels; ValueError otherwise."""
    if not _numbers(size, 2) or not all(1 <= side <= LARGEST and side == int(side) for side in size):  # type: ignore[attr-defined]
        raise ValueError(f"The {name} must be width and height in pixels from 1 to {LARGEST}, not {str(size)[:60]}.")
    width, height = size  # type: ignore[misc]
    return int(width), int(height)


def _numbers(given: object, count: int) -> bool:
    listed = isinstance(given, list | tuple) and len(given) == count
    return listed and all(type(value) in (int, float) and abs(value) < 1e12 for value in given)  # type: ignore[union-attr]
