"""Questions about a picture with their clues and answers: what the language model learns to say. Pure Python,
everything from one generator."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from mmchat.nets.clue import Clue, Seen, token
from mmchat.train.words import COLOURS, NUMBERS, catalogue, plural_of, with_article

_PLURALS = frozenset(noun.name for noun in catalogue() if noun.plural)
_MASS = frozenset(("furniture", "clothing", "food", "electronics", "sports equipment", "money", "grass"))


@cache
def _table() -> dict[str, tuple[str, ...]]:
    """wordings.txt: its sections with their lines."""
    out: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("wordings.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            here = out.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            here.append(line)
    return {name: tuple(lines) for name, lines in out.items()}


def _wordings(name: str) -> tuple[str, ...]:
    return _table()[name]


BRIEF = _wordings("brief")


@dataclass(frozen=True)
class Item:
    """A thing in a picture, as a question may ask for it. `seen`: what a clue says of it; `kinds`: wider words;
    `plural`: takes no "a"."""

    seen: Seen
    kinds: tuple[str, ...] = ()
    plural: bool = False

    @property
    def name(self) -> str:
        return self.seen.words[0]


@dataclass(frozen=True)
class Picture:
    """`items`: what is there, `scene`: words for the whole, `absent`: nouns that are not there, `phrases`: (phrase,
    item or None)."""

    items: tuple[Item, ...]
    scene: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    phrases: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True)
class Said:
    """One question and answer. `question` may hold region tokens; `clue` is what the eyes tell; `kind` names the
    template."""

    question: str
    clue: Clue
    answer: str
    kind: str


def where(place: str) -> str:
    """ "left" → "on the left", "top right" → "at the top right", "middle" → "in the middle"."""
    if place in ("left", "right"):
        return f"on the {place}"
    return f"in the {place}" if place == "middle" else f"at the {place}"


def grounded(phrase: str, *things: Seen) -> str:
    """A phrase with its places, as the model writes it."""
    return f"<p>{phrase}</p>" + "".join(token(thing) for thing in things)


_TAIL = re.compile(
    r" (?:of|on|in|at|to|with|next|left|right|behind|above|below|under|beneath|near|close|beside|over|from|made|that"
    r"|holding|wearing|\w+ing)\b.*"
)


def article(phrase: str, plural: bool = False) -> str:
    """With "a" or "an" unless it already is definite, or its head noun looks like a plural ("any dogs")."""
    if phrase.split(" ")[0] in ("the", "a", "an", "some", "any"):
        return phrase
    head = _TAIL.sub("", phrase)
    several = (
        plural
        or head in _PLURALS
        or head in _MASS
        or bool(re.search(r"[^suia]s$", head))
        or head.endswith(("shoes", "glasses"))
    )
    return with_article(phrase, several)


def ask(picture: Picture, chance: random.Random) -> Said:
    """One question about the picture, of a kind drawn by weight among those that the picture allows."""
    for _ in range(20):
        kind = chance.choices(list(_KINDS), [weight for _, weight in _KINDS.values()])[0]
        said = _KINDS[kind][0](picture, chance)
        if said is not None:
            return replace(said, kind=kind)
    return replace(_talk(picture, chance), kind="talk")


def loosely(question: str, chance: random.Random) -> str:
    """As people type: at times without the capital, the question mark, with a please or spelled the American way."""
    if chance.random() < 0.2:
        question = question.rstrip("?.")
    if chance.random() < 0.25:
        question = question[0].lower() + question[1:]
    if chance.random() < 0.3:
        question = question.replace("colour", "color")
    if chance.random() < 0.05 and question.endswith("."):
        question = question[:-1] + ", please."
    return question


def _brief(question: str, chance: random.Random) -> str:
    question = question if question.endswith(("?", ".")) else question + ("?" if chance.random() < 0.5 else ".")
    return f"{question} {chance.choice(BRIEF)}"


_FIND = _wordings("find")
_EXTRA = _wordings("extra")


def phrase_for(picture: Picture, chance: random.Random) -> tuple[str, int | None]:
    """A phrase that fits one item, without article, and which."""
    if picture.phrases and chance.random() < 0.75:
        text, target = chance.choice(picture.phrases)
        return _bare(text), target
    index = chance.randrange(len(picture.items))
    item = picture.items[index]
    word = chance.choice((item.name, item.name, *item.seen.words, *item.kinds[:2]))
    roll = chance.random()
    if roll < 0.25 and item.seen.colour and word.split()[0] not in COLOURS:
        word = f"{item.seen.colour} {word}"
    elif roll < 0.4 and item.seen.place:
        word = f"{word} {where(item.seen.place)}"
    elif roll < 0.55:
        word = f"{word} {chance.choice(_EXTRA)}"
    elif roll < 0.7 and len(picture.items) > 1:
        other = chance.choice([one for one in picture.items if one is not item])
        word = f"{word} {chance.choice(_wordings('relations'))} the {other.name}"
    return word, index


def _bare(text: str) -> str:
    for start in ("the ", "a ", "an "):
        if text.startswith(start):
            return text[len(start) :]
    return text


def _with(phrase: str, chance: random.Random) -> str:
    return chance.choices((f"the {phrase}", article(phrase), phrase), (6, 3, 1))[0]


def _find(picture: Picture, chance: random.Random) -> Said | None:
    phrase, index = phrase_for(picture, chance)
    if index is None:
        return None
    seen = picture.items[index].seen
    question = chance.choice(_FIND).format(_with(phrase, chance))
    place = f" is {where(seen.place)}." if seen.place else " is here."
    return Said(loosely(question, chance), Clue(phrase, True, (seen,)), grounded(f"The {phrase}", seen) + place, "")


def _find_absent(picture: Picture, chance: random.Random) -> Said | None:
    missing = [_bare(text) for text, target in picture.phrases if target is None]
    if not picture.absent and not missing:
        return None
    phrase = (
        chance.choice(missing)
        if missing and (not picture.absent or chance.random() < 0.5)
        else chance.choice(picture.absent)
    )
    roll = chance.random()
    if roll < 0.12 and phrase.split()[0] not in COLOURS:
        phrase = f"{chance.choice(COLOURS)} {phrase}"
    elif roll < 0.25:
        phrase = f"{phrase} {chance.choice(_EXTRA)}"
    elif roll < 0.33 and " " not in phrase:
        phrase = plural_of(phrase)
    question = chance.choice(_FIND).format(_with(phrase, chance))
    scene, seen = _around(picture, chance)
    return Said(loosely(question, chance), Clue(phrase, True, (), (), seen, scene), _missing(phrase), "")


def _missing(phrase: str) -> str:
    named = article(phrase)
    return f"I do not see {named if named != phrase else 'any ' + phrase}."


def _around(picture: Picture, chance: random.Random) -> tuple[tuple[str, ...], tuple[Seen, ...]]:
    """Now and then the clue says more than was asked: the model must not be led away by it."""
    return (picture.scene if chance.random() < 0.15 else ()), (
        tuple(item.seen for item in picture.items[:3]) if chance.random() < 0.15 else ()
    )


def _groups(picture: Picture) -> dict[str, list[Item]]:
    out: dict[str, list[Item]] = {}
    for item in picture.items:
        for word in (item.name, *item.kinds[:1]):
            out.setdefault(word, []).append(item)
    return out


def _find_all(picture: Picture, chance: random.Random) -> Said | None:
    many = [(word, items) for word, items in _groups(picture).items() if len(items) > 1]
    if not many:
        return None
    word, items = chance.choice(many)
    several = plural_of(word)
    question = chance.choice(
        (
            "Find all {0}.",
            "Where are the {0}?",
            "Show me the {0}.",
            "Find the {0}.",
            "Point to every {1}.",
            "Find every {1}.",
            "Mark all the {0}.",
            "Locate all {0}.",
            "the {0}",
            "all {0}",
            "Where are {0}?",
            "Find {0}.",
        )
    )
    seen = tuple(item.seen for item in items)
    return Said(
        loosely(question.format(several, word), chance),
        Clue(several, True, seen),
        f"I found {_number(len(seen))}: {grounded(several, *seen)}.",
        "",
    )


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


_HOW_MANY = _wordings("how many")


def _count(picture: Picture, chance: random.Random) -> Said | None:
    groups = _groups(picture)
    many = [word for word, items in groups.items() if len(items) > 1]
    word = chance.choice(many) if many and chance.random() < 0.6 else chance.choice(list(groups))
    items = groups[word]
    several = word if items[0].plural and items[0].name == word else plural_of(word)
    question = loosely(chance.choice(_HOW_MANY).format(several), chance)
    seen = tuple(item.seen for item in items)
    clue = Clue(several, True, seen)
    if chance.random() < 0.4:
        return Said(_brief(question, chance), clue, _number(len(seen)), "")
    if len(seen) == 1:
        return Said(question, clue, f"There is {grounded(f'one {word}', *seen)}.", "")
    return Said(question, clue, f"There are {grounded(f'{_number(len(seen))} {several}', *seen)}.", "")


def _count_none(picture: Picture, chance: random.Random) -> Said | None:
    if not picture.absent:
        return None
    several = plural_of(chance.choice(picture.absent))
    question, clue = loosely(chance.choice(_HOW_MANY).format(several), chance), Clue(several, True)
    if chance.random() < 0.4:
        return Said(_brief(question, chance), clue, "none", "")
    return Said(question, clue, f"I do not see any {several}.", "")


_NAME = _wordings("name")


def _name(picture: Picture, chance: random.Random) -> Said | None:
    item = chance.choice(picture.items)
    if item.seen.index is None:
        return None
    question, clue = (
        loosely(chance.choice(_NAME).format(token(item.seen)), chance),
        Clue(about=(item.seen,), scene=picture.scene if chance.random() < 0.1 else ()),
    )
    if chance.random() < 0.45:
        return Said(_brief(question, chance), clue, item.name, "")
    return Said(question, clue, f"This is {grounded(_coloured(item), item.seen)}.", "")


def _coloured(item: Item) -> str:
    """ "a red bus"; the colour is left out where the name already holds one."""
    colour = item.seen.colour if item.name.split()[0] not in COLOURS else ""
    return article(" ".join(filter(None, (colour, item.name))), item.plural)


def _tell(picture: Picture, chance: random.Random) -> Said | None:
    item = chance.choice(picture.items)
    if item.seen.index is None:
        return None
    question = chance.choice(
        (
            "Describe {0}.",
            "Tell me about {0}.",
            "What can you say about {0}?",
            "What does {0} look like?",
            "Describe the thing in {0}.",
        )
    )
    phrase = _coloured(item)
    answer = grounded(phrase[0].upper() + phrase[1:], item.seen) + (
        f" {where(item.seen.place)} of the picture." if item.seen.place else "."
    )
    return Said(loosely(question.format(token(item.seen)), chance), Clue(about=(item.seen,)), answer, "")


_DESCRIBE = _wordings("describe")


def _describe(picture: Picture, chance: random.Random) -> Said | None:
    items = picture.items[:5]
    scene = picture.scene[:2] if chance.random() < 0.5 else ()
    parts = [
        grounded(_coloured(item), item.seen) + (f" {where(item.seen.place)}" if item.seen.place else "")
        for item in items
    ]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    answer = f"I see {listed}." + (f" It looks like {article(scene[0])}." if scene else "")
    return Said(
        loosely(chance.choice(_DESCRIBE), chance),
        Clue(seen=tuple(item.seen for item in items), scene=scene),
        answer,
        "",
    )


_COLOUR = _wordings("colour")


def _colour(picture: Picture, chance: random.Random) -> Said | None:
    phrase, index = phrase_for(picture, chance)
    if index is None or phrase.split()[0] in COLOURS:
        return None
    item = picture.items[index]
    question, clue = loosely(chance.choice(_COLOUR).format(phrase), chance), Clue(phrase, True, (item.seen,))
    if not item.seen.colour:
        return Said(question, clue, f"I cannot tell one colour for {grounded(f'the {phrase}', item.seen)}.", "")
    if chance.random() < 0.5:
        return Said(_brief(question, chance), clue, item.seen.colour, "")
    return Said(question, clue, f"{grounded(f'The {phrase}', item.seen)} is {item.seen.colour}.", "")


def _colour_region(picture: Picture, chance: random.Random) -> Said | None:
    item = chance.choice([item for item in picture.items if item.seen.colour and item.seen.index is not None] or [None])
    if item is None:
        return None
    question, clue = (
        loosely(
            chance.choice(("What colour is {0}?", "Which colour has {0}?", "What is the colour of {0}?")).format(
                token(item.seen)
            ),
            chance,
        ),
        Clue(about=(item.seen,)),
    )
    if chance.random() < 0.4:
        return Said(_brief(question, chance), clue, item.seen.colour, "")
    return Said(question, clue, f"{grounded('The ' + item.name, item.seen)} is {item.seen.colour}.", "")


def _colour_absent(picture: Picture, chance: random.Random) -> Said | None:
    if not picture.absent:
        return None
    word = chance.choice(picture.absent)
    return Said(loosely(chance.choice(_COLOUR[:-1]).format(word), chance), Clue(word, True), _missing(word), "")


_IS_THERE = _wordings("is there")


def _is_there(picture: Picture, chance: random.Random) -> Said | None:
    phrase, index = phrase_for(picture, chance)
    if index is None:
        return None
    seen = picture.items[index].seen
    question, clue = loosely(chance.choice(_IS_THERE).format(article(phrase)), chance), Clue(phrase, True, (seen,))
    if chance.random() < 0.35:
        return Said(_brief(question, chance), clue, "yes", "")
    return Said(question, clue, f"Yes, I see {grounded(article(phrase), seen)}.", "")


def _is_not_there(picture: Picture, chance: random.Random) -> Said | None:
    if not picture.absent:
        return None
    phrase = chance.choice(picture.absent)
    if chance.random() < 0.15:
        phrase = plural_of(phrase)
        question = chance.choice(("Are there any {0}?", "Do you see any {0}?", "Are there {0} in the picture?")).format(
            phrase
        )
    else:
        question = chance.choice(_IS_THERE).format(article(phrase))
    question, clue = loosely(question, chance), Clue(phrase, True)
    if chance.random() < 0.35:
        return Said(_brief(question, chance), clue, "no", "")
    return Said(question, clue, f"No, {_missing(phrase)}", "")


def _is_it(picture: Picture, chance: random.Random) -> Said | None:
    """Yes or no about a thing's colour, side or name."""
    item = chance.choice(picture.items)
    roll, seen = chance.random(), item.seen
    if roll < 0.4 and seen.colour:
        right = chance.random() < 0.5
        colour = seen.colour if right else chance.choice([colour for colour in COLOURS if colour != seen.colour])
        question, clue = f"Is the {item.name} {colour}?", Clue(item.name, True, (seen,))
        answer = f"{'Yes' if right else 'No'}, {grounded('the ' + item.name, seen)} is {seen.colour}."
    elif roll < 0.65 and seen.place:
        right = chance.random() < 0.5
        place = (
            seen.place
            if right
            else chance.choice(
                [place for place in ("left", "right", "top left", "bottom right", "middle") if place != seen.place]
            )
        )
        question, clue = f"Is the {item.name} {where(place)}?", Clue(item.name, True, (seen,))
        answer = f"{'Yes' if right else 'No'}, {grounded('the ' + item.name, seen)} is {where(seen.place)}."
    elif seen.index is not None:
        right = chance.random() < 0.5 or not picture.absent
        word = chance.choice(seen.words[:2]) if right else chance.choice(picture.absent)
        question, clue = f"Is {token(seen)} {article(word, item.plural and right)}?", Clue(about=(seen,))
        answer = (
            f"Yes, it is {grounded(article(word, item.plural), seen)}."
            if right
            else f"No, it is {grounded(article(item.name, item.plural), seen)}."
        )
    else:
        return None
    question = loosely(question, chance)
    if chance.random() < 0.35:
        return Said(_brief(question, chance), clue, "yes" if right else "no", "")
    return Said(question, clue, answer, "")


def _place_of(picture: Picture, chance: random.Random) -> Said | None:
    """What stands somewhere: at a side, or beside another thing."""
    item = chance.choice(picture.items)
    if not item.seen.place:
        return None
    if chance.random() < 0.6 or len(picture.items) < 2:
        spot = where(item.seen.place)
    else:
        other = chance.choice([one for one in picture.items if one is not item])
        spot = f"{chance.choice(_wordings('relations'))} the {other.name}"
    question = chance.choice(
        ("What is {0}?", "What do you see {0}?", "What stands {0}?", "Which thing is {0}?", "What can be seen {0}?")
    ).format(spot)
    question, clue = loosely(question, chance), Clue(f"thing {spot}", True, (item.seen,))
    if chance.random() < 0.35:
        return Said(_brief(question, chance), clue, item.name, "")
    phrase = _coloured(item)
    return Said(
        question, clue, f"{grounded(phrase[0].upper() + phrase[1:], item.seen)} is {where(item.seen.place)}.", ""
    )


SCENES = _wordings("scenes")
_WHOLE = _wordings("whole")


def _whole(picture: Picture, chance: random.Random) -> Said | None:
    scene = picture.scene or tuple(chance.sample(SCENES, chance.randint(1, 3)))
    seen = tuple(item.seen for item in picture.items[:3]) if chance.random() < 0.3 else ()
    question = chance.choice(_WHOLE)
    if chance.random() < 0.2:
        options = [scene[0], chance.choice([word for word in SCENES if word not in scene])]
        chance.shuffle(options)
        question = chance.choice(
            ("Is this {0} or {1}?", "Which place is this: {0} or {1}?", "Is it {0} or {1}?")
        ).format(*(article(option) for option in options))
    question, clue = loosely(question, chance), Clue(seen=seen, scene=scene)
    if chance.random() < 0.5:
        return Said(_brief(question, chance), clue, scene[0], "")
    return Said(question, clue, f"It looks like {article(scene[0])}.", "")


def _which_kind(picture: Picture, chance: random.Random) -> Said | None:
    """ "What animal is this?": the answer is the name of the thing found."""
    item = chance.choice([item for item in picture.items if item.kinds] or [None])
    if item is None:
        return None
    kind = item.kinds[0]
    question = chance.choice(
        (
            "What {0} is this?",
            "Which {0} is this?",
            "What kind of {0} is it?",
            "What {0} do you see?",
            "What {0} is in the picture?",
            "Name the {0}.",
        )
    )
    question, clue = loosely(question.format(kind), chance), Clue(kind, True, (item.seen,))
    if chance.random() < 0.5:
        return Said(_brief(question, chance), clue, item.name, "")
    return Said(question, clue, f"This is {grounded(article(item.name, item.plural), item.seen)}.", "")


_BEYOND = _wordings("beyond")


def _beyond(picture: Picture, chance: random.Random) -> Said | None:
    """What the model cannot know it says so, and shows what it does see."""
    phrase, index = phrase_for(picture, chance)
    if index is None:
        return None
    seen = picture.items[index].seen
    return Said(
        loosely(chance.choice(_BEYOND).format(phrase), chance),
        Clue(phrase, True, (seen,)),
        f"I cannot tell that. I only see {grounded(f'the {phrase}', seen)}.",
        "",
    )


_TALK = tuple((said, name.removeprefix("talk: ")) for name, said in _table().items() if name.startswith("talk: "))


def _talk(picture: Picture, chance: random.Random) -> Said:
    asked, answer = chance.choice(_TALK)
    scene, seen = _around(picture, chance)
    return Said(loosely(chance.choice(asked), chance), Clue(seen=seen, scene=scene), answer, "")


_KINDS: dict[str, tuple[Callable[[Picture, random.Random], Said | None], float]] = {
    "find": (_find, 20),
    "absent": (_find_absent, 14),
    "all": (_find_all, 8),
    "count": (_count, 7),
    "count none": (_count_none, 2),
    "name": (_name, 14),
    "tell": (_tell, 3),
    "describe": (_describe, 10),
    "colour": (_colour, 6),
    "colour region": (_colour_region, 2),
    "colour absent": (_colour_absent, 1),
    "there": (_is_there, 5),
    "not there": (_is_not_there, 4),
    "is it": (_is_it, 6),
    "place": (_place_of, 5),
    "whole": (_whole, 5),
    "which": (_which_kind, 4),
    "beyond": (_beyond, 2),
    "talk": (_talk, 3),
}


def follow(first: Said, picture: Picture, chance: random.Random) -> Said | None:
    """A second turn that leans on the first: "What colour is it?", "And the dog?". None where nothing follows."""
    if first.kind == "find" and len(first.clue.found) == 1:
        seen = first.clue.found[0]
        if seen.colour and chance.random() < 0.5:
            question = loosely(
                chance.choice(
                    ("What colour is it?", "Which colour is it?", "What colour does it have?", "And its colour?")
                ),
                chance,
            )
            return Said(question, Clue(), f"It is {seen.colour}.", "follow")
        if chance.random() < 0.4:
            question = loosely(chance.choice(("What is it?", "What is that?", "What kind of thing is it?")), chance)
            return Said(question, Clue(), f"It is {grounded(article(seen.words[0]), seen)}.", "follow")
    if first.kind in ("find", "absent"):
        again = (_find if chance.random() < 0.6 else _find_absent)(picture, chance)
        if again is not None:
            return replace(
                again,
                question=loosely(
                    chance.choice(("And the {0}?", "What about the {0}?", "And {0}?")).format(again.clue.asked), chance
                ),
                kind="follow",
            )
    return None


def invented(
    chance: random.Random, names: Sequence[tuple[tuple[str, ...], tuple[str, ...], bool]], places: Sequence[str] = ()
) -> Picture:
    """A picture made up of words alone, for teaching the form before any picture was seen. `names`: (words, kinds,
    plural) to draw from."""
    spots = ("left", "right", "middle", "top", "bottom", "top left", "top right", "bottom left", "bottom right")
    count = chance.choices((1, 2, 3, 4, 5, 6), (2, 4, 5, 4, 3, 2))[0]
    indices = chance.sample(range(0, 28), count)
    items: list[Item] = []
    for index in indices:
        words, kinds, plural = (
            chance.choice(names)
            if not items or chance.random() < 0.75
            else (items[-1].seen.words, items[-1].kinds, items[-1].plural)
        )
        colour, box = (chance.choice(COLOURS) if chance.random() < 0.7 else ""), None
        held: int | None = index
        if chance.random() < 0.06:
            x, y = chance.uniform(0, 0.7), chance.uniform(0, 0.7)
            held, box = None, (x, y, chance.uniform(x + 0.05, 1), chance.uniform(y + 0.05, 1))
        items.append(
            Item(
                Seen(
                    held,
                    words[: chance.choice((1, 1, 2))],
                    colour,
                    chance.choice(spots) if chance.random() < 0.9 else "",
                    box,
                ),
                kinds,
                plural,
            )
        )
    mine = {word for item in items for word in (*item.seen.words, *item.kinds)}
    absent = tuple(word for word in (chance.choice(names)[0][0] for _ in range(6)) if word not in mine)
    scene = tuple(chance.sample(SCENES, chance.randint(1, 3))) if chance.random() < 0.3 else ()
    return Picture(tuple(items), scene, absent)
