"""Regions in plain torch: features of boxes (RoIAlign), of points, and the thinning of overlapping boxes (NMS).

Places are in the unit square of the picture that the feature map covers; boxes are (x0, y0, x1, y1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def roi_align(
    maps: torch.Tensor,
    boxes: torch.Tensor,
    owners: torch.Tensor | None = None,
    size: int | tuple[int, int] = 7,
    samples: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    """Features of boxes: maps [N, C, H, W], boxes [K, 4], owners [K] (which map; the first by default) -> [K, C, h, w].

    Each cell of the h x w grid laid over a box is the mean of samples x samples bilinear samples (He et al. 2017, Mask
    R-CNN). A sample up to one pixel outside takes the edge's value, one further out counts as 0: so do torchvision and
    mmcv. `aligned` puts pixel centres at half-integers; without it (the older form) boxes lie half a pixel further down
    and right and are at least one pixel wide.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    count, height, width = len(boxes), maps.shape[-2], maps.shape[-1]
    owners = torch.zeros(count, dtype=torch.long, device=maps.device) if owners is None else owners.to(maps.device)
    scale = torch.tensor((width, height, width, height), device=maps.device)
    pixels = boxes.to(maps.device).float() * scale - (0.5 if aligned else 0.0)
    start, extent = pixels[:, :2], pixels[:, 2:] - pixels[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    x = _steps(start[:, 0], extent[:, 0], columns, samples)
    y = _steps(start[:, 1], extent[:, 1], rows, samples)
    sampled = _bilinear(maps, owners, x, y)  # [K, C, rows * samples, columns * samples]
    return F.avg_pool2d(sampled, samples) if count else maps.new_zeros(0, maps.shape[1], rows, columns)


def nms(boxes: torch.Tensor, scores: torch.Tensor, most_overlap: float = 0.5) -> torch.Tensor:
    """Indices of the boxes [K, 4] that stay, best first; each drops those that overlap it by more (IoU)."""
    order = scores.argsort(descending=True, stable=True)
    overlap = iou(boxes[order], boxes[order])
    kept: list[int] = []
    gone = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    for index in range(len(order)):
        if not gone[index]:
            kept.append(index)
            gone |= overlap[index] > most_overlap
    return order[kept]


def iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each box with each: [K, 4], [L, 4] -> [K, L]; 0 where neither has an area."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (one, other)]
    union = area[0][:, None] + area[1][None] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def sample_points(maps: torch.Tensor, points: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Features at points: maps [N, C, H, W], points [N, K, 2] (x, y) -> [N, K, C]; zero outside.

    Pixel centres at half-integers; with `align_corners` 0 and 1 are the centres of the outermost pixels.
    """
    grid = 2 * points[:, :, None].to(maps.dtype) - 1
    return F.grid_sample(maps, grid, align_corners=align_corners)[..., 0].transpose(1, 2)


def _steps(start: torch.Tensor, extent: torch.Tensor, cells: int, samples: int) -> torch.Tensor:
    """Positions [K, cells * samples] of the samples along one axis, in pixels."""
    middle = (torch.arange(cells * samples, device=start.device) + 0.5) / (cells * samples)
    return start[:, None] + extent[:, None] * middle


def _bilinear(maps: torch.Tensor, owners: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values [K, C, len(y), len(x)] of each box's own map at the grid of its positions."""
    height, width = maps.shape[-2:]

    def along(positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        inside = (positions >= -1) & (positions <= length)
        positions = positions.clamp(0, length - 1)
        low = positions.floor().long()
        return low, (low + 1).clamp(max=length - 1), positions - low, inside

    y0, y1, fy, in_y = along(y, height)
    x0, x1, fx, in_x = along(x, width)
    own = owners[:, None, None]

    def at(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return maps[own, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [K, C, rows, columns]

    fx, fy = fx[:, None, None, :].to(maps.dtype), fy[:, None, :, None].to(maps.dtype)
    top = at(y0, x0) * (1 - fx) + at(y0, x1) * fx
    bottom = at(y1, x0) * (1 - fx) + at(y1, x1) * fx
    inside = (in_y[:, :, None] & in_x[:, None, :])[:, None]
    return (top * (1 - fy) + bottom * fy) * inside
