"""The Triton back end: the same contract where nothing was compiled; Triton compiles its kernels when first called.

With TRITON_INTERPRET=1 the same kernels run number by number on the CPU: for tests, very slowly.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from msda.reference import Shapes, widest

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LEVELS = 8
MOST_SAMPLES = 256  # a query's samples lie in registers together
Tensor = torch.Tensor


def state(device: str, dtype: torch.dtype) -> str:
    """Why it cannot run for tensors on that device and of that type; "" when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: `pip install triton`, on Linux"
    if dtype not in TYPES:
        return f"it knows {', '.join(str(known).removeprefix('torch.') for known in TYPES)}, not {dtype}"
    if interpreted():
        return ""
    if torch.device(device).type != "cuda":
        return f"it computes on CUDA devices, and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: install a torch built for CUDA, and the device's driver"
    return ""


def interpreted() -> bool:
    """Whether kernels run through Triton's interpreter, as Triton itself decides when they are first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As `msda.ms_deform_attn`; sums in float32, or float64 where an input has it."""
    return _forward(value, shapes, None, locations, weights, None)


def forward_fused(
    value: Tensor, shapes: Shapes, reference_points: Tensor, offsets: Tensor, logits: Tensor, mask: Tensor | None
) -> Tensor:
    """As `msda.ms_deform_attn_fused`: softmax, locations, mask and sampling in one kernel."""
    return _forward(value, shapes, reference_points, offsets, logits, mask)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; what many samples add to is summed in no fixed order."""
    of_value, _, of_locations, of_weights = _backward(grad, value, shapes, None, locations, weights, None)
    return of_value, of_locations, of_weights


def backward_fused(
    grad: Tensor,
    value: Tensor,
    shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference points, offsets and logits."""
    return _backward(grad, value, shapes, reference_points, offsets, logits, mask)


def _forward(value, shapes, reference, positions, shares, mask) -> Tensor:
    out = value.new_empty(value.shape[0], shares.shape[1], value.shape[2] * value.shape[3])
    if not shares.numel() or not value.numel():
        return out.zero_()
    # The interpreter cuts bfloat16 off where a device rounds to the nearest: there torch narrows what the kernel made.
    narrow, out = out.dtype, out.float() if interpreted() and out.dtype == torch.bfloat16 else out
    from msda import triton_source  # Triton is heavy and optional

    value, positions, shares = value.contiguous(), _rows(positions, 4), _rows(shares, 3)
    sizes, fixed = _arguments(value, shapes, reference, positions, shares, mask)
    channels = min(128, _power(value.shape[3]))
    queries = max(1, min(1024 // channels, _power(shares.shape[1])))
    grid = (_parts(shares.shape[1], queries), value.shape[0] * value.shape[2], _parts(value.shape[3], channels))
    tensors = (value, positions, shares, *_optional(value, reference, mask), out)
    with _device(value):
        triton_source.forward_kernel[grid](*tensors, *sizes, **fixed, QUERIES=queries, CHANNELS=channels)
    return out.to(narrow)


def _backward(grad, value, shapes, reference, positions, shares, mask) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    types = [None if tensor is None else tensor.dtype for tensor in (value, reference, positions, shares)]
    wide = widest(*(tensor for tensor in (value, reference, positions, shares) if tensor is not None))
    of_value, of_positions, of_shares = (
        torch.zeros(tensor.shape, dtype=wide, device=value.device) for tensor in (value, positions, shares)
    )
    of_reference = None if reference is None else torch.zeros(reference.shape, dtype=wide, device=value.device)
    if shares.numel() and value.numel():
        from msda import triton_source  # Triton is heavy and optional

        grad, value, positions, shares = grad.contiguous(), value.contiguous(), _rows(positions, 4), _rows(shares, 3)
        sizes, fixed = _arguments(value, shapes, reference, positions, shares, mask)
        channels = min(128, _power(value.shape[3]))
        queries = max(1, min(512 // channels, _power(shares.shape[1])))
        grid = (_parts(shares.shape[1], queries), value.shape[0] * value.shape[2])
        given = (grad, value, positions, shares, *_optional(value, reference, mask))
        made = (of_value, of_value if of_reference is None else of_reference, of_positions, of_shares)
        with _device(value):
            triton_source.backward_kernel[grid](*given, *made, *sizes, **fixed, QUERIES=queries, CHANNELS=channels)
    made = (of_value, of_reference, of_positions, of_shares)
    return tuple(None if one is None else one.to(dtype) for one, dtype in zip(made, types, strict=True))


def _arguments(value, shapes, reference, positions, shares, mask) -> tuple[tuple[int, ...], dict[str, object]]:
    """The kernels' plain numbers in their order, and what they are compiled for."""
    import triton.language as tl  # Triton is heavy and optional

    levels, points = shares.shape[3:]
    if levels > LEVELS or levels * points > MOST_SAMPLES:
        raise ValueError(
            f"the Triton kernels take up to {LEVELS} levels and {MOST_SAMPLES} samples of a query, got {levels} levels "
            f"of {points} points: use backend='reference'"
        )
    if value.shape[0] * value.shape[2] > 65535:
        raise ValueError(
            f"the Triton kernels take up to 65535 pictures times heads, got {list(value.shape)}: split the batch"
        )
    inputs = [tensor for tensor in (value, reference, positions, shares) if tensor is not None]
    steps = (0, 0, 0)
    if reference is not None:
        size = reference.shape  # end to end; what pictures or levels share is stepped over by nothing
        steps = (
            0 if size[0] == 1 else size[1] * size[2] * size[3],
            size[2] * size[3],
            0 if size[2] == 1 else size[3],
        )
    sides = [side for shape in shapes for side in shape]
    sizes = (
        shares.shape[1], *value.shape[1:], *positions.stride()[:2], *shares.stride()[:2], *steps,
        *sides, *[1] * (2 * LEVELS - len(sides)),
    )  # fmt: skip
    fixed = {
        "LEVELS": levels,
        "POINTS": points,
        "NUMBERS": 0 if reference is None else reference.shape[3],
        "MASKED": mask is not None,
        "WIDE": tl.float64 if widest(*inputs) == torch.float64 else tl.float32,
        "ROUND": _power(levels * points),
    }
    return sizes, fixed


def _optional(value: Tensor, reference: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tensors in the place of what was not given: the kernels do not touch them then."""
    return (
        value if reference is None else reference.contiguous(),
        value if mask is None else mask.contiguous().view(torch.uint8),
    )


def _rows(tensor: Tensor, inner: int) -> Tensor:
    """Each query's numbers end to end; pictures and queries may lie apart (one projection's halves)."""
    size = 1
    for axis in range(-1, -1 - inner, -1):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != size:
            return tensor.contiguous()
        size *= tensor.shape[axis]
    return tensor


def _device(value: Tensor):
    """Triton launches on torch's current device; -1 changes nothing."""
    return torch.cuda.device(value.device if value.is_cuda else -1)


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
