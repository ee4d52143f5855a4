"""The dialects side by side: what their numbers refer to, their order, scale and rounding, and their marks."""

from __future__ import annotations

from mmchat.dialect.forms import Cells, Form, Index, Scaled, Segments, Times
from mmchat.dialect.listing import Json
from mmchat.dialect.marks import Marks
from mmchat.dialect.table import DIALECTS

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


def _row(dialect: Marks | Json) -> tuple[str, ...]:
    code = dialect.code if isinstance(dialect, Json) else dialect.forms[0].code if dialect.forms else None
    return (dialect.name, FRAMES[dialect.way], *_numbers(code), _marks(dialect))


def _numbers(code: Scaled | Cells | Index | Segments | Times | None) -> tuple[str, str, str]:
    """Order, scale and rounding of a code."""
    if isinstance(code, Scaled):
        scale = f"0-{code.scale:g}" if code.scale else "pixels of the resized picture"
        return code.order, scale, f"{code.decimals} decimals" if code.decimals else code.step
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
