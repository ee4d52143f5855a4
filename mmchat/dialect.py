"""The grounding language: write places as a model's text, read a model's text as phrases with places.

Everything here is in the frame of the *fitted* picture (unit square); `geometry.Placement` brings it home. Pure Python, no torch.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from mmchat.geometry import Box, Place


@dataclass(frozen=True)
class Scene:
    """What numbers may refer to: candidate boxes (unit square of the fitted picture) and the fitted size (width, height) in pixels."""

    candidates: tuple[Box, ...] = ()
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Span:
    """A phrase of the clean text (`start`, `end`) with its places.

    `source` holds, place by place, the (start, end) in the raw text from which it was read: the tokens that wrote it.
    `regions` holds, place by place, the candidate's index or None where the place came from numbers.
    """

    start: int
    end: int
    places: tuple[Place, ...]
    source: tuple[tuple[int, int], ...] = ()
    regions: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A stretch of the raw text that was not taken as written, and why."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Grounded:
    """The clean text, its spans, what was dropped."""

    text: str
    spans: tuple[Span, ...] = ()
    dropped: tuple[Dropped, ...] = field(default=())


# Marks(box, code, number, phrase, group, join, label) and Json(key, label, order, scale) follow; both offer
#   .write(places, phrase=None, scene=Scene()) -> str
#   .read(text, scene=Scene(), final=True) -> Grounded        (final=False: text is still growing, half a mark is held back)
