"""Recorded cases of the original systems, and the runner that judges them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.golden import run

GOLDEN = Path(__file__).parent / "golden"
CASES = [path for path in sorted(GOLDEN.rglob("*.json")) if path.name[:4] != "toy_"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recorded_case_is_computed_as_recorded(path: Path) -> None:
    (row,) = run(path)
    assert row.status in ("ok", "differs"), row.why


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A small case of its own, to be spoilt."""
    for file in (GOLDEN / "llava").glob("projector_linear.*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def spoil(folder: Path, name: str, change: float | None) -> None:
    path = folder / "projector_linear.safetensors"
    tensors = load_file(path)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = tensors[name] + change
    save_file(tensors, path)


def test_a_parameter_that_is_a_little_off_fails(copied: Path) -> None:
    spoil(copied, "state.bias", 1e-3)
    (row,) = run(copied)
    assert row.status == "fail" and row.error == pytest.approx(1e-3, rel=0.01) and "output" in row.why


def test_a_missing_parameter_fails_with_its_name(copied: Path) -> None:
    spoil(copied, "state.bias", None)
    (row,) = run(copied)
    assert row.status == "fail" and "0.bias" in row.why


def test_the_float64_output_is_judged_too(copied: Path) -> None:
    spoil(copied, "out.output.f64", 1e-3)
    (row,) = run(copied)
    assert row.status == "fail" and "float64" in row.why


def test_an_output_that_nobody_computes_fails(copied: Path) -> None:
    path = copied / "projector_linear.safetensors"
    save_file(load_file(path) | {"out.surprise": torch.zeros(1)}, path)
    (row,) = run(copied)
    assert row.status == "fail" and "surprise" in row.why


def test_not_a_number_never_passes(copied: Path) -> None:
    spoil(copied, "state.bias", float("nan"))
    assert run(copied)[0].status == "fail"


def test_an_unknown_system_is_a_skip_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "dialect.json").write_text(json.dumps({"system": "nobodys"}))
    (row,) = run(tmp_path)
    assert row.status == "skip" and "nobodys" in row.why


def test_an_unknown_object_is_a_skip_with_its_reason(copied: Path) -> None:
    path = copied / "projector_linear.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"object": "SomethingElse"}))
    (row,) = run(copied)
    assert row.status == "skip" and "SomethingElse" in row.why


def test_a_wrong_line_of_a_table_fails_with_both_readings(tmp_path: Path) -> None:
    table = json.loads((GOLDEN / "mmfuser" / "select_layer_parsing.json").read_text())
    table["cases"][0]["result"] = [-3]
    (tmp_path / "select_layer_parsing.json").write_text(json.dumps(table))
    (row,) = run(tmp_path)
    assert row.status == "fail" and row.error == 1 and "[-3]" in row.why


def test_a_listed_difference_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads((GOLDEN / "mmfuser" / "select_layer_parsing.json").read_text())
    table["cases"][0]["result"] = [-3]
    (tmp_path / "select_layer_parsing.json").write_text(json.dumps(table))
    listed = tmp_path / "differences.toml"
    entry = 'system = "mmfuser"\ncase = "select_layer_parsing"\ntext = ".*list-22.*"\nreason = "for this test"\n'
    listed.write_text(f"[[difference]]\n{entry}")
    monkeypatch.setattr("mmchat.golden.DIFFERENCES", listed)
    (row,) = run(tmp_path)
    assert row.status == "differs" and "for this test" in row.why


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recorded cases"):
        run(tmp_path)


@pytest.mark.parametrize("system", ["groma", "groundinggpt", "llava-grounding", "modern/internvl"])
def test_prompts_of_other_words_are_judged_by_their_form(system: str, tmp_path: Path) -> None:
    """Of words that a record states nowhere but in its prompts, any will do, if all prompts hold the same."""
    text = (GOLDEN / system / "prompts.json").read_text("utf-8")
    path = tmp_path / system / "prompts.json"
    path.parent.mkdir(parents=True)
    for old, new in (("red cup", "(grüne) {Tasse} [0]"), ("Two.", "Drei.*"), ("And now?", "Und?")):
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    assert run(path)[0].status == "ok"
    for old, new in (("Assistant:", "Asistant:"), ("ASSISTANT:", "ASSISTANT :"), ("Drei", "Vier")):
        path.write_text(text.replace(old, new, 1), "utf-8")
        assert run(path)[0].status == ("fail" if old in text else "ok")
