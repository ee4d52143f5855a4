"""LLaVA-OneVision: SigLIP over a picture as a whole and in up to 36 tiles, a projector, Qwen2.

Li et al. 2024, arXiv 2408.03326; the conversions that transformers reads (llava-hf/llava-onevision-qwen2-0.5b-ov-hf and
larger), SigLIP and Qwen2 run by its own classes behind our slots. Several pictures are each one padded square, as its
authors show them. Videos are not taken here. Neither its paper nor its card says how it writes places, though a part of
its texts has some: it is not asked for any.

A large picture is seen 37 times, which keeps a CPU busy for minutes: `image_grid_pinpoints`, as an entry of config.json
or in models.toml, may offer fewer sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

from mmchat.dialect import Marks
from mmchat.family import Family, as_number
from mmchat.geometry import Frame
from mmchat.layout import Views
from mmchat.nets.anyres import Anyres
from mmchat.nets.native import Bridge, Speaker, configured, tied
from mmchat.nets.vision import HALF
from mmchat.prompt import Piece, Slot, Task, Template

GREY = (127, 127, 127)
DIGITS = 7  # to which the library rounds before it cuts padding off

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Describe this image in detail.", needs=""),
    Task("read", "Read the text", "What is written in the image?", needs=""),
)


class Spoken(Template):
    """Every message begins on a line of its own, behind its pictures."""

    def beside(self, text: tuple[Piece, ...], images: Sequence[int | Slot]) -> tuple[Piece, ...]:
        return super().beside(("\n", *text), images)


class Tower(nn.Module):
    """The library's SigLIP up to a layer, before its last norm, as one level."""

    def __init__(self, tower: nn.Module, select: int) -> None:
        super().__init__()
        self.tower, config = tower, tower.config
        self.side, self.depth = config.image_size, select % (config.num_hidden_layers + 1)
        self.grid = (config.image_size // config.patch_size,) * 2

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor]:
        """pictures [N, 3, side, side] -> [N, patches, width]."""
        states = self.tower.embeddings(pictures)
        for layer in self.tower.encoder.layers[: self.depth]:
            states = layer(states, None)
        return (states,)


def sizes(config: Mapping[str, Any]) -> LlavaOnevisionConfig:
    """The library's config of a published config.json. ValueError for what no published one says."""
    made = configured(LlavaOnevisionConfig, config)
    if not isinstance(made.vision_feature_layer, int) or made.vision_feature_select_strategy != "full":
        raise ValueError("vision_feature_layer must be one number in config.json, and the select strategy full")
    if not re.fullmatch(r"anyres_max_\d+", made.vision_aspect_ratio):
        raise ValueError(f"vision_aspect_ratio is {made.vision_aspect_ratio!r} in config.json: write anyres_max_9")
    side = made.vision_config.image_size
    if not made.image_grid_pinpoints or any(length % side for size in made.image_grid_pinpoints for length in size):
        raise ValueError(f"image_grid_pinpoints in config.json must offer sizes that are multiples of {side} pixels")
    return made


def offered(made: LlavaOnevisionConfig) -> list[tuple[int, int]]:
    """The resolutions (width, height); the config has them the other way round."""
    return [(width, height) for height, width in made.image_grid_pinpoints]


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture as a whole and in tiles; one of several padded to a square."""
    made = sizes(config)
    side = made.vision_config.image_size
    plain = Frame(side, "pad", GREY, HALF, HALF)
    return Views.of(plain, offered(made), side // made.vision_config.patch_size, digits=DIGITS, alone=True)


def build(config: Mapping[str, Any]) -> Anyres:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    language = Speaker(AutoModel.from_config(made.text_config), tied(config))
    vision = Tower(AutoModel.from_config(made.vision_config), made.vision_feature_layer)
    bridge, most = Bridge(LlavaOnevisionMultiModalProjector(made)), int(made.vision_aspect_ratio.rpartition("_")[2])
    return Anyres(language, vision, bridge, made.text_config.hidden_size, offered(made), "spatial_unpad", most)


FAMILY = Family(
    name="llava_onevision",
    title="LLaVA-OneVision",
    about="Describes, reads and compares pictures, one alone in up to 36 tiles. It names no places, takes no region.",
    template=Spoken(
        "",
        "<|im_start|>user {text}<|im_end|>",
        "<|im_start|>assistant {text}<|im_end|>",
        image="{image}{text}",
        opening="<|im_start|>assistant\n",
        stop=("<|im_end|>",),
        tasks=TASKS,
    ),
    dialect=Marks("llava_onevision", (), silent=("<|im_end|>",), example="a cup"),
    frame=frame,
    build=build,
    mention=as_number,  # nothing that is known to be read stands for a region
    keys=(
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision.tower."),
        (r"^(?:model\.)?multi_modal_projector\.", "bridge.projector."),
        (r"^model\.image_newline$", "image_newline"),
        (r"^(?:language_model\.)?lm_head\.", "language.lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "language.model."),
    ),
    drop=(r"position_ids$",),
    takes=frozenset({"several pictures"}),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Apache 2.0, code and weights; a part of the training data for research only.",
    dwarf={
        "model_type": "llava_onevision", "image_token_index": 300, "video_token_index": 301,
        "tie_word_embeddings": False, "vision_aspect_ratio": "anyres_max_9", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu",
        "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56], [112, 112], [56, 168], [168, 56]],
        "text_config": {
            "model_type": "qwen2", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 256, "eos_token_id": 257,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False,
        },
    },
)  # fmt: skip
