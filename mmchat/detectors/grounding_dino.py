"""Grounding DINO: every phrase of a list is looked for at once; a box's score comes from the words that it answers to.

Liu et al. 2023, arXiv 2303.05499; checkpoints IDEA-Research/grounding-dino-tiny and -base, and MM Grounding DINO of
the same form. The phrases become one text, "a cat. a dog.", read by BERT; the picture's short side becomes 800 pixels,
the long one at most 1333. Of each of 900 boxes the model gives a score for every word. The deformable attention runs on
this program's own operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msda import ms_deform_attn
from tokenizers import Tokenizer
from torch import nn

from mmchat.detectors import Candidates, Detector, Record, pictures, words

if TYPE_CHECKING:
    from PIL import Image

TITLE = "Grounding DINO"
THRESHOLD = 0.25  # the library's usual one, of boxes and of words
THIN = 32  # times the short side that the long one may be: fewer places than boxes would be left
_SWIN = r"^(model\.backbone\.conv_encoder\.model)\."
_BLOCK = r"^model\.backbone\.conv_encoder\.model\.(?:swin\.)?(encoder\.layers\.\d+\.blocks\.\d+)\."
_OURS = r"model.backbone.conv_encoder.model.swin.\1."
KEYS = (  # Swin as it was named when the checkpoints were published
    (_BLOCK + r"attention\.self\.([qkv])(?:uery|ey|alue)\.", _OURS + r"attention.\2_proj."),
    (_BLOCK + r"attention\.self\.relative_position_bias_table$",
     _OURS + r"attention.relative_position_bias.relative_position_bias_table"),
    (_BLOCK + r"attention\.output\.dense\.", _OURS + r"attention.o_proj."),
    (_BLOCK + r"intermediate\.dense\.", _OURS + r"mlp.fc1."),
    (_BLOCK + r"output\.dense\.", _OURS + r"mlp.fc2."),
    (_SWIN + r"(encoder|embeddings)\.", r"\1.swin.\2."),
)  # fmt: skip
# What is computed and not learned, and Swin's last norm, behind which nobody looks.
DROP = (
    r"relative_position_index$", r"position_ids$", r"num_batches_tracked$",
    r"^model\.backbone\.conv_encoder\.model\.(swin\.)?layernorm\.",
)  # fmt: skip


class Sampling(nn.Module):
    """The library's place for a deformable attention kernel, taken by this program's operator."""

    def forward(
        self,
        value: torch.Tensor,
        shapes: torch.Tensor,
        pairs: Sequence[tuple[int, int]],
        starts: torch.Tensor,
        locations: torch.Tensor,
        shares: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """value [N, S, M, D], locations [N, Q, M, L, P, 2], shares [N, Q, M, L, P] -> [N, Q, M * D]."""
        return ms_deform_attn(value, pairs, locations, shares)


def build(config: Mapping[str, Any]) -> nn.Module:
    """The library's network of a published config.json, parameters yet to be loaded."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    return _built(GroundingDinoForObjectDetection, GroundingDinoConfig, config)


def build_mm(config: Mapping[str, Any]) -> nn.Module:
    """The same for MM Grounding DINO."""
    from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

    return _built(MMGroundingDinoForObjectDetection, MMGroundingDinoConfig, config)


def _built(kind: type, about: type, config: Mapping[str, Any]) -> nn.Module:
    backbone = config.get("backbone_config")
    if not isinstance(backbone, Mapping) or backbone.get("model_type") != "swin":
        raise ValueError("its backbone must be a Swin transformer with a backbone_config")
    model = kind(about.from_dict(dict(config)))
    model.model.backbone.conv_encoder.model.swin.layernorm = nn.Identity()
    for module in model.modules():
        if type(module).__name__.endswith("MultiscaleDeformableAttention"):
            module.attn = Sampling()
    return model


def ready(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> Detector:
    """The callable."""
    return Detector(TITLE, Looking(model, folder), THRESHOLD)


class Looking:
    """Phrases and a picture into the network, boxes out of it."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        given = pictures.settings(folder)
        self.model = model
        self.sides = pictures.size(given, shortest_edge=800, longest_edge=1333)
        self.colours = pictures.colours(given, pictures.IMAGENET)
        self.tokenizer: Tokenizer = words.word_pieces(folder, model.config.text_config.vocab_size)
        self.start, self.end, self.stop = (words.mark(self.tokenizer, name) for name in ("[CLS]", "[SEP]", "."))

    def __call__(
        self, image: Image.Image, phrases: Sequence[str], threshold: float, of_words: float = THRESHOLD
    ) -> Candidates:
        """of_words: least score of the words that a box answers to."""
        ids, owners = self.text(phrases)
        pixels = self.pixels(image).to(self.model.device)
        asked = torch.tensor([ids], device=self.model.device)
        out = self.model(
            pixel_values=pixels,
            input_ids=asked,
            token_type_ids=torch.zeros_like(asked),
            attention_mask=torch.ones_like(asked),
        )
        chances = out.logits[0].sigmoid()  # [boxes, longest text]
        scores = chances.max(-1).values
        keep = scores > threshold
        chances = chances[keep]
        middle, extent = out.pred_boxes[0][keep].split(2, -1)
        boxes = torch.cat((middle - extent / 2, middle + extent / 2), -1)
        spoken = [place for place, owner in enumerate(owners) if owner is not None]
        owner = torch.tensor([owners[place] for place in spoken], device=chances.device)
        numbers = owner[chances[:, spoken].argmax(-1)]
        answered = (chances[:, spoken] > of_words).tolist()
        told = [[ids[place] for place, one in zip(spoken, row, strict=True) if one] for row in answered]
        return Candidates(boxes, scores[keep], numbers, [self.tokenizer.decode(row) for row in told])

    def text(self, phrases: Sequence[str]) -> tuple[list[int], list[int | None]]:
        """Ids of the phrases as one text, and the number of the phrase that each belongs to.

        ValueError where a phrase has no words, or all together have more than the model reads.
        """
        ids, owners = [self.start], [None]
        for number, phrase in enumerate(phrases):
            mine = words.ids(self.tokenizer, phrase.lower().strip(" ."))
            if not mine:
                raise ValueError(f"Phrase {number + 1} has no words: say what to find.")
            ids += [*mine, self.stop]
            owners += [*[number] * len(mine), None]
        ids, owners = [*ids, self.end], [*owners, None]
        most = self.model.config.max_text_len
        if len(ids) > most:
            raise ValueError(f"The phrases are {len(ids)} tokens long, {TITLE} reads at most {most}: ask for fewer.")
        return ids, owners

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The picture [1, 3, h, w], short side 800, long one at most 1333. ValueError for a thread of a picture."""
        width, height = image.size
        if max(image.size) > THIN * min(image.size):
            raise ValueError(
                f"A picture of {width} x {height} is too thin for {TITLE}, whose long side may be {THIN} times the "
                "short one: cut it."
            )
        return pictures.normal(pictures.resized(image, *fitted(image.size, *self.sides)), self.colours)


def fitted(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """The size (width, height) whose short side is `short`, or whose long one is at most `long`; DETR's rounding."""
    least, most = min(size), max(size)
    exact = float(short)
    if most / least * short > long:
        exact = long * least / most
        short = round(exact)
    if least == short:
        return size
    other = int(exact * most / least)
    return (short, other) if size[0] < size[1] else (other, short)


def _record(title: str, about: str, licence: str, made: Any) -> Record:
    return Record("grounding_dino", title, about, licence, "boxes", made, ready, KEYS, DROP, words.PIECES)


RECORDS = {
    "grounding-dino": _record(
        TITLE, "Finds what phrases name, all of them at once.", "Apache 2.0, code and weights.", build
    ),
    "mm-grounding-dino": _record(
        f"MM {TITLE}", f"{TITLE} trained anew by OpenMMLab.", "Apache 2.0, code and weights.", build_mm
    ),
}
