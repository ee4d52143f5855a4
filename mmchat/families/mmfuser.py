"""MMFuser: five layers of CLIP fused by deformable attention before LLaVA 1.5's projector.

Cao et al. 2024, arXiv 2410.11829, github.com/yuecao0119/MMFuser, a fork of LLaVA 1.5. Its authors published no weights;
this opens what one trains oneself with that code, whose checkpoints hold CLIP too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmchat.dialect import LLAVA
from mmchat.family import Family
from mmchat.layout import DROP, KEYS, TASKS, frame, mention, tower
from mmchat.nets.bridges import projector
from mmchat.nets.deform import Fused, MSCrossAttnBlock, attended_map, square
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, as_map
from mmchat.templates import TEMPLATES

LAYERS = "list-22/-17/-12/-7/-2"


class FusedProjector(nn.Sequential):
    """The fuser, then the projector's layers, numbered as in checkpoints: the fuser is 0 whatever the projector's
    kind.
    """

    def __init__(
        self, kind: str, width: int, language_width: int, levels: int = 4, heads: int = 16, points: int = 4
    ) -> None:
        super().__init__(MSCrossAttnBlock(width, levels, heads, points), *projector(kind, width, language_width))

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        return self.project(self.fuse(levels).output)

    def fuse(self, levels: Sequence[torch.Tensor]) -> Fused:
        """What the fuser computes from the tower's levels, the deepest one last."""
        return self[0].fuse(levels)

    def project(self, fused: torch.Tensor) -> torch.Tensor:
        """The layers behind the fuser."""
        for layer in list(self)[1:]:
            fused = layer(fused)
        return fused


class MMFuser(Model):
    """LLaVA's slots, with the maps on both sides of the fuser kept for looking at."""

    def encode(self, pixels: torch.Tensor) -> Encoded:
        levels = self.vision(pixels)
        fused = self.bridge.fuse(levels)
        vectors = self.bridge.project(fused.output)
        maps = {"before fuser": levels[-1], "after fuser": fused.output, "bridge": vectors}
        named = {name: as_map(level) for name, level in maps.items()}
        named |= {f"layer {layer}": as_map(level) for layer, level in zip(self.vision.select, levels, strict=True)}
        named["sampling points"] = attended_map(fused.cross, square(vectors.shape[1])).to(vectors.dtype)
        return Encoded(vectors, named)


def build(config: Mapping[str, Any]) -> MMFuser:
    """The model of a self-trained checkpoint's config.json, parameters yet to be loaded."""
    eyes = tower({"mm_vision_select_layer": LAYERS, **config})
    if len(eyes.select) < 5:
        raise ValueError(
            f"MMFuser fuses five layers of the tower, "
            f"but mm_vision_select_layer names {len(eyes.select)}: this is another family's"
        )
    bridge = FusedProjector(config.get("mm_projector_type", "linear"), config["mm_hidden_size"], config["hidden_size"])
    return MMFuser(llama(config), eyes, bridge)


FAMILY = Family(
    name="mmfuser",
    title="MMFuser",
    about="LLaVA 1.5 with five layers of its vision tower fused, for finer detail. No published weights: train yours.",
    template=replace(TEMPLATES["vicuna_v1"], tasks=TASKS),
    dialect=LLAVA,
    frame=frame,
    build=build,
    mention=mention,
    keys=KEYS,
    drop=DROP,
    # Deformable offsets do not survive 4 bits, and the sampling casts to the type of a weight that would be packed.
    keep=("vision", "bridge", "language.lm_head"),
    heats=(
        "feature norm", "components", "likeness", "before fuser", "after fuser", "sampling points", "attention",
        "logit lens",
    ),
    unverified="No weights of it were ever published, so none were run.",
    licence="Code Apache 2.0; what is trained from Vicuna falls under the Llama 2 Community License.",
    dwarf={
        "model_type": "llava", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": [-6, -5, -4, -3, -2],
        "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
