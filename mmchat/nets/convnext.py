"""ConvNeXt as a vision tower: stages of depthwise convolutions, each half as large, any height and width.

Liu et al. 2022, arXiv 2201.03545; parameter names as in transformers' ConvNextModel. With five stages as in ConvLLaVA
(Ge et al. 2024, arXiv 2405.15738) a token stands for 64 x 64 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-6  # of every norm inside, whatever layer_norm_eps says: that is of a last norm which nobody here applies
CONVNEXT_LARGE = {
    "depths": [3, 3, 27, 3, 6], "hidden_sizes": [192, 384, 768, 1536, 3072], "patch_size": 4, "hidden_act": "gelu",
    "image_size": 768,
}  # fmt: skip
"""Sizes of the encoders of ConvLLaVA; `image_size` is 768, 1024 or 1536."""


class ChannelNorm(nn.Module):
    """A norm over the channels of [B, C, H, W]: reckoned in float32 at least, scaled in the type that came."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32)).movedim(1, -1)
        plain = F.layer_norm(wide, wide.shape[-1:], eps=EPSILON).to(maps.dtype)
        return (plain * self.weight + self.bias).movedim(-1, 1)


class Stem(nn.Module):
    """Patches of a few pixels, normalised."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, width, patch, stride=patch)
        self.layernorm = ChannelNorm(width)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layernorm(self.patch_embeddings(pictures))


class Block(nn.Module):
    """A wide depthwise convolution, then two layers at every place, scaled, around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale_parameter = nn.Parameter(torch.ones(width))
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.layernorm = nn.LayerNorm(width, eps=EPSILON)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = self.layernorm(self.dwconv(maps).movedim(1, -1))
        inner = self.pwconv2(F.gelu(self.pwconv1(inner))) * self.layer_scale_parameter
        return maps + inner.movedim(-1, 1)


class Stage(nn.Module):
    """Half as large (but for the first), then blocks."""

    def __init__(self, before: int, width: int, depth: int, halve: bool) -> None:
        super().__init__()
        smaller = (ChannelNorm(before), nn.Conv2d(before, width, 2, stride=2)) if halve else ()
        self.downsampling_layer = nn.Sequential(*smaller)
        self.layers = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layers(self.downsampling_layer(maps))


class Stages(nn.Module):
    """The stages, under the name they have in a checkpoint."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)


class ConvNextTower(nn.Module):
    """The last stage's map, flattened row by row.

    config: the encoder's own config.json. `select` -2 leaves out its last stage's last block, -1 nothing. `added`:
    (depth, width) of a stage behind those of the config, as training from four stages adds one. ValueError for sizes
    that do not go together.
    """

    def __init__(self, config: Mapping[str, Any], select: int = -1, added: tuple[int, int] | None = None) -> None:
        super().__init__()
        depths, widths = list(config["depths"]), list(config["hidden_sizes"])
        if len(depths) != len(widths) or not depths:
            raise ValueError(
                f"the ConvNeXt tower's config.json gives {len(depths)} depths and {len(widths)} hidden_sizes: "
                "it must give one of each for every stage"
            )
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"no activation {config['hidden_act']!r} for a ConvNeXt tower: only gelu is known")
        if select not in (-1, -2):
            raise ValueError(
                f"mm_vision_select_layer is {select!r} in the checkpoint's config.json: for a ConvNeXt tower "
                "write -1 (all) or -2 (without the last block)"
            )
        depths[-1] += select + 1  # before a stage is added, as the original does
        if added is not None:
            depths, widths = [*depths, added[0]], [*widths, added[1]]
        self.side, self.width = config.get("image_size", CONVNEXT_LARGE["image_size"]), widths[-1]
        patch = config.get("patch_size", 4)
        self.stride = patch * 2 ** (len(depths) - 1)
        self.embeddings = Stem(widths[0], patch)
        sizes = zip([widths[0], *widths], widths, depths, strict=False)
        self.encoder = Stages([Stage(*size, halve=index > 0) for index, size in enumerate(sizes)])

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """pictures [N, 3, H, W], normalised, of any size -> ([N, h * w, width],)."""
        return (self.maps(pictures)[-1].flatten(2).transpose(1, 2),)

    def maps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """What the stem and each stage give, [N, C, h, w]; every stage floors. ValueError below one token."""
        if min(pictures.shape[-2:]) < self.stride:
            raise ValueError(
                f"a picture of {pictures.shape[-1]} x {pictures.shape[-2]} pixels is too small for this tower: "
                f"give at least {self.stride} on both sides"
            )
        maps = [self.embeddings(pictures.to(self.embeddings.layernorm.weight.dtype))]
        for stage in self.encoder.stages:
            maps.append(stage(maps[-1]))
        return maps
