"""Lists of published names and shapes, `keys_real.txt`, counted out.

A line is a name and its shape; `{0..LAST}` counts, `{a,b}` is each in turn, a word in a shape is one of the sizes.
`+ SYSTEM SECTION PREFIX SIZE=number` takes another section's lines, its names behind a prefix; "-" begins a line of
what a checkpoint holds and no model needs. Lines in front of the first `[section]` are the section "checkpoint".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

GOLDEN = Path(__file__).resolve().parent / "golden"
VICUNA_7B = {"VOCAB": 32000, "WIDTH": 4096, "INNER": 11008, "KEYS": 4096, "LAST": 31}
VICUNA_13B = {"VOCAB": 32000, "WIDTH": 5120, "INNER": 13824, "KEYS": 5120, "LAST": 39}
LLAMA_3_8B = {"VOCAB": 128257, "WIDTH": 4096, "INNER": 14336, "KEYS": 1024, "LAST": 31}  # with one token more: <pad>


class Listed(NamedTuple):
    """A published parameter; `used`: whether a model has a place for it."""

    name: str
    shape: tuple[int, ...]
    used: bool = True


def listed(system: str, sizes: Mapping[str, int], section: str = "checkpoint") -> Iterator[Listed]:
    """Every parameter of a section of a system's list, for a language model of these sizes."""
    here, found = "checkpoint", False
    for line in (GOLDEN / system / "keys_real.txt").read_text().splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        found |= here == section
        if here != section or line[:1] in ("", "[", "#"):
            continue
        used = not line.startswith("- ")
        name, *words = line.removeprefix("- ").split()
        if name != "+":
            shape = tuple(size(word, sizes) for word in words)
            yield from (Listed(one, shape, used) for one in counted(name, sizes))
            continue
        own = dict(word.split("=") for word in words if "=" in word)
        other, part, *prefix = (word for word in words if "=" not in word)
        inside = {**sizes, **{word: size(number, sizes) for word, number in own.items()}}
        for front in counted(prefix[0] if prefix else "", sizes):
            for one in listed(other, inside, part):
                yield Listed(front + one.name, one.shape, used and one.used)
    assert found, f"{system} has no section {section}"


def size(word: str, sizes: Mapping[str, int]) -> int:
    """A number, one of the sizes, or a sum of both."""
    return sum(sizes[one] if one in sizes else int(one) for one in word.split("+"))


def counted(name: str, sizes: Mapping[str, int]) -> Iterator[str]:
    """A name with each of its spans counted out."""
    span = re.search(r"\{([^}]*)\}", name)
    if span is None:
        yield name
        return
    first, dots, last = span[1].partition("..")
    each = [str(index) for index in range(int(first), size(last, sizes) + 1)] if dots else span[1].split(",")
    for one in each:
        yield from counted(f"{name[: span.start()]}{one}{name[span.end() :]}", sizes)


def language(sizes: Mapping[str, int], heads: int) -> dict[str, int | bool | float]:
    """The same language model as a config.json says it."""
    width, keys = sizes["WIDTH"], sizes["KEYS"]
    return {
        "vocab_size": sizes["VOCAB"], "hidden_size": width, "intermediate_size": sizes["INNER"],
        "num_hidden_layers": sizes["LAST"] + 1, "num_attention_heads": heads,
        "num_key_value_heads": keys * heads // width, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
