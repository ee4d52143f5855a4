"""Dwarfs: whole checkpoints of two thin layers with random weights and a tokenizer of bytes, written for a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mmchat.family import Family

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(marks: Sequence[str] = ("<s>", "</s>", "<unk>")) -> Tokenizer:
    """One token for each byte, one for each mark: 256 + len(marks) ids."""
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def build(family: Family, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """The family's dwarf with weights large enough that every part changes what comes out."""
    torch.manual_seed(seed)
    model = family.build(family.dwarf)
    for name, parameter in model.named_parameters():
        if not name.endswith(("norm.weight", "layernorm.weight")):
            torch.nn.init.normal_(
                parameter, std=scale / max(1, parameter.shape[-1]) ** 0.5 if parameter.ndim > 1 else 0.1
            )
    return model.eval()


def write(family: Family, folder: Path, shards: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """The dwarf as a checkpoint: config.json, tokenizer, safetensors shards with an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in build(family).state_dict().items():
        state[name] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).clone().contiguous()
    names = sorted(state)
    parts = [names[index::shards] for index in range(shards)]
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        files = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
        for file, part in zip(files, parts, strict=True):
            save_file({name: state[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(dict(family.dwarf)))
    write_tokenizer(folder)
    return folder
