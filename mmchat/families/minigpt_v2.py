"""MiniGPT-v2: EVA's ViT-g at 448 pixels, four neighbouring tokens joined, Llama 2 chat; boxes as integers 0..100.

Chen et al. 2023, arXiv 2310.09478, github.com/Vision-CAIR/MiniGPT-4. Its file (minigptv2_checkpoint.pth) holds the
projection and low-rank pairs alone. It goes into a folder with a config.json that names the two other parts, which lie
in or beside the folder:

    {"model_type": "minigpt_v2", "llama_model": "Llama-2-7b-chat-hf", "vit_model": "eva_vit_g.pth"}

Newer peft renames the pairs, and the original then runs without them and points anywhere: here they are folded by
either name, and a pair without a partner is an error.

Answers are the likeliest words and nothing counts against saying one again, as in its evaluations; the authors' chat
draws its words and holds a repetition against them (1.05).

The picture's norm (`ln_vision`) is not in the file: it stays at one and zero, as in the original, which never loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets.eva import STORED, VIT_G, EvaTower
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, as_map
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD
from mmchat.nets.weights import Fold, Part
from mmchat.prompt import Task
from mmchat.templates import TEMPLATES

JOIN = 4  # tokens that become one vector: neighbours in a row, not a square

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture with places", "[grounding] describe this image in detail", needs=""),
    Task("find", "Find what I name", "[refer] {text}"),
    Task("detect", "Find all that I name", "[detection] {text}"),
    Task("region", "Name my region", "[identify] what is this {text}", needs="region"),
    Task("short", "Answer in short", "[vqa] {text}"),
    Task("caption", "Caption the picture", "[caption] Briefly describe this image.", needs=""),
)


class Joined(nn.Module):
    """Norm, then `JOIN` tokens that follow one another in raster order side by side, then one layer."""

    def __init__(self, width: int, language_width: int) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(width, eps=1e-5)
        self.llama_proj = nn.Linear(width * JOIN, language_width)

    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Patches [N, T, C] -> [N, T / JOIN, language width]. The norm is computed in float32."""
        return self.llama_proj(self.normed(levels[-1]).unflatten(1, (-1, JOIN)).flatten(2))

    def normed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens behind the norm."""
        norm = self.ln_vision
        made = F.layer_norm(tokens.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return made.to(tokens.dtype) if tokens.dtype != torch.float64 else norm(tokens)


class MiniGPTv2(Model):
    """LLaVA's slots; its vectors lie in rows a quarter as long as the tower's."""

    def encode(self, pixels: torch.Tensor) -> Encoded:
        levels = self.vision(pixels)
        vectors = self.bridge(levels)
        named = {"vision": as_map(levels[-1])}
        if (grid := self.grid(vectors.shape[1])) is not None:
            named["bridge"] = vectors.transpose(1, 2).unflatten(2, grid)
        return Encoded(vectors, named)

    def grid(self, tokens: int) -> tuple[int, int] | None:
        rows = self.vision.rows
        return (rows, rows // JOIN) if rows % JOIN == 0 and tokens == rows * rows // JOIN else None


def tower_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the tower: the published ones, whose position table is stored for 16 x 16 patches."""
    return dict(config.get("vision_config") or {**VIT_G, "pos_side": STORED})


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square; numbers are relative to its own width and height."""
    return Frame(tower_config(config)["img_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)


def build(config: Mapping[str, Any]) -> MiniGPTv2:
    """The model of a config.json (see above), parameters yet to be loaded."""
    sizes = config.get("llm_config") or config
    if "hidden_size" not in sizes:
        raise ValueError(
            "config.json has no sizes of the language model: name its folder under llama_model (Llama-2-7b-chat-hf)"
        )
    tower = EvaTower(tower_config(config))
    return MiniGPTv2(llama(sizes), tower, Joined(tower.width, sizes["hidden_size"]))


def with_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The norm of the picture, which a published file lacks: one and zero."""
    width = state["bridge.llama_proj.weight"].shape[1] // JOIN
    return {"bridge.ln_vision.weight": torch.ones(width), "bridge.ln_vision.bias": torch.zeros(width), **state}


FAMILY = Family(
    name="minigpt_v2",
    title="MiniGPT-v2",
    about="Knows its tasks by a mark in front of the question: find, detect, name a box, describe with places.",
    template=replace(TEMPLATES["minigpt_v2"], tasks=TASKS),
    dialect=DIALECTS["minigpt_v2"],
    frame=frame,
    build=build,
    mention=as_box,  # in whole hundredths, as answers hold it
    keys=(
        (r"^visual_encoder\.(.*)attn\.relative_position", r"vision.\1attn.relative.relative_position"),
        (r"^visual_encoder\.", "vision."),
        (r"^(ln_vision|llama_proj)\.", r"bridge.\1."),
        (r"^llama_model\.(?:base_model\.model\.)?lm_head\.(?:0\.)?", "language.lm_head."),  # peft wraps the head
        (r"^llama_model\.(?:base_model\.model\.)?", "language."),
    ),
    # The 40th block is not run, and nothing stands behind the last one.
    drop=(r"rotary_emb\.inv_freq$", r"^visual_encoder\.(blocks\.39|norm|fc_norm|head)\.", *EvaTower.DROP),
    fold=Fold((r"^bridge\.",), with_norm),
    parts=(
        Part(
            "llama_model", "language model", usual="Llama-2-7b-chat-hf", holds="language.", prefix="llama_model.",
            way="fill", scale=16 / 64, config="llm_config",
        ),
        Part(
            "vit_model", "vision tower", usual="eva_vit_g.pth", holds="vision.", prefix="visual_encoder.", way="fill",
        ),
    ),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Code BSD 3-Clause; Llama 2 Community License for what was trained from it; EVA under MIT.",
    dwarf={
        "model_type": "minigpt_v2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "llama_model": None, "vit_model": None,
        "vision_config": {
            "img_size": 56, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0,
            "pos_side": 4,
        },
    },
)  # fmt: skip
