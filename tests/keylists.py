"""Lists of published names and shapes, `keys_real.txt`, counted out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / "golden"
VICUNA_7B = {"VOCAB": 32000, "WIDTH": 4096, "INNER": 11008, "KEYS": 4096, "LAST": 31}
VICUNA_13B = {"VOCAB": 32000, "WIDTH": 5120, "INNER": 13824, "KEYS": 5120, "LAST": 39}
LLAMA_3_8B = {"VOCAB": 128257, "WIDTH": 4096, "INNER": 14336, "KEYS": 1024, "LAST": 31}  # with one token more: <pad>


def listed(system: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every name of a system's list with its shape, for a language model of these sizes."""
    for line in (GOLDEN / system / "keys_real.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, *shape = line.split()
        numbers = tuple(sizes[word] if word in sizes else int(word) for word in shape)
        span = re.search(r"\{0\.\.(\w+)\}", name)
        if span is None:
            yield name, numbers
            continue
        last = sizes[span[1]] if span[1] in sizes else int(span[1])
        for index in range(last + 1):
            yield f"{name[: span.start()]}{index}{name[span.end() :]}", numbers


def language(sizes: Mapping[str, int], heads: int) -> dict[str, int | bool | float]:
    """The same language model as a config.json says it."""
    width, keys = sizes["WIDTH"], sizes["KEYS"]
    return {
        "vocab_size": sizes["VOCAB"], "hidden_size": width, "intermediate_size": sizes["INNER"],
        "num_hidden_layers": sizes["LAST"] + 1, "num_attention_heads": heads,
        "num_key_value_heads": keys * heads // width, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
