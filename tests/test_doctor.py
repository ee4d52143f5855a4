"""The doctor tells what this machine can run, and every want has its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msda
import pytest
import torch

from mmchat import doctor
from mmchat.cli import main
from mmchat.nets import quantise


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return doctor.report()


@pytest.fixture
def listed(dwarf_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models: a dwarf that is whole, and one whose folder is not there. Gives the dwarf's folder."""
    rows = (("small", dwarf_folder("llava")), ("lost", tmp_path / "nowhere"))
    text = "".join(f'[[model]]\nname = "{name}"\nfamily = "llava"\nfolder = "{folder}"\n' for name, folder in rows)
    (tmp_path / "models.toml").write_text(text)
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    return dwarf_folder("llava")


def test_the_report_has_every_section_and_every_finding_its_fields(told: dict[str, Any]) -> None:
    assert list(told) == ["machine", *doctor.SECTIONS]
    for section in doctor.SECTIONS:
        for finding in told[section]:
            assert {"name", "state", "chosen", "why", "remedy"} <= finding.keys()
            assert finding["state"] in ("ok", "slow", "missing") and finding["why"]


def test_the_back_end_that_runs_is_named_with_its_reason_and_error(told: dict[str, Any]) -> None:
    (chosen,) = [finding for finding in told["operator"] if finding["chosen"]]
    assert chosen["name"] == msda.choose("cuda" if torch.cuda.is_available() else "cpu").name
    assert 0 < chosen["error"] < 1e-4


def test_the_error_is_measured_and_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = msda.ms_deform_attn

    def off(value: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        return right(value, *rest, **more) + (0.25 if value.dtype == torch.float32 else 0)

    monkeypatch.setattr(msda, "ms_deform_attn", off)
    assert doctor.operator_error("cpu", "reference") == pytest.approx(0.25, abs=1e-4)


def test_a_back_end_that_cannot_run_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    states = (msda.State("cpu", False, "it was not built"), msda.State("reference", True, "plain torch"))
    monkeypatch.setattr(msda, "states", lambda *values: states)
    monkeypatch.setattr(msda, "choose", lambda *values: msda.Choice("reference", "the fastest that is ready"))
    missing, chosen = doctor.operator("cpu")
    assert (missing["state"], missing["error"]) == ("missing", None) and missing["remedy"]
    assert chosen["chosen"]


@pytest.mark.parametrize(("fast", "auto", "state"), [(True, "bf16", "ok"), (False, "fp32", "slow")])
def test_auto_is_the_precision_that_this_processor_computes_well(
    monkeypatch: pytest.MonkeyPatch, fast: bool, auto: str, state: str
) -> None:
    monkeypatch.setattr(quantise, "native_bf16", lambda device="cpu": fast)
    found = {finding["name"]: finding for finding in doctor.precisions("cpu")}
    assert [name for name, finding in found.items() if finding["chosen"]] == [auto]
    assert found["bf16"]["state"] == state


def test_weights_that_are_here_and_that_are_not_are_told_apart(listed: Path) -> None:
    here, lost = doctor.found_weights()
    assert (here["name"], here["state"], here["why"]) == ("small", "ok", str(listed))
    assert (lost["name"], lost["state"]) == ("lost", "missing")
    assert "nowhere" in lost["why"] and lost["remedy"]


def test_a_model_s_memory_is_planned_in_every_precision(listed: Path) -> None:
    (model,) = doctor.memory("cpu")[1:]
    assert model["state"] == "ok" and list(model["needs"]) == ["fp32", "bf16", "int8", "nf4"]
    sizes = list(model["needs"].values())
    assert sizes == sorted(sizes, reverse=True) and "for 1,000 tokens" in model["why"]


def test_a_model_that_does_not_fit_into_memory_gets_a_remedy(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmchat.nets.quantise.native_bf16", lambda device="cpu": False)
    needs = doctor.memory("cpu")[1]["needs"]
    monkeypatch.setattr(doctor, "free_memory", lambda device: ((needs["fp32"] + needs["bf16"]) // 2, 1 << 40))
    (model,) = doctor.memory("cpu")[1:]
    assert model["state"] == "missing" and "bf16" in model["remedy"]
    monkeypatch.setattr(doctor, "free_memory", lambda device: (needs["nf4"] // 10, 1 << 40))
    (model,) = doctor.memory("cpu")[1:]
    assert "Free memory" in model["remedy"]


def test_the_command_speaks_json_and_words(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"][1]["name"] == "lost"
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"{msda.choose('cuda' if torch.cuda.is_available() else 'cpu').name} (chosen)" in out and "->" in out
