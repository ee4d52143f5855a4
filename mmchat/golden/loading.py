"""Fills a module with a case's recorded parameters, by the road that loads a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from mmchat.nets import weights


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
        save_file(dict(state), Path(folder) / "model.safetensors")
        weights.load(module, Path(folder), keys, drop, fold, precision="fp32", parts=parts)
    return module.requires_grad_(True).to(dtype)
