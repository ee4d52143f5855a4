"""Pictures of the user's for the marks of a talk: the finished talk is read once more, and its marks search the index.

For families with `retrieves`. Their model says how: `rows(pixels)` for pictures, `states(inputs)` and
`likeness(states, rows)` for a talk, `mark_id` for the mark, `makers` for the weights that rows depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmchat.engines.tokens import Tokens
from mmchat.family import Family, Picture
from mmchat.nets import retrieval


class Searching:
    """A model's index in its checkpoint's folder, read when it is first needed and again when it has changed."""

    def __init__(self, family: Family, config: Mapping[str, Any], model: Any, tokens: Tokens, folder: Path) -> None:
        self.family, self.config, self.model = family, config, model
        self.file = folder / retrieval.FILE
        self.mark: int = model.mark_id
        if tokens.token(family.retrieves) != self.mark:
            raise ValueError(
                f"{family.retrieves} is token {tokens.token(family.retrieves)} of the tokenizer and token {self.mark} "
                f"of the checkpoint in {folder}: give it the tokenizer of its own language model."
            )
        self._known: tuple[str, retrieval.Library] | None = None
        self._maker = ""

    @property
    def maker(self) -> str:
        """The name of the weights that rows are made with."""
        self._maker = self._maker or retrieval.maker_of(self.model.makers)
        return self._maker

    def library(self) -> retrieval.Library:
        """The index as it is now; ValueError, with the remedy, where there is none or it is not this model's."""
        if not self.file.is_file():
            raise ValueError(
                "The model asks for a picture of yours here, and it has no index of them: run `python -m mmchat index "
                "FOLDER --model NAME`."
            )
        now = retrieval.stamp(self.file)
        if self._known is None or self._known[0] != now:
            self._known = now, retrieval.read(self.file, self.maker)
        return self._known[1]

    @property
    def state(self) -> str:
        """How many pictures can be found, or how they become so: one sentence."""
        if not self.file.is_file():
            return "No pictures of yours are known to it yet: run `python -m mmchat index FOLDER --model NAME`."
        try:
            count = len(self.library())
        except ValueError as error:
            return str(error)
        return f"It answers with {'one picture' if count == 1 else f'the best of {count} pictures'} of yours."

    @torch.inference_mode()
    def found(
        self, inputs: torch.Tensor, marks: list[tuple[int, int]], most: int
    ) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
        """At most `most` pictures for each of the marks (position in inputs [1, T, C], place in the text), and
        sentences where there are none.
        """
        if not marks or not most:
            return (), ()
        try:
            library = self.library()
        except ValueError as error:
            return (), (str(error),)
        likeness = self.model.likeness(self.model.states(inputs)[0, [at for at, _ in marks]], library.rows).float()
        shelf = retrieval.Shelf(library, retrieval.readable)
        out = [
            Picture(place, library.paths[index], row[index].item())
            for (_, place), row in zip(marks, likeness.cpu(), strict=True)
            for index in shelf.best(row, most)
        ]
        lost = "None of the pictures that fit can be opened any more: run `python -m mmchat index FOLDER` again."
        return tuple(out), () if out else (lost,)

    def build(self, folder: Path, tell: retrieval.Tell) -> retrieval.Library:
        """The index of the pictures under `folder`, in the place of an older one."""
        frame = self.family.frame(self.config)

        @torch.inference_mode()
        def embed(images: list[Image.Image]) -> torch.Tensor:
            pixels = torch.from_numpy(np.stack([frame.fit(image)[0] for image in images]))
            return self.model.rows(pixels.to(self.model.device, self.model.dtype))

        return retrieval.build(folder, self.file, embed, self.maker, tell)
