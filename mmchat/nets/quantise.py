"""Precision: the type a machine computes in, and linear layers put in 8 or 4 bits one by one (bitsandbytes).

A layer is quantised the moment its weight is read, so a model never lies in memory unquantised. Which layers: those of
`model.language`, by full path, but never its head nor what a family keeps.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "nf4")
QUANTISED = ("int8", "nf4")
PIECE = 1 << 18  # weights that are quantised at once; 1 << 20 take as long and leave up to 200 MB of holes in the heap
BLOCK = 64  # weights that share a scale in 4 bits
STATE4 = "quant_state.bitsandbytes__nf4"  # the name, behind a weight's, under which its 4-bit numbers are saved
PARTS = {  # names, behind a quantised layer's own, of what is saved beside its `weight`; the first tells the kind
    "nf4": (f"weight.{STATE4}", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    "int8": ("SCB", "weight_format"),
}


def native_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether bfloat16 is computed by the machine itself and not, a hundred times slower, in software."""
    if torch.device(device).type != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def settle_precision(asked: str, device: str = "cpu") -> tuple[str, torch.dtype, tuple[str, ...]]:
    """(precision, type to compute in, sentences the user should read). fp16 is never used on a CPU."""
    if asked not in PRECISIONS:
        raise ValueError(f"There is no precision {asked!r}: choose one of {', '.join(PRECISIONS)}.")
    fast = native_bf16(device)
    if asked == "fp16":
        if torch.device(device).type != "cpu":
            return asked, torch.float16, ()
        asked, dtype = ("bf16", torch.bfloat16) if fast else ("fp32", torch.float32)
        return asked, dtype, (f"fp16 is not for processors: the model is computed in {asked} instead.",)
    if asked == "auto":
        asked = "bf16" if fast else "fp32"
    if asked == "bf16":
        slow = "This processor has no bfloat16 of its own, so bf16 is far slower here than fp32: choose fp32 or nf4."
        return asked, torch.bfloat16, () if fast else (slow,)
    return asked, torch.bfloat16 if asked in QUANTISED and fast else torch.float32, ()


def linear_layers(model: nn.Module, keep: Sequence[str] = (), precision: str = "nf4") -> list[str]:
    """Paths of the linear layers that are quantised: the language model's, without its head and what is in `keep`.

    nf4 also passes over layers whose rows are not whole blocks of 64, or not a multiple of 32 in number, which
    bitsandbytes gets wrong on a CPU: real models have none, dwarfs do.
    ValueError where a path of `keep` is no module of the model: it would keep nothing, and nobody would notice.
    """
    paths = {path for path, _ in model.named_modules()}
    if unknown := sorted(set(keep) - paths):
        raise ValueError(f"There is no module {', '.join(unknown)} to keep unquantised: name modules by their path.")
    language = getattr(model, "language", None)
    if language is None:
        return []
    head = language.get_output_embeddings()
    return [
        f"language.{path}"
        for path, module in language.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (precision != "nf4" or (module.in_features % BLOCK == 0 and module.out_features % 32 == 0))
        and not any(f"language.{path}.".startswith(f"{kept}.") for kept in keep)
    ]


def pack(model: nn.Module, path: str, weight: torch.Tensor, precision: str, dtype: torch.dtype, device: str) -> None:
    """Put a quantised layer in the place of a linear one. Its bias, if any, is assigned like any other parameter."""
    layer = _empty(model, path, precision, dtype)
    layer.weight = (_four if precision == "nf4" else _eight)(weight, dtype, device)


def _pieces(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Groups of rows of about PIECE numbers: what quantising takes beside the weight is many times its piece."""
    return weight.split(max(1, PIECE // weight.shape[1]))


def _four(weight: torch.Tensor, dtype: torch.dtype, device: str) -> nn.Parameter:
    """A 4-bit weight, as bitsandbytes makes it of the whole at once: blocks of 64, whose scales are in 8 bits again."""
    bnb = _bitsandbytes()
    packed = torch.empty((-(-weight.numel() // 2), 1), dtype=torch.uint8, device=device)
    scales, at = [], 0
    for piece in _pieces(weight):
        four, state = bnb.functional.quantize_4bit(piece.to(device, dtype), quant_type="nf4", compress_statistics=False)
        packed[at : at + len(four)] = four
        scales.append(state.absmax)
        at += len(four)
    absmax = torch.cat(scales)
    offset = absmax.mean()
    state.absmax, state.state2 = bnb.functional.quantize_blockwise(absmax - offset, blocksize=256)
    state.shape, state.offset, state.nested = weight.shape, offset, True
    return bnb.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, quant_type="nf4", compress_statistics=True,
        bnb_quantized=True,
    )  # fmt: skip


def _eight(weight: torch.Tensor, dtype: torch.dtype, device: str) -> nn.Parameter:
    """An 8-bit weight: a scale for each row."""
    bnb = _bitsandbytes()
    rows = torch.empty(weight.shape, dtype=torch.int8, device=device)
    scales = torch.empty(len(weight), device=device)
    at = 0
    for piece in _pieces(weight):
        part = slice(at, at + len(piece))
        rows[part], scales[part] = bnb.functional.int8_vectorwise_quant(piece.to(device, dtype).half())[:2]
        at += len(piece)
    return bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)


def unpack(
    model: nn.Module,
    path: str,
    weight: torch.Tensor,
    parts: Mapping[str, torch.Tensor],
    precision: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Put a layer that was saved quantised in the place of a linear one. ValueError where its parts do not fit."""
    plain = model.get_submodule(path)
    count, bnb = plain.in_features * plain.out_features, _bitsandbytes()
    damage = ValueError(f"{path}.weight is not the {precision} layer that it should be: download or convert it again.")
    try:
        if precision == "nf4":
            stats = {name.removeprefix("weight."): tensor for name, tensor in parts.items()}
            packed = bnb.nn.Params4bit.from_prequantized(weight, stats, device=device)
            state = packed.quant_state
            nested = state.state2.absmax.numel() * state.state2.blocksize if state.nested else count
            if (
                weight.numel() * 2 != count
                or tuple(state.shape) != (plain.out_features, plain.in_features)
                or state.blocksize * state.absmax.numel() != -(-count // state.blocksize) * state.blocksize
                or nested < state.absmax.numel()
                or (state.code.numel(), state.quant_type) != (16, "nf4")
            ):
                raise damage
            state.dtype = dtype
        else:
            packed = bnb.nn.Int8Params(weight.to(device), requires_grad=False, has_fp16_weights=False)
            if tuple(weight.shape) != (plain.out_features, plain.in_features) or weight.dtype != torch.int8:
                raise damage
            if tuple(parts["SCB"].shape) != (plain.out_features,):
                raise damage
            packed.CB, packed.SCB = packed.data, parts["SCB"].to(device)
    except Exception:  # bitsandbytes says anything at all of numbers that are not its own
        raise damage from None
    _empty(model, path, precision, dtype).weight = packed


def ran(model: nn.Module) -> bool:
    """Whether a 4-bit model has computed on a CPU, which lays its weights out anew: what is saved then is corrupt."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def packed_layers(model: nn.Module) -> dict[str, str]:
    """Path -> precision of a model's quantised layers."""
    kinds = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}
    return {path: kinds[type(one).__name__] for path, one in model.named_modules() if type(one).__name__ in kinds}


def packed_state(model: nn.Module, path: str, precision: str) -> dict[str, torch.Tensor]:
    """What is saved of a quantised layer, by full name."""
    layer = model.get_submodule(path)
    weight, out = layer.weight, {f"{path}.weight": layer.weight.data}
    if precision == "int8":  # the scales move from the weight to the layer when it runs
        return {**out, f"{path}.SCB": weight.SCB if weight.SCB is not None else layer.state.SCB}
    return {**out, **{f"{path}.weight.{name}": part for name, part in weight.quant_state.as_dict(packed=True).items()}}


def _empty(model: nn.Module, path: str, precision: str, dtype: torch.dtype) -> nn.Module:
    """A quantised layer without a weight, now in the place of the linear one at `path`."""
    bnb, plain = _bitsandbytes(), model.get_submodule(path)
    sizes = (plain.in_features, plain.out_features, plain.bias is not None)
    if precision == "nf4":
        layer = bnb.nn.Linear4bit(
            *sizes, compute_dtype=dtype, quant_type="nf4", compress_statistics=True, device="meta"
        )
    else:
        layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0, device="meta")
    if plain.bias is not None:
        layer.bias = plain.bias
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return layer


def _bitsandbytes() -> Any:
    # It says at every single product that it casts what it quantises, and that it found no kernels.
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "bitsandbytes" not in sys.modules:
        # Where the package of this name is installed, importing would fetch compiled code from a hub and run it.
        held = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # type: ignore[assignment]
        try:
            import bitsandbytes  # takes seconds to import and is only needed here
        finally:
            del sys.modules["kernels"]
            if held is not None:
                sys.modules["kernels"] = held
    import bitsandbytes

    return bitsandbytes
