"""What this machine can run: op back ends, attention, precisions, memory, weights, each with what would help.

A finding is {"name", "state": "ok" | "slow" | "missing", "chosen", "why", "remedy"}; a remedy is empty where nothing is
wrong. Nothing is downloaded and no model is loaded.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import torch

from mmchat import detectors, family
from mmchat.models import Entry, listed, missing
from mmchat.models import detectors as listed_detectors
from mmchat.nets import plan, quantise, weights
from mmchat.nets.plan import free_memory

Finding = dict[str, Any]
SECTIONS = ("operator", "attention", "precisions", "memory", "weights")


def report() -> dict[str, Any]:
    """{"machine": {...}} and a list of findings for each of SECTIONS."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "machine": machine(device), "operator": operator(device), "attention": attention(device),
        "precisions": precisions(device), "memory": memory(device), "weights": found_weights(),
    }  # fmt: skip


def as_text(told: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = ["machine      " + ", ".join(f"{name} {value}" for name, value in told["machine"].items())]
    for section in SECTIONS:
        for number, finding in enumerate(told[section]):
            mark = " (chosen)" if finding["chosen"] else ""
            lines.append(
                f"{'' if number else section:12} {finding['name']}{mark}: {finding['state']}, {finding['why']}"
            )
            if finding["remedy"]:
                lines.append(f"{'':12}   -> {finding['remedy']}")
    return "\n".join(lines)


def _finding(name: str, state: str, why: str, remedy: str = "", chosen: bool = False, **more: Any) -> Finding:
    return {"name": name, "state": state, "chosen": chosen, "why": why, "remedy": remedy, **more}


def machine(device: str) -> dict[str, Any]:
    processor = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {
        "python": platform.python_version(), "torch": torch.__version__, "device": device, "processor": processor,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
    }  # fmt: skip


REMEDIES = {
    "cpu": "Build it, which takes seconds and needs a C++ compiler: make kernels.",
    "cuda": "Build it, which needs nvcc and a CUDA build of torch: make kernels MSDA_BUILD=cuda.",
    "triton": "pip install triton",
}


def operator(device: str) -> list[Finding]:
    """Every back end of the deformable attention operator: whether it runs, which one is taken, its error, its speed.

    `speed`: how many times as fast as plain torch on one small fuser's shapes, least of some runs; 1 for plain torch.
    """
    import msda

    choice = msda.choose(device)
    out = []
    for state in msda.states(device):
        chosen = state.name == choice.name
        why = choice.why if chosen else state.why
        if state.ready:
            error, speed = operator_error(device, state.name), operator_speed(device, state.name)
            why = f"{why}; error {error:.1e}, {speed:.1f} times as fast as plain torch"
            out.append(_finding(state.name, "ok", why, chosen=chosen, error=error, speed=speed))
        else:
            # What is for another device needs no remedy.
            fits = (state.name == "cpu") == (device == "cpu")
            remedy = REMEDIES.get(state.name, "See kernels/README.md.") if fits else ""
            out.append(_finding(state.name, "missing", why, remedy, error=None, speed=None))
    return out


def operator_speed(device: str, name: str) -> float:
    """Time of plain torch over this back end's, on four levels of 12 x 12 and 16 heads of 64, in turn; the least of
    five each.
    """
    import msda

    shapes = [(12, 12)] * 4
    value, places = torch.randn(1, 576, 16, 64, device=device), torch.rand(1, 144, 16, 4, 4, 2, device=device)
    shares = torch.rand(1, 144, 16, 4, 4, device=device)
    least = {name: math.inf, "reference": math.inf}
    for _ in range(6):  # the first one warms up: later ones are less
        for one in least:
            start = time.perf_counter()
            msda.ms_deform_attn(value, shapes, places, shares, backend=one)
            if device == "cuda":
                torch.cuda.synchronize()
            least[one] = min(least[one], time.perf_counter() - start)
    return least["reference"] / least[name]


def operator_error(device: str, name: str) -> float:
    """The largest difference in float32 from the plain torch reference in float64, on two small levels."""
    import msda

    random = torch.Generator().manual_seed(0)
    shapes = [(9, 7), (5, 4)]
    value = torch.randn(1, 83, 2, 16, generator=random)
    places = torch.rand(1, 20, 2, 2, 4, 2, generator=random) * 1.2 - 0.1
    shares = torch.rand(1, 20, 2, 2, 4, generator=random)
    exact = msda.ms_deform_attn(value.double(), shapes, places.double(), shares.double(), backend="reference")
    ours = msda.ms_deform_attn(value.to(device), shapes, places.to(device), shares.to(device), backend=name)
    return float((ours.cpu().double() - exact).abs().max())


def attention(device: str) -> list[Finding]:
    """How language models compute attention here. flash-attn is never required."""
    from transformers.utils import is_flash_attn_2_available

    out = [_finding("sdpa", "ok", "torch's own attention, which needs nothing more", chosen=True)]
    if device != "cuda":
        out.append(_finding("flash-attn", "missing", "it needs a CUDA device, and there is none"))
    elif is_flash_attn_2_available():
        out.append(_finding("flash-attn", "ok", "it is installed; sdpa is used all the same"))
    else:
        remedy = 'Nothing needs it. To have it: pip install -e ".[flash]".'
        out.append(_finding("flash-attn", "missing", "it is not installed", remedy))
    return out


def precisions(device: str) -> list[Finding]:
    """Which precisions this machine computes well; the one marked is what "auto" means."""
    auto = weights.settle_precision("auto", device)[0]
    fast = quantise.native_bf16(device)
    packed = importlib.util.find_spec("bitsandbytes") is not None
    out = [_finding("fp32", "ok", "works everywhere", chosen=auto == "fp32")]
    if fast:
        out.append(_finding("bf16", "ok", "computed by the processor itself", chosen=auto == "bf16"))
    else:
        why = "this processor has no bfloat16 of its own and computes it in software"
        out.append(_finding("bf16", "slow", why, "Choose fp32, or nf4 where memory is short."))
    for name, why in (("int8", "a quarter of the memory of fp32"), ("nf4", "an eighth of the memory of fp32")):
        if packed:
            out.append(_finding(name, "ok", f"{why}; the language model's linear layers only"))
        else:
            out.append(_finding(name, "missing", "bitsandbytes is not installed", "pip install -r requirements.txt"))
    return out


def memory(device: str) -> list[Finding]:
    """How much memory there is, and whether the models whose weights are here fit into it."""
    free, total = free_memory(device)
    name = "GPU" if device == "cuda" else "main"
    out = [_finding(name, "ok", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free", free=free, total=total)]
    for entry in listed():
        plans = planned(entry, device)
        if not plans:
            continue
        asked = weights.settle_precision(entry.precision, device)[0]
        needs = {name: told.total for name, told in plans.items()}
        fits = [name for name, size in needs.items() if size < plan.MARGIN * free]
        told = plans[asked]
        why = (
            f"{plan.gib(needs[asked])} in {asked}: weights {plan.gib(told.weights)}, "
            f"{plan.gib(told.talk_thousand)} for 1,000 tokens of a talk"
        )
        if asked in fits:
            out.append(_finding(entry.name, "ok", why, needs=needs))
        else:
            remedy = f"Open it with --precision {fits[0]}." if fits else "Free memory, or take a smaller model."
            out.append(_finding(entry.name, "missing", f"{why}: more than is free", remedy, needs=needs))
    return out


def planned(entry: Entry, device: str) -> dict[str, plan.Plan]:
    """A model's plan in each precision; empty where its config.json is not there or not of its family."""
    try:
        known = family.load(entry.family)
        with weights.without_memory():
            model = known.build({**weights.read_config(entry.folder, known.parts), **entry.config})
        return {name: plan.planned(model, name, device, known.keep) for name in ("fp32", "bf16", "int8", "nf4")}
    except (ValueError, KeyError):
        return {}


def models() -> list[dict[str, Any]]:
    """The rows of the `models` command: every entry of models.toml, what it is, where, what is missing ("" nothing)."""
    return [_row(entry) for entry in listed()]


def finders() -> list[dict[str, Any]]:
    """Such rows of the detectors: they stand in no list of models to chat with."""
    return [_row(entry) for entry in listed_detectors()]


def _row(entry: Entry) -> dict[str, Any]:
    row = {
        "name": entry.name, "title": entry.title or entry.name, "family": entry.family, "about": "", "licence": "",
        "unverified": "", "folder": str(entry.folder), "precision": entry.precision,
    }  # fmt: skip
    try:
        known = detectors.record(entry.family) if entry.detector else family.load(entry.family)
    except ValueError as error:
        return {**row, "missing": str(error)}
    row["about"], row["licence"] = known.about, known.licence
    row["unverified"] = getattr(known, "unverified", "")  # detectors have no such sentence
    return {**row, "missing": detectors.missing(entry) if entry.detector else missing(entry)}


def found_weights() -> list[Finding]:
    """Every model and detector: whether its weights are here and whole."""
    out = []
    for row in [*models(), *finders()]:
        lacks = row["missing"]
        if lacks:
            remedy = f"Put a checkpoint of {row['title']} into {row['folder']}, or name its folder in models.toml."
            out.append(_finding(row["name"], "missing", lacks, remedy))
        else:
            out.append(_finding(row["name"], "ok", row["folder"]))
    return out
