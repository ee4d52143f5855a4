"""The operator as torch sees it: schema, fake and gradient, so that export and compilation meet one node.

`torch.ops.msda.ms_deform_attn(value, shapes, locations, weights, backend="")` and `ms_deform_attn_fused(value, shapes,
reference_points, offsets, logits, mask=None, backend="")`; shapes are flat, [height, width, height, ...], because a
graph then knows them without asking a device. The back end is chosen when the node runs. The gradients are operators
too and have no second derivative (the reference, called as a function, has).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch

from msda.backends import choose, module
from msda.contract import check, check_reference

Tensor = torch.Tensor


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [side for shape in shapes for side in shape]


def paired(shapes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if not shapes or len(shapes) % 2:
        raise ValueError(f"shapes are height, width of each level in turn, got {list(shapes)}")
    return tuple(zip(shapes[::2], shapes[1::2], strict=True))


def _backend(value: Tensor, backend: str) -> ModuleType:
    return module(choose(value.device.type, value.dtype, backend or None).name)


@torch.library.custom_op("msda::ms_deform_attn", mutates_args=())
def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, backend: str = "") -> Tensor:
    maps = paired(shapes)
    check(value, maps, locations, weights)
    return _backend(value, backend).forward(value, maps, locations, weights)


@torch.library.custom_op("msda::ms_deform_attn_fused", mutates_args=())
def forward_fused(
    value: Tensor,
    shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None = None,
    backend: str = "",
) -> Tensor:
    maps = paired(shapes)
    check(value, maps, offsets, logits, "offsets", "logits")
    check_reference(value, maps, reference_points, offsets, mask)
    return _backend(value, backend).forward_fused(value, maps, reference_points, offsets, logits, mask)


@torch.library.custom_op("msda::ms_deform_attn_backward", mutates_args=())
def backward(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _backend(value, backend).backward(grad, value, paired(shapes), locations, weights)


@torch.library.custom_op("msda::ms_deform_attn_fused_backward", mutates_args=())
def backward_fused(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = _backend(value, backend)
    return chosen.backward_fused(grad, value, paired(shapes), reference_points, offsets, logits, mask)


OPERATORS = {"forward": torch.ops.msda.ms_deform_attn, "forward_fused": torch.ops.msda.ms_deform_attn_fused}


@forward.register_fake
def _(value, shapes, locations, weights, backend=""):
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@forward_fused.register_fake
def _(value, shapes, reference_points, offsets, logits, mask=None, backend=""):
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@backward.register_fake
def _(grad, value, shapes, locations, weights, backend):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


@backward_fused.register_fake
def _(grad, value, shapes, reference_points, offsets, logits, mask, backend):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, reference_points, offsets, logits))


def _remember(ctx, inputs, output) -> None:
    value, ctx.shapes, locations, weights, ctx.backend = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradient(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = backward(grad, value, ctx.shapes, locations, weights, ctx.backend)
    return of_value, None, of_locations, of_weights, None


def _remember_fused(ctx, inputs, output) -> None:
    value, ctx.shapes, reference_points, offsets, logits, mask, ctx.backend = inputs
    ctx.save_for_backward(value, reference_points, offsets, logits, mask)


def _gradient_fused(ctx, grad):
    value, *rest = ctx.saved_tensors
    of_value, *of_rest = backward_fused(grad, value, ctx.shapes, *rest, ctx.backend)
    return of_value, None, *of_rest, None, None


forward.register_autograd(_gradient, setup_context=_remember)
forward_fused.register_autograd(_gradient_fused, setup_context=_remember_fused)
