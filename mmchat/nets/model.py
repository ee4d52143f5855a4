"""Model: a checkpoint's parts in named slots, most of them empty, and the torch half of see written once over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from mmchat.nets.trace import attention, laid

Tokenize = Callable[[str], list[int]]


class SlotLike(Protocol):
    """What `fill` reads of a prompt's slot: "image", "video" or "sound" index, "region" index (-1: all candidates),
    "clue" about `text`.
    """

    kind: str
    index: int
    text: str


@dataclass(frozen=True)
class Encoded:
    """What depends on the pictures alone: the dear part of seeing, kept while only the drawn regions change.

    `vectors` [B, T, C] stand for the pictures in the language model (None where the model makes them otherwise); of
    pictures of different sizes a list of [T, C]. `levels` are feature maps [B, c, h, w] (or such a list) for heat maps
    and region features, in the order in which they were computed; names are shown to users: "before fuser", "after
    fuser", "vision", "bridge". `kept` is the family's own.
    """

    vectors: torch.Tensor | Sequence[torch.Tensor] | None
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept: Any = None


@dataclass(frozen=True)
class Seen:
    """Pictures and regions as the language model takes them.

    `images`: vectors [T, C] of each picture. `candidates` [n, 4]: boxes x0, y0, x1, y1 in the unit square of the fitted
    picture, the user's regions first and in the user's order; `owners` [n]: which picture each lies on; `regions`
    [n, C] (or [n, k, C]): their vectors, None where the family has none. `levels` and `kept` as in `Encoded`.
    """

    images: tuple[torch.Tensor, ...]
    candidates: torch.Tensor
    owners: torch.Tensor
    regions: torch.Tensor | None = None
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept: Any = None


@dataclass(frozen=True)
class Located:
    """What a head found for the marks of an answer.

    `boxes` [n, 4]: x0, y0, x1, y1 in the unit square of the fitted picture; `marks` [n]: which mark, from 0, each is
    for; `masks` bool [n, h, w] over that square, None where the head draws none.
    """

    boxes: torch.Tensor
    marks: torch.Tensor
    masks: torch.Tensor | None = None


class PartLike(Protocol):
    """What `told` reads of a filled slot: its vectors [n, C] and what `beside` said of it."""

    vectors: torch.Tensor
    beside: Any


class Model(nn.Module):
    """Slots, each with its name in the parameters' names.

    `vision` (pictures -> levels), `bridge` (levels -> vectors), `language` (a causal language model of transformers
    that takes inputs_embeds); where a family has them `regions` (levels, boxes, owners -> vectors), `proposer` (levels
    -> boxes [n, 4], owners [n]) and `head`. A family with another order overrides `encode`, `gather` or `fill` in its
    own file.

    `picture_tokens`: the most vectors that a picture becomes, where a talk must have room for more than 576.
    `seeing`: numbers that the eyes hold at their widest moment, where that is more than reading a prompt takes.
    `head_marks`: marks, one token each, at which the head is asked: with the last layer's state that wrote the mark.
    `whole`: a prompt is read as one, later words changing what earlier ones mean: nothing read of one serves another.
    """

    head_marks: tuple[str, ...] = ()
    whole: bool = False
    seeing: int = 0

    def __init__(
        self,
        language: nn.Module,
        vision: nn.Module | None = None,
        bridge: nn.Module | None = None,
        regions: nn.Module | None = None,
        proposer: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.bridge, self.language = vision, bridge, language
        self.regions, self.proposer, self.head = regions, proposer, head

    def see(self, pixels: torch.Tensor, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """`encode` and `gather` in one: pictures and regions -> what the language model takes.

        pixels [B, 3, H, W], normalised as the family's frame does; boxes [n, 4] in the fitted unit square, owners [n]
        (picture 0 by default).
        """
        return self.gather(self.encode(pixels), boxes, owners)

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """Run everything that depends on the pictures alone. pixels [B, 3, H, W].

        A model that takes videos or sounds is given a list where one is among them: pictures [3, H, W], and what its
        family made of a clip, with `kind` and `values`. Its vectors and levels then count both.
        """
        assert self.vision is not None and self.bridge is not None, "a model without eyes must override encode"
        levels = self.vision(pixels)
        vectors = self.bridge(levels)
        named = {"vision": levels[-1], "bridge": vectors}
        return Encoded(vectors, {name: as_map(level) for name, level in named.items() if is_square(level)})

    def gather(self, encoded: Encoded, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """Vectors of the pictures and of the candidates: the user's boxes [n, 4], then the model's own proposals."""
        boxes = torch.zeros(0, 4) if boxes is None else boxes.float()
        owners = torch.zeros(len(boxes), dtype=torch.long) if owners is None else owners.long()
        if self.proposer is not None:
            proposed, of = self.proposer(encoded.levels)
            boxes, owners = torch.cat((boxes, proposed.float().cpu())), torch.cat((owners, of.long().cpu()))
        vectors = None if self.regions is None else self.regions(encoded.levels, boxes, owners)
        images = () if encoded.vectors is None else tuple(encoded.vectors)
        return Seen(images, boxes, owners, vectors, encoded.levels, encoded.kept)

    def gather_drawn(self, encoded: Encoded, boxes: torch.Tensor, owners: torch.Tensor, drawn: Sequence[Any]) -> Seen:
        """`gather`, for an engine that knows how each region was `drawn` (geometry.Region, in the fitted unit square).

        A family that looks at more than their boxes overrides this one too.
        """
        return self.gather(encoded, boxes, owners)

    def fill(self, slot: SlotLike, seen: Seen, tokenize: Tokenize) -> torch.Tensor:
        """Vectors [n, C] that stand in a prompt's slot. `tokenize` is for families whose slots hold words as well.

        The same slot and the same `seen` must always give the same vectors: the engine keeps what it has read from turn
        to turn.
        """
        if slot.kind in ("image", "video", "sound"):
            if slot.index >= len(seen.images):
                raise ValueError(f"The talk names picture {slot.index + 1}, but there are {len(seen.images)}: add it.")
            return seen.images[slot.index]
        if slot.kind == "region" and seen.regions is not None:
            if slot.index >= len(seen.regions):
                raise ValueError(f"The talk names region {slot.index + 1}, but there are {len(seen.regions)}: draw it.")
            vectors = seen.regions if slot.index < 0 else seen.regions[slot.index]
            return vectors.reshape(-1, vectors.shape[-1])
        raise ValueError(f"This model has nothing for a slot of kind {slot.kind!r}: write the region as text.")

    def locate(self, states: torch.Tensor, seen: Seen, picture: int) -> Located:
        """What the head finds on a picture for states [K, C], one a mark. Asked once, when the answer has ended."""
        raise NotImplementedError(f"{type(self).__name__} names head_marks and must say what its head does with them")

    def beside(self, slot: SlotLike, seen: Seen) -> Any:
        """What `told` must know of a slot beside its vectors."""
        return None

    def told(self, parts: Sequence[int | PartLike], start: int) -> Mapping[str, Any]:
        """What the language model is told beside the vectors of `parts[start:]`, of a talk that it read up to there:
        nothing, unless it counts positions otherwise than one by one.
        """
        return {}

    def room(self, length: int, context: int) -> int:
        """How many tokens an answer may have to a prompt of `length` positions, where `context` are read at most."""
        return context - length

    def allowed(
        self, logits: torch.Tensor, written: Sequence[int], read: Sequence[int | PartLike] = ()
    ) -> torch.Tensor:
        """Logits [V] by which the next token of an answer is chosen, behind its ids so far and the prompt that was
        read: -inf where a rule of the authors' forbids one.
        """
        return logits

    def attention(self, inputs: torch.Tensor, start: int, tokens: Sequence[int], columns: slice) -> torch.Tensor:
        """How much the positions `columns` were attended to while an answer's `tokens` (numbers) were written:
        [len(columns)]. inputs [1, T, C]: the finished talk, whose answer begins at `start`.
        """
        # The position that writes a token is the one before it.
        return attention(self.language, inputs, [start + number - 1 for number in tokens], columns)

    def embed(self, ids: torch.Tensor | list[int]) -> torch.Tensor:
        """Token ids [n] -> vectors [n, C]."""
        table = self.language.get_input_embeddings()
        return table(torch.as_tensor(ids, dtype=torch.long, device=self.device))

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """Rows and columns of a picture's `tokens` vectors, where they are a map but no square one."""
        return None

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        """Values [T], one for each vector of a picture, as a map [h, w] over the fitted picture; ValueError where they
        are none.
        """
        return laid(values, self.grid(len(values)))

    @property
    def device(self) -> torch.device:
        """Where the language model reads its input."""
        return self.language.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in."""
        return self.language.get_input_embeddings().weight.dtype

    @property
    def context(self) -> int:
        """How many positions the language model can read."""
        return int(getattr(self.language.config, "max_position_embeddings", None) or 1 << 30)


def is_square(level: torch.Tensor) -> bool:
    """Whether [B, T, C] is a square map row by row, or [B, C, h, w] a map already."""
    return level.ndim == 4 or math.isqrt(level.shape[1]) ** 2 == level.shape[1]


def as_map(level: torch.Tensor) -> torch.Tensor:
    """[B, T, C], row by row over a square, as [B, C, side, side]; a map [B, C, h, w] as it is."""
    if level.ndim == 4:
        return level
    return level.transpose(1, 2).unflatten(2, (math.isqrt(level.shape[1]), -1))
