"""Referring phrases of a composed scene: each fits exactly one thing, or nothing at all. Pure Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmchat.train.words import COLOURS, Noun, plural_of

ARTICLES = (
    ("the ", 0.45),
    ("a ", 0.3),
    ("", 0.25),
)  # one draw for what is there and for what is not: the article must give nothing away


@dataclass(frozen=True)
class Thing:
    """A thing in a scene. `box`: pixels x0, y0, x1, y1 of what is visible; `colour`: a word of COLOURS, or None when no
    colour leads."""

    noun: Noun
    box: tuple[int, int, int, int]
    colour: str | None = None
    layer: int = 0  # higher lies in front

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> int:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Phrase:
    """`target`: index of the one thing it fits, None where nothing fits. `level`: how it was made."""

    text: str
    level: str
    target: int | None
    head: str


def phrases(
    things: Sequence[Thing], size: tuple[int, int], nouns: Sequence[Noun], chance: random.Random
) -> list[Phrase]:
    """Every kind of phrase that this scene offers, a few of each. `nouns`: what absent ones are drawn from."""
    out: list[Phrase] = []
    seen: set[str] = set()

    def add(text: str, level: str, target: int | None, head: str) -> None:
        if text.lower() not in seen:
            seen.add(text.lower())
            out.append(Phrase(_article(text, chance), level, target, head))

    named: dict[str, list[int]] = {}
    for index, thing in enumerate(things):
        for word in thing.noun.words:
            named.setdefault(word, []).append(index)
    for word, holders in named.items():
        level = "noun" if any(things[index].noun.name == word for index in holders) else "synonym"
        if any(word in things[index].noun.hypernyms for index in holders):
            level = "hypernym"
        if len(holders) == 1:
            add(word, level, holders[0], word)
        _attributes(word, holders, things, size, chance, add)
    _relations(things, named, size, chance, add)
    _absent(things, named, nouns, chance, add)
    return _thinned(out, chance)


def _thinned(said: list[Phrase], chance: random.Random) -> list[Phrase]:
    """At most a dozen of each level, in the order they were made: sides are cheap to say and would crowd the others
    out."""
    kept: set[int] = set()
    for level in sorted({phrase.level for phrase in said}):
        here = [index for index, phrase in enumerate(said) if phrase.level == level]
        kept.update(chance.sample(here, min(12, len(here))))
    return [phrase for index, phrase in enumerate(said) if index in kept]


def fits(word: str, thing: Thing) -> bool:
    """Whether a person may call the thing so."""
    return word in thing.noun.words


def left_of(one: Thing, other: Thing) -> bool:
    """Clearly left: its centre lies before the other's near edge, and both share some height or the step is wide."""
    return one.centre[0] < other.box[0] + 0.15 * (other.box[2] - other.box[0]) and one.box[2] < other.centre[0]


def above(one: Thing, other: Thing) -> bool:
    """Clearly above."""
    return one.centre[1] < other.box[1] + 0.15 * (other.box[3] - other.box[1]) and one.box[3] < other.centre[1]


def overlap(one: Thing, other: Thing) -> float:
    """Shared area over the smaller box."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return max(0, width) * max(0, height) / min(one.area, other.area)


def _article(text: str, chance: random.Random) -> str:
    article = chance.choices([article for article, _ in ARTICLES], [weight for _, weight in ARTICLES])[0]
    if article == "a " and text[0].lower() in "aeiou":
        article = "an "
    return article + text


def _attributes(word, holders, things, size, chance, add) -> None:  # noqa: ANN001 - inner helper of phrases()
    """Colour, size and side, where one of the holders has it clearly and no other might."""
    colours = [things[index].colour for index in holders]
    for index, colour in zip(holders, colours, strict=True):
        if (
            colour
            and word.split()[0] not in COLOURS
            and colours.count(colour) == 1
            and (None not in colours or len(holders) == 1)
        ):
            add(f"{colour} {word}", "attribute", index, word)
    if len(holders) > 1:
        order = sorted(holders, key=lambda index: things[index].area)
        if things[order[-1]].area > 1.7 * things[order[-2]].area:
            add(f"{chance.choice(('big', 'large', 'bigger', 'biggest'))} {word}", "attribute", order[-1], word)
        if things[order[0]].area * 1.7 < things[order[1]].area:
            add(f"{chance.choice(('small', 'little', 'smaller', 'smallest'))} {word}", "attribute", order[0], word)
    _sides(word, holders, things, size, chance, add)


def _sides(word, holders, things, size, chance, add) -> None:  # noqa: ANN001 - inner helper of phrases()
    for axis, low, high in ((0, "left", "right"), (1, "top", "bottom")):
        order = sorted(holders, key=lambda index: things[index].centre[axis])
        spots = [things[index].centre[axis] / size[axis] for index in order]
        side = "on the {0}", "on the {0} side", "at the {0}", "to the {0}"
        if (
            spots[0] < 0.42
            and (len(order) == 1 or spots[1] - spots[0] > 0.15)
            and (len(order) == 1 or chance.random() < 0.9)
        ):
            text = f"{word} {chance.choice(side).format(low)}"
            add(
                f"{low}most {word}" if axis == 0 and len(order) > 1 and chance.random() < 0.2 else text,
                "position",
                order[0],
                word,
            )
        if spots[-1] > 0.58 and (len(order) == 1 or spots[-1] - spots[-2] > 0.15):
            text = f"{word} {chance.choice(side).format(high)}"
            add(
                f"{high}most {word}" if axis == 0 and len(order) > 1 and chance.random() < 0.2 else text,
                "position",
                order[-1],
                word,
            )
    middle = [
        index for index in holders if all(abs(things[index].centre[axis] / size[axis] - 0.5) < 0.14 for axis in (0, 1))
    ]
    rest = [
        index for index in holders if all(abs(things[index].centre[axis] / size[axis] - 0.5) < 0.24 for axis in (0, 1))
    ]
    if len(middle) == 1 and rest == middle:
        add(f"{word} in the {chance.choice(('middle', 'centre', 'center'))}", "position", middle[0], word)


_SPOTS = ("on the left", "on the right", "in the middle", "at the top", "at the bottom")
_RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "next": ("next to", "beside", "near", "close to"),
    "front": ("in front of", "overlapping"),
    "behind": ("behind", "partly hidden by"),
}


def related(kind: str, one: Thing, other: Thing) -> bool:
    """Whether `one` stands to `other` as the kind says (a key of the relation words)."""
    if kind == "next":
        gap = max(
            other.box[0] - one.box[2],
            one.box[0] - other.box[2],
            other.box[1] - one.box[3],
            one.box[1] - other.box[3],
            0,
        )
        return gap < 0.35 * min(one.area, other.area) ** 0.5
    if kind in ("front", "behind"):
        return overlap(one, other) > 0.12 and (one.layer > other.layer) == (kind == "front")
    first, second = (one, other) if kind in ("left", "above") else (other, one)
    return left_of(first, second) if kind in ("left", "right") else above(first, second)


def _relations(things, named, size, chance, add) -> None:  # noqa: ANN001 - inner helper of phrases()
    single = [(word, holders[0]) for word, holders in named.items() if len(holders) == 1 and word != "object"]
    heads = [word for word in named if word != "object"] + ["object", "thing"]
    chance.shuffle(single)
    for anchor, other in single[:6]:
        for kind in chance.sample(sorted(_RELATIONS), 5):
            word = chance.choice(heads)
            holders = [i for i in (named.get(word) or range(len(things))) if i != other]
            hits = [index for index in holders if related(kind, things[index], things[other])]
            near = [i for i in holders if i not in hits and kind == "next" and overlap(things[i], things[other]) > 0]
            text = f"{word} {chance.choice(_RELATIONS[kind])} the {anchor}"
            if len(hits) == 1 and not near:
                add(text, "relation", hits[0], word)
            elif not hits and kind in ("left", "right", "above", "below") and word in named and chance.random() < 0.35:
                # The opposite must hold clearly, or a person might let it pass.
                back = {"left": "right", "right": "left", "above": "below", "below": "above"}[kind]
                if holders and all(related(back, things[index], things[other]) for index in holders):
                    add(text, "absent relation", None, word)


def _absent(things, named, nouns, chance, add) -> None:  # noqa: ANN001 - inner helper of phrases()
    lasts = {word.split()[-1].lower() for word in named} | {plural_of(word.split()[-1].lower()) for word in named}
    wanted = 5
    for noun in chance.sample(list(nouns), min(40, len(nouns))):
        word = chance.choice((noun.name, noun.name, *noun.synonyms, *noun.hypernyms[:1]))
        if (
            word == "object"
            or word in named
            or word.split()[-1].lower() in lasts
            or any(part in named for part in noun.words[: 1 + len(noun.synonyms)])
        ):
            continue
        kind = chance.random()
        if kind < 0.12 and word.split()[0] not in COLOURS:
            add(f"{chance.choice(COLOURS)} {word}", "absent", None, word)
        elif kind < 0.22:
            add(f"{word} {chance.choice(_SPOTS)}", "absent", None, word)
        elif kind < 0.3 and named:
            relation = chance.choice(chance.choice(sorted(_RELATIONS.values())))
            add(f"{word} {relation} the {chance.choice(sorted(named))}", "absent", None, word)
        else:
            add(word, "absent", None, word)
        wanted -= 1
        if not wanted:
            break
    for word, holders in chance.sample(sorted(named.items()), min(4, len(named))):
        colours = {things[index].colour for index in holders}
        if None in colours or word.split()[0] in COLOURS or word == "object":
            continue
        others = [colour for colour in COLOURS if not any(alike(colour, mine) for mine in colours if mine)]
        if not others:
            continue
        other = chance.choice(others)
        add(f"{other} {word}", "absent attribute", None, word)


_CLOSE = (
    {"red", "orange", "pink", "purple", "brown"},
    {"orange", "yellow", "brown"},
    {"white", "grey", "pink"},
    {"black", "grey", "brown"},
    {"blue", "purple", "grey"},
    {"green", "yellow", "blue"},
    {"brown", "green", "grey"},
)


def alike(one: str, other: str) -> bool:
    """Whether people might mix the two colour words up: no "absent" phrase is made of such a pair."""
    return one == other or any({one, other} <= close for close in _CLOSE)
