"""Pocket: the embedded model. Small frozen eyes, a deformable fuser, a chooser of regions, a cut-down language model.

Trained here (mmchat/train) from freely licensed parts: EfficientNet-Lite2 and NanoDet-g look, MiniLM reads phrases,
MMFuser's block fuses the encoder's levels, eight of SmolLM2-135M's thirty layers speak. The prompt holds 36 vectors of
the picture, one of each candidate region, the question, and a clue: what the eyes found for this question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Frame, Region
from mmchat.nets.clue import write_clue
from mmchat.nets.evidence import GREY, Eyes, Viewed
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, Seen, SlotLike, Tokenize
from mmchat.prompt import Piece, Task, Template

GRID = 6  # the picture's vectors: GRID x GRID
LONGEST = 80  # letters of what was asked for that a clue repeats
# Of these a second turn is made in training: the clue of what is asked of "it" is the exchange before.
_IT = r"\s*(?:and its|(?:what|which)(?: kind of thing| colou?rs?)?(?: is|'s| does) (?:it|that)(?! \w+ ))\b"
LEANING = rf"(?i)\s*(?:and|what about|how about)\b|{_IT}"


class Pocket(Model):
    """`eyes` see, `projector` and `region_projector` bring what they saw to the language model's width."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(llama(config))
        sizes = config["eyes"]
        width, seen = config["hidden_size"], sizes.get("width", 256)
        words = sizes["text"]["hidden_size"]
        self.eyes = Eyes(sizes)
        self.projector = nn.Sequential(nn.Linear(seen, width), nn.GELU(), nn.Linear(width, width))
        self.region_projector = nn.Sequential(nn.Linear(seen + words, width), nn.GELU(), nn.Linear(width, width))

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """pixels [1, 3, S, S], RGB 0..255. ValueError for several pictures."""
        if len(pixels) != 1:
            raise ValueError(f"Pocket looks at one picture, and there are {len(pixels)}: start a new talk for another.")
        looked = self.eyes.encode(pixels)
        vectors = self.projector(F.adaptive_avg_pool2d(looked.after, GRID).flatten(2).transpose(1, 2))
        maps = {"before fuser": looked.before, "after fuser": looked.after, "sampling points": looked.sampled}
        return Encoded(vectors, maps, looked)

    def gather(self, encoded: Encoded, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """Candidates: the user's boxes, the detector's, last the whole picture."""
        viewed = self.eyes.gather(encoded.kept, boxes)
        vectors = self.region_projector(torch.cat((viewed.regions, viewed.words), -1).to(self.dtype))
        where = torch.zeros(len(viewed.boxes), dtype=torch.long)
        return Seen(tuple(encoded.vectors), viewed.boxes.float().cpu(), where, vectors, encoded.levels, viewed)

    def fill(self, slot: SlotLike, seen: Seen, tokenize: Tokenize) -> torch.Tensor:
        """A region's vector has its mark's embedding added; a clue is words: what the eyes find for `slot.text`."""
        if slot.kind == "clue" and slot.index and re.match(_IT, slot.text, re.IGNORECASE):
            return self.embed([])
        if slot.kind == "clue":
            return self.embed(tokenize(self.clue(slot.text, seen.kept)))
        vectors = super().fill(slot, seen, tokenize)
        if slot.kind != "region":
            return vectors
        first = max(slot.index, 0)
        marks = [self.embed(tokenize(f"<r{first + number}>")).mean(0) for number in range(len(vectors))]
        return vectors + torch.stack(marks)

    def clue(self, question: str, viewed: Viewed) -> str:
        """What the eyes find for a question, as the text that the language model reads."""
        clue = self.eyes.clue(viewed, question)
        # What was asked for comes from the user: it must not hold marks, nor the whole of a long text a second time.
        return write_clue(replace(clue, asked=" ".join(re.sub(r"[<>]", " ", clue.asked).split())[:LONGEST]))


def frame(config: Mapping[str, Any]) -> Frame:
    """A centred square on grey; pixels stay 0..255."""
    grey = int(GREY)
    return Frame(
        config["eyes"]["picture_side"], "pad", (grey, grey, grey), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
    )


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The user's regions are the first candidates."""
    return (f"<r{number - 1}>",)


FAMILY = Family(
    name="pocket",
    title="Pocket",
    about="Finds, names and counts things in photographs, and says so when something is not there. Made to run on any "
    "computer: it knows a thousand nouns, makes mistakes, and cannot read, reason or talk about much else.",
    template=Template(
        user="<|im_start|>user\n{text}{clue}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{text}<|im_end|>\n",
        image="{image}{candidates}{text}",
        stop=("<|im_end|>",),
        typed=True,
        leaning=LEANING,
        tasks=(
            Task("free", "Ask freely"),
            Task("describe", "Describe the picture", "Describe the picture with places.", needs=""),
            Task("find", "Find what I name", "Where is {text}?"),
            Task("name", "Name my region", "What is {text}?", needs="region"),
        ),
    ),
    dialect=DIALECTS["pocket"],
    frame=frame,
    build=Pocket,
    mention=mention,
    keep=("eyes", "projector", "region_projector", "language.lm_head"),
    heats=(
        "feature norm", "components", "likeness", "before fuser", "after fuser", "sampling points", "attention",
        "logit lens",
    ),
    licence="Apache 2.0; the parts it was made from are Apache 2.0 too: see assets/pocket/README.md.",
    # Unlike the real one the dwarf's head is its own: a random tied one only repeats what it read last, a line end.
    dwarf={
        "model_type": "pocket", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "eyes": {
            "picture_side": 128, "stem": 8, "head": 16, "width": 32, "heads": 2,
            "stages": [[1, 3, stride, 1, 8] for stride in (1, 2, 2, 2, 1, 2, 1)],
            "detector_stem": 8, "detector_width": 8,
            "text": {
                "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "max_position_embeddings": 64, "type_vocab_size": 2,
            },
            "vocabulary_letters": 64, "names": 20, "entries": 60, "letters": 80, "judges": 1,
        },
    },
)  # fmt: skip
