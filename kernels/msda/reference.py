"""The operator in plain torch: any device, any float. Every other back end is judged by it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Shapes = list[tuple[int, int]]


def ms_deform_attn(value: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Same tensors as `msda.ms_deform_attn`, with the maps' (height, width) as numbers; gradients of any order by
    autograd.

    Sums in the widest type among the inputs and float32, gives back the type of `value`.
    """
    batch, _, heads, depth = value.shape
    sampled_BDQLP, _ = _sampled(value, shapes, locations, weights)
    weights_BQLP = weights.to(sampled_BDQLP.dtype).transpose(1, 2).flatten(0, 1)
    summed = (sampled_BDQLP * weights_BQLP[:, None]).flatten(-2).sum(-1)
    return summed.view(batch, heads * depth, -1).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_backward(
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


def _sampled(
    value: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Samples [N*M, D, Q, L, P], and the maps and grids they were taken from. Batch and heads become one axis:
    grid_sample knows one batch.
    """
    batch, _, heads, depth = value.shape
    dtype = torch.float32
    for tensor in (value, locations, weights):
        dtype = torch.promote_types(dtype, tensor.dtype)
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
