"""Weights: shards read tensor by tensor, renamed, cast, assigned to a model without parameters; all fits or none loads.

A folder is a checkpoint as the hub has it: config.json, safetensors shards with or without an index, or pickled .bin
shards, which are opened for tensors only. The program downloads nothing.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

Keys = Sequence[tuple[str, str]]
Fold = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
PRECISIONS = ("auto", "fp32", "bf16", "int8", "nf4")
QUANTISED = ("int8", "nf4")


class WrongWeights(ValueError):
    """Weights that do not fit: names `missing` and `left` over, `wrong` (name, shape in the file, shape wanted)."""

    def __init__(self, sentence: str, missing: Sequence[str], left: Sequence[str], wrong: Sequence[tuple]) -> None:
        super().__init__(sentence)
        self.missing, self.left, self.wrong = tuple(missing), tuple(left), tuple(wrong)


class _NoParameters(TorchFunctionMode):
    """Modules ask torch.empty for their parameters: it gives them no memory. Buffers are computed and stay real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        if function is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters of the right shapes that take no memory and no time to fill."""
    with _NoParameters():
        yield


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint; where a vision tower that it names lies beside it, with that one's vision_config."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {folder}: put the checkpoint there or name another one.")
    if not path.is_file():
        raise ValueError(f"There is no config.json in {folder}: give the folder of a whole checkpoint.")
    config = _json(path)
    beside = tower_folder(folder, config)
    if beside is not None and "vision_config" not in config and (beside / "config.json").is_file():
        config["vision_config"] = _json(beside / "config.json")
    return config


def tower_folder(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Where the vision tower that a config names lies: a path, or a folder of its last name in or beside the folder."""
    named = config.get("mm_vision_tower")
    if not isinstance(named, str) or not named:
        return None
    last = named.rstrip("/").rpartition("/")[2]
    places = (Path(named), Path(folder) / last, Path(folder) / "vision_tower", Path(folder).resolve().parent / last)
    return next((place for place in places if (place / "config.json").is_file()), None)


def shards(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's parameters; ValueError where one is missing, empty, cut off or a pointer."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: put the checkpoint there or name another one.")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            names = sorted(set(_json(folder / index).get("weight_map", {}).values()))
            lost = [name for name in names if not (folder / name).is_file()]
            if lost:
                raise ValueError(f"{folder} lacks {', '.join(lost)}, which its index names: complete the download.")
            paths = [folder / name for name in names]
            break
    else:
        paths = sorted(folder.glob("*.safetensors"))
        whole = [*sorted(folder.glob("pytorch_model*.bin")), *sorted(folder.glob("model*.bin"))]
        paths = paths or whole or sorted(folder.glob("mm_projector.bin"))
    if not paths:
        raise ValueError(f"There are no weights in {folder} (*.safetensors or pytorch_model*.bin): put them there.")
    for path in paths:
        whole_file(path)
    return paths


def whole_file(path: Path) -> None:
    """ValueError, with the remedy, where a file of weights is empty, a pointer, or shorter than its own header says."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes): download it again.")
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder.")
        if path.suffix != ".safetensors":
            return
        cut = ValueError(f"{path} is cut off or damaged: download it again.")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= length <= size - 8:
            raise cut
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise cut from None
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if size < 8 + length + max(ends, default=0):
        raise cut


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(published name, tensor) of a file, one at a time; pickles are opened for tensors only."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
        return
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"  # only the newer format can be mapped instead of read
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise ValueError(
                f"{path} holds more than tensors and is not opened, as it could run code: convert it to safetensors."
            ) from None
        raise ValueError(f"{path} is cut off or damaged: download it again.") from None
    except (RuntimeError, EOFError, OSError, ValueError):
        raise ValueError(f"{path} is cut off or damaged: download it again.") from None
    for name in list(state):
        tensor = state.pop(name)
        if isinstance(tensor, torch.Tensor):
            yield name, tensor


def renamed(name: str, keys: Keys) -> str:
    """Our name of a published parameter: the first pattern found in it is replaced, once. Ours already stay."""
    for pattern, put in keys:
        if re.search(pattern, name):
            return re.sub(pattern, put, name, count=1)
    return name


def native_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether bfloat16 is computed by the machine itself and not, a hundred times slower, in software."""
    if torch.device(device).type != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def settle_precision(asked: str, device: str = "cpu") -> tuple[str, torch.dtype, tuple[str, ...]]:
    """(precision, type to compute in, sentences the user should read). Half precision is never used on a CPU."""
    if asked not in PRECISIONS:
        raise ValueError(f"There is no precision {asked!r}: choose one of {', '.join(PRECISIONS)}.")
    fast = native_bf16(device)
    if asked == "auto":
        asked = "bf16" if fast else "fp32"
    if asked == "bf16":
        slow = "This processor has no bfloat16 of its own, so bf16 is far slower here than fp32: choose fp32 or nf4."
        return asked, torch.bfloat16, () if fast else (slow,)
    return asked, torch.bfloat16 if asked in QUANTISED and fast else torch.float32, ()


def load(
    model: nn.Module,
    folder: Path | Sequence[Path],
    keys: Keys,
    drop: Sequence[str] = (),
    fold: Fold | None = None,
    precision: str = "auto",
    keep: Sequence[str] = (),
    device: str = "cpu",
) -> tuple[str, ...]:
    """Fill a model, best built `without_memory`, from a checkpoint, and leave it ready to run; gives sentences to read.

    folder: one, or several (a vision tower in a folder of its own): what the first ones hold wins. keys, drop and fold
    as in `family.Family`; `drop` is looked for in published names and in ours. Floating point parameters are cast to
    the type that `settle_precision` gives, whatever the files hold. int8 and nf4 quantise the linear layers of
    `model.language` while they are read, but never its head nor a module under a path in `keep`.
    WrongWeights where a parameter is missing, a name is left over or a shape differs, with all names.
    """
    folders = [Path(folder)] if isinstance(folder, str | Path) else [Path(one) for one in folder]
    name_of, dtype, notes = settle_precision(precision, device)
    target = _Target(model, name_of, dtype, keep, device)
    for number, one in enumerate(folders):
        found = ((renamed(name, keys), name, tensor) for path in shards(one) for name, tensor in tensors(path))
        kept = ((ours, tensor) for ours, name, tensor in found if not _dropped(drop, name, ours))
        for name, tensor in kept if fold is None else fold(dict(kept)).items():
            target.put(name, tensor, again=number > 0)
    target.check(folders)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.to(device).eval()
    return notes


class _Target:
    """A model while it is being filled."""

    def __init__(self, model: nn.Module, precision: str, dtype: torch.dtype, keep: Sequence[str], device: str) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        self.wanted = dict(model.state_dict(keep_vars=True))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.wanted.items()}
        self.twins: dict[
            int, list[str]
        ] = {}  # names of one and the same parameter, such as a head tied to the embedding
        for name, tensor in self.wanted.items():
            self.twins.setdefault(id(tensor), []).append(name)
        self.pack = precision if precision in QUANTISED else ""
        self.packed = set(linear_layers(model, keep)) if self.pack else set()
        self.done: set[str] = set()
        self.left: list[str] = []
        self.wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def put(self, name: str, tensor: torch.Tensor, again: bool) -> None:
        """Assign one tensor; `again`: a second folder, whose known names are passed over."""
        if name not in self.wanted:
            self.left.append(name)
            return
        if name in self.done and again:
            return
        if tuple(tensor.shape) != self.shapes[name]:
            self.wrong.append((name, tuple(tensor.shape), self.shapes[name]))
            self.done.add(name)
            return
        read, tensor = tensor, tensor.to(self.dtype if tensor.is_floating_point() else tensor.dtype)
        owner, _, last = name.rpartition(".")
        if owner in self.packed and last == "weight":
            _pack(self.model, owner, tensor, self.pack, self.dtype, self.device)
            self.done.add(name)
            return
        # Files are mapped into memory: a copy keeps the model whole when the file is replaced under it.
        value = tensor.clone(memory_format=torch.contiguous_format) if tensor is read else tensor
        value = nn.Parameter(value, False) if isinstance(self.wanted[name], nn.Parameter) else value
        for twin in self.twins[id(self.wanted[name])]:
            path, _, attribute = twin.rpartition(".")
            module = self.model.get_submodule(path)
            if isinstance(value, nn.Parameter):
                module.register_parameter(attribute, value)
            else:
                module.register_buffer(attribute, value)
            self.done.add(twin)

    def check(self, folders: Sequence[Path]) -> None:
        """WrongWeights unless all was filled, nothing is left over and every shape fits."""
        missing = sorted(set(self.wanted) - self.done)
        if not (missing or self.left or self.wrong):
            on_meta = [name for name, buffer in self.model.named_buffers() if buffer.is_meta]
            assert not on_meta, f"buffers without values: {on_meta}"
            return
        where = " and ".join(str(folder) for folder in folders)
        eyes = [name for name in self.wanted if name.startswith("vision.")]
        if eyes and set(missing) == set(eyes) and not (self.left or self.wrong):
            sentence = (
                f"{where} holds no vision tower: put the tower's own folder, which config.json names as "
                "mm_vision_tower, into it or beside it."
            )
            raise WrongWeights(sentence, missing, (), ())
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing ({', '.join(missing)})")
        if self.left:
            parts.append(f"{len(self.left)} left over ({', '.join(self.left)})")
        if self.wrong:
            shapes = ", ".join(
                f"{name}: {list(has)} in the file, {list(wants)} in the model" for name, has, wants in self.wrong
            )
            parts.append(f"{len(self.wrong)} of another shape ({shapes})")
        sentence = f"The weights in {where} do not fit this family: {'; '.join(parts)}."
        raise WrongWeights(f"{sentence} Complete the files or choose their family.", missing, self.left, self.wrong)


def linear_layers(model: nn.Module, keep: Sequence[str] = ()) -> list[str]:
    """Paths of the linear layers that are quantised: the language model's, without its head and what is in `keep`."""
    language = getattr(model, "language", None)
    if language is None:
        return []
    head = language.get_output_embeddings()
    return [
        f"language.{path}"
        for path, module in language.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and not any(f"language.{path}.".startswith(f"{kept}.") for kept in keep)
    ]


def _pack(model: nn.Module, path: str, weight: torch.Tensor, precision: str, dtype: torch.dtype, device: str) -> None:
    """Put a quantised layer in the place of a linear one. Its bias, if any, is assigned like any other parameter."""
    import bitsandbytes as bnb  # takes seconds to import and is only needed here

    # It says at every single product that it casts what it quantises.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    plain = model.get_submodule(path)
    sizes = (plain.in_features, plain.out_features, plain.bias is not None)
    if precision == "nf4":
        layer = bnb.nn.Linear4bit(
            *sizes, compute_dtype=dtype, quant_type="nf4", compress_statistics=True, device="meta"
        )
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    else:
        layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0, device="meta")
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.weight = layer.weight.to(device)  # this is what quantises
    if plain.bias is not None:
        layer.bias = plain.bias
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _dropped(drop: Iterable[str], *names: str) -> bool:
    return any(re.search(pattern, name) for pattern in drop for name in names)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON: download it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold what its name says: download it again.")
    return found
