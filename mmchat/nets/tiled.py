"""A picture seen in tiles and as a whole, on one canvas: the torch half, from the canvas to vectors and maps.

What InternVL and SmolVLM share. The language model reads the tiles row by row, then the whole; heat maps are those of
the tiles joined, and what the whole says of a place counts as much as what its tile says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets.model import Encoded, Model, Seen
from mmchat.nets.native import Speaker
from mmchat.nets.tiles import joined

ONCE = 4  # views that the tower sees at a time: thirteen at once would double the memory that a small model takes


class Tiled(Model):
    """The slots of a model whose pictures come as canvases of squares of `side` pixels, `most` tiles at most.

    `cells`: how many vectors stand for each square.
    """

    def __init__(
        self, language: Speaker, vision: nn.Module, bridge: nn.Module, side: int, cells: int, most: int
    ) -> None:
        super().__init__(language, vision, bridge)
        self.side, self.cells = side, cells
        self.picture_tokens = cells * (most + 1 if most > 1 else 1)

    def encode(self, pixels: torch.Tensor | Sequence[torch.Tensor]) -> Encoded:
        """Canvases [3, H, W], each of its own size; of each is kept its grid (across, down)."""
        vectors, features, bridged, grids = zip(*map(self.viewed, pixels), strict=True)
        return Encoded(vectors, {"vision": features, "bridge": bridged}, grids)

    def viewed(self, canvas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]:
        """A canvas [3, H, W] -> vectors [T, C]; the tower's features and the bridge's vectors as maps [c, h, w] of the
        tiles joined; the grid (across, down).
        """
        views, (across, down) = squares(canvas, self.side)
        seen = []
        for some in views.split(ONCE):
            levels = self.vision(some)
            seen.append((levels[-1], self.bridge(levels)))
        features, vectors = (torch.cat(parts) for parts in zip(*seen, strict=True))
        maps = [joined(level[: across * down], (across, down)) for level in (features, vectors)]
        return vectors.flatten(0, 1), *maps, (across, down)

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        """The mean of what the tiles' vectors and those of the whole picture say of a place."""
        across, down = seen.kept[picture]
        each = values.float().unflatten(0, (-1, self.cells, 1))
        fine = joined(each[: across * down], (across, down))
        if across * down == 1:
            return fine[0]
        whole = joined(each[across * down :], (1, 1))
        return (fine + F.interpolate(whole[None], fine.shape[1:], mode="bilinear")[0])[0] / 2


def squares(canvas: torch.Tensor, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """A canvas [3, H, W] as its squares [V, 3, side, side], the tiles row by row and behind several the whole picture,
    and the grid of tiles (across, down).
    """
    alone = canvas.shape[1] == side
    below = canvas if alone else canvas[:, side:]
    across, down = below.shape[2] // side, below.shape[1] // side
    tiles = below.reshape(3, down, side, across, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return (tiles if alone else torch.cat((tiles, canvas[None, :, :side, :side]))), (across, down)


def shuffled(level: torch.Tensor, factor: int) -> torch.Tensor:
    """Square maps [V, n * n, C] with factor x factor cells made one: [V, n * n / factor**2, C * factor**2].

    Those cells stand one behind the other, row by row ("pixel shuffle", the other way round).
    """
    views, count, channels = level.shape
    rows = round(count**0.5) // factor
    cells = level.reshape(views, rows, factor, rows, factor, channels).transpose(2, 3)
    return cells.reshape(views, rows * rows, factor * factor * channels)
