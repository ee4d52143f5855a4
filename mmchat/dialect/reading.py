"""One pass over a text with marks: clean words, the phrases that places belong to, and what was dropped.

Linear in the text; never raises; what it makes of a beginning is a beginning of what it makes of the whole.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from mmchat.dialect.forms import Form, Index, Scaled, Segments, Times
from mmchat.dialect.phrases import phrase_before, whole_words
from mmchat.dialect.spans import Dropped, Grounded, Moment, Scene, Span, settle
from mmchat.geometry import Box, Place

if TYPE_CHECKING:
    from mmchat.dialect.marks import Marks


def read(dialect: Marks, text: str, scene: Scene, final: bool) -> Grounded:
    """`Marks.read`."""
    return _Reading(dialect, scene, final).read(text)


class _Reading:
    """One pass over a text: the clean words so far, the phrase places belong to, the numbers of an unfinished run."""

    def __init__(self, dialect: Marks, scene: Scene, final: bool) -> None:
        self.dialect, self.scene, self.final = dialect, scene, final
        self.words: list[str] = []
        self.length = 0  # of the words joined
        self.held: str | None = None  # white space and joints since the last mark; None: the last thing was a word
        self.opened = False  # a phrase begins with the next word
        self.start: int | None = None  # of the open phrase
        self.phrase: tuple[int, int] | None = None  # to which places belong that come now; None: words came since
        self.index: int | None = None  # of its span
        self.named: tuple[int, int] | None = None  # the marked phrase that has no places yet
        self.joints = " \t\r\n"  # what may stand between marks without being words
        self.segment = (0, 0)  # where the words since the last places begin: pieces, characters
        self.waiting: list[_Item] = []  # places whose words come after them
        self.run: list[float] = []  # numbers of marks in a row that make no whole place yet, and where they stand
        self.row = (0, 0)
        self.running: Form | None = None
        self.ordinal = 0
        self.before: _Item | None = None  # the place read last
        self.spans: list[tuple[int, int, list[_Item]]] = []
        self.dropped: list[Dropped] = []
        self.moments: list[Moment] = []

    def read(self, text: str) -> Grounded:
        at = 0
        for match in (self.dialect.whole if self.final else self.dialect.growing).finditer(text):
            if match.lastgroup == "h":
                break
            self._text(text[at : match.start()])
            self._mark(match)
            at = match.end()
        tail = text[at:]
        halves, end = [], len(tail)
        for _ in range(3):  # the end may cut a mark off in the middle of one that was never closed
            half = self.dialect.half.search(tail, 0, end)
            # One character is no evidence of a mark that was cut off: "2 <" stays as it is once the text has ended.
            if half is None or (self.final and len(half.group()) < 2):
                break
            halves.append((at + half.start(), at + end))
            end = half.start()
        self._text(tail[:end])
        for begin, stop in reversed(halves) if self.final else ():
            kept = self._salvage(text[:stop], begin)
            reason = "cut off: the whole places were kept" if kept else "cut off"
            self.dropped.append(Dropped(begin, stop, reason))
        if self.final:
            self._flush_run()
            self._settle_waiting()
            if self.held and self.held.strip():
                self._put(self.held.strip())
        spans = tuple(Span(start, end, *zip(*items, strict=True)) for start, end, items in self.spans)
        return Grounded("".join(self.words).rstrip(), spans, tuple(self.dropped), tuple(self.moments))

    # words

    def _put(self, text: str) -> None:
        self.words.append(text)
        self.length += len(text)

    def _text(self, text: str) -> None:
        if not text:
            return
        if self.run and text.strip():
            self._flush_run()
        if self.held is not None or not self.length:
            rest = text.lstrip(self.joints)
            self.held = (self.held or "") + text[: len(text) - len(rest)]
            if not rest:
                if len(self.held) > 64:  # no joint is so long; and what is held is looked at again with every mark
                    self._resolve("")
                return
            self._resolve(rest[0])
            text = rest
        if self.opened:
            self.opened, self.start = False, self.length
        self.phrase, self.joints = None, " \t\r\n"
        if self.waiting and self.dialect.label == "after":
            end = re.search(r"[;\n]", text)
            if end:
                self._put(text[: end.start()])
                self._settle_waiting()
                text = text[end.start() :]
        self._put(text)

    def _resolve(self, follower: str) -> None:
        """Words go on with `follower`: what was held back becomes a joint, one blank, or nothing."""
        held, self.held = self.held or "", None
        joint = held.strip()
        if joint:
            self._settle_waiting()
            self._put(joint)
        if not self.length or (not joint and follower and follower in ".,;:!?)"):
            return
        blank = _blank(held)
        if not blank and not joint and self.phrase is not None and self.index is not None:
            blank = self.dialect.apart
        if blank:
            self._put(blank)

    def _gap(self) -> None:
        """A mark stands here: white space on its two sides becomes one."""
        if self.held is not None:
            if not self.held.strip():
                self.held = _blank(self.held)
            return
        blank = ""
        while self.words and not self.words[-1].strip():
            blank = self.words.pop() + blank
        if self.words:
            stripped = self.words[-1].rstrip()
            blank = self.words[-1][len(stripped) :] + blank
            self.words[-1] = stripped
        self.length -= len(blank)
        self.held = blank

    # marks

    def _mark(self, match: re.Match[str]) -> None:
        kind = match.lastgroup or ""
        if kind == "s":
            self._flush_run()
            self._gap()
        elif kind == "o":
            self._flush_run()
            if self.held and self.held.strip():
                self._resolve("<")
            self._gap()
            self.opened, self.start, self.phrase, self.joints = True, None, None, " \t\r\n"
        elif kind == "c":
            self._flush_run()
            self._gap()
            if self.dialect.label == "inside":
                self._settle_waiting()
            elif self.opened or self.start is not None:
                self._close()
        else:
            form = self.dialect.forms[int(kind[1:])]
            if form.run:
                self._run(form, match)
            elif not self._places(form, match):
                self._text(match.group())

    def _close(self) -> None:
        """The open phrase ends here."""
        start = self.length if self.start is None else min(self.start, self.length)
        self.phrase, self.index = (start, self.length), None
        self.opened, self.start, self.named = False, None, self.phrase

    def _run(self, form: Form, match: re.Match[str]) -> None:
        """Marks in a row, of which `form.run` make a place."""
        if self.running is not form:
            self._flush_run()
        self.running = form
        self._gap()  # nothing stands between marks of one row
        run, start = self.run, self.row[0]
        for mark in form.single.finditer(match.string, *match.span()):
            start = start if run else mark.start()
            run.append(float(mark[1] or "inf"))
            if len(run) == form.run:
                self.run = []
                self._place(form, run, (start, mark.end()))
                run = self.run
        self.row = (start, match.end())

    def _flush_run(self) -> None:
        if not self.run or self.running is None:
            return
        numbers, where, form = self.run, self.row, self.running
        self.run = []
        if form.polygons and form.run > 8 and len(numbers) >= 6:
            if len(numbers) % 2:  # cut off inside a corner
                self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers, the last was left out"))
            self._place(form, numbers[: len(numbers) // 2 * 2], where)
        elif form.polygons and form.run > 8:
            self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers are no outline"))
        else:
            self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} where {form.run} belong together"))

    def _places(self, form: Form, match: re.Match[str]) -> bool:
        """Places of one mark; False where it is no mark but prose in the same brackets."""
        text, begin, stop = match.string, *match.span()
        plain = form.plainest and form.plainest.fullmatch(text, begin, stop)
        if plain:
            self._flush_run()
            self._gap()
            self._place(form, [float(number) for number in plain.groups()], (plain.start(1), plain.end(4)))
            return True
        chunks: list[tuple[list[float], list[re.Match[str]], bool]] = []
        for part in [*form.parts.finditer(text, begin, stop), None]:
            end = part.start() if part else stop
            found = [*form.numbers.finditer(text, begin, end)] if end > begin else ()
            if found:
                values = [float(value) for number in found for value in number.groups()]
                glued = any(one.end() == other.start() for one, other in itertools.pairwise(found))  # 10+2, 0.1.2
                chunks.append((values, found, glued))
            begin = part.end() if part else end
        if form.plain and not any(form.meant(numbers) for numbers, _, _ in chunks):
            return False
        self._flush_run()
        self._gap()
        if not chunks:
            self._mark_without_numbers(form, match)
        for numbers, found, glued in chunks:
            where = found[0].start(), found[-1].end()
            counts = form.counts(len(numbers))
            if counts == len(numbers):
                self._place(form, numbers, where)
                continue
            if not counts and len(numbers) > 4 and not form.plain and not glued and isinstance(form.code, Scaled):
                self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers, the first four were kept"))
                self._place(form, numbers[:4], where)
            elif not counts:
                self.dropped.append(Dropped(*where, f"wrong count: {len(numbers)} numbers"))
            for at in range(0, len(numbers) if counts else 0, counts or 1):
                each = len(numbers) // len(found)  # one, or a pair
                own = found[at // each].start(), found[(at + counts - 1) // each].end()
                self._place(form, numbers[at : at + counts], own)
        return True

    def _salvage(self, text: str, begin: int) -> bool:
        """The boxes that stand whole in a mark that the end of the text cuts off; whether there are any."""
        kept = False
        for form in self.dialect.forms:
            if (
                form.run
                or not any(form.close)
                or not isinstance(form.code, Scaled)
                or not text.startswith(form.open, begin)
            ):
                continue
            if form.pairs:
                for match in form.numbers.finditer(text, begin, len(text)):
                    if match.end() < len(text):
                        self._gap()
                        self._place(form, [float(value) for value in match.groups()], match.span())
                        kept = True
                break
            start = begin
            for part in [*form.parts.finditer(text, begin), None]:
                end = part.start() if part else len(text)
                found = [*form.numbers.finditer(text, start, end)] if end > start else []
                start = part.end() if part else end
                values = [float(number.group(1)) for number in found]
                if len(found) == 4 and found[-1].end() < len(text) and (not form.plain or form.meant(values)):
                    self._gap()  # a number at the very end may go on
                    self._place(form, values, (found[0].start(), found[-1].end()))
                    kept = True
            break
        return kept

    def _mark_without_numbers(self, form: Form, match: re.Match[str]) -> None:
        """The k-th such mark stands for the scene's k-th group of candidates."""
        where = match.span()
        if not isinstance(form.code, Index):
            self.dropped.append(Dropped(*where, "wrong count: no numbers"))
            return
        groups = self.scene.groups or tuple((index,) for index in range(len(self.scene.candidates)))
        members = groups[self.ordinal] if self.ordinal < len(groups) else (len(self.scene.candidates),)
        self.ordinal += 1
        for member in members:
            self._place(form, [member], where)

    def _place(self, form: Form, numbers: list[float], where: tuple[int, int]) -> None:
        """One place has been read: settle it and give it to its phrase."""
        if isinstance(form.code, Times):
            self._moment(numbers, where)
            return
        place = self._settled(form, numbers, where)
        item = (place, where, int(numbers[0]) if isinstance(form.code, Index) and place is not None else None)
        self.before = item
        if self.dialect.label in ("after", "inside"):
            if self.phrase is None or not self.waiting:
                self._settle_waiting()
                self.segment = (len(self.words), self.length)
            self.phrase, self.index = (self.length, self.length), None
            self.waiting.append(item)
        else:
            if self.opened or self.start is not None:
                self._close()  # places inside a phrase that was never closed
            if self.phrase is None:
                self._guess()
            self.named = None
            self._attach(item)
            self.segment = (len(self.words), self.length)
        self.joints = " \t\r\n,;"
        self.held = _blank(self.held or "")  # a joint between places of one phrase is no word

    def _moment(self, numbers: list[float], where: tuple[int, int]) -> None:
        """A stretch of time has been read."""
        first, last = sorted(numbers)
        if not 0 <= first <= last < 1e12:
            self.dropped.append(Dropped(*where, f"out of range: {numbers}"))
            return
        if first != numbers[0]:
            self.dropped.append(Dropped(*where, "swapped ends: put in order"))
        self._guess()
        self.moments.append(Moment(*(self.phrase or (0, 0)), first, last, where))
        self.joints, self.held = " \t\r\n,;", _blank(self.held or "")
        self.segment = (len(self.words), self.length)

    def _guess(self) -> None:
        """No phrase stands right before the places: take the marked one that waits for some, or look at the words."""
        if self.dialect.label == "marked" and self.named is not None:
            self.phrase, self.index = self.named, None
            return
        words, base = "".join(self.words[self.segment[0] :]), self.segment[1]
        if self.spans and words.strip(" \t\r\n,;&").lower() in ("", "and", "or"):
            self.index = len(self.spans) - 1
            self.phrase = self.spans[-1][:2]
            return
        begin, end = whole_words(words) if self.dialect.label == "whole" else phrase_before(words)
        self.phrase, self.index = (base + begin, base + end), None

    def _settle_waiting(self) -> None:
        """Words that follow their places are complete."""
        if not self.waiting:
            return
        begin, end = whole_words("".join(self.words[self.segment[0] :]))
        self.phrase, self.index = (self.segment[1] + begin, self.segment[1] + end), None
        waiting, self.waiting = self.waiting, []
        for item in waiting:
            self._attach(item)

    def _attach(self, item: _Item) -> None:
        place, where, region = item
        if place is None or self.phrase is None:
            return
        if self.index is None:
            self.index = len(self.spans)
            self.spans.append((*self.phrase, []))
        _, _, items = self.spans[self.index]
        items.append((place, where, region))

    def _settled(self, form: Form, numbers: list[float], where: tuple[int, int]) -> Place | None:
        """The place in order and inside the picture; None, with its reason noted, where nothing remains."""
        if not (min(numbers) > -1e12 and max(numbers) < 1e12):
            self.dropped.append(Dropped(*where, "out of range: no finite number"))
            return None
        place = form.code.read(numbers, self.scene)
        if isinstance(form.code, Segments) and self.before and isinstance(self.before[0], Box):
            box, (_, end), _ = self.before
            place = form.code.drawn(numbers, box, self.scene) if end == where[0] else None
        if place is None:
            reason = f"out of range: {numbers}"
            if isinstance(form.code, Segments):
                reason = f"a mask that only the model's decoder can draw: {[int(number) for number in numbers]}"
            if isinstance(form.code, Index):
                reason = f"unknown index {int(numbers[0])}: there are {len(self.scene.candidates)} candidates"
            self.dropped.append(Dropped(*where, reason))
            return None
        settled, reasons = settle(place, form.code.tolerance)
        self.dropped.extend(Dropped(*where, reason) for reason in reasons)
        return settled


def _blank(held: str) -> str:
    """The one blank that stands for all white space in `held`."""
    if not held or held == " ":
        return held
    return "\n" if "\n" in held else " " if any(character.isspace() for character in held) else ""


_Item = tuple[Place | None, tuple[int, int], int | None]
