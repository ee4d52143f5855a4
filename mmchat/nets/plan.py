"""Plan: how much memory a model will take, told from its shapes before a single weight is read; refuse what cannot fit.

A model built `weights.without_memory` has every shape and no bytes. From it follow the bytes of each part in each
precision, of the keys and values that a talk keeps, and of what loading and reading a prompt take for a moment. Where
that is more than is free, `NoRoom` says so with the smallest change that would fit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmchat.nets.quantise import BLOCK, PRECISIONS, QUANTISED, linear_layers, settle_precision

TALK = 2048  # tokens of a talk that is planned for, where the model reads as many
PICTURE = 576  # tokens of a usual picture
SHORT = 1024  # a talk shorter than this is not offered: a picture alone may be 576 tokens long
MARGIN = 0.95  # of what is free that may be taken: the rest of the machine breathes, too
WORKSPACE = (
    7 << 20
)  # bytes beside weights and talk, of any model: compiled kernels, its tokenizer, the allocator's rest
NESTED = 256  # scales of 4 bit weights with one scale of their own
OFFLOADED = {"cpu": "disk", "cuda": "auto"}  # the device to choose where a model is larger than the memory


@dataclass(frozen=True)
class Plan:
    """Bytes that a model will take.

    `parts`: part ("language", "vision", "bridge", ...) -> bytes of its parameters. `layers`: those of them that can be
    kept elsewhere and brought when they run. `talk_thousand`: keys and values of 1,000 tokens. `moment`: what loading,
    seeing or reading a prompt of `tokens` takes for a moment, whichever is most.
    """

    precision: str
    parts: Mapping[str, int]
    layers: int
    talk_thousand: int
    tokens: int
    moment: int

    @property
    def weights(self) -> int:
        return sum(self.parts.values())

    @property
    def talk(self) -> int:
        """Keys and values of a talk of `tokens`."""
        return self.talk_thousand * self.tokens // 1000

    @property
    def total(self) -> int:
        return self.weights + self.talk + self.moment + WORKSPACE


class NoRoom(ValueError):
    """A model that does not fit: its `plan`, the bytes that are `free`, and `offers`, the changes that would do."""

    def __init__(self, sentence: str, plan: Plan, free: int, offers: Sequence[str]) -> None:
        super().__init__(sentence)
        self.plan, self.free, self.offers = plan, free, tuple(offers)


def planned(
    model: nn.Module, precision: str = "auto", device: str = "cpu", keep: Sequence[str] = (), tokens: int | None = None
) -> Plan:
    """The plan of a model, best built `without_memory`. tokens: of the longest talk; a usual one where None."""
    name, dtype, _ = settle_precision(precision, computing(device))
    packed = set(linear_layers(model, keep, name)) if name in QUANTISED else set()
    parts: dict[str, int] = {}
    seen: set[int] = set()
    layers = largest = 0
    for path, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(tensor) in seen:  # a head tied to the embedding is kept once
            continue
        seen.add(id(tensor))
        owner, _, last = path.rpartition(".")
        if owner in packed and last == "weight":
            size = packed_bytes(tuple(tensor.shape), name)
        else:
            size = tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.dtype.itemsize)
        part = path.partition(".")[0] if "." in path else "other"
        parts[part] = parts.get(part, 0) + size
        layers += size if ".layers." in path and part == "language" else 0
        # What is read is held in the file's type, and cast, before it takes its place.
        largest = max(largest, tensor.numel() * (dtype.itemsize + (0 if dtype.itemsize == 4 else 2)))
    longest = int(getattr(model, "context", 0) or TALK)
    tokens = min(tokens or TALK + beyond(model), longest)
    seeing = getattr(model, "seeing", 0) * dtype.itemsize
    moment = max(largest, seeing, _reading(model, tokens, dtype))
    return Plan(name, parts, layers, talk_bytes(model, 1000, dtype), tokens, moment)


def beyond(model: nn.Module) -> int:
    """By how many tokens the longest picture exceeds a usual one."""
    return max(0, getattr(model, "picture_tokens", PICTURE) - PICTURE)


def packed_bytes(shape: tuple[int, ...], precision: str) -> int:
    """Bytes of a linear layer's weight [out, in] in int8 (a float32 scale a row) or NF4 (scales that are scaled)."""
    count = math.prod(shape)
    if precision == "int8":
        return count + 4 * shape[0]
    scales = -(-count // BLOCK)
    return -(-count // 2) + scales + 4 * -(-scales // NESTED) + 4 * (16 + 256 + 1)


def talk_bytes(model: nn.Module, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of that many tokens; 0 for a model without a language part."""
    config = getattr(getattr(model, "language", None), "config", None)
    if config is None:
        return 0
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Of an encoder-decoder those of what is read and of what is written, which may be as long.
    halves = 2 if getattr(config, "is_encoder_decoder", False) else 1
    return 2 * halves * config.num_hidden_layers * shared * width * dtype.itemsize * tokens


def _reading(model: nn.Module, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that reading a prompt takes in its widest moment: a layer's input, residual, and the MLP's three halves."""
    config = getattr(getattr(model, "language", None), "config", None)
    if config is None:
        return 0
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    return tokens * (4 * config.hidden_size + 3 * inner) * dtype.itemsize + 8 * config.vocab_size


def computing(device: str) -> str:
    """Where a model computes whose weights are kept on `device`."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device == "disk" else device


def offloaded(model: nn.Module) -> dict[str, str]:
    """A device map that keeps the language model's layers on disk, the rest on the CPU.

    ValueError for a model whose language part has no such layers.
    """
    found = [name for name, one in model.named_modules() if name.endswith(".layers") and isinstance(one, nn.ModuleList)]
    layers = [name for name in found if name.startswith("language.")]  # an encoder-decoder has two lists of them
    if not layers:
        raise ValueError("This model has no layers that could be kept on disk: choose another precision.")
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())  # a tied head has a place too
    owners = {name.rpartition(".")[0] or name for name, _ in tensors}
    rest = {name: "cpu" for name in sorted(owners) if not any(name.startswith(f"{list_}.") for list_ in layers)}
    return {**rest, **dict.fromkeys(layers, "disk")}


def free_memory(device: str = "cpu") -> tuple[int, int]:
    """(free, total) bytes of what models are loaded into: what the machine has and, in a container, may be used."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)
    if device == "auto":
        gpus = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
        rows = [*gpus, free_memory("cpu")]
        return sum(free for free, _ in rows), sum(total for _, total in rows)
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        free, total = known["MemAvailable"], known["MemTotal"]
    except (OSError, KeyError):  # not Linux: what is free is not told
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return total, total
    for most, used in _limits():
        free, total = min(free, max(0, most - used)), min(total, most)
    return free, total


def _limits(base: Path = Path("/sys/fs/cgroup")) -> Iterator[tuple[int, int]]:
    """(most, used) bytes of the container that this process runs in, where it has a limit."""
    for most, used, cache in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            limit, taken = ((base / name).read_text("utf-8").strip() for name in (most, used))
            stat = dict(line.split() for line in (base / cache).read_text("utf-8").splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdecimal() and int(limit) < 1 << 60:
            # Files that were read stay in memory only until somebody needs the room.
            yield int(limit), max(0, int(taken) - int(stat.get("inactive_file", 0)))


def require(
    model: nn.Module,
    title: str,
    precision: str = "auto",
    device: str = "cpu",
    keep: Sequence[str] = (),
    tokens: int | None = None,
    free: int | None = None,
) -> Plan:
    """The plan of a model that fits; NoRoom, with the smallest change that would, where it does not.

    free: bytes; what is free on the device where None. A model whose layers stay on disk needs room for the rest alone.
    """
    plan = planned(model, precision, device, keep, tokens)
    free = free_memory("cpu" if device == "disk" else device)[0] if free is None else free
    room = int(free * MARGIN)
    need = plan.total - (plan.layers if device == "disk" else 0)
    if not free or need <= room:  # where nobody says what is free, nothing is refused
        return plan
    offers = [*changes(model, plan, device, keep, room)]
    held = ", ".join(f"{part} {gib(size)}" for part, size in sorted(plan.parts.items(), key=lambda row: -row[1]))
    advice = f"choose {offers[0]}" if offers else "free memory, or take a smaller model"
    raise NoRoom(
        f"{title} needs {gib(need)} in {plan.precision} ({held}; {gib(plan.talk)} for a talk of {plan.tokens} tokens, "
        f"{gib(plan.moment)} while it reads) and {gib(free)} is free: {advice}.",
        plan,
        free,
        offers,
    )


def changes(model: nn.Module, plan: Plan, device: str, keep: Sequence[str], room: int) -> Iterator[str]:
    """What would make a model fit into `room` bytes, the smallest change first: a shorter talk, fewer bits, offload."""
    tokens, short = plan.tokens, SHORT + beyond(model)
    while tokens > short:
        tokens //= 2
        shorter = planned(model, plan.precision, device, keep, max(tokens, short))
        if shorter.total <= room:
            yield f"the context {shorter.tokens} ({gib(shorter.total)})"
            break
    if device != "disk":
        now = PRECISIONS.index(plan.precision)
        for name in [one for one in ("bf16", *QUANTISED) if PRECISIONS.index(one) > now]:
            other = planned(model, name, device, keep, plan.tokens)
            if other.total <= room:
                yield f"the precision {name} ({gib(other.total)})"
                break
    other = OFFLOADED.get(device.partition(":")[0])
    if other == "auto":
        if plan.total <= int(free_memory("auto")[0] * MARGIN):
            yield "the device auto, which keeps in main memory what the GPU has no room for"
    elif other == "disk" and plan.precision not in QUANTISED and plan.total - plan.layers <= room:
        yield f"the device disk, slow, which reads the layers from files ({gib(plan.total - plan.layers)})"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
