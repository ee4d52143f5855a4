"""INF-LLaVA: CLIP over a picture of 1008 pixels, in tiles and as a whole, mixed before LLaVA's projector; Llama 3.

Lin et al. 2024, arXiv 2407.16198, github.com/WeihuangLin/INF-LLaVA, a fork of LLaVA 1.5. Checkpoints of 8B, CLIP
inside. The authors run CLIP on 19 views of each picture; what they make of them depends on ten, which are run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmchat.dialect import LLAVA
from mmchat.family import Family
from mmchat.geometry import Frame
from mmchat.layout import DROP, TASKS, mention, tower
from mmchat.layout import KEYS as LAYOUT
from mmchat.layout import frame as layout_frame
from mmchat.nets import tiles
from mmchat.nets.bridges import projector
from mmchat.nets.crossview import SCALE, SpatialEmbed
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, as_map
from mmchat.nets.vision import ClipTower
from mmchat.templates import TEMPLATES

KEYS = (
    (r"^model\.spatial_embed\.", "bridge.spatial_embed."),
    (r"^model\.mm_projector\.", "bridge.projector."),
    *LAYOUT,
)
PREPARED = {"training": SCALE, "loader": 1}
"""How pictures are prepared, by `picture_preparation` in config.json: at three times the tower's side, as in training
(the default), or at that side, as the authors' loader does, whose enlarging has no detail to show."""


class MixedProjector(nn.Module):
    """The views' mixing, then the projector."""

    def __init__(self, kind: str, width: int, language_width: int) -> None:
        super().__init__()
        self.spatial_embed = SpatialEmbed(width)
        self.projector = nn.Sequential(*projector(kind, width, language_width))


class InfLlava(Model):
    """LLaVA's slots; a picture is ten pictures to the tower."""

    def __init__(self, language: nn.Module, vision: ClipTower, bridge: MixedProjector) -> None:
        super().__init__(language, vision, bridge)
        if vision.grid[0] % SCALE or vision.class_token:
            raise ValueError(
                f"INF-LLaVA mixes tiles of 3 x 3 blocks without a class token, but the tower's config.json makes "
                f"{vision.grid[0]} x {vision.grid[1]} patches: this is another family's"
            )

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """pixels [B, 3, H, W] of any size: they become squares of three times the tower's side."""
        seen = self.looked(tiles.few_views(pixels, self.vision.side))
        middle = seen[-1]
        mixed = self.bridge.spatial_embed(seen[:-1], middle)
        # The thumbnail, with which the authors take the mean, samples the same places as the middle view.
        fused = (mixed + middle.flatten(1, 2)) / 2
        vectors = self.bridge.projector(fused)
        named = {"vision": middle.flatten(1, 2), "before fuser": middle.flatten(1, 2), "after fuser": fused}
        return Encoded(vectors, {name: as_map(level) for name, level in (named | {"bridge": vectors}).items()})

    def looked(self, views: torch.Tensor) -> torch.Tensor:
        """Views [V, B, 3, side, side] through the tower, one after the other: maps [V, B, h, w, C]."""
        return torch.stack([self.vision(view)[-1].unflatten(1, self.vision.grid) for view in views])

    def encode_all(self, pixels: torch.Tensor) -> torch.Tensor:
        """The vectors [B, T, C] by the authors' own road over all 19 views, to measure the short one against."""
        seen = self.looked(tiles.all_views(pixels, self.vision.side, SCALE))
        count = SCALE * SCALE
        mixed = self.bridge.spatial_embed.steps(seen[:count], seen[count:-1]).pooled
        return self.bridge.projector((mixed + seen[-1].flatten(1, 2)) / 2)


def build(config: Mapping[str, Any]) -> InfLlava:
    """The model of a published config.json, parameters yet to be loaded."""
    kind, width = config.get("mm_projector_type", "linear"), config["mm_hidden_size"]
    return InfLlava(llama(config), tower(config), MixedProjector(kind, width, config["hidden_size"]))


def frame(config: Mapping[str, Any]) -> Frame:
    """LLaVA's square, three times as large; `picture_preparation: loader` in config.json leaves it as it is."""
    way = config.get("picture_preparation", "training")
    if way not in PREPARED:
        raise ValueError(f"picture_preparation is {way!r} in config.json: choose one of {', '.join(PREPARED)}")
    small = layout_frame(config)
    return replace(small, side=small.side * PREPARED[way])


FAMILY = Family(
    name="inf_llava",
    title="INF-LLaVA",
    about="Looks at a picture of 1008 pixels in tiles and as a whole at once. CLIP, a view mixer, Llama 3.",
    template=replace(TEMPLATES["llama3"], tasks=TASKS),
    dialect=LLAVA,
    frame=frame,
    build=build,
    mention=mention,
    keys=KEYS,
    drop=DROP,
    keep=("vision", "bridge", "language.lm_head"),
    heats=(
        "feature norm", "components", "likeness", "before fuser", "after fuser", "attention", "logit lens",
    ),
    unverified="Its published weights were never run here.",
    licence="Weights under the Meta Llama 3 Community License; training data partly for research only.",
    dwarf={
        "model_type": "llava_llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 84,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
