"""What the tables of texts share: a line for each recorded text, and prompts from our templates.

A table states what the original made of a text, errors included. How a line is named says what the original made of it
("recorded nothing", "recorded an error"), so that `differences.toml` can name such lines by pattern.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmchat.dialect import Json, Marks, Scene, home, settle
from mmchat.geometry import Box, Frame, Place, Point, Polygon, outline
from mmchat.golden import Line
from mmchat.golden.llava import pieces, written
from mmchat.prompt import Piece, Template

Entry = Mapping[str, Any]
RAISES = ("raises",)
NOTHING = (None, [], {}, "", [[]])


def table(entries: Iterable[Entry], ours: Callable[[Entry], Any], key: str = "result", name: str = "") -> list[Line]:
    """A line for each entry: what `ours` makes of it, and what the original did (`key`)."""
    return [line(entry, ours, entry.get(key), name) for entry in entries]


def line(entry: Entry, ours: Callable[[Entry], Any], recorded: Any, name: str = "") -> Line:
    """One line; a ValueError of ours counts as the original's error."""
    theirs: Any = RAISES if entry.get("raises") else recorded
    try:
        made = ours(entry)
    except ValueError:
        made = RAISES
    made = plain(made)
    said = "an error" if theirs == RAISES else "nothing" if theirs in NOTHING else "something"
    what = name or entry.get("function") or entry.get("reader") or entry.get("writer") or ""
    about = {
        key: value for key, value in entry.items() if key not in ("result", "raises", "function", "reader", "text")
    }
    return Line(f"{what}: {entry.get('text', '')!r} {short(about)}; recorded {said}", made, theirs)


def plain(value: Any) -> Any:
    """A value as JSON holds it; what is no finite number by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) and value != RAISES else value


def short(about: Entry) -> str:
    """The rest of an entry in at most 200 characters."""
    return json.dumps(about, ensure_ascii=False, default=str)[:200]


def prompts(entries: Iterable[Entry], ours: Callable[[Entry], str], key: str = "prompt") -> list[Line]:
    """Every recorded prompt against ours."""
    return table(entries, ours, key, "prompt")


class Holes(dict[str, str]):
    """Words that are not known, by name: each a sign that no text holds."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, chr(0xE000 + len(self)))


def told(entries: Sequence[Entry], ours: Callable[[Entry, Mapping[str, str]], str]) -> list[Line]:
    """Every recorded prompt against ours, where the record does not say beside them what was asked and answered.

    `ours` makes a prompt of words by their names. These are what most prompts hold where ours has them: so all prompts
    must hold the same words, and the rest of each must be ours to the letter.
    """
    holes, found = Holes(), defaultdict[str, Counter[str]](Counter)
    for entry in entries:
        try:
            pattern = re.escape(ours(entry, holes))
        except ValueError:
            continue
        for number, hole in enumerate(holes.values()):
            pattern = pattern.replace(hole, f"(?P<w{number}>.+?)", 1).replace(hole, f"(?P=w{number})")
        match = re.fullmatch(pattern, entry.get("prompt") or "", re.DOTALL)
        for number, name in enumerate(holes):
            if match and (words := match.groupdict().get(f"w{number}")) is not None:
                found[name][words] += 1
    words = {name: max(found[name], key=found[name].__getitem__, default=hole) for name, hole in holes.items()}
    return prompts(entries, lambda entry: ours(entry, words))


def talk(template: Template, said: Sequence[tuple[str | tuple[Piece, ...], str | None]]) -> str:
    """Questions and answers laid out by a template, as the original writes them: <image> for a picture."""
    messages = []
    for question, answer in said:
        asked = pieces(question) if isinstance(question, str) else question
        messages += [("user", asked), ("assistant", pieces(answer or ""))]
    return written(template.lay_out(messages))


# places


Found = list[tuple[str | None, list[float]]]  # label (None: not compared) and numbers: x, y or corners or an outline


Reader = Callable[[Entry], tuple[Found, Found, Sequence[float]]]  # ours, the original's, the frame of the numbers


def read_all(entries: Iterable[Entry], readers: Mapping[str, Reader]) -> list[Line]:
    """A line for each entry, by the reader that its original function asks for; KeyError where there is none."""
    lines = []
    for entry in entries:
        ours, theirs, size = readers[entry.get("function") or entry.get("reader") or entry["vlm"]](entry)
        lines.append(places(entry, ours, RAISES if entry["raises"] else theirs, size))
    return lines


def found(dialect: Marks | Json, text: str, size: Sequence[int], fitted: Sequence[int] = (0, 0)) -> Found:
    """What our reader finds, in the order of the text, in a frame of `size` (width, height) from edge to edge."""
    grounded = dialect.read(text, Scene(size=(int(fitted[0]), int(fitted[1]))))
    if dialect.way != "squash":
        grounded = home(grounded, Frame(1, dialect.way).place((int(size[0]), int(size[1]))))
    places = [
        (source, grounded.text[span.start : span.end], place)
        for span in grounded.spans
        for source, place in zip(span.source, span.places, strict=True)
    ]
    return [(label, numbers(place, size)) for _, label, place in sorted(places, key=lambda item: item[0])]


def numbers(place: Place, size: Sequence[float]) -> list[float]:
    """A place as x, y pairs in a frame of `size`."""
    if isinstance(place, Point):
        points: tuple[Point, ...] = (place,)
    elif isinstance(place, Polygon):
        points = place.points
    else:
        box = outline(place)
        points = (Point(box.x0, box.y0), Point(box.x1, box.y1))
    return [value for point in points for value in (point.x * size[0], point.y * size[1])]


def places(entry: Entry, ours: Found, theirs: Found | tuple[str], size: Sequence[float], name: str = "") -> Line:
    """A line about places. Its end says how the original's stand to ours, and only what is checked here."""
    said = relation(ours, theirs, size)
    what = name or entry.get("function") or entry.get("reader") or entry.get("vlm") or ""
    given = entry["text"] if "text" in entry else entry.get("input", entry.get("object"))
    about = f"{what}: {given!r} {list(size)} ({entry.get('tag', '')}); the original {said}"
    if theirs == RAISES or said == "agrees":
        return Line(about, said if said == "agrees" else ours, said if said == "agrees" else theirs)
    return Line(about, [list(item) for item in ours], [list(item) for item in theirs])


def relation(ours: Found, theirs: Found | tuple[str], size: Sequence[float]) -> str:
    """How the original's places stand to ours."""
    if theirs == RAISES:
        return "fails" if ours else "fails and there is no place"
    if _alike(ours, theirs):
        return "agrees"
    kept = [(label, cut) for label, given in theirs if (cut := _settled(given, size))]
    if _alike(ours, kept):
        return "hands on swapped, empty or outside places"
    bare, kept_bare = [(None, given) for _, given in ours], [(None, given) for _, given in kept]
    if _alike(bare, kept_bare):
        return "names another phrase"
    rest = list(bare)
    for item in kept_bare:
        match = next((other for other in rest if _alike([other], [item])), None)
        if match is None:
            return "finds other places"
        rest.remove(match)
    return ("loses all places" if not theirs else "loses a place") if rest else "gives another order"


def _alike(ours: Found, theirs: Found) -> bool:
    def near(one: list[float], other: list[float]) -> bool:
        return len(one) == len(other) and all(
            # A whole number may be a cut off one; what a float fell short of it by is no difference.
            (b - 1e-5 <= a <= b + 1 + 1e-5) if isinstance(b, int) else abs(a - b) <= 2e-3 + 1e-5 * abs(b)
            for a, b in zip(one, other, strict=True)
        )

    return len(ours) == len(theirs) and all(
        near(one[1], other[1]) and (other[0] is None or one[0] is None or one[0].split() == other[0].split())
        for one, other in zip(ours, theirs, strict=True)
    )


def _settled(given: Sequence[float], size: Sequence[float]) -> list[float] | None:
    """The original's numbers as ours would be: corners in order, cut to the frame, nothing without an area."""
    if len(given) % 2 or not all(isinstance(number, int | float) and math.isfinite(number) for number in given):
        return None
    pairs = [Point(x / size[0], y / size[1]) for x, y in zip(given[::2], given[1::2], strict=True)]
    place = (
        pairs[0]
        if len(pairs) == 1
        else Box(pairs[0].x, pairs[0].y, pairs[1].x, pairs[1].y)
        if len(pairs) == 2
        else Polygon(tuple(pairs))
    )
    kept, _ = settle(place, 2e-3)
    if kept is None:
        return None
    cut = numbers(kept, size)
    return [int(number + 1e-6) for number in cut] if all(isinstance(number, int) for number in given) else cut
