"""The chooser: which of the candidate regions a phrase means, or none of them.

What detector and classifier said of each region is compared with the phrase through a text encoder's vectors; the
comparisons, colours and geometry become a row of numbers for each region, and small networks over all rows give one
logit a region and one for "none of these". They start from the untrained score (`prior`) and learn a correction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from mmchat.nets.colours import NAMES as COLOURS

_COLOUR_WORDS = {word: word for word in COLOURS} | {
    "gray": "grey", "silver": "grey", "golden": "yellow", "gold": "yellow", "violet": "purple", "wooden": "brown",
    "dark": "black", "beige": "brown", "cream": "white", "crimson": "red", "navy": "blue", "turquoise": "blue",
    "tan": "brown", "blond": "yellow", "terracotta": "orange",
}  # fmt: skip
SIDES = ("left", "right", "top", "bottom", "middle", "big", "small")
_SIDE_WORDS = {
    word: side
    for side, words in {
        "left": "left leftmost",
        "right": "right rightmost",
        "top": "top upper highest uppermost above",
        "bottom": "bottom lower lowest front foreground nearest",
        "middle": "middle centre center central",
        "big": "big bigger biggest large larger largest tall huge giant",
        "small": "small smaller smallest little tiny mini background distant far",
    }.items()
    for word in words.split()
}
RELATIONS = ("left", "right", "above", "below", "behind", "front", "near", "in")
# The longest wording first: "on top of" before "on".
_RELATION_WORDS = (
    (r"(?:to the |on the |at the |just )?left of", "left"),
    (r"(?:to the |on the |at the |just )?right of", "right"),
    (r"on top of", "above"),
    (r"in front of", "front"),
    (r"next to|beside|besides|alongside|close to|near(?:est)?(?: to)?|by|touching", "near"),
    (r"behind", "behind"),
    (r"above|over", "above"),
    (r"below|under|underneath|beneath", "below"),
    (r"(?:(?:sitting|standing|lying|resting|placed|hanging) )?(?:on|upon|onto)", "above"),
    (r"inside|within|in|at|of|from", "in"),
    (r"with|holding|wearing|and", "near"),
)
_RELATED = re.compile(
    r"\b(?:" + "|".join(f"(?P<r{index}>{words})" for index, (words, _) in enumerate(_RELATION_WORDS)) + r")\b"
)
KNOWN, CLOSE, SURE = 0.93, 0.78, 0.4
_ARTICLES = frozenset("the a an this that these those some any my your its his her".split())
_SPOT = re.compile(
    r"\b(?:on|at|in|to|near|furthest to|towards?)(?: the)? (?:far |very |extreme )?"
    r"(left|right|top|bottom|middle|centre|center|foreground|background|front)(?: side| edge| corner| half| part)?"
    r"(?: of the (?:picture|image|photo|photograph|scene)\b|\b(?! of\b))"
)
# "right behind", "just above": how close, not where.
_CLOSELY = re.compile(
    r"\b(?:right|just|directly|immediately) (?=(?:behind|above|below|under|beneath|next|beside|over|on|in)\b)"
)
_DOING = re.compile(r"(?: \w+ing| (?:just|right|directly|ahead|is|are|that|which|who))+$")


@dataclass(frozen=True)
class Phrase:
    """A phrase taken apart. `head`: its noun with adjectives, `noun`: the last word of that, `anchor`: the other thing
    of a relation or "".
    """

    text: str
    head: str
    noun: str
    colours: tuple[str, ...]
    sides: tuple[str, ...]
    relation: str
    anchor: str


def take_apart(phrase: str) -> Phrase:
    """ "the small red kite left of the tree" -> head and noun "kite", colours ("red",), sides ("small",), relation
    "left", anchor "tree".
    """
    text = _CLOSELY.sub("", " ".join(re.findall(r"[a-z0-9'-]+", phrase.lower())))
    sides = [_SIDE_WORDS[match[1]] for match in _SPOT.finditer(text)]
    rest = " ".join(_SPOT.sub(" ", text).split())
    relation, anchor, front = "", "", rest
    for match in _RELATED.finditer(rest):
        before = _plain(rest[: match.start()])
        if before:
            relation = next(_RELATION_WORDS[int(name[1:])][1] for name, value in match.groupdict().items() if value)
            front, anchor = before, _head(_plain(rest[match.end() :]))
            break
    head = _DOING.sub("", _plain(front)) or _plain(text) or text or "thing"
    words = head.split()
    if words[-1] in ("one", "ones") and relation == "in" and anchor:
        words, relation, anchor = words[:-1] + anchor.split(), "", ""  # "the left one of the two chairs"
    named = [
        word for word in words if word not in _SIDE_WORDS and word not in ("one", "ones", "thing", "object")
    ] or words
    kept = " ".join(named)
    sides += [_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS]
    # "the man in the red jacket": red is part of the man.
    dressed = anchor.split() if relation in ("in", "near") and anchor else []
    colours = [_COLOUR_WORDS[word] for word in [*words, *dressed] if word in _COLOUR_WORDS]
    plain = [word for word in named if word not in _COLOUR_WORDS] or named
    return Phrase(
        _plain(text),
        " ".join(plain) if plain else kept,
        plain[-1] if plain else kept,
        tuple(dict.fromkeys(colours)),
        tuple(dict.fromkeys(sides)),
        relation,
        anchor,
    )


def _plain(text: str) -> str:
    return " ".join(word for word in text.split() if word not in _ARTICLES)


def _head(text: str) -> str:
    match = _RELATED.search(text)
    cut = text[: match.start()] if match and match.start() > 0 else text
    return " ".join(cut.split()[:4])


def sharpen(similarity: torch.Tensor, low: float = 0.5, high: float = 0.85) -> torch.Tensor:
    """Cosines [1080] as 0..1: what lies below `low` is another thing, what lies above `high` the same.

    A text that is itself the name of some class is taken at its word: "cat" then is no "dog", however near the two lie.
    """
    if bool(similarity.max() >= KNOWN):
        low = CLOSE
    return ((similarity - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Facts:
    """What is known of R regions whatever the question. Boxes in the unit square of the *original* picture (letterbox
    taken off).

    boxes [R, 4]; things [R, 80] detector scores; classes [R, 1000] probabilities; colours [R, 11] shares; the last
    region is the whole picture.
    """

    boxes: torch.Tensor
    things: torch.Tensor
    classes: torch.Tensor
    colours: torch.Tensor

    def rows(self, which: slice) -> Facts:
        """What is known of some of the regions."""
        return Facts(self.boxes[which], self.things[which], self.classes[which], self.colours[which])

    def joined(self, other: Facts) -> Facts:
        """These regions, then the others."""
        mine = (self.boxes, self.things, self.classes, self.colours)
        return Facts(*map(torch.cat, zip(mine, (other.boxes, other.things, other.classes, other.colours), strict=True)))


@dataclass(frozen=True)
class Likeness:
    """Cosines [1080] of a text with the best name of each detector word (80) and class (1000), for a phrase's parts;
    `anchor` None without one.
    """

    head: torch.Tensor
    noun: torch.Tensor
    text: torch.Tensor
    anchor: torch.Tensor | None


def evidence(facts: Facts, similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far detector and classifier say that each region is what the text names: [R] and [R], about 0..1.

    The classifier names whatever it is shown, also a piece of wall: its word counts as far as the detector saw a thing
    there at all.
    """
    like = sharpen(similarity)
    there = (facts.things.amax(-1) / SURE).clamp(0, 1)
    there[-1] = 0.5  # the whole picture, which no detector proposes
    return (facts.things * like[:80]).amax(-1), (facts.classes * like[80:]).sum(-1) * there


FEATURES = 64


def features(facts: Facts, phrase: Phrase, like: Likeness) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [R, 64] of numbers about 0..1 in size, and the untrained score [R]."""
    boxes = facts.boxes
    count = len(boxes)
    head, noun, whole = (evidence(facts, similarity) for similarity in (like.head, like.noun, like.text))
    match = torch.maximum(head[0] + 0.7 * head[1], noun[0] + 0.7 * noun[1])
    prior = match + 0.5 * (whole[0] + 0.7 * whole[1])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    width, height = (boxes[:, 2] - boxes[:, 0]).clamp(min=1e-4), (boxes[:, 3] - boxes[:, 1]).clamp(min=1e-4)
    area = width * height
    best = match.max().clamp(min=1e-6)
    # Left, big ... are said against the things of the same name: each region's rank among those that match as well.
    rivals = (match / best).clamp(0, 1) ** 2
    rivals = rivals / rivals.sum().clamp(min=1e-6)

    def rank(value: torch.Tensor) -> torch.Tensor:
        return ((value[None] < value[:, None]).float() * rivals[None]).sum(-1)

    ranks = torch.stack(
        (1 - rank(x), rank(x), 1 - rank(y), rank(y), 1 - 2 * (rank(x) - 0.5).abs(), rank(area), 1 - rank(area)), -1
    )
    spots = torch.stack((1 - x, x, 1 - y, y, 1 - (x - 0.5).abs() - (y - 0.5).abs(), area.sqrt(), 1 - area.sqrt()), -1)
    asked = torch.tensor([float(side in phrase.sides) for side in SIDES])
    colour = torch.zeros(count)
    if phrase.colours:
        colour = torch.stack([facts.colours[:, COLOURS.index(word)] for word in phrase.colours]).amax(0)
    relation = torch.tensor([float(phrase.relation == name) for name in RELATIONS])
    related = torch.zeros(count, 16)
    if like.anchor is not None:
        thing, kind = evidence(facts, like.anchor)
        score = thing + 0.7 * kind
        weight = (score * 6).softmax(0)
        dx, dy = (x[:, None] - x[None]), (y[:, None] - y[None])
        left, right = (
            torch.maximum(boxes[:, None, 0], boxes[None, :, 0]),
            torch.minimum(boxes[:, None, 2], boxes[None, :, 2]),
        )
        top, bottom = (
            torch.maximum(boxes[:, None, 1], boxes[None, :, 1]),
            torch.minimum(boxes[:, None, 3], boxes[None, :, 3]),
        )
        shared = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
        inside, holds = shared / area[:, None], shared / area[None]
        overlap = shared / (area[:, None] + area[None] - shared)
        apart = torch.sqrt((left - right).clamp(min=0) ** 2 + (top - bottom).clamp(min=0) ** 2)
        beside = (right - left).clamp(min=0) / torch.minimum(width[:, None], width[None])
        pairs = torch.stack(
            (
                dx,
                dy,
                dx.abs(),
                dy.abs(),
                inside,
                holds,
                overlap,
                apart,
                beside,
                (area[:, None] / area[None]).log().clamp(-4, 4) / 4,
            ),
            -1,
        )
        pairs = (pairs * weight[None, :, None]).sum(1)
        direction = (
            -relation[0] * pairs[:, 0]
            + relation[1] * pairs[:, 0]
            - relation[2] * pairs[:, 1]
            + relation[3] * pairs[:, 1]
        )
        related = torch.cat(
            (
                pairs,
                direction[:, None],
                score[:, None],
                score.max().expand(count, 1),
                (weight / weight.max())[:, None],
                overlap[:, score.argmax()][:, None],
                torch.ones(count, 1),
            ),
            -1,
        )
    top_things, top_classes = facts.things.amax(-1), facts.classes.amax(-1)
    own = facts.things.argmax(-1)
    coloured = float(bool(phrase.colours))
    row = [
        head[0], head[1], noun[0], noun[1], whole[0], whole[1], match, match / best, match - best, best.expand(count),
        like.head[:80][own].clamp(0, 1), like.noun[:80][own].clamp(0, 1),
        like.head[80:][facts.classes.argmax(-1)].clamp(0, 1),
        (facts.classes * like.head[80:].clamp(0, 1)).sum(-1), (facts.things * like.head[:80].clamp(0, 1)).amax(-1),
        top_things, top_classes, area.sqrt(), (width / height).log().clamp(-2, 2) / 2, x - 0.5, y - 0.5,
        colour, (colour - 0.3) * coloured, torch.full((count,), coloured),
        torch.arange(count) / 20.0, (torch.arange(count) == count - 1).float(),
        like.head.max().expand(count).clamp(0, 1),
    ]  # fmt: skip
    rows = torch.stack(row, -1)
    sided = torch.stack(((ranks * asked).sum(-1), (spots * asked).sum(-1), asked.sum().expand(count)), -1)
    rows = torch.cat((rows, sided, ranks[:, :6], relation.expand(count, -1), related), -1)
    return torch.nn.functional.pad(rows, (0, FEATURES - rows.shape[-1])), prior


class Judge(nn.Module):
    """One trained opinion: rows [B, R, 64], priors [B, R], mask [B, R] (True: a region) -> logits [B, R + 1], the last
    for "none of these".
    """

    def __init__(self, width: int = 48, layers: int = 2, heads: int = 4, features: int = FEATURES) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.none = nn.Parameter(torch.zeros(width))
        self.mix = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.leave = nn.Linear(width, 1)
        self.refuse = nn.Linear(width + 3, 1)
        self.scale = nn.Parameter(torch.tensor(4.0))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, rows: torch.Tensor, priors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.enter(rows)
        x = torch.cat((x, self.none.expand(len(x), 1, -1)), 1)
        hidden = torch.cat((~mask, torch.zeros_like(mask[:, :1])), 1)
        for layer in self.mix:
            x = layer(x, src_key_padding_mask=hidden)
        logits = (self.scale * priors + self.leave(x[:, :-1]).squeeze(-1)).masked_fill(~mask, -1e4)
        best = priors.masked_fill(~mask, 0).topk(2, dim=-1).values
        none = self.refuse(torch.cat((x[:, -1], best, logits.logsumexp(-1, keepdim=True) / 4), -1))
        return torch.cat((logits, none), -1)


# How much of the untrained score is added: composed scenes teach relations, sides and colours well, but cut-outs are
# surer of themselves than things in photographs. It raised accuracy and honest refusals on photographs together.
PRIOR = 6.0


class Chooser(nn.Module):
    """Several judges, trained from different seeds, whose mean is heard beside the untrained score."""

    def __init__(self, judges: int = 3) -> None:
        super().__init__()
        self.judges = nn.ModuleList(Judge() for _ in range(judges))

    def forward(self, rows: torch.Tensor, priors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, R + 1] as a judge gives them; logsumexp of the regions' less the last one is the margin by which
        some region fits.
        """
        heard = torch.stack([judge(rows, priors, mask) for judge in self.judges]).mean(0)
        trusted = PRIOR * priors.masked_fill(~mask, 0)
        logits = heard[:, :-1] + trusted
        margin = heard[:, :-1].logsumexp(-1) - heard[:, -1] + trusted.amax(-1)
        return torch.cat((logits, (logits.logsumexp(-1) - margin)[:, None]), -1)
