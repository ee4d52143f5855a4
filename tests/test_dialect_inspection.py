"""The frame inspector: the way an answer was written in is among its views, and stands before those that spoil it."""

from __future__ import annotations

import io
import json
import sys

import pytest

from mmchat.cli import main
from mmchat.dialect import DIALECTS, inspect
from mmchat.geometry import Box, outline

SIZE = (640, 480)
TRUTH = Box.from_pixels((320, 120, 480, 360), SIZE)

# the same box in several conventions: answer, scale, fit, order
WAYS = [
    ("[0.5, 0.25, 0.75, 0.75]", 1.0, "squash", "corners"),
    ("[0.5, 0.3125, 0.75, 0.6875]", 1.0, "pad", "corners"),
    ("[0.5, 0.1875, 0.75, 0.5625]", 1.0, "pad_end", "corners"),
    ("[50, 25, 75, 75]", 100.0, "squash", "corners"),
    ("[49.5, 24.75, 74.25, 74.25]", 99.0, "squash", "corners"),
    ("[0.5, 0.25, 0.83333333, 0.75]", 1.0, "crop", "corners"),  # 480 x 480 from the middle
    ("[49.5, 24.75, 82.5, 74.25]", 99.0, "crop", "corners"),
    ("[499.5, 249.75, 749.25, 749.25]", 999.0, "squash", "corners"),
    ("[500, 250, 750, 750]", 1000.0, "squash", "corners"),
    ("[512, 256, 768, 768]", 1024.0, "squash", "corners"),
    ("[320, 120, 480, 360]", 0.0, "squash", "corners"),
    ("[250, 500, 750, 750]", 1000.0, "squash", "y first"),
    ("[625, 500, 250, 500]", 1000.0, "squash", "centre and size"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "scale", "fit", "order"), WAYS)
def test_the_way_it_was_written_in_gives_the_box_back(answer: str, scale: float, fit: str, order: str) -> None:
    views = inspect(DIALECTS["llava"], f"a dog {answer}", SIZE)
    (view,) = [view for view in views if (view.scale, view.fit, view.order) == (scale, fit, order)]
    assert view.answer.text == "a dog" and (view.whole, view.spoilt) == (1, 0)
    box = outline(view.answer.spans[0].places[0])
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((TRUTH.x0, TRUTH.y0, TRUTH.x1, TRUTH.y1), abs=1e-6)


def test_ways_that_spoil_places_come_last_and_lists_are_inspected_too() -> None:
    text = '[{"box_2d": [250, 500, 750, 750], "label": "dog"}, {"box_2d": [0, 900, 500, 990], "label": "cat"}]'
    views = inspect(DIALECTS["gemini"], text, SIZE)
    assert [view.spoilt for view in views] == sorted(view.spoilt for view in views)
    assert views[0].spoilt == 0 and views[-1].spoilt == 2
    assert next(view for view in views if view.scale == 1.0).spoilt == 2
    assert len({view.name for view in views}) == len(views)


def test_pixels_are_those_of_the_picture_that_the_model_saw() -> None:
    text = '[{"bbox_2d": [160, 60, 240, 180], "label": "dog"}]'
    views = inspect(DIALECTS["qwen2_5_vl"], text, SIZE, seen=(320, 240))
    (view,) = [view for view in views if view.name == "pixels, squashed"]
    assert outline(view.answer.spans[0].places[0]).pixels(SIZE) == pytest.approx((320, 120, 480, 360))


def test_read_inspect_prints_every_view(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Typed:
        buffer = io.BytesIO(b"a dog [500, 250, 750, 750]\n")

    monkeypatch.setattr(sys, "stdin", Typed)
    assert main(["read", "llava", "--size", "640x480", "--inspect"]) == 0
    given = {view["view"]: view for view in json.loads(capsys.readouterr().out)}
    assert given["/1000, squashed"]["spans"][0]["places"][0]["box"] == [320, 120, 480, 360]
    assert given["0 to 1, squashed"]["spans"] == []
