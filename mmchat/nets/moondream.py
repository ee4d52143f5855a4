"""Moondream's region heads: places go into the language model and come out of it as numbers, not as words.

After vikhyat/moondream, moondream/torch/region.py; parameter names of `model.region.*`. A coordinate is one of so many
equal bins, a size one of so many bins of its logarithm, from 2^-10 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BINS = 1024
SIZES = {
    "dim": 2048,
    "coord_feat_dim": 256,
    "coord_out_dim": 1024,
    "size_feat_dim": 512,
    "size_out_dim": 2048,
    "inner_dim": 8192,
}


class Decoder(nn.Module):
    """Two layers with GELU's tanh form between them."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, out)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden), approximate="tanh"))


class RegionHeads(nn.Module):
    """Coordinates and sizes to embeddings [..., dim], hidden states [..., dim] to scores of bins."""

    def __init__(self, config: Mapping[str, Any] = SIZES) -> None:
        super().__init__()
        width, inner = config["dim"], config["inner_dim"]
        self.coord_encoder = nn.Linear(config["coord_feat_dim"], width)
        self.coord_decoder = Decoder(width, inner, config["coord_out_dim"])
        self.size_encoder = nn.Linear(config["size_feat_dim"], width)
        self.size_decoder = Decoder(width, inner, config["size_out_dim"])
        self.coord_features = nn.Parameter(torch.empty(1, config["coord_feat_dim"] // 2))
        self.size_features = nn.Parameter(torch.empty(2, config["size_feat_dim"] // 2))

    def embed_coordinates(self, values: torch.Tensor) -> torch.Tensor:
        """[..., 1] in 0..1 -> [..., dim]."""
        return self.coord_encoder(waves(values, self.coord_features))

    def embed_sizes(self, values: torch.Tensor) -> torch.Tensor:
        """[..., 2] (width, height) in 0..1 -> [..., dim]."""
        return self.size_encoder(waves(values, self.size_features))

    def score_coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., bins]."""
        return self.coord_decoder(hidden)

    def score_sizes(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., 2, bins]: width, then height."""
        return self.size_decoder(hidden).unflatten(-1, (2, -1))

    def embed_places(self, places: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (x, y) and boxes (x0, y0, x1, y1) of a question: rows of coordinates (two each; of boxes the centre)
        and of sizes (one for each box).
        """
        kind = self.coord_features
        spots = [
            value
            for place in places
            for value in (place if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2))
        ]
        sides = [(place[2] - place[0], place[3] - place[1]) for place in places if len(place) == 4]
        coordinates = torch.tensor(spots, dtype=kind.dtype, device=kind.device).reshape(-1, 1)
        sizes = torch.tensor(sides, dtype=kind.dtype, device=kind.device).reshape(-1, 2)
        return self.embed_coordinates(coordinates), self.embed_sizes(sizes)

    def box(self, x: torch.Tensor, y: torch.Tensor, size: torch.Tensor) -> tuple[float, float, float, float]:
        """Corners (x0, y0, x1, y1), not cut to the picture, from the hidden states [dim] that numbers are read of."""
        centre_x, centre_y = (float(centre(self.score_coordinates(hidden))) for hidden in (x, y))
        width, height = extent(self.score_sizes(size)).tolist()
        return centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2


def waves(values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Fourier features [..., 2 F] of values [..., n] by the learned frequencies [n, F]: cosines, then sines."""
    angles = 2 * math.pi * values @ features
    return torch.cat((angles.cos(), angles.sin()), -1)


def coordinate_of(bins: torch.Tensor, count: int = BINS) -> torch.Tensor:
    """0..1 of a bin's number."""
    return bins / count


def size_of(bins: torch.Tensor) -> torch.Tensor:
    """0..1 of a bin's number; as published it is 1024 bins however many the head has."""
    return torch.exp2(bins / (BINS - 1) * 10.0 - 10.0)


def centre(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest coordinate [...] of scores [..., bins]."""
    return coordinate_of(logits.argmax(-1), logits.shape[-1])


def extent(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest size [...] of scores [..., bins]."""
    return size_of(logits.argmax(-1))
