"""Shikra: CLIP's last layer but one, one linear layer, LLaMA; boxes and points as numbers in the text.

Chen et al. 2023, arXiv 2306.15195, github.com/shikras/shikra. Published as what must be added to the original LLaMA-7B
(shikras/shikra-7b-delta-v1 and its later form of July 2023); the tower is openai/clip-vit-large-patch14, in a folder of
its own. Adding the delta to Vicuna runs and points worse: the base is LLaMA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_drawn
from mmchat.geometry import Frame
from mmchat.layout import DROP, KEYS, tower, tower_sizes
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Model
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD
from mmchat.nets.weights import Part
from mmchat.prompt import Task
from mmchat.templates import TEMPLATES

WHITE = (255, 255, 255)
CLIP_224 = {**CLIP_LARGE, "image_size": 224}

TASKS = (
    Task("free", "Ask freely"),
    Task(
        "describe",
        "Describe the picture with places",
        "Provide a comprehensive description of the image {image} and specify the positions of any mentioned objects "
        "in square brackets.",
        needs="",
    ),
    Task(
        "find",
        "Find what I name",
        "Can you point out {text} in the image {image} and provide the coordinates of its location?",
    ),
    Task(
        "region",
        "Describe my region",
        "For the given image {image}, can you provide a unique description of the area {text}?",
        needs="region",
    ),
    Task(
        "reason",
        "Reason with places",
        "With the help of the image {image}, can you clarify my question '{text}'? Also, explain the reasoning behind "
        "your answer, and don't forget to label the bounding boxes of the involved objects using square brackets.",
    ),
    Task(
        "short", "Answer in short", "For this image {image}, I want a simple and direct answer to my question: {text}"
    ),
    Task("caption", "Caption the picture", "Summarize the content of the photo {image}.", needs=""),
)


def sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the sizes of the tower that nearly all checkpoints name, where the loader found none."""
    return {"vision_config": CLIP_224, **config}


def frame(config: Mapping[str, Any]) -> Frame:
    """A centred square on white. All numbers refer to it; ours come back to the picture, which the official demo never
    does.
    """
    return Frame(tower_sizes(sized(config))["image_size"], "pad", WHITE, CLIP_MEAN, CLIP_STD)


def build(config: Mapping[str, Any]) -> Model:
    """The model of a published config.json, parameters yet to be loaded."""
    bridge = LastLevel(*projector("linear", config["mm_hidden_size"], config["hidden_size"]))
    return Model(llama(config), tower(sized(config)), bridge)


FAMILY = Family(
    name="shikra",
    title="Shikra",
    about="Finds, describes and points while it talks: boxes and points go in and out as numbers in plain sentences.",
    template=replace(TEMPLATES["shikra"], tasks=TASKS),
    dialect=DIALECTS["shikra"],
    frame=frame,
    build=build,
    mention=as_drawn,  # three decimals each
    keys=KEYS,
    drop=DROP,
    parts=(Part("base_model", "original LLaMA", usual="llama-7b-hf", way="delta", alone=(r"^bridge\.", r"^vision\.")),),
    takes=frozenset({"box", "point"}),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Code CC BY-NC 4.0; weights are a difference to LLaMA, under that model's licence: research only.",
    dwarf={
        "model_type": "shikra", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_vision_select_layer": -2, "mm_use_im_start_end": True,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
