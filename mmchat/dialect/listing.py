"""Json: dialects that answer with a list of objects, each with a place and a label, fenced or bare, whole or cut off.

The list is read token by token and never as JSON as a whole, so that single quotes, missing ends and text around it do
no harm. In the clean text an object stands as its label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmchat.dialect.forms import NUMBER, Scaled
from mmchat.dialect.spans import Dropped, Grounded, Scene, Span, settle
from mmchat.geometry import Fit, Place, Point, outline

# Where a list can begin: prose with [brackets] in it is no list.
OPENING = re.compile(r"```[ \t]*\w*\s*(?=[\[{])|(?=\{\s*[\"'])|(?=\[\s*[\[{])|(?=\[\s*[-+.\d])|(?=\[\s*\])")
HALF_OPENING = re.compile(r"(?:`{1,3}[ \t]*\w{0,20}\s*|[\[{]\s*)\Z")
TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    rf"|(?P<number>{NUMBER})|(?P<word>[A-Za-z_]\w*)|(?P<sign>[{{}}\[\],:]))"
)
# A key and its value up to the comma or the bracket after it, with nothing odd in them: nearly all are such. Every
# length in it is bounded, so that a try takes no time.
_PLAIN = r"[-+]?\d{1,20}(?:\.\d{0,20})?"
_BLANK = r"\s{0,20}"
PAIR = re.compile(
    rf"{_BLANK}\"(?P<key>\w{{1,40}})\"{_BLANK}:{_BLANK}(?:(?P<number>{_PLAIN})|\"(?P<string>[^\"\\]{{0,200}})\""
    rf"|\[{_BLANK}(?P<list>{_PLAIN}(?:{_BLANK},{_BLANK}{_PLAIN}){{1,7}}){_BLANK}\]){_BLANK}(?P<next>,|(?=\}}))"
)
THINKING = re.compile(r"\s*<think>.*?(?:</think>|\Z)\s*", re.DOTALL)
DEEPEST = 12  # brackets in brackets; more is no list, and looking again from each of them would take for ever
DEEPER = re.compile(rf"[\[{{]{{{DEEPEST + 1},}}")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)


@dataclass(frozen=True)
class Json:
    """A dialect of objects: the keys of boxes, points and labels, and the code of their numbers.

    `corners`: the keys of a box whose numbers stand in the object itself, `spot` those of a point.
    `way`: how the picture is fitted that numbers refer to. A bare list of numbers is read as a place without a label.
    """

    name: str
    code: Scaled = Scaled(1000, 0)
    box: tuple[str, ...] = ("bbox_2d",)
    point: tuple[str, ...] = ("point_2d",)
    label: tuple[str, ...] = ("label",)
    corners: tuple[str, ...] = ()
    spot: tuple[str, ...] = ()
    way: Fit = "squash"
    example: str = ""

    def write(self, places: Sequence[Place], phrase: str | None = None, scene: Scene = Scene()) -> str:  # noqa: B008
        """The numbers alone where there is no phrase, as in a question; else the list a model would answer with."""
        if self.corners:
            return self._objects(places, scene)
        lists = []
        for place in places:
            pointed = isinstance(place, Point)
            numbers = ", ".join(self.code.write(place if pointed else outline(place), scene))
            lists.append((self.point[0] if pointed else self.box[0], f"[{numbers}]"))
        if phrase is None:
            return ", ".join(numbers for _, numbers in lists)
        named = phrase.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return "[" + ", ".join(f'{{"{key}": {numbers}, "{self.label[0]}": "{named}"}}' for key, numbers in lists) + "]"

    def _objects(self, places: Sequence[Place], scene: Scene) -> str:
        """Places as the dictionary that a model's own functions return."""
        written: dict[str, list[str]] = {"objects": [], "points": []}
        for place in places:
            pointed = isinstance(place, Point)
            numbers = self.code.write(place if pointed else outline(place), scene)
            named = zip(self.spot if pointed else self.corners, numbers, strict=True)
            inside = ", ".join(f'"{key}": {number}' for key, number in named)
            written["points" if pointed else "objects"].append(f"{{{inside}}}")
        lists = ", ".join(f'"{key}": [{", ".join(objects)}]' for key, objects in written.items() if objects)
        return f"{{{lists}}}"

    def read(self, text: str, scene: Scene = Scene(), final: bool = True) -> Grounded:  # noqa: B008
        """Clean words, phrases with places, and what was dropped."""
        return _Reading(self, scene, final).read(text)


@dataclass
class _Level:
    """An open object or list: its values so far."""

    curly: bool
    key: str = ""
    label: str = ""
    numbers: list[float] = field(default_factory=list)
    where: tuple[int, int] = (0, 0)
    places: list[tuple[list[float], tuple[int, int]]] = field(default_factory=list)
    named: dict[str, tuple[float, tuple[int, int]]] = field(default_factory=dict)  # numbers under keys of their own


class _Reading:
    def __init__(self, dialect: Json, scene: Scene, final: bool) -> None:
        self.dialect, self.scene, self.final = dialect, scene, final
        self.words: list[str] = []
        self.length = 0  # of the words joined
        self.solid = 0  # up to their last character that is no white space
        self.fresh = False  # no prose since the last object
        self.labelled = False  # and it had a label
        self.spans: list[Span] = []
        self.dropped: list[Dropped] = []

    def read(self, text: str) -> Grounded:
        if not self.final and "<think>".startswith(text.strip()):  # perhaps the beginning of that very mark
            return self._done()
        thought = THINKING.match(text)
        at = 0
        if thought and ("</think>" in thought.group() or not self.final):
            at = thought.end()
        while True:
            opening = OPENING.search(text, at)
            if opening is None:
                break
            start = opening.end()
            end = self._list(text, start, opening.group().startswith("`"), text[at : opening.start()])
            if end is None:
                return self._done()
            if end == start:  # brackets of prose
                # Of a long run of brackets only the last few can begin a list.
                run = DEEPER.match(text, start)
                start = run.end() - DEEPEST - 1 if run else start
                self._prose(text[at : start + 1])
                at = start + 1
            else:
                at = end
        tail = text[at:]
        half = None if self.final else HALF_OPENING.search(tail)
        self._prose(tail[: half.start()] if half else tail)
        return self._done()

    def _done(self) -> Grounded:
        return Grounded("".join(self.words).rstrip(), tuple(self.spans), tuple(self.dropped))

    def _put(self, text: str) -> None:
        if text.strip():
            self.solid = self.length + len(text.rstrip())
        self.words.append(text)
        self.length += len(text)

    def _prose(self, text: str) -> None:
        if self.fresh:
            if not text.strip():
                return
            first = text.lstrip()
            text = first if first[0] in ".,;:!?)" else " " + first
            self.fresh = False
        if not self.length:
            text = text.lstrip()
        self._put(text)

    def _list(self, text: str, start: int, fenced: bool, before: str) -> int | None:
        """Read the list that begins at `start`: its end, or `start` where it is prose, None where the text ends in it.

        `before` is the prose in front of it, put as soon as it is known to be prose.
        """
        levels: list[_Level] = []
        at, prose = start, before
        found = False
        while True:
            if levels and levels[-1].curly and not levels[-1].key and len(levels) < DEEPEST:
                pair = PAIR.match(text, at)
                if pair:
                    self._pair(levels[-1], pair)
                    at = pair.end()
                    continue
            token = TOKEN.match(text, at)
            if token is None:
                rest = text[at:].lstrip()
                if not rest or (not self.final and rest[0] in "\"'\\.-+"):  # the text ends here, perhaps in a string
                    return self._ended(levels, start, len(text), prose, found)
                if fenced and rest.startswith("`"):
                    break
                if not found and rest[0] not in "\"'":
                    return start
                at += len(text[at:]) - len(rest) + 1  # a stray character
                continue
            kind, value = token.lastgroup, token.group().strip()
            if not self.final and token.end() == len(text) and kind in ("number", "word"):
                return self._ended(levels, start, len(text), prose, found)
            begin, at = token.end() - len(value), token.end()
            if kind == "number" or (kind == "string" and levels and not levels[-1].curly and _float(value) is not None):
                self._number(levels, _float(value) or 0.0, (begin, at))
            elif kind == "string" and levels and levels[-1].curly:
                level = levels[-1]
                if not level.key:
                    level.key = _unquoted(value)
                elif level.key in (*self.dialect.corners, *self.dialect.spot):
                    number = _float(value)
                    if number is not None:
                        self._number(levels, number, (begin, at))
                elif level.key in self.dialect.label:
                    level.label = _unquoted(value)
            elif value in "{[":
                levels.append(_Level(value == "{"))
                if len(levels) > DEEPEST:
                    return start
            elif value == "," and levels and levels[-1].curly:
                levels[-1].key = ""
            elif value in "}]" and levels:
                level = levels.pop()
                found |= self._close(level, levels[-1] if levels else None, prose)
                prose = "" if found else prose
                if not levels:
                    break
        if not found and not fenced and text[start] == "[" and text[start:at].strip("[] \n\t"):
            return start
        if not found:
            self._prose(prose)
        fence = re.compile(r"\s*```").match(text, at) if fenced else None
        return fence.end() if fence else at

    def _pair(self, level: _Level, pair: re.Match[str]) -> None:
        """A key of an object with its value, as token by token."""
        dialect, (key, number, string, listed, comma) = self.dialect, pair.groups()
        level.key = key
        if number is not None:
            self._number([level], float(number), pair.span("number"))
        elif string is None:
            if key in dialect.box or key in dialect.point:
                level.places.append(([float(part) for part in listed.split(",")], pair.span("list")))
        elif key in dialect.corners or key in dialect.spot:
            value = _float(string)
            if value is not None:
                start, end = pair.span("string")
                self._number([level], value, (start - 1, end + 1))
        elif key in dialect.label:
            level.label = _unquoted(f'"{string}"')
        if comma:
            level.key = ""

    def _number(self, levels: list[_Level], number: float, where: tuple[int, int]) -> None:
        if not levels:
            return
        level = levels[-1]
        if level.curly:
            if level.key in self.dialect.corners or level.key in self.dialect.spot:
                level.named[level.key] = (number, where)
            return
        level.where = (level.where[0] if level.numbers else where[0], where[1])
        level.numbers.append(number)

    def _close(self, level: _Level, outer: _Level | None, prose: str) -> bool:
        """An object or a list is complete; whether it gave a place."""
        dialect = self.dialect
        if not level.curly:
            if level.numbers and outer is not None and outer.curly:
                if outer.key in dialect.box or outer.key in dialect.point:
                    outer.places.append((level.numbers, level.where))
            elif level.numbers and len(level.numbers) in (2, 4) and (outer is None or not outer.curly):
                key = outer.key if outer is not None else ""
                level.places.append((level.numbers, level.where))
                self._object(level, prose)
                return not key
            elif level.places and outer is not None and outer.curly:
                outer.places += level.places
            return bool(level.places)
        for keys in (dialect.corners, dialect.spot) if level.named else ():
            given = [level.named[key] for key in keys if key in level.named]
            if given and len(given) == len(keys):
                level.places.append(([number for number, _ in given], (given[0][1][0], given[-1][1][1])))
            elif given:
                self.dropped.append(
                    Dropped(given[0][1][0], given[-1][1][1], f"wrong count: {len(given)} of {len(keys)}")
                )
        if level.places:
            self._object(level, prose)
            return True
        return False

    def _object(self, level: _Level, prose: str) -> None:
        """One object: its label becomes words, its numbers places."""
        if prose:
            self._prose(prose)
        level.label = level.label.strip()
        if level.label and self.length:
            self._put(", " if self.labelled and self.fresh else "" if self.words[-1][-1:].isspace() else " ")
        start = self.length if level.label else self.solid
        self._put(level.label)
        self.labelled, self.fresh = bool(level.label) or (self.labelled and self.fresh), True
        places, sources = [], []
        for numbers, where in level.places:
            place = self._settled(numbers, where)
            if place is not None:
                places.append(place)
                sources.append(where)
        if places:
            self.spans.append(
                Span(start, start + len(level.label), tuple(places), tuple(sources), (None,) * len(places))
            )

    def _settled(self, numbers: list[float], where: tuple[int, int]) -> Place | None:
        if len(numbers) > 4:
            self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers, the first four were kept"))
            numbers = numbers[:4]
        if len(numbers) not in (2, 4):
            self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers"))
            return None
        if not (min(numbers) > -1e12 and max(numbers) < 1e12):
            self.dropped.append(Dropped(*where, "out of range: no finite number"))
            return None
        place = self.dialect.code.read(numbers, self.scene)
        settled, reasons = settle(place, self.dialect.code.tolerance) if place is not None else (None, ())
        self.dropped.extend(Dropped(*where, reason) for reason in reasons)
        return settled

    def _ended(self, levels: list[_Level], start: int, end: int, prose: str, found: bool) -> int | None:
        """The text ends inside the list: what is whole is kept, the rest waits or is dropped."""
        if not self.final:
            if prose and not found:
                self._prose(prose.rstrip())
            return None
        whole = [level for level in levels if level.curly and level.places]
        if not found and not whole and len(levels) < 2:
            return start
        for level in whole:
            self._object(level, prose)
            prose = ""
        if prose and not found:
            self._prose(prose)
        reason = "cut off: the whole objects were kept" if whole or found else "cut off"
        self.dropped.append(Dropped(start, end, reason))
        return None


def _float(text: str) -> float | None:
    try:
        number = float(text.strip("\"' "))
    except ValueError:
        return None
    return number if not math.isnan(number) else None


def _unquoted(text: str) -> str:
    """A string without its quotes and escapes; half of a surrogate pair becomes a replacement character."""

    def plain(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) == 5:
            return chr(int(code[1:], 16))
        return {"n": "\n", "t": "\t", "r": "\r", "b": "", "f": ""}.get(code, code)

    if text.isascii() and "\\" not in text:
        return text[1:-1]
    return ESCAPE.sub(plain, text[1:-1]).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
