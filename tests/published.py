"""Checkpoints as their authors publish them, of dwarf size: shards of either kind, a tower or a base model beside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dwarfs import write_tokenizer
from safetensors.torch import save_file

from mmchat.desk import Answer, Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.family import Family
from mmchat.geometry import Box, Region

State = Mapping[str, torch.Tensor]


def named(state: State, names: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Our names as published ones, by ordered (pattern, replacement) pairs; what none matches is left out."""
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            if re.match(pattern, name):
                out[re.sub(pattern, replacement, name)] = tensor.clone().contiguous()
                break
    return out


def write(folder: Path, state: State, config: Mapping[str, Any], kind: str = "safetensors", shards: int = 2) -> Path:
    """A folder with config.json, a tokenizer, and shards of `kind` ("safetensors" or "bin") with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    files = [f"{stem}-{number:05d}-of-{shards:05d}.{kind}" for number in range(1, shards + 1)]
    names = sorted(state)
    where = {name: files[index * shards // len(names)] for index, name in enumerate(names)}
    for file in files:
        part = {name: state[name] for name in names if where[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    write_tokenizer(folder)
    return folder


def answer(folder: Path, family: Family, picture: Any, precision: str = "fp32", text: str = "What is @1?") -> Answer:
    """What the checkpoint in `folder` says about a drawn box: opened, asked and closed by the road of every user."""
    desk = Desk(LocalEngine.open(folder, family, precision, "cpu"))
    turn = Turn("user", text, (Region("box", Box(0.2, 0.1, 0.7, 0.8)),))
    said = list(desk.answer(Ask((picture,), (turn,), limits=Limits(new_tokens=8))))[-1]
    desk.engine.close()
    return said
