"""Swin transformer (Liu et al. 2021) as detectors use it: any picture size, four maps, each behind a norm of its own.

Parameter names are those of microsoft/Swin-Transformer's detection code, which MaskDINO and its kin keep. Axes in
names: N pictures, H and W of a map, C channels, w the window's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TINY: Mapping[str, Any] = {
    "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7, "mlp_ratio": 4.0,
    "patch_size": 4,
}  # fmt: skip
APART = -100.0  # added between places that only the shift has brought into one window


class WindowAttention(nn.Module):
    """Attention inside a window, with a learned bias for each offset between two of its places."""

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """windows [N * count, w * w, C]; mask [count, w * w, w * w] is added to the scores."""
        count, places, width = windows.shape
        query, key, value = self.qkv(windows).view(count, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table
        bias = table[offsets(self.window, table.device)].permute(2, 0, 1)[None]
        if mask is not None:
            pictures = count // mask.shape[0]
            bias = (bias + mask[:, None].to(bias.dtype)).repeat(pictures, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).reshape(count, places, width))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention in windows that lie `shift` places off the map's edge, then the two-layer network."""

    def __init__(self, width: int, heads: int, window: int, shift: int, ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        self.mlp = Mlp(width, int(width * ratio))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [N, H, W, C]. A map that no number of windows covers is filled up with zeros at its right and bottom."""
        height, width = x.shape[1:3]
        inner = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            inner = inner.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = inner.shape[1:3]
        attended = self.attn(cut(inner, self.window), mask if self.shift else None)
        inner = joined(attended, self.window, rows, columns)
        if self.shift:
            inner = inner.roll((self.shift, self.shift), (1, 2))
        x = x + inner[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Column by column: upper left, lower left, upper right, lower right.
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, -1)))


class Stage(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, ratio: float, last: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(width, heads, window, window // 2 if index % 2 else 0, ratio) for index in range(depth)
        )
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = shifted_mask(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, H / patch, W / patch, C], rounded up."""
        height, width = pictures.shape[2:]
        pictures = F.pad(pictures, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(pictures).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Pictures to maps of stride 4, 8, 16 and 32. config: keys of `TINY`, which stand for what it leaves out."""

    def __init__(self, config: Mapping[str, Any] = TINY) -> None:
        super().__init__()
        given = {**TINY, **config}
        depths: Sequence[int] = given["depths"]
        self.widths = tuple(given["embed_dim"] * 2**index for index in range(len(depths)))
        self.patch_embed = PatchEmbed(given["embed_dim"], given["patch_size"])
        self.layers = nn.ModuleList(
            Stage(
                width, depths[index], given["num_heads"][index], given["window_size"], given["mlp_ratio"],
                index == len(depths) - 1,
            )
            for index, width in enumerate(self.widths)
        )  # fmt: skip
        for index, width in enumerate(self.widths):
            self.add_module(f"norm{index}", nn.LayerNorm(width))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[N, 3, H, W] -> maps [N, C, h, w], the finest first."""
        x, maps = self.patch_embed(pictures), []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)


def cut(x: torch.Tensor, window: int) -> torch.Tensor:
    """[N, H, W, C] -> windows [N * count, w * w, C], row by row."""
    pictures, height, width, channels = x.shape
    x = x.view(pictures, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def joined(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    """What `cut` took apart: [N, height, width, C]."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def offsets(window: int, device: torch.device | None = None) -> torch.Tensor:
    """[w * w, w * w]: which row of the bias table stands for the offset from one place to another."""
    along = torch.arange(window, device=device)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(along, along, indexing="ij"))
    down = rows[:, None] - rows[None] + window - 1
    across = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + across


def shifted_mask(height: int, width: int, window: int, device: torch.device) -> torch.Tensor:
    """[count, w * w, w * w]: `APART` between places of a shifted window that are no neighbours on the map, else 0."""
    shift = window // 2

    def stripes(length: int) -> torch.Tensor:
        full = length + -length % window
        at = torch.arange(full, device=device)
        return (at >= full - window).long() + (at >= full - shift).long()

    region = (3 * stripes(height)[:, None] + stripes(width)[None]).float()
    parts = cut(region[None, :, :, None], window).squeeze(-1)
    return torch.where(parts[:, None] != parts[:, :, None], APART, 0.0)
