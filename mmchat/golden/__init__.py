"""Recorded numbers and texts of the original systems, run against ours.

A folder holds cases: `<case>.safetensors` with `<case>.json` (tensors), or a `<case>.json` alone (a table of texts).
What computes a case stands in the file named after its system beside this one, in `HANDLERS`: an object's name (or a
table's file name) to a function.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

DIFFERENCES = Path(__file__).resolve().parents[2] / "tests" / "golden" / "differences.toml"


@dataclass(frozen=True)
class Row:
    """One case: its largest error, measured against the tolerance at that very number; a table's error counts its wrong
    lines.
    """

    system: str
    case: str
    object: str
    error: float | None
    tolerance: float | None
    status: Literal["ok", "fail", "skip", "differs"]
    why: str = ""


@dataclass(frozen=True)
class Case:
    """A recorded case as it lies on disk."""

    path: Path  # of the JSON

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """The JSON; empty where it holds something else than a recorded case."""
        found = json.loads(self.path.read_text("utf-8"))
        return found if isinstance(found, dict) else {}

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @property
    def is_table(self) -> bool:
        """Texts, or lists found in tensors: no tensor is what comes out."""
        tensors = self.path.with_suffix(".safetensors").exists()
        return not tensors or not any(name.startswith("out.") for name in self.tensors)

    @property
    def system(self) -> str:
        return self.info.get("system", self.path.parent.name)

    @property
    def object(self) -> str:
        return self.info.get("object", self.path.stem)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.info["config"])

    def part(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with `prefix`, without it; floats in `dtype`."""
        out = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return {
            name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in out.items()
        }

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        return self.part("in.", dtype)

    def state(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        return self.part("state.", dtype)


@dataclass(frozen=True)
class Line:
    """One line of a table: what it is about, what we say, what the original said. Both are plain values; an error is
    ("raises", its type).
    """

    about: str
    ours: Any
    theirs: Any


Outputs = Mapping[str, torch.Tensor]
TensorHandler = Callable[[Case, torch.dtype], Outputs]
TableHandler = Callable[[Case], Sequence[Line]]


def run(folder: Path) -> list[Row]:
    """Every case under `folder`, in the order of its path. ValueError where there is none."""
    folder = Path(folder)
    # toy_*.json are tokenizers that recorded texts were made with, not cases.
    found = (path for path in folder.rglob("*.json") if not path.name.startswith("toy_"))
    paths = [folder] if folder.is_file() else sorted(found)
    if not paths:
        raise ValueError(
            f"no recorded cases (*.json) under {folder}: give a folder such as golden/ or one of its systems"
        )
    differences = tomllib.loads(DIFFERENCES.read_text()).get("difference", []) if DIFFERENCES.exists() else []
    return [_row(Case(path), differences) for path in paths]


def handlers(case: Case) -> Mapping[str, TensorHandler | TableHandler] | None:
    """`HANDLERS` of the file beside this one that is named after the case's folder, its system, or their folder."""
    for name in (case.path.parent.name, case.system, case.path.parent.parent.name):
        module = f"{__name__}.{re.sub('[-.]', '_', name.lower())}"
        if module.rpartition(".")[2].isidentifier() and importlib.util.find_spec(module):
            return getattr(importlib.import_module(module), "HANDLERS", {})
    return None


def _row(case: Case, differences: Sequence[Mapping[str, str]]) -> Row:
    known = [
        entry
        for entry in differences
        if entry["system"] in (case.system, case.path.parent.name, case.path.parent.parent.name)
        and entry["case"] in (case.path.stem, case.object)
    ]

    def row(
        status: Literal["ok", "fail", "skip", "differs"],
        why: str = "",
        error: float | None = None,
        allowed: float | None = None,
    ) -> Row:
        # JSON has no word for what is not a number.
        error = error if error is None or math.isfinite(error) else None
        return Row(case.system, case.path.stem, case.object, error, allowed, status, why)

    if not case.info:
        return row("skip", "this file is no recorded case: a case is a JSON object")
    found = handlers(case)
    if found is None:
        return row("skip", f"nothing here computes the system {case.system} yet")
    handler = found.get(case.object)
    if handler is None:
        return row("skip", f"nothing here computes {case.object} of {case.system} yet")
    try:
        if case.is_table:
            return _judge_table(handler(case), known, row)
        return _judge_tensors(case, handler, row)
    except Exception as error:  # one broken case is a line of the report, not the end of it
        return row("fail", f"{type(error).__name__}: {error}".splitlines()[0])


def _judge_table(lines: Sequence[Line], known: Sequence[Mapping[str, str]], row: Callable[..., Row]) -> Row:
    wrong = [line for line in lines if not _same(line.ours, line.theirs)]
    excused = [
        (line, entry["reason"])
        for line in wrong
        for entry in known
        if re.fullmatch(entry.get("text", ".*"), line.about, re.DOTALL)
    ]
    unexcused = [line for line in wrong if not any(line is other for other, _ in excused)]
    if unexcused:
        line = unexcused[0]
        said = f"ours {_brief(line.ours)}, recorded {_brief(line.theirs)}"
        why = f"{len(unexcused)} of {len(lines)} lines; {line.about!r}: {said}"
        return row("fail", why, float(len(unexcused)), 0.0)
    if excused:
        return row("differs", f"{len(excused)} of {len(lines)} lines: {excused[0][1]}", float(len(excused)), 0.0)
    return row("ok", f"{len(lines)} lines", 0.0, 0.0)


def _same(ours: Any, theirs: Any) -> bool:
    """Equal; numbers to float32's rounding (originals compute boxes in it), because a table states no tolerance."""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return list(ours) == list(theirs) and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return abs(ours - theirs) <= 1e-4 + 1e-6 * abs(theirs)
    return ours == theirs


def _judge_tensors(case: Case, handler: TensorHandler, row: Callable[..., Row]) -> Row:
    recorded = case.part("out.")
    plain = {name: tensor for name, tensor in recorded.items() if not name.endswith(".f64")}
    double = {name.removesuffix(".f64"): tensor for name, tensor in recorded.items() if name.endswith(".f64")}
    worst: tuple[float, float, float, str] = (-1.0, 0.0, 0.0, "")
    for dtype, expected in ((torch.float32, plain), (torch.float64, double)):
        if not expected:
            continue
        outputs = handler(case, dtype)
        if missing := sorted(set(expected) - set(outputs)):
            return row("fail", f"not computed: {', '.join(missing)}")
        for name, theirs in expected.items():
            if outputs[name].shape != theirs.shape:
                return row("fail", f"{name} has shape {list(outputs[name].shape)}, recorded {list(theirs.shape)}")
            ours = outputs[name]
            if name == "logits" and "attention_mask" in plain:  # what stands at padding means nothing
                real = plain["attention_mask"].bool()
                ours, theirs = ours[real], theirs[real]
            measured = _measure(ours, theirs, _tolerances(case, name, dtype))
            worst = max(worst, (*measured, name if dtype == torch.float32 else f"{name} in float64"))
    ratio, error, allowed, name = worst
    if not ratio <= 1:
        return row("fail", f"{name} is off", error, allowed)
    return row("ok", "", error, allowed)


def _tolerances(case: Case, name: str, dtype: torch.dtype) -> Mapping[str, float]:
    """The stated tolerances of an output: of its own type where the case states one, else float32's."""
    stated = case.info["tolerance"]
    key = str(dtype).removeprefix("torch.")
    found = stated.get(key) or stated.get("bfloat16") or stated.get("float16") or stated.get("float32") or {}
    found = dict(found) if isinstance(found, Mapping) else {}
    if "abs" in stated:  # one for all types
        found = {"max_abs": stated["abs"], "rel": stated.get("rel", 0.0)}
    if dtype == torch.float32 and name == "grad_sampling_locations" and "grad_locations_rel" in found:
        found["rel"] = found["grad_locations_rel"]
    return found


def _measure(ours: torch.Tensor, theirs: torch.Tensor, tolerance: Mapping[str, float]) -> tuple[float, float, float]:
    """(error over what is allowed, error, allowed) where that ratio is largest. Integers and truth values must be
    equal.
    """
    if not theirs.is_floating_point() or not tolerance:
        wrong = int((ours.to(theirs.dtype) != theirs).sum())
        return (0.0, 0.0, 0.0) if wrong == 0 else (float("inf"), float(wrong), 0.0)
    if not theirs.numel():
        return 0.0, 0.0, 0.0
    ours, theirs = ours.detach().double(), theirs.double()
    error = torch.where(ours == theirs, 0.0, (ours - theirs).abs())  # infinite ones are equal too
    allowed = tolerance.get("max_abs", 0.0) + tolerance.get("rel", 0.0) * theirs.abs()
    ratio = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=float("inf"))
    where = int(ratio.argmax())
    out = (ratio.flatten()[where].item(), error.flatten()[where].item(), allowed.flatten()[where].item())
    if "mean_abs" in tolerance and error.mean().item() > tolerance["mean_abs"]:
        return error.mean().item() / tolerance["mean_abs"], error.mean().item(), tolerance["mean_abs"]
    return out


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:70]} ... {text[-70:]}"
