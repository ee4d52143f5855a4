"""Honeybee: CLIP, an abstractor that keeps where things are, Vicuna; boxes as three decimals in the text.

Cha et al. 2024 (CVPR), arXiv 2312.06742, github.com/kakaobrain/honeybee. Checkpoints: seven- and thirteen-billion ones
with C- and D-Abstractor, as .tar.gz files that hold everything but the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import nn

from mmchat.dialect.table import HONEYBEE
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets.abstractors import CAbstractor, DAbstractor, MLPProjector
from mmchat.nets.deform import attended_map
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, as_map, is_square
from mmchat.nets.resampler import Resampler
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, ClipTower
from mmchat.nets.weights import Fold
from mmchat.prompt import Task
from mmchat.templates import TEMPLATES

KEYS = (
    (r"^vision_model\.vision_model\.", "vision."),
    (r"^abstractor\.", "bridge."),
    (r"^language_model\.", "language."),
)
DROP = (r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$")  # tables that older libraries saved

BRIDGES = {"c-abs": CAbstractor, "d-abs": DAbstractor, "mlp": MLPProjector, "resampler": Resampler}

TASKS = (
    Task("free", "Ask freely"),
    Task("short", "Answer in a word", "Answer the question using a single word or phrase. {text}"),
    Task("choice", "Choose a letter", "Answer with the option's letter from the given choices directly. {text}"),
    Task(
        "find",
        "Find what I name",
        "Provide the bounding box coordinate of the region this sentence describes. {text}",
    ),
    Task("region", "Describe my region", "Provide a short description for this region. {text}", needs="region"),
)


class Honeybee(Model):
    """The common slots, with the abstractor's maps kept for looking at. `queries`: its vectors without the end's."""

    def __init__(self, language: nn.Module, vision: ClipTower, bridge: nn.Module, queries: int) -> None:
        super().__init__(language, vision, bridge)
        self.queries = queries

    def encode(self, pixels: torch.Tensor) -> Encoded:
        levels = self.vision(pixels)
        named = {"vision": levels[-1]}
        if isinstance(self.bridge, DAbstractor):
            steps = self.bridge.steps(levels[-1])
            vectors = steps.output
            looked = sum(attended_map(one, self.bridge.grid) for one in steps.attended)
            named["sampling points"] = looked.to(vectors.dtype)
        else:
            vectors = self.bridge(levels)
        named["bridge"] = vectors[:, : self.queries]
        return Encoded(vectors, {name: as_map(level) for name, level in named.items() if is_square(level)})


def projector(config: Mapping[str, Any]) -> dict[str, Any]:
    """`projector_config`; where the file is of the old layout, what stood in its place."""
    if "projector_config" in config:
        return dict(config["projector_config"])
    if "visual_projector_config" not in config:
        raise KeyError("projector_config")
    found = dict(config["visual_projector_config"])
    if "num_query_tokens" in config:
        found["num_query_tokens"] = config["num_query_tokens"]
    return found


def abstractor(config: Mapping[str, Any], width: int, language_width: int, places: int) -> nn.Module:
    """The bridge that a `projector_config` describes, for `places` vectors of `width` from the tower. ValueError for an
    unknown kind or sizes that do not go together.
    """
    kind = config.get("projector_type")
    if kind not in BRIDGES:
        raise ValueError(f"projector_type is {kind!r} in config.json: choose one of {', '.join(BRIDGES)}")
    return BRIDGES[kind](config, width, language_width, places)


def tower_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The CLIP tower's sizes: CLIP-L/14's, but for what `vision_config` says; it may name no more than the side."""
    given = config["vision_config"]
    if given.get("encoder_type", "openai.clip") != "openai.clip":
        raise ValueError(f"encoder_type is {given['encoder_type']!r} in config.json: only openai.clip is known")
    named = str(given.get("pretrained_vision_name_or_path", ""))
    side = {"image_size": 336 if named.endswith("-336") else 224}
    return CLIP_LARGE | side | {key: given[key] for key in CLIP_LARGE if given.get(key) is not None}


def build(config: Mapping[str, Any]) -> Honeybee:
    """The model of a published config.json, old layout or new, parameters yet to be loaded."""
    about, sizes = projector(config), tower_sizes(config)
    layer = about.get("feature_layer_index", -1)
    if not isinstance(layer, int):
        raise ValueError(f"feature_layer_index is {layer!r} in config.json: the original runs with one layer only")
    tower = ClipTower(sizes, layer)
    places = tower.grid[0] * tower.grid[1]
    language = llama(config["text_config"])
    bridge = abstractor(about, tower.width, language.config.hidden_size, places)
    return Honeybee(language, tower, bridge, about.get("num_query_tokens", places))


def frame(config: Mapping[str, Any]) -> Frame:
    """The whole picture pressed into the square, its shape not kept."""
    given = config["vision_config"]
    mean, std = given.get("image_mean") or CLIP_MEAN, given.get("image_std") or CLIP_STD
    return Frame(tower_sizes(config)["image_size"], "squash", mean=tuple(mean), std=tuple(std))


def without_class_row(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Positions for the patches alone: old files have one more in front, for the class token that is not shown.

    The patches make a square; a square and one more is none.
    """
    return {
        name: table[:, 1:] if table.shape[1] > 1 and isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1 else table
        for name, table in state.items()
    }


# In its texts roles and words are tokenized apart, and an answer ends with the token that ends a text.
_TALK = replace(TEMPLATES["honeybee_polite"], assistant="\nAI: {text}</s>", cuts=("\nAI: ", "\nHuman: "), tasks=TASKS)

FAMILY = Family(
    name="honeybee",
    title="Honeybee",
    about="Talks about pictures, finds what a sentence describes, describes a box. CLIP, an abstractor that keeps "
    "places, Vicuna.",
    template=_TALK,
    dialect=HONEYBEE,
    frame=frame,
    build=build,
    mention=as_box,  # three decimals, as the training texts write it
    keys=KEYS,
    drop=DROP,
    fold=Fold((r"^bridge\.pos_emb$",), without_class_row),
    keep=("vision", "bridge", "language.lm_head"),
    types=("mllm", ""),  # of the old layout; the new one names none
    heats=("feature norm", "components", "likeness", "sampling points", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Code Apache 2.0; weights CC BY-NC 4.0 and, through Vicuna, the Llama 2 Community License.",
    dwarf={
        "model_type": "honeybee",
        "vision_config": {
            "encoder_type": "openai.clip", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "projector_config": {
            "projector_type": "d-abs", "num_query_tokens": 9, "num_queries": 9, "num_eos_tokens": 0, "pos_emb": True,
            "pooled_v_target": "query", "d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48,
            "num_feature_levels": 1, "feature_layer_index": -1,
        },
        "text_config": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        },
    },
)  # fmt: skip
