"""The resampler: learned queries that gather from a picture's vectors, layer by layer, wherever they stand in it.

Source: kakaobrain/honeybee, which has it from mPLUG-Owl (Ye et al. 2023); parameter names as there. No released model
of Honeybee uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.abstractors import attention, ended


class WideNorm(nn.LayerNorm):
    """A LayerNorm that computes in float32 whatever the type, in float64 too, as the original's does."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(hidden.float(), self.normalized_shape, weight, bias, self.eps).to(hidden.dtype)


class ResamplerAttention(nn.Module):
    """Queries look at themselves and at the picture's vectors."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, queries: torch.Tensor, looked_at: torch.Tensor) -> torch.Tensor:
        return attention(self.query(queries), self.key(looked_at), self.value(looked_at), self.heads)


class ResamplerMlp(nn.Module):
    """Gated layers with a norm between."""

    def __init__(self, width: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(inner, width), nn.Linear(width, inner)
        self.ffn_ln = WideNorm(inner, eps=epsilon)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(hidden)) * self.w3(hidden)))


class ResamplerOutput(nn.Module):
    """What the attention found is added to the normalised queries, then the layers of each alone."""

    def __init__(self, width: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.out_proj = nn.Linear(width, width)
        self.norm2 = WideNorm(width)
        self.mlp = ResamplerMlp(width, inner, epsilon)

    def forward(self, found: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        hidden = queries + self.out_proj(found)
        return hidden + self.mlp(self.norm2(hidden))


class ResamplerCross(nn.Module):
    """One layer's inside."""

    def __init__(self, width: int, inner: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.attention = ResamplerAttention(width, heads)
        self.output = ResamplerOutput(width, inner, epsilon)
        self.norm1, self.normk = WideNorm(width), WideNorm(width)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        queries = self.norm1(queries)
        return self.output(self.attention(queries, torch.cat((queries, self.normk(features)), 1)), queries)


class ResamplerLayer(nn.Module):
    """One layer under the name that it has in a checkpoint."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__()
        self.crossattention = ResamplerCross(*sizes)


class Resampler(nn.Module):
    """The whole bridge, from the tower's levels (the last one [B, N, C]) to [B, M (+ end), language width]."""

    def __init__(self, config: Mapping[str, Any], width: int, language_width: int, places: int) -> None:
        super().__init__()
        inner, ends = config.get("hidden_size", 1024), config.get("num_eos_tokens") or 0
        sizes = (inner, config.get("intermediate_size", 2816), config.get("num_attention_heads", 16))
        epsilon, count = config.get("layer_norm_eps", 1e-6), config.get("num_hidden_layers", 6)
        self.pos_emb = nn.Parameter(torch.zeros(1, places, width)) if config.get("pos_emb", True) else None
        self.visual_input_fc = nn.Linear(width, inner)  # also where the widths are equal
        self.query_tokens = nn.Parameter(torch.zeros(1, config["num_query_tokens"], inner))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ResamplerLayer(*sizes, epsilon) for _ in range(count))
        self.visual_output_fc = nn.Linear(inner, language_width)
        self.vit_eos = nn.Parameter(torch.zeros(1, ends, language_width)) if ends else None

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The vectors that the language model reads."""
        features = levels[-1] if self.pos_emb is None else levels[-1] + self.pos_emb
        features = self.visual_input_fc(features)
        queries = self.query_tokens.expand(len(features), -1, -1)
        for layer in self.encoder.layers:
            queries = layer.crossattention(queries, features)
        return ended(self.visual_output_fc(queries), self.vit_eos)
