"""InternVL 3: a picture in up to twelve tiles and as a whole, 256 vectors each; boxes as <box>[[..]]</box> in 1000ths.

Zhu et al. 2025, arXiv 2504.10479; the conversions that transformers reads (OpenGVLab/InternVL3-1B-hf and larger, also
InternVL 2.5's), run by its own classes behind our slots. Numbers are thousandths of the picture as it was, however many
tiles it became. Twelve tiles keep a CPU busy for minutes: `max_dynamic_patch`, as an entry of config.json or
in models.toml, asks for fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets.native import Speaker, Tower, configured, tied
from mmchat.nets.tiled import Tiled, shuffled
from mmchat.nets.vision import IMAGENET_MEAN, IMAGENET_STD
from mmchat.prompt import Task, Template
from mmchat.tiled import Tiled as TiledFrame

MOST = 12  # tiles

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Please describe the image in detail.", needs=""),
    Task(
        "find",
        "Find what I name",
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{text}</ref>",
    ),
    Task("detect", "Find each of a kind", "Detect the <ref>{text}</ref> in the image with its bounding box."),
    Task("region", "Describe my region", "Please describe the region {text} in the image.", needs="region"),
)


class Bridge(nn.Module):
    """Squares of cells made one, then the library's projector."""

    def __init__(self, made: InternVLConfig) -> None:
        super().__init__()
        self.factor = round(1 / made.downsample_ratio)
        self.projector = InternVLMultiModalProjector(made)

    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """levels [V, n * n, c] -> [V, cells, C]."""
        return self.projector(shuffled(levels[-1], self.factor))


def sizes(config: Mapping[str, Any]) -> InternVLConfig:
    """The library's config of a published config.json."""
    return configured(InternVLConfig, config)


def tiles(config: Mapping[str, Any]) -> tuple[int, int]:
    """The least and the most tiles of a picture."""
    return config.get("min_dynamic_patch", 1), config.get("max_dynamic_patch", MOST)


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed onto the grid of squares whose shape is nearest, and as a whole."""
    return TiledFrame(
        sizes(config).vision_config.image_size[0], mean=IMAGENET_MEAN, std=IMAGENET_STD, tiles=tiles(config)
    )


def build(config: Mapping[str, Any]) -> Tiled:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    language = Speaker(AutoModel.from_config(made.text_config), tied(config))
    vision, side = made.vision_config, made.vision_config.image_size[0]
    cells = int(side // vision.patch_size[0] * made.downsample_ratio) ** 2
    return Tiled(language, Tower(InternVLVisionModel(vision), 1), Bridge(made), side, cells, tiles(config)[1])


FAMILY = Family(
    name="internvl",
    title="InternVL 3",
    about="Describes, reads, finds what a phrase names and tells of a box, pictures in tiles and as a whole.",
    template=Template(
        "",
        "<|im_start|>user\n{text}<|im_end|>\n",
        "<|im_start|>assistant\n{text}<|im_end|>\n",
        image="<img>{image}</img>\n{text}",
        opening="<|im_start|>assistant\n",
        stop=("<|im_end|>",),
        tasks=TASKS,
    ),
    dialect=DIALECTS["internvl"],
    frame=frame,
    build=build,
    mention=as_box,  # <box>[[x0, y0, x1, y1]]</box>, in thousandths
    keys=(
        (r"^(?:model\.)?vision_tower\.", "vision.tower."),
        (r"^(?:model\.)?multi_modal_projector\.", "bridge.projector."),
        (r"^(?:language_model\.)?lm_head\.", "language.lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "language.model."),
    ),
    takes=frozenset({"box", "several pictures"}),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Code MIT; weights Apache 2.0, as the Qwen2.5 in them (78B: Qwen Licence).",
    dwarf={
        "model_type": "internvl", "image_token_id": 300, "tie_word_embeddings": False, "downsample_ratio": 0.5,
        "text_config": {
            "model_type": "qwen2", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 256, "eos_token_id": 257,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "attention_bias": True, "image_size": [56, 56], "patch_size": [14, 14],
        },
    },
)  # fmt: skip
