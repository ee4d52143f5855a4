"""OWLv2: each phrase is compared with what is seen at every patch of a large square; the patch says the box.

Minderer et al. 2023, arXiv 2306.09683; checkpoints google/owlv2-base-patch16-ensemble and its kin. The picture lies at
the top left of a black square, which is blurred, then sampled at 960 pixels; boxes are of that square. "a photo of a
cat" is found better than "cat".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmchat.detectors import Candidates, Detector, Record, pictures, words

if TYPE_CHECKING:
    from PIL import Image

TITLE = "OWLv2"
THRESHOLD = 0.1  # the library's usual one
ROWS = 64  # of the square that are sampled together: few enough that what they see of the picture is little
REACH = 4  # deviations after which the blur is cut off


def build(config: Mapping[str, Any]) -> nn.Module:
    """The library's network of a published config.json, parameters yet to be loaded."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    return Owlv2ForObjectDetection(Owlv2Config.from_dict(dict(config)))


def ready(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> Detector:
    """The callable."""
    return Detector(TITLE, Looking(model, folder), THRESHOLD)


class Looking:
    """Phrases and a picture into the network, boxes out of it."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model = model
        self.side = model.config.vision_config.image_size
        self.colours = pictures.colours(pictures.settings(folder), pictures.CLIP)
        self.tokenizer = words.byte_pairs(folder, model.config.text_config.vocab_size)
        self.start, self.end = (words.mark(self.tokenizer, name) for name in ("<|startoftext|>", "<|endoftext|>"))

    def __call__(self, image: Image.Image, phrases: Sequence[str], threshold: float) -> Candidates:
        ids = self.texts(phrases).to(self.model.device)
        pixels = pictures.normal(sampled(np.asarray(image), self.side), self.colours).to(self.model.device)
        out = self.model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != 0).long())
        best = out.logits[0].max(-1)
        scores = best.values.sigmoid()
        keep = scores > threshold
        middle, extent = out.pred_boxes[0][keep].split(2, -1)
        square = max(image.size)
        scale = torch.tensor([square / image.width, square / image.height] * 2, device=extent.device)
        boxes = torch.cat((middle - extent / 2, middle + extent / 2), -1) * scale
        numbers = best.indices[keep]
        return Candidates(boxes, scores[keep], numbers, [phrases[number] for number in numbers.tolist()])

    def texts(self, phrases: Sequence[str]) -> torch.Tensor:
        """Ids [phrases, longest], 0 behind each. ValueError where a phrase is longer than the model reads."""
        most = self.model.config.text_config.max_position_embeddings
        out = torch.zeros(len(phrases), most, dtype=torch.long)
        for number, phrase in enumerate(phrases):
            mine = [self.start, *words.ids(self.tokenizer, phrase), self.end]
            if len(mine) > most:
                raise ValueError(
                    f"Phrase {number + 1} is {len(mine)} tokens long, {TITLE} reads at most {most}: say it shorter."
                )
            out[number, : len(mine)] = torch.tensor(mine)
        return out


def sampled(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w, 3] at the top left of a black square, blurred and sampled at side x side: float32 in 0..1.

    As scikit-image resizes: a Gaussian of (factor - 1) / 2 pixels, then linear interpolation, mirrored at the edges.
    Both are sums along one axis, so the square is never built.
    """
    square = max(picture.shape[:2])
    down = _along(picture, square, side)
    across = _along(np.ascontiguousarray(down.transpose(1, 0, 2)), square, side)
    return np.ascontiguousarray(across.transpose(1, 0, 2))


def _along(values: np.ndarray, square: int, side: int) -> np.ndarray:
    """[length, n, 3] -> float32 [side, n, 3]: the first axis, black up to `square`, blurred and sampled."""
    length = values.shape[0]
    factor = square / side
    deviation = max(0.0, (factor - 1) / 2)
    reach = int(REACH * deviation + 0.5)
    steps = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * (steps / deviation) ** 2) if deviation else np.ones(1)
    bell /= bell.sum()
    scale = np.float32(1 / 255) if values.dtype == np.uint8 else np.float32(1)
    out = np.zeros((side, *values.shape[1:]), np.float32)
    for first in range(0, side, ROWS):
        rows = np.arange(first, min(first + ROWS, side))
        where = (rows + 0.5) * factor - 0.5
        low = np.floor(where)
        near = _mirrored(np.stack((low, low + 1), 1).astype(np.int64), square)  # [rows, 2]
        shares = np.stack((low + 1 - where, where - low), 1)[..., None] * bell  # [rows, 2, steps]
        seen = _mirrored(near[..., None] + steps, square)
        begin, end = int(seen.min()), min(int(seen.max()) + 1, length)
        if begin >= end:
            continue  # black alone
        table = np.zeros((len(rows), max(end, int(seen.max()) + 1) - begin))
        np.add.at(table, (np.arange(len(rows))[:, None, None], seen - begin), shares)
        part = values[begin:end].reshape(end - begin, -1).astype(np.float32) * scale
        out[rows] = (table[:, : end - begin].astype(np.float32) @ part).reshape(len(rows), *values.shape[1:])
    return out


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices brought into 0..length - 1 by mirrors in the middles of the outermost pixels."""
    if length == 1:
        return np.zeros_like(index)
    turn = 2 * (length - 1)
    index = np.abs(index) % turn
    return np.where(index >= length, turn - index, index)


RECORDS = {
    "owlv2": Record(
        "owlv2", TITLE, "Finds what phrases name, each by itself; small and many things too.",
        "Apache 2.0, code and weights.", "boxes", build, ready, drop=(r"position_ids$", r"^box_bias$"),
        words=words.PAIRS,
    )
}  # fmt: skip
