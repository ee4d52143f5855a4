"""NanoDet-g: a small detector of the 80 COCO things, here the proposer of regions.

Source: RangiLyu/nanodet (Apache-2.0), model "g": a plain cross-stage backbone, a feature pyramid whose two ways only
add, and at every
place of three maps (strides 8, 16, 32) 80 class scores and four distances to a box's sides, each a distribution over
11 steps
(Generalized Focal Loss, Li et al. 2020, arXiv 2006.04388). Names of the parts are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mmchat.nets.regions import nms

SLOPE = 0.1
STEPS = 11
MEAN_BGR = (103.53, 116.28, 123.675)
STD_BGR = (57.375, 57.12, 58.395)


class Detections(NamedTuple):
    """Boxes [n, 4] x0, y0, x1, y1 in the unit square of the fitted picture, best first, and their class scores [n,
    80] in 0..1.
    """

    boxes: torch.Tensor
    scores: torch.Tensor


class Conv(nn.Conv2d):
    """A convolution that keeps the size (or halves it), with bias, then a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(super().forward(x), SLOPE)


class Stage(nn.Module):
    """A first convolution whose output is kept, pairs of convolutions seen side by side, a last one; kept and last
    go out together.
    """

    def __init__(self, inputs: int, channels: int, pairs: int, stride: int) -> None:
        super().__init__()
        self.first = Conv(inputs, channels, stride)
        widths = [channels] * (pairs + 1)
        self.pairs = nn.ModuleList(
            nn.ModuleList((Conv(width, channels // 2), Conv(channels // 2, channels // 2))) for width in widths[:-1]
        )
        self.last = Conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x = self.first(x)
        for one, two in self.pairs:
            x = one(x)
            x = torch.cat((two(x), x), 1)
        return torch.cat((self.last(x), kept), 1)


class NanoDet(nn.Module):
    """Pictures [B, 3, 416, 416], RGB in 0..255."""

    strides = (8, 16, 32)

    def __init__(self, stem: int = 32, width: int = 128, classes: int = 80) -> None:
        super().__init__()
        self.classes = classes
        self.stem = Conv(3, stem, 2)
        self.stages = nn.ModuleList(
            (
                Stage(stem, stem, 1, 1),
                Stage(2 * stem, 2 * stem, 2, 2),
                Stage(4 * stem, 4 * stem, 2, 2),
                Stage(8 * stem, 8 * stem, 3, 2),
            )
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels * stem, width, 1) for channels in (4, 8, 16))
        self.towers = nn.ModuleList(Conv(width, width) for _ in self.strides)
        self.outputs = nn.ModuleList(nn.Conv2d(width, classes + 4 * STEPS, 1) for _ in self.strides)

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Raw maps [B, 80 + 44, h, w] of the three strides."""
        mean = torch.tensor(MEAN_BGR, device=pixels.device, dtype=pixels.dtype)[:, None, None]
        std = torch.tensor(STD_BGR, device=pixels.device, dtype=pixels.dtype)[:, None, None]
        x = F.max_pool2d(self.stem((pixels.flip(1) - mean) / std), 3, 2, 1)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        fine, middle, coarse = (lateral(level) for lateral, level in zip(self.lateral, levels[1:], strict=True))
        middle = middle + resized(coarse, middle)
        fine = fine + resized(middle, fine)
        middle = middle + resized(fine, middle)
        coarse = coarse + resized(middle, coarse)
        return [out(tower(x)) for out, tower, x in zip(self.outputs, self.towers, (fine, middle, coarse), strict=True)]

    def places(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every place of every map: boxes [B, n, 4] in the unit square of the fitted picture, class scores [B, n,
        80].
        """
        size = torch.tensor([pixels.shape[3], pixels.shape[2]] * 2, device=pixels.device, dtype=pixels.dtype)
        boxes, scores = [], []
        for stride, out in zip(self.strides, self.maps(pixels), strict=True):
            rows, columns = out.shape[2:]
            flat = out.flatten(2).transpose(1, 2)
            scores.append(flat[..., : self.classes].sigmoid())
            steps = torch.arange(STEPS, device=out.device, dtype=out.dtype)
            sides = (flat[..., self.classes :].unflatten(-1, (4, STEPS)).softmax(-1) @ steps) * stride
            y, x = torch.meshgrid(
                torch.arange(rows, device=out.device), torch.arange(columns, device=out.device), indexing="ij"
            )
            centres = (torch.stack((x.flatten(), y.flatten()), -1) + 0.5) * stride
            boxes.append(torch.cat((centres - sides[..., :2], centres + sides[..., 2:]), -1) / size)
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    def forward(
        self, pixels: torch.Tensor, threshold: float = 0.05, overlap: float = 0.6, most: int = 32
    ) -> list[Detections]:
        """The best boxes of each picture, whatever their class: score above `threshold`, no two with IoU above
        `overlap`.
        """
        found = []
        for boxes, scores in zip(*self.places(pixels), strict=True):
            best = scores.max(-1).values
            order = best.argsort(descending=True)[:400]
            order = order[best[order] > threshold]
            boxes, scores = boxes[order].clamp(0, 1), scores[order]
            kept = nms(boxes, best[order], overlap)[:most]
            found.append(Detections(boxes[kept], scores[kept]))
        return found


def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
