"""Marks: dialects whose places stand between the words, as one record and one reader for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mmchat.dialect.forms import Form, either, starts
from mmchat.dialect.reading import read
from mmchat.dialect.spans import Grounded, Scene
from mmchat.geometry import Fit, Place


@dataclass(frozen=True)
class Marks:
    """A dialect whose places stand between the words.

    `forms`: how places are written, the first that can is used for writing. `phrase`: marks around a phrase, or None.
    `ends`: further marks that close one. `group`: marks that are written around the places of a phrase. `silent`:
    further marks that mean nothing to a reader. `label`: where the phrase stands: "marked" (between phrase marks),
    "before" the places (a guess at the noun phrase), "whole" (all words since the last places), "after" (up to a
    semicolon, line end or the next places), "inside" (between the places' mark and the closing phrase mark). `way`: how
    the picture is fitted that numbers refer to. `apart`: put between two labels that touch.
    """

    name: str
    forms: tuple[Form, ...]
    phrase: tuple[str, str] | None = None
    ends: tuple[str, ...] = ()
    group: tuple[str, str] = ("", "")
    silent: tuple[str, ...] = ()
    label: Literal["marked", "before", "whole", "after", "inside"] = "before"
    way: Fit = "squash"
    space: str = " "
    apart: str = ""
    example: str = ""

    @cached_property
    def whole(self) -> re.Pattern[str]:
        """Every mark of a text that has ended."""
        return self._every(growing=False)

    @cached_property
    def growing(self) -> re.Pattern[str]:
        """The same while the text grows: a mark without an end may go on where the text stops."""
        return self._every(growing=True)

    def _every(self, growing: bool) -> re.Pattern[str]:
        # Of two forms that begin alike the one with the longer mark is meant.
        order = sorted(enumerate(self.forms), key=lambda item: -max(map(len, item[1].open)))
        parts = [f"(?P<f{index}>{form.pattern})" for index, form in order]
        if open_ends := [
            form.open_end for form in self.forms if not form.run and not form.plain and len(self.forms) > 1
        ]:
            # Else another form would read the inside of a mark whose end has not come yet.
            parts.insert(0, f"(?P<h>(?:{'|'.join(open_ends)})\\Z)")
        if self.phrase:
            opens, closes = (self.phrase[:1], (*self.phrase[1:], *self.ends))
            parts += [f"(?P<o>{either(opens)})"] if self.phrase[0] else []
            parts.append(f"(?P<c>{either(closes)})")
        if self._quiet:
            parts.append(f"(?P<s>{either(self._quiet)})")
        return re.compile("|".join(parts))

    @cached_property
    def half(self) -> re.Pattern[str]:
        marks = [*(self.phrase or ()), *self.ends, *self._quiet]
        parts = [form.half for form in self.forms] + [starts(mark) for mark in marks if len(mark) > 1]
        return re.compile("(?:" + "|".join(parts) + r")\Z")

    @property
    def _quiet(self) -> tuple[str, ...]:
        return tuple(sorted({*self.silent, *(mark for mark in self.group if mark)}, key=len, reverse=True))

    def write(self, places: Sequence[Place], phrase: str | None = None, scene: Scene = Scene()) -> str:  # noqa: B008
        """The text a prompt or an answer would hold. ValueError where no form can write the places."""
        numbers = ""
        if places and not self.forms:
            raise ValueError(f"The dialect {self.name} has no form for places.")
        if places:
            if (mark := self.forms[0].gathered(places, phrase, scene)) is not None:
                return mark
            written = self.forms[0].write(places, scene)
            if written is None:  # some can be pointed at, some not
                written = self.forms[-1].join.join(self._one(place, scene) for place in places)
            numbers = f"{self.group[0]}{written}{self.group[1]}"
        if phrase is None:
            return numbers
        if self.label == "inside" and self.phrase:
            return f"{numbers}{phrase}{self.phrase[1]}"
        named = f"{self.phrase[0]}{phrase}{self.phrase[1]}" if self.phrase else phrase
        if self.label == "after":
            return f"{numbers}{self.space}{named}"
        return f"{named}{self.space if numbers else ''}{numbers}"

    def _one(self, place: Place, scene: Scene) -> str:
        for form in self.forms:
            written = form.write([place], scene)
            if written is not None:
                return written
        raise ValueError(f"The dialect {self.name} can only point at candidates, and the place is none of them.")

    def read(self, text: str, scene: Scene = Scene(), final: bool = True) -> Grounded:  # noqa: B008
        """Clean words, phrases with places, and what was dropped."""
        return read(self, text, scene, final)
