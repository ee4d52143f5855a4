"""The layout of LLaVA's checkpoints, which its descendants keep: config keys, names, frames, box texts, tasks.

Source: haotian-liu/LLaVA (Liu et al. 2023) and its forks. What one of them does otherwise stands in its own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from mmchat.dialect import Scene
from mmchat.family import Dialect
from mmchat.geometry import Frame, Placement, Region
from mmchat.nets import tiles
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, ClipTower
from mmchat.prompt import Piece, Task

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

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
    if str(ratio).startswith("anyres"):
        raise ValueError(
            f"image_aspect_ratio is {ratio} in config.json, which is LLaVA 1.6's, but this family sees no tiles: "
            "open it as llava"
        )
    way = "pad" if ratio == "pad" else "crop"
    return Frame(tower_sizes(config)["image_size"], way, (122, 116, 104), CLIP_MEAN, CLIP_STD)


@dataclass(frozen=True)
class Views(Frame):
    """A picture as a whole, squashed, and beneath it in tiles, centred on black on the best of the `offered` sizes.

    Its numbers are those of the plain square, padded around the picture. `cells`: patches along a tile's side; `digits`
    as in `tiles.margins`; `alone`: a picture among others is the plain square and nothing more.
    """

    offered: tuple[tuple[int, int], ...] = ()
    cells: int = 24
    digits: int | None = None
    alone: bool = False

    @staticmethod
    def of(plain: Frame, offered: Sequence[tuple[int, int]], cells: int, **more: Any) -> Views:
        """The frame whose square is `plain`, with tiles of its side. more: `digits`, `alone`."""
        own = {field.name: getattr(plain, field.name) for field in fields(Frame)}
        return Views(**own, offered=tuple(offered), cells=cells, **more)

    def among(self, pictures: int) -> Frame:
        if pictures < 2 or not self.alone:
            return self
        return Frame(**{field.name: getattr(self, field.name) for field in fields(Frame)})

    def fit(self, image: Image.Image) -> tuple[np.ndarray, Placement]:
        """float32 [3, side + height + 1, width + 1] and the placement in the padded square.

        The last column, beside the tiles, is 1 in rows of patches that the picture reaches and 0 in its padding, the
        last row so in columns: what is padding follows from the picture's size, which the tiles do not show.
        """
        import numpy as np  # kept off the path of the dialects

        width, height = tiles.best_resolution(image.size, self.offered)
        out = np.zeros((3, self.side + height + 1, width + 1), np.float32)
        each = Frame(self.side, "squash", mean=self.mean, std=self.std)
        whole, *cut = tiles.views(image, self.offered, self.side)
        out[:, : self.side, : self.side] = each.fit(whole)[0]
        for number, tile in enumerate(cut):
            row, column = divmod(number, width // self.side)
            top, left = (row + 1) * self.side, column * self.side
            out[:, top : top + self.side, left : left + self.side] = each.fit(tile)[0]
        rows, columns = (length // self.side * self.cells for length in (height, width))
        down, across = tiles.margins(image.size, (rows, columns), self.digits)
        out[:, self.side : -1, -1] = _reached(height, rows, down)
        out[:, -1, :-1] = _reached(width, columns, across)
        return out, self.place(image.size)


def _reached(pixels: int, cells: int, margin: int) -> np.ndarray:
    """1 for each of `pixels` that lies in one of `cells`, 0 in a margin at either end."""
    import numpy as np  # kept off the path of the dialects

    cell = np.arange(pixels) * cells // pixels
    return ((cell >= margin) & (cell < cells - margin)).astype(np.float32)


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The region's box (unit square of the fitted picture) as the training texts write it: two decimals at most, 0.40
    as 0.4.
    """
    return (re.sub(r"(\.\d)0(?!\d)", r"\1", dialect.write((region.box,), None, scene)),)
