"""Draw over a picture: boxes, points, outlines, masks, labels, each phrase in its colour; heat where the model saw it.

supervision and OpenCV take seconds to import and are needed only when something is drawn: they are imported inside the
functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from mmchat.geometry import Box, Mask, Place, Placement, Point, Polygon, Region, outline

if TYPE_CHECKING:
    import supervision as sv

# One colour a phrase, in this order, on the page and on painted pictures. Each stands out at least 3 : 1 from white and
# from near-black;
# neighbours in the order differ for eyes that do not tell red from green.
PALETTE = (
    "#2f7ddb", "#d9700f", "#0f9378", "#c44fa8", "#a3820a", "#7d6bd6", "#d64545", "#1592b5", "#6a8f1f", "#a8694a",
)  # fmt: skip


class Phrases(Protocol):
    """What is painted of an answer."""

    @property
    def text(self) -> str: ...

    @property
    def spans(self) -> Sequence[Any]: ...


def colour(index: int) -> str:
    """The colour (#rrggbb) of the phrase with that number, counted from 0."""
    return PALETTE[index % len(PALETTE)]


def answer(image: Image.Image, answered: Phrases) -> Image.Image:
    """The places of every phrase over an upright picture, labelled with the phrase."""
    return places(image, [(answered.text[span.start : span.end], span.places) for span in answered.spans])


def regions(image: Image.Image, drawn: Sequence[Region]) -> Image.Image:
    """A user's regions over an upright picture, labelled @1, @2 ..."""
    return places(image, [(f"@{number}", (region.place,)) for number, region in enumerate(drawn, 1)])


def places(image: Image.Image, groups: Sequence[tuple[str, Sequence[Place]]]) -> Image.Image:
    """Groups of a label and its places (unit square of the picture) over a picture; the k-th has the k-th colour."""
    import supervision as sv  # takes two seconds: only when something is drawn

    scene = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])  # supervision draws in BGR on arrays
    palette = sv.ColorPalette.from_hex(list(PALETTE))
    thickness = max(2, sv.calculate_optimal_line_thickness(image.size))
    scale = max(0.4, min(2.0, sv.calculate_optimal_text_scale(image.size)))
    for place, index in _each(groups, (Mask, Polygon)):
        scene = _surface(scene, place, palette.by_idx(index), thickness)
    found = [(place, index) for place, index in _each(groups, (Box,))]
    if found:
        detections, lookup = _detections(found, image.size)
        annotator = sv.BoxAnnotator(color=palette, thickness=thickness, color_lookup=sv.ColorLookup.INDEX)
        scene = annotator.annotate(scene, detections, custom_color_lookup=lookup)
    found = [(place, index) for place, index in _each(groups, (Point,))]
    if found:
        detections, lookup = _detections(found, image.size)
        dots = sv.DotAnnotator(
            color=palette, radius=3 * thickness, color_lookup=sv.ColorLookup.INDEX, outline_thickness=max(1, thickness
            // 2), outline_color=sv.Color.WHITE,
        )  # fmt: skip
        scene = dots.annotate(scene, detections, custom_color_lookup=lookup)
    scene = _labels(scene, groups, palette, scale)
    return Image.fromarray(np.ascontiguousarray(scene[:, :, ::-1]))


def _each(groups: Sequence[tuple[str, Sequence[Place]]], kinds: tuple[type, ...]) -> list[tuple[Place, int]]:
    return [(place, index) for index, (_, some) in enumerate(groups) for place in some if isinstance(place, kinds)]


def _detections(found: Sequence[tuple[Place, int]], size: tuple[int, int]) -> tuple[sv.Detections, np.ndarray]:
    """Detections in pixels and, for each, the index of its colour."""
    import supervision as sv  # see places

    corners = np.array([outline(place).pixels(size) for place, _ in found], dtype=float).reshape(-1, 4)
    lookup = np.array([index for _, index in found], dtype=int)
    return sv.Detections(xyxy=corners, class_id=lookup % len(PALETTE)), lookup


def _surface(scene: np.ndarray, place: Place, tint: sv.Color, thickness: int) -> np.ndarray:
    """A mask or an outline: filled lightly, its edge drawn."""
    import supervision as sv  # see places

    height, width = scene.shape[:2]
    if isinstance(place, Polygon):
        corners = np.array([[point.x * width, point.y * height] for point in place.points]).round().astype(np.int32)
        scene = sv.draw_filled_polygon(scene, corners, color=tint, opacity=0.35)
        return sv.draw_polygon(scene, corners, color=tint, thickness=thickness)
    assert isinstance(place, Mask)
    cells = Image.fromarray(place.array()).resize((width, height), Image.Resampling.NEAREST)
    mask = np.asarray(cells).astype(bool)[None]
    detections = sv.Detections(xyxy=np.array([place.box.pixels((width, height))], dtype=float), mask=mask)
    fill = sv.MaskAnnotator(color=tint, opacity=0.45, color_lookup=sv.ColorLookup.INDEX)
    edge = sv.PolygonAnnotator(color=tint, thickness=thickness, color_lookup=sv.ColorLookup.INDEX)
    return edge.annotate(fill.annotate(scene, detections), detections)


def _labels(
    scene: np.ndarray, groups: Sequence[tuple[str, Sequence[Place]]], palette: sv.ColorPalette, scale: float
) -> np.ndarray:
    """One label at the first place of each group that has words."""
    import supervision as sv  # see places

    named = [(some[0], index, " ".join(label.split())[:60]) for index, (label, some) in enumerate(groups) if some]
    named = [(place, index, label) for place, index, label in named if label]
    if not named:
        return scene
    detections, lookup = _detections([(place, index) for place, index, _ in named], (scene.shape[1], scene.shape[0]))
    labels = sv.LabelAnnotator(
        color=palette, color_lookup=sv.ColorLookup.INDEX, text_scale=scale, text_thickness=max(1, round(scale * 1.5)),
        text_padding=max(3, round(8 * scale)), text_color=sv.Color.WHITE, smart_position=len(named) < 40,
    )  # fmt: skip
    return labels.annotate(scene, detections, labels=[label for _, _, label in named], custom_color_lookup=lookup)


def heat(image: Image.Image, values: np.ndarray, placement: Placement, strength: float = 0.6) -> Image.Image:
    """A small map over the fitted picture laid over the upright original; what lay in padding is cut off.

    values: float [h, w] in 0..1 (painted with OpenCV's inferno colours), or [h, w, 3] RGB in 0..1. Between the centres
    of its cells it is interpolated linearly. strength: 0 shows the picture alone, 1 the map alone.
    """
    import cv2  # only when heat is painted

    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] != 3):
        raise ValueError(f"A heat map is [height, width] or [height, width, 3], not {list(values.shape)}.")
    large = np.clip(_laid(np.nan_to_num(values.astype(np.float32)), image.size, placement), 0, 1)
    levels = (large * 255).round().astype(np.uint8)
    if levels.ndim == 2:
        levels = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return Image.blend(image.convert("RGB"), Image.fromarray(levels), strength)


def _laid(values: np.ndarray, size: tuple[int, int], placement: Placement) -> np.ndarray:
    """The map at every pixel of the original: it is linear along each axis, so two thin matrices do it at any size."""
    width, height = size
    down = _weights(height, values.shape[0], placement.scale[1], placement.offset[1])
    across = _weights(width, values.shape[1], placement.scale[0], placement.offset[0])
    if values.ndim == 2:
        return down @ values @ across.T
    return np.stack([down @ values[:, :, channel] @ across.T for channel in range(3)], axis=-1)


def _weights(pixels: int, cells: int, scale: float, offset: float) -> np.ndarray:
    """float32 [pixels, cells]: how much each cell counts at the centre of each pixel of the original."""
    where = ((np.arange(pixels) + 0.5) / pixels * scale + offset) * cells - 0.5
    where = np.clip(where, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(where[:, None] - np.arange(cells)[None, :])).astype(np.float32)
