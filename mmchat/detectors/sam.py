"""SAM and SAM 2: masks of what points and boxes show; the picture is seen once, however many prompts there are.

Kirillov et al. 2023, arXiv 2304.02643 (checkpoints facebook/sam-vit-base, -large, -huge); Ravi et al. 2024, arXiv
2408.00714 (facebook/sam2.1-hiera-tiny and its kin, whose memory of videos is left aside). SAM brings the long side to
1024 pixels and pads at the end, SAM 2 squashes to a square.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.detectors import Cutout, Record, pictures
from mmchat.geometry import Box, Mask, Point, open_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Prompt:
    """What shows one thing: points in the unit square with as many labels (1 on it, 0 beside it), a box, or both.

    `logits` [1, h, w]: the small mask of an earlier `Cutout`, to be made better.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    logits: torch.Tensor | None = None


def build(config: Mapping[str, Any]) -> nn.Module:
    """The library's network of a published config.json, parameters yet to be loaded."""
    from transformers import SamConfig, SamModel

    return SamModel(SamConfig.from_dict(dict(config)))


def build_two(config: Mapping[str, Any]) -> nn.Module:
    """The same for SAM 2; of a config for videos the part for pictures."""
    from transformers import Sam2Config, Sam2Model

    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    return Sam2Model(Sam2Config.from_dict({part: config[part] for part in parts if part in config}))


def ready(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> Segmenter:
    """The callable."""
    return Segmenter(model, folder, squash=not str(config.get("model_type")) == "sam")


class Segmenter:
    """Cuts out what prompts show. The last picture's features are kept."""

    def __init__(self, model: nn.Module, folder: Path, squash: bool) -> None:
        given = pictures.settings(folder)
        self.model, self.squash = model, squash
        self.side: int = model.config.prompt_encoder_config.image_size
        self.colours = pictures.colours(given, pictures.IMAGENET)
        self._seen: tuple[str, Any] = ("", None)

    def __call__(self, image: Any, prompts: Sequence[Prompt]) -> tuple[Cutout, ...]:
        """The best mask of each prompt. image: what `open_image` takes.

        A single point may mean a thing or a part of it: of three masks the one that the model thinks best is taken. A
        box, more points or an earlier mask say enough: one mask. ValueError, with the remedy, for a prompt that shows
        nothing or numbers out of range.
        """
        for number, prompt in enumerate(prompts, 1):
            _check(prompt, number)
        image = open_image(image)
        with torch.inference_mode():
            features = self.see(image)
            return tuple(self._cut(image, features, prompt) for prompt in prompts)

    def see(self, image: Image.Image) -> Any:
        """Features of an upright RGB picture; those of the last one are not computed again."""
        key = f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
        if self._seen[0] != key:
            small = pictures.normal(pictures.resized(image, *self.fitted(image.size)), self.colours)
            padded = F.pad(small, (0, self.side - small.shape[3], 0, self.side - small.shape[2]))
            self._seen = (key, self.model.get_image_embeddings(padded.to(self.model.device)))
        return self._seen[1]

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the picture as it is seen, padding aside; the library's rounding."""
        if self.squash:
            return self.side, self.side
        scale = self.side * 1.0 / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def _cut(self, image: Image.Image, features: Any, prompt: Prompt) -> Cutout:
        width, height = self.fitted(image.size)
        device = self.model.device
        given: dict[str, Any] = {}
        if prompt.points:
            places = [[[[point.x * width, point.y * height] for point in prompt.points]]]
            given["input_points"] = torch.tensor(places, device=device)
            given["input_labels"] = torch.tensor([[prompt.labels]], dtype=torch.int, device=device)
        if prompt.box is not None:
            given["input_boxes"] = torch.tensor([[prompt.box.pixels((width, height))]], device=device)
        if prompt.logits is not None:
            given["input_masks"] = prompt.logits[None].to(device)
        alone = len(prompt.points) == 1 and len(given) == 2
        out = self.model(image_embeddings=features, multimask_output=alone, **given)
        scores = out.iou_scores[0, 0]
        best = int(scores.argmax())
        logits = out.pred_masks[0, 0, best]
        large = logits[None, None].float()
        if not self.squash:
            large = F.interpolate(large, (self.side, self.side), mode="bilinear", align_corners=False)
            large = large[..., :height, :width]
        large = F.interpolate(large, image.size[::-1], mode="bilinear", align_corners=False)
        return Cutout(Mask.from_array((large[0, 0] > 0).cpu().numpy()), float(scores[best]), logits[None].clone())


def _check(prompt: Prompt, number: int) -> None:
    if not prompt.points and prompt.box is None:
        raise ValueError(f"Prompt {number} shows nothing: give a point or a box.")
    if len(prompt.labels) != len(prompt.points) or not set(prompt.labels) <= {0, 1}:
        raise ValueError(f"Prompt {number} needs a label for each point: 1 on the thing, 0 beside it.")
    inside = all(0 <= point.x <= 1 and 0 <= point.y <= 1 for point in prompt.points)
    if not inside or (prompt.box is not None and (prompt.box.area <= 0 or prompt.box.clipped() != prompt.box)):
        raise ValueError(f"Prompt {number} lies outside the picture or has no area: places are in its unit square.")


_TWO = Record(
    "sam", "SAM 2", "Cuts out what points and boxes show.", "Apache 2.0, code and weights.", "masks", build_two, ready,
    drop=(
        r"^memory_", r"^mask_downsample", r"^object_pointer_proj", r"^temporal_positional_encoding_projection_layer",
        r"no_memory_positional_encoding", r"no_object_pointer", r"occlusion_spatial_embedding_parameter",
    ),
)  # fmt: skip
RECORDS = {
    "sam": Record("sam", "SAM", _TWO.about, _TWO.licence, "masks", build, ready),
    "sam2": _TWO,
    "sam2_video": _TWO,
}
