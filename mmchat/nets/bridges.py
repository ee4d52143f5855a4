"""Bridges: feature levels become vectors of the language model's width."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

KINDS = "linear, mlp2x_gelu (any number for 2), identity"


def projector(kind: str, width: int, language_width: int) -> list[nn.Module]:
    """The layers of a LLaVA projector, by its name in a checkpoint's config (`mm_projector_type`); GELU is the exact
    one.
    """
    if kind == "identity":
        return [nn.Identity()]
    if kind == "linear":
        return [nn.Linear(width, language_width)]
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        layers: list[nn.Module] = [nn.Linear(width, language_width)]
        for _ in range(1, int(match[1])):
            layers += [nn.GELU(), nn.Linear(language_width, language_width)]
        return layers
    raise ValueError(f"no projector {kind!r}: choose one of {KINDS}")


class LastLevel(nn.Sequential):
    """A projector over the last of the levels it is given; several layers are numbered from 0, as in checkpoints."""

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        return super().forward(levels[-1])
