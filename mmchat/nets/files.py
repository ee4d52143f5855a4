"""Files of weights: the name, shape and type of every tensor known before one is read; then each read by itself.

Tensors are read into memory of their own, never mapped: a file that is replaced or cut later cannot harm a model, and
no more is held than what was asked for. A safetensors header must say exactly what the file holds; a pickle is opened
for tensors only, and the sums that its zip carries are checked. `mmchat.nets.sums` knows of sums for whole files.
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

LARGE = 1 << 20  # bytes from which a tensor gets pages of its own
PIECE = 1 << 20  # bytes read at once: they are still in the cache when they are summed up
SAFE = ".safetensors"
PICKLES = (".bin", ".pth", ".pt", ".pth.tar")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
NESTED = ("state_dict", "model", "module")  # where a training script's file keeps the parameters
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `read()` gives it, in memory of its own, as the file's type says."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    read: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored(path: Path) -> list[Stored]:
    """What a file holds, in the order in which it lies there. ValueError, with the remedy, where it is not whole."""
    whole_file(path)
    return list(_safe(path)) if path.suffix == SAFE else _pickled(path)


def shards(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's parameters; ValueError where one is missing, empty, cut off or a pointer."""
    folder = Path(folder)
    if folder.is_file():
        whole_file(folder)
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: put the checkpoint there or name another one.")
    paths = _indexed(folder) or _unindexed(folder)
    if not paths:
        raise ValueError(f"There are no weights in {folder} (*.safetensors or pytorch_model*.bin): put them there.")
    for path in paths:
        whole_file(path)
    return paths


def inventory(folder: Path) -> list[Stored]:
    """Every tensor of a checkpoint; ValueError where two files hold one name or an index says other than its files."""
    found: dict[str, Stored] = {}
    for path in shards(folder):
        for one in stored(path):
            if one.name in found:
                raise ValueError(
                    f"{one.name} stands in {found[one.name].path} and again in {path}: keep one kind of the files."
                )
            found[one.name] = one
    for path in _index(folder):
        wrong = [name for name, file in weight_map(path).items() if name not in found or found[name].path.name != file]
        if wrong:
            raise ValueError(
                f"{path} names {', '.join(sorted(wrong))} where the files have none: download the checkpoint again."
            )
    return list(found.values())


def weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index; ValueError where it is none or a file would lie outside its folder."""
    found = read_json(path).get("weight_map")
    whole = isinstance(found, dict) and all(isinstance(file, str) for file in found.values())
    if not whole or any(not file or Path(file).name != file for file in found.values()):
        raise ValueError(f"{path} is no index of weights: download it again.")
    return found


def whole_file(path: Path) -> None:
    """ValueError, with the remedy, where a file of weights is empty, a pointer, or shorter than its own header says."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes): download it again.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder.")
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} is a web page, not the weights: download it again.")
    if path.suffix == SAFE:
        header(path)


def header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(entry of each tensor, where the data begin) of a safetensors file whose header says exactly what it holds."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise damaged(path)
        try:
            entries = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_once)
            entries.pop("__metadata__", None)
            at = 0
            for begin, end, count, kind in sorted(_extent(entry) for entry in entries.values()):
                if begin != at or end - begin != count * TYPES[kind].itemsize:
                    raise ValueError
                at = end
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise damaged(path) from None
    if 8 + length + at != size:
        raise damaged(path)
    return entries, 8 + length


def damaged(path: Path) -> ValueError:
    """What is said of a file that is not what it was when it was written."""
    return ValueError(f"{path} is cut off or damaged: download it again.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; ValueError with the remedy otherwise."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON: download it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold what its name says: download it again.")
    return found


def _index(folder: Path) -> list[Path]:
    return [Path(folder) / name for name in INDEXES if (Path(folder) / name).is_file()][:1]


def _indexed(folder: Path) -> list[Path]:
    for index in _index(folder):
        names = sorted(set(weight_map(index).values()))
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise ValueError(f"{folder} lacks {', '.join(lost)}, which its index names: complete the download.")
        return [folder / name for name in names]
    return []


def _unindexed(folder: Path) -> list[Path]:
    extra = [path for path in [folder / "non_lora_trainables.bin"] if path.is_file()]  # beside a LLaVA adapter
    if safe := sorted(folder.glob(f"*{SAFE}")):
        return safe + extra
    for patterns in (("pytorch_model*.bin", "model*.bin", "adapter_model.bin"), ("mm_projector.bin",)):
        if found := [path for pattern in patterns for path in sorted(folder.glob(pattern))]:
            return found + extra
    return extra or [path for ending in (".pth", ".pth.tar", ".pt") for path in sorted(folder.glob(f"*{ending}"))]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _extent(entry: Mapping[str, Any]) -> tuple[int, int, int, str]:
    """(begin, end, count, type) of a header's entry; ValueError where a number is none."""
    numbers = [*entry["data_offsets"], *entry["shape"]]
    if len(entry["data_offsets"]) != 2 or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("no extent")
    return numbers[0], numbers[1], math.prod(entry["shape"]), entry["dtype"]


def _safe(path: Path) -> Iterator[Stored]:
    entries, data = header(path)
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        shape, dtype = tuple(entry["shape"]), TYPES[entry["dtype"]]
        yield Stored(name, shape, dtype, path, partial(_read, path, data + entry["data_offsets"][0], shape, dtype))


def _read(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype, crc: int | None = None) -> torch.Tensor:
    """A tensor from the bytes of a file; ValueError where they end early or are not those of the sum `crc`."""
    memory = pages(math.prod(shape) * dtype.itemsize)
    room = memoryview(memory.numpy())
    summed = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while room:
            count = file.readinto(room[:PIECE])
            if not count:
                raise damaged(path)
            if crc is not None:
                summed = zlib.crc32(room[:count], summed)
            room = room[count:]
    if crc is not None and summed != crc:
        raise damaged(path)
    return memory.view(dtype).reshape(shape)


def pages(size: int) -> torch.Tensor:
    """Memory for a tensor, uint8. A large one gets pages of its own, which go back to the system when it is let go: a
    heap would keep them, in pieces between what stays.
    """
    if size < LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def _pickled(path: Path) -> list[Stored]:
    """A pickle's tensors. The program in it builds only tensors, and those without memory: bytes are read later."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.load documents for looking into a file

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        records = _records(path) if zipped else {}
        with FakeTensorMode():
            state = _parameters(torch.load(path, map_location="cpu", weights_only=True), path)
        tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        if zipped:
            out = [_in_zip(path, str(name), tensor, records) for name, tensor in tensors.items()]
        else:
            old = _Old(path)
            out = [
                Stored(str(name), tuple(tensor.shape), tensor.dtype, path, partial(old.read, name))
                for name, tensor in tensors.items()
            ]
    except _NoParameters as error:
        raise ValueError(str(error)) from None
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise ValueError(
                f"{path} holds more than tensors and is not opened, as it could run code: convert it to safetensors."
            ) from None
        raise damaged(path) from None
    except Exception:  # a damaged pickle is a damaged program: it can fail in any way there is
        raise damaged(path) from None
    return out


class _NoParameters(Exception):
    pass


def _parameters(state: Any, path: Path) -> Mapping[str, Any]:
    """The mapping of names to tensors in what a file holds: itself, or what a training script puts it into."""
    found = [state] + [state[key] for key in NESTED if isinstance(state, Mapping) and key in state]
    for one in reversed(found):
        if isinstance(one, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in one.values()):
            return one
    raise _NoParameters(f"{path} holds no parameters: give the file of a model's weights.")


def _records(path: Path) -> dict[int, tuple[int, int]]:
    """Where each record of a zip begins -> (its length, its sum). Records must lie there as they are, little-endian."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for one in archive.infolist():
            if one.compress_type != zipfile.ZIP_STORED:
                raise ValueError("packed")
            file.seek(one.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            found[one.header_offset + 30 + name + extra] = (one.file_size, one.CRC)
            if one.filename.endswith("/byteorder") and archive.read(one) != b"little":
                raise ValueError("another byte order")
            if one.filename.endswith("/data.pkl"):
                archive.read(one)  # zipfile compares the sum
    return found


def _in_zip(path: Path, name: str, tensor: torch.Tensor, records: Mapping[int, tuple[int, int]]) -> Stored:
    shape, dtype, strides = tuple(tensor.shape), tensor.dtype, tensor.stride()
    begin = tensor.untyped_storage()._checkpoint_offset
    length, crc = records[begin]
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + 1 if tensor.numel() else 0
    first = tensor.storage_offset()
    if max(first + last, tensor.numel()) * dtype.itemsize > length or length % dtype.itemsize:
        raise ValueError("reaches beyond its record")
    if tensor.is_contiguous() and tensor.numel() * dtype.itemsize == length:
        return Stored(name, shape, dtype, path, partial(_read, path, begin, shape, dtype, crc))

    def view() -> torch.Tensor:  # of a storage that several tensors share
        whole = _read(path, begin, (length // dtype.itemsize,), dtype, crc)
        return whole.as_strided(shape, strides, first).clone(memory_format=torch.contiguous_format)

    return Stored(name, shape, dtype, path, view)


class _Old:
    """A pickle of before torch 1.6, which can only be read whole: at the first tensor; each is let go when read."""

    def __init__(self, path: Path) -> None:
        self.path, self.state, self.alone = path, None, Lock()

    def read(self, name: str) -> torch.Tensor:
        with self.alone:  # of several readers one reads the file, the others wait for it
            if self.state is None:
                try:
                    state = torch.load(self.path, map_location="cpu", weights_only=True)
                    self.state = dict(_parameters(state, self.path))
                except Exception:  # as above
                    raise damaged(self.path) from None
            return self.state.pop(name).detach()
