"""The layout of LLaVA's checkpoints, which its descendants keep: config keys, parameter names, frame, box texts, tasks.

Source: haotian-liu/LLaVA (Liu et al. 2023) and its forks. What one of them does otherwise stands in its own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmchat.dialect import Scene
from mmchat.family import Dialect
from mmchat.geometry import Frame, Region
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, ClipTower
from mmchat.prompt import Piece, Task

KEYS = (
    # CLIP inside the checkpoint, in a folder of its own, or as the tower's class saves itself.
    (r"^(?:model\.)?(?:vision_tower\.){0,2}vision_model\.", "vision."),
    (r"^model\.mm_projector\.(weight|bias)$", r"bridge.0.\1"),  # a projector of one layer has no number
    (r"^model\.mm_projector\.", "bridge."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^(model|lm_head)\.", r"language.\1."),
)
# Old Llama files carry the rotary table; CLIP's own folder carries the text half too.
DROP = (
    r"rotary_emb\.inv_freq$",
    r"embeddings\.position_ids$",
    r"^text_model\.",
    r"^(visual|text)_projection\.",
    r"^logit_scale$",
)

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture", "Describe this image in detail.", needs=""),
    Task(
        "find",
        "Find what I name",
        "Please provide the bounding box coordinate of the region this sentence describes: {text}.",
    ),
    Task("region", "Describe my region", "Please provide a short description for this region: {text}.", needs="region"),
)


def select_layers(written: str | int | Sequence[int]) -> int | list[int]:
    """The hidden states that `mm_vision_select_layer` names: a number, a list, or a text ("-2", "list-22/-17/-12").
    ValueError otherwise.
    """
    try:
        if isinstance(written, int):
            return written
        if not isinstance(written, str):
            return [int(layer) for layer in written]
        if written.startswith("list"):
            return [int(layer) for layer in written.removeprefix("list").split("/")]
        return int(written)
    except (ValueError, TypeError):
        raise ValueError(
            f"mm_vision_select_layer is {written!r} in the checkpoint's config.json: "
            "write a number, a list of numbers, or list-22/-17/-2"
        ) from None


def tower_sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The CLIP tower's own config: `vision_config` where the loader found one, else CLIP-L/14 at 336, which nearly all
    name.
    """
    sizes = config.get("vision_config") or CLIP_LARGE
    return sizes.get("vision_config", sizes)


def tower(config: Mapping[str, Any]) -> ClipTower:
    """The CLIP tower with the hidden states and tokens that the config selects."""
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(
            f"mm_vision_select_feature is {feature!r} in the checkpoint's config.json: patch and cls_patch are known"
        )
    select = select_layers(config.get("mm_vision_select_layer", -2))
    return ClipTower(tower_sizes(config), select, class_token=feature == "cls_patch")


def frame(config: Mapping[str, Any]) -> Frame:
    """A centred square filled with CLIP's mean colour; without `image_aspect_ratio: pad` short side and centre crop, as
    the original does.
    """
    ratio = config.get("image_aspect_ratio")
    if ratio == "anyres":
        raise ValueError(
            "this is a LLaVA 1.6 checkpoint (image_aspect_ratio anyres), whose tiles the chat does not show: "
            "open a 1.5 checkpoint"
        )
    way = "pad" if ratio == "pad" else "crop"
    return Frame(tower_sizes(config)["image_size"], way, (122, 116, 104), CLIP_MEAN, CLIP_STD)


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The region's box (unit square of the fitted picture) as the training texts write it: two decimals at most, 0.40
    as 0.4.
    """
    return (re.sub(r"(\.\d)0(?!\d)", r"\1", dialect.write((region.box,), None, scene)),)
