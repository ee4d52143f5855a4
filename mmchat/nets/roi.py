"""One vector for each box from three levels of a tower, joined first: GPT4RoI's region encoder in Groma's form.

Parameter names are FoundationVision/Groma's. Its fault is kept, because the weights were trained with it: a box's
centre and size stand where its corners belong, and maps are taken for twice as large as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.regions import roi_align

SIDE = 448  # pixels of a picture as the region encoder counts them, whatever size it has
STRIDES = (1.75, 3.5, 7.0)  # of the levels as it counts them; truly 3.5, 7 and 14
CELLS, SAMPLES = 14, 2
GROUPS, ROUNDS = 64, 5
AT_ONCE = 16  # boxes: the samples of a hundred would fill gigabytes


class FuseConv(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.gn = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.gn(self.conv(x)))


class Gathered(NamedTuple):
    """What boxes became, step by step; `vectors` is what it is for."""

    vectors: torch.Tensor  # [K, out]
    cells: list[torch.Tensor]  # of each level [K, width, CELLS, CELLS]
    flat: torch.Tensor  # [K, middle]
    placed: torch.Tensor  # [K, middle]: of the box's numbers alone


class RegionEncoder(nn.Module):
    """Three levels, the deepest last, are scaled to 4, 2 and 1 times their size and told of each other five times; a
    box's cells on all three are summed to one vector.
    """

    def __init__(self, width: int, out: int, middle: int = 1024) -> None:
        super().__init__()
        if width % GROUPS:
            raise ValueError(f"a tower of width {width} cannot be shared out among {GROUPS} groups: choose a multiple")
        self.width = width
        self.input_conv = nn.ModuleList(nn.Conv2d(width + 2, width, 1) for _ in STRIDES)
        self.fuse_convs = nn.ModuleList(FuseConv(width) for _ in range(ROUNDS))
        self.pconvs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in STRIDES)
        self.pos_embedd = nn.Sequential(
            nn.Linear(4, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, middle), nn.ReLU(), nn.LayerNorm(middle)
        )
        self.flatten_linear = nn.Linear(width * CELLS * CELLS, middle)
        self.updims = nn.Linear(middle, out)

    def fuse(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Three maps [N, C, h, w] of one size -> maps of 4, 2 and 1 times it. It depends on the picture alone."""
        maps = []
        for number, (level, first) in enumerate(zip(levels, self.input_conv, strict=True)):
            factor = 2 ** (len(levels) - 1 - number)
            size = (level.shape[2] * factor, level.shape[3] * factor)
            level = stretched(level, size)
            y, x = (torch.linspace(-1, 1, length, device=level.device, dtype=level.dtype) for length in size)
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            where = torch.stack((columns, rows)).expand(len(level), -1, -1, -1)
            maps.append(first(torch.cat((level, where), 1)))
        quarter = self.width // 4
        own = self.width - 2 * quarter
        for conv in self.fuse_convs:
            told = []
            for number, level in enumerate(maps):
                size = (level.shape[2], level.shape[3])
                deeper, finer = maps[min(number + 1, len(maps) - 1)], maps[max(number - 1, 0)]
                parts = (level[:, :own], stretched(deeper[:, own + quarter :], size))
                told.append(torch.cat((*parts, stretched(finer[:, own : own + quarter], size)), 1))
            maps = [conv(level) for level in told]
        return maps

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Maps of `fuse`; boxes [K, 4] (centre x, centre y, width, height in 0..1); owners [K] -> [K, out]."""
        if not len(boxes):
            return maps[0].new_zeros(0, self.updims.out_features)
        some = zip(boxes.split(AT_ONCE), owners.split(AT_ONCE), strict=True)
        return torch.cat([self.gather(maps, *one).vectors for one in some])

    def gather(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, owners: torch.Tensor) -> Gathered:
        """`forward` step by step, all boxes at once."""
        boxes = boxes.to(maps[0].device).float()
        total, cells = None, []
        for level, stride, conv in zip(maps, STRIDES, self.pconvs, strict=True):
            size = torch.tensor((level.shape[3], level.shape[2]) * 2, device=level.device)
            read = roi_align(level.float(), boxes * SIDE / stride / size, owners, CELLS, SAMPLES)
            cells.append(read)
            made = conv(read.to(level.dtype))
            total = made if total is None else total + made
        flat = self.flatten_linear(F.relu(total).flatten(1))
        placed = self.pos_embedd(boxes.to(flat.dtype))
        return Gathered(self.updims(flat + placed), cells, flat, placed)


def stretched(level: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map in another size, its corners on the corners."""
    if level.shape[2:] == size:
        return level
    return F.interpolate(level.float(), size=size, mode="bilinear", align_corners=True).to(level.dtype)
