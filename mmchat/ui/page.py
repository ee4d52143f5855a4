"""The page: what its widgets do, and how it is launched. `build(desk)` returns it, so tests build it on a replay desk.

What a press of a button means stands in `steps`, where the widgets stand in `layout`; here they meet. Every event that
touches the model shares one queue id with one place in it, so two users never speak to the model at once; a session
holds its talk and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.desk import Desk, Limits
from mmchat.ui import api, files, opening, panels, reel, steps, words
from mmchat.ui.canvas import ASSETS, MOST_PICTURES, Surface, examples_in, sheet_of, sheets_of, surface_of
from mmchat.ui.layout import Widgets, abilities, chat_html, hint, lay_out, task_choice
from mmchat.ui.looks import launch_options
from mmchat.ui.opening import AT_ONCE, MODEL, QUIET, Rows, Update
from mmchat.ui.words import Talk

__all__ = ["build", "launch_options"]

# The hidden button's link is there a moment after its value came.
DOWNLOAD = """(file) => { if (file) setTimeout(() => {
    const found = document.querySelector('#mm-file');
    (found.matches('a, button') ? found : found.querySelector('a, button')).click();
}, 100); }"""
OPACITY = "(value) => { document.dispatchEvent(new CustomEvent('mm-opacity', { detail: value })); }"


class Tries:
    """Which tries at an answer were begun, so that none is spoken twice, and which talks are over.

    A step of a running answer may write its talk just after a new chat emptied it; whoever comes next looks here.
    """

    def __init__(self) -> None:
        self._begun: deque[str] = deque(maxlen=1000)
        self._over: deque[str] = deque(maxlen=1000)

    def begin(self, talk: Talk) -> bool:
        """Whether the last question of the talk may be answered: once, and not when the talk is over."""
        key = talk[-1].key
        if key in self._begun or key in self._over:
            return False
        self._begun.append(key)
        return True

    def end(self, talk: Talk) -> None:
        """The talk is over."""
        if talk:
            self._over.append(talk[-1].key)

    def ended(self, talk: Talk) -> bool:
        return bool(talk) and talk[-1].key in self._over


def build(
    desk: Desk,
    *,
    model: str | None = None,
    models: Rows | Callable[[], Rows] = (),
    open_model: Callable[[str, str, Callable[[int, int], None]], object] | None = None,
    read: Callable[..., dict[str, Any]] | None = None,
    examples: str | Path | None = ASSETS / "examples",
) -> gr.Blocks:
    """The whole page on one desk.

    model: the open model's name in the list of models; its family's where it has none.
    models: rows of the `models` command ({"name", "about", "missing", ...}) or a function that gives them now.
    open_model(name, precision, progress): puts another engine on the same desk, telling progress(bytes read, of all),
    or raises ValueError and leaves the open one; None hides the choice.
    read(dialect, text, size, fit, candidates): the `read` command's JSON, for the endpoint /read; None leaves it out.
    examples: a folder of example pictures; may be empty or missing.
    """
    paths = examples_in(Path(examples) if examples is not None else None)

    opened = opening.Opened(model or desk.engine.family.name)

    def rows() -> Rows:
        return models() if callable(models) else models

    with gr.Blocks(title="mmchat", analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as page:
        on = lay_out(desk, opened.name, rows(), paths, open_model is not None)
        api.endpoints(desk, lambda: opened.name, rows, read, MODEL)
        tries = Tries()
        running = _wire_talk(on, desk, tries, opened, rows)
        _wire_picture(on, desk, paths, tries, running)
        _wire_clip(on, desk)
        _wire_heat_and_files(on, desk, opened)
        _wire_frames(on, desk)
        opening.wire(on, desk, opened, rows, open_model)
    page.queue(max_size=32)
    return page


def _everything(on: Widgets) -> list[Any]:
    return [on.canvas, on.talk, on.chat, on.notice, on.picture_notice, on.holder, on.details, on.send, on.stop]


def _wire_picture(on: Widgets, desk: Desk, paths: list[Path], tries: Tries, running: list[Any]) -> None:
    """A picture comes or goes, or the chat begins anew with it: what is being answered ends."""

    def begun(surface: Surface | None, card: str = "") -> Update:
        return {
            on.canvas: surface, on.talk: (), on.chat: chat_html(desk, ()), on.notice: "", on.picture_notice: card,
            on.holder: None, on.details: panels.details_html(None, None), **_buttons(on, running=False),
        }  # fmt: skip

    def laid(path: str, name: str | None) -> Update:
        try:
            return begun(surface_of(path, on.canvas.GRADIO_CACHE, name))
        except Exception as error:
            return begun(None, words.failure(error, "This picture cannot be used"))

    def came(surface: Surface | None, talk: Talk) -> Update:
        tries.end(talk)
        if surface is None or surface.image is None:
            return begun(None)
        return laid(surface.image.path, surface.image.orig_name)

    def example(talk: Talk, event: gr.EventData) -> Update:
        tries.end(talk)
        index = getattr(event, "index", None)
        if not isinstance(index, int) or not 0 <= index < len(paths):
            return begun(None, words.card("There is no such example: reload the page."))
        return laid(str(paths[index]), paths[index].name)

    def fresh(surface: Surface | None, talk: Talk) -> Update:
        tries.end(talk)
        return begun(surface.model_copy(update={"regions": [], "selected": None}) if surface else None)

    def added(surface: Surface | None) -> Update:
        """Further pictures lie beside the first; one that cannot be opened is left out."""
        if surface is None or surface.image is None:
            return {on.picture_notice: words.card("There is no picture to add to: open one first.")}
        more, card = [], ""
        for sheet in surface.more[: MOST_PICTURES - 1]:
            try:
                if sheet.image is not None and sheet.size is None:
                    sheet = sheet_of(sheet.image.path, on.canvas.GRADIO_CACHE, sheet.image.orig_name)
                more.append(sheet)
            except Exception as error:
                card = words.failure(error, "This picture cannot be used")
        shown = min(surface.shown, len(more))
        return {on.canvas: surface.model_copy(update={"more": more, "shown": shown}), on.picture_notice: card}

    def removed(surface: Surface | None, talk: Talk) -> Update:
        """One of several pictures is gone; a talk that knew it is over."""
        try:
            if steps.goes_on(talk, tuple(sheet.key for sheet in sheets_of(surface))):
                return {on.picture_notice: ""}
        except Exception as error:
            return {on.picture_notice: words.failure(error)}
        tries.end(talk)
        return {widget: value for widget, value in begun(surface).items() if widget is not on.canvas}

    without = [widget for widget in _everything(on) if widget is not on.canvas]
    on.canvas.removed(removed, [on.canvas, on.talk], without, cancels=running, **AT_ONCE)
    on.canvas.added(added, [on.canvas], [on.canvas, on.picture_notice], **AT_ONCE)
    for event, act, inputs in (
        (on.canvas.picture, came, [on.canvas, on.talk]),
        (on.canvas.example, example, [on.talk]),
        (on.new.click, fresh, [on.canvas, on.talk]),
    ):
        event(act, inputs, _everything(on), cancels=running, **AT_ONCE)


def _wire_clip(on: Widgets, desk: Desk) -> None:
    """A video or a sound comes: the next question is also about it."""

    def came(path: str, now: reel.Reel | None) -> Update:
        try:
            brought = reel.reel_of(path)
            if brought.kind not in desk.engine.family.takes:
                raise ValueError(f"{desk.engine.family.title} takes no {brought.kind}s: choose another file.")
            return {on.reel: brought, on.picture_notice: ""}
        except Exception as error:
            # The one that was there, not gr.skip(), which would make the player anew.
            return {
                on.reel: now if now and now.file else None,
                on.picture_notice: words.failure(error, "This clip cannot be used"),
            }

    on.clip.upload(came, [on.clip, on.reel], [on.reel, on.picture_notice], **QUIET)


def _wire_talk(on: Widgets, desk: Desk, tries: Tries, opened: opening.Opened, rows: Callable[[], Rows]) -> list[Any]:
    """A question begins, is answered, settles; the same for another try. Returns the events that Stop cancels."""

    def waiting(talk: Talk) -> Update:
        return {on.talk: talk, on.chat: chat_html(desk, talk), on.notice: "", **_buttons(on, running=True)}

    def asked(surface: Surface | None, talk: Talk, text: str, task: str | None, clip: reel.Reel | None) -> Update:
        try:
            talk = steps.begin(desk, surface, talk, text, task, clip)
            wordless = task is not None and desk.engine.family.template.task(task).needs == ""
            after = gr.update(value=task_choice(desk)["value"]) if wordless else gr.skip()
            return {**waiting(talk), on.question: "", on.task: after}
        except Exception as error:
            return {on.notice: words.failure(error)}

    def asked_again(talk: Talk) -> Update:
        try:
            return waiting(steps.again(talk))
        except Exception as error:
            return {on.notice: words.failure(error)}

    def spoken(
        surface: Surface | None, talk: Talk, clip: reel.Reel | None, tokens: float, warmth: float, seed: float | None,
        pictures: float, readiness: float,
    ) -> Iterator[Update]:  # fmt: skip
        limits = Limits(
            int(tokens), float(warmth), seed=int(seed or 0), pictures=int(pictures), readiness=float(readiness)
        )
        now = talk
        yield {on.talk: talk}  # a generator that gives nothing would empty its outputs
        if not talk or not talk[-1].running or not tries.begin(talk):
            return  # the question was refused: what runs is another one
        try:
            with closing(steps.speak(desk, surface, talk, limits, clip)) as growing:
                for now in growing:
                    if tries.ended(talk):
                        return
                    yield {on.talk: now, on.chat: chat_html(desk, now)}
        except Exception as error:
            now = steps.settled(now, "failed")
            yield {on.talk: now, on.chat: chat_html(desk, now), on.notice: words.failure(error)}

    def settled(surface: Surface | None, talk: Talk, knows: str) -> Update:
        talk = () if tries.ended(talk) else steps.settled(talk)
        head = panels.head_html(desk, opened.name)  # a self check may have failed meanwhile
        news: Update = {on.head: head, on.abilities: abilities(desk)}
        if knows != opening.at_hand(desk, opened):  # somebody else has opened another model
            news = opening.known(on, desk, opened, rows)
        return {
            on.talk: talk, on.chat: chat_html(desk, talk), on.details: _details(surface, talk), **news,
            **_buttons(on, running=False),
        }  # fmt: skip

    def taken_back(talk: Talk) -> Update:
        if not talk or talk[-1].running:
            return {on.notice: words.card("There is no finished question to take back.")}
        left = talk[:-1]
        return {on.talk: left, on.chat: chat_html(desk, left), on.question: talk[-1].shown, on.notice: ""}

    growing = [on.talk, on.chat, on.notice, on.question, on.task, on.send, on.stop]
    begun = [
        gr.on(
            [on.send.click, on.question.submit],
            asked,
            [on.canvas, on.talk, on.question, on.task, on.reel],
            growing,
            **AT_ONCE,
        ),
        on.retry.click(asked_again, [on.talk], growing, **AT_ONCE),
    ]
    limits = [on.longest, on.warmth, on.seed, on.pictures, on.readiness]
    running = [
        event.then(spoken, [on.canvas, on.talk, on.reel, *limits], [on.talk, on.chat, on.notice], **MODEL, **QUIET)
        for event in begun
    ]
    for event in running:
        ended = [on.talk, on.chat, on.details, on.send, on.stop, *opening.told(on)]
        event.then(settled, [on.canvas, on.talk, on.knows], ended, **AT_ONCE)
    on.stop.click(None, None, None, cancels=running, queue=False)
    on.task.change(lambda task: gr.update(placeholder=hint(desk, task)), [on.task], [on.question], **AT_ONCE)
    on.back.click(taken_back, [on.talk], [on.talk, on.chat, on.question, on.notice], **AT_ONCE)
    return running


def _wire_heat_and_files(on: Widgets, desk: Desk, opened: opening.Opened) -> None:
    def warmed(surface: Surface | None, talk: Talk, kind: str | None, about: str, clip: reel.Reel | None) -> Update:
        try:
            painted = steps.heat(desk, surface, talk, kind, about, clip)
        except Exception as error:
            return {on.holder: None, on.picture_notice: words.failure(error, "No heat map")}
        return {on.holder: panels.heat_map(painted, kind or "", about, on.holder.GRADIO_CACHE), on.picture_notice: ""}

    def saved(surface: Surface | None, talk: Talk, form: str) -> Update:
        try:
            return {
                on.file: files.save(surface, talk, form, (opened.name, desk.engine.precision), on.file.GRADIO_CACHE),
                on.picture_notice: "",
            }
        except Exception as error:
            return {on.file: None, on.picture_notice: words.failure(error, "Nothing to save")}

    inputs = [on.canvas, on.talk, on.kind, on.about, on.reel]
    on.warm.click(
        warmed, inputs, [on.holder, on.picture_notice], **MODEL, api_visibility="private", show_progress="minimal"
    )
    on.cool.click(lambda: None, None, [on.holder], **AT_ONCE)
    on.opacity.input(None, [on.opacity], None, js=OPACITY)
    made = on.save.click(saved, [on.canvas, on.talk, on.form], [on.file, on.picture_notice], **QUIET)
    made.then(None, [on.file], None, js=DOWNLOAD)


def _wire_frames(on: Widgets, desk: Desk) -> None:
    def compared(surface: Surface | None, talk: Talk) -> Update:
        try:
            return {on.frames: steps.strip(desk, surface, talk), on.frames_notice: ""}
        except Exception as error:
            return {on.frames: [], on.frames_notice: words.failure(error, "Nothing to compare")}

    def chosen(surface: Surface | None, talk: Talk, event: gr.SelectData) -> Update:
        try:
            talk, name = steps.read_as(desk, surface, talk, int(event.index))
        except Exception as error:
            return {on.frames_notice: words.failure(error)}
        return {
            on.talk: talk, on.chat: chat_html(desk, talk), on.frames_notice: words.said(f"Read as: {name}."),
            on.details: _details(surface, talk),
        }  # fmt: skip

    inputs = [on.canvas, on.talk]
    on.compare.click(compared, inputs, [on.frames, on.frames_notice], **QUIET)
    on.frames.select(chosen, inputs, [on.talk, on.chat, on.details, on.frames_notice], **AT_ONCE)


def _details(surface: Surface | None, talk: Talk) -> str:
    """Of the newest answer, in pixels of the picture that it is about, in seconds of the clip."""
    sheet, last = steps.sheet_of_answer(surface, talk), steps.last_answered(talk)
    about_clip = last is not None and bool(last.clip) and last.picture == last.clip
    size = (sheet.size[0], sheet.size[1]) if sheet and sheet.size else (1, 1) if about_clip else None
    return panels.details_html(steps.last_answer(talk), size, last.seconds if last is not None else 0.0)


def _buttons(on: Widgets, running: bool) -> Update:
    return {on.send: gr.update(visible=not running), on.stop: gr.update(visible=running)}
