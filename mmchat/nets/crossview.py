"""Dual views mixed (INF-LLaVA's DEM): tiles of a large picture and its every-third-pixel views look at each other.

Lin et al. 2024, arXiv 2407.16198, github.com/WeihuangLin/INF-LLaVA; parameter names as in its checkpoints. Of what the
authors compute, the last step keeps the middle of every 3 x 3 block alone: `SpatialEmbed.forward` computes only those
places, `SpatialEmbed.steps` all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.tiles import cut, interleaved, pasted, strided

SCALE = 3  # tiles across and down; nothing in a checkpoint says another


class Attention(nn.Module):
    """Queries look at keys; the unprojected queries are added and the sum normalised."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.linears = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])  # query, key, value, output
        self.ln = nn.LayerNorm(width)

    def forward(self, query: torch.Tensor, looked_at: torch.Tensor) -> torch.Tensor:
        """query [B, Q, C], looked_at [B, K, C] -> [B, Q, C]."""
        return self.attended(query, looked_at, looked_at)[0]

    def attended(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output [B, Q, C] and the weights [B, heads, Q, K]; where `mask` [B, Q, K] is 0 nothing is looked at."""
        projected = zip(self.linears, (query, key, value), strict=False)
        q, k, v = (layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, given in projected)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e9)
        weights = scores.softmax(-1)
        context = (weights @ v).transpose(1, 2).flatten(-2)
        return self.ln(self.linears[3](context) + query), weights


@dataclass(frozen=True)
class Mixed:
    """Every place's values: maps [B, rows, columns, C], and what the last resize makes of `fused`: [B, T, C]."""

    global_asks: torch.Tensor
    local_asks: torch.Tensor
    fused: torch.Tensor
    pooled: torch.Tensor


class SpatialEmbed(nn.Module):
    """Tiles [B, n * n, h, w, C] and views of every n-th pixel -> one map, as large as one of them."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        inner, half = width // 16, width // 2
        self.ffn_crop = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, half))
        self.ffn_stride = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, half))
        self.ln_fuse = nn.LayerNorm(width)

    def forward(self, tiles: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """tiles [9, B, h, w, C] row by row, middle [B, h, w, C] (the view that begins at pixel 1, 1) -> [B, h * w, C].

        h and w must be multiples of 3: then a tile of the large map holds a whole block of `middle`.
        """
        local, asked = self.central(tiles, middle)
        return self.joined(local, asked).flatten(1, 2)

    def central(self, tiles: torch.Tensor, middle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At the middle of every block, maps [B, h, w, C]: what the tiles ask the view, and what the view asks them."""
        blocks = cut(middle, SCALE)  # [9, B, h / 3, w / 3, C]
        _, batch, rows, columns, _ = blocks.shape
        answers = self.attention(blocks.flatten(2, 3).flatten(0, 1), tiles.flatten(2, 3).flatten(0, 1))
        asked = pasted(answers.view(SCALE * SCALE, batch, rows, columns, -1), SCALE)
        centres = pasted(tiles, SCALE)[:, 1::SCALE, 1::SCALE]
        local = self.attention(centres.flatten(1, 2), middle.flatten(1, 2)).view(middle.shape)
        return local, asked

    def joined(self, local: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """The two maps' sum with what the two small networks add, normalised."""
        return self.ln_fuse(torch.cat((self.ffn_crop(local), self.ffn_stride(asked)), -1) + asked + local)

    def steps(self, tiles: torch.Tensor, strides: torch.Tensor) -> Mixed:
        """The authors' own order over every place, for any n: tiles and strides [n * n, B, h, w, C]."""
        count, batch, rows, columns, _ = tiles.shape
        n = math.isqrt(count)
        local, whole = pasted(tiles, n), interleaved(strides, n)

        def asked(questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
            out = self.attention(questions.flatten(2, 3).flatten(0, 1), answers.flatten(2, 3).flatten(0, 1))
            return out.view(count, batch, rows, columns, -1)

        global_asks = pasted(asked(cut(whole, n), tiles), n)
        local_asks = interleaved(asked(strided(local, n), strides), n)
        fused = self.joined(local_asks, global_asks)
        small = F.interpolate(fused.permute(0, 3, 1, 2).float(), (rows, columns), mode="bilinear", align_corners=False)
        return Mixed(global_asks, local_asks, fused, small.flatten(2).transpose(1, 2).to(fused.dtype))
