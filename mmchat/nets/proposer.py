"""Boxes of things of no class: Groma's form of the two-stage Deformable DETR (Zhu et al. 2020), on one tower's map.

Parameter names are transformers' (DeformableDetr*) and FoundationVision/Groma's. Two things are as its weights were
trained: every layer looks around the first boxes, and the last box is the first one moved by the last two layers alone.
Boxes are (centre x, centre y, width, height) in 0..1. Axes in names: N pictures, Q queries, S places of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.deform import MSDeformAttn, Shapes
from mmchat.nets.openseed import Layers, flat, logit, looked_around, proposals, sines

DEFAULTS: Mapping[str, Any] = {
    "d_model": 256, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "num_queries": 300,
    "num_feature_levels": 4, "encoder_n_points": 4, "decoder_n_points": 4,
}  # fmt: skip
"""What the library means where a config.json is silent: published ones hold only what differs."""
INNER = 256  # of the layers that move a box, whatever d_model is
TRUST = (0.4, 0.6)  # the powers of the two judges' probabilities: one learned from COCO, one from SA-1B


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map [N, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


def projections(inside: int, width: int, levels: int) -> nn.ModuleList:
    """From one map to `levels` maps, finest first. One level keeps the size; several are 4, 2, 1 and 1/2 times it, of
    which the coarser ones come first where there are fewer than four. ValueError for more.
    """
    if not 1 <= levels <= 4:
        raise ValueError(f"num_feature_levels is {levels} in config.json: this proposer has one to four")
    same = nn.Sequential(nn.Conv2d(inside, width, 1), ChannelNorm(width))
    if levels == 1:
        return nn.ModuleList([same])
    half, quarter = width // 2, width // 4

    def smooth(between: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(between, width, 1), ChannelNorm(width), nn.Conv2d(width, width, 3, padding=1)

    coarse = nn.Sequential(nn.Conv2d(inside, width, 3, stride=2, padding=1), ChannelNorm(width))
    double = nn.Sequential(nn.ConvTranspose2d(inside, half, 2, stride=2), *smooth(half))
    larger = (
        nn.ConvTranspose2d(inside, half, 2, stride=2), ChannelNorm(half), nn.GELU(),
        nn.ConvTranspose2d(half, quarter, 2, stride=2),
    )  # fmt: skip
    return nn.ModuleList([coarse, same, double, nn.Sequential(*larger, *smooth(quarter))][:levels][::-1])


class EncoderLayer(nn.Module):
    """Every place looks at a few places around it on all levels."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = sizes["d_model"], sizes["encoder_ffn_dim"]
        levels, heads = sizes["num_feature_levels"], sizes["encoder_attention_heads"]
        self.self_attn = MSDeformAttn(width, levels, heads, sizes["encoder_n_points"])
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, position: torch.Tensor, reference: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x + position, reference, x, shapes))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class Attention(nn.Module):
    """Queries look at each other; values come without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        placed = x + position
        query, key, value = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (self.q_proj(placed), self.k_proj(placed), self.v_proj(x))
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at a few places inside their boxes."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner, heads = sizes["d_model"], sizes["decoder_ffn_dim"], sizes["decoder_attention_heads"]
        self.self_attn = Attention(width, heads)
        self.encoder_attn = MSDeformAttn(width, sizes["num_feature_levels"], heads, sizes["decoder_n_points"])
        self.self_attn_layer_norm, self.encoder_attn_layer_norm, self.final_layer_norm = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(
        self, x: torch.Tensor, position: torch.Tensor, reference: torch.Tensor, memory: torch.Tensor, shapes: Shapes
    ) -> torch.Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, position))
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(x + position, reference, memory, shapes))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


def stack(layers: Sequence[nn.Module]) -> nn.Module:
    """Layers under the name that they have in a checkpoint."""
    holder = nn.Module()
    holder.layers = nn.ModuleList(layers)
    return holder


@dataclass(frozen=True)
class Proposed:
    """What the proposer gives, step by step; `boxes` with their `scores` are what it is for."""

    boxes: torch.Tensor  # [N, Q, 4]
    scores: torch.Tensor  # [N, Q]
    coco: torch.Tensor  # [N, Q, 1] logits
    sa1b: torch.Tensor
    memory: torch.Tensor  # [N, S, C]
    place_scores: torch.Tensor  # [N, S, 1] logits
    place_boxes: torch.Tensor  # [N, S, 4] before the sigmoid; infinite where the first box touches the rim
    chosen: torch.Tensor  # [N, Q] of S, best first
    first: torch.Tensor  # [N, Q, 4]
    states: torch.Tensor  # [N, layers, Q, C]
    references: torch.Tensor  # [N, layers, Q, 4]


class Proposer(nn.Module):
    """The best places of a map become queries; each ends as a box and how much it is a thing.

    inside: channels of the tower's map, for `input_proj`; None where levels come from elsewhere.
    """

    def __init__(self, config: Mapping[str, Any], inside: int | None = None) -> None:
        super().__init__()
        sizes = {**DEFAULTS, **config}
        width, self.levels, layers = sizes["d_model"], sizes["num_feature_levels"], sizes["decoder_layers"]
        self.queries, self.width = sizes.get("two_stage_num_proposals", sizes["num_queries"]), width
        if inside is not None:
            self.input_proj = projections(inside, width, self.levels)
        self.level_embed = nn.Parameter(torch.zeros(self.levels, width))
        self.encoder = stack([EncoderLayer(sizes) for _ in range(sizes["encoder_layers"])])
        self.decoder = stack([DecoderLayer(sizes) for _ in range(layers)])
        self.query_position_embeddings = nn.Embedding(sizes["num_queries"], width)
        self.enc_output, self.enc_output_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.pos_trans, self.pos_trans_norm = nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)
        self.class_embed_enc = nn.Linear(width, 1)
        self.class_embed_coco, self.class_embed_sa1b = (
            nn.ModuleList(nn.Linear(width, 1) for _ in range(layers)) for _ in range(2)
        )
        self.bbox_embed = nn.ModuleList(Layers(width, INNER, INNER, 4) for _ in range(layers + 1))

    def forward(self, level: torch.Tensor) -> Proposed:
        """The tower's map [N, inside, h, w] -> what is on it."""
        return self.propose([project(level) for project in self.input_proj])

    def propose(self, levels: Sequence[torch.Tensor]) -> Proposed:
        """Maps [N, C, h, w], finest first."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        memory = self.encoded(levels, shapes)
        starts, usable = proposals(shapes, memory.device)
        starts = starts.masked_fill(~usable[None, :, None], torch.inf)  # float32 in bfloat16 too
        places = self.enc_output_norm(self.enc_output(memory.where(usable[None, :, None], 0.0)))
        place_scores = self.class_embed_enc(places)
        place_boxes = self.bbox_embed[-1](places).float() + starts
        count = min(self.queries, memory.shape[1])
        chosen = place_scores[..., 0].topk(count, 1).indices
        first = place_boxes.gather(1, chosen[..., None].expand(-1, -1, 4)).sigmoid()
        waves = sines(first * (2 * math.pi), self.width // 2).flatten(-2).to(memory.dtype)
        position = self.pos_trans_norm(self.pos_trans(waves))[..., : self.width]
        x = self.query_position_embeddings.weight[:count].expand(len(memory), -1, -1)
        around = first[:, :, None].expand(-1, -1, len(shapes), -1)
        states, references = [], []
        for layer, move in zip(self.decoder.layers, self.bbox_embed, strict=False):
            x = layer(x, position, around, memory, shapes)
            states.append(x)
            references.append((move(x).float() + logit(first)).sigmoid())
        before = references[-2] if len(references) > 1 else first
        boxes = (self.bbox_embed[len(states) - 1](x).float() + logit(before)).sigmoid()
        coco, sa1b = self.class_embed_coco[-1](x), self.class_embed_sa1b[-1](x)
        judged = [one[..., 0].float().sigmoid() ** power for one, power in zip((coco, sa1b), TRUST, strict=True)]
        seen = (memory, place_scores, place_boxes, chosen, first, torch.stack(states, 1), torch.stack(references, 1))
        return Proposed(boxes, judged[0] * judged[1], coco, sa1b, *seen)

    def encoded(self, levels: Sequence[torch.Tensor], shapes: Shapes) -> torch.Tensor:
        """Maps -> memory [N, S, C]: all places, each having looked around."""
        x = flat(levels)
        position = torch.cat(
            [
                positions(height, width, self.width, x.device).to(x.dtype) + embed
                for (height, width), embed in zip(shapes, self.level_embed, strict=True)
            ]
        )[None]
        return looked_around(self.encoder.layers, x, position, shapes)


def positions(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """Positions of a map [height * width, channels]: rows, then columns, each counted at its middle to a full turn."""

    def along(length: int) -> torch.Tensor:
        steps = torch.arange(length, dtype=torch.float32, device=device) + 0.5
        return sines(steps / (length + 1e-6) * (2 * math.pi), channels // 2)

    down = along(height)[:, None].expand(-1, width, -1)
    across = along(width)[None].expand(height, -1, -1)
    return torch.cat((down, across), -1).flatten(0, 1)
