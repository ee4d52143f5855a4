"""What transformers' processor made of Florence-2's answer, a dictionary of lists, as words with places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmchat.dialect.maps import joined
from mmchat.dialect.spans import Grounded
from mmchat.dialect.table import DIALECTS
from mmchat.geometry import Box, Place, Point, Polygon


def florence_result(result: Mapping[str, Any], size: tuple[int, int]) -> Grounded:
    """{task: {"bboxes", "polygons" or "quad_boxes": [...], "labels": [...]} or text}, in pixels of a picture of `size`.

    Places in its unit square, inside it. ValueError where `result` is no dictionary of a single task.
    """
    if not isinstance(result, Mapping) or len(result) != 1:
        raise ValueError("A result of Florence-2 is a dictionary of one task: give what its processor returned.")
    ((task, given),) = result.items()
    if isinstance(given, str):  # some tasks stay text, with their marks
        return DIALECTS["florence_2"].read(given)
    if not isinstance(given, Mapping):
        raise ValueError(f"The result of {task} must hold lists of places and labels, or text.")
    found: list[tuple[str, Place]] = []
    for key in ("bboxes", "polygons", "quad_boxes"):
        places = given.get(key) or []
        names = given.get(f"{key}_labels", given.get("labels")) or [""] * len(places)
        for name, numbers in zip(names, places, strict=False):
            for one in numbers if key == "polygons" else [numbers]:  # an object may have several outlines
                place = _place(one, size)
                if place is not None:
                    found.append((str(name), place))
    return joined(found)


def _place(numbers: Sequence[float], size: tuple[int, int]) -> Place | None:
    """A box of four numbers, an outline of six and more; None for anything else."""
    whole = isinstance(numbers, Sequence) and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    if not whole or len(numbers) < 4 or len(numbers) % 2:
        return None
    if len(numbers) == 4:
        return Box.from_pixels(numbers, size)
    return Polygon(tuple(Point(x / size[0], y / size[1]) for x, y in zip(numbers[::2], numbers[1::2], strict=True)))
