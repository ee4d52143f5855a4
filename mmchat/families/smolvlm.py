"""SmolVLM2: a picture in up to sixteen tiles and as a whole, few vectors each, marks that say where each tile belongs.

Marafioti et al. 2025, arXiv 2504.05299; checkpoints HuggingFaceTB/SmolVLM2-256M-Video-Instruct, SmolVLM2-2.2B-Instruct
and what is between, run by transformers' own classes behind our slots. It was not trained to name places, so none are
read in its answers and none written in its questions. Videos are not shown to it here. Seventeen views keep a CPU busy
for minutes: `longest_edge` (pixels), as an entry of config.json or in models.toml, asks for fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

from mmchat.dialect import Marks
from mmchat.family import Family, as_number
from mmchat.geometry import Frame
from mmchat.nets.model import Seen, SlotLike, Tokenize
from mmchat.nets.native import Bridge, Speaker, Tower, configured, tied
from mmchat.nets.tiled import Tiled
from mmchat.nets.vision import HALF
from mmchat.prompt import Piece, Slot, Task, Template, joined
from mmchat.tiled import Tiled as TiledFrame

ACROSS = 4  # tiles along the longer side, in every published preprocessor_config.json
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Can you describe this image?", needs=""),
)


@dataclass(frozen=True)
class Spoken(Template):
    """The user's name is followed by a blank, but not in front of a picture."""

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        def said(role: str, text: tuple[Piece, ...]) -> tuple[Piece, ...]:
            shown = text and isinstance(text[0], Slot) and text[0].kind == "image"
            return text if role != "user" or shown else joined((" ", *text))

        return super().lay_out([(role, said(role, text)) for role, text in messages])


class SmolVLM(Tiled):
    """The slots; between the views of a picture stand words that say which they are."""

    def __init__(
        self, language: Speaker, vision: nn.Module, bridge: nn.Module, side: int, cells: int, most: int
    ) -> None:
        super().__init__(language, vision, bridge, side, cells, most)
        self.own: dict[tuple[int, int], torch.Tensor] = {}  # by grid: which vectors of a slot are the picture's

    def fill(self, slot: SlotLike, seen: Seen, tokenize: Tokenize) -> torch.Tensor:
        vectors = super().fill(slot, seen, tokenize)
        if slot.kind != "image":
            return vectors
        parts, own = [], []
        grid = seen.kept[slot.index]
        for words, view in zip(marks(*grid), [*vectors.split(self.cells), vectors[:0]], strict=True):
            said = self.embed(tokenize(words))
            parts += [said, view.to(said)]
            own += [torch.zeros(len(said)), torch.ones(len(view))]
        self.own[grid] = torch.cat(own) > 0
        return torch.cat(parts)

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        """As of all tiled pictures, without what is said of the words between; a slot is filled before it is spread."""
        return super().spread(values.cpu()[self.own[seen.kept[picture]]], seen, picture)


def marks(across: int, down: int) -> list[str]:
    """What stands in front of each view of a picture of so many tiles, and behind the last."""
    if across * down == 1:
        return [AROUND + WHOLE, AROUND]
    named = [
        ("\n" if row and not column else "") + f"{AROUND}<row_{row + 1}_col_{column + 1}>"
        for row in range(down)
        for column in range(across)
    ]
    return [*named, f"\n\n{AROUND}{WHOLE}", AROUND]


def sizes(config: Mapping[str, Any]) -> SmolVLMConfig:
    """The library's config of a published config.json."""
    return configured(SmolVLMConfig, config)


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture with four tiles along its longer side and as many along the other as its shape needs, and a whole."""
    side = sizes(config).vision_config.image_size
    longest = config.get("longest_edge", ACROSS * side)
    return TiledFrame(side, mean=HALF, std=HALF, resample="lanczos", longest=longest)


def build(config: Mapping[str, Any]) -> SmolVLM:
    """The model of a published config.json, parameters yet to be loaded."""
    made, shown = sizes(config), frame(config)
    language = Speaker(AutoModel.from_config(made.text_config), tied(config))
    vision = made.vision_config
    cells = (vision.image_size // vision.patch_size // made.scale_factor) ** 2
    across, down = (length // shown.side for length in shown.place((1, 1)).fitted)  # a square needs the most
    tower = Tower(SmolVLMVisionTransformer(vision))
    return SmolVLM(language, tower, Bridge(SmolVLMConnector(made)), shown.side, cells, across * down)


FAMILY = Family(
    name="smolvlm",
    title="SmolVLM2",
    about="Describes, reads and compares pictures with very few parameters. It names no places and takes no regions.",
    template=Spoken(
        "<|im_start|>",
        "User:{text}<end_of_utterance>\n",
        "Assistant: {text}<end_of_utterance>\n",
        image="{image}{text}",
        opening="Assistant:",
        stop=("<end_of_utterance>",),
        tasks=TASKS,
    ),
    dialect=Marks("smolvlm", (), silent=("<end_of_utterance>",), example="a cup"),
    frame=frame,
    build=build,
    mention=as_number,  # nothing that it was trained to read stands for a region
    keys=(
        (r"^model\.vision_model\.", "vision.tower."),
        (r"^model\.connector\.", "bridge.projector."),
        (r"^model\.text_model\.", "language.model."),
        (r"^lm_head\.", "language.lm_head."),
    ),
    takes=frozenset({"several pictures"}),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Apache 2.0, code and weights.",
    dwarf={
        "model_type": "smolvlm", "image_token_id": 300, "tie_word_embeddings": False, "scale_factor": 2,
        "longest_edge": 112,
        "text_config": {
            "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "bos_token_id": 256, "eos_token_id": 257,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14,
        },
    },
)  # fmt: skip
