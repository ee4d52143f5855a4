"""Qwen2.5-VL: pictures in their own size, positions in rows and columns, boxes as JSON in pixels of what it sees.

Bai et al. 2025, arXiv 2502.13923; checkpoints Qwen/Qwen2.5-VL-3B-Instruct and larger, run by transformers' own classes
behind our slots. Pictures are held to the processor class's 1280 tokens, fewer than the checkpoint's own file allows:
16,384 would keep a CPU busy for minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_drawn
from mmchat.geometry import Frame
from mmchat.nets.native import NativeSize, Speaker, configured
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD
from mmchat.prompt import Task, Template

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Describe this image in detail.", needs=""),
    Task("find", "Find what I name", "Locate every {text} in the image. Report bbox coordinates in JSON format."),
    Task("point", "Point to what I name", "Point to every {text} in the image, report coordinates in JSON format."),
    Task("region", "Describe my region", "Describe what is in the region {text}.", needs="region"),
)


def sizes(config: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """The library's config of a published config.json."""
    return configured(Qwen2_5_VLConfig, config)


def frame(config: Mapping[str, Any]) -> Frame:
    """Both sides multiples of 28, the area between 4 and 1280 tokens; numbers are pixels of that."""
    vision = sizes(config).vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    area = (4 * factor**2, 1280 * factor**2)
    return Frame(factor * 16, "native", mean=CLIP_MEAN, std=CLIP_STD, factor=factor, area=area)


def build(config: Mapping[str, Any]) -> NativeSize:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    tied = bool(config.get("tie_word_embeddings", made.tie_word_embeddings))
    language = Speaker(Qwen2_5_VLTextModel(made.text_config), tied)
    return NativeSize(language, Qwen2_5_VisionTransformerPretrainedModel(made.vision_config))


FAMILY = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    about="Finds, points, reads and describes, pictures in their own size; places stand as JSON in its answers.",
    template=Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n{text}<|im_end|>\n",
        "<|im_start|>assistant\n{text}<|im_end|>\n",
        image="<|vision_start|>{image}<|vision_end|>{text}",
        opening="<|im_start|>assistant\n",
        stop=("<|im_end|>", "<|endoftext|>"),
        tasks=TASKS,
    ),
    dialect=DIALECTS["qwen2_5_vl"],
    frame=frame,
    build=build,
    mention=as_drawn,  # in pixels of the picture as the model sees it
    keys=(
        (r"^(?:model\.)?visual\.", "vision."),
        (r"^model\.language_model\.", "language.model."),
        (r"^(model|lm_head)\.", r"language.\1."),
    ),
    takes=frozenset({"box", "point", "several pictures"}),
    keep=("vision", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published weights were never run here.",
    licence="7B Apache 2.0; 3B Qwen Research Licence, not for commerce; 72B Qwen Licence.",
    dwarf={
        "model_type": "qwen2_5_vl", "tie_word_embeddings": False,
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": 256, "eos_token_id": 257,
        "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303,
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "out_hidden_size": 64, "fullatt_block_indexes": [1],
        },
    },
)  # fmt: skip
