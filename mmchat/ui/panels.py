"""What stands around picture and talk: the head of the page, heat maps, details of an answer, the list of models.

All text from models, files and users is escaped; the tags are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from PIL import Image

from mmchat.desk import Answer, Desk
from mmchat.geometry import Box, Place, Point, Polygon, outline
from mmchat.paint import colour
from mmchat.ui.canvas import shown_copy, typed_html

PRECISIONS = [("Automatic", "auto"), ("Full", "fp32"), ("NF4 (4 bit)", "nf4")]


class HeatMap(GradioModel):
    """A painted picture and one sentence of what it shows; `scale`: whether low and high are told by colour; `picture`:
    the digest of the picture that it is laid over."""

    image: FileData | None = None
    note: str = ""
    scale: bool = True
    picture: str = ""


def heat_holder(**kwargs: Any) -> gr.HTML:
    """Carries a `HeatMap` to the browser, which lays it over the picture."""
    return typed_html(HeatMap, ("heat.js",), html_template='<div class="mm-heat-note"></div>', **kwargs)


def heat_choices(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(what to read, the family's own name) for each kind of heat map it gives."""
    return [(kind[:1].upper() + kind[1:], kind) for kind in kinds]


def head_html(desk: Desk, name: str) -> str:
    """Name of the page, the open model (`name` in the list of models) with its precision, and one sentence about it."""
    family = desk.engine.family
    which = desk.engine.precision if name == family.name else f"{name}, {desk.engine.precision}"
    return (
        '<header class="mm-head"><h1>mmchat</h1>'
        f'<span class="mm-pill"><b>{escape(family.title)}</b> {escape(which)}</span>{faults_html(desk)}'
        f'<span class="mm-about">{escape(family.about)}{_unverified(family.unverified)}</span></header>'
    )


def _unverified(said: str) -> str:
    """What of a model could not be held to its original, small print behind what it is."""
    return f' <small class="mm-unverified">Not verified: {escape(said)}</small>' if said else ""


def faults_html(desk: Desk) -> str:
    """A red badge with the reasons where the open model failed its self check; empty otherwise."""
    faults = getattr(desk.engine, "faults", ())
    if not faults:
        return ""
    return f'<span class="mm-pill mm-fault" role="alert"><b>Self check failed</b> {escape(" ".join(faults))}</span>'


def welcome_html(regions: bool = True, places: bool = True, free: bool = True) -> str:
    """What the empty talk says: what can be done.

    regions: whether the open model takes any; places: whether its answers have any; free: whether it takes questions of
    one's own, beside its tasks.
    """
    told = ["Answers come with places: each coloured phrase belongs to the box of its colour."] if places else []
    told += ["Drag on the picture to mark a region and call it @1."] if regions else []
    told += [] if free else ["This model has tasks and takes no other questions: choose one below."]
    starters = ["Describe this picture with places.", "Where is the person?"] if places else ["Describe this picture."]
    chips = "".join(
        f'<button type="button" class="mm-button mm-starter" data-text="{escape(text)}">{escape(text)}</button>'
        for text in (*starters, *(["What is @1?"] if regions else []))
    )
    return (
        f'<div class="mm-welcome"><h3>Ask about the picture</h3><p>{" ".join(told)}</p>'
        f'<div class="mm-starters">{chips if free else ""}</div></div>'
    )


def details_html(answer: Answer | None, size: tuple[int, int] | None, seconds: float = 0.0) -> str:
    """The raw answer, every place in pixels with its score, what was left out and why, and the run's counters.

    seconds: length of the talk's clip, for stretches of time.
    """
    if answer is None or size is None:
        return '<p class="mm-quiet">After an answer: its raw text, its places in pixels, and what was left out.</p>'
    rows = _rows(
        (
            f'<i class="mm-swatch" style="--mark:{colour(index)}"></i>'
            + (escape(answer.text[span.start : span.end]) or "–"),
            _pixels(place, size),
            _number(_at(answer.scores[index : index + 1], number), ".2f"),
            _number(_at((span.regions,), number), "d"),
        )
        for index, span in enumerate(answer.spans)
        for number, place in enumerate(span.places)
    )
    rows += _rows(
        (
            f'<i class="mm-swatch" style="--mark:{colour(len(answer.spans) + number)}"></i>'
            + (escape(answer.text[moment.start : moment.end]) or "–"),
            "{:.2f}–{:.2f} s".format(*moment.within(seconds)) if seconds else f"{moment.first:g}–{moment.last:g}",
            "–",
            "–",
        )
        for number, moment in enumerate(answer.moments)
    )
    dropped = _rows(
        (
            f"{item.start}–{item.end}",
            f"<code>{escape(answer.raw[item.start : item.end])}</code>",
            escape(item.reason),
        )
        for item in answer.dropped
    )
    notes = _rows((escape(str(name)), escape(str(value))) for name, value in answer.notes)
    return (
        f'<section class="mm-details"><h4>Raw answer</h4><pre class="mm-raw">{escape(answer.raw)}</pre>'
        + _table("Places", "Phrase|Pixels|Score|Candidate", rows, "No places in this answer.")
        + _table("Left out", "Characters|Text|Reason", dropped, "Nothing was left out.")
        + _table("Notes", "Name|Value", notes, "No notes.")
        + "</section>"
    )


def _rows(rows: Iterable[Sequence[str]]) -> str:
    """Table rows of cells that are escaped already."""
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


def _table(title: str, heads: str, rows: str, none: str) -> str:
    if not rows:
        return f'<h4>{title}</h4><p class="mm-quiet">{none}</p>'
    cells = "".join(f"<th>{head}</th>" for head in heads.split("|"))
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    return f'{f"<h4>{title}</h4>" if title else ""}<div class="mm-scroll">{table}</div>'


def _at(rows: Sequence[Sequence[float | None]], number: int) -> float | None:
    """That entry of the first row, or None where row or entry is missing."""
    return rows[0][number] if rows and number < len(rows[0]) else None


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _pixels(place: Place, size: tuple[int, int]) -> str:
    if isinstance(place, Point):
        return f"{place.x * size[0]:.0f}, {place.y * size[1]:.0f}"
    x0, y0, x1, y1 = outline(place).pixels(size)
    kind = (
        ""
        if isinstance(place, Box)
        else f" (outline of {len(place.points)} points)"
        if isinstance(place, Polygon)
        else " (mask)"
    )
    return f"{x0:.0f}, {y0:.0f} – {x1:.0f}, {y1:.0f}{kind}"


def indexed_html(desk: Desk) -> str:
    """Which pictures of the user's a model answers with; "" for one that does not."""
    searching = getattr(desk.engine, "searching", None)
    if not desk.engine.family.retrieves:
        return ""
    state = searching.state if searching is not None else "No pictures of yours are known to it."
    return f'<h4>Your pictures</h4><p class="mm-quiet">{escape(state)}</p>'


def models_html(rows: Sequence[Mapping[str, Any]], opened: str) -> str:
    """The models there are: the open one and those that can be opened; folded away, those that lack their weights."""
    here, away = [], []
    for row in rows:
        name, missing = str(row.get("name", "")), _missing(row)
        what = escape(str(row.get("about") or row.get("title") or "")) + _unverified(str(row.get("unverified") or ""))
        if missing and name != opened:
            away.append((f"<b>{escape(name)}</b>", what, f"<small>{escape(missing)}</small>"))
        else:
            here.append((f"<b>{escape(name)}</b>", what, "open" if name == opened else "ready"))
    table = _table("Models here", "Name|What it is|State", _rows(here), "Only the open model is known.")
    if not away:
        return table
    others = f"{len(away)} others, whose files are not here" if here else f"{len(away)}, whose files are not here"
    return (
        f'{table}<details class="mm-away"><summary>{others}</summary>'
        f"{_table('', 'Name|What it is|What is missing', _rows(away), '')}</details>"
    )


def _missing(row: Mapping[str, Any]) -> str:
    """What keeps a model of the list from being opened; empty for one that is ready."""
    missing = row.get("missing")
    return ", ".join(map(str, missing)) if isinstance(missing, list | tuple) else str(missing or "")


def model_names(rows: Sequence[Mapping[str, Any]], opened: str) -> list[str]:
    """What the choice of models may be: those listed, the open one among them."""
    names = [str(row["name"]) for row in rows if row.get("name")]
    return names if opened in names else [opened, *names]


def model_choices(rows: Sequence[Mapping[str, Any]], opened: str) -> list[tuple[str, str]]:
    """(what to read, name) of each, those that can be opened first."""
    away = {str(row.get("name", "")) for row in rows if _missing(row)} - {opened}
    names = sorted(model_names(rows, opened), key=lambda name: name in away)
    return [(f"{name} (not here)" if name in away else name, name) for name in names]


def heat_map(painted: Image.Image, kind: str, about: str, cache: str) -> HeatMap:
    """A heat map with its caption, ready for the browser."""
    subject = f", about {about.strip()}" if about.strip() else ""
    note = str(painted.info.get("note") or f"{kind}{subject}")
    return HeatMap(
        image=shown_copy(painted, cache),
        note=note,
        scale="pca" not in kind.lower() and "component" not in kind,
        picture=str(painted.info.get("picture", "")),
    )


def opening_html(name: str, share: float = 0.0) -> str:
    """What stands while a model is read. share: of its bytes that were read, 0 to 1."""
    return (
        f'<p class="mm-opening"><span class="mm-caret"></span>Opening {escape(name)} … '
        f'<progress max="100" value="{100 * share:.0f}" aria-label="Opening {escape(name)}">{share:.0%}</progress> '
        f"{share:.0%}</p>"
    )


HELP = """<section class="mm-details"><h4>With the mouse or a finger</h4>
<p>The tools are those that the open model has a use for: a box or a line by dragging, a point by a click, an outline by
clicks on its corners (the first corner or a double click closes it), a painted shape with the brush, and one to move
what is drawn. A model that takes fewer is asked about the box around a shape. Click a place of the answer to light its
phrase, a phrase to keep only its places; click again to see all.</p>
<h4>With the keyboard</h4><div class="mm-scroll"><table><tbody>
<tr><td><kbd>Tab</kbd></td><td>to the picture, then <kbd>Enter</kbd> for a drawing cross</td></tr>
<tr><td><kbd>← ↑ → ↓</kbd></td>
<td>move the cross or the selected region; with <kbd>Shift</kbd> finer, or size the region</td></tr>
<tr><td><kbd>Enter</kbd></td><td>set a corner, put the pen or brush down and lift it; twice in one place closes an
outline; <kbd>P</kbd> a point; <kbd>[</kbd> <kbd>]</kbd> the size of the brush</td></tr>
<tr><td><kbd>Delete</kbd> <kbd>Ctrl Z</kbd> <kbd>Esc</kbd></td>
<td>delete the selected region, undo, let go</td></tr>
<tr><td><kbd>Enter</kbd> in the question</td><td>send; <kbd>Shift Enter</kbd> a new line</td></tr>
</tbody></table></div>
<h4>Private</h4><p>Pictures and talks stay on the machine that runs this page; nothing is logged and nothing is fetched
from outside.</p></section>"""
