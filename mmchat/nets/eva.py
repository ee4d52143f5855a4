"""EVA's vision transformer as BLIP-2 stores it: one qkv layer with biases for queries and values alone, exact GELU.

Fang et al. 2022, arXiv 2211.07636; parameter names of `eva_vit_g.pth` (LAVIS). Axes: N pictures, T = 1 + patches tokens
row by row behind the class token, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-6
VIT_G = {"img_size": 448, "patch_size": 14, "embed_dim": 1408, "depth": 39, "num_heads": 16, "mlp_ratio": 4.3637}
"""EVA-CLIP's ViT-g/14 without its last block, at 448 pixels."""
STORED = 16  # rows and columns of the position table of `eva_vit_g.pth`


class Patches(nn.Module):
    """Patches of a picture as tokens, row by row."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class RelativeBias(nn.Module):
    """A learned number for each head and each pair of places, by how far they lie apart (BEiT)."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 2 + 3, heads))
        self.register_buffer("relative_position_index", relative_places(side), persistent=False)

    def forward(self) -> torch.Tensor:
        """[H, T, T], to be added to the scores."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


def relative_places(side: int) -> torch.Tensor:
    """Row of the table for each pair of tokens [T, T]; the last three rows are the class token's (to patches, from
    patches, to itself).
    """
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None] + side - 1
    rows = (2 * side - 1) ** 2
    index = torch.full((side * side + 1, side * side + 1), rows + 2)
    index[1:, 1:] = apart[0] * (2 * side - 1) + apart[1]
    index[0, 1:], index[1:, 0] = rows, rows + 1
    return index


class Attention(nn.Module):
    """`qkv` has no bias; the key's is zero."""

    def __init__(self, width: int, heads: int, biased: bool, relative_side: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width)) if biased else None
        self.v_bias = nn.Parameter(torch.empty(width)) if biased else None
        self.relative = RelativeBias(relative_side, heads) if relative_side else None
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, shared: torch.Tensor | None = None) -> torch.Tensor:
        mixed = self.qkv(tokens)
        if self.q_bias is not None and self.v_bias is not None:
            mixed = mixed + torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        query, key, value = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = shared
        if self.relative is not None:
            own = self.relative()
            bias = own if bias is None else own + bias
        bias = None if bias is None else bias.to(query.dtype)[None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with the exact GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Norm first; residuals scaled by `gamma_1` and `gamma_2` where the config has layer scales."""

    def __init__(
        self, width: int, inner: int, heads: int, biased: bool, relative_side: int | None, scaled: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads, biased, relative_side)
        self.mlp = Mlp(width, inner)
        self.gamma_1 = nn.Parameter(torch.empty(width)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, tokens: torch.Tensor, shared: torch.Tensor | None = None) -> torch.Tensor:
        attended = self.attn(self.norm1(tokens), shared)
        tokens = tokens + (attended if self.gamma_1 is None else self.gamma_1 * attended)
        changed = self.mlp(self.norm2(tokens))
        return tokens + (changed if self.gamma_2 is None else self.gamma_2 * changed)


class EvaTower(nn.Module):
    """The tower. config: `img_size`, `patch_size`, `embed_dim`, `depth`, `num_heads`, `mlp_ratio`; `pos_side` (side of
    the stored position table, the grid's by default); `use_abs_pos_emb` (True), `qkv_bias` (True), `use_rel_pos_bias`,
    `use_shared_rel_pos_bias` (False), `init_values` (layer scales where not None).

    Parameters: those of the file, but for relative biases, which stand in a module of their own (`KEYS`).
    """

    KEYS = (
        (r"attn\.relative_position_bias_table$", "attn.relative.relative_position_bias_table"),
        (r"(^|\.)rel_pos_bias\.", r"\1shared."),
    )
    DROP = (r"relative_position_index$",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads = config["embed_dim"], config["num_heads"]
        self.side, self.patch, self.width = config["img_size"], config["patch_size"], width
        side = self.side // self.patch
        self.rows = side
        inner = int(width * config.get("mlp_ratio", 4.3637))
        self.patch_embed = Patches(self.patch, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        stored = config.get("pos_side", side)
        absolute = config.get("use_abs_pos_emb", True)
        self.pos_embed = nn.Parameter(torch.empty(1, stored * stored + 1, width)) if absolute else None
        self.shared = RelativeBias(side, heads) if config.get("use_shared_rel_pos_bias") else None
        relative = side if config.get("use_rel_pos_bias") else None
        biased, scaled = config.get("qkv_bias", True), bool(config.get("init_values"))
        self.blocks = nn.ModuleList(
            Block(width, inner, heads, biased, relative, scaled) for _ in range(config["depth"])
        )

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens [N, T, C] with positions."""
        tokens = self.patch_embed(pixels)
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), 1)
        return tokens if self.pos_embed is None else tokens + resized(self.pos_embed, self.rows)

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels [N, 3, S, S] -> [N, T, C] of the last block, class token first; no norm behind it."""
        out = self.embed(pixels)
        shared = None if self.shared is None else self.shared()
        for block in self.blocks:
            out = block(out, shared)
        return out

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        """The one level: patches [N, T - 1, C] without the class token."""
        return (self.tokens(pixels)[:, 1:],)


def resized(positions: torch.Tensor, rows: int) -> torch.Tensor:
    """A position table [1, 1 + n*n, C] for a grid of rows x rows: bicubic, without antialiasing; the class token's
    position stays.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == rows:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, rows), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)), 1)
