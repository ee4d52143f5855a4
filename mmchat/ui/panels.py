"""What stands around picture and talk: the head of the page, the heat map's holder, details of an answer, the list of models.

All text from models, files and users is escaped; the tags are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from PIL import Image

from mmchat.desk import Answer, Desk
from mmchat.geometry import Box, Place, Point
from mmchat.ui.canvas import ASSETS, shown_copy
from mmchat.ui.words import colour

HEATS = {
    "before": "Feature norm before the fuser",
    "after": "Feature norm after the fuser",
    "norm": "Feature norm",
    "pca": "First components (colours)",
    "likeness": "Likeness to a region",
    "fuser": "Fuser levels",
    "attention": "Attention of the answer",
    "lens": "Logit lens",
}  # fmt: skip
PRECISIONS = [("Automatic", "auto"), ("Full", "fp32"), ("NF4 (4 bit)", "nf4")]


class HeatMap(GradioModel):
    """A painted picture and one sentence of what it shows; `scale`: whether low and high are told by colour."""

    image: FileData | None = None
    note: str = ""
    scale: bool = True


class HeatHolder(gr.HTML):
    """Carries a heat map to the browser, which lays it over the picture."""

    data_model = HeatMap

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            html_template='<div class="mm-heat-note"></div>',
            js_on_load=(ASSETS / "heat.js").read_text("utf-8"),
            apply_default_css=False,
            **kwargs,
        )

    def preprocess(self, payload: HeatMap | None) -> HeatMap | None:
        return payload

    def postprocess(self, value: HeatMap | None) -> HeatMap | None:
        return value

    def api_info(self) -> dict[str, Any]:
        return self.data_model.model_json_schema()


def heat_choices(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(what to read, the family's own name) for each kind of heat map it gives."""
    return [(HEATS.get(kind, kind.replace("_", " ").replace(":", ": ").capitalize()), kind) for kind in kinds]


def head_html(desk: Desk) -> str:
    """Name of the page, the open model with its precision, and one honest sentence about it."""
    family = desk.engine.family
    return (
        '<header class="mm-head"><h1>mmchat</h1>'
        f'<span class="mm-pill"><b>{escape(family.title)}</b> {escape(desk.engine.precision)}</span>'
        f'<span class="mm-about">{escape(family.about)}</span></header>'
    )


def welcome_html(desk: Desk) -> str:
    """What the empty talk says: what can be done, and what to expect of the model."""
    starters = ["Describe this picture with places.", "Where is the person?", "What is @1?"]
    chips = "".join(
        f'<button type="button" class="mm-button mm-starter" data-text="{escape(text)}">{escape(text)}</button>' for text in starters
    )
    return (
        '<div class="mm-welcome"><h3>Ask about the picture</h3><p>Answers come with places: each coloured phrase belongs to the box of'
        " its colour. Drag on the picture to mark a region and call it @1.</p>"
        f'<div class="mm-starters">{chips}</div><p class="mm-quiet">{escape(desk.engine.family.about)}</p></div>'
    )


def details_html(answer: Answer | None, size: tuple[int, int] | None) -> str:
    """The raw answer, every place in pixels with its score, what was left out and why, and the run's counters."""
    if answer is None or size is None:
        return '<p class="mm-quiet">Ask something: the raw answer, its places in pixels, and what was left out stand here.</p>'
    places = [
        (index, answer.text[span.start : span.end], place, _score(answer, index, number), _region(span.regions, number))
        for index, span in enumerate(answer.spans)
        for number, place in enumerate(span.places)
    ]
    rows = "".join(
        f'<tr><td><i class="mm-swatch" style="--mark:{colour(index)}"></i>{escape(phrase) or "–"}</td><td>{_pixels(place, size)}</td>'
        f"<td>{'–' if score is None else f'{score:.2f}'}</td><td>{'–' if region is None else region}</td></tr>"
        for index, phrase, place, score, region in places
    )
    dropped = "".join(
        f"<tr><td>{item.start}–{item.end}</td><td><code>{escape(answer.raw[item.start : item.end])}</code></td><td>{escape(item.reason)}</td></tr>"
        for item in answer.dropped
    )
    notes = "".join(f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in answer.notes)
    return (
        f'<section class="mm-details"><h4>Raw answer</h4><pre class="mm-raw">{escape(answer.raw)}</pre>'
        + _table("Places", "Phrase|Pixels|Score|Candidate", rows, "No places in this answer.")
        + _table("Left out", "Characters|Text|Reason", dropped, "Nothing was left out.")
        + _table("Notes", "Name|Value", notes, "No notes.")
        + "</section>"
    )


def _table(title: str, heads: str, rows: str, none: str) -> str:
    if not rows:
        return f'<h4>{title}</h4><p class="mm-quiet">{none}</p>'
    cells = "".join(f"<th>{head}</th>" for head in heads.split("|"))
    return f'<h4>{title}</h4><div class="mm-scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'


def _score(answer: Answer, index: int, number: int) -> float | None:
    row = answer.scores[index] if index < len(answer.scores) else ()
    return row[number] if number < len(row) else None


def _region(regions: Sequence[int | None], number: int) -> int | None:
    return regions[number] if number < len(regions) else None


def _pixels(place: Place, size: tuple[int, int]) -> str:
    width, height = size
    if isinstance(place, Box):
        return f"{place.x0 * width:.0f}, {place.y0 * height:.0f} – {place.x1 * width:.0f}, {place.y1 * height:.0f}"
    if isinstance(place, Point):
        return f"{place.x * width:.0f}, {place.y * height:.0f}"
    return f"outline of {len(place.points)} points"


def models_html(rows: Sequence[Mapping[str, Any]], opened: str) -> str:
    """The models there are: which is open, which lack their weights."""
    lines = []
    for row in rows:
        name = str(row.get("name", ""))
        missing = row.get("missing")
        state = "open" if name == opened else "not here" if missing else "ready"
        why = f": {', '.join(map(str, missing))}" if isinstance(missing, list | tuple) and missing else f": {missing}" if missing else ""
        about = str(row.get("about") or row.get("title") or "")
        lines.append(
            f"<tr><td><b>{escape(name)}</b></td><td>{escape(about)}</td><td>{state}<small>{escape(why)}</small></td></tr>"
        )
    return _table("Models here", "Name|What it is|State", "".join(lines), "Only the open model is known.")


def model_names(rows: Sequence[Mapping[str, Any]], opened: str) -> list[str]:
    """What the choice of models offers: those listed, the open one among them."""
    names = [str(row["name"]) for row in rows if row.get("name")]
    return names if opened in names else [opened, *names]


def heat_map(painted: Image.Image, kind: str, about: str, cache: str) -> HeatMap:
    """A heat map with its caption, ready for the browser."""
    subject = f", about {about.strip()}" if about.strip() else ""
    return HeatMap(image=shown_copy(painted, cache), note=f"{HEATS.get(kind, kind)}{subject}", scale="pca" not in kind)


def opening_html(name: str) -> str:
    """What stands while a model is read."""
    return f'<p class="mm-opening"><span class="mm-caret"></span>Opening {escape(name)} …</p>'


HELP = """<section class="mm-details"><h4>With the mouse or a finger</h4>
<p>Drag draws a box, the second tool places a point, the third moves what is drawn. Click a box of the answer to light its phrase,
a phrase to keep only its boxes; click again to see all.</p>
<h4>With the keyboard</h4><div class="mm-scroll"><table><tbody>
<tr><td><kbd>Tab</kbd></td><td>to the picture, then <kbd>Enter</kbd> for a drawing cross</td></tr>
<tr><td><kbd>← ↑ → ↓</kbd></td><td>move the cross or the selected region; with <kbd>Shift</kbd> finer, or size the region</td></tr>
<tr><td><kbd>Enter</kbd></td><td>set a corner; <kbd>P</kbd> a point</td></tr>
<tr><td><kbd>Delete</kbd> <kbd>Ctrl Z</kbd> <kbd>Esc</kbd></td><td>delete the selected region, undo, let go</td></tr>
<tr><td><kbd>Enter</kbd> in the question</td><td>send; <kbd>Shift Enter</kbd> a new line</td></tr></tbody></table></div>
<h4>Private</h4><p>Pictures and talks stay on the machine that runs this page; nothing is logged and nothing is fetched from outside.</p></section>"""
