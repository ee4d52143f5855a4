"""The CUDA back end: a plain C library of kernels, launched on torch's current stream.

Forward and backward launch one kernel each, wait for nothing and copy nothing to or from the device, so that they may
stand in a captured graph. Gradients that many samples add to are summed in the wide type (float32, or float64 for
float64), in no fixed order: the last bits differ from run to run. Built ahead by `python -m msda.build_cuda`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from msda.reference import Shapes, widest

LIBRARY = Path(__file__).with_name("libmsda_cuda.so")
ABI = 1
LEVELS = 8
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
BUILD = "`python -m msda.build_cuda` (needs nvcc)"
Tensor = torch.Tensor

_LONG = (
    "batch places queries position_picture position_query share_picture share_query "
    "reference_picture reference_query reference_level"
)
_SHORT = "heads depth levels points type side reference_numbers"


class _Problem(ctypes.Structure):
    """struct msda_cuda_problem of csrc/msda_cuda.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _LONG.split()),
        *((name, ctypes.c_int32) for name in _SHORT.split()),
        ("height", ctypes.c_int32 * LEVELS),
        ("width", ctypes.c_int32 * LEVELS),
    ]


def state(device: str, dtype: torch.dtype) -> str:
    """Why it cannot run for tensors on that device and of that type; "" when it can."""
    if torch.device(device).type != "cuda":
        return f"it computes on CUDA devices, and the tensors are on {device}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no CUDA device: install a torch built for CUDA, and the device's driver"
    if torch.cuda.get_device_capability(device) < (7, 5):
        return "the device is older than compute capability 7.5: take the triton or reference back end"
    if dtype not in TYPES:
        return f"it knows {', '.join(str(known).removeprefix('torch.') for known in TYPES)}, not {dtype}"
    if not LIBRARY.exists():
        return f"it was not built: run {BUILD}"
    try:
        library = _library()
    except (OSError, AttributeError) as error:
        return f"its library does not load here, build it again with {BUILD}: {error}"
    return "" if library.msda_cuda_abi() == ABI else f"its library is of another version of msda: run {BUILD}"


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
    """Gradients of value, locations and weights."""
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
    batch, _, heads, depth = value.shape
    out_type, value, reference, positions, shares = value.dtype, *_typed(value, reference, positions, shares)
    out = value.new_empty(batch, shares.shape[1], heads * depth)
    if not shares.numel() or not value.numel():
        return out.zero_().to(out_type)
    mask = None if mask is None else mask.contiguous()
    problem = _problem(value, shapes, reference, positions, shares)
    given = (_at(tensor) for tensor in (value, positions, shares, reference, mask, out))
    _run(value, _library().msda_cuda_forward, ctypes.byref(problem), *given)
    return out.to(out_type)


def _backward(grad, value, shapes, reference, positions, shares, mask) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    types = [None if tensor is None else tensor.dtype for tensor in (value, reference, positions, shares)]
    value, reference, positions, shares = _typed(value, reference, positions, shares)
    wide = widest(value)
    of_value = torch.zeros_like(value, dtype=wide)
    of_reference = None if reference is None else torch.zeros_like(reference)
    of_positions = torch.zeros(positions.shape, dtype=wide, device=value.device)
    of_shares = torch.zeros(shares.shape, dtype=wide, device=value.device)
    if shares.numel() and value.numel():
        grad = grad.to(value.dtype).contiguous()
        mask = None if mask is None else mask.contiguous()
        problem = _problem(value, shapes, reference, positions, shares)
        given = (grad, value, positions, shares, reference, mask, of_value, of_reference, of_positions, of_shares)
        _run(value, _library().msda_cuda_backward, ctypes.byref(problem), *(_at(tensor) for tensor in given))
    made = (of_value, of_reference, of_positions, of_shares)
    return tuple(None if one is None else one.to(dtype) for one, dtype in zip(made, types, strict=True))


def _typed(value, reference, positions, shares) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """In types the kernels know: positions and shares in the value's or the wide type, the reference in the wide one;
    laid out so that steps tell where each query's numbers are.
    """
    wide = widest(*(tensor for tensor in (value, reference, positions, shares) if tensor is not None))
    value = (value.to(wide) if wide == torch.float64 else value).contiguous()
    side = value.dtype if positions.dtype == shares.dtype == value.dtype else wide
    reference = None if reference is None else reference.to(wide).contiguous()
    return value, reference, _rows(positions, side, 4), _rows(shares, side, 3)


def _rows(tensor: Tensor, dtype: torch.dtype, inner: int) -> Tensor:
    """In that type, each query's numbers end to end; pictures and queries may lie apart (one projection's halves)."""
    tensor, size = tensor.to(dtype), 1
    for axis in range(-1, -1 - inner, -1):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != size:
            return tensor.contiguous()
        size *= tensor.shape[axis]
    return tensor


def _problem(value: Tensor, shapes: Shapes, reference: Tensor | None, positions: Tensor, shares: Tensor) -> _Problem:
    if len(shapes) > LEVELS:
        raise ValueError(f"the CUDA kernels take up to {LEVELS} levels, got {len(shapes)}: use backend='reference'")
    batch, places, heads, depth = value.shape
    queries, _, levels, points = shares.shape[1:]
    # A picture or level that all share is stepped over by nothing.
    steps = (0, 0, 0)
    if reference is not None:
        size = reference.shape
        steps = (
            0 if size[0] == 1 else reference.stride(0),
            reference.stride(1),
            0 if size[2] == 1 else reference.stride(2),
        )
    return _Problem(
        batch, places, queries, *positions.stride()[:2], *shares.stride()[:2], *steps,
        heads, depth, levels, points, TYPES[value.dtype], TYPES[shares.dtype],
        0 if reference is None else reference.shape[3],
        (ctypes.c_int32 * LEVELS)(*(height for height, _ in shapes)),
        (ctypes.c_int32 * LEVELS)(*(width for _, width in shapes)),
    )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(value: Tensor, function, *given) -> None:
    """Launch on the current stream of the value's device; RuntimeError with what CUDA says."""
    if value.is_cuda:
        with torch.cuda.device(value.device):
            code = function(*given, torch.cuda.current_stream().cuda_stream)
    else:  # only the tests' library, built for a stand-in, is ever handed memory of the CPU
        code = function(*given, None)
    if code:
        raise RuntimeError(f"the CUDA kernel did not start: {_library().msda_cuda_error(code).decode()}")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for function, count in ((library.msda_cuda_forward, 7), (library.msda_cuda_backward, 11)):
        function.argtypes = (ctypes.POINTER(_Problem), *[ctypes.c_void_p] * count)
        function.restype = ctypes.c_int
    library.msda_cuda_error.restype = ctypes.c_char_p
    return library
