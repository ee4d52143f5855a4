"""The frame of models that see a picture in tiles and as a whole: one canvas that holds both.

`geometry.Frame` in the way "tiles" fits the tiles alone. The whole picture is resized from another source than they are
joined from, so it cannot be made of them and travels on the same canvas; `nets.tiled` takes the canvas apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmchat.geometry import Fit, Frame, Placement

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Tiled(Frame):
    """A picture squashed onto a grid of squares of `side` pixels; where they are several, the whole of it above them.

    Of one tile the canvas is that tile. Of several it is `side` pixels higher than the grid, and the whole picture,
    squashed to a square, stands at its top left. Places are relative to the grid: the picture's own unit square.

    longest 0: `geometry.tiling` chooses the grid, and everything is resized from the picture itself (InternVL). Else
    the picture is first brought to that many pixels on its longer side, then to the next multiples of `side`, and the
    whole is resized from that (Idefics3 and SmolVLM).
    """

    way: Fit = "tiles"
    longest: int = 0

    def place(self, size: tuple[int, int]) -> Placement:
        if not self.longest:
            return super().place(size)
        width, height = _longest(size, self.longest)
        ratio = width / height
        if width >= height:
            width = _up(width, self.side)
            height = _up(int(width / ratio), self.side)
        else:
            height = _up(height, self.side)
            width = _up(int(height * ratio), self.side)
        return Placement(size, (width, height), (1.0, 1.0), (0.0, 0.0))

    def fitted(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        from PIL import Image  # kept off the path of the dialects

        placement, filter_ = self.place(image.size), Image.Resampling[self.resample.upper()]
        if self.longest:
            image = image.resize(_longest(image.size, self.longest), filter_)
        grid = image.resize(placement.fitted, filter_)
        width, height = placement.fitted
        if (width, height) == (self.side, self.side):
            return grid, placement
        canvas = Image.new("RGB", (width, self.side + height))
        canvas.paste((grid if self.longest else image).resize((self.side, self.side), filter_), (0, 0))
        canvas.paste(grid, (0, self.side))
        return canvas, placement


def _longest(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`size` with its longer side brought to `longest` pixels and the other made even, as the library's processor has
    it.
    """
    width, height = size
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return longest, max(1, other + other % 2)
    other = int(longest * ratio)
    return max(1, other + other % 2), longest


def _up(length: int, side: int) -> int:
    """The next multiple of `side`, at least one."""
    return max(1, math.ceil(length / side)) * side
