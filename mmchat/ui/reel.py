"""A video or a sound beside the pictures: its player, and a strip on which an answer's stretches of time are drawn.

The browser's half is assets/reel.js. A file that a visitor brings is opened once to see that it can be, and again, with
its frames kept, when a question is asked about it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from pydantic import model_validator

from mmchat.clip import Clip, open_clip
from mmchat.ui.canvas import digest_of, typed_html

KINDS = ("video", "sound")


class Reel(GradioModel):
    """A clip as given, what it is, its length in seconds, a digest that tells it from others."""

    file: FileData | None = None
    kind: str = ""
    seconds: float = 0.0
    key: str = ""

    @model_validator(mode="before")
    @classmethod
    def nothing(cls, value: Any) -> Any:
        """A player without a clip sends an empty string."""
        return value or {}


def player(**kwargs: Any) -> gr.HTML:
    """The player and the strip. Its value is a `Reel` or None."""
    return typed_html(Reel, ("reel.js",), html_template='<div class="mm-reel"></div>', **kwargs)


def reel_of(path: str | Path, name: str | None = None) -> Reel:
    """A file with a video or a sound. ValueError, with cause and remedy, where it cannot be read."""
    key = digest_of(path)
    clip = opened(str(path), key)
    return Reel(
        file=FileData(path=str(path), orig_name=name or Path(path).name), kind=clip.kind, seconds=clip.seconds, key=key
    )


def checked(reel: Reel | None, takes: frozenset[str]) -> Reel | None:
    """The reel with kind, length and digest of our own: what came from a browser is its word. None where the open
    model takes nothing of its kind.
    """
    if reel is None or reel.file is None:
        return None
    found = reel_of(reel.file.path, reel.file.orig_name)
    return found if found.kind in takes else None


@lru_cache(maxsize=2)
def opened(path: str, key: str) -> Clip:
    """The clip in a file with that digest; the last two are kept, for whoever asks about one asks again."""
    return open_clip(path)
