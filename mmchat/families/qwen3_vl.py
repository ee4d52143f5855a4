"""Qwen3-VL: pictures in their own size, the tower's earlier features added in the decoder, boxes as JSON in 1000ths.

Bai et al. 2025, arXiv 2511.21631; checkpoints Qwen/Qwen3-VL-2B-Instruct and larger (not the mixtures of experts), run
by transformers' own classes behind our slots. Pictures are held to 1280 tokens, fewer than the checkpoint's own file
allows: 16,384 would keep a CPU busy for minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextModel,
    Qwen3VLVisionModel,
)

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_drawn
from mmchat.geometry import Frame
from mmchat.nets.native import NativeSize, Speaker, configured
from mmchat.nets.vision import HALF
from mmchat.prompt import Task, Template

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Describe this image in detail.", needs=""),
    Task("find", "Find what I name", "Locate every {text} in the image. Report bbox coordinates in JSON format."),
    Task("point", "Point to what I name", "Point to every {text} in the image, report coordinates in JSON format."),
    Task("region", "Describe my region", "Describe what is in the region {text}.", needs="region"),
)


def sizes(config: Mapping[str, Any]) -> Qwen3VLConfig:
    """The library's config of a published config.json."""
    return configured(Qwen3VLConfig, config)


def frame(config: Mapping[str, Any]) -> Frame:
    """Both sides multiples of 32, the area between 64 and 1280 tokens; numbers are thousandths of width and height."""
    vision = sizes(config).vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    area = (64 * factor**2, 1280 * factor**2)
    return Frame(factor * 16, "native", mean=HALF, std=HALF, factor=factor, area=area)


def build(config: Mapping[str, Any]) -> NativeSize:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    tied = bool(config.get("tie_word_embeddings", made.tie_word_embeddings))
    language = Speaker(Qwen3VLTextModel(made.text_config), tied)
    return NativeSize(language, Qwen3VLVisionModel(made.vision_config), deep=True)


FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    about="Finds, points, reads and describes, pictures in their own size; places stand as JSON in its answers.",
    template=Template(
        "",
        "<|im_start|>user\n{text}<|im_end|>\n",
        "<|im_start|>assistant\n{text}<|im_end|>\n",
        image="<|vision_start|>{image}<|vision_end|>{text}",
        opening="<|im_start|>assistant\n",
        stop=("<|im_end|>", "<|endoftext|>"),
        tasks=TASKS,
    ),
    dialect=DIALECTS["qwen3_vl"],
    frame=frame,
    build=build,
    mention=as_drawn,  # in thousandths of width and height
    keys=(
        (r"^(?:model\.)?visual\.", "vision."),
        (r"^model\.language_model\.", "language.model."),
        (r"^(model|lm_head)\.", r"language.\1."),
    ),
    takes=frozenset({"box", "point", "several pictures"}),
    keep=("vision", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published weights were never run here.",
    licence="Apache 2.0, code and weights.",
    dwarf={
        "model_type": "qwen3_vl", "tie_word_embeddings": False,
        "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303,
        "text_config": {
            "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
            "bos_token_id": 256, "eos_token_id": 257,
        },
        "vision_config": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    },
)  # fmt: skip
