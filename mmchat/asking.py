"""A question before it is asked: what can be asked at all, and regions and words as the open model takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmchat.clip import Clip
from mmchat.family import Family, Limits
from mmchat.geometry import KINDS, Box, Placement, Region, clipped, outline
from mmchat.prompt import Turn, mentioned, unknown_mentions

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 4000  # characters of a question
LEAST = 0.1  # of the picture's shorter side: how large the box of a point is, where a model takes boxes alone
WORDS = {"box": "a box", "point": "a point", "scribble": "a line", "polygon": "an outline", "mask": "a painted shape"}
MENTION = re.compile(r"(?<![\w@])@(\d{1,3})(?!\w)")


@dataclass(frozen=True)
class Ask:
    """A question: the talk's pictures (upright RGB), videos and sounds, its turns (the last one is the user's), a task
    of the family's template or None."""

    images: tuple[Image.Image | Clip, ...]
    turns: tuple[Turn, ...]
    task: str | None = None
    limits: Limits = Limits()


def check_pictures(family: Family, count: int) -> None:
    """ValueError where a family that takes one picture at a time is to be asked about `count`."""
    if count > 1 and "several pictures" not in family.takes:
        raise ValueError(f"{family.title} takes one picture at a time: leave out the others, or choose another model.")


def check(ask: Ask, alone: bool = False) -> None:
    """ValueError, one sentence with cause and remedy, where a question cannot be asked. alone: words are not needed."""
    if not ask.images:
        raise ValueError("There is no picture: give one to ask about.")
    if not ask.turns or ask.turns[-1].role != "user":
        raise ValueError("The talk must end with the user's question: add one.")
    text = ask.turns[-1].text
    if not alone and ask.task is None and not text.strip():
        raise ValueError("The question is empty: write what you want to know or find.")
    if len(text) > LONGEST:
        raise ValueError(f"The question has {len(text)} characters, at most {LONGEST} are taken: shorten it.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("The question holds half a character that no text can have: write or copy it again.")
    limits = ask.limits
    if limits.new_tokens < 1 or limits.temperature < 0 or not 0 < limits.top_p <= 1:
        raise ValueError("Limits are wrong: at least 1 new token, temperature 0 or more, top_p above 0 and at most 1.")
    if not 0 <= limits.pictures <= 9 or not 0 <= limits.readiness <= 3:
        raise ValueError("Limits are wrong: 0 to 9 pictures for a mark, a readiness to show them of 0 to 3.")


def with_pictures(ask: Ask) -> list[Turn]:
    """The turns; where none says with which pictures it came, the first user's turn shows them all."""
    turns = list(ask.turns)
    for turn in turns:
        for index in turn.images:
            if not 0 <= index < len(ask.images):
                raise ValueError(
                    f"The talk names picture {index + 1}, but there are {len(ask.images)}: add the picture."
                )
    if not any(turn.images for turn in turns):
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = replace(turns[first], images=tuple(range(len(ask.images))))
    kinds = [image.kind if isinstance(image, Clip) else "image" for image in ask.images]
    return [replace(turn, kinds=tuple(kinds[index] for index in turn.images)) for turn in turns]


def named_in(turns: list[Turn], family: Family, task: str | None) -> tuple[int, ...]:
    """The numbers of the regions that the last question names, or that its task is about.

    ValueError where the family takes no regions.
    """
    known = sum(len(turn.regions) for turn in turns)
    named = mentioned(turns[-1].text, known)
    if named and not family.takes & set(KINDS):
        raise ValueError(f"{family.title} takes no regions: ask in words, without @{named[0]}.")
    if not named and task is not None and family.template.task(task).needs == "region":
        named = tuple(range(known - len(turns[-1].regions) + 1, known + 1))
    return named


def taken(region: Region, number: int, family: Family, placements: tuple[Placement, ...]) -> tuple[Region, list[str]]:
    """A region as a kind that the family takes, and a hint where that is another: the box around what was drawn.

    A point or a line tells a place and hardly its size: their box is at least LEAST of the picture's shorter side wide
    and high. ValueError where the family takes no boxes either.
    """
    kinds = family.takes & set(KINDS)
    if region.kind in kinds or not kinds or not 0 <= region.image < len(placements):
        return region, []
    known = " and ".join(sorted(WORDS[kind] for kind in kinds))
    told = f"Region {number} is {WORDS[region.kind]} and {family.title} takes {known}"
    if "box" not in kinds:
        raise ValueError(f"{told}: draw that.")
    box, size = region.box.ordered(), placements[region.image].size
    if region.kind in ("point", "scribble"):
        across, down = (
            max(0.0, LEAST * min(size) / side - length) / 2
            for side, length in zip(size, (box.width, box.height), strict=True)
        )
        box = Box(box.x0 - across, box.y0 - down, box.x1 + across, box.y1 + down).clipped()
    return Region("box", box, image=region.image, size=region.size), [f"{told}: the box around it was taken."]


def usable(region: Region, number: int, placements: tuple[Placement, ...]) -> tuple[Region, list[str]]:
    """The user's region in the fitted picture, and a hint where it was cut. ValueError where nothing of it remains."""
    if not 0 <= region.image < len(placements):
        raise ValueError(
            f"Region {number} is on picture {region.image + 1}, but there are {len(placements)}: draw it again."
        )
    box, inside = region.box.ordered(), region.box.ordered().clipped()
    points = region.kind in ("point", "scribble")
    outside = box.x1 < 0 or box.y1 < 0 or box.x0 > 1 or box.y0 > 1
    if outside or (not points and inside.area <= 0):
        raise ValueError(f"Region {number} has no area inside the picture: draw it on the picture.")
    hints = [f"Region {number} sticks out of the picture: the part inside was taken."] if inside != box else []
    placed = fitted(region, placements[region.image])
    cut = placed.box.ordered().clipped()
    if not points and cut.area <= 0:
        raise ValueError(
            f"Region {number} lies where this model does not look (it crops the picture): draw it elsewhere."
        )
    return replace(placed, box=cut, points=tuple(point.clipped() for point in placed.points)), hints


def fitted(region: Region, placement: Placement) -> Region:
    """A region of the original picture in the unit square of the fitted one."""
    points = tuple(placement.into(clipped(point)) for point in region.points)
    mask = None if region.mask is None else placement.into(region.mask)
    box = outline(placement.into(region.box.ordered().clipped()))
    return replace(region, box=box, points=points, mask=mask, size=placement.size)


def wrong_numbers(turns: list[Turn], drawn: int) -> list[str]:
    """A hint for each @number in the last question that no region has, however it is written."""
    have = ", ".join(f"@{number}" for number in range(1, drawn + 1)) or "none"
    return [
        f"There is no region {mention} (drawn: {have}): it was read as plain words."
        for mention in unknown_mentions(turns[-1].text, drawn)
    ]


def plain(text: str, marks: tuple[str, ...]) -> str:
    """A user's words without marks, a blank behind their first letter: nobody may speak in the model's place, or show
    it a picture that is none.
    """
    for mark in marks:
        if len(mark) > 1:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text
