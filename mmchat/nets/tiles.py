"""Pictures cut into tiles (LLaVA 1.6's "anyres"): which grid, which pixels, and how the tiles' vectors come together
again.

Source: haotian-liu/LLaVA, llava/mm_utils.py and llava/model/llava_arch.py; sizes are (width, height), maps (rows,
columns), as each name says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from mmchat.picture import squashed

Size = tuple[int, int]
MERGES = ("flat", "spatial", "spatial_unpad")


def pinpoints(written: str | Sequence[Sequence[int]], side: int = 0) -> list[Size]:
    """The resolutions (width, height) a checkpoint offers, from its config: a list, a text that shows one, or a text
    "(1x1),...,(6x6)", every grid of tiles of `side` pixels from the first to the last one named.
    """
    if not isinstance(written, str):
        return [(int(width), int(height)) for width, height in written]
    if grids := [(int(across), int(down)) for across, down in re.findall(r"\((\d+)x(\d+)\)", written)]:
        (left, top), (right, bottom) = grids[0], grids[-1]
        return [(i * side, j * side) for i in range(left, right + 1) for j in range(top, bottom + 1)]
    return [(int(width), int(height)) for width, height in re.findall(r"[\[(]\s*(\d+)\s*,\s*(\d+)\s*[\])]", written)]


def best_resolution(size: Size, offered: Sequence[Size]) -> Size:
    """The offered resolution that keeps most of the picture's pixels, and of those the one that wastes least; the first
    of equals.
    """
    width, height = size

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(offered, key=merit)


def grid(size: Size, offered: Sequence[Size], side: int) -> tuple[int, int]:
    """How many tiles (across, down) a picture of `size` becomes."""
    width, height = best_resolution(size, offered)
    return width // side, height // side


def views(image: Image.Image, offered: Sequence[Size], side: int) -> list[Image.Image]:
    """The whole picture squashed to a square, then its tiles row by row, cut from the picture centred on black."""
    target_width, target_height = best_resolution(image.size, offered)
    across, down = target_width / image.width, target_height / image.height
    if across < down:
        inner = (target_width, min(math.ceil(image.height * across), target_height))
    else:
        inner = (min(math.ceil(image.width * down), target_width), target_height)
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    canvas.paste(image.resize(inner), ((target_width - inner[0]) // 2, (target_height - inner[1]) // 2))
    corners = [(left, top) for top in range(0, target_height, side) for left in range(0, target_width, side)]
    tiles = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
    return [squashed(image, side), *tiles]


def margins(size: Size, cells: tuple[int, int], digits: int | None = None) -> tuple[int, int]:
    """How many rows above and below, and columns left and right, of a map of `cells` (rows, columns) are padding where
    a picture of `size` is centred on it. digits: transformers rounds to 7 of them before it rounds down.
    """
    rows, columns = cells
    width, height = size

    def whole(length: float) -> int:
        return int(length if digits is None else round(length, digits))

    if width / height > columns / rows:
        return (rows - whole(height * (columns / width))) // 2, 0
    return 0, (columns - whole(width * (rows / height))) // 2


def without(map_CHW: torch.Tensor, cut: tuple[int, int]) -> torch.Tensor:
    """A map [C, rows, columns] less its `margins`."""
    rows, columns = map_CHW.shape[-2:]
    return map_CHW[:, cut[0] : rows - cut[0], cut[1] : columns - cut[1]]


def unpadded(map_CHW: torch.Tensor, size: Size) -> torch.Tensor:
    """The part of a map [C, rows, columns] that a picture of `size` covers when centred on it."""
    return without(map_CHW, margins(size, (map_CHW.shape[-2], map_CHW.shape[-1])))


def joined(tiles_VTC: torch.Tensor, tiling: tuple[int, int]) -> torch.Tensor:
    """Vectors [tiles, T, C] of square tiles, row by row of `tiling` (across, down), as one map [C, rows, columns]."""
    across, down = tiling
    side = math.isqrt(tiles_VTC.shape[1])
    # [down, across, side, side, C] -> [C, down * side, across * side]
    return tiles_VTC.view(down, across, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)


def shrunk_to(cells: tuple[int, int], most: float | None) -> tuple[int, int]:
    """Rows and columns of a map of `cells`, made smaller where it has more than 1.21 times `most`, as "anyres_max_9"
    has it; None: as they are.
    """
    times = math.sqrt(cells[0] * cells[1] / most) if most else 0.0
    return (int(cells[0] // times), int(cells[1] // times)) if times > 1.1 else cells


def shrunk(map_CHW: torch.Tensor, most: float | None) -> torch.Tensor:
    """A map [C, rows, columns] at the size that `shrunk_to` gives."""
    cells = (map_CHW.shape[-2], map_CHW.shape[-1])
    wanted = shrunk_to(cells, most)
    return map_CHW if wanted == cells else F.interpolate(map_CHW[None], wanted, mode="bilinear")[0]


def merged(
    vectors_VTC: torch.Tensor,
    cut: tuple[int, int],
    tiling: tuple[int, int],
    how: str = "flat",
    newline_C: torch.Tensor | None = None,
    most: float | None = None,
) -> torch.Tensor:
    """Vectors [views, T, C] of the whole picture and its tiles (across, down) -> [T', C] for the language model.

    "flat": one after the other. "spatial": the whole, then the tiles' rows as one big map. "spatial_unpad": the same,
    without the margins `cut`, `shrunk` to `most` cells, and with `newline_C` behind every row.
    """
    if how not in MERGES:
        raise ValueError(f"no way {how!r} to merge tiles: choose one of {', '.join(MERGES)}")
    if how == "flat":
        return vectors_VTC.flatten(0, 1)
    whole, tiles = vectors_VTC[0], vectors_VTC[1:]
    if how == "spatial":
        # The original lays the tiles' rows down band by band, which is the same order.
        return torch.cat((whole, joined(tiles, tiling).flatten(1).T)) if len(tiles) else whole
    if newline_C is None:
        raise ValueError(
            "merging tiles without their padding needs the checkpoint's image_newline, which was not loaded"
        )
    if not len(tiles):
        return torch.cat((whole, newline_C[None]))
    big = shrunk(without(joined(tiles, tiling), cut), most)
    big = torch.cat((big, newline_C[:, None, None].expand(-1, big.shape[1], 1)), -1)
    return torch.cat((whole, big.flatten(1).T))


# Views of INF-LLaVA (Lin et al. 2024): maps [B, rows, columns, C] in pieces [n * n, B, rows / n, columns / n, C],
# as tiles or as every n-th place, and back.


def cut(map_BHWC: torch.Tensor, n: int) -> torch.Tensor:
    """Tiles, row by row."""
    batch, rows, columns, channels = map_BHWC.shape
    pieces = map_BHWC.reshape(batch, n, rows // n, n, columns // n, channels)
    return pieces.permute(1, 3, 0, 2, 4, 5).flatten(0, 1)


def pasted(pieces: torch.Tensor, n: int) -> torch.Tensor:
    """The map whose tiles these are."""
    _, batch, rows, columns, channels = pieces.shape
    grid = pieces.reshape(n, n, batch, rows, columns, channels).permute(2, 0, 3, 1, 4, 5)
    return grid.reshape(batch, n * rows, n * columns, channels)


def strided(map_BHWC: torch.Tensor, n: int) -> torch.Tensor:
    """Every n-th place, by the row and then the column where a view begins."""
    batch, rows, columns, channels = map_BHWC.shape
    pieces = map_BHWC.reshape(batch, rows // n, n, columns // n, n, channels)
    return pieces.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)


def interleaved(pieces: torch.Tensor, n: int) -> torch.Tensor:
    """The map whose every n-th places these are."""
    _, batch, rows, columns, channels = pieces.shape
    grid = pieces.reshape(n, n, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    return grid.reshape(batch, n * rows, n * columns, channels)


def enlarged(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [B, 3, H, W] as squares of `side`: bicubic, without antialiasing, in float32, as the original does."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    out = F.interpolate(pictures.float(), (side, side), mode="bicubic", align_corners=False)
    return out.to(pictures.dtype)


def all_views(pictures: torch.Tensor, side: int, n: int = 3) -> torch.Tensor:
    """The 2 n * n + 1 views [views, B, 3, side, side] that the original hands to its tower: tiles, strides, thumbnail.

    In the order of the original; with n 3, `few_views` are those that its result depends on.
    """
    large = enlarged(pictures, n * side).permute(0, 2, 3, 1)
    views = torch.cat((cut(large, n), strided(large, n))).permute(0, 1, 4, 2, 3)
    return torch.cat((views, enlarged(pictures, side)[None]))


def few_views(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The nine tiles and the view of every third pixel that begins at 1, 1: [10, B, 3, side, side]."""
    large = enlarged(pictures, 3 * side)
    tiles = cut(large.permute(0, 2, 3, 1), 3).permute(0, 1, 4, 2, 3)
    return torch.cat((tiles, large[None, :, :, 1::3, 1::3]))
