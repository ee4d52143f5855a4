"""Fills a module with a case's recorded parameters, by the road that loads a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from mmchat.nets import weights

LAYOUTS = ("file", "shards", "bin")
layout: ContextVar[str] = ContextVar("layout", default="file")  # how a case's parameters lie on disk: one of LAYOUTS


def filled(
    build: Callable[[], Any],
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    keys: Sequence[tuple[str, str]] = (),
    drop: Sequence[str] = (),
    fold: Callable[[weights.State], weights.State] | None = None,
    parts: Sequence[weights.Part] = (),
) -> Any:
    """What `build` makes, with exactly these parameters, in `dtype`, ready to run; gradients can flow."""
    with weights.without_memory():
        module = build()
    with TemporaryDirectory() as folder:
        write(Path(folder), state, layout.get())
        weights.load(module, Path(folder), keys, drop, fold, precision="fp32", parts=parts)
    return module.requires_grad_(True).to(dtype)


def write(folder: Path, state: Mapping[str, torch.Tensor], how: str) -> None:
    """The parameters as a checkpoint's files: one of safetensors, two shards of it with their index, or two of torch's
    own kind.
    """
    if how == "file":
        save_file(dict(state), folder / "model.safetensors")
        return
    stem, ending = ("model", "safetensors") if how == "shards" else ("pytorch_model", "bin")
    names = sorted(state)
    where = {}
    for number, part in enumerate((names[0::2], names[1::2]), 1):
        name = f"{stem}-{number:05d}-of-00002.{ending}"
        held = {one: state[one] for one in part}
        save_file(held, folder / name) if how == "shards" else torch.save(held, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": where}), "utf-8")
