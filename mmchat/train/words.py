"""The catalogue of cut-outs: what each is called, what else a person may say for it, and where its pictures are. Pure
Python.

`nouns.txt` holds the hand-checked table; its first lines say how to read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("nouns.txt")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "moose": "moose",
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "knife": "knives",
    "leaf": "leaves",
    "shrimp": "shrimp",
    "squid": "squid",
    "tooth": "teeth",
    "die": "dice",
    "bison": "bison",
    "loaf": "loaves",
    "wolf": "wolves",
    "foot": "feet",
    "calf": "calves",
    "scarf": "scarves",
    "lady": "ladies",
}

_SAME = frozenset(
    ("furniture", "clothing", "food", "electronics", "sports equipment", "rice", "bread", "money", "cattle")
)


@dataclass(frozen=True)
class Noun:
    """One line of the catalogue. `hypernyms`: widest everyday word first. `plural`: takes no "a" ("scissors",
    "broccoli").

    `sources` are emoji names, "e:" and a code point, or "t:" and a stamp's file name.
    """

    name: str
    synonyms: tuple[str, ...]
    hypernyms: tuple[str, ...]
    plural: bool
    sources: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that may stand for it, the plain name first."""
        return (self.name, *self.synonyms, *self.hypernyms)


def read(text: str) -> tuple[Noun, ...]:
    """The catalogue from its text; ValueError names the line that does not parse."""
    nouns: list[Noun] = []
    hypernyms: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        if match := re.fullmatch(r"\[(.+)\]", line):
            hypernyms = _listed(match[1], ",")
            continue
        match = re.fullmatch(r"([^~=+]+?)\s*(\+?)\s*(?:~([^=]*))?(?:=(.*))?", line)
        if match is None or not hypernyms:
            raise ValueError(
                f"line {number} of the catalogue is not 'noun ~ synonyms = sources' under a [header]: {line!r}"
            )
        name = match[1].strip()
        sources = _listed(match[4], ";") if match[4] is not None else ()
        nouns.append(Noun(name, _listed(match[3] or "", ","), hypernyms, bool(match[2]), sources or (name.lower(),)))
    return tuple(nouns)


@cache
def catalogue() -> tuple[Noun, ...]:
    """The catalogue that ships with this package."""
    return read(TABLE.read_text(encoding="utf-8"))


def with_article(word: str, plural: bool = False) -> str:
    """ "an apple", "a cup", "scissors"."""
    if plural:
        return word
    first = word[:1].lower()
    # "hour", "unicorn": the sound decides, not the letter.
    vowel = word.lower().startswith("hour") or (first in "aeiou" and not re.match(r"(?i)uni|ufo|eu|one|us", word))
    return f"{'an' if vowel else 'a'} {word}"


def plural_of(word: str) -> str:
    """The plural of a noun or of a noun phrase's head: "cups of coffee", "children", "foxes"."""
    if word in _SAME or word in _plurals():
        return word
    head, *rest = word.split(" of ", 1)
    front, _, last = head.rpartition(" ")
    if last.lower() in _IRREGULAR:
        last = _IRREGULAR[last.lower()]
    elif last.endswith("man") and len(last) > 3:
        last = last[:-3] + "men"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif last in ("potato", "tomato", "mosquito", "mango"):
        last += "es"
    else:
        last += "s"
    return " ".join(filter(None, (front, last))) + (f" of {rest[0]}" if rest else "")


@cache
def labels() -> tuple[tuple[tuple[str, ...], tuple[str, ...], bool], ...]:
    """(words, kinds, plural) of what detector and classifier can say: coco.txt and imagenet.txt, `noun ~ other names |
    wider words`."""
    out = []
    for file in ("coco.txt", "imagenet.txt"):
        path = TABLE.with_name(file)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            line = line.split("#", 1)[0].rpartition("=")[2].strip()
            if line:
                front, _, wider = line.partition("|")
                name, _, others = front.partition("~")
                words = (name.strip(), *_listed(others, ","))
                out.append(
                    (
                        words,
                        _listed(wider, ",") or ("object",),
                        words[0].endswith("s") and not re.search("(ss|us|is|os|as)$", words[0]),
                    )
                )
    return tuple(out)


@cache
def _plurals() -> frozenset[str]:
    return frozenset(noun.name for noun in catalogue() if noun.plural)


def _listed(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())
