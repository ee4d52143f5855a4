"""Groma: DINOv2 proposes what may be asked about, and the language model names regions by number instead of by place.

Ma et al. 2024, arXiv 2404.13013, github.com/FoundationVision/Groma (FoundationVision/groma-7b-finetune). A proposer
finds boxes on the tower's map, each survivor becomes a mark and a vector in the prompt, and `<r7>` in an answer is the
eighth of them. Drawn regions join the proposals: here they come first and all stay, in their order, where the original
shuffles everything and may drop a region that another overlaps. Vectors are read at the wrong place, see `nets.roi`.

The published vocabulary is two tables, Vicuna's and one of the marks: loading makes one of them.

The tokenizer class of the time drops the blanks beside added tokens, and the picture and each region are such tokens
in the original's prompt: `Bare` does that here, so that whole prompts have the ids of transformers 4.32.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Frame, Region
from mmchat.nets.dinov2 import Dinov2Tower, named
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, Seen, SlotLike, Tokenize, as_map
from mmchat.nets.openseed import corners
from mmchat.nets.proposer import Proposed, Proposer
from mmchat.nets.regions import nms
from mmchat.nets.roi import RegionEncoder
from mmchat.nets.vision import IMAGENET_MEAN, IMAGENET_STD
from mmchat.nets.weights import Fold
from mmchat.prompt import Piece, Slot, Task, Template, joined
from mmchat.templates import TEMPLATES

MOST = 100  # regions that have a mark
MARKS = (
    "[PAD]", "<sep>", "<img>", "</img>", "<roi>", "</roi>", "<p>", "</p>", "<image>", "<region>", "<refer_box>",
    "<ground_box>", "<refer_feat>", "[grounding]", *(f"<r{number}>" for number in range(MOST)),
)  # fmt: skip
FIRST = MARKS.index("<r0>")
SEEN_SIDE = 448  # pixels; the tower's own config names what it was trained with before
PAIRS = ((0, 0), (1, 0), (0, 1), (1, 1))  # (row, column) of the four patches that become one vector, in their order

TASKS = (
    Task("free", "Ask freely"),
    Task("shown", "Ask, and see where", "[grounding]{text}"),
    Task(
        "describe", "Describe the picture with places", "[grounding]Describe the image in a short sentence.", needs=""
    ),
    Task("find", "Find what I name", "Locate <p>{text}</p> in the image."),
    Task("detect", "Find all that I name", "Locate all <p>{text}</p> in this image."),
    Task("region", "Name my region", "Please briefly describe {text}.", needs="region"),
    Task("detail", "Describe my region", "Please describe {text} in details.", needs="region"),
)


BESIDE = re.compile(rf"\s*({'|'.join(map(re.escape, MARKS))})\s*")


@dataclass(frozen=True)
class Bare(Template):
    """The talk without blanks beside marks, pictures and regions."""

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        pieces = super().lay_out(messages)
        out: list[Piece] = []
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                piece = BESIDE.sub(r"\1", piece)
                piece = piece.lstrip() if number else piece
                piece = piece.rstrip() if number + 1 < len(pieces) else piece
            out.append(piece)
        return joined(out)


class Merged(nn.Sequential):
    """Two by two patches side by side, then two layers."""

    def __init__(self, width: int, language_width: int) -> None:
        super().__init__(nn.Linear(4 * width, language_width), nn.GELU(), nn.Linear(language_width, language_width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patches [N, T, C] of a square -> [N, T / 4, language width]."""
        return super().forward(merged(tokens))


class Groma(Model):
    """All that depends on the picture alone is kept: its vectors, the proposals, the joined maps for regions."""

    proposer: Proposer
    regions: RegionEncoder

    def __init__(self, config: Mapping[str, Any]) -> None:
        sizes, seeing = language_sizes(config), config["perceiver_cfg"]
        tower = Dinov2Tower(seeing["vis_encoder_cfg"])
        regions = RegionEncoder(tower.width, sizes["hidden_size"], config.get("region_middle", 1024))
        proposer = Proposer(seeing["ddetr_cfg"], tower.width)
        super().__init__(llama(sizes), tower, Merged(tower.width, sizes["hidden_size"]), regions, proposer)
        self.layer = seeing.get("vis_output_layer", -1)
        self.overlap, self.least = config.get("nms_thres", 0.6), config.get("box_score_thres", 0.15)
        self.most = min(config.get("max_region_num", MOST), MOST)
        self.first = sizes["vocab_size"] - config["num_new_token"] + FIRST  # the id of <r0>

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """pixels [1, 3, S, S]. ValueError for several pictures: marks count the regions of one."""
        if len(pixels) != 1:
            raise ValueError(f"Groma looks at one picture, and there are {len(pixels)}: start a new talk for another.")
        states = [state[:, 1:] for state in self.vision(pixels)]
        vectors = self.bridge(states[self.layer])
        proposed = self.proposer(as_map(torch.stack(states[-4:]).mean(0)))
        maps = self.regions.fuse([as_map(state) for state in states[-3:]])
        levels = {"vision": as_map(states[self.layer]), "bridge": as_map(vectors)}
        return Encoded(vectors, levels, (proposed, maps))

    def gather(self, encoded: Encoded, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """Candidates: the user's boxes [n, 4], then the proposals that neither they nor better proposals cover."""
        drawn = centred(torch.zeros(0, 4) if boxes is None else boxes.float().cpu())
        if len(drawn) > self.most:
            raise ValueError(f"Groma has marks for {self.most} regions, and there are {len(drawn)}: draw fewer.")
        proposed, maps = encoded.kept
        found = self.chosen(proposed, drawn)
        return self.with_regions(encoded, torch.cat((drawn, found)), maps)

    def chosen(self, proposed: Proposed, drawn: torch.Tensor) -> torch.Tensor:
        """The proposals that stay beside drawn boxes, best first, as many as there are marks left."""
        own, scores = proposed.boxes[0].float().cpu(), proposed.scores[0].float().cpu()
        kept = survivors(own, scores, drawn, self.overlap, self.least, self.most + len(drawn))
        return own[kept[kept < len(own)]][: self.most - len(drawn)]

    def with_regions(self, encoded: Encoded, boxes: torch.Tensor, maps: list[torch.Tensor]) -> Seen:
        """What is seen, with these boxes (centre and size) as regions 0, 1, 2 ..."""
        owners = torch.zeros(len(boxes), dtype=torch.long)
        vectors = self.regions(maps, boxes, owners.to(maps[0].device))
        return Seen(tuple(encoded.vectors), corners(boxes), owners, vectors, encoded.levels, encoded.kept)

    def fill(self, slot: SlotLike, seen: Seen, tokenize: Tokenize) -> torch.Tensor:
        """All candidates: each one's mark and vector in turn. One region: its vector alone, the mark is text."""
        vectors = super().fill(slot, seen, tokenize)
        if slot.kind != "region" or slot.index >= 0:
            return vectors
        marks = self.embed(torch.arange(self.first, self.first + len(vectors)))
        return torch.stack((marks, vectors.to(marks)), 1).flatten(0, 1)


def merged(tokens: torch.Tensor) -> torch.Tensor:
    """Patches [N, T, C] of a square, row by row -> [N, T / 4, 4 C]."""
    level = as_map(tokens)
    return torch.cat([level[:, :, row::2, column::2] for row, column in PAIRS], 1).flatten(2).transpose(1, 2)


def survivors(
    boxes: torch.Tensor, scores: torch.Tensor, drawn: torch.Tensor, overlap: float, least: float, most: int
) -> torch.Tensor:
    """Which of the proposals [n, 4] and behind them the drawn boxes [m, 4] (centre and size) stay, best first.

    A drawn box is worth 1. Those worth more than `least` stay unless a better one overlaps them by more than `overlap`;
    where none does, the best one of all.
    """
    every = torch.cat((boxes, drawn))
    worth = torch.cat((scores, torch.ones(len(drawn))))
    enough = (worth > least).nonzero().flatten()
    if not len(enough):
        return worth.argmax()[None]
    return enough[nms(corners(every[enough]), worth[enough], overlap)][:most]


def centred(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] from corners to centre and size."""
    low, high = boxes.split(2, -1)
    return torch.cat(((low + high) / 2, high - low), -1)


def language_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the language model with the marks in its table."""
    sizes = {"vocab_size": 32000, "hidden_size": 4096, **config["llm_cfg"]}
    return {**sizes, "vocab_size": sizes["vocab_size"] + config["num_new_token"]}


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square."""
    return Frame(config.get("seen_side", SEEN_SIDE), "squash", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The mark of the region, one of the first candidates, and its vector."""
    return (f"<roi><r{number - 1}></roi>", Slot("region", number - 1))


def one_table(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Vicuna's tables with the marks' rows behind them. Tables that are one already stay."""
    out = dict(state)
    for name, added in (("model.embed_tokens", "marks.input"), ("lm_head", "marks.output")):
        if (rows := out.pop(f"language.{added}.weight", None)) is not None:
            key = f"language.{name}.weight"
            out[key] = torch.cat((out[key], rows.to(out[key].dtype)))
    return out


_BASE = replace(TEMPLATES["groma"], tasks=TASKS, dummy_space=None)

FAMILY = Family(
    name="groma",
    title="Groma",
    about="Proposes regions first, then talks about them by number: finds, describes and answers about what you draw.",
    template=Bare(**{field.name: getattr(_BASE, field.name) for field in fields(Template)}),
    dialect=DIALECTS["groma"],
    frame=frame,
    build=Groma,
    mention=mention,
    keys=(
        *named(r"perceiver\.vis_encoder\.", "vision."),
        (r"^perceiver\.(input_proj)\.", r"proposer.\1."),
        (r"^perceiver\.ddetr_transformer\.", "proposer."),
        (r"^region_encoder\.(?:mlvl_fuse|roi_align)\.", "regions."),
        (r"^img_txt_bridge\.", "bridge."),
        (r"^llm\.", "language."),
        (r"^new_input_embs\.", "language.marks.input."),
        (r"^extra_lm_head\.", "language.marks.output."),
    ),
    drop=(
        r"^perceiver\.vis_encoder\.(embeddings\.mask_token|layernorm\.)",  # nobody asks for them
        r"^perceiver\.ddetr_transformer\.decoder\.(bbox_embed|class_embed)",  # the same tensors once more
        r"rotary_emb\.inv_freq$",
    ),
    fold=Fold((r"^language\.(model\.embed_tokens|lm_head|marks\.(in|out)put)\.",), one_table),
    takes=frozenset({"box"}),
    keep=("vision", "bridge", "proposer", "regions", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here.",
    licence="Code and weights Apache 2.0; built on Vicuna, under the Llama 2 licence.",
    marks=MARKS,
    dwarf={
        "model_type": "groma", "num_new_token": len(MARKS), "nms_thres": 0.6, "box_score_thres": 0.15,
        "max_region_num": 100, "seen_side": 56, "region_middle": 8,
        "llm_cfg": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "vocab_size": 259, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
        "perceiver_cfg": {
            "vis_encoder_cfg": {
                "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 70,
                "patch_size": 14, "mlp_ratio": 2,
            },
            "ddetr_cfg": {
                "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 6,
                "num_feature_levels": 1, "two_stage": True, "two_stage_num_proposals": 6,
            },
        },
    },
)  # fmt: skip
