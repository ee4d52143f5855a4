"""The page: layout, wiring, and how it is launched. `build(desk)` returns it, so tests build it on a replay desk.

What a press of a button does stands in `steps`; here it meets widgets. Every event that touches the model shares one queue id
with one place in it, so two users never speak to the model at once; a session holds its talk and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.desk import Desk, Limits
from mmchat.ui import api, files, panels, steps, words
from mmchat.ui.canvas import ASSETS, PictureCanvas, Surface, examples_in, surface_of, thumbnails
from mmchat.ui.words import Talk

Rows = Sequence[Mapping[str, Any]]
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
log = logging.getLogger("mmchat.page")


def launch_options() -> dict[str, Any]:
    """What `launch()` and `mount_gradio_app` of the page want: looks, limits, and nothing that reaches outside this machine."""
    ramp = gr.themes.colors.teal
    theme = gr.themes.Base(
        primary_hue=ramp,
        neutral_hue=gr.themes.colors.slate,
        radius_size="md",
        font=("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"),
    )
    return {
        "theme": theme,
        "css": (ASSETS / "page.css").read_text("utf-8"),
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "max_file_size": "64mb",
    }


def build(
    desk: Desk,
    *,
    models: Rows | Callable[[], Rows] = (),
    open_model: Callable[[str, str], object] | None = None,
    read: Callable[..., dict[str, Any]] | None = None,
    examples: str | Path | None = ASSETS / "examples",
) -> gr.Blocks:
    """The whole page on one desk.

    models: rows of the `models` command ({"name", "about", "missing", ...}) or a function that gives them now.
    open_model(name, precision): puts another engine on the same desk, or raises ValueError; None hides the choice.
    read(dialect, text, size, fit, candidates): the `read` command's JSON, for the endpoint /read; None leaves it out.
    examples: a folder of example pictures; may be empty or missing.
    """
    paths = examples_in(Path(examples) if examples is not None else None)

    def rows() -> Rows:
        return models() if callable(models) else models

    with gr.Blocks(title="mmchat", analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as page:
        talk = gr.State(())
        head = gr.HTML(panels.head_html(desk), apply_default_css=False, elem_id="mm-head")
        with gr.Row(elem_id="mm-main"):
            with gr.Column(elem_id="mm-left"):
                picture_notice = gr.HTML("", apply_default_css=False, elem_classes="mm-notice")
                canvas = PictureCanvas(elem_id="mm-canvas", label="Picture", examples=thumbnails(paths))
            with gr.Column(elem_id="mm-right"):
                chat = gr.HTML(
                    _chat(desk, ()), apply_default_css=False, elem_id="mm-chat", js_on_load=(ASSETS / "talk.js").read_text("utf-8")
                )
                notice = gr.HTML("", apply_default_css=False, elem_classes="mm-notice")
                task = gr.Radio(**_tasks(desk), container=False, show_label=False, elem_id="mm-tasks", label="What to do")
                with gr.Row(elem_id="mm-ask"):
                    question = gr.Textbox(
                        placeholder="Ask about the picture; @1 means region 1", lines=1, max_lines=6, container=False, show_label=False,
                        elem_id="mm-question", label="Question", scale=1,
                    )  # fmt: skip
                    send = gr.Button("Send", variant="primary", elem_id="mm-send", scale=0, min_width=76)
                    stop = gr.Button("Stop", variant="stop", elem_id="mm-stop", scale=0, min_width=76, visible=False)
                with gr.Row(elem_id="mm-after"):
                    retry = gr.Button("Try again", size="sm", elem_id="mm-retry", scale=0, min_width=0)
                    back = gr.Button("Take back", size="sm", elem_id="mm-back", scale=0, min_width=0)
                    new = gr.Button("New chat", size="sm", elem_id="mm-new", scale=0, min_width=0)
            with gr.Column(elem_id="mm-below"), gr.Tabs():
                with gr.Tab("Heat", elem_id="mm-tab-heat"):
                    with gr.Row(elem_classes="mm-form"):
                        kind = gr.Dropdown(**_heats(desk), label="Kind", elem_id="mm-heat-kind", scale=2, min_width=160)
                        about = gr.Textbox(label="About", placeholder="@1 or a phrase", elem_id="mm-heat-about", scale=1, min_width=110)
                        opacity = gr.Slider(0, 1, 0.7, step=0.05, label="Opacity", elem_id="mm-opacity", scale=1, min_width=130)
                    with gr.Row(elem_classes="mm-form"):
                        warm = gr.Button("Show", variant="primary", size="sm", elem_id="mm-heat-show", scale=0, min_width=90)
                        cool = gr.Button("Hide", size="sm", elem_id="mm-heat-hide", scale=0, min_width=90)
                    holder = panels.HeatHolder(elem_id="mm-heat")
                with gr.Tab("Details", elem_id="mm-tab-details"):
                    details = gr.HTML(panels.details_html(None, None), apply_default_css=False, elem_id="mm-details")
                with gr.Tab("Save", elem_id="mm-tab-save"):
                    gr.HTML('<p class="mm-quiet">The last answer with its places, as a file.</p>', apply_default_css=False)
                    with gr.Row(elem_classes="mm-form"):
                        form = gr.Dropdown(
                            list(files.FORMS), value=next(iter(files.FORMS)), label="Format", elem_id="mm-save-form", min_width=160
                        )
                        save = gr.Button("Download", variant="primary", size="sm", elem_id="mm-save", scale=0, min_width=110)
                    made = gr.DownloadButton("File", visible="hidden", elem_id="mm-file")
                with gr.Tab("Model", elem_id="mm-tab-model"):
                    with gr.Row(elem_classes="mm-form", visible=open_model is not None):
                        name = gr.Dropdown(
                            panels.model_names(rows(), desk.engine.family.name), value=desk.engine.family.name, label="Model",
                            elem_id="mm-model-name", min_width=140,
                        )  # fmt: skip
                        precision = gr.Radio(panels.PRECISIONS, value="auto", label="Precision", elem_id="mm-model-precision")
                        load = gr.Button("Open", variant="primary", size="sm", elem_id="mm-model-open", scale=0, min_width=90)
                    state = gr.HTML(panels.models_html(rows(), desk.engine.family.name), apply_default_css=False, elem_id="mm-models")
                    with gr.Accordion("How it speaks", open=False):
                        longest = gr.Slider(16, 1024, 256, step=16, label="Longest answer (tokens)")
                        heat_of_choice = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: always the likeliest word)")
                        seed = gr.Number(0, precision=0, label="Seed")
                with gr.Tab("Help", elem_id="mm-tab-help"):
                    gr.HTML(panels.HELP, apply_default_css=False)
        api.endpoints(desk, rows, read, MODEL)

        def cleared(surface: Surface | None, card: str = "") -> dict[Any, Any]:
            """Everything as at the beginning, with this on the surface."""
            return {
                canvas: surface, talk: (), chat: _chat(desk, ()), notice: "", picture_notice: card, holder: None,
                details: panels.details_html(None, None), send: gr.update(visible=True), stop: gr.update(visible=False),
            }  # fmt: skip

        def laid(path: str | None, orig_name: str | None = None) -> dict[Any, Any]:
            try:
                return cleared(surface_of(path, canvas.GRADIO_CACHE, orig_name) if path else None)
            except Exception as error:
                return cleared(None, _card(error, "This picture cannot be used"))

        def picture_came(surface: Surface | None) -> dict[Any, Any]:
            return laid(surface.image.path, surface.image.orig_name) if surface and surface.image else laid(None)

        def example_taken(event: gr.EventData) -> dict[Any, Any]:
            index = getattr(event, "index", None)
            if not isinstance(index, int) or not 0 <= index < len(paths):
                return cleared(None, words.card("There is no such example: reload the page."))
            return laid(str(paths[index]), paths[index].name)

        def asked(surface: Surface | None, said: Talk, text: str, chosen: str | None) -> dict[Any, Any]:
            try:
                said = steps.begin(desk, surface, said, text, chosen)
            except Exception as error:
                return {notice: _card(error)}
            return {**_waiting(said), question: ""}

        def asked_again(said: Talk) -> dict[Any, Any]:
            try:
                return _waiting(steps.again(said))
            except Exception as error:
                return {notice: _card(error)}

        def _waiting(said: Talk) -> dict[Any, Any]:
            hidden = {send: gr.update(visible=False), stop: gr.update(visible=True)}
            return {talk: said, chat: _chat(desk, said), notice: "", **hidden}

        def spoken(surface: Surface | None, said: Talk, tokens: float, temperature: float, number: float | None) -> Iterator[dict[Any, Any]]:
            limits = Limits(new_tokens=int(tokens), temperature=float(temperature), seed=int(number or 0))
            now = said
            try:
                for now in steps.speak(desk, surface, said, limits):
                    yield {talk: now, chat: _chat(desk, now)}
            except Exception as error:
                now = steps.settled(now, "failed")
                yield {talk: now, chat: _chat(desk, now), notice: _card(error)}

        def settled(surface: Surface | None, said: Talk) -> dict[Any, Any]:
            said = steps.settled(said)
            size = (surface.size[0], surface.size[1]) if surface and surface.size else None
            return {
                talk: said, chat: _chat(desk, said), details: panels.details_html(steps.last_answer(said), size),
                send: gr.update(visible=True), stop: gr.update(visible=False),
            }  # fmt: skip

        def taken_back(said: Talk) -> dict[Any, Any]:
            if not said or said[-1].running:
                return {notice: words.card("There is no finished question to take back.")}
            return {talk: said[:-1], chat: _chat(desk, said[:-1]), question: said[-1].shown, notice: ""}

        def warmed(surface: Surface | None, said: Talk, which: str | None, subject: str) -> dict[Any, Any]:
            try:
                painted = steps.heat(desk, surface, said, which, subject)
            except Exception as error:
                return {holder: None, picture_notice: _card(error, "No heat map")}
            return {holder: panels.heat_map(painted, which or "", subject, holder.GRADIO_CACHE), picture_notice: ""}

        def saved(surface: Surface | None, said: Talk, which: str) -> dict[Any, Any]:
            try:
                return {made: files.save(desk, surface, said, which, made.GRADIO_CACHE), picture_notice: ""}
            except Exception as error:
                return {made: None, picture_notice: _card(error, "Nothing to save")}

        def opened(which: str, how: str) -> Iterator[dict[Any, Any]]:
            yield {state: panels.opening_html(which), notice: ""}
            try:
                assert open_model is not None
                open_model(which, how)
                failure = ""
            except Exception as error:
                failure = _card(error, f"{which} was not opened")
            yield {**known(), talk: (), chat: _chat(desk, ()), holder: None, state: failure + panels.models_html(rows(), desk.engine.family.name)}

        def known() -> dict[Any, Any]:
            """What the page says about the open model, as it is now: another user may have opened another one."""
            return {
                head: panels.head_html(desk), task: gr.update(**_tasks(desk)), kind: gr.update(**_heats(desk)),
                name: gr.update(value=desk.engine.family.name), state: panels.models_html(rows(), desk.engine.family.name),
            }  # fmt: skip

        whole = [canvas, talk, chat, notice, picture_notice, holder, details, send, stop]
        canvas.picture(picture_came, [canvas], whole, queue=False, **QUIET)
        canvas.example(example_taken, None, whole, queue=False, **QUIET)
        growing = [talk, chat, notice, question, send, stop]
        begun = [
            gr.on([send.click, question.submit], asked, [canvas, talk, question, task], growing, queue=False, **QUIET),
            retry.click(asked_again, [talk], growing, queue=False, **QUIET),
        ]
        running = [
            event.then(spoken, [canvas, talk, longest, heat_of_choice, seed], [talk, chat, notice], **MODEL, **QUIET) for event in begun
        ]
        for event in running:
            event.then(settled, [canvas, talk], [talk, chat, details, send, stop], queue=False, **QUIET)
        stop.click(None, None, None, cancels=running, queue=False)
        back.click(taken_back, [talk], [talk, chat, question, notice], queue=False, **QUIET)
        new.click(lambda surface: cleared(surface.model_copy(update={"regions": [], "selected": None}) if surface else None), [canvas], whole, queue=False, cancels=running, **QUIET)
        warm.click(warmed, [canvas, talk, kind, about], [holder, picture_notice], **MODEL, api_visibility="private")
        cool.click(lambda: None, None, [holder], queue=False, **QUIET)
        opacity.input(None, [opacity], None, js="(value) => { document.dispatchEvent(new CustomEvent('mm-opacity', { detail: value })); }")
        save.click(saved, [canvas, talk, form], [made, picture_notice], **MODEL, **QUIET).then(None, [made], None, js=DOWNLOAD)
        if open_model is not None:
            opening = [head, task, kind, name, state, talk, chat, holder, notice]
            load.click(opened, [name, precision], opening, **MODEL, **QUIET)
        page.load(known, None, [head, task, kind, name, state], queue=False, **QUIET)
    page.queue(max_size=32)
    return page


# The hidden button's link is there a moment after its value came.
DOWNLOAD = """(file) => { if (file) setTimeout(() => {
    const found = document.querySelector('#mm-file');
    (found.matches('a, button') ? found : found.querySelector('a, button')).click();
}, 100); }"""


def _chat(desk: Desk, talk: Talk) -> str:
    labels = {task.name: task.label for task in desk.engine.family.template.tasks if task.pattern != "{text}"}
    return words.talk_html(talk, panels.welcome_html(desk), labels)


def _tasks(desk: Desk) -> dict[str, Any]:
    """The family's ways of asking as choices; asking freely comes first where there is such a one."""
    tasks = desk.engine.family.template.tasks
    choices = [(task.label, task.name) for task in tasks]
    free = next((task.name for task in tasks if task.pattern == "{text}"), None)
    return {"choices": choices, "value": free or (choices[0][1] if choices else None), "visible": len(choices) > 1}


def _heats(desk: Desk) -> dict[str, Any]:
    choices = panels.heat_choices(desk.engine.family.heats)
    return {"choices": choices, "value": choices[0][1] if choices else None}


def _card(error: Exception, title: str = "") -> str:
    """A failure as a card; what is not the user's to mend goes to the log with its trace (never a picture, never a question)."""
    if not isinstance(error, ValueError):
        log.exception("a step of the page failed")
    return words.card(error, title)
