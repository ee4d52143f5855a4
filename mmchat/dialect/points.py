"""How Molmo and Molmo2 write points: all of a phrase in one tag, from left to right, as they were trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmchat.dialect.spans import Grounded

Pair = tuple[str, ...]  # x and y as they are printed
GROUP = re.compile(r"[\"'\t;:,](?=[^\"'\t;:,]*\Z)")  # what stands before the group of points that a text ends in
NEAR = 2000  # characters that are looked at for it


def molmo(pairs: Sequence[Pair], phrase: str | None) -> str:
    """One `<point>`, or `<points>` with numbered coordinates; the phrase in small letters. Without one: the tag."""
    pairs = sorted(pairs, key=_place)
    numbers = range(1, len(pairs) + 1) if len(pairs) > 1 else ("",)
    spots = " ".join(f'x{number}="{x}" y{number}="{y}"' for number, (x, y) in zip(numbers, pairs, strict=True))
    tag = "points" if len(pairs) > 1 else "point"
    if phrase is None:
        return f"<{tag} {spots}>"
    return f'<{tag} {spots} alt="{phrase.lower()}">{phrase.lower()}</{tag}>'


def molmo2(pairs: Sequence[Pair], phrase: str | None) -> str:
    """The points of one picture."""
    return molmo2_groups([(1, sorted(pairs, key=_place))], phrase)


def molmo2_groups(
    groups: Sequence[tuple[int | float, Sequence[Pair]]], phrase: str | None, alt: str | None = None, apart: str = "\t"
) -> str:
    """Points of several pictures or moments, counted through: (number of the picture, or seconds as a float; points).

    Points are written in their order. apart: between groups, a tab as in the first form of the model's data or a
    semicolon as in the second.
    """
    number, written = 0, []
    for name, pairs in groups:
        numbered = []
        for x, y in pairs:
            number += 1
            numbered.append(f"{number} {x} {y}")
        if numbered:
            written.append(f"{_number(name)} {' '.join(numbered)}")
    return _tag("points", apart.join(written), phrase, alt)


def molmo2_tracks(
    groups: Sequence[tuple[float, Mapping[str, Pair]]], phrase: str | None, alt: str | None = None, apart: str = "\t"
) -> str:
    """The same things at several moments: (seconds, points by the thing's name); things are counted as they appear."""
    order: dict[str, int] = {}
    written = []
    for name, things in groups:
        numbered = []
        for thing, (x, y) in sorted(things.items(), key=lambda item: _place(item[1])):
            numbered.append((order.setdefault(thing, len(order) + 1), x, y))
        if numbered:
            written.append(" ".join([_number(name), *(f"{number} {x} {y}" for number, x, y in sorted(numbered))]))
    return _tag("tracks", apart.join(written), phrase, alt)


def pictures(text: str, grounded: Grounded) -> list[list[float]]:
    """For every span, place by place, the picture (from 1) or the second that Molmo2's tag in the raw `text` names.

    0 where the tag names none.
    """
    return [[_group(text, start) for start, _ in span.source] for span in grounded.spans]


def _group(text: str, at: int) -> float:
    before = text[max(0, at - NEAR) : at]
    opened = GROUP.search(before)
    words = before[opened.end() :].split() if opened else []
    try:
        return float(words[0]) if words else 0.0
    except ValueError:
        return 0.0


def _number(name: float) -> str:
    return f"{name:.1f}" if isinstance(name, float) else str(name)


def _tag(tag: str, coords: str, phrase: str | None, alt: str | None) -> str:
    named = f' alt="{alt}"' if alt is not None else ""
    opened = f'<{tag}{named} coords="{coords}">'
    return opened if phrase is None else f"{opened}{phrase}</{tag}>"


def _place(pair: Pair) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
