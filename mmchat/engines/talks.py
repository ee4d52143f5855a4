"""What a talk was made of: remembered to the id, so that its next turn goes on where the last one ended.

Texts tokenized anew need not give the ids that the model itself wrote; only with those does its memory still fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from mmchat.engines.tokens import Growing
from mmchat.prompt import Piece, Slot


@dataclass(frozen=True)
class Filled:
    """A slot with its vectors [n, C], and what the model wants to know `beside` them (`Model.beside`)."""

    slot: Slot
    vectors: torch.Tensor
    beside: Any = None


Part = int | Filled


@dataclass
class Talk:
    """A talk as the model has read it: pieces with their ids, the answer with its ids, keys and values of all that."""

    prompt: tuple[Piece, ...]
    ids: list[int | Slot]
    text: str = ""
    answer: list[int] = field(default_factory=list)
    pieces: list[tuple[int, int, float]] = field(default_factory=list)  # of `answer`, in `text`
    read: list[Part] = field(default_factory=list)  # what `cache` holds
    cache: DynamicCache | None = None
    state: torch.Tensor | None = None  # [C] of the last position read, where a head asks for it

    def forget(self) -> None:
        """Let keys and values go; the words stay."""
        self.cache, self.read = None, []


def size(part: Part) -> int:
    """Positions that a part takes."""
    return 1 if isinstance(part, int) else part.vectors.shape[0]


def same(one: Part, other: Part) -> bool:
    """Whether two parts are the same to the model: an id, or a slot's very vectors."""
    if isinstance(one, int) or isinstance(other, int):
        return one == other if isinstance(one, int) and isinstance(other, int) else False
    return one.vectors is other.vectors or torch.equal(one.vectors, other.vectors)


def agreeing(read: list[Part], parts: list[Part]) -> int:
    """How many parts agree from the start."""
    count = 0
    for one, other in zip(read, parts, strict=False):
        if not same(one, other):
            break
        count += 1
    return count


def agreement(talk: Talk, prompt: tuple[Piece, ...]) -> int:
    """How long a known prompt is that `prompt` goes on from: 0 where it does not."""
    known = len(talk.prompt)
    if not known or len(prompt) < known or prompt[: known - 1] != talk.prompt[:-1]:
        return 0
    last, now = talk.prompt[-1], prompt[known - 1]
    goes_on = isinstance(last, str) and isinstance(now, str) and now.startswith(last)
    return sum(len(piece) if isinstance(piece, str) else 1 for piece in talk.prompt) if goes_on else 0


def written(talk: Talk, rest: str) -> tuple[int, int]:
    """How many of a talk's answer ids stand at the start of `rest`, and how many of its characters they wrote."""
    # The template's blank before an answer is in the answer's first token.
    blank = 0 if talk.text.startswith(" ") else len(rest) - len(rest.lstrip(" "))
    common = 0
    for one, other in zip(talk.text, rest[blank:], strict=False):
        if one != other:
            break
        common += 1
    if not common:
        return 0, 0  # ids that wrote nothing would agree with everything, also with the same question asked anew
    used = 0
    while used < len(talk.pieces) and talk.pieces[used][1] <= common:
        used += 1
    # Ids that make one character together are taken together.
    while 0 < used < len(talk.pieces) and talk.pieces[used][:2] == talk.pieces[used - 1][:2]:
        used -= 1
    return (used, blank + talk.pieces[used - 1][1]) if used else (0, 0)


def columns_of(parts: list[Part], picture: int) -> slice:
    """The positions that a picture's vectors take."""
    at = 0
    for part in parts:
        if isinstance(part, Filled) and part.slot.kind == "image" and part.slot.index == picture:
            return slice(at, at + size(part))
        at += size(part)
    raise ValueError("The talk shows no picture: ask about one first.")


def said(
    growing: Growing, stops: tuple[str, ...], done: bool, goes_on: bool = False
) -> tuple[str, list[tuple[int, int, float]], bool]:
    """What of the text may be shown, the pieces in it, and whether a stop mark has ended it.

    No blank in front, unless it goes on from other words; nothing from a stop mark on, no beginning of one while the
    text grows.
    """
    text = growing.text
    front = len(text) - len(text.lstrip())
    blank = 0 if goes_on else front
    # A line's end that ends an answer does not do so before its first word.
    ends = [at for at in (text.find(mark, front if mark.isspace() else 0) for mark in stops) if at >= 0]
    end = min(ends, default=len(text))
    if not ends and not done:
        end -= max((half for mark in stops for half in range(1, len(mark)) if text.endswith(mark[:half])), default=0)
    end = max(end, blank)
    pieces = [(max(0, a - blank), min(b, end) - blank, p) for a, b, p in growing.pieces if a < end or a == b == end]
    return text[blank:end], [(a, max(a, b), p) for a, b, p in pieces], bool(ends)


def copied(cache: DynamicCache, positions: int, config: Any) -> DynamicCache:
    """The first positions of a cache, for another talk."""
    out = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        out.update(layer.keys[:, :, :positions].clone(), layer.values[:, :, :positions].clone(), index)
    return out


def held(cache: DynamicCache | None) -> int:
    """Bytes of keys and values."""
    if cache is None:
        return 0
    tensors = [tensor for layer in cache.layers if layer.keys is not None for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in tensors)
