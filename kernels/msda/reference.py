"""The operator in plain torch: any device, any float. Every other back end is judged by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Shapes = Sequence[tuple[int, int]]


def state(device: str, dtype: torch.dtype) -> str:
    """Why it cannot run: it always can."""
    return ""


def widest(*tensors: torch.Tensor) -> torch.dtype:
    """The type sums are made in: the widest among the tensors and float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def forward(value: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Same tensors as `msda.ms_deform_attn`, with the maps' (height, width) as numbers; gradients of any order by
    autograd.

    Sums in the widest type among the inputs and float32, gives back the type of `value`.
    """
    batch, _, heads, depth = value.shape
    sampled_BDQLP, _ = _sampled(value, shapes, locations, weights)
    weights_BQLP = weights.to(sampled_BDQLP.dtype).transpose(1, 2).flatten(0, 1)
    summed = (sampled_BDQLP * weights_BQLP[:, None]).flatten(-2).sum(-1)
    return summed.view(batch, heads * depth, -1).transpose(1, 2).contiguous().to(value.dtype)


def backward(
    grad: torch.Tensor, value: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights, given that of the output [N, Q, M*D]; for where autograd is not at
    hand (inside an operator).
    """
    batch, length, heads, depth = value.shape
    sampled_BDQLP, (maps, grids) = _sampled(value, shapes, locations, weights)
    dtype = sampled_BDQLP.dtype
    grad_BDQ = grad.to(dtype).transpose(1, 2).reshape(batch * heads, depth, -1)
    weights_BQLP = weights.to(dtype).transpose(1, 2).flatten(0, 1)

    grad_weights = torch.einsum("bdq,bdqlp->bqlp", grad_BDQ, sampled_BDQLP).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_maps, grad_grids = [], []
    for level, (map_BDHW, grid_BQPx) in enumerate(zip(maps, grids, strict=True)):
        grad_BDQP = grad_BDQ[..., None] * weights_BQLP[:, None, :, level]
        one, other = torch.ops.aten.grid_sampler_2d_backward(grad_BDQP, map_BDHW, grid_BQPx, 0, 0, False, [True, True])
        grad_maps.append(one.flatten(2))
        grad_grids.append(other)
    grad_value = torch.cat(grad_maps, -1).view(batch, heads, depth, length).permute(0, 3, 1, 2)
    # The grid is twice the location less one.
    grad_locations = 2 * torch.stack(grad_grids, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    return (
        grad_value.contiguous().to(value.dtype),
        grad_locations.contiguous().to(locations.dtype),
        grad_weights.contiguous().to(weights.dtype),
    )


def forward_fused(
    value: torch.Tensor,
    shapes: Shapes,
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Same tensors as `msda.ms_deform_attn_fused`; gradients of any order by autograd."""
    dtype = widest(value, reference_points, offsets, logits)
    locations, weights = placed(shapes, reference_points, offsets, dtype), shared_out(logits, dtype)
    return forward(_masked(value, mask), shapes, locations, weights)


def backward_fused(
    grad: torch.Tensor,
    value: torch.Tensor,
    shapes: Shapes,
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, reference points, offsets and logits."""
    return chained(backward, grad, value, shapes, reference_points, offsets, logits, mask)


def placed(shapes: Shapes, reference_points: torch.Tensor, offsets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Locations [N, Q, M, L, P, 2] of offsets around points (pixels of the level) or boxes (half the box's size, shared
    out among the points).
    """
    reference, offsets = reference_points.to(dtype)[:, :, None, :, None], offsets.to(dtype)
    return reference[..., :2] + offsets * _step(shapes, reference, offsets.shape[-2])


def shared_out(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights [N, Q, M, L, P]: softmax over levels and points together."""
    return logits.to(dtype).flatten(-2).softmax(-1).view(logits.shape)


def chained(
    unfused, grad, value, shapes, reference_points, offsets, logits, mask
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`backward_fused` for a back end whose `backward` is given: the rest of the chain in torch."""
    dtype = widest(value, reference_points, offsets, logits)
    locations, weights = placed(shapes, reference_points, offsets, dtype), shared_out(logits, dtype)
    grad_value, at, of = unfused(grad, _masked(value, mask), shapes, locations, weights)
    grad_logits = weights * (of - (of * weights).sum((-1, -2), keepdim=True))
    reference, points = reference_points.to(dtype)[:, :, None, :, None], offsets.shape[-2]
    parts = [at] if reference.shape[-1] == 2 else [at, at * offsets.to(dtype) * (0.5 / points)]
    grad_reference = torch.cat(parts, -1).sum((2, 4))
    # What pictures or levels share collects the gradients of all of them.
    grad_reference = grad_reference.sum_to_size(*reference_points.shape)
    return (
        _masked(grad_value, mask),
        grad_reference.to(reference_points.dtype),
        (at * _step(shapes, reference, points)).to(offsets.dtype),
        grad_logits.to(logits.dtype),
    )


def _step(shapes: Shapes, reference_NQ1L1x: torch.Tensor, points: int) -> torch.Tensor:
    """How far an offset of one reaches, in widths and heights of the map; fits [N, Q, M, L, P, 2]."""
    if reference_NQ1L1x.shape[-1] == 4:
        return reference_NQ1L1x[..., 2:] * (0.5 / points)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=reference_NQ1L1x.dtype)
    return sizes.to(reference_NQ1L1x.device).reciprocal()[:, None]


def _masked(value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return value if mask is None else value.masked_fill(mask[..., None, None], 0.0)


def _sampled(
    value: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Samples [N*M, D, Q, L, P], and the maps and grids they were taken from. Batch and heads become one axis:
    grid_sample knows one batch.
    """
    batch, _, heads, depth = value.shape
    dtype = widest(value, locations, weights)
    value_NMDS = value.to(dtype).permute(0, 2, 3, 1)
    grid_BQLPx = (2 * locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    maps, grids, sampled, start = [], [], [], 0
    for level, (height, width) in enumerate(shapes):
        stop = start + height * width
        maps.append(value_NMDS[..., start:stop].reshape(batch * heads, depth, height, width))
        grids.append(grid_BQLPx[:, :, level])
        # Half-pixel centres (align_corners False); a corner outside the map counts as zero, and nothing is
        # renormalised.
        sampled.append(F.grid_sample(maps[-1], grids[-1], mode="bilinear", padding_mode="zeros", align_corners=False))
        start = stop
    return torch.stack(sampled, dim=-2), (maps, grids)
