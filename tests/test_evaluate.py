"""A labelled set goes to a desk and comes back as predictions, without a look at the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmchat import evaluate
from mmchat.cli import main
from mmchat.desk import Desk
from mmchat.engines.replay import Recorded, ReplayEngine
from mmchat.geometry import Box

ANSWERS = (
    Recorded("find.*giraffe", "I do not see <p>a giraffe</p>."),
    Recorded("find.*bus", "Here is <p>the bus</p><c0>, not <p>this</p><c1>.",
             candidates=(Box(0.25, 0.375, 0.5, 0.75), Box(0, 0.2, 1, 0.8))),
    Recorded(r"what is (<r|\[).* in one word", "<p>A wheel</p><u0>."),
    Recorded("how many.* in one word", "Two."),
)  # fmt: skip
LABELS: list[dict[str, Any]] = [
    {
        "file": "p01.png", "width": 400, "height": 200, "objects": [],
        "referring": [{"text": "the bus", "level": "noun", "object": "a", "box": [1, 2, 3, 4]}],
        "absent": ["a giraffe"],
        "region_names": [{"object": "a", "box": [10, 10, 60, 90], "answers": ["a wheel"]}],
        "questions": [{"question": "How many people are there?", "answers": ["two"]}],
    },
    {"file": "p02.png", "width": 400, "height": 200, "referring": [], "absent": [], "region_names": [],
     "questions": []},
]  # fmt: skip
ANSWERED = {
    "p01.png": {
        # The recording's square has bars of a quarter of its side above and below the 2:1 picture.
        "referring": [[100.0, 50.0, 200.0, 200.0]],
        "absent": [None],
        "region_names": ["A wheel"],
        "questions": ["Two"],
    },
    "p02.png": {"referring": [], "absent": [], "region_names": [], "questions": []},
}


def written(folder: Path, labels: object = LABELS) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in ("p01.png", "p02.png"):
        Image.new("RGB", (400, 200), "grey").save(folder / "images" / name)
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def predicted(folder: Path) -> evaluate.Predictions:
    return evaluate.predictions(Desk(ReplayEngine(ANSWERS)), folder, evaluate.entries(folder))


def test_every_list_is_parallel_to_the_labels(tmp_path: Path) -> None:
    assert predicted(written(tmp_path / "set")) == ANSWERED


def test_answers_in_the_labels_are_never_looked_at(tmp_path: Path) -> None:
    def hidden(value: Any) -> Any:
        if isinstance(value, list):
            return [hidden(item) for item in value]
        if not isinstance(value, dict):
            return value
        dropped = ("answers", "object", "objects", "level") + (("box",) if "text" in value else ())
        return {name: hidden(item) for name, item in value.items() if name not in dropped}

    assert predicted(written(tmp_path / "set", hidden(LABELS))) == ANSWERED


def test_two_runs_say_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    assert predicted(folder) == predicted(folder)


def test_the_command_writes_the_predictions_and_nothing_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = written(tmp_path / "set"), tmp_path / "p.json"
    status = main(["evaluate", "photos", str(folder), "--model", "replay", "--out", str(out), "--limit", "1"])
    told = capsys.readouterr()
    assert (status, told.out) == (0, "") and "1/1 p01.png" in told.err
    assert list(json.loads(out.read_text())) == ["p01.png"]


@pytest.mark.parametrize("labels", [{"a": 1}, [1], [{"file": "p01.png"}], [{"file": "x", "width": 0, "height": 0}]])
def test_labels_of_another_form_are_refused(tmp_path: Path, labels: object) -> None:
    with pytest.raises(ValueError, match=r"no list of labelled photographs|lacks"):
        evaluate.entries(written(tmp_path / "set", labels))


def test_a_missing_photograph_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    (folder / "images" / "p02.png").unlink()
    with pytest.raises(ValueError, match=r"lacks p02\.png"):
        evaluate.entries(folder)


def test_a_file_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    entry = {**LABELS[0], "file": "../../p01.png"}
    (one,) = evaluate.entries(written(tmp_path / "set", [entry]))
    assert one.file == "p01.png"


def test_a_model_without_a_task_to_find_is_asked_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mmchat.engines import replay

    plain = replace(replay.FAMILY, template=replace(replay.FAMILY.template, tasks=replay.FAMILY.template.tasks[:1]))
    monkeypatch.setattr(ReplayEngine, "family", plain)
    asked = (Recorded(r"where is the bus\?", "<p>It</p><c0>.", candidates=(Box(0.25, 0.375, 0.5, 0.75),)),)
    folder = written(tmp_path / "set")
    found = evaluate.predictions(Desk(ReplayEngine(asked)), folder, evaluate.entries(folder)[:1])
    assert found["p01.png"]["referring"] == [[100.0, 50.0, 200.0, 200.0]]
