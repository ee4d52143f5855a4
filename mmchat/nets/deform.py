"""Deformable attention as a module, and the block that fuses feature levels with it.

Axes in names: N pictures, Q queries, S places of all levels end to end, C channels, M heads, L levels, P points, x (x,
y).
Sources: Deformable DETR (Zhu et al. 2020, fundamentalvision/Deformable-DETR), MMFuser (Cao et al. 2024,
yuecao0119/MMFuser); parameter names are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from msda import ms_deform_attn_fused
from torch import nn

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Attended:
    """What one deformable attention computed, inside out. Where it looked is worked out when somebody asks."""

    output: torch.Tensor  # [N, Q, C] after output_proj
    sampled: torch.Tensor  # [N, Q, C] before it
    value: torch.Tensor  # [N, S, C] after value_proj, before the mask
    offsets: torch.Tensor  # [N, Q, M*L*P*2] raw
    logits: torch.Tensor  # [N, Q, M*L*P] raw
    reference: torch.Tensor  # [1 or N, Q, 1 or L, 2 or 4]
    shapes: Shapes
    heads: int

    @property
    def locations(self) -> torch.Tensor:
        """[N, Q, M, L, P, 2] (x, y), 0..1 over the level's map.

        Offsets are divided by the map's size in the model's own type and only then added to float32 points, as in the
        original; the operator computes in float32 throughout and differs in low precision by that rounding.
        """
        offsets = self.offsets.unflatten(-1, (self.heads, len(self.shapes), -1, 2))
        reference = self.reference[:, :, None, :, None]
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets / offsets.shape[-2] * reference[..., 2:] * 0.5
        sizes = torch.tensor([(width, height) for height, width in self.shapes], device=offsets.device)
        return reference + offsets / sizes[:, None]

    @property
    def weights(self) -> torch.Tensor:
        """[N, Q, M, L, P], softmax over L and P together."""
        logits = self.logits.unflatten(-1, (self.heads, -1))
        return logits.softmax(-1).unflatten(-1, (len(self.shapes), -1))


class Fused(NamedTuple):
    """What the fusing block computed, step by step; `output` is what it gives."""

    output: torch.Tensor  # [N, Q, C]
    query: torch.Tensor  # the last level, normalised
    features: torch.Tensor  # the other levels end to end, normalised
    cross: Attended
    between: torch.Tensor  # the cross attention's output, normalised
    own: Attended


class MSDeformAttn(nn.Module):
    """Each query looks at a few places of each level, placed relative to its reference point."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} cannot be shared out among {n_heads} heads: choose a multiple")
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset()

    def reset(self) -> None:
        """Start values: uniform weights, and offsets that fan out from the reference point."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(fan(self.n_heads, self.n_levels, self.n_points))
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: torch.Tensor,
        reference: torch.Tensor,
        source: torch.Tensor,
        shapes: Shapes,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output of `attend`."""
        return self.attend(query, reference, source, shapes, mask).output

    def attend(
        self,
        query: torch.Tensor,
        reference: torch.Tensor,
        source: torch.Tensor,
        shapes: Shapes,
        mask: torch.Tensor | None = None,
    ) -> Attended:
        """query [N, Q, C]; source [N, S, C], levels end to end, row by row; shapes (height, width) of each level.

        reference [1 or N, Q, 1 or L, 2] points (x, y) or [..., 4] boxes (centre x, centre y, width, height), in 0..1;
        float32 whatever the model's type.
        mask [N, S] bool, True where the source is padding.
        """
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        if len(shapes) != levels:
            raise ValueError(f"this attention was built for {levels} levels, got {len(shapes)}")
        value, offsets, logits = self.value_proj(source), self.sampling_offsets(query), self.attention_weights(query)
        # Half values are summed in float32 and come back in their own type.
        sampled = ms_deform_attn_fused(
            value.unflatten(-1, (heads, -1)),
            shapes,
            reference,
            offsets.unflatten(-1, (heads, levels, points, 2)),
            logits.unflatten(-1, (heads, levels, points)),
            mask,
        ).to(self.output_proj.weight.dtype)
        output = self.output_proj(sampled)
        return Attended(output, sampled, value, offsets, logits, reference, shapes, heads)


class MSCrossAttnBlock(nn.Module):
    """MMFuser's block: the deepest level asks the shallower ones, then itself; both answers return to it through gates
    that start at zero.

    With fresh gates it gives back the deepest level unchanged. Levels may differ in size.
    """

    def __init__(self, d_model: int = 1024, n_levels: int = 4, n_heads: int = 16, n_points: int = 4) -> None:
        super().__init__()
        self.n_levels = n_levels
        self.cross_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.gamma1 = nn.Parameter(torch.zeros(d_model))
        self.query_norm = nn.LayerNorm(d_model, eps=1e-6)
        self.feat_norm = nn.LayerNorm(d_model, eps=1e-6)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.self_attn = MSDeformAttn(d_model, 1, n_heads, n_points)
        self.gamma2 = nn.Parameter(torch.zeros(d_model))

    def forward(self, levels: Sequence[torch.Tensor] | torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """The output [N, Q, C] of `fuse`."""
        return self.fuse(levels, shapes).output

    def fuse(self, levels: Sequence[torch.Tensor] | torch.Tensor, shapes: Shapes | None = None) -> Fused:
        """levels: each [N, height*width, C], row by row; the first n_levels are looked at, the last one asks (and may
        be one of them).

        shapes: (height, width) of each entry of `levels`; squares where not given.
        """
        shapes = [square(level.shape[1]) for level in levels] if shapes is None else list(shapes)
        if len(levels) < self.n_levels or len(shapes) != len(levels):
            raise ValueError(
                f"the fuser needs {self.n_levels} levels and a size for each, "
                f"got {len(levels)} levels and {len(shapes)} sizes"
            )
        deepest = levels[-1]
        query = self.query_norm(deepest)
        features = self.feat_norm(torch.cat(tuple(levels[: self.n_levels]), dim=1))
        reference = centres(*shapes[-1], device=deepest.device)
        cross = self.cross_attn.attend(query, reference, features, shapes[: self.n_levels])
        between = self.norm1(cross.output)
        own = self.self_attn.attend(between, reference, between, shapes[-1:])
        # The self attention's answer is added to the cross attention's own output, not to its normalised form.
        output = deepest + self.gamma1 * (cross.output + self.gamma2 * own.output)
        return Fused(output, query, features, cross, between, own)


def fan(heads: int, levels: int, points: int) -> torch.Tensor:
    """Starting offsets [heads*levels*points*2]: head m points at angle 2*pi*m/heads on the unit square's rim, point i
    lies i steps out.
    """
    angles = torch.arange(heads, dtype=torch.float32) * (2.0 * math.pi / heads)
    rim = torch.stack((angles.cos(), angles.sin()), -1)
    rim = rim / rim.abs().max(-1, keepdim=True).values
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    return (rim[:, None, None] * steps[:, None]).expand(heads, levels, points, 2).flatten()


def centres(height: int, width: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Pixel centres [1, height*width, 1, 2] (x, y) in 0..1, row by row, float32."""
    y = torch.linspace(0.5, height - 0.5, height, dtype=torch.float32, device=device) / height
    x = torch.linspace(0.5, width - 0.5, width, dtype=torch.float32, device=device) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), -1)[None, :, None]


def attended_map(attended: Attended, shape: tuple[int, int]) -> torch.Tensor:
    """Where all queries together look: the weights summed over a grid (height, width), [N, 1, height, width].

    Levels and heads fall on one another; what lies outside the map is left out.
    """
    height, width = shape
    size = torch.tensor((width, height), device=attended.locations.device)
    cell = (attended.locations.float() * size).floor().long().flatten(1, -2)
    inside = ((cell >= 0) & (cell < size)).all(-1)
    index = (cell[..., 1] * width + cell[..., 0]).where(inside, 0)
    weight = attended.weights.float().flatten(1).where(inside, 0.0)
    return torch.zeros(len(cell), height * width, device=cell.device).scatter_add_(1, index, weight).view(-1, 1, *shape)


def square(places: int) -> tuple[int, int]:
    """(side, side) of a square map of so many places; ValueError where it is none."""
    side = math.isqrt(places)
    if side * side != places:
        raise ValueError(f"{places} places are no square map: give the (height, width) of each level")
    return side, side
