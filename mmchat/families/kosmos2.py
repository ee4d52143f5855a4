"""Kosmos-2: CLIP-L/14 at 224 pixels, a resampler to 64 vectors, a Magneto decoder; boxes as two cells of 32 x 32.

Peng et al. 2023, arXiv 2306.14824; checkpoint microsoft/kosmos-2-patch14-224, run by transformers' own classes behind
our slots. It continues a text, it does not chat: the tasks are beginnings of sentences, which belong to the answer, and
`<grounding>` in front switches boxes on. Its picture tokens come first, once. As in the authors' demo and in the
published file no three tokens in a row come twice, those of the prompt counted too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2Config
from transformers.models.kosmos2.modeling_kosmos2 import (
    Kosmos2ImageToTextProjection,
    Kosmos2TextForCausalLM,
    Kosmos2TextSinusoidalPositionalEmbedding,
)

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets.model import Encoded, Model, PartLike, as_map
from mmchat.nets.native import unrepeated
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, ClipTower
from mmchat.prompt import Mention, Piece, Slot, Task, Template, Turn, joined
from mmchat.templates import TEMPLATES

CLIP_224 = {**CLIP_LARGE, "image_size": 224}
GROUNDED = "<grounding>"
SEVERAL = "</delimiter_of_multi_objects/>"
ALONE = re.compile(r" ?(?<!</phrase>)<object>")
HELD = 4  # the first of the ids that the library puts where a picture's vectors come
UNIQUE = 3  # where neither file of a checkpoint says so

TASKS = (
    Task("free", "Ask freely", GROUNDED + " Question: {text} Answer:"),
    Task("describe", "Describe the picture with places", GROUNDED + "{answer} An image of", needs=""),
    Task("detail", "Describe in detail", GROUNDED + " Describe this image in detail:", needs=""),
    Task("find", "Find what I name", GROUNDED + "{answer}<phrase> {text}</phrase>"),
    Task("region", "Describe my region", GROUNDED + "{answer}<phrase> It</phrase>{text} is", needs="region"),
    Task("continue", "Go on with my sentence", GROUNDED + "{answer} {text}"),
)


@dataclass(frozen=True)
class Continued(Template):
    """A talk is one text, in which one mark in front switches boxes on for all that follows. Boxes belong to phrases:
    those that a user names are `it`, several in a row are of one phrase.
    """

    def render(self, turns: Sequence[Turn], mention: Mention, task: str | None = None) -> tuple[Piece, ...]:
        pieces = super().render(turns, mention, task)
        return tuple(
            replace(piece, text=named(piece.text)) if isinstance(piece, Slot) and piece.kind == "lead" else piece
            for piece in pieces
        )

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        out, on = [], False
        told = []
        for role, text in messages:
            if role == "user":
                text = tuple(named(piece) if isinstance(piece, str) else piece for piece in text)
            elif any(text) and not str(text[0]).startswith("<phrase>"):  # no blank stands before this mark
                text = (" ", *text)
            told.append((role, text))
        for piece in super().lay_out(told):
            if isinstance(piece, str) and GROUNDED in piece:
                before, _, behind = piece.partition(GROUNDED)
                piece = before + ("" if on else GROUNDED) + behind.replace(GROUNDED, "")
                on = True
            out.append(piece)
        return joined(out)


def named(text: str) -> str:
    """A user's words, each box in them behind a phrase."""
    return ALONE.sub("<phrase> it</phrase><object>", re.sub("</object> <object>", SEVERAL, text))


class Tower(ClipTower):
    """CLIP's last layer with the class token, behind the last norm, each position scaled to length one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, -1, class_token=True)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor]:
        """pictures [N, 3, side, side] -> [N, 1 + patches, width]."""
        return (F.normalize(self.post_layernorm(super().forward(pictures)[-1]), dim=-1),)


class Resampler(nn.Module):
    """The library's projection: latent queries attend to the picture and to themselves."""

    def __init__(self, config: Kosmos2Config) -> None:
        super().__init__()
        self.image_to_text_projection = Kosmos2ImageToTextProjection(config)

    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """[N, 1 + patches, width] -> [N, latents, language width]."""
        return self.image_to_text_projection(levels[-1])[0]


class Positions(Kosmos2TextSinusoidalPositionalEmbedding):
    """The library's sinusoidal table: real whatever the parameters are made of, added in the type of the words."""

    def __init__(self, config: Any, words: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.offset, self.padding_idx, self.embedding_dim = 2, config.pad_token_id, config.embed_dim
        count = config.max_position_embeddings + self.offset
        self.register_buffer("weights", self.get_embedding(count, config.embed_dim, self.padding_idx), persistent=False)
        self._words = (words,)  # in a tuple: not a second owner of its parameters

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        return super().forward(*given, **named).to(self._words[0].weight.dtype)


class Decoder(Kosmos2TextForCausalLM):
    """The library's decoder with such positions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_positions = Positions(config, self.model.embed_tokens)


class Kosmos2(Model):
    """The slots; the latents are no map of the picture, so only the tower is shown.

    `unique`: how many tokens in a row never come twice (0: any may).
    """

    unique = 0

    def allowed(
        self, logits: torch.Tensor, written: Sequence[int], read: Sequence[int | PartLike] = ()
    ) -> torch.Tensor:
        """No tokens that would make a row of `unique` come again. The library holds a picture's place with ids that
        count up.
        """
        asked = [(part,) if isinstance(part, int) else range(HELD, HELD + len(part.vectors)) for part in read]
        return unrepeated(logits, (*chain.from_iterable(asked), *written), self.unique)

    def encode(self, pixels: torch.Tensor) -> Encoded:
        levels = self.vision(pixels)
        return Encoded(self.bridge(levels), {"vision": as_map(levels[-1][:, 1:])})


def tower_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the tower: a published config names only what differs from the library's defaults."""
    return {**CLIP_224, **config.get("vision_config", {})}


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square; cells are relative to its own width and height."""
    return Frame(tower_sizes(config)["image_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)


def sizes(config: Mapping[str, Any]) -> Kosmos2Config:
    """The library's config of a published config.json."""
    made = Kosmos2Config(
        text_config=dict(config.get("text_config", {})),
        vision_config=tower_sizes(config),
        latent_query_num=config.get("latent_query_num", 64),
    )
    for part in (made, made.text_config, made.vision_config):
        part._attn_implementation = "eager"
    return made


def build(config: Mapping[str, Any]) -> Kosmos2:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    model = Kosmos2(Decoder(made.text_config), Tower(tower_sizes(config)), Resampler(made))
    rules = config.get("generation_config") or config.get("text_config", {})
    model.unique = rules.get("no_repeat_ngram_size", UNIQUE) or 0
    return model


_BASE = replace(TEMPLATES["kosmos2"], assistant="{text}", tasks=TASKS, stop=("</s>",))

FAMILY = Family(
    name="kosmos2",
    title="Kosmos-2",
    about="Describes a picture so that every phrase has its place, and finds what a phrase names. Continues sentences.",
    template=Continued(**{field.name: getattr(_BASE, field.name) for field in fields(Template)}),
    dialect=DIALECTS["kosmos2"],
    frame=frame,
    build=build,
    mention=as_box,  # its two cells inside the marks of a thing
    keys=(
        (r"^vision_model\.model\.", "vision."),
        (r"^image_to_text_projection\.", "bridge.image_to_text_projection."),
        (r"^text_model\.", "language."),
    ),
    drop=(r"position_ids$", r"embed_positions\.weights$"),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published weights were never run here.",
    licence="MIT, code and weights.",
    types=("kosmos-2",),
    dwarf={
        "model_type": "kosmos-2", "latent_query_num": 5, "tie_word_embeddings": True,
        "text_config": {
            "vocab_size": 320, "max_position_embeddings": 512, "embed_dim": 64, "layers": 2, "ffn_dim": 96,
            "attention_heads": 4,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu",
        },
    },
)  # fmt: skip
