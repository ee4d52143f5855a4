"""Saving: a loaded model as a checkpoint of its own, in our names, quantised as it is; read back before it counts.

What went into a model from several folders, or through a base or low-rank pairs, is one folder then. Saving what was
saved gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mmchat.nets import quantise, sums
from mmchat.nets.files import inventory
from mmchat.nets.parts import TOWER, Part

SHARD = 4 << 30  # bytes of a file
WORDS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "generation_config.json", "preprocessor_config.json", "vocab.json", "merges.txt")  # fmt: skip


def save(
    model: nn.Module,
    config: Mapping[str, Any],
    target: Path,
    words: Path | None = None,
    parts: Sequence[Part] = (),
    shard: int = SHARD,
) -> Path:
    """Write a loaded model to a new folder: all of it or nothing. config as `read_config` gave it.

    words: the folder whose tokenizer files are copied. ValueError where the target is there already, where parameters
    lie on disk or nowhere, and where a 4-bit model has computed on this processor: bitsandbytes then holds its weights
    in another order, and what is saved would load without complaint and be wrong.
    """
    target = Path(target)
    if target.exists():
        raise ValueError(f"{target} is there already: name a new folder.")
    if quantise.ran(model):
        raise ValueError(
            "The 4-bit model has answered already, which reorders its weights: load it again, save it at once."
        )
    state = _state(model)
    if lost := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(f"{lost[0]} and {len(lost) - 1} others are not in memory: load the model without offloading.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".saving-") as place:
        room = Path(place) / target.name
        room.mkdir()
        _write(state, room, shard)
        (room / "config.json").write_text(json.dumps(_whole(config, model, parts), indent=2, sort_keys=True), "utf-8")
        for name in WORDS:
            if words is not None and (Path(words) / name).is_file():
                shutil.copyfile(Path(words) / name, room / name)
        for one in inventory(room):
            if not torch.equal(one.read(), state[one.name].cpu()):
                raise ValueError(f"{one.name} is not in {room} as it was saved: check the disk.")
        sums.write(room)
        room.rename(target)
    return target


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor of all that is saved, each parameter under its first name only, sorted by name."""
    packed = quantise.packed_layers(model)
    out: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if any(name.startswith(f"{path}.") and name != f"{path}.bias" for path in packed) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        out[name] = tensor.detach()
    for path, kind in packed.items():
        out |= quantise.packed_state(model, path, kind)
    return dict(sorted(out.items()))


def _whole(config: Mapping[str, Any], model: nn.Module, parts: Sequence[Part]) -> dict[str, Any]:
    """The config of a checkpoint that needs nothing beside it."""
    named = {part.key: None for part in (TOWER, *parts) if part.key in config or part is not TOWER}
    packed = sorted(set(quantise.packed_layers(model).values()))
    return {**config, **named, **({"quantised": packed[0]} if packed else {})}


def _write(state: Mapping[str, torch.Tensor], room: Path, shard: int) -> None:
    """Safetensors files of at most `shard` bytes (or one tensor), with an index where there are several."""
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if files[-1] and size + tensor.nbytes > shard:
            files.append([])
            size = 0
        files[-1].append(name)
        size += tensor.nbytes
    places = {}
    for number, names in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file({name: state[name].contiguous() for name in names}, room / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(one.nbytes for one in state.values())}, "weight_map": places}
        (room / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True), "utf-8")
