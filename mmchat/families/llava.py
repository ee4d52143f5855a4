"""LLaVA 1.5: CLIP's last layer but one, a two-layer projector, Vicuna; boxes as numbers in the text.

Liu et al. 2023, github.com/haotian-liu/LLaVA. Checkpoints: liuhaotian/llava-v1.5-7b and -13b (without the tower inside:
CLIP comes from its own folder, `mm_vision_tower` in the config), and what is trained with that code later (tower
inside).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmchat.dialect import LLAVA
from mmchat.family import Family
from mmchat.layout import DROP, KEYS, TASKS, frame, mention, tower
from mmchat.nets import tiles
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Model
from mmchat.templates import TEMPLATES


class Llava(Model):
    """The common slots; for 1.6 also how a picture's tiles come together."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        width, language_width = config["mm_hidden_size"], config["hidden_size"]
        bridge = LastLevel(*projector(config.get("mm_projector_type", "linear"), width, language_width))
        super().__init__(llama(config), tower(config), bridge)
        self.how = config.get("mm_patch_merge_type", "flat")
        self.offered = tiles.pinpoints(config.get("image_grid_pinpoints") or ())
        self.image_newline = nn.Parameter(torch.zeros(language_width)) if "unpad" in self.how else None

    def tiled(self, views: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Vectors [T, C] of one picture of `size` (width, height), given its views [1 + tiles, 3, side, side]
        (`tiles.views`).
        """
        vectors = self.bridge(self.vision(views))
        return tiles.merged(
            vectors, size, tiles.grid(size, self.offered, self.vision.side), self.how, self.image_newline
        )


def build(config: Mapping[str, Any]) -> Llava:
    """The model of a published config.json, parameters yet to be loaded."""
    return Llava(config)


FAMILY = Family(
    name="llava",
    title="LLaVA 1.5",
    about="Talks about pictures, finds what a sentence describes, describes a box. CLIP, a small projector, Vicuna.",
    template=replace(TEMPLATES["vicuna_v1"], tasks=TASKS),
    dialect=LLAVA,
    frame=frame,
    build=build,
    mention=mention,
    keys=KEYS,
    drop=DROP,
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    licence="Code Apache 2.0; weights under the Llama 2 Community License; training data partly for research only.",
    dwarf={
        "model_type": "llava", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
