"""msda: multi-scale deformable attention, one function behind which the fitting back end runs.

    out[n, q, m*D:(m+1)*D] = sum over levels l and points p of  weight[n,q,m,l,p] * bilinear(value of level l and head
    m, location[n,q,m,l,p])

The operator of Deformable DETR (Zhu et al. 2020, github.com/fundamentalvision/Deformable-DETR, models/ops), written
anew. `kernels/README.md` holds the contract in full. Which back end runs is decided in one place, `choose`, which can
say why; no error of a back end is swallowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from msda import reference

__all__ = ["BACKENDS", "Choice", "State", "choose", "ms_deform_attn", "states"]

BACKENDS = ("reference",)
"""Best first. The compiled ones (cuda, triton, cpu) will stand before the reference."""

VARIABLE = "MSDA_BACKEND"


@dataclass(frozen=True)
class State:
    """Whether a back end can run here, and in one sentence why or what would help."""

    name: str
    ready: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """The back end that will run, and why it is this one."""

    name: str
    why: str


def states(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[State, ...]:
    """Every back end this version knows, best first, for tensors on that device and of that type."""
    return (State("reference", True, f"plain torch runs on every device ({device}) and float type ({_short(dtype)})"),)


def choose(device: str = "cpu", dtype: torch.dtype = torch.float32, backend: str | None = None) -> Choice:
    """Which back end runs: the argument, else the variable MSDA_BACKEND, else the first that is ready. ValueError for
    one that cannot run.
    """
    forced, by = (
        (backend, "the caller")
        if backend is not None
        else (os.environ.get(VARIABLE) or None, f"the variable {VARIABLE}")
    )
    known = states(device, dtype)
    if forced is None:
        state = next(state for state in known if state.ready)
        return Choice(state.name, f"the fastest that is ready: {state.why}")
    for state in known:
        if state.name == forced:
            if not state.ready:
                raise ValueError(f"the back end {forced!r}, asked for by {by}, cannot run here: {state.why}")
            return Choice(forced, f"asked for by {by}")
    raise ValueError(
        f"no back end {forced!r} (asked for by {by}): choose one of {', '.join(state.name for state in known)}"
    )


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor | Sequence[tuple[int, int]],
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
    shapes = _shapes(spatial_shapes)
    _check(value, shapes, sampling_locations, attention_weights)
    choose(value.device.type, value.dtype, backend)
    # The reference is called as plain torch, so that autograd keeps what it sampled instead of sampling twice; compiled
    # back ends go through
    # the operator below.
    return reference.ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def _shapes(spatial_shapes: torch.Tensor | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, torch.Tensor) else list(spatial_shapes)
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    ):
        raise ValueError(f"spatial_shapes must hold a (height, width) for each level, got {pairs}")
    return [(int(height), int(width)) for height, width in pairs]


def _check(value: torch.Tensor, shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor) -> None:
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "expected value [N,S,M,D], locations [N,Q,M,L,P,2] and weights [N,Q,M,L,P], "
            f"got {list(value.shape)}, {list(locations.shape)} and {list(weights.shape)}"
        )
    batch, length, heads, _ = value.shape
    if length != sum(height * width for height, width in shapes):
        raise ValueError(f"value has {length} places, but the levels {shapes} hold {sum(h * w for h, w in shapes)}")
    if locations.shape[:5] != weights.shape or locations.shape[5] != 2:
        raise ValueError(
            f"locations {list(locations.shape)} and weights {list(weights.shape)} do not name the same samples"
        )
    if (locations.shape[0], locations.shape[2], locations.shape[3]) != (batch, heads, len(shapes)):
        raise ValueError(
            f"locations {list(locations.shape)} do not fit {batch} pictures, {heads} heads and {len(shapes)} levels"
        )
    if not all(tensor.is_floating_point() for tensor in (value, locations, weights)):
        raise ValueError("value, locations and weights must be floating point")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# The same function as a torch operator: one node for export and compilation, and the door for compiled back ends. Its
# backward is an
# operator too; neither has a second derivative (the plain function above has).


@torch.library.custom_op("msda::ms_deform_attn", mutates_args=())
def _forward(
    value: torch.Tensor, spatial_shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    shapes = _shapes(spatial_shapes)
    _check(value, shapes, locations, weights)
    return reference.ms_deform_attn(value, shapes, locations, weights)


@_forward.register_fake
def _(
    value: torch.Tensor, spatial_shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("msda::ms_deform_attn_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return reference.ms_deform_attn_backward(grad, value, _shapes(spatial_shapes), locations, weights)


@_backward.register_fake
def _(
    grad: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad):
    value, spatial_shapes, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _backward(grad, value, spatial_shapes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


_forward.register_autograd(_gradient, setup_context=_remember)
