"""Ferret: LLaVA's parts and a sampler that makes one vector of a region of any shape; boxes as numbers in the text.

You et al. 2023, arXiv 2310.07704, github.com/apple/ml-ferret. Published as what must be added to Vicuna 1.3
(ferret-7b-delta, ferret-13b-delta); CLIP's tower in a folder of its own. A region goes in twice: as numbers, and as the
vector that the sampler makes of CLIP's map, which is read at the transposed place as the weights were trained to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Frame, Region
from mmchat.layout import DROP, KEYS, tower, tower_sizes
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model, Seen
from mmchat.nets.sampler import RegionSampler
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD
from mmchat.nets.weights import Part
from mmchat.prompt import Piece, Slot, Task, Template
from mmchat.templates import TEMPLATES

Size = tuple[int, int]
WINDOW = 5  # pixels on each side of a point that belong to it
STROKE = 2 * WINDOW + 1  # width of a drawn line in pixels: the original takes what its brush has painted

SHOWN = "Tell me the coordinates in response."
TASKS = (
    Task("free", "Ask freely"),
    Task("shown", "Ask, and see where", f"{{text}} {SHOWN}"),
    Task("describe", "Describe the picture with places", f"Describe this image in detail. {SHOWN}", needs=""),
    Task("find", "Find what I name", "What is the location of {text} in the image?"),
    Task("several", "Find several things", "What are the locations of {text}?"),
    Task("region", "Name my region", "What is the class of object {text}?", needs="region"),
)


class Ferret(Model):
    """LLaVA's slots. `regions` reads the tower's own map, not what the bridge makes of it."""

    regions: RegionSampler

    def __init__(self, config: Mapping[str, Any]) -> None:
        width, language_width = config["mm_hidden_size"], config["hidden_size"]
        bridge = LastLevel(*projector(config.get("mm_projector_type", "linear"), width, language_width))
        regions = RegionSampler(width, language_width, pool=config.get("sampler_pooler_mode", "max"))
        super().__init__(llama(config), tower(config), bridge, regions)

    def gather(self, encoded: Encoded, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """Boxes as if drawn on the fitted picture."""
        boxes = torch.zeros(0, 4) if boxes is None else boxes.float()
        owners = torch.zeros(len(boxes), dtype=torch.long) if owners is None else owners.long()
        size = (self.vision.side, self.vision.side)
        return self._sampled(encoded, boxes, owners, [area(within(box, size), size) for box in boxes.tolist()])

    def gather_drawn(
        self, encoded: Encoded, boxes: torch.Tensor, owners: torch.Tensor, drawn: Sequence[Region]
    ) -> Seen:
        """Regions in the shape in which they were drawn, in pixels of the picture that they were drawn on."""
        square = (self.vision.side, self.vision.side)
        return self._sampled(encoded, boxes, owners, [shape(region, region.size or square) for region in drawn])

    def _sampled(
        self, encoded: Encoded, boxes: torch.Tensor, owners: torch.Tensor, masks: Sequence[torch.Tensor]
    ) -> Seen:
        levels = encoded.levels["vision"]
        vectors = [self.regions(levels[owner], mask) for owner, mask in zip(owners.tolist(), masks, strict=True)]
        made = torch.stack(vectors) if vectors else None
        return Seen(tuple(encoded.vectors), boxes, owners, made, encoded.levels, encoded.kept)


def area(corners: Sequence[int], size: Size) -> torch.Tensor:
    """Pixels of a box (x0, y0, x1, y1: both ends belong to it) or of the window around a point (x, y), cut to the
    picture of `size` (width, height): bool [width, height], x first.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    x0, y0, x1, y1 = corners if len(corners) == 4 else [*(v - WINDOW for v in corners), *(v + WINDOW for v in corners)]
    mask[max(0, x0) : max(0, x1 + 1), max(0, y0) : max(0, y1 + 1)] = True
    return mask


def within(corners: Sequence[float], size: Size) -> list[int]:
    """Numbers (x, y, ...) in the unit square as pixels of a picture of `size`; the far edge is the last pixel."""
    return [min(int(value * size[axis % 2] + 1e-6), size[axis % 2] - 1) for axis, value in enumerate(corners)]


def shape(region: Region, size: Size) -> torch.Tensor:
    """Pixels of a drawn region on a picture of `size`: bool [width, height], x first. Never empty.

    A point is the window around it, a line what a brush would paint along it; an outline and a mask are what they
    cover.
    """
    if region.kind == "point":
        return area(within((region.points[0].x, region.points[0].y), size), size)
    box = region.box
    whole = area(within((box.x0, box.y0, box.x1, box.y1), size), size)
    if region.kind == "box":
        return whole
    painted = whole & (covered(region, size) if region.mask is not None else painted_on(region, size))
    return painted if painted.any() else whole


def covered(region: Region, size: Size) -> torch.Tensor:
    """A mask's cells as pixels of a picture of `size`, each the cell that its centre lies in."""
    assert region.mask is not None
    cells = torch.from_numpy(region.mask.array().T.copy())
    rows, columns = (
        ((torch.arange(length) + 0.5) / length * count).long() for length, count in zip(size, cells.shape, strict=True)
    )
    return cells[rows][:, columns]


def painted_on(region: Region, size: Size) -> torch.Tensor:
    """A drawn line, or a filled outline, as pixels of a picture of `size`."""
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("1", size)
    draw = ImageDraw.Draw(canvas)
    points = [(point.x * size[0], point.y * size[1]) for point in region.points]
    if region.kind == "polygon":
        draw.polygon(points, fill=1)
    else:
        draw.line(points, fill=1, width=STROKE, joint="curve")
    return torch.from_numpy(np.array(canvas).T.copy())


class Tight(Template):
    """What stands behind a region's vector begins without blanks: the tokenizer that the model was trained with takes
    them away around a mark that was added to it.
    """

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        pieces = super().lay_out(messages)
        behind = [False, *(isinstance(piece, Slot) and piece.kind == "region" for piece in pieces)]
        return tuple(
            piece.lstrip() if after and isinstance(piece, str) else piece
            for piece, after in zip(pieces, behind, strict=False)
        )


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square; numbers are relative to its own width and height."""
    return Frame(tower_sizes(config)["image_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """[x, y] of a point, the box of anything else, and behind it the region's vector."""
    places = region.points[:1] if region.kind == "point" else (region.box,)
    return (dialect.write(places, None, scene), Slot("region", number - 1))


_PLAIN = TEMPLATES["ferret_v1"]
FAMILY = Family(
    name="ferret",
    title="Ferret",
    about="Answers about a point, a box, a line or any shape that you draw, and says with boxes what it talks about.",
    template=Tight(_PLAIN.system, _PLAIN.user, _PLAIN.assistant, stop=_PLAIN.stop, tasks=TASKS),
    dialect=DIALECTS["ferret"],
    frame=frame,
    build=Ferret,
    mention=mention,
    keys=((r"^model\.region_geo_sampler\.", "regions."), *KEYS),
    drop=DROP,
    parts=(
        Part(
            "base_model", "Vicuna 1.3", usual="vicuna-7b-v1.3", way="delta",
            alone=(r"^bridge\.", r"^regions\.", r"^vision\."),
        ),
    ),
    takes=frozenset({"box", "point", "scribble", "polygon", "mask"}),
    keep=("vision", "bridge", "regions", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    licence="Code under Apple's sample code licence; weights CC BY-NC 4.0, made from LLaMA: research only.",
    dwarf={
        "model_type": "ferret", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "region_geo_sampler": True, "sampler_pooler_mode": "max", "image_aspect_ratio": "square_nocrop",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
