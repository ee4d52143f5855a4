"""A picture seen as a whole and in tiles ("anyres"): the torch half, from one canvas to vectors and maps.

After haotian-liu/LLaVA (llava/model/llava_arch.py) and LLaVA-VL/LLaVA-NeXT, whose "anyres_max_9" shrinks what becomes
too long. `layout.Views` lays the canvas out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.nets import tiles
from mmchat.nets.model import Encoded, Model, Seen

ONCE = 8  # views that the tower sees at a time


@dataclass(frozen=True)
class Laid:
    """How a picture's vectors lie: `tiling` (across, down), the margins `cut` off the tiles' map (rows, columns), what
    is left of it as `cells` (rows, columns; 0 where a picture is too thin for one).
    """

    tiling: tuple[int, int]
    cut: tuple[int, int]
    cells: tuple[int, int]


class Anyres(Model):
    """The common slots, and how a picture's views come together.

    `offered`: resolutions (width, height) in pixels; none: pictures are single squares. `how`: one of `tiles.MERGES`;
    `most`: how many tiles' worth of vectors the tiles may become. The tower has a `side` and a `grid`.
    """

    def __init__(
        self,
        language: nn.Module,
        vision: nn.Module,
        bridge: nn.Module,
        width: int,
        offered: Sequence[tuple[int, int]] = (),
        how: str = "flat",
        most: int | None = None,
    ) -> None:
        super().__init__(language, vision, bridge)
        if how not in tiles.MERGES:
            raise ValueError(f"mm_patch_merge_type is {how!r} in config.json: {', '.join(tiles.MERGES)} are known")
        self.offered, self.how = tuple(offered), how
        self.most = most * vision.grid[0] ** 2 if most and "unpad" in how else None  # cells of the tiles' map
        self.image_newline = nn.Parameter(torch.zeros(width)) if "unpad" in how else None

    def encode(self, pixels: torch.Tensor | Sequence[torch.Tensor]) -> Encoded:
        """Squares [B, 3, side, side], or canvases (one tensor, or a list of different sizes) as `layout.Views` lays
        them out.
        """
        side = self.vision.side
        if isinstance(pixels, torch.Tensor) and pixels.shape[-2:] == (side, side):
            encoded = super().encode(pixels)
            if not self.offered or self.image_newline is None:
                return encoded
            # A picture of one view, of a model that sees several: it ends with a newline, too.
            ended = [torch.cat((one, self.image_newline[None])) for one in encoded.vectors]
            return Encoded(ended, encoded.levels, [None] * len(ended))
        vectors, features, bridged, laid = zip(*map(self.viewed, pixels), strict=True)
        return Encoded(vectors, {"vision": features, "bridge": bridged}, laid)

    def viewed(self, canvas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Laid]:
        """A canvas [3, side + height + 1, width + 1] -> vectors [T, C]; over the square that the picture is centred in
        the tower's features and the bridge's vectors [c, n, n]; how they lie.
        """
        side, cells = self.vision.side, self.vision.grid[0]
        below = canvas[:, side:-1, :-1]
        down, across = below.shape[1] // side, below.shape[2] // side
        cut = below.reshape(3, down, side, across, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
        margins = self._margin(canvas[0, side:-1, -1], down * cells), self._margin(canvas[0, -1, :-1], across * cells)
        features, vectors = self.looked(torch.cat((canvas[None, :, :side, :side], cut)))
        out = tiles.merged(vectors, margins, (across, down), self.how, self.image_newline, self.most)
        left = (down * cells - 2 * margins[0], across * cells - 2 * margins[1])
        laid = Laid((across, down), margins, tiles.shrunk_to(left, self.most))
        return out, self._over(features, laid), self._over(vectors, laid), laid

    def tiled(self, views: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Vectors [T, C] of one picture of `size` (width, height), given its views [1 + tiles, 3, side, side]
        (`tiles.views`).
        """
        across, down = tiles.grid(size, self.offered, self.vision.side)
        cells = self.vision.grid[0]
        cut = tiles.margins(size, (down * cells, across * cells))
        return tiles.merged(self.looked(views)[1], cut, (across, down), self.how, self.image_newline, self.most)

    def looked(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views [V, 3, side, side] -> the tower's last level [V, T, c] and the bridge's vectors [V, T, C]."""
        seen = []
        for some in views.split(ONCE):
            levels = self.vision(some)
            seen.append((levels[-1], self.bridge(levels)))
        features, vectors = zip(*seen, strict=True)
        return torch.cat(features), torch.cat(vectors)

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        """The mean of what the whole picture's vectors and those of its tiles say of a place."""
        if not seen.kept:
            return super().spread(values, seen, picture)
        laid: Laid | None = seen.kept[picture]
        count = self.vision.grid[0] ** 2
        if laid is None:
            return values[:count].float().unflatten(0, self.vision.grid)
        whole, rest = self._whole(values[:count, None].float(), laid.cells), values[count:].float()
        if 0 in laid.cells or not len(rest):
            return self._square(whole)[0]
        if self.how == "spatial_unpad":
            rows, columns = laid.cells
            fine = rest.reshape(1, rows, columns + 1)[..., :-1]  # the newlines are no place
        elif self.how == "spatial":
            down, across = laid.tiling[1] * self.vision.grid[0], laid.tiling[0] * self.vision.grid[1]
            fine = tiles.without(rest.reshape(1, down, across), laid.cut)
        else:
            fine = tiles.without(tiles.joined(rest.reshape(-1, count, 1), laid.tiling), laid.cut)
        return self._square((whole + fine) / 2)[0]

    @property
    def picture_tokens(self) -> int:
        """The most vectors that a picture becomes."""
        side, cells = self.vision.side, self.vision.grid[0]
        longest = 0
        for width, height in self.offered:
            rows, columns = tiles.shrunk_to((height // side * cells, width // side * cells), self.most)
            longest = max(longest, rows * (columns + ("unpad" in self.how)))
        return cells * cells + longest

    def _margin(self, kept: torch.Tensor, cells: int) -> int:
        """Cells of padding on each side, of an edge's pixels that are 1 where the picture lies."""
        centres = ((torch.arange(cells, device=kept.device) + 0.5) * len(kept) / cells).long()
        return (cells - int((kept[centres] > 0.5).sum())) // 2

    def _over(self, level: torch.Tensor, laid: Laid) -> torch.Tensor:
        """A level [V, T, c] as a map [c, n, n] over the square that the picture is centred in."""
        fine = self._whole(level[0], laid.cells)
        if 0 not in laid.cells:
            fine = tiles.shrunk(tiles.without(tiles.joined(level[1:], laid.tiling), laid.cut), self.most)
        return self._square(fine)

    def _whole(self, vectors: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        """The whole picture's vectors [T, c], which are squashed, in its shape: [c, rows, columns]."""
        level = vectors.T.unflatten(1, self.vision.grid)[None]
        rows, columns = max(1, cells[0]), max(1, cells[1])
        fewer = (min(rows, level.shape[2]), min(columns, level.shape[3]))
        means = F.adaptive_avg_pool2d(level.float(), fewer)
        return F.interpolate(means, (rows, columns), mode="bilinear")[0].to(level.dtype)

    def _square(self, level: torch.Tensor) -> torch.Tensor:
        """[c, rows, columns] in the middle of [c, n, n]; the padding says what the picture's edge says."""
        rows, columns = level.shape[1:]
        side = max(rows, columns)
        up, left = (side - rows) // 2, (side - columns) // 2
        around = (left, side - columns - left, up, side - rows - up)
        return F.pad(level[None], around, mode="replicate")[0]
