"""What reading gives: clean words, phrases with places, what was dropped; and what can be done with any of it.

Places are in the unit square of the fitted picture until `home` brings them to the upright original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mmchat.geometry import Box, Place, Placement, clipped, outline


@dataclass(frozen=True)
class Scene:
    """What numbers may refer to: candidates (unit square of the fitted picture; boxes, and masks where a model's head
    drew them), the fitted size (width, height).

    `groups` names, for the k-th mark of dialects whose marks carry no index, the candidates it stands for; empty: the
    k-th candidate. `masks` draws what some models write as numbers of a codebook: rows of a picture of the box before
    them, in which what is above 0 belongs to the mask.
    """

    candidates: tuple[Place, ...] = ()
    size: tuple[int, int] = (0, 0)
    groups: tuple[tuple[int, ...], ...] = ()
    masks: Callable[[Sequence[int]], Sequence[Sequence[float]]] | None = None


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
class Moment:
    """A stretch of time or sound that a phrase (`start`, `end` in the clean text) belongs to: a span in time.

    `first` and `last` are fractions of the whole length where the dialect writes such; `source` is where the numbers
    stand in the raw text.
    """

    start: int
    end: int
    first: float
    last: float
    source: tuple[int, int] = (0, 0)
    kind = "span"

    def within(self, seconds: float) -> tuple[float, float]:
        """Start and end in seconds, in a whole of that length: numbers up to 1 are fractions of it, others seconds."""
        scale = seconds if self.last <= 1 else 1.0
        return min(self.first * scale, seconds), min(self.last * scale, seconds)


@dataclass(frozen=True)
class Dropped:
    """A stretch of the raw text that was not taken as written, and why."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Grounded:
    """The clean text, its spans, what was dropped, its stretches of time."""

    text: str
    spans: tuple[Span, ...] = ()
    dropped: tuple[Dropped, ...] = field(default=())
    moments: tuple[Moment, ...] = ()


def settle(place: Place, tolerance: float = 0.0) -> tuple[Place | None, tuple[str, ...]]:
    """A place with ordered corners, cut to the unit square, and what had to be done; None where nothing remains inside.

    Up to `tolerance` beyond the edge is cut off without a word.
    """
    if isinstance(place, Box) and 0 <= place.x0 < place.x1 <= 1 and 0 <= place.y0 < place.y1 <= 1:
        return place, ()  # nearly always, and readers make thousands
    reasons = []
    if isinstance(place, Box) and (place.x0 > place.x1 or place.y0 > place.y1):
        place = place.ordered()
        reasons.append("swapped corners: put in order")
    around = outline(place)
    if 0 <= around.x0 and around.x1 <= 1 and 0 <= around.y0 and around.y1 <= 1 and not isinstance(place, Box):
        return place, ()
    inside = clipped(place)
    if min(around.x0, around.y0) < -tolerance or max(around.x1, around.y1) > 1 + tolerance:
        if max(around.x0, around.y0) > 1 + tolerance or min(around.x1, around.y1) < -tolerance:
            return None, (*reasons, "out of range: outside the picture")
        reasons.append("out of range: clipped to the picture")
    if isinstance(inside, Box) and inside.area <= 0:
        return None, (*reasons, "no area")
    return inside, tuple(reasons)


def confidence(span: Span, pieces: Sequence[tuple[int, int, float]]) -> tuple[float | None, ...]:
    """How sure the model was of each place: the geometric mean of the probabilities of the tokens that wrote it.

    `pieces` are (start, end, probability) of each token in the raw text, in order. None where no token is known.
    """
    scores: list[float | None] = []
    for start, end in span.source:
        logs = [
            math.log(max(chance, 1e-12))
            for begin, stop, chance in pieces
            if begin < end and stop > start and stop > begin
        ]
        scores.append(min(1.0, math.exp(sum(logs) / len(logs))) if logs else None)
    return tuple(scores)


def home(grounded: Grounded, placement: Placement) -> Grounded:
    """The same answer with places in the unit square of the upright original: mapped back and cut to the picture.

    A place that lies in the padding alone is dropped with that reason; a span without places goes.
    """
    spans, dropped = [], list(grounded.dropped)
    for span in grounded.spans:
        kept = []
        for number, place in enumerate(span.places):
            where = span.source[number] if number < len(span.source) else (0, 0)
            settled, _ = settle(placement.back(place), 1e-6)
            if settled is None:
                dropped.append(Dropped(*where, "outside the picture: in the padding"))
            else:
                kept.append((settled, where, span.regions[number] if number < len(span.regions) else None))
        if kept:
            places, source, regions = zip(*kept, strict=True)
            spans.append(replace(span, places=places, source=source, regions=regions))
    return replace(grounded, spans=tuple(spans), dropped=tuple(dropped))
