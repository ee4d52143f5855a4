"""The compiled CPU back end: a plain C library that is called on the tensors' memory.

It knows nothing of torch or Python, so it is built ahead, in seconds, and serves every version of both (`make kernels`,
`pip install ./kernels`). Its threads are torch's own: torch's OpenMP library runs them, we only hand it the work.
MSDA_CPU=portable, avx2 or avx512 holds it to an instruction set, for measuring.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from msda.reference import Shapes, chained, widest

LIBRARY = Path(__file__).with_name("libmsda_cpu.so")
ABI = 1
SETS = ("portable", "avx2", "avx512")
VARIABLE = "MSDA_CPU"
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
SMALL = 1 << 16  # multiplications below which a second thread costs more than it brings
Tensor = torch.Tensor

_WORDS = "batch places heads depth queries levels points"
_STEPS = (
    "position_picture position_query share_picture share_query reference_picture reference_levels reference_numbers"
)


class _Problem(ctypes.Structure):
    """struct msda_problem of csrc/msda_cpu.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _WORDS.split()),
        *((name, ctypes.c_void_p) for name in "shapes value mask positions shares reference".split()),
        *((name, ctypes.c_int64) for name in _STEPS.split()),
        *((name, ctypes.c_void_p) for name in "out grad grad_value grad_positions grad_shares".split()),
        ("type", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("team", ctypes.c_void_p),
    ]


def state(device: str, dtype: torch.dtype) -> str:
    """Why it cannot run for tensors on that device and of that type; "" when it can."""
    if device != "cpu":
        return f"it computes on the CPU, and the tensors are on {device}"
    if dtype not in TYPES:
        return f"it knows {', '.join(str(known).removeprefix('torch.') for known in TYPES)}, not {dtype}"
    if not LIBRARY.exists():
        return "it was not built: run `make kernels` or `pip install ./kernels` (either needs a C++ compiler)"
    try:
        library = _library()
    except (OSError, AttributeError) as error:
        return f"its library does not load here, build it again with `make kernels` ({error})"
    if library.msda_abi() != ABI:
        return "its library was built from another version of msda: build it again with `make kernels`"
    return ""


def instruction_set() -> str:
    """The widest instruction set this processor has, or the one MSDA_CPU names; ValueError where it has not that."""
    best, forced = _library().msda_best(), os.environ.get(VARIABLE)
    if not forced:
        return SETS[best]
    if forced not in SETS[: best + 1]:
        raise ValueError(f"{VARIABLE}={forced}: this processor has {', '.join(SETS[: best + 1])}")
    return forced


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As `msda.ms_deform_attn`; sums in float32, or float64 where an input has it."""
    return _forward(value, shapes, None, locations, weights, None)


def forward_fused(
    value: Tensor, shapes: Shapes, reference_points: Tensor, offsets: Tensor, logits: Tensor, mask: Tensor | None
) -> Tensor:
    """As `msda.ms_deform_attn_fused`."""
    return _forward(value, shapes, reference_points, offsets, logits, mask)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    dtype = widest(value, locations, weights)
    wide = [tensor.to(dtype).contiguous() for tensor in (grad, value, locations, weights)]
    out = [torch.empty_like(tensor) for tensor in wide[1:]]
    if not weights.numel() or not value.numel():
        return torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
    problem, kept = _problem(wide[1], shapes, None, wide[2], wide[3], None)
    problem.grad = wide[0].data_ptr()
    problem.grad_value, problem.grad_positions, problem.grad_shares = (tensor.data_ptr() for tensor in out)
    _library().msda_backward(ctypes.byref(problem), SETS.index(instruction_set()))
    del kept
    return tuple(one.to(given.dtype) for one, given in zip(out, (value, locations, weights), strict=True))


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
    return chained(backward, grad, value, shapes, reference_points, offsets, logits, mask)


def _forward(
    value: Tensor,
    shapes: Shapes,
    reference_points: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    mask: Tensor | None,
) -> Tensor:
    dtype = widest(*(tensor for tensor in (value, reference_points, positions, shares) if tensor is not None))
    given = value.to(dtype) if dtype == torch.float64 else value
    batch, queries = shares.shape[:2]
    out = given.new_empty(batch, queries, value.shape[2] * value.shape[3])
    if not shares.numel() or not value.numel():
        return out.zero_()
    reference = None if reference_points is None else reference_points.to(dtype).contiguous()
    problem, kept = _problem(
        given.contiguous(), shapes, reference, _rows(positions, dtype, 4), _rows(shares, dtype, 3), mask
    )
    problem.out = out.data_ptr()
    _library().msda_forward(ctypes.byref(problem), SETS.index(instruction_set()))
    del kept
    return out.to(value.dtype)


def _rows(tensor: Tensor, dtype: torch.dtype, inner: int) -> Tensor:
    """In that type, each query's numbers end to end; pictures and queries may lie apart (one projection's halves)."""
    tensor = tensor.to(dtype)
    size = 1
    for axis in range(tensor.dim() - 1, tensor.dim() - 1 - inner, -1):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != size:
            return tensor.contiguous()
        size *= tensor.shape[axis]
    return tensor


def _problem(
    value: Tensor, shapes: Shapes, reference: Tensor | None, positions: Tensor, shares: Tensor, mask: Tensor | None
) -> tuple[_Problem, tuple[object, ...]]:
    """The struct, and what must live as long as it does."""
    batch, places, heads, depth = value.shape
    if places * heads * depth >= 1 << 31:
        raise ValueError(f"a picture's values may hold 2^31 numbers, got {list(value.shape)}: split the heads")
    queries, levels, points = shares.shape[1], shares.shape[3], shares.shape[4]
    sizes = (ctypes.c_int64 * (2 * levels))(*(side for shape in shapes for side in shape))
    mask = None if mask is None else mask.contiguous()
    small = shares.numel() * depth < SMALL
    problem = _Problem(
        batch, places, heads, depth, queries, levels, points,
        ctypes.addressof(sizes), value.data_ptr(), None if mask is None else mask.data_ptr(),
        positions.data_ptr(), shares.data_ptr(), None if reference is None else reference.data_ptr(),
        positions.stride(0), positions.stride(1), shares.stride(0), shares.stride(1),
    )  # fmt: skip
    if reference is not None:
        problem.reference_picture = 0 if reference.shape[0] == 1 else reference.stride(0)
        problem.reference_levels, problem.reference_numbers = reference.shape[2:]
    problem.type = TYPES[value.dtype]
    problem.threads = 1 if small else torch.get_num_threads()
    problem.team = _team()
    return problem, (sizes, value, reference, positions, shares, mask)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for function in (library.msda_forward, library.msda_backward):
        function.argtypes, function.restype = (ctypes.POINTER(_Problem), ctypes.c_int), None
    return library


@cache
def _team() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that torch itself runs on; None where it runs on another."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                return None
    return None
