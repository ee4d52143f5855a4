"""The clue: what the eyes found for a question, written as words and region tokens that the language model reads. Pure
Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """A thing that was found. `index`: its candidate, or None where only the box (unit square of the fitted picture) is
    known.

    `words`: names, best first; `colour`: one word or ""; `place`: "left", "top right", "middle" ... or "".
    """

    index: int | None
    words: tuple[str, ...]
    colour: str = ""
    place: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Clue:
    """`asked`: what was looked for; `found`: the things it fits, `sought` says that a look was taken (none found: it is
    not there).

    `about`: the drawn regions the question names; `seen`: what stands in the picture; `scene`: words for the whole
    picture.
    """

    asked: str = ""
    sought: bool = False
    found: tuple[Seen, ...] = ()
    about: tuple[Seen, ...] = ()
    seen: tuple[Seen, ...] = ()
    scene: tuple[str, ...] = ()


def token(seen: Seen) -> str:
    """`<r3>`, or the box in two decimals where no candidate is it."""
    if seen.index is not None:
        return f"<r{seen.index}>"
    if seen.box is None:
        raise ValueError("a thing without index needs its box")
    return "[" + ",".join(f"{min(max(value, 0.0), 1.0):.2f}" for value in seen.box) + "]"


def write_clue(clue: Clue) -> str:
    """The text of the clue slot: "" for an empty clue, else one line that begins with a line break."""
    parts = []
    if clue.sought and clue.found:
        count = f" {len(clue.found)}" if len(clue.found) > 1 else ""
        parts.append(f"found{count} " + " ".join(_written(seen) for seen in clue.found))
    elif clue.sought:
        parts.append(f"none of {clue.asked}")
    if clue.about:
        parts.append("about " + " ".join(_written(seen) for seen in clue.about))
    if clue.seen:
        parts.append("seen " + " ".join(_written(seen) for seen in clue.seen))
    if clue.scene:
        parts.append("scene " + ", ".join(clue.scene))
    return "\nclue: " + "; ".join(parts) if parts else ""


def _written(seen: Seen) -> str:
    return token(seen) + " " + ", ".join(filter(None, (" or ".join(seen.words[:2]), seen.colour, seen.place)))


def place_of(box: Sequence[float]) -> str:
    """Where in the picture, in words: "left", "top right", "middle" ... box in the
    unit square of the picture. Lessons and clues must say it alike.
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "top" if y < 0.34 else "bottom" if y > 0.66 else ""
    return " ".join(filter(None, (down, across))) or "middle"
