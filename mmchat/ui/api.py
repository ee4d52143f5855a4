"""The page's named endpoints /ask, /read and /models: the same JSON as the commands of those names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from mmchat.clip import Clip, is_clip, open_clip
from mmchat.desk import Answer, Ask, Desk, Limits, Turn, check_pictures
from mmchat.export import answer_json
from mmchat.geometry import Region, open_image, region_on
from mmchat.ui.canvas import MOST_PICTURES

HIDDEN = {"visible": False}
Json = dict[str, Any]


def endpoints(
    desk: Desk,
    name: Callable[[], str],
    models: Callable[[], Sequence[Mapping[str, Any]]],
    read: Callable[..., Json] | None,
    queue: Mapping[str, Any],
) -> None:
    """Adds the endpoints to the page that is being built.

    name: the open model's now; queue: id and limit of the events that touch the model.
    """

    def ask(
        image: str | None,
        text: str,
        regions: list[Any] | None = None,
        task: str | None = None,
        seed: float | None = None,
        pictures: list[str] | None = None,
    ) -> Json:
        """Ask about a picture, a video or a sound: text may say @1, @2.

        regions: list of [x0, y0, x1, y1], [x, y] or {"kind": "scribble", "points": [[x, y], ...]} and the like, in
        pixels of the upright picture, with "image": n where it is on one of `pictures`, counted from 1; task: one of
        the family's or none; seed: none for the likeliest words, else a number for a livelier answer; pictures: files
        of further ones, for a model that takes several.
        """
        return _told(answered, desk, name(), image, text, regions, task, seed, pictures)

    def listed() -> list[Json]:
        """The model families, where their weights are, and what is missing."""
        return [dict(row) for row in models()]

    trigger, result = gr.Button(**HIDDEN), gr.JSON(**HIDDEN)
    inputs: list[Any] = [gr.File(label="image", **HIDDEN), gr.Textbox(label="text", **HIDDEN)]
    inputs += [gr.JSON(label="regions", value=None, **HIDDEN), gr.Textbox(label="task", value=None, **HIDDEN)]
    inputs += [gr.Number(label="seed", value=None, precision=0, **HIDDEN)]
    inputs += [gr.File(label="pictures", value=None, file_count="multiple", **HIDDEN)]
    trigger.click(ask, inputs, [result], api_name="ask", **queue)
    trigger.click(listed, None, [result], api_name="models", queue=False)
    if read is None:
        return

    def read_text(
        dialect: str,
        text: str,
        size: list[Any] | None,
        fit: list[Any] | None = None,
        candidates: list[Any] | None = None,
    ) -> Json:
        """Read a model's text: clean words, phrases with places in pixels, and what was dropped.

        size, fit: [width, height] of the upright and of the fitted picture; candidates: boxes that numbers refer to.
        """
        return _told(read, dialect, text, size, fit, candidates)

    fields: list[Any] = [gr.Textbox(label=name, **HIDDEN) for name in ("dialect", "text")]
    fields += [gr.JSON(label=name, value=None, **HIDDEN) for name in ("size", "fit", "candidates")]
    trigger.click(read_text, fields, [result], api_name="read", queue=False)


def _told(function: Callable[..., Json], *arguments: Any) -> Json:
    """The function's JSON; its ValueError reaches the client as the one sentence it is."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def answered(
    desk: Desk,
    name: str,
    image: str | None,
    text: str,
    regions: list[Any] | None,
    task: str | None,
    seed: float | None,
    pictures: list[str] | None = None,
) -> Json:
    """One question asked to its end, as JSON of the `ask` command. ValueError with cause and remedy for bad input."""
    if not image:
        raise ValueError("There is no picture: hand a file over as `image`.")
    picture = open_clip(image) if is_clip(image) else open_image(image)
    more = pictures or ()
    check_pictures(desk.engine.family, 1 + len(more))
    if len(more) >= MOST_PICTURES:
        raise ValueError(f"There are {len(more) + 1} pictures, at most {MOST_PICTURES} can be used: send fewer.")
    given = (picture, *map(open_image, more))
    sizes = tuple(one.size for one in given)
    drawn = tuple(region_of(values, number, sizes) for number, values in enumerate(regions or (), 1))
    turn = Turn("user", text or "", drawn, images=tuple(range(len(given))))
    last: Answer | None = None
    for growing in desk.answer(Ask(given, (turn,), task or None, Limits.of_seed(seed))):
        last = growing
    if last is None:
        raise ValueError("The model gave no answer: look at its state in the Model tab.")
    seconds = picture.seconds if isinstance(picture, Clip) else None
    return answer_json(last, given[last.shown].size, name, desk.engine.precision, seconds, len(given))


def region_of(values: object, number: int, sizes: Sequence[tuple[int, int]]) -> Region:
    """[x0, y0, x1, y1], [x, y] or an object with "kind", in pixels, as a region; ValueError where that is no place on
    one of the pictures of these sizes.
    """
    if isinstance(values, dict):
        return region_on(values, sizes, number)
    good = isinstance(values, list) and len(values) in (2, 4) and all(type(value) in (int, float) for value in values)
    if not good or not isinstance(values, list):
        raise ValueError(
            f'Region {number} must be [x0, y0, x1, y1], [x, y] or {{"kind": "scribble", "points": [[x, y], ...]}} in '
            f"pixels, not {str(values)[:60]}."
        )
    return region_on(values, sizes, number)
