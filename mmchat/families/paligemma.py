"""PaliGemma 1 and 2: SigLIP at 224, 448 or 896 pixels, one linear layer, Gemma; boxes as four marks of 1024 steps.

Beyer et al. 2024, arXiv 2407.07726, and Steiner et al. 2024, arXiv 2412.03555; checkpoints google/paligemma-3b-mix-224,
google/paligemma2-3b-mix-224 and their kin, run by transformers' own classes behind our slots. It takes one task and
gives one answer, it does not chat; the whole prompt is read in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModel
from transformers.models.paligemma.configuration_paligemma import PaliGemmaConfig
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets.model import Model, PartLike
from mmchat.nets.native import Bridge, Speaker, Tower, configured
from mmchat.nets.vision import HALF
from mmchat.prompt import Task, Template

SIGLIP = {"image_size": 224, "patch_size": 14}  # what a published config leaves out

TASKS = (
    Task("free", "Ask a question", "answer en {text}"),
    Task("describe", "Caption the picture", "caption en", needs=""),
    Task("find", "Find what I name", "detect {text}"),
    Task("segment", "Outline what I name", "segment {text}"),
    Task("raw", "Write the task myself"),
)


class PaliGemma(Model):
    """The slots; positions count from one, and every word of the prompt sees every other."""

    whole = True

    def told(self, parts: Sequence[int | PartLike], start: int) -> Mapping[str, Any]:
        lengths = [1 if isinstance(part, int) else len(part.vectors) for part in parts]
        first, end = sum(lengths[:start]), sum(lengths)
        more: dict[str, Any] = {"position_ids": torch.arange(first + 1, end + 1, device=self.device)[None]}
        if not start:
            seen = torch.zeros(1, 1, end, end, dtype=self.dtype, device=self.device)
            layers = getattr(self.language.config, "layer_types", None)  # Gemma 2 keeps a mask for each kind
            more["attention_mask"] = dict.fromkeys(layers, seen) if layers else seen
        return more


def sizes(config: Mapping[str, Any]) -> PaliGemmaConfig:
    """The library's config of a published config.json."""
    return configured(PaliGemmaConfig, config, "eager")  # Gemma 2 caps its scores, which the faster ways cannot


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square; steps are of its own width and height."""
    side = {**SIGLIP, **config["vision_config"]}["image_size"]
    return Frame(side, "squash", mean=HALF, std=HALF)


def build(config: Mapping[str, Any]) -> PaliGemma:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    words = made.text_config
    language = Speaker(AutoModel.from_config(words), True, getattr(words, "final_logit_softcapping", None))
    return PaliGemma(
        language, Tower(AutoModel.from_config(made.vision_config)), Bridge(PaliGemmaMultiModalProjector(made))
    )


FAMILY = Family(
    name="paligemma",
    title="PaliGemma",
    about="Finds and outlines what a phrase names, captions and answers in short. One task, one answer.",
    template=Template("", "{text}\n", None, image="{image}{text}", stop=("<eos>",), tasks=TASKS, late_start=True),
    dialect=DIALECTS["paligemma"],
    frame=frame,
    build=build,
    mention=as_box,
    keys=(
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision.tower."),
        (r"^(?:model\.)?multi_modal_projector\.", "bridge.projector."),
        (r"^language_model\.lm_head\.", "language.lm_head."),
        (r"^lm_head\.", "language.lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "language.model."),
    ),
    drop=(r"position_ids$",),
    takes=frozenset(),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published weights were never run here.",
    licence="Gemma Terms of Use, code Apache 2.0.",
    dwarf={
        "model_type": "paligemma", "image_token_index": 300, "projection_dim": 64, "hidden_size": 64,
        "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma2", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "query_pre_attn_scalar": 16, "max_position_embeddings": 1024, "sliding_window": 512,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False,
        },
    },
)  # fmt: skip
