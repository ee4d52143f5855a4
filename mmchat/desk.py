"""The desk knows the order of the verbs (fit, see, render, speak, read; trace to look inside) and what is kept between questions."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from mmchat.dialect import Dropped, Span
from mmchat.family import Engine, Limits
from mmchat.prompt import Turn


@dataclass(frozen=True)
class Ask:
    """A question: the talk's pictures (upright RGB), its turns (the last one is the user's), a task of the family's template or None."""

    images: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]
    task: str | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class Answer:
    """An answer so far. Places are in the unit square of the upright original; scores[i][j] is the confidence of spans[i].places[j] or None."""

    text: str
    raw: str
    spans: tuple[Span, ...] = ()
    scores: tuple[tuple[float | None, ...], ...] = ()
    dropped: tuple[Dropped, ...] = ()
    done: bool = False
    notes: tuple[tuple[str, object], ...] = ()  # encoder_runs, prefilled_tokens, new_tokens, hints ...


class Desk:
    """One open model, a lock, the last pictures seen. Made with an engine; imports none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(self, ask: Ask) -> Iterator[Answer]:
        """Answers that grow; the last has done=True. Closing the iterator stops the model at the next token."""
        raise NotImplementedError

    def heat(self, ask: Ask, answer: Answer | None, what: str, about: object = None) -> Image.Image:
        """The (last) picture under a heat map `what`, one of the family's `heats`."""
        raise NotImplementedError
