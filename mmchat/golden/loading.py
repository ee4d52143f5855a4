"""Fills a module with a case's recorded parameters."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    """The module with exactly these parameters, in `dtype`, ready to run."""
    module.load_state_dict(dict(state), strict=True)
    return module.to(dtype).eval()
