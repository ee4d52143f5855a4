"""The dialects side by side: what their numbers refer to, their order, scale and rounding, and their marks."""

from __future__ import annotations

from mmchat.dialect.forms import Cells, Form, Index, Scaled, Segments, Times
from mmchat.dialect.listing import Json
from mmchat.dialect.marks import Marks
from mmchat.dialect.spans import Moment, Scene
from mmchat.dialect.table import DIALECTS
from mmchat.geometry import Box, Place, Point, Polygon, outline

HEAD = ("dialect", "frame", "order", "scale", "rounding", "marks")
FRAMES = {
    "squash": "picture",
    "pad": "padded square",
    "pad_end": "square, padded at the end",
    "crop": "middle crop",
}


def rows() -> list[tuple[str, ...]]:
    """A row for each dialect, in the columns of `HEAD`."""
    return [_row(dialect) for dialect in DIALECTS.values()]


def table() -> str:
    """The rows as text, each dialect with its example below."""
    found = [HEAD, *rows()]
    widths = [max(len(row[column]) for row in found) for column in range(len(HEAD) - 1)]
    lines = []
    for row in found:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
        if row is not HEAD:
            lines.append(f"    {' '.join(DIALECTS[row[0]].example.split())}")
    return "\n".join(lines)


# What the examples refer to: twenty candidates where marks number them, a picture of 1000 x 800 where pixels count.
EXAMPLE = Scene(tuple(Box(0.03 * n, 0.1, 0.03 * n + 0.4, 0.6) for n in range(20)), (1000, 800))
INTRODUCTION = """# Dialects

Written by `python -m mmchat read --list --markdown`; a test holds it to the records in `mmchat/dialect/table.py`.

A dialect is the way in which a model writes places into its text. It belongs to the model and is never guessed from
the text. Places below are in the unit square of the picture as the model saw it (x to the right, y down); the frame
says how that picture was fitted. Marks that number candidates are read with twenty of them, pixels in a picture of
1000 x 800."""


def markdown() -> str:
    """The dialects as a document: the rows as a table, then each dialect with its example and what is read in it."""
    lines = [INTRODUCTION, "", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join([*row[:-1], _code(row[-1], cell=True)])} |" for row in rows()]
    for name, dialect in DIALECTS.items():
        read = dialect.read(dialect.example, EXAMPLE)
        lines += ["", f"## {name}", "", *(f"    {line}" for line in dialect.example.splitlines()), ""]
        lines += [f"Text: {_code(read.text)}" if read.text else "No text."]
        found = [(span.start, span.end, ", ".join(map(_place, span.places))) for span in read.spans]
        found += [(moment.start, moment.end, _moment(moment)) for moment in read.moments]
        lines += (
            ["", *(f"- {_phrase(read.text[start:end])}: {places}" for start, end, places in found)] if found else []
        )
    return "\n".join(lines)


def _phrase(words: str) -> str:
    return _code(words) if words else "no phrase"


def _moment(moment: Moment) -> str:
    return f"from {moment.first:g} to {moment.last:g}"


def _place(place: Place) -> str:
    if isinstance(place, Point):
        return f"point ({place.x:.3f}, {place.y:.3f})"
    if isinstance(place, Polygon):
        return f"outline {' '.join(f'({point.x:.3f}, {point.y:.3f})' for point in place.points)}"
    box = outline(place)
    return f"box ({box.x0:.3f}, {box.y0:.3f}, {box.x1:.3f}, {box.y1:.3f})"


def _code(text: str, cell: bool = False) -> str:
    """A piece of code in a line, or in a table's cell, where a bar needs a backslash."""
    text = " ".join(text.split())
    return f"`{text.replace('|', chr(92) + '|') if cell else text}`" if text else ""


def _row(dialect: Marks | Json) -> tuple[str, ...]:
    code = dialect.code if isinstance(dialect, Json) else dialect.forms[0].code if dialect.forms else None
    return (dialect.name, FRAMES[dialect.way], *_numbers(code), _marks(dialect))


def _numbers(code: Scaled | Cells | Index | Segments | Times | None) -> tuple[str, str, str]:
    """Order, scale and rounding of a code."""
    if isinstance(code, Scaled):
        scale = f"0-{code.scale:g}" if code.scale else "pixels of the resized picture"
        return code.order, scale, f"{code.decimals} decimal{'s' * (code.decimals > 1)}" if code.decimals else code.step
    if isinstance(code, Cells):
        return "two corners", f"{code.side}x{code.side} cells", "floor, ceil"
    if isinstance(code, Index):
        return "-", "number of a candidate", "-"
    return "-", "-", "-"


def _marks(dialect: Marks | Json) -> str:
    if isinstance(dialect, Json):
        return f"JSON {', '.join(('/'.join(dialect.corners),) if dialect.corners else (*dialect.box, *dialect.point))}"
    phrase = " ".join(mark for mark in dialect.phrase or () if mark)
    return "; ".join(part for part in (phrase, *map(_form, dialect.forms)) if part) or " ".join(dialect.silent)


def _form(form: Form) -> str:
    return f"{form.open[0]}..{form.close[0]}" if form.close[0] else f"{form.open[0]}.."
