"""The readers of published evaluations, kept as they are so that scores can be compared."""

from __future__ import annotations

import json
import re

from mmchat.geometry import Box, Frame, Pixels, outline

FOUR = re.compile(r"\[+([^,\n]{0,200}),([^,\n]{0,200}),([^,\n]{0,200}),([^\]\n]{0,200})\]")


def double_brackets(text: str) -> tuple[list[tuple[float, ...]], bool]:
    """The boxes that MMFuser's own evaluation finds in an answer, as numbers, and whether the answer was as it expects.

    It wants exactly one pair of double brackets in one line that is valid JSON; a longer list of numbers is cut into
    fours. What it cannot read counts as the box of four zeros. Kept so that scores can be compared (yuecao0119/MMFuser,
    llava/eval/eval_grounding.py).
    """
    zeros = [(0.0, 0.0, 0.0, 0.0)]
    found = re.findall(r"\[\[.{0,10000}?\]\]", text)
    if not found:
        return zeros, False
    try:
        lists = json.loads(found[0])
    except (ValueError, RecursionError):
        return zeros, False
    numbers = lists[0]
    if not all(isinstance(number, int | float) and abs(number) < 1e30 for number in numbers) or len(numbers) % 4:
        return zeros, False
    boxes = [tuple(float(number) for number in numbers[at : at + 4]) for at in range(0, len(numbers), 4)]
    return boxes, len(found) == 1 and len(lists) == 1


def evaluated_boxes(text: str, size: tuple[int, int], scale: float = 999, padded: bool = False) -> list[Pixels]:
    """`double_brackets` in pixels of the original picture of `size` (width, height), neither ordered nor clipped."""
    placement = Frame(1, "pad" if padded else "squash").place(size)
    boxes = (Box(*(number / scale for number in numbers)) for numbers in double_brackets(text)[0])
    return [outline(placement.back(box)).pixels(size) for box in boxes]


def padded_box(text: str, size: tuple[int, int]) -> Pixels:
    """The one box that ConvLLaVA's evaluation finds in an answer, in pixels of the original picture of `size` (width,
    height), neither ordered nor clipped.

    The first four numbers in brackets count, in thousandths where their sum is 4 or more; none is the box of four
    zeros, moved by the padding like any other (alibaba/conv-llava, llava/eval/evaluate_grounding.py).
    """
    found = FOUR.search(text)
    try:
        numbers = [float(number) for number in found.groups()] if found else [0.0] * 4
    except ValueError:
        numbers = [0.0] * 4
    scale = 1000 if sum(numbers) >= 4 else 1
    side = max(size)
    shift = ((side - size[0]) // 2, (side - size[1]) // 2) * 2
    x0, y0, x1, y1 = (number / scale * side - moved for number, moved in zip(numbers, shift, strict=True))
    return x0, y0, x1, y1
