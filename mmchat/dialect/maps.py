"""Phrase maps: detectors that write no text but give every box a score for each piece of a caption, or each phrase.

Grounding DINO scores the word pieces of one caption, OWL-ViT and OWLv2 whole phrases. Both become `Detection`s, and
`grounded` makes of these what every reader of this house makes: words with places.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mmchat.dialect.spans import Dropped, Grounded, Span, settle
from mmchat.geometry import Box, Fit, Place

ENDS = ("[CLS]", "[SEP]", ".")
CLOSE = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")  # BERT's decoder takes the blank away


@dataclass(frozen=True)
class Detection:
    """A phrase with a box (unit square of the fitted picture, neither cut nor in order) and a score in 0..1."""

    phrase: str
    box: Box
    score: float


@dataclass(frozen=True)
class PhraseMap:
    """How a detector's scores are read. `box`: least score of a box; `text`: least score of a piece of its phrase.

    `tidy`: separators and the tokenizer's own marks are no words of a phrase. `one`: a phrase does not reach beyond
    the separators around its best piece. `longest`: positions after it are padding. `way`: what boxes refer to.
    """

    name: str
    box: float = 0.35
    text: float = 0.25
    tidy: bool = True
    one: bool = True
    longest: int = 255
    way: Fit = "squash"

    def detections(
        self, logits: Sequence[Sequence[float]], tokens: Sequence[str], boxes: Sequence[Sequence[float]]
    ) -> tuple[Detection, ...]:
        """Boxes that score well for some piece of the caption, in the order of the queries.

        logits: a row for each query, a number for each of `tokens` (word pieces, [CLS] and [SEP] with them); boxes:
        centre, width and height in 0..1. ValueError where the counts do not fit.
        """
        separators = [place for place, token in enumerate(tokens) if token in ENDS]
        out = []
        for row, corners in _rows(logits, boxes, len(tokens)):
            scores = [_chance(value) for value in row]
            best = max(range(len(scores)), key=scores.__getitem__)
            if scores[best] > self.box:
                first, last = 0, min(self.longest, len(tokens))
                if self.one and separators:
                    right = min(bisect_left(separators, best), len(separators) - 1)
                    first, last = separators[right - 1], separators[right]
                kept = [tokens[place] for place in range(first + 1, last) if scores[place] > self.text]
                out.append(Detection(self._phrase(kept), _box(corners), scores[best]))
        return tuple(out)

    def choices(
        self, logits: Sequence[Sequence[float]], phrases: Sequence[str], boxes: Sequence[Sequence[float]]
    ) -> tuple[Detection, ...]:
        """As `detections`, of a detector whose rows hold a number for each whole phrase: the best one is meant."""
        out = []
        for row, corners in _rows(logits, boxes, len(phrases)):
            best = max(range(len(row)), key=row.__getitem__)
            if _chance(row[best]) > self.box:
                out.append(Detection(phrases[best], _box(corners), _chance(row[best])))
        return tuple(out)

    def _phrase(self, pieces: Sequence[str]) -> str:
        """Word pieces as words, as BERT's decoder joins them."""
        if self.tidy:
            pieces = [piece for piece in pieces if piece not in ENDS and piece != "[PAD]"]
        words = ""
        for piece in pieces:
            words += piece[2:] if words and piece.startswith("##") else f" {piece}" if words else piece
        for mark in CLOSE:
            words = words.replace(mark, mark[1:])
        return words.strip() if self.tidy else words


GROUNDING_DINO = PhraseMap("grounding_dino")
OWL = PhraseMap("owl", box=0.1, way="pad_end")  # OWLv2; OWL-ViT squashes the picture


def caption(phrases: str | Sequence[str]) -> str:
    """What Grounding DINO is asked: small letters, each phrase closed by a dot."""
    if isinstance(phrases, str):
        written = phrases.strip().lower()
        return written if written.endswith(".") else f"{written}."
    return ". ".join(phrase.strip().lower() for phrase in phrases) + "."


def grounded(detections: Sequence[Detection]) -> Grounded:
    """Each phrase once, in order of first appearance and parted by commas, with its boxes inside the picture.

    A box without a phrase stands in the report, with the number of its detection as its position.
    """
    unnamed = [number for number, detection in enumerate(detections) if not detection.phrase]
    named = [(detection.phrase, detection.box) for detection in detections]
    reason = "no phrase: no piece of the caption scored enough"
    return joined(named, {number: reason for number in unnamed})


def joined(named: Sequence[tuple[str, Place]], refused: Mapping[int, str] = MappingProxyType({})) -> Grounded:
    """Names with places as words with places: each name once, parted by commas; places without a name have no words.

    refused: what is left out, by its number, and why. The report gives the number of a place as its position.
    """
    places: dict[str, list[Place]] = {}
    dropped = []
    for number, (name, given) in enumerate(named):
        place, reasons = (None, (refused[number],)) if number in refused else settle(given, 1e-6)
        dropped += [Dropped(number, number + 1, reason) for reason in reasons]
        if place is not None:
            places.setdefault(name, []).append(place)
    spans, text = [], ""
    for name, found in places.items():
        text += ", " if text and name else ""
        none = (None,) * len(found)
        spans.append(Span(len(text), len(text) + len(name), tuple(found), ((0, 0),) * len(found), none))
        text += name
    return Grounded(text, tuple(spans), tuple(dropped))


def _rows(
    logits: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]], count: int
) -> list[tuple[Sequence[float], Sequence[float]]]:
    if len(logits) != len(boxes) or any(len(row) != count for row in logits) or not count:
        raise ValueError(
            f"Every box needs a row of {count} scores: there are {len(boxes)} boxes and rows of "
            f"{sorted({len(row) for row in logits})}."
        )
    return list(zip(logits, boxes, strict=True))


def _chance(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _box(given: Sequence[float]) -> Box:
    x, y, width, height = given
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
