"""What this machine can run: op back ends, attention, precisions, memory, weights, each with what would help.

A finding is {"name", "state": "ok" | "slow" | "missing", "chosen", "why", "remedy"}; a remedy is empty where nothing is
wrong. Nothing is downloaded and no model is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mmchat import family
from mmchat.models import Entry, listed, missing
from mmchat.nets import quantise, weights

Finding = dict[str, Any]
SECTIONS = ("operator", "attention", "precisions", "memory", "weights")
BITS = {"fp32": 32, "bf16": 16, "int8": 8.5, "nf4": 4.7}  # a parameter, with the scales that quantising adds


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


def operator(device: str) -> list[Finding]:
    """Every back end of the deformable attention operator: whether it runs, which one is taken, its error."""
    import msda

    choice = msda.choose(device)
    out = []
    for state in msda.states(device):
        chosen = state.name == choice.name
        why = choice.why if chosen else state.why
        if state.ready:
            error = operator_error(device, state.name)
            out.append(_finding(state.name, "ok", f"{why}; error {error:.1e}", chosen=chosen, error=error))
        else:
            remedy = "Build it: see kernels/README.md. Everything runs without it."
            out.append(_finding(state.name, "missing", why, remedy, error=None))
    return out


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
        count = parameters(entry.folder)
        if not count:
            continue
        asked = weights.settle_precision(entry.precision, device)[0]
        needs = {bits: int(count * BITS[bits] / 8) for bits in BITS}
        fits = [bits for bits in BITS if needs[bits] < 0.9 * free]
        why = f"{count / 1e6:.0f} M parameters, {needs[asked] / 2**30:.2f} GiB in {asked}"
        if asked in fits:
            out.append(_finding(entry.name, "ok", why, needs=needs))
        else:
            remedy = f"Open it with --precision {fits[0]}." if fits else "Free memory, or take a smaller model."
            out.append(_finding(entry.name, "missing", f"{why}: more than is free", remedy, needs=needs))
    return out


def free_memory(device: str) -> tuple[int, int]:
    """(free, total) bytes of what models are loaded into."""
    if device == "cuda":
        return torch.cuda.mem_get_info()
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return known["MemAvailable"], known["MemTotal"]
    except (OSError, KeyError):  # not Linux: what is free is not told
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return total, total


def parameters(folder: Path) -> int:
    """How many numbers the weights in a folder hold, by the headers of their files; 0 where there are none."""
    try:
        return sum(count for path in weights.shards(folder) for count in _counts(path))
    except ValueError:
        return 0


def _counts(path: Path) -> Iterator[int]:
    if path.suffix != ".safetensors":
        yield path.stat().st_size // 2  # pickles are in half precision as a rule; they are not opened to count
        return
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for length in entry["shape"]:
                count *= length
            yield count


def models() -> list[dict[str, Any]]:
    """The rows of the `models` command: every entry of models.toml, what it is, where, what is missing ("" nothing)."""
    return [_row(entry) for entry in listed()]


def _row(entry: Entry) -> dict[str, Any]:
    row = {
        "name": entry.name, "title": entry.title or entry.name, "family": entry.family, "about": "", "licence": "",
        "folder": str(entry.folder), "precision": entry.precision,
    }  # fmt: skip
    try:
        known = family.load(entry.family)
    except ValueError as error:
        return {**row, "missing": str(error)}
    row["about"], row["licence"] = known.about, known.licence
    return {**row, "missing": missing(entry)}


def found_weights() -> list[Finding]:
    """Every model: whether its weights are here and whole."""
    out = []
    for row in models():
        lacks = row["missing"]
        if lacks:
            remedy = f"Put a checkpoint of {row['title']} into {row['folder']}, or name its folder in models.toml."
            out.append(_finding(row["name"], "missing", lacks, remedy))
        else:
            out.append(_finding(row["name"], "ok", row["folder"]))
    return out
