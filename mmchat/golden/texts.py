"""What the tables of texts share: a line for each recorded text, and prompts from our templates.

A table states what the original made of a text, errors included. How a line is named says what the original made of it
("recorded nothing", "recorded an error"), so that `differences.toml` can name such lines by pattern.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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


def talk(template: Template, said: Sequence[tuple[str | tuple[Piece, ...], str | None]]) -> str:
    """Questions and answers laid out by a template, as the original writes them: <image> for a picture."""
    messages = []
    for question, answer in said:
        asked = pieces(question) if isinstance(question, str) else question
        messages += [("user", asked), ("assistant", pieces(answer or ""))]
    return written(template.lay_out(messages))
