"""Places on a picture, and the one object that fits a picture to a model and maps places in and back.

Everywhere inside the program a place lives in the unit square of the *upright* original picture: x to the right, y down,
(0, 0) the top left corner of the top left pixel, (1, 1) the bottom right corner of the last pixel. Pixels exist only at the
program's edge (command line, page, export), model numbers only inside a dialect.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Pixels = tuple[float, float, float, float]
Fit = Literal["squash", "pad", "pad_end", "crop"]


@dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle, corners (x0, y0) and (x1, y1) in the unit square, x0 <= x1 and y0 <= y1 by construction of readers."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Point:
    """A single place (x, y) in the unit square."""

    x: float
    y: float


@dataclass(frozen=True)
class Polygon:
    """A closed outline, three points or more, in the unit square."""

    points: tuple[Point, ...]


Place = Box | Point | Polygon


@dataclass(frozen=True)
class Region:
    """What a user drew: a kind, its bounding box, and for the other kinds the points; `image` counts the talk's pictures from 0."""

    kind: Literal["box", "point", "scribble", "polygon", "mask"]
    box: Box
    points: tuple[Point, ...] = ()
    mask: tuple[int, ...] | None = None  # run lengths of a row-major mask, zeros first
    image: int = 0


@dataclass(frozen=True)
class Placement:
    """Where the upright original lies in the fitted picture: a scale and an offset per axis, in unit squares.

    `size` (width, height) of the original in pixels, `fitted` of the fitted picture.
    """

    size: tuple[int, int]
    fitted: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def into(self, place: Place) -> Place:
        """From the unit square of the original to that of the fitted picture."""
        raise NotImplementedError

    def back(self, place: Place) -> Place:
        """From the unit square of the fitted picture to that of the original (not clipped)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Frame:
    """How a model wants its picture: side in pixels, way of fitting, fill colour, normalisation.

    `fit` returns the picture as float32 [3, side, side], RGB, (value / 255 - mean) / std, and its Placement.
    """

    side: int
    way: Fit = "pad"
    fill: tuple[int, int, int] = (122, 116, 104)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def fit(self, image: Image.Image) -> tuple[np.ndarray, Placement]:
        raise NotImplementedError


def open_image(source: object) -> Image.Image:
    """A path, bytes, file object or PIL picture as upright RGB; ValueError with cause and remedy for what is no usable picture."""
    raise NotImplementedError
