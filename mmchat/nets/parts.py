"""Parts: the folders that make one model, and every parameter of it under our name, folded, but not read yet.

A checkpoint may be whole; or leave out what it did not train (a vision tower, a language model); or be a difference to
another one (delta); or hold low-rank pairs for another one's layers (LoRA). `Part` names such another folder, as data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmchat.nets.files import SAFE, Stored, inventory, read_json

Keys = Sequence[tuple[str, str]]
_PAIR = re.compile(r"^(?:(.*)\.)?lora_([AB])(?:\.[^.]+)?\.weight$")
_STRANGE = re.compile(r"\.lora_(?!([AB](\.[^.]+)?\.weight)$)")
_WRAPPED = re.compile(r"(^|\.)base_model\.model\.|\.base_layer(?=\.)|\.modules_to_save\.[^.]+(?=\.)")
_GROWN = (r"embed_tokens\.weight$", r"lm_head\.weight$")


@dataclass(frozen=True)
class Part:
    """Another folder, or file, of weights that a family's checkpoints need.

    `key`: the entry of config.json that names it: a path, or a hub name whose last word is looked for in the checkpoint
    and beside it; null says that nothing is needed. `usual`: its name where config.json is silent. `title` and `holds`
    (a prefix of our names): what it brings. `prefix` is put before its published names, and then they are renamed.
    `way`: "fill" brings what the checkpoint lacks; "instead" also takes the place of what it holds; "delta" is the base
    that the checkpoint is a difference to, with `alone` the patterns of our names that are stored as they are. `scale`:
    of low-rank pairs in a checkpoint without adapter_config.json. `config`: the entry of config.json that its own
    config.json becomes, where it is not there yet.
    """

    key: str
    title: str
    usual: str = ""
    holds: str = ""
    prefix: str = ""
    way: str = "fill"
    alone: tuple[str, ...] = ()
    scale: float | None = None
    config: str = ""


TOWER = Part("mm_vision_tower", "vision tower", "vision_tower", "vision.", config="vision_config")
ADAPTED = Part("base_model_name_or_path", "base model", way="fill")  # what an adapter was trained on


@dataclass(frozen=True)
class Source:
    """A folder or file that is read for a model; `part` None: the checkpoint itself."""

    path: Path
    part: Part | None = None


@dataclass(frozen=True)
class Item:
    """A parameter under our name, yet to be read. `size`: bytes that reading it takes from files."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int
    read: Callable[[], torch.Tensor]


def read_config(folder: Path, parts: Sequence[Part] = ()) -> dict[str, Any]:
    """config.json of a checkpoint, with those of the parts that lie beside it under the entries they are known by.

    What generation_config.json says of choosing tokens stands under that file's name. An adapter without a config.json
    has its base's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: put the checkpoint there or name another one.")
    path, base = config_file(folder), None
    if (folder / "adapter_config.json").is_file():
        base = find(folder, read_json(folder / "adapter_config.json"), ADAPTED)
    if not path.is_file() and base is not None:
        path = base / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no config.json in {folder}: give the folder of a whole checkpoint.")
    config = read_json(path)
    for part in (TOWER, *parts):
        beside = find(folder, config, part)
        if part.config and part.config not in config and beside is not None and (beside / "config.json").is_file():
            config[part.config] = read_json(beside / "config.json")
    if (folder / "generation_config.json").is_file():
        config["generation_config"] = read_json(folder / "generation_config.json")
    return config


def config_file(folder: Path) -> Path:
    """Where a checkpoint says what it is; some training scripts call it model_args.json."""
    path, other = folder / "config.json", folder / "model_args.json"
    return path if path.is_file() or not other.is_file() else other


def tower_folder(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Where the vision tower that a config names lies."""
    return find(folder, config, TOWER)


def find(folder: Path, config: Mapping[str, Any], part: Part) -> Path | None:
    """Where a part lies: at the path that config.json names, or in or beside the checkpoint; None where it does not."""
    if part.key in config and not isinstance(config[part.key], str):
        return None
    named = config.get(part.key, "")
    if not named and part in (TOWER, ADAPTED):
        return None
    names = [named.rstrip("/").rpartition("/")[2], part.usual]
    folder = Path(folder)
    places = [Path(named)] if named else []
    places += [base / name for name in names if name for base in (folder, folder.resolve().parent)]
    return next((place for place in places if _is_part(place) and place.resolve() != folder.resolve()), None)


def _is_part(place: Path) -> bool:
    if place.is_dir():
        return any((place / "config.json").is_file() or any(place.glob(f"*{end}")) for end in (SAFE, ".bin", ".pth"))
    return place.is_file()


def sources(folder: Path, config: Mapping[str, Any], parts: Sequence[Part] = ()) -> list[Source]:
    """All that is read for a checkpoint, itself first. ValueError where the base of a delta or adapter is not there."""
    folder = Path(folder)
    out = [Source(folder)]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        about = read_json(adapter)
        place = find(folder, about, ADAPTED)
        if place is None:
            raise ValueError(
                f"{folder} is an adapter of {about.get('base_model_name_or_path')}, which is not there: "
                "put its folder beside it."
            )
        out.append(Source(place, ADAPTED))
    for part in (TOWER, *parts):
        place = find(folder, config, part)
        if part.way == "delta":
            named = config.get(part.key)
            wanted = bool(named) if part.key in config else "delta" in folder.resolve().name.lower()
            if wanted and place is None:
                raise ValueError(
                    f"{folder} is a difference to the {part.title} {named or part.usual}, which is not there: put its "
                    f"folder beside it, or name it as {part.key} in config.json (null where it is added already)."
                )
            place = place if wanted else None
        if place is not None:
            out.append(Source(place, part))
    return out


def renamed(name: str, keys: Keys) -> str:
    """Our name of a published parameter: the first pattern found in it is replaced, once. Ours already stay."""
    for pattern, put in keys:
        if re.search(pattern, name):
            return re.sub(pattern, put, name, count=1)
    return name


def items(found: Sequence[Source], keys: Keys, drop: Sequence[str], parts: Sequence[Part] = ()) -> list[Item]:
    """Every parameter that the sources give together, in the order of the files. What the first ones hold wins.

    ValueError where a difference has no base, or a low-rank pair no partner, scale or layer of its shape.
    """
    plain: dict[str, Stored] = {}
    base: dict[str, Stored] = {}
    pairs: dict[str, dict[str, Stored]] = {}
    delta = next((source.part for source in found if source.part is not None and source.part.way == "delta"), None)
    for number, source in enumerate(found):
        prefix = source.part.prefix if source.part is not None else ""
        into = base if source.part is not None and source.part is delta else plain
        for one in inventory(source.path):
            if _STRANGE.search(one.name) or ".original_module." in one.name:
                if ".original_module." in one.name:
                    continue
                raise ValueError(f"{one.name} in {one.path} is of a kind of adapter that is not known: merge it first.")
            published = prefix + _WRAPPED.sub(r"\1", one.name)
            pair = _PAIR.match(published)
            if pair:
                pairs.setdefault(renamed(f"{pair[1]}.weight", keys), {})[pair[2]] = one
                continue
            ours = renamed(published, keys)
            instead = source.part is not None and source.part.way == "instead"
            if not dropped(drop, published, ours) and (ours not in into or number == 0 or instead):
                into[ours] = one
    out = {name: Item(name, one.shape, one.dtype, one.size, one.read) for name, one in plain.items()}
    if delta is not None:
        out = {name: _added(name, item, base, delta) for name, item in out.items()}
        out |= {
            name: Item(name, one.shape, one.dtype, one.size, one.read) for name, one in base.items() if name not in out
        }
    if pairs:
        scale = _scales(found, parts)
        for name, pair in pairs.items():
            out[name] = _low_rank(name, out.get(name), pair, scale)
    return list(out.values())


def dropped(patterns: Iterable[str], *names: str) -> bool:
    """Whether one of the patterns is found in one of the names."""
    return any(re.search(pattern, name) for pattern in patterns for name in names)


def _added(name: str, item: Item, base: Mapping[str, Stored], part: Part) -> Item:
    """A difference with its base added; more rows than the base has, as new tokens bring, are whole already."""
    if dropped(part.alone, name):
        return item
    if name not in base:
        raise ValueError(
            f"The {part.title} has no {name}, to which the checkpoint is a difference: take the right base."
        )
    one = base[name]
    grown = dropped(_GROWN, name) and one.shape[1:] == item.shape[1:] and one.shape[:1] <= item.shape[:1]
    if one.shape != item.shape and not grown:
        raise ValueError(
            f"{name} is {list(one.shape)} in the {part.title} and {list(item.shape)} in what is a difference to it: "
            "take the right base."
        )

    def read() -> torch.Tensor:
        whole = item.read()
        rows = whole[: one.shape[0]] if one.shape else whole
        rows.copy_(rows.float().add_(one.read()))  # rounded once, to the stored type, as the authors' scripts do
        return whole

    return Item(name, item.shape, item.dtype, item.size + one.size, read)


def _low_rank(name: str, item: Item | None, pair: Mapping[str, Stored], scale: Callable[[str], float]) -> Item:
    """A layer with its low-rank pair B @ A added, in fp32."""
    if item is None:
        raise ValueError(
            f"There is no {name}, to which a low-rank pair belongs: put the base model beside the adapter."
        )
    if set(pair) != {"A", "B"}:
        raise ValueError(
            f"The low-rank pair of {name} lacks its half lora_{'B' if 'A' in pair else 'A'}: download it again."
        )
    first, second = pair["A"], pair["B"]
    factor, turned = scale(name)
    shape = (*second.shape[:1], *first.shape[1:])
    if len(shape) != 2 or first.shape[0] != second.shape[-1] or (shape[::-1] if turned else shape) != item.shape:
        raise ValueError(
            f"The low-rank pair of {name}, {list(second.shape)} by {list(first.shape)}, is not for {list(item.shape)}: "
            "take the base model that the adapter was trained on."
        )

    def read() -> torch.Tensor:
        more = second.read().float() @ first.read().float()
        return item.read().float().add_(more.T if turned else more, alpha=factor)

    return Item(name, item.shape, torch.float32, item.size + first.size + second.size, read)


def _scales(found: Sequence[Source], parts: Sequence[Part]) -> Callable[[str], tuple[float, bool]]:
    """(scale, whether the product is stored turned) of a layer's low-rank pair, by peft's rules or the family's."""
    path = found[0].path / "adapter_config.json"
    if not path.is_file():
        factor = next((part.scale for part in parts if part.scale is not None), None)
        if factor is None:
            raise ValueError(f"{found[0].path} holds low-rank pairs and no adapter_config.json: put it there.")
        return lambda name: (factor, False)
    about = read_json(path)
    if about.get("peft_type", "LORA") != "LORA" or about.get("use_dora"):
        raise ValueError(f"{path} is of a kind of adapter that is not known: merge it with its base first.")

    def scale(name: str) -> tuple[float, bool]:
        layer = name.removesuffix(".weight")
        rank, alpha = (_patterned(about.get(f"{kind}_pattern"), layer, about.get(entry))
                       for kind, entry in (("rank", "r"), ("alpha", "lora_alpha")))  # fmt: skip
        if not all(type(number) in (int, float) and number > 0 and math.isfinite(number) for number in (rank, alpha)):
            raise ValueError(f"{path} gives no r and lora_alpha above 0: download it again.")
        return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank), bool(about.get("fan_in_fan_out"))

    return scale


def _patterned(patterns: Any, layer: str, usual: Any) -> Any:
    """The entry of a pattern that ends a layer's name, as peft looks for it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return usual
