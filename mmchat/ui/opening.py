"""Which model is open: another one is opened from the list or by the page's address, and the page says what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mmchat.desk import Desk
from mmchat.ui import panels, steps, words
from mmchat.ui.layout import Widgets, abilities, chat_html, heat_choice, takes_clips, task_choice
from mmchat.ui.words import Talk

Rows = Sequence[Mapping[str, Any]]
Update = dict[Any, Any]
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {**QUIET, "queue": False}

# The address names the open model, so that a link or a reload opens it again.
ADDRESS = """(name) => { const to = new URL(location); to.searchParams.set('model', name);
    history.replaceState(null, '', to); }"""


@dataclass
class Opened:
    """The name of the model on the desk, as the list of models calls it; one for all who look at the page."""

    name: str


def wire(
    on: Widgets,
    desk: Desk,
    opened: Opened,
    rows: Callable[[], Rows],
    open_model: Callable[[str, str, Callable[[int, int], None]], object] | None,
) -> None:
    """What the list of models, its button and the address do; None for `open_model` leaves the first one open."""

    def opening(name: str, precision: str, failures: Any) -> Iterator[Update]:
        """Progress, then what the page says of the model that is open in the end; every talk stays."""
        yield {on.state: panels.opening_html(name), on.notice: ""}
        failure = ""
        try:
            assert open_model is not None
            with closing(steps.opening(open_model, name, precision)) as growing:
                for share in growing:
                    yield {on.state: panels.opening_html(name, share)}
            opened.name = name
        except Exception as error:
            failure = words.failure(error, f"{name} was not opened")
        now = {**known(on, desk, opened, rows), on.holder: None}
        now[failures] = failure + now.get(failures, "")
        yield now

    def open_it(name: str, precision: str) -> Iterator[Update]:
        yield from opening(name, precision, on.state)

    def addressed(request: gr.Request) -> Iterator[Update]:
        """?model=NAME in the page's address opens that model."""
        name = request.query_params.get("model", "")
        if not name or name == opened.name:
            yield {on.name: gr.skip()}  # nothing: the first question may have been asked meanwhile, and refused
        elif name not in panels.model_names(rows(), opened.name):
            yield {on.notice: words.card(f"There is no model {name[:80]!r}: choose one in the Model tab.")}
        else:
            yield from opening(name, "auto", on.notice)

    def welcomed(talk: Talk) -> str:
        """An empty talk says what can be asked of the model that is open now."""
        return chat_html(desk, talk)

    about = told(on)
    loaded = gr.on(None, lambda: known(on, desk, opened, rows), None, about, **AT_ONCE)  # when the page is loaded
    if open_model is not None:
        changed = [*about, on.holder, on.notice]
        pressed = on.load.click(open_it, [on.name, on.precision], changed, **MODEL, **QUIET)
        pressed.then(None, [on.name], None, js=ADDRESS)
        pressed.then(welcomed, [on.talk], [on.chat], **AT_ONCE)
        loaded = loaded.then(addressed, None, changed, **MODEL, **QUIET)
    loaded.then(welcomed, [on.talk], [on.chat], **AT_ONCE)


def known(on: Widgets, desk: Desk, opened: Opened, rows: Callable[[], Rows]) -> Update:
    """What the page says about the open model, as it is now: another user may have opened another one."""
    listed = rows()
    choices = panels.model_choices(listed, opened.name)
    return {
        on.head: panels.head_html(desk, opened.name), on.task: gr.update(**task_choice(desk)),
        on.kind: gr.update(**heat_choice(desk)), on.name: gr.update(choices=choices, value=opened.name),
        on.state: panels.models_html(listed, opened.name), on.abilities: abilities(desk),
        on.knows: at_hand(desk, opened), on.clips: gr.update(visible=takes_clips(desk)),
        on.own: gr.update(visible=bool(desk.engine.family.retrieves)), on.indexed: panels.indexed_html(desk),
    }  # fmt: skip


def told(on: Widgets) -> list[Any]:
    """What `known` writes."""
    return [on.head, on.task, on.kind, on.name, on.state, on.abilities, on.knows, on.clips, on.own, on.indexed]


def at_hand(desk: Desk, opened: Opened) -> str:
    """The open model, so that a page can tell whether it knows of it."""
    return f"{opened.name}, {desk.engine.family.name}, {desk.engine.precision}"
