"""What fits together: one `ValueError` with the sizes for whatever does not, before any back end touches memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Pairs = Sequence[tuple[int, int]]


def pairs(spatial_shapes: torch.Tensor | Pairs) -> tuple[tuple[int, int], ...]:
    given = spatial_shapes.tolist() if isinstance(spatial_shapes, torch.Tensor) else list(spatial_shapes)
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given)
    ):
        raise ValueError(f"spatial_shapes must hold a (height, width) for each level, got {given}")
    shapes = tuple((int(height), int(width)) for height, width in given)
    if any(height < 1 or width < 1 for height, width in shapes):
        raise ValueError(f"every level must be at least one place high and wide, got {shapes}")
    return shapes


def check(
    value: torch.Tensor,
    shapes: Pairs,
    places: torch.Tensor,
    shares: torch.Tensor,
    where: str = "locations",
    how: str = "weights",
) -> None:
    if value.dim() != 4 or places.dim() != 6 or shares.dim() != 5:
        raise ValueError(
            f"expected value [N,S,M,D], {where} [N,Q,M,L,P,2] and {how} [N,Q,M,L,P], "
            f"got {list(value.shape)}, {list(places.shape)} and {list(shares.shape)}"
        )
    batch, length, heads, _ = value.shape
    if length != sum(height * width for height, width in shapes):
        raise ValueError(f"value has {length} places, but the levels {shapes} hold {sum(h * w for h, w in shapes)}")
    if places.shape[:5] != shares.shape or places.shape[5] != 2:
        raise ValueError(f"{where} {list(places.shape)} and {how} {list(shares.shape)} do not name the same samples")
    if (places.shape[0], places.shape[2], places.shape[3]) != (batch, heads, len(shapes)):
        raise ValueError(
            f"{where} {list(places.shape)} do not fit {batch} pictures, {heads} heads and {len(shapes)} levels"
        )
    if not all(tensor.is_floating_point() for tensor in (value, places, shares)):
        raise ValueError(f"value, {where} and {how} must be floating point")
    if not value.device == places.device == shares.device:
        raise ValueError(
            f"value, {where} and {how} must lie on one device, got {value.device}, {places.device}, {shares.device}"
        )


def check_reference(
    value: torch.Tensor, shapes: Pairs, points: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None
) -> None:
    batch, queries = offsets.shape[:2]
    fits = points.dim() == 4 and points.shape[0] in (1, batch) and points.shape[1] == queries
    if not fits or points.shape[2] not in (1, len(shapes)) or points.shape[3] not in (2, 4):
        raise ValueError(
            f"reference points {list(points.shape)} must be [1 or {batch}, {queries}, 1 or {len(shapes)}, 2 or 4]: "
            "points hold 2 numbers, boxes 4"
        )
    if not points.is_floating_point() or points.device != value.device:
        raise ValueError("reference points must be floating point and on the device of the value")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != value.shape[:2] or mask.device != value.device):
        raise ValueError(
            f"the mask must be bool {list(value.shape[:2])} on {value.device}, got {mask.dtype} {list(mask.shape)} on "
            f"{mask.device}"
        )
