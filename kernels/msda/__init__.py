"""msda: multi-scale deformable attention, one function behind which the fitting back end runs.

    out[n, q, m*D:(m+1)*D] = sum over levels l and points p of  weight[n,q,m,l,p] * bilinear(value of level l and head
    m, location[n,q,m,l,p])

The operator of Deformable DETR (Zhu et al. 2020, github.com/fundamentalvision/Deformable-DETR, models/ops), written
anew. `kernels/README.md` holds the contract in full. Which back end runs is decided in one place, `choose`, which can
say why; no error of a back end is swallowed.
"""

from __future__ import annotations

import torch

from msda import ops, reference
from msda.backends import BACKENDS, VARIABLE, Choice, State, choose, module, states
from msda.contract import Pairs, check, check_reference, pairs

__all__ = ["BACKENDS", "VARIABLE", "Choice", "State", "choose", "ms_deform_attn", "ms_deform_attn_fused", "states"]


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor | Pairs,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """Sample the value maps at the locations and sum with the weights.

    value               [N, S, M, D]         levels end to end, each row by row; S the sum of height * width
    spatial_shapes      [L, 2]               (height, width) of each level, integers; a sequence of pairs spares a
    device a round trip
    sampling_locations  [N, Q, M, L, P, 2]   (x, y); (0, 0) the map's top left corner, (1, 1) its bottom right; may lie
    outside
    attention_weights   [N, Q, M, L, P]      used as they are: not normalised here
    returns             [N, Q, M * D]        in the type of `value`; heads side by side

    Pixel centres lie at half-integers; what is outside a map counts as zero. Locations may stay float32 when values are
    half: they should.
    `backend` forces one back end (`choose` says which would run). ValueError for shapes that do not fit together.
    """
    shapes = pairs(spatial_shapes)
    check(value, shapes, sampling_locations, attention_weights)
    return _run("forward", value, shapes, (sampling_locations, attention_weights), backend)


def ms_deform_attn_fused(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor | Pairs,
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """The same from the raw projections: softmax of the logits and arithmetic of the locations happen inside.

    value, spatial_shapes, result            as in `ms_deform_attn`
    reference_points    [1 or N, Q, 1 or L, 2 or 4]   points (x, y) or boxes (centre x, centre y, width, height), 0..1
    offsets             [N, Q, M, L, P, 2]   (x, y): in pixels of the level around points, in halves of the box's size
    over P around boxes
    logits              [N, Q, M, L, P]      the weights before the softmax over levels and points together
    mask                [N, S] bool          True where a place is padding and counts as zero

    Locations and weights are computed in the widest type among the inputs and float32. ValueError for shapes that do
    not fit together.
    """
    shapes = pairs(spatial_shapes)
    check(value, shapes, offsets, logits, "offsets", "logits")
    check_reference(value, shapes, reference_points, offsets, mask)
    return _run("forward_fused", value, shapes, (reference_points, offsets, logits, mask), backend)


def _run(
    way: str, value: torch.Tensor, shapes: Pairs, rest: tuple[torch.Tensor | None, ...], backend: str | None
) -> torch.Tensor:
    """Call the chosen back end the cheapest way that keeps what is asked: gradients, compilation."""
    operator = ops.OPERATORS[way]
    if torch.compiler.is_compiling():  # one node in the graph; the back end is chosen when it runs
        return operator(value, ops.flat(shapes), *rest, backend or "")
    chosen = module(choose(value.device.type, value.dtype, backend).name)
    tensors = (value, *rest)
    if chosen is not reference and torch.is_grad_enabled():
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return operator(value, ops.flat(shapes), *rest, backend or "")
    # The reference is called as plain torch, so that autograd keeps what it sampled instead of sampling twice.
    return getattr(chosen, way)(value, shapes, *rest)
