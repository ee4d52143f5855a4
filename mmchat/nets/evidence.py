"""Pocket's eyes: everything about a picture and a question short of the language model.

`encode` looks at the picture, `gather` at the regions drawn on it, `choose` finds what a phrase means, `names` calls a
region something,
`clue` says in one record what was found for a question. Candidates are the user's regions first, then the detector's,
then the whole
picture. Axes: R candidates, S side of the letterboxed picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets import chooser, colours
from mmchat.nets.clue import Clue, Seen, place_of
from mmchat.nets.deform import MSCrossAttnBlock, attended_map
from mmchat.nets.efficientnet import LITE2, EfficientNetLite, Stage
from mmchat.nets.nanodet import NanoDet
from mmchat.nets.phrases import CLASSES, THINGS, Lexicon, PhraseEncoder
from mmchat.nets.question import Question, read_question
from mmchat.nets.regions import iou, nms, roi_align
from mmchat.nets.scenes import SCENES, scenes

GREY = 114.0  # what the letterbox is filled with
CROP, MARGIN = 128, 0.1  # pixels of a region's crop, and how far it reaches over the region
PROPOSALS, LEAST, OVERLAP = 24, 0.04, 0.6
LATE = 3  # places beyond the candidates that a phrase may call up
MOST = 63  # candidates that the language model has index tokens for


@dataclass(frozen=True)
class Looked:
    """A picture alone: `pixels` [1, 3, S, S] RGB 0..255, `levels` [1, c, h, w] the encoder's maps, finest first.

    `area` [4]: where the picture lies in the letterbox (unit square). `before`, `after` [1, 256, h, w]: the deepest
    level before and after the fuser; `sampled` [1, 1, h, w]: where the fuser looks. `places`, `scores`: every place of
    the detector; `boxes` [n, 4] its proposals, best first, and last the whole picture; `things` [n, 80], `classes`
    [n, 1000], `shares` [n, 11] what detector, classifier and colours say of each.
    """

    pixels: torch.Tensor
    levels: tuple[torch.Tensor, ...]
    area: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    sampled: torch.Tensor
    places: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    things: torch.Tensor
    classes: torch.Tensor
    shares: torch.Tensor


@dataclass(frozen=True)
class Viewed:
    """A picture with its candidates. `boxes` [R, 4] in the letterbox's unit square, the first `drawn` are the user's.

    `facts`: what is known of each, boxes in the unit square of the picture itself; `regions` [R, 256] fused features;
    `words` [R, 384].
    """

    looked: Looked
    boxes: torch.Tensor
    drawn: int
    facts: chooser.Facts
    regions: torch.Tensor
    words: torch.Tensor


@dataclass(frozen=True)
class Choice:
    """What a phrase means: `logits` [R] (of the user's regions: very low).

    `present`: calibrated probability that it is there; `best`: the likeliest candidate; `match` [R]: untrained likeness
    of each candidate to the phrase's noun, about 0..1. `late`: the picture with one more candidate at its end, number
    R, where a place that found no seat among the candidates fits the phrase better than all of them.
    """

    logits: torch.Tensor
    present: float
    best: int
    match: torch.Tensor
    late: Viewed | None = None


class Fuser(nn.Module):
    """Encoder levels [N, c, h, w], the asking one last -> the asking level before and after it was fused [N, width,
    h, w]; where it looked.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(count, width) for count in channels)
        self.block = MSCrossAttnBlock(width, n_levels=len(channels) - 1, n_heads=heads, n_points=points)

    def forward(self, levels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shapes = [tuple(level.shape[-2:]) for level in levels]
        rows = [enter(level.flatten(2).transpose(1, 2)) for enter, level in zip(self.inputs, levels, strict=True)]
        fused = self.block.fuse(rows, shapes)
        before, after = (row.transpose(1, 2).unflatten(2, shapes[-1]) for row in (rows[-1], fused.output))
        return before, after, attended_map(fused.cross, shapes[-1])


class Eyes(nn.Module):
    """Encoder, detector, fuser, text encoder, lexicon and chooser. `sizes`: see `SIZES`. Parameters: encoder.
    detector. fuser. text. lexicon. chooser.
    """

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        stages = tuple(Stage(*stage) for stage in sizes.get("stages", LITE2))
        self.encoder = EfficientNetLite(stages, sizes.get("stem", 32), sizes.get("head", 1280), CLASSES)
        self.detector = NanoDet(sizes.get("detector_stem", 32), sizes.get("detector_width", 128), THINGS)
        self.fuser = Fuser(self.encoder.widths[1:], sizes.get("width", 256), sizes.get("heads", 8))
        self.text = PhraseEncoder(sizes["text"], sizes["vocabulary_letters"])
        words = sizes["text"]["hidden_size"]
        self.lexicon = Lexicon(sizes["names"], sizes["entries"], sizes["letters"], words)
        self.chooser = chooser.Chooser(sizes.get("judges", 3))
        # Margin at which a phrase is as likely there as not, and how fast that changes; set on photographs
        # without the phrase.
        self.register_buffer("calibration", torch.tensor([0.0, 1.0]))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> Looked:
        """Everything that depends on one picture [1, 3, S, S] alone; grey borders are taken for the letterbox's."""
        small = F.avg_pool2d(pixels, 2)
        levels = self.encoder.levels(small)
        before, after, sampled = self.fuser(levels[1:])
        places, scores = (each[0].float() for each in self.detector.places(small))
        best = scores.amax(-1)
        order = best.argsort(descending=True)[:400]
        order = order[best[order] > LEAST]
        kept = order[nms(places[order].clamp(0, 1), best[order], OVERLAP)[:PROPOSALS]]
        area = area_of(pixels[0])
        boxes = within(torch.cat((places[kept], area[None])), area)
        things = torch.cat((scores[kept], scores.new_zeros(1, THINGS)))
        classes, shares = self._look_at(pixels, levels[-1], boxes)
        return Looked(pixels, levels, area, before, after, sampled, places, scores, boxes, things, classes, shares)

    def _look_at(
        self, pixels: torch.Tensor, head: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class probabilities [n, 1000] and colour shares [n, 11] of boxes [n, 4].

        A crop sees a thing in detail, the picture's own head map [1, c, h, w] sees it among what is around it: their
        mean.
        """
        if not len(boxes):
            return boxes.new_zeros(0, CLASSES), boxes.new_zeros(0, len(colours.NAMES))
        # Sampled in float32: torch's sampling of bfloat16 with borders repeated gives NaN now and then on processors
        # that compute bfloat16 themselves.
        alone = torch.cat([self.encoder(part.to(pixels.dtype)) for part in crops(pixels.float(), boxes).split(8)])
        middle = (torch.arange(7, device=boxes.device) + 0.5) / 7
        x = boxes[:, None, 0] + (boxes[:, None, 2] - boxes[:, None, 0]) * middle
        y = boxes[:, None, 1] + (boxes[:, None, 3] - boxes[:, None, 1]) * middle
        grid = torch.stack((x[:, None, :].expand(-1, 7, -1), y[:, :, None].expand(-1, -1, 7)), -1) * 2 - 1
        spread = head.float().expand(len(boxes), -1, -1, -1)
        around = F.grid_sample(spread, grid.float(), align_corners=False, padding_mode="border").mean((2, 3))
        around = around.to(head.dtype)
        classes = (alone.float().softmax(-1) + self.encoder.classify(around).float().softmax(-1)) / 2
        return classes, colours.shares(pixels[0], boxes)

    @torch.no_grad()
    def gather(self, looked: Looked, drawn: torch.Tensor | None = None) -> Viewed:
        """The candidates, with the user's boxes [n, 4] (letterbox's unit square) in front."""
        drawn = looked.boxes.new_zeros(0, 4) if drawn is None else drawn.to(looked.boxes).reshape(-1, 4)
        own = within(drawn, looked.area)
        classes, shares = self._look_at(looked.pixels, looked.levels[-1], own)
        # A drawn box has no detection of its own: it takes what the detector says of the places that meet it.
        met = iou(own, looked.places)
        things = [(looked.scores * (row * (row > 0.5))[:, None]).amax(0) for row in met]
        kept = MOST - len(own) - 1
        rows = [*range(min(kept, len(looked.boxes) - 1)), len(looked.boxes) - 1]
        boxes = torch.cat((own, looked.boxes[rows]))
        facts = chooser.Facts(
            outside_in(boxes, looked.area),
            torch.cat((*(thing[None] for thing in things), looked.things[rows])),
            torch.cat((classes, looked.classes[rows])),
            torch.cat((shares, looked.shares[rows])),
        )
        regions = roi_align(looked.after, boxes, size=3).mean((2, 3))
        return Viewed(looked, boxes, len(own), facts, regions, self.lexicon.meaning(facts.things, facts.classes))

    def likeness(self, texts: Sequence[str]) -> torch.Tensor:
        """Likeness [t, 1080] of texts to detector words and classes."""
        return self.lexicon.likeness(self.text(texts))

    @torch.no_grad()
    def choose(self, viewed: Viewed, text: str) -> Choice:
        """What `text` means among the model's own candidates; the user's regions are not considered."""
        phrase = chooser.take_apart(text)
        parts = [phrase.head, phrase.noun, phrase.text or "thing", *([phrase.anchor] if phrase.anchor else [])]
        near = self.likeness(parts)
        like = chooser.Likeness(near[0], near[1], near[2], near[3] if phrase.anchor else None)
        drawn, count = viewed.drawn, len(viewed.boxes)
        late, boxes = self._latecomers(viewed, like)
        # The whole picture stands last wherever the judges look.
        own, whole = viewed.facts.rows(slice(drawn, count - 1)), viewed.facts.rows(slice(count - 1, None))
        facts = own.joined(late).joined(whole)
        rows, prior = chooser.features(facts, phrase, like)
        weight = next(self.chooser.parameters())
        mask = torch.ones(1, len(prior), dtype=torch.bool, device=weight.device)
        votes = self.chooser(rows[None].to(weight), prior[None].to(weight), mask)[0].float()
        logits, margin = votes[:-1], float(votes[:-1].logsumexp(0) - votes[-1])
        start, slope = self.calibration.float().tolist()
        present = 1 / (1 + math.exp(-max(-30.0, min(30.0, (margin - start) * slope))))
        first = count - drawn - 1
        best = int(logits.argmax()) - first
        seated = torch.tensor([row for row in range(len(logits)) if not first <= row < first + len(boxes)])
        padded = torch.cat((logits.new_full((drawn,), -1e4), logits[seated]))
        match = torch.cat((rows.new_zeros(drawn), rows[seated, 6]))
        known = None
        if 0 <= best < len(boxes):
            known = replace(
                viewed,
                boxes=torch.cat((viewed.boxes, boxes[best : best + 1])),
                facts=viewed.facts.joined(late.rows(slice(best, best + 1))),
            )
        return Choice(padded, present, int(padded.argmax()), match, known)

    def _latecomers(self, viewed: Viewed, like: chooser.Likeness) -> tuple[chooser.Facts, torch.Tensor]:
        """Places [k, 4] where the detector saw what the phrase names, but that had no seat among the candidates: other
        things outdid them. They are looked at like candidates.
        """
        looked = viewed.looked
        named = torch.maximum(chooser.sharpen(like.head), chooser.sharpen(like.noun))[:THINGS]
        score = (looked.scores * named).amax(-1) * (iou(looked.places.clamp(0, 1), viewed.boxes).amax(-1) < 0.5)
        order = score.argsort(descending=True)[:50]
        order = order[score[order] > LEAST]
        order = order[nms(looked.places[order].clamp(0, 1), score[order], 0.5)[:LATE]]
        boxes = within(looked.places[order].clamp(0, 1), looked.area)
        classes, shares = self._look_at(looked.pixels, looked.levels[-1], boxes)
        return chooser.Facts(outside_in(boxes, looked.area), looked.scores[order], classes, shares), boxes

    def names(self, viewed: Viewed, index: int, most: int = 5) -> tuple[tuple[str, float], ...]:
        """What a person may call a candidate: short everyday nouns, the likeliest first, with shares that sum to
        one over all nouns.
        """
        nouns, near = self.lexicon.nouns()
        low, high = ALIKE
        like = ((near - low) / (high - low)).clamp(0, 1)
        things, classes = viewed.facts.things[index], viewed.facts.classes[index] ** SOFTER
        # Detector and classifier vote for every noun that means the same.
        votes = DETECTOR * (things * like[:, :THINGS]).amax(-1) + like[:, THINGS:] @ (classes / classes.sum())
        shares = votes / votes.sum().clamp(min=1e-6)
        best = shares.topk(min(most, len(nouns)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple((nouns[row], float(share)) for row, share in found)

    def colour(self, viewed: Viewed, index: int) -> str:
        """The colour word of most of a candidate's pixels; "" where no colour has a quarter of them."""
        share = viewed.facts.colours[index].clone()
        share[colours.NAMES.index("brown")] *= 0.7  # shade and skin and wood are brown in many things of another colour
        most, name = share.max(0)
        return colours.NAMES[int(name)] if float(most) > 0.25 else ""

    def seen(self, viewed: Viewed, index: int, first: str = "", tinted: bool = False) -> Seen:
        """A candidate as the clue says it. `first`: a word it goes by before its own names; `tinted`: its colour was
        asked for. A person is not called by the colour of clothes or skin unless it was.
        """
        own = [name for name, share in self.names(viewed, index, 3) if share > 0.05] or ["thing"]
        words = tuple(dict.fromkeys([first, *own] if first else own))[:2]
        colour = self.colour(viewed, index) if tinted or PEOPLE.isdisjoint(words) else ""
        place = place_of(viewed.facts.boxes[index].tolist())
        number = index if index < len(viewed.regions) else None  # a latecomer: the language model has no vector of it
        return Seen(number, words, colour, place, tuple(viewed.boxes[index].tolist()))

    def all_of(self, viewed: Viewed, text: str) -> tuple[int, ...]:
        """Every candidate that the phrase fits, best first; () where the phrase is not there."""
        choice = self.choose(viewed, singular(text))
        if choice.present < 0.5:
            return ()
        whole = len(viewed.boxes) - 1
        least = max(0.25, SAME * float(choice.match.max()))
        fits = [index for index in range(viewed.drawn, whole) if float(choice.match[index]) > least]
        return tuple(apart(viewed.boxes, fits or [choice.best], choice.match)[:10])

    def main_things(self, viewed: Viewed, most: int = 5) -> tuple[int, ...]:
        """What a description names: sure or large candidates that do not cover one another, or the whole picture."""
        facts, whole = viewed.facts, len(viewed.boxes) - 1
        size = (facts.boxes[:, 2:] - facts.boxes[:, :2]).prod(-1).sqrt()
        sure = torch.maximum(facts.things.amax(-1), 0.8 * facts.classes.amax(-1))
        worth = sure * (0.4 + size)
        rows = [
            index
            for index in range(viewed.drawn, whole)
            if float(sure[index]) > 0.3
            and (float(facts.things[index].max()) > 0.35 or self.names(viewed, index, 1)[0][1] > 0.1)
        ]
        if not rows:
            return (whole,)
        return tuple(apart(viewed.boxes, rows, worth)[:most])

    def scene(self, viewed: Viewed) -> tuple[str, ...]:
        """Words for the whole picture, the likeliest first."""
        facts = viewed.facts
        near = chooser.sharpen(self.likeness(SCENES), 0.45, 0.85)
        return scenes(facts.things[viewed.drawn :], facts.classes[viewed.drawn :], near)

    def clue(self, viewed: Viewed, text: str, mentioned: Sequence[int] = ()) -> Clue:
        """What was found for a question in the user's words. `mentioned`: candidates that it names besides those
        written in it.
        """
        asked = read_question(text)
        return self.answer(viewed, asked if not mentioned else Question("region", "", tuple(mentioned)))

    def answer(self, viewed: Viewed, asked: Question) -> Clue:
        """The clue for a question that was read already."""
        tinted = asked.kind in ("colour", "colour region", "is")
        if asked.regions:
            known = [index for index in asked.regions if index < len(viewed.boxes)]
            return Clue(about=tuple(self.seen(viewed, index, tinted=tinted) for index in known))
        if asked.kind in ("all", "count"):
            found = self.all_of(viewed, asked.phrase)
            return Clue(asked.phrase, True, tuple(self.seen(viewed, index, singular(asked.phrase)) for index in found))
        if asked.kind in ("find", "there", "colour", "is", "beyond", "which", "place"):
            choice = self.choose(viewed, asked.phrase)
            # "What colour is the wall?" takes for granted that there is one.
            least = 0.5 if asked.kind in ("find", "there") else 0.0 if asked.kind in ("which", "place") else 0.1
            if choice.present < least:
                return Clue(asked.phrase, True)
            if choice.late is not None:
                return Clue(asked.phrase, True, (self.seen(choice.late, len(viewed.boxes), tinted=tinted),))
            return Clue(asked.phrase, True, (self.seen(viewed, choice.best, tinted=tinted),))
        if asked.kind == "scene":
            return Clue(scene=self.scene(viewed)[:3])
        if asked.kind == "talk":
            return Clue()
        found = tuple(self.seen(viewed, index) for index in self.main_things(viewed))
        return Clue(seen=found, scene=self.scene(viewed)[:2])


# Naming, set on the public half of the photographs: the detector's weight against the classifier's, how far the
# classifier's probabilities are flattened, and from which cosine to which two names mean the same.
DETECTOR, SOFTER, ALIKE = 1.2, 0.7, (0.6, 0.95)


PEOPLE = frozenset("person man woman boy girl child baby lady gentleman kid human player athlete".split())

# Of several things of one kind each matches at least so well, measured against the best of them.
SAME = 0.5


def apart(boxes: torch.Tensor, rows: Sequence[int], worth: torch.Tensor, most: float = 0.6) -> list[int]:
    """Of the boxes [R, 4] in `rows` those that are things of their own, best first by worth [R].

    A box that shares more than `most` of the smaller area with a better one is another look at the same thing.
    """
    kept: list[int] = []
    for row in sorted(rows, key=lambda row: -float(worth[row])):
        shared = [float(overlap(boxes[row], boxes[other])) for other in kept]
        if all(share <= most for share in shared):
            kept.append(row)
    return kept


def overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The shared area of two boxes [4] as a share of the smaller one."""
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    smaller = torch.minimum((one[2:] - one[:2]).prod(), (other[2:] - other[:2]).prod())
    return (high - low).clamp(min=0).prod() / smaller.clamp(min=1e-9)


def area_of(pixels: torch.Tensor) -> torch.Tensor:
    """Where the picture lies in a letterbox [3, S, S]: x0, y0, x1, y1 in the unit square."""
    differs = (pixels.float() - GREY).abs().amax(0) > 12  # scaling leaves a faint ring in the grey beside the picture
    columns, rows = differs.any(0).nonzero().flatten(), differs.any(1).nonzero().flatten()
    if not len(columns):
        return torch.tensor([0.0, 0.0, 1.0, 1.0], device=pixels.device)
    height, width = differs.shape
    ends = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    return torch.stack(ends).float()


def within(boxes: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Boxes cut off at the picture's edge."""
    low, high = area[:2].repeat(2), area[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


def outside_in(boxes: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Letterbox's unit square -> unit square of the picture itself."""
    start, size = area[:2], (area[2:] - area[:2]).clamp(min=1e-6)
    return (boxes - start.repeat(2)) / size.repeat(2)


def crops(pixels: torch.Tensor, boxes: torch.Tensor, size: int = CROP, margin: float = MARGIN) -> torch.Tensor:
    """Each box [n, 4] of a picture [1, 3, S, S] with a margin, as [n, 3, size, size]; halved first where it is much
    larger.
    """
    halves = [pixels]
    while halves[-1].shape[-1] > size:
        halves.append(F.avg_pool2d(halves[-1], 2))
    middle = torch.linspace(0.5 / size, 1 - 0.5 / size, size, device=pixels.device, dtype=pixels.dtype)
    out = []
    for x0, y0, x1, y1 in boxes.tolist():
        across, down = margin * (x1 - x0), margin * (y1 - y0)
        x0, x1 = max(0.0, x0 - across), min(1.0, x1 + across)
        y0, y1 = max(0.0, y0 - down), min(1.0, y1 + down)
        side = math.sqrt(max(1e-6, (x1 - x0) * (y1 - y0))) * pixels.shape[-1]
        level = min(len(halves) - 1, math.floor(math.log2(max(side / size, 1)) + 0.25))
        x, y = (x0 + (x1 - x0) * middle) * 2 - 1, (y0 + (y1 - y0) * middle) * 2 - 1
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)[None]
        out.append(F.grid_sample(halves[level], grid, align_corners=False, padding_mode="border"))
    return torch.cat(out)


_SINGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "knives": "knife", "leaves": "leaf", "wolves": "wolf",
}  # fmt: skip


def singular(phrase: str) -> str:
    """The phrase with its last word in the singular, as far as simple rules go."""
    front, _, last = phrase.rpartition(" ")
    if last in _SINGULAR:
        last = _SINGULAR[last]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif last.endswith(("ches", "shes", "xes", "sses", "oes")):
        last = last[:-2]
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return f"{front} {last}".strip()
