"""The page's widgets and where they stand: picture, talk, tabs. What they do is wired in `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.desk import Desk
from mmchat.geometry import KINDS
from mmchat.ui import files, panels, reel
from mmchat.ui.canvas import ASSETS, Abilities, abilities_holder, picture_canvas, thumbnails
from mmchat.ui.words import Talk, talk_html

PLAIN = {"apply_default_css": False}
SMALL = {"size": "sm", "scale": 0}


@dataclass(frozen=True)
class Widgets:
    """Every widget that an event reads or writes."""

    talk: gr.State
    knows: gr.State  # the open model as this page was last told
    head: gr.HTML
    abilities: gr.HTML
    picture_notice: gr.HTML
    canvas: gr.HTML
    clips: gr.Column
    reel: gr.HTML
    clip: gr.UploadButton
    chat: gr.HTML
    notice: gr.HTML
    task: gr.Radio
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    back: gr.Button
    new: gr.Button
    kind: gr.Dropdown
    about: gr.Textbox
    opacity: gr.Slider
    warm: gr.Button
    cool: gr.Button
    holder: gr.HTML
    details: gr.HTML
    compare: gr.Button
    frames: gr.Gallery
    frames_notice: gr.HTML
    form: gr.Dropdown
    save: gr.Button
    file: gr.DownloadButton
    name: gr.Dropdown
    precision: gr.Radio
    load: gr.Button
    state: gr.HTML
    longest: gr.Slider
    warmth: gr.Slider
    seed: gr.Number
    own: gr.Column  # for models that answer with pictures of the user's
    indexed: gr.HTML
    pictures: gr.Slider
    readiness: gr.Slider


def lay_out(desk: Desk, opened: str, rows: Sequence[Mapping[str, Any]], examples: list[Path], choice: bool) -> Widgets:
    """All widgets, inside the page that is being built. opened: the open model; choice: whether it can change."""
    found: dict[str, Any] = {"talk": gr.State(()), "knows": gr.State("")}
    found["head"] = gr.HTML(panels.head_html(desk, opened), elem_id="mm-head", **PLAIN)
    with gr.Row(elem_id="mm-main"):
        with gr.Column(elem_id="mm-left"):
            found["picture_notice"] = gr.HTML("", elem_classes="mm-notice", **PLAIN)
            able = abilities(desk)
            found["canvas"] = picture_canvas(
                elem_id="mm-canvas", label="Picture", examples=thumbnails(examples), able=able.model_dump()
            )
            found |= _clip_widgets(desk)
            found["abilities"] = abilities_holder(able, elem_id="mm-abilities", elem_classes="mm-none")
        with gr.Column(elem_id="mm-right"):
            found |= _talk_widgets(desk)
        with gr.Column(elem_id="mm-below"), gr.Tabs():
            with gr.Tab("Heat", elem_id="mm-tab-heat"):
                found |= _heat_widgets(desk)
            with gr.Tab("Details", elem_id="mm-tab-details"):
                found["details"] = gr.HTML(panels.details_html(None, None), elem_id="mm-details", **PLAIN)
            with gr.Tab("Frames", elem_id="mm-tab-frames"):
                found |= _frame_widgets()
            with gr.Tab("Save", elem_id="mm-tab-save"):
                found |= _save_widgets()
            with gr.Tab("Model", elem_id="mm-tab-model"):
                found |= _model_widgets(opened, rows, choice) | _own_widgets(desk)
            with gr.Tab("Help", elem_id="mm-tab-help"):
                gr.HTML(panels.HELP, **PLAIN)
    return Widgets(**found)


def _talk_widgets(desk: Desk) -> dict[str, Any]:
    script = (ASSETS / "talk.js").read_text("utf-8")
    chat = gr.HTML(chat_html(desk, ()), elem_id="mm-chat", js_on_load=script, **PLAIN)
    notice = gr.HTML("", elem_classes="mm-notice", **PLAIN)
    task = gr.Radio(**task_choice(desk), label="What to do", show_label=False, container=False, elem_id="mm-tasks")
    with gr.Row(elem_id="mm-ask"):
        question = gr.Textbox(
            label="Question", show_label=False, placeholder="Ask about the picture", lines=1, max_lines=6,
            container=False, scale=1, elem_id="mm-question",
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", scale=0, min_width=76, elem_id="mm-send")
        stop = gr.Button("Stop", variant="stop", scale=0, min_width=76, visible=False, elem_id="mm-stop")
    with gr.Row(elem_id="mm-after"):
        retry = gr.Button("Try again", min_width=0, elem_id="mm-retry", **SMALL)
        back = gr.Button("Take back", min_width=0, elem_id="mm-back", **SMALL)
        new = gr.Button("New chat", min_width=0, elem_id="mm-new", **SMALL)
    return {
        "chat": chat, "notice": notice, "task": task, "question": question, "send": send, "stop": stop,
        "retry": retry, "back": back, "new": new,
    }  # fmt: skip


def _clip_widgets(desk: Desk) -> dict[str, Any]:
    # The player's own settings never change: Gradio would make it anew and forget what its value is.
    with gr.Column(visible=takes_clips(desk), elem_id="mm-clips") as clips:
        player = reel.player(elem_id="mm-reel")
        clip = gr.UploadButton("Add a video or a sound", file_types=["video", "audio"], elem_id="mm-clip", **SMALL)
    return {"clips": clips, "reel": player, "clip": clip}


def _heat_widgets(desk: Desk) -> dict[str, Any]:
    with gr.Row(elem_classes="mm-form"):
        kind = gr.Dropdown(**heat_choice(desk), label="Kind", scale=2, min_width=160, elem_id="mm-heat-kind")
        about = gr.Textbox(label="About", placeholder="@1 or a phrase", scale=1, min_width=150, elem_id="mm-heat-about")
        opacity = gr.Slider(0, 1, 0.8, step=0.05, label="Opacity", scale=1, min_width=130, elem_id="mm-opacity")
    with gr.Row(elem_classes="mm-form"):
        warm = gr.Button("Show", variant="primary", min_width=90, elem_id="mm-heat-show", **SMALL)
        cool = gr.Button("Hide", min_width=90, elem_id="mm-heat-hide", **SMALL)
    holder = panels.heat_holder(elem_id="mm-heat")
    return {"kind": kind, "about": about, "opacity": opacity, "warm": warm, "cool": cool, "holder": holder}


def _frame_widgets() -> dict[str, Any]:
    gr.HTML(
        '<p class="mm-quiet">Boxes beside their things? The same numbers in other scales, frames and orders: '
        "choose the one that fits, and the answer is drawn so.</p>",
        **PLAIN,
    )
    compare = gr.Button("Compare", variant="primary", min_width=110, elem_id="mm-frames-compare", **SMALL)
    notice = gr.HTML("", elem_classes="mm-notice", elem_id="mm-frames-notice", **PLAIN)
    frames = gr.Gallery(
        label="Frames", show_label=False, columns=3, object_fit="contain", height="auto", allow_preview=False,
        interactive=False, buttons=[], elem_id="mm-frames",
    )  # fmt: skip
    return {"compare": compare, "frames": frames, "frames_notice": notice}


def _save_widgets() -> dict[str, Any]:
    gr.HTML('<p class="mm-quiet">The last answer with its places, as a file.</p>', **PLAIN)
    with gr.Row(elem_classes="mm-form"):
        form = gr.Dropdown(list(files.FORMS), label="Format", min_width=160, elem_id="mm-save-form")
        save = gr.Button("Download", variant="primary", min_width=110, elem_id="mm-save", **SMALL)
    return {"form": form, "save": save, "file": gr.DownloadButton("File", visible="hidden", elem_id="mm-file")}


def _model_widgets(opened: str, rows: Sequence[Mapping[str, Any]], choice: bool) -> dict[str, Any]:
    with gr.Row(elem_classes="mm-form", visible=choice):
        name = gr.Dropdown(
            panels.model_choices(rows, opened), value=opened, label="Model", min_width=140, elem_id="mm-model-name"
        )
        precision = gr.Radio(panels.PRECISIONS, value="auto", label="Precision", elem_id="mm-model-precision")
        load = gr.Button("Open", variant="primary", min_width=90, elem_id="mm-model-open", **SMALL)
    state = gr.HTML(panels.models_html(rows, opened), elem_id="mm-models", **PLAIN)
    with gr.Accordion("How it speaks", open=False):
        longest = gr.Slider(16, 1024, 256, step=16, label="Longest answer (tokens)")
        warmth = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: always the likeliest word)")
        seed = gr.Number(0, precision=0, label="Seed")
    return {
        "name": name, "precision": precision, "load": load, "state": state, "longest": longest, "warmth": warmth,
        "seed": seed,
    }  # fmt: skip


def _own_widgets(desk: Desk) -> dict[str, Any]:
    with gr.Column(visible=bool(desk.engine.family.retrieves), elem_id="mm-own") as own:
        indexed = gr.HTML(panels.indexed_html(desk), elem_id="mm-indexed", **PLAIN)
        with gr.Row(elem_classes="mm-form"):
            pictures = gr.Slider(0, 9, 3, step=1, label="Pictures at a time", min_width=150)
            readiness = gr.Slider(
                0, 3, 1, step=0.1, label="Readiness (1: as trained)", min_width=150
            )  # fmt: skip
    return {"own": own, "indexed": indexed, "pictures": pictures, "readiness": readiness}


def chat_html(desk: Desk, talk: Talk) -> str:
    """The talk as the page shows it, or how to begin one."""
    family = desk.engine.family
    labels = {task.name: task.label for task in family.template.tasks if task.pattern != "{text}"}
    places = any(getattr(dialect, "forms", True) for dialect in (family.dialect, *family.dialects.values()))
    tasks = family.template.tasks
    free = not tasks or any(task.name == "free" or task.pattern == "{text}" for task in tasks)
    return talk_html(talk, panels.welcome_html(bool(family.takes & set(KINDS)), places, free), labels)


def abilities(desk: Desk) -> Abilities:
    """What the open model takes, for the drawing surface."""
    family = desk.engine.family
    return Abilities(takes=sorted(family.takes), title=family.title)


def task_choice(desk: Desk) -> dict[str, Any]:
    """The family's ways of asking, with asking freely chosen where there is such a one."""
    tasks = desk.engine.family.template.tasks
    choices = [(task.label, task.name) for task in tasks]
    free = next((task.name for task in tasks if task.pattern == "{text}"), None)
    return {"choices": choices, "value": free or (choices[0][1] if choices else None), "visible": len(choices) > 1}


def hint(desk: Desk, name: str | None) -> str:
    """What stands in the empty question box while that way of asking is chosen."""
    task = next((task for task in desk.engine.family.template.tasks if task.name == name), None)
    if task is None or task.pattern == "{text}":
        return "Ask about the picture"
    return {
        "": f"{task.label}: press Send, no words are needed",
        "phrase": f"{task.label}: what, in your words",
        "region": f"{task.label}: draw a region, then press Send",
    }[task.needs]


def takes_clips(desk: Desk) -> bool:
    """Whether the open model takes videos or sounds."""
    return bool(desk.engine.family.takes & set(reel.KINDS))


def heat_choice(desk: Desk) -> dict[str, Any]:
    """The kinds of heat map that the open model gives."""
    choices = panels.heat_choices(desk.engine.family.heats)
    return {"choices": choices, "value": choices[0][1] if choices else None}
