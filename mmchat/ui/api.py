"""The page's named endpoints /ask, /read and /models: the same JSON as the commands of those names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.export import answer_json
from mmchat.geometry import Box, Point, Region, open_image


def endpoints(
    desk: Desk,
    models: Callable[[], Sequence[Mapping[str, Any]]],
    read: Callable[..., dict[str, Any]] | None,
    queue: Mapping[str, Any],
) -> None:
    """Adds the endpoints to the page that is being built. `queue`: the queue id and limit of events that touch the model."""

    def ask(image: str | None, text: str, regions: list[Any] | None = None, task: str | None = None, seed: float | None = 0) -> dict[str, Any]:
        """Ask about a picture.

        regions: list of [x0, y0, x1, y1] or [x, y] in pixels of the upright picture, @1 is the first; task: one of the family's.
        """
        try:
            return answered(desk, image, text, regions, task, seed)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def listed() -> list[dict[str, Any]]:
        """The model families, where their weights are, and what is missing."""
        return [dict(row) for row in models()]

    hidden = {"visible": False}
    trigger, result = gr.Button(**hidden), gr.JSON(**hidden)
    inputs = [
        gr.File(label="image", **hidden), gr.Textbox(label="text", **hidden), gr.JSON(label="regions", value=None, **hidden),
        gr.Textbox(label="task", value=None, **hidden), gr.Number(label="seed", value=0, precision=0, **hidden),
    ]  # fmt: skip
    trigger.click(ask, inputs, [result], api_name="ask", **queue)
    trigger.click(listed, None, [result], api_name="models", queue=False)
    if read is None:
        return

    def read_text(dialect: str, text: str, size: list[Any] | None, fit: list[Any] | None = None, candidates: list[Any] | None = None) -> dict[str, Any]:
        """Read a model's text: phrases with places in pixels. size, fit: [width, height]; candidates: boxes that numbers refer to."""
        try:
            return read(dialect, text, size, fit, candidates)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    fields = [gr.Textbox(label=name, **hidden) for name in ("dialect", "text")]
    fields += [gr.JSON(label=name, value=None, **hidden) for name in ("size", "fit", "candidates")]
    trigger.click(read_text, fields, [result], api_name="read", queue=False)


def answered(desk: Desk, image: str | None, text: str, regions: list[Any] | None, task: str | None, seed: float | None) -> dict[str, Any]:
    """One question asked to its end, as JSON of the `ask` command. ValueError with cause and remedy for bad input."""
    if not image:
        raise ValueError("There is no picture: hand a file over as `image`.")
    picture = open_image(image)
    turn = Turn("user", text or "", tuple(region_of(values, picture.size) for values in regions or ()), images=(0,))
    limits = Limits(seed=int(seed or 0))
    last = None
    for last in desk.answer(Ask((picture,), (turn,), task or None, limits)):
        pass
    if last is None:
        raise ValueError("The model gave no answer: look at its state in the Model tab.")
    return answer_json(last, picture.size, desk.engine.family.name, desk.engine.precision)


def region_of(values: object, size: tuple[int, int]) -> Region:
    """[x0, y0, x1, y1] or [x, y] in pixels as a region; ValueError where that is no place on the picture."""
    width, height = size
    good = isinstance(values, list) and len(values) in (2, 4) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not good:
        raise ValueError(f"A region is [x0, y0, x1, y1] or [x, y] in pixels, not {str(values)[:60]}.")
    assert isinstance(values, list)
    xs, ys = [v / width for v in values[0::2]], [v / height for v in values[1::2]]
    if not all(0 <= v <= 1 for v in (*xs, *ys)):
        raise ValueError(f"Region {values} lies outside the picture of {width} x {height} pixels: give places inside it.")
    if len(values) == 2:
        return Region("point", Box(xs[0], ys[0], xs[0], ys[0]), (Point(xs[0], ys[0]),))
    box = Box(min(xs), min(ys), max(xs), max(ys))
    if box.x0 == box.x1 or box.y0 == box.y1:
        raise ValueError(f"Region {values} has no area: give two different corners.")
    return Region("box", box)
