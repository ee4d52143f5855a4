"""Everything that was trained or converted into one checkpoint folder: config.json, fp16 shards with an index,
tokenizers, tables."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHARD, WHOLE = 45_000_000, 150_000_000  # bytes: what a repository takes without trouble


def gather(language: Path, eyes: Path | None) -> dict[str, torch.Tensor]:
    """All parameters under the family's names: `language.` + the Llama's own, the projections, and the eyes' as they
    are named there."""
    state = {f"language.{name}": tensor for name, tensor in load_file(language / "model.safetensors").items()}
    parts = [language / "projections.safetensors", *(sorted(eyes.glob("*.safetensors")) if eyes else ())]
    for part in parts:
        if not part.exists():
            continue
        for name, tensor in load_file(part).items():
            if name in state:
                raise ValueError(f"{part.name} names {name}, which another file already holds: rename one of them")
            state[name] = tensor
    return {name: tensor.half() if tensor.dtype.is_floating_point else tensor for name, tensor in state.items()}


def shards(state: Mapping[str, torch.Tensor], most: int = SHARD) -> list[dict[str, torch.Tensor]]:
    """The parameters in the order of their names, cut into pieces of at most `most` bytes."""
    out: list[dict[str, torch.Tensor]] = [{}]
    held = 0
    for name in sorted(state):
        size = state[name].numel() * state[name].element_size()
        if size > most:
            raise ValueError(f"{name} alone takes {size} bytes, more than a shard of {most} holds")
        if held + size > most:
            out.append({})
            held = 0
        out[-1][name] = state[name].contiguous()
        held += size
    return out


def write(state: Mapping[str, torch.Tensor], out: Path, most: int = SHARD, whole: int = WHOLE) -> dict[str, str]:
    """Shards and index into `out`; old shards go. Returns name -> file. ValueError if all is larger than `whole`."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > whole:
        raise ValueError(
            f"the weights take {total} bytes, more than the {whole} that may be shipped: leave something out"
        )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model-*.safetensors"):
        old.unlink()
    pieces = shards(state, most)
    where: dict[str, str] = {}
    for number, piece in enumerate(pieces, 1):
        file = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        save_file(piece, out / file, metadata={"format": "pt"})
        where |= {name: file for name in piece}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return where


def configuration(language: Mapping[str, Any], eyes: Mapping[str, Any], sources: Iterable[Path]) -> dict[str, Any]:
    """config.json: the Llama's own fields on top, what the eyes say of themselves under `eyes`, fingerprints of the
    sources."""
    prints = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sources}
    own = {"architectures": ["PocketForGrounding"], "model_type": "pocket", "torch_dtype": "float16"}
    return {**language, **own, "eyes": dict(eyes), "sources": prints}


def main(arguments: list[str]) -> None:
    """python -m mmchat.train pack --language DIR --eyes DIR --out assets/pocket"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train pack", description=__doc__)
    parser.add_argument("--language", type=Path, required=True, help="the language step's checkpoint folder")
    parser.add_argument("--eyes", type=Path, help="folder of the converted and trained vision weights and tables")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if not (given.language / "model.safetensors").exists():
        raise ValueError(f"no model.safetensors in {given.language}: run the language step first")
    write(gather(given.language, given.eyes), given.out)
    own = json.loads((given.language / "config.json").read_text(encoding="utf-8"))
    said = given.eyes / "config.json" if given.eyes else None
    seen = json.loads(said.read_text(encoding="utf-8")) if said is not None and said.exists() else {}
    sources = [given.language / "model.safetensors", *(sorted(given.eyes.glob("*.safetensors")) if given.eyes else ())]
    config = configuration(own, seen, sources)
    (given.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(given.language / "tokenizer.json", given.out / "tokenizer.json")
    # The turn's end ends an answer; nothing stands before the prompt.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "eos_token": "<|im_end|>"}
    (given.out / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    for table in sorted(given.eyes.iterdir()) if given.eyes else ():
        if table.suffix in (".txt", ".json") and table.name not in ("config.json", "tokenizer.json"):
            shutil.copyfile(table, given.out / table.name)
