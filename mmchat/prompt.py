"""A talk becomes words and slots. Prompts are built from pieces and never searched for marks: what a user types stays text."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmchat.geometry import Region


@dataclass(frozen=True)
class Turn:
    """One turn of a talk. `text` may say @1, @2 ... (counted over `regions` of the whole talk). `images`: indices of pictures shown with it."""

    role: Literal["user", "assistant"]
    text: str
    regions: tuple[Region, ...] = ()
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A place in the prompt for vectors: "image" index, "region" index (-1: all candidates), "clue" (about `text`, the turn's own words)."""

    kind: Literal["image", "region", "clue"]
    index: int = 0
    text: str = ""


Piece = str | Slot
