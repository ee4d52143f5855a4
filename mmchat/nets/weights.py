"""Weights: a checkpoint's parameters, one by one, into a model that has none yet; all fits or none loads.

What a family says of its checkpoints is data:
- `keys`, ordered (pattern, replacement) pairs, lead from published names to ours; `drop` patterns may be left over;
- `parts`, `Part`s, name other folders that a checkpoint needs: the language model it was trained on, the base that it
  is a difference to, what its low-rank pairs belong to (an adapter's base and a vision tower are found without one);
- `fold`, a `Fold`, joins tensors where two become one; `keep` names modules, by full path, that stay unquantised.

The road: `archive.opened` (a .tar.gz is unpacked once), `read_config`, `family.build` inside `without_memory`,
`sources`, `load`. Names and shapes are compared before any tensor is read. Each is then read, folded, cast, quantised
and assigned by itself, so that little more memory is taken than the model keeps. The program downloads nothing.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmchat.nets import quantise
from mmchat.nets.files import Stored, inventory, shards, whole_file
from mmchat.nets.parts import (
    TOWER,
    Item,
    Keys,
    Part,
    Source,
    dropped,
    find,
    items,
    read_config,
    renamed,
    sources,
    tower_folder,
)
from mmchat.nets.quantise import PRECISIONS, QUANTISED, linear_layers, native_bf16, settle_precision
from mmchat.nets.sums import Check

__all__ = (
    "PRECISIONS", "QUANTISED", "Fold", "Part", "Source", "Stored", "WrongWeights", "dropped", "find", "inventory",
    "linear_layers", "load", "native_bf16", "read_config", "renamed", "settle_precision", "shards", "sources",
    "tower_folder", "whole_file", "without_memory",
)  # fmt: skip

State = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]  # (bytes read, bytes to read)
PIECE = 1 << 18  # numbers looked at together: what is made of them stays in the cache
Places = Mapping[str, "int | str"]  # module path -> "cpu", "disk" or a GPU, as accelerate writes its device maps


class WrongWeights(ValueError):
    """Weights that do not fit: names `missing` and `left` over, `wrong` (name, shape in the file, shape wanted)."""

    def __init__(self, sentence: str, missing: Sequence[str], left: Sequence[str], wrong: Sequence[tuple]) -> None:
        super().__init__(sentence)
        self.missing, self.left, self.wrong = tuple(missing), tuple(left), tuple(wrong)


@dataclass(frozen=True)
class Fold:
    """A function from tensors by our names to what takes their place, and which ones it needs: patterns of our names.

    All else goes past it, one by one. A function without this (`Family.fold` may be one) is given all tensors at once.
    `sized`: `join` is also told the shape of every parameter of the model, by name.
    """

    takes: tuple[str, ...]
    join: Callable[..., State]
    sized: bool = False

    def __call__(self, state: State, shapes: Mapping[str, tuple[int, ...]] | None = None) -> State:
        return self.join(state, shapes or {}) if self.sized else self.join(state)


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


def load(
    model: nn.Module,
    folder: Path | str | Sequence[Path | Source],
    keys: Keys,
    drop: Sequence[str] = (),
    fold: Callable[[State], State] | None = None,
    precision: str = "auto",
    keep: Sequence[str] = (),
    device: str | Places = "cpu",
    parts: Sequence[Part] = (),
    progress: Progress | None = None,
    offload: Path | None = None,
) -> tuple[str, ...]:
    """Fill a model, best built `without_memory`, from a checkpoint, and leave it ready to run; gives sentences to read.

    folder: one, or what `sources` gives. keys, drop, fold, keep, parts as in the module's text. Floating point
    parameters are cast to the type that `settle_precision` gives, whatever the files hold. int8 and nf4 quantise the
    linear layers of `model.language` while they are read, but never its head nor a module under a path in `keep`.
    device: one for all, "auto" (accelerate spreads the model over the GPUs, then the CPU), or a device map; modules on
    "disk" are kept in the folder `offload`.
    WrongWeights where a parameter is missing, a name is left over or a shape differs, with all names; ValueError where
    a file is not whole. The model is then of no use: build another one.
    """
    folders = [folder] if isinstance(folder, str | Path) else list(folder)
    found = [one if isinstance(one, Source) else Source(Path(one), TOWER if number else None)
             for number, one in enumerate(folders)]  # fmt: skip
    places = device if isinstance(device, Mapping) else {"": device}
    first = _compute_device(places)
    name_of, dtype, notes = settle_precision(precision, first)
    checks = [Check(source.path) for source in found]
    try:
        known = items(found, keys, drop, parts)
        target = _Target(model, name_of, dtype, keep, found, parts)
        folded, rest = _split(known, fold)
        target.expect(rest, complete=fold is None)
        if places == {"": "auto"}:
            places = spread(model, dtype, target.packed)
        target.place(places, offload)
        total, done = sum(item.size for item in known), 0
        if fold is not None:
            for name, tensor in _joined(fold, folded, found, target.shapes).items():
                target.put(name, tensor)
            done = sum(item.size for item in folded)
            target.expect(rest, complete=True)
        for item, tensor in _ahead(rest):
            target.put(item.name, tensor)
            del tensor  # or it would stay while the next one is waited for
            done += item.size
            if progress is not None:
                progress(done, total)
        target.finish()
    finally:
        wrong = [sentence for check in checks if (sentence := check.result())]
    if wrong:
        raise ValueError(wrong[0])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    if set(places) == {""} and places[""] != "disk":
        model.to(places[""])
    else:
        from accelerate import dispatch_model  # only where a model is spread

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a buffer's own entry is no module, and that layers are elsewhere
            logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
            dispatch_model(model, _cover(model, "", target.device), offload_dir=target.offload)
    return notes


def spread(model: nn.Module, dtype: torch.dtype, packed: Sequence[str] = ()) -> dict[str, int | str]:
    """A device map over the GPUs and then the CPU, by what is free; layers that hold a residual stay together."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory

    whole = [*{type(one).__name__ for name, one in model.named_modules() if re.search(r"\.layers\.\d+$", name)}]
    special = {f"{path}.weight": CustomDtype.INT4 for path in packed}
    room = get_balanced_memory(model, dtype=dtype, no_split_module_classes=whole, special_dtypes=special)
    return infer_auto_device_map(model, room, no_split_module_classes=whole, dtype=dtype, special_dtypes=special)


def _cover(model: nn.Module, path: str, device: Callable[[str], str]) -> dict[str, int | str]:
    """The device map with every parameter under exactly one entry, as accelerate wants it."""
    module = model.get_submodule(path)
    names = [f"{path}.{name}".removeprefix(".") for name in module.state_dict()]
    where = {device(name) for name in names}
    if path and len(where) == 1:
        place = where.pop()
        return {path: int(place.removeprefix("cuda:")) if place.startswith("cuda:") else place}
    out: dict[str, int | str] = {}
    for name, _ in module.named_children():
        out |= _cover(model, f"{path}.{name}".removeprefix("."), device)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return out | {one: device(one) for one in (f"{path}.{name}".removeprefix(".") for name, _ in own)}


def _compute_device(places: Places) -> str:
    """Where a spread model computes: its first GPU, else the CPU."""
    named = [str(place) for place in places.values()]
    if named == ["auto"]:
        return "cuda" if torch.cuda.is_available() else "cpu"
    gpus = [f"cuda:{place}" if place.isdigit() else place for place in named if place not in ("cpu", "disk")]
    return gpus[0] if gpus else "cpu"


def _ahead(coming: Sequence[Item], readers: int = 2) -> Iterator[tuple[Item, torch.Tensor]]:
    """Each item with its tensor, while threads read the next ones: most of the time goes into fresh pages, which two
    threads get sooner than one. Never more than one tensor a reader is underway beside the one that is given.
    """
    with ThreadPoolExecutor(readers) as pool:
        waiting = deque(pool.submit(item.read) for item in coming[:readers])
        for item, after in zip_longest(coming, coming[readers:]):
            held = [waiting.popleft().result()]
            if after is not None:
                waiting.append(pool.submit(after.read))
            yield item, held.pop()


def finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are, told by their bits: without the sign, those of infinity and NaN are the greatest of all.

    In one thread: torch's own would wake its others for each tensor, and these take the cores from the readers (of
    loading 1.3 GB a third of the time).
    """
    size = tensor.dtype.itemsize
    largest = torch.tensor([torch.finfo(tensor.dtype).max], dtype=tensor.dtype).view(torch.uint8).numpy()
    largest = largest.view(f"u{size}")[0]
    bits = tensor.flatten().view(torch.uint8).numpy().view(f"u{size}")
    unsigned = bits.dtype.type((1 << (8 * size - 1)) - 1)
    room = np.empty(min(len(bits), PIECE), bits.dtype)
    pieces = (bits[start : start + PIECE] for start in range(0, len(bits), PIECE))
    return all(np.bitwise_and(piece, unsigned, out=room[: len(piece)]).max() <= largest for piece in pieces)


def _split(known: Sequence[Item], fold: Callable[[State], State] | None) -> tuple[list[Item], list[Item]]:
    """(what goes through the fold, what goes past it)."""
    if fold is None:
        return [], list(known)
    if not isinstance(fold, Fold):
        return list(known), []
    taken = [item for item in known if any(re.search(pattern, item.name) for pattern in fold.takes)]
    return taken, [item for item in known if item not in taken]


def _joined(
    fold: Callable[..., State], folded: Sequence[Item], found: Sequence[Source], shapes: Mapping[str, tuple[int, ...]]
) -> State:
    try:
        state = {item.name: item.read() for item in folded}
        return fold(state, shapes) if isinstance(fold, Fold) else fold(state)
    except (KeyError, IndexError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The tensors in {found[0].path} that are joined for this family do not go together "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): complete the files or change the family."
        ) from None


class _Target:
    """A model while it is being filled."""

    def __init__(
        self,
        model: nn.Module,
        precision: str,
        dtype: torch.dtype,
        keep: Sequence[str],
        found: Sequence[Source],
        parts: Sequence[Part],
    ) -> None:
        self.model, self.dtype, self.found, self.parts = model, dtype, found, parts
        self.wanted = dict(model.state_dict(keep_vars=True))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.wanted.items()}
        self.twins: dict[int, list[str]] = {}  # names of one and the same parameter: a head tied to the embedding
        for name, tensor in self.wanted.items():
            self.twins.setdefault(id(tensor), []).append(name)
        self.precision = precision
        layers = linear_layers(model, keep, precision)
        self.layers = set(layers)
        self.packed = set(layers) if precision in QUANTISED else set()
        self.saved: dict[str, tuple[str, tuple[str, ...]]] = {}  # of layers that were saved quantised
        self.held: State = {}  # their parts, until the last one is read
        self.done: set[str] = set()
        self.left: list[str] = []
        self.wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.places: Places = {"": "cpu"}
        self.offload: Path | None = None
        self.written: dict[str, dict] = {}

    def expect(self, coming: Sequence[Item], complete: bool) -> None:
        """WrongWeights unless what is there and what comes fits. complete False: a fold will give what is missing."""
        names = {item.name for item in coming}
        self._saved_layers(names)
        beside = {part for _, parts in self.saved.values() for part in parts}
        left = [name for name in names if name not in self.wanted and name not in beside]
        wrong = [
            (item.name, item.shape, self.shapes[item.name])
            for item in coming
            if item.name in self.wanted and not self._fits(item.name, item.shape, item.dtype)
        ]
        there = self.done | names
        for twins in self.twins.values():
            if any(name in there for name in twins):
                there |= set(twins)
        missing = [name for name in self.wanted if name not in there]
        if complete or left or wrong:
            self._refuse(missing if complete else [], [*self.left, *left], [*self.wrong, *wrong])

    def _saved_layers(self, names: set[str]) -> None:
        """Which layers were saved quantised, told by what is saved beside them."""
        for kind, parts in quantise.PARTS.items():
            for name in names:
                path = name.removesuffix(f".{parts[0]}")
                if path == name or f"{path}.weight" not in self.wanted:
                    continue
                if path not in self.layers or self.precision not in (kind, "auto"):
                    raise ValueError(
                        f"{self.found[0].path} holds {path} in {kind} and is opened in {self.precision}: "
                        f"open it with the precision {kind}, or the checkpoint it was made of."
                    )
                self.saved[path] = (kind, tuple(f"{path}.{part}" for part in parts if f"{path}.{part}" in names))

    def _fits(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        if name.removesuffix(".weight") in self.saved and name.endswith(".weight"):
            return not dtype.is_floating_point  # its shape is looked at when it is put together
        return shape == self.shapes[name] and dtype.is_floating_point == self.wanted[name].is_floating_point()

    def place(self, places: Places, offload: Path | None) -> None:
        """Where each module's parameters go."""
        self.places = places
        if "disk" not in places.values():
            return
        if self.packed:
            raise ValueError("Layers kept on disk cannot be quantised: choose bf16, or keep them on the CPU.")
        if offload is None:  # lives as long as the model
            self.model._offloaded = tempfile.TemporaryDirectory(prefix="mmchat-offload-")
            offload = Path(self.model._offloaded.name)
        offload.mkdir(parents=True, exist_ok=True)
        self.offload = offload

    def device(self, name: str) -> str:
        """Where a parameter goes: what the longest path in the device map says."""
        paths = [path for path in self.places if not path or f"{name}.".startswith(f"{path}.")]
        if not paths:
            raise ValueError(f"The device map has no place for {name}: name its module, or '' for all others.")
        place = str(self.places[max(paths, key=len)])
        return f"cuda:{place}" if place.isdigit() else place

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Assign one tensor."""
        owner, _, last = name.rpartition(".")
        path = next((path for path in self._owners(name) if path in self.saved), "")
        if path and name in (f"{path}.weight", *self.saved[path][1]):
            self._put_saved(path, name, tensor)
            return
        if name not in self.wanted:
            self.left.append(name)
            return
        if not self._fits(name, tuple(tensor.shape), tensor.dtype):
            self.wrong.append((name, tuple(tensor.shape), self.shapes[name]))
            self.done.add(name)
            return
        if tensor.is_floating_point() and not finite(tensor):
            where = self.found[0].path
            raise ValueError(f"{name} in {where} holds numbers that are none (NaN or infinite): download it again.")
        device = self.device(name)
        if owner in self.packed and last == "weight":
            quantise.pack(self.model, owner, tensor, self.precision, self.dtype, device)
            self.done.add(name)
            return
        tensor = tensor.to(self.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        if device == "disk":
            self._put_away(name, tensor)
            return
        self._agree(name, tensor)
        self._assign(name, tensor.to(device))

    def _agree(self, name: str, tensor: torch.Tensor) -> None:
        """ValueError where another name brought the same parameter with other values."""
        twins = [twin for twin in self.twins[id(self.wanted[name])] if twin != name and twin in self.done]
        if not twins:
            return
        placed = self.model.state_dict(keep_vars=True)[name]
        if not placed.is_meta and not torch.equal(placed, tensor.to(placed.device)):
            raise ValueError(
                f"{name} in {self.found[0].path} differs from {twins[0]}, which config.json says it is: "
                'write "tie_word_embeddings": false there.'
            )

    @staticmethod
    def _owners(name: str) -> Iterator[str]:
        while "." in name:
            name = name.rpartition(".")[0]
            yield name

    def _put_saved(self, path: str, name: str, tensor: torch.Tensor) -> None:
        """Keep one part of a layer that was saved quantised; with the last one the layer is put in its place."""
        kind, parts = self.saved[path]
        self.held[name] = tensor
        if all(part in self.held for part in (f"{path}.weight", *parts)):
            weight = self.held.pop(f"{path}.weight")
            beside = {part.removeprefix(f"{path}."): self.held.pop(part) for part in parts}
            quantise.unpack(self.model, path, weight, beside, kind, self.dtype, self.device(f"{path}.weight"))
            self.done.add(f"{path}.weight")

    def _put_away(self, name: str, tensor: torch.Tensor) -> None:
        """Write a parameter to disk, where accelerate finds it when its module runs."""
        from accelerate.utils import offload_weight

        for twin in self.twins[id(self.wanted[name])]:
            offload_weight(tensor, twin, str(self.offload), index=self.written)
            self.done.add(twin)
            if isinstance(self.wanted[name], nn.Parameter):  # what is brought back takes this one's type
                path, _, attribute = twin.rpartition(".")
                empty = nn.Parameter(torch.empty_like(tensor, device="meta"), False)
                self.model.get_submodule(path).register_parameter(attribute, empty)

    def _assign(self, name: str, tensor: torch.Tensor) -> None:
        value = nn.Parameter(tensor, False) if isinstance(self.wanted[name], nn.Parameter) else tensor
        for twin in self.twins[id(self.wanted[name])]:
            path, _, attribute = twin.rpartition(".")
            module = self.model.get_submodule(path)
            if isinstance(value, nn.Parameter):
                module.register_parameter(attribute, value)
            else:
                module.register_buffer(attribute, value)
            self.done.add(twin)

    def finish(self) -> None:
        """WrongWeights unless all was filled."""
        self._refuse([name for name in self.wanted if name not in self.done], self.left, self.wrong)
        on_meta = [name for name, buffer in self.model.named_buffers() if buffer.is_meta and name not in self.written]
        assert not on_meta, f"buffers without values: {on_meta}"
        if self.written:
            from accelerate.utils import save_offload_index

            save_offload_index(self.written, str(self.offload))

    def _refuse(self, missing: Sequence[str], left: Sequence[str], wrong: Sequence[tuple]) -> None:
        """Say what does not fit, if anything; where all that a part brings is missing, what to put where."""
        missing, left = sorted(missing), sorted(left)
        if not (missing or left or wrong):
            return
        where = " and ".join(str(source.path) for source in self.found)
        for part in (TOWER, *self.parts):
            brings = [name for name in self.wanted if part.holds and name.startswith(part.holds)]
            if brings and missing == sorted(brings) and not (left or wrong):
                own = f"the {part.title}'s own folder"
                own = f"{own} ({part.usual})" if part.usual and part is not TOWER else own
                sentence = (
                    f"{where} holds no {part.title}: put {own}, which config.json names as {part.key}, into it or "
                    "beside it."
                )
                raise WrongWeights(sentence, missing, (), ())
        words = [name for name in self.wanted if name.startswith("language.")]
        if words and not (left or wrong) and set(words) <= set(missing):
            sentence = (
                f"{where} holds no language model and is a part of a checkpoint: put all files of the whole there."
            )
            raise WrongWeights(sentence, missing, (), ())
        said = []
        if missing:
            said.append(f"{len(missing)} missing ({', '.join(missing)})")
        if left:
            said.append(f"{len(left)} left over ({', '.join(left)})")
        if wrong:
            shapes = ", ".join(f"{name}: {list(has)} in the file, {list(wants)} in the model"
                               if tuple(has) != tuple(wants) else f"{name}: not of the model's kind of numbers"
                               for name, has, wants in wrong)  # fmt: skip
            said.append(f"{len(wrong)} of another shape ({shapes})")
        sentence = f"The weights in {where} do not fit this family: {'; '.join(said)}."
        raise WrongWeights(f"{sentence} Complete the files or choose their family.", missing, left, wrong)
