"""DINOv2's vision transformer (Oquab et al. 2023): every hidden state of a picture, before the last norm.

Parameter names are made from those of facebook/dinov2-large on the hub by `named`. Positions are interpolated as
transformers 4.32 did: by a factor with a tenth of a patch added, which moves the result a little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

DINOV2_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4,
    "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6,
}  # fmt: skip
"""Sizes of facebook/dinov2-large."""


class Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Norm first; what attention and MLP give is scaled channel by channel before it is added."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Dinov2Tower(nn.Module):
    """Pictures of any whole number of patches -> hidden states with the class token first."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if config.get("use_swiglu_ffn"):
            raise ValueError("This tower has no gated layers (use_swiglu_ffn): take DINOv2 small, base or large.")
        sizes = {**DINOV2_LARGE, **config}
        width, self.patch = sizes["hidden_size"], sizes["patch_size"]
        self.width = width
        side = sizes["image_size"] // self.patch
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, side * side + 1, width))
        self.patches = nn.Conv2d(3, width, self.patch, stride=self.patch)
        shape = (width, sizes["num_attention_heads"], int(width * sizes["mlp_ratio"]), sizes["layer_norm_eps"])
        self.layers = nn.ModuleList(Layer(*shape) for _ in range(sizes["num_hidden_layers"]))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """pictures [N, 3, H, W], normalised -> hidden states [N, 1 + patches, width]: embeddings, then each layer's."""
        patches = self.patches(pictures.to(self.patches.weight.dtype))
        placed = self.placed(patches.shape[2], patches.shape[3])
        x = torch.cat((self.first.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), 1) + placed
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states

    def placed(self, rows: int, columns: int) -> torch.Tensor:
        """Positions [1, 1 + rows * columns, width] for a map of that size."""
        stored = self.positions.shape[1] - 1
        if stored == rows * columns and rows == columns:
            return self.positions
        side = math.isqrt(stored)
        table = self.positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        factor = ((rows + 0.1) / math.sqrt(stored), (columns + 0.1) / math.sqrt(stored))
        finer = F.interpolate(table.float(), scale_factor=factor, mode="bicubic", align_corners=False)
        return torch.cat((self.positions[:, :1], finer.to(table.dtype).flatten(2).transpose(1, 2)), 1)


def named(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """(pattern, replacement) pairs: the hub's parameter names behind the pattern `published` to ours behind `ours`."""
    return (
        (rf"^{published}embeddings\.patch_embeddings\.projection\.", f"{ours}patches."),
        (rf"^{published}embeddings\.cls_token$", f"{ours}first"),
        (rf"^{published}embeddings\.position_embeddings$", f"{ours}positions"),
        (rf"^{published}encoder\.layer\.(\d+)\.attention\.attention\.", rf"{ours}layers.\1.attention."),
        (rf"^{published}encoder\.layer\.(\d+)\.attention\.output\.dense\.", rf"{ours}layers.\1.attention.out."),
        (rf"^{published}encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", rf"{ours}layers.\1.scale\2"),
        (rf"^{published}encoder\.layer\.(\d+)\.(?:mlp\.)?", rf"{ours}layers.\1."),
    )
