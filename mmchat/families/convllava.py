"""ConvLLaVA: a five-stage ConvNeXt that halves large pictures instead of cutting them; boxes as numbers in the text.

Ge et al. 2024, arXiv 2405.15738, github.com/alibaba/conv-llava, a fork of LLaVA 1.5. Checkpoints: Vicuna 7B for
pictures of 768, 1024 or 1536 pixels; the encoder has a folder of its own, and as the original does that one is read.

The authors claim any aspect ratio and publish no code for it: their configs say `image_aspect_ratio: pad`. So it is an
option, `picture_preparation: native` in config.json or in models.toml. The picture then keeps its shape, without
padding, at about as many pixels as the square has; its numbers are relative to its own width and height. How well the
published weights do so, and which sizes the paper used, is not verified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmchat.dialect import LLAVA
from mmchat.family import Family
from mmchat.geometry import Frame
from mmchat.layout import KEYS as LAYOUT
from mmchat.layout import TASKS, mention
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.convnext import CONVNEXT_LARGE, ConvNextTower
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, Seen
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD
from mmchat.nets.weights import Part
from mmchat.templates import TEMPLATES

KEYS = (
    (r"^model\.vision_tower\.vision_tower\.", "vision."),
    (r"^(embeddings|encoder)\.", r"vision.\1."),  # the encoder's own folder
    *LAYOUT,
)
DROP = (r"rotary_emb\.inv_freq$", r"^((model\.)?vision_tower\.vision_tower\.)?layernorm\.")  # a last norm unused
PREPARED = ("training", "native")
"""How pictures are prepared, by `picture_preparation` in config.json: as in training (the default), or each in its own
shape."""
LEAST = 0.75  # of the square's area that a picture in its own shape has: within, it keeps its own size
ENCODER = Part("mm_vision_tower", "ConvNeXt encoder", holds="vision.", way="instead", config="vision_config")


class ConvLlava(Model):
    """The common slots; its maps are as wide and high as the picture is."""

    def encode(self, pixels: torch.Tensor | Sequence[torch.Tensor]) -> Encoded:
        """pixels [B, 3, H, W], or pictures [3, H, W] of different sizes, which are seen one by one."""
        if isinstance(pixels, torch.Tensor):
            return self.seen(pixels)
        each = [self.seen(picture[None]) for picture in pixels]
        levels = {name: [one.levels[name][0] for one in each] for name in each[0].levels}
        return Encoded([one.vectors[0] for one in each], levels)

    def seen(self, pixels: torch.Tensor) -> Encoded:
        """Pictures [B, 3, H, W] of one size."""
        stages = self.vision.maps(pixels)
        last = stages[-1]
        vectors = self.bridge((last.flatten(2).transpose(1, 2),))
        named = {f"stage {number}": stages[number] for number in range(3, len(stages) - 1)}
        named |= {"vision": last, "bridge": vectors.transpose(1, 2).unflatten(2, last.shape[-2:])}
        return Encoded(vectors, named)

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        return values.float().reshape(seen.levels["vision"][picture].shape[-2:])


def tower_sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's own config; where its folder is not there, the published sizes and the side that its name tells."""
    if config.get("vision_config"):
        return config["vision_config"]
    side = re.search(r"-(768|1024|1536)/?$", str(config.get("mm_vision_tower", "")))
    if side is None:
        raise ValueError(
            f"mm_vision_tower is {config.get('mm_vision_tower')!r} in the checkpoint's config.json: put the ConvNeXt "
            "encoder's folder beside the checkpoint, so that its sizes are known"
        )
    return CONVNEXT_LARGE | {"image_size": int(side[1])}


def added(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Blocks and width of the stage that training from a four-stage encoder adds; None where none is added."""
    depth = config.get("vision_add_five_stage") or 0
    return (depth, config.get("vision_five_stage_width", 3072)) if depth and len(sizes["depths"]) == 4 else None


def build(config: Mapping[str, Any]) -> ConvLlava:
    """The model of a published config.json, parameters yet to be loaded.

    Keys of its training script are understood: `mm_vision_resolution`, and with a four-stage encoder
    `vision_add_five_stage` (blocks) with `vision_five_stage_width`.
    """
    sizes = tower_sizes(config)
    if "depths" not in sizes:
        raise ValueError("the vision tower's config.json has no depths: ConvLLaVA sees with a ConvNeXt encoder")
    eyes = ConvNextTower(sizes, config.get("mm_vision_select_layer", -1), added(config, sizes))
    width, language_width = config.get("mm_hidden_size", eyes.width), config["hidden_size"]
    bridge = LastLevel(*projector(config.get("mm_projector_type", "linear"), width, language_width))
    return ConvLlava(llama(config), eyes, bridge)


def frame(config: Mapping[str, Any]) -> Frame:
    """A centred square of the encoder's side; without `image_aspect_ratio: pad` short side and centre crop. With
    `picture_preparation: native` the picture in its own shape, both sides multiples of the pixels of one token.
    """
    sizes = tower_sizes(config)
    side = sizes.get("image_size", CONVNEXT_LARGE["image_size"])
    if (config.get("mm_vision_resolution") or 0) > 256:
        side = config["mm_vision_resolution"]
    prepared = config.get("picture_preparation", "training")
    if prepared not in PREPARED:
        raise ValueError(f"picture_preparation is {prepared!r} in config.json: choose one of {', '.join(PREPARED)}")
    way = "pad" if config.get("image_aspect_ratio") == "pad" else "crop"
    plain = Frame(side, way, (122, 116, 104), CLIP_MEAN, CLIP_STD)
    if prepared == "training":
        return plain
    fifth = added(config, sizes) is not None
    stride = sizes.get("patch_size", 4) * 2 ** (len(sizes["depths"]) - 1 + fifth)
    return replace(plain, way="native", factor=stride, area=(int(LEAST * side**2), side**2))


FAMILY = Family(
    name="convllava",
    title="ConvLLaVA",
    about="Reads fine print: pictures of up to 1536 pixels in few tokens. ConvNeXt in five stages, Vicuna.",
    template=replace(TEMPLATES["vicuna_v1"], tasks=TASKS),
    dialect=LLAVA,
    frame=frame,
    build=build,
    mention=mention,
    keys=KEYS,
    drop=DROP,
    parts=(ENCODER,),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here, nor how well they take pictures that are not square.",
    licence="Code Apache 2.0; weights under the Llama 2 Community License; training data partly for research only.",
    dwarf={
        "model_type": "llava", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -1,
        "image_aspect_ratio": "pad",
        "vision_config": {
            "depths": [1, 1, 2, 1, 1], "hidden_sizes": [8, 12, 16, 24, 32], "patch_size": 4, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "image_size": 256,
        },
    },
)  # fmt: skip
