"""Pictures as the library's image processors prepare them: resized in 8 bits, brought to 0..1, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmchat.nets.files import read_json
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from PIL import Image

IMAGENET, CLIP = (IMAGENET_MEAN, IMAGENET_STD), (CLIP_MEAN, CLIP_STD)
Colours = tuple[Sequence[float], Sequence[float]]  # mean and deviation of the three channels
FILE = "preprocessor_config.json"
LARGEST = 4096  # pixels: a side above this is no size that a detector was trained at


def settings(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its pictures; empty where it says nothing."""
    path = folder / FILE
    return read_json(path) if path.is_file() else {}


def colours(given: Mapping[str, Any], usual: Colours) -> Colours:
    """Mean and deviation of the channels; ValueError where they are none."""
    mean, deviation = given.get("image_mean", usual[0]), given.get("image_std", usual[1])
    for three in (mean, deviation):
        numbers = isinstance(three, Sequence) and len(three) == 3 and all(type(one) in (int, float) for one in three)
        if not numbers or (three is deviation and min(three) <= 0):
            raise ValueError(f"{FILE} gives no mean and deviation of three channels: download it again.")
    return tuple(mean), tuple(deviation)


def size(given: Mapping[str, Any], **usual: int) -> tuple[int, ...]:
    """The numbers of the entry "size" by name, as many as there are usual ones; ValueError where they are none."""
    stated = given.get("size", usual)
    found = tuple(stated.get(name) for name in usual) if isinstance(stated, Mapping) else ()
    if not found or not all(type(number) is int and 0 < number <= LARGEST for number in found):
        raise ValueError(f"{FILE} gives no size with {' and '.join(usual)} of 1 to {LARGEST}: download it again.")
    return found


def resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], bilinear with antialiasing."""
    from PIL import Image as images

    return np.asarray(image.resize((width, height), images.Resampling.BILINEAR))


def normal(values: np.ndarray, by: Colours) -> torch.Tensor:
    """[h, w, 3] in 0..1, or uint8, as float32 [1, 3, h, w] less the mean, over the deviation."""
    values = values.astype(np.float32) * np.float32(1 / 255) if values.dtype == np.uint8 else values
    values = (values - np.asarray(by[0], np.float32)) / np.asarray(by[1], np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
