"""Boxes and masks for what a language model names: OpenSeeD's pixel decoder and its two-stage decoder of queries.

Zhang et al. 2023 (OpenSeeD) and Li et al. 2022 (MaskDINO), as UX-Decoder/LLaVA-Grounding uses them; parameter names are
theirs. The prompt decoder is Semantic-SAM's (Li et al. 2023) in the same repository: one drawn place becomes a vector.
Axes in names: N pictures, Q queries, S places of all levels end to end, C channels, K phrases. A decoder takes its
levels coarsest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.deform import MSDeformAttn, Shapes, centres

BASE: Mapping[str, Any] = {
    "width": 256, "heads": 8, "inner": 2048, "encoder_layers": 6, "decoder_layers": 9, "mask_width": 256,
    "queries": 300, "levels": 4, "points": 4,
}  # fmt: skip
GROUPS = 32  # of the group norms
TOKENS = 3  # queries of one prompt: the object at three sizes; the first is used


class Layers(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class NormedConv(nn.Conv2d):
    """A convolution without bias and its group norm."""

    def __init__(self, inside: int, outside: int, size: int) -> None:
        super().__init__(inside, outside, size, padding=size // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class EncoderLayer(nn.Module):
    """Every place of every level looks at a few places around it on all levels."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.self_attn = MSDeformAttn(width, sizes["levels"], sizes["heads"], sizes["points"])
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, sizes["inner"]), nn.Linear(sizes["inner"], width)

    def forward(self, x: torch.Tensor, position: torch.Tensor, reference: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        x = self.norm1(x + self.self_attn(x + position, reference, x, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(sizes["levels"], sizes["width"]))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes["encoder_layers"]))

    def forward(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps [N, C, h, w], finest first -> the same, each having seen the others."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        x = flat(levels)
        position = torch.cat(
            [
                (waves(height, width, x.shape[2], x.device) + embed.float()).to(x.dtype)
                for (height, width), embed in zip(shapes, self.level_embed, strict=True)
            ]
        )[None]
        x = looked_around(self.encoder.layers, x, position, shapes)
        parts = x.split([height * width for height, width in shapes], 1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True)
class Decoded:
    """`levels` [N, C, h, w], finest first; `masks` [N, mask width, H / 4, W / 4], None where none are wanted."""

    levels: tuple[torch.Tensor, ...]
    masks: torch.Tensor | None


class PixelDecoder(nn.Module):
    """A tower's maps of stride 4 to 32 -> levels of one width (strides 8 to 64) and features to cut masks from."""

    def __init__(self, widths: Sequence[int], sizes: Mapping[str, Any], masks: bool = True) -> None:
        super().__init__()
        width, used = sizes["width"], list(widths[1:])
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inside, width, 1), nn.GroupNorm(GROUPS, width)) for inside in used
        )
        for inside in [used[-1], *[width] * (sizes["levels"] - len(used) - 1)][: sizes["levels"] - len(used)]:
            half = nn.Conv2d(inside, width, 3, stride=2, padding=1)
            self.input_proj.append(nn.Sequential(half, nn.GroupNorm(GROUPS, width)))
        self.transformer = Encoder(sizes)
        self.adapter_1 = NormedConv(widths[0], width, 1) if masks else None
        self.layer_1 = NormedConv(width, width, 3) if masks else None
        self.mask_features = nn.Conv2d(width, sizes["mask_width"], 1) if masks else None

    def forward(self, maps: Sequence[torch.Tensor]) -> Decoded:
        """maps: the tower's, finest first."""
        levels = [project(level) for project, level in zip(self.input_proj, maps[1:], strict=False)]
        coarse = maps[-1]
        for project in self.input_proj[len(levels) :]:
            coarse = project(coarse)
            levels.append(coarse)
        levels = self.transformer(levels)
        if self.adapter_1 is None or self.layer_1 is None or self.mask_features is None:
            return Decoded(tuple(levels), None)
        near = self.adapter_1(maps[0])
        far = F.interpolate(levels[0], size=near.shape[2:], mode="bilinear", align_corners=False)
        return Decoded(tuple(levels), self.mask_features(F.relu(self.layer_1(near + far))))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at a few places inside their boxes."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.cross_attn = MSDeformAttn(width, sizes["levels"], sizes["heads"], sizes["points"])
        self.self_attn = nn.MultiheadAttention(width, sizes["heads"], batch_first=True)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(width, sizes["inner"]), nn.Linear(sizes["inner"], width)

    def forward(
        self, x: torch.Tensor, position: torch.Tensor, reference: torch.Tensor, memory: torch.Tensor, shapes: Shapes
    ) -> torch.Tensor:
        placed = x + position
        x = self.norm2(x + self.self_attn(placed, placed, x, need_weights=False)[0])
        x = self.norm1(x + self.cross_attn(x + position, reference, memory, shapes))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    """Layers of queries, each of which moves the queries' boxes a little."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes["decoder_layers"]))
        self.ref_point_head = Layers(2 * width, width, width)

    def forward(
        self, x: torch.Tensor, boxes: torch.Tensor, memory: torch.Tensor, shapes: Shapes, norm: nn.Module, move: Layers
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """x [N, Q, C], boxes [N, Q, 4] before the sigmoid (centre, size), memory [N, S, C].

        Gives each layer's queries behind `norm`, and the boxes in 0..1 before the first layer and after each.
        """
        reference = boxes.float().sigmoid()
        states, references = [], [reference]
        for layer in self.layers:
            position = self.ref_point_head(box_waves(reference, x.shape[2]).to(x.dtype))
            places = reference[:, :, None].expand(-1, -1, len(shapes), -1)
            x = layer(x, position, places, memory, shapes)
            reference = (move(x).float() + logit(reference)).sigmoid()
            states.append(norm(x))
            references.append(reference)
        return states, references


@dataclass(frozen=True)
class Found:
    """What the decoder of queries gives, step by step. Boxes: centre x, centre y, width, height in 0..1."""

    logits: torch.Tensor  # [N, Q, K]
    boxes: torch.Tensor  # [N, Q, 4]
    masks: torch.Tensor  # [N, Q, H / 4, W / 4] logits
    memory: torch.Tensor  # [N, S, C] behind its norm
    proposal_score: torch.Tensor  # [N, S]: the best over the phrases, where a box may start or not
    first_boxes: torch.Tensor  # [N, Q, 4]: of the places chosen
    states: list[torch.Tensor]
    references: list[torch.Tensor]


class Predictor(nn.Module):
    """The best places for the phrases become queries; nine layers later each is a box, a mask and a score for each."""

    def __init__(self, sizes: Mapping[str, Any], phrase_width: int) -> None:
        super().__init__()
        width = sizes["width"]
        self.queries = sizes["queries"]
        self.enc_output, self.enc_output_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.class_embed = nn.Parameter(torch.zeros(width, phrase_width))
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.mask_embed = Layers(width, width, width, sizes["mask_width"])
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder = Decoder(sizes)
        self._bbox_embed = Layers(width, width, width, 4)

    def forward(self, seen: Decoded, phrases: torch.Tensor) -> Found:
        """phrases [N, K, phrase width]: the language model's states, used as they are."""
        assert seen.masks is not None, "this predictor cuts masks: build its pixel decoder with masks"
        levels = seen.levels[::-1]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        source = flat(levels)
        starts, usable = proposals(shapes, source.device)
        memory = self.enc_output_norm(self.enc_output(source.where(usable[None, :, None], 0.0)))
        score = self.likeness(memory @ self.class_embed, phrases).amax(-1)
        count = min(self.queries, int(usable.sum()))
        chosen = score.masked_fill(~usable, -torch.inf).topk(count, 1).indices[..., None]
        first = (self._bbox_embed(memory).float() + starts).gather(1, chosen.expand(-1, -1, 4))
        queries = memory.gather(1, chosen.expand(-1, -1, memory.shape[2]))
        states, references = self.decoder(queries, first, source, shapes, self.decoder_norm, self._bbox_embed)
        boxes = (self._bbox_embed(states[-1]).float() + logit(references[-2])).sigmoid()
        logits, masks = self.judged(states[-1], seen.masks, phrases)
        return Found(logits, boxes, masks, memory, score, first.sigmoid(), states, references)

    def judged(
        self, states: torch.Tensor, mask_features: torch.Tensor, phrases: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [N, Q, C] -> logits [N, Q, K], mask logits [N, Q, h, w]. The norm comes a second time here."""
        states = self.decoder_norm(states)
        masks = torch.einsum("nqc,nchw->nqhw", self.mask_embed(states), mask_features)
        return self.likeness(states @ self.class_embed, phrases), masks

    def likeness(self, vectors: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """[N, Q, width], [N, K, width] -> [N, Q, K]. Only the queries' side has length one."""
        vectors, phrases = vectors.float(), phrases.float()
        vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)
        return self.logit_scale.float().exp() * vectors @ phrases.transpose(1, 2)


class PromptPredictor(nn.Module):
    """A drawn box or point -> the vector of the object there: the first of its three queries after nine layers."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.mask_tokens = nn.Embedding(TOKENS, width)
        self.pb_embedding, self.label_enc = nn.Embedding(2, width), nn.Embedding(2, width)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder = Decoder(sizes)
        self._bbox_embed = Layers(width, width, width, 4)

    def forward(self, levels: Sequence[torch.Tensor], boxes: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """levels [n, C, h, w], finest first; boxes [n, 4] (centre, size in 0..1); drawn [n]: 1 a box, 0 a point.

        Gives [n, C]. Each prompt is asked for itself.
        """
        levels = levels[::-1]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        kind = self.label_enc.weight[0] + self.pb_embedding(drawn.long())
        queries = kind[:, None] + self.mask_tokens.weight
        starts = logit(boxes.float())[:, None].expand(-1, TOKENS, -1)
        states, _ = self.decoder(queries, starts, flat(levels), shapes, self.decoder_norm, self._bbox_embed)
        return self.decoder_norm(states[-1])[:, 0]


def matched(logits: torch.Tensor, threshold: float) -> list[torch.Tensor]:
    """For each phrase of logits [Q, K] its queries: those to which more than `threshold` of all its weight falls."""
    shares = logits.float().softmax(0)
    return [(shares[:, phrase] > threshold).nonzero().flatten() for phrase in range(logits.shape[1])]


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] from centre and size to x0, y0, x1, y1."""
    centre, size = boxes.split(2, -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def flat(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps [N, C, h, w] end to end: [N, S, C]."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)


def looked_around(layers: nn.ModuleList, x: torch.Tensor, position: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Places [N, S, C] of all levels after an encoder's layers; position [1, S, C]."""
    points = torch.cat([centres(height, width, x.device) for height, width in shapes], 1)
    reference = points.expand(-1, -1, len(shapes), -1)
    for layer in layers:
        x = layer(x, position, reference, shapes)
    return x


def logit(x: torch.Tensor) -> torch.Tensor:
    """What the sigmoid makes `x` of; numbers at 0 or 1 are kept 1e-5 away from it."""
    x = x.clamp(0.0, 1.0)
    return (x.clamp(min=1e-5) / (1.0 - x).clamp(min=1e-5)).log()


def proposals(shapes: Shapes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A first box for each place of each level, [1, S, 4] before the sigmoid, and which of them [S] may be chosen: none
    that touches the rim. Boxes double from level to level, in the decoder's order: the coarsest level has the smallest.
    """
    made = []
    for number, (height, width) in enumerate(shapes):
        centre = centres(height, width, device)[0, :, 0]
        made.append(torch.cat((centre, torch.full_like(centre, 0.05 * 2.0**number)), -1))
    boxes = torch.cat(made)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    return (boxes / (1.0 - boxes)).log().where(usable[:, None], 0.0)[None], usable


def frequencies(count: int, device: torch.device) -> torch.Tensor:
    """[count]: 10000 to the power of 0, 0, 2, 2, 4, 4 ... over `count`."""
    at = torch.arange(count, dtype=torch.float32, device=device)
    return 10000.0 ** (2 * (at // 2) / count)


def sines(values: torch.Tensor, count: int) -> torch.Tensor:
    """[...] -> [..., count]: sine and cosine in turn."""
    angles = values[..., None] / frequencies(count, values.device)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2)


def waves(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """Positions of a map [height * width, channels]: rows first, then columns, counted from 1 to a full turn."""
    turn = 2 * math.pi
    rows = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + 1e-6) * turn
    columns = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + 1e-6) * turn
    down = sines(rows, channels // 2)[:, None].expand(-1, width, -1)
    across = sines(columns, channels // 2)[None].expand(height, -1, -1)
    return torch.cat((down, across), -1).flatten(0, 1)


def box_waves(boxes: torch.Tensor, channels: int) -> torch.Tensor:
    """Boxes [N, Q, 4] (x, y, width, height) -> [N, Q, 2 * channels]: y, x, width, height."""
    return sines(boxes[..., [1, 0, 2, 3]] * (2 * math.pi), channels // 2).flatten(-2)
