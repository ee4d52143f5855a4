"""Ferret: LLaVA's parts and a sampler that makes one vector of a region of any shape; boxes as numbers in the text.

You et al. 2023, arXiv 2310.07704, github.com/apple/ml-ferret. Published as what must be added to Vicuna 1.3
(ferret-7b-delta, ferret-13b-delta); CLIP's tower in a folder of its own. A region goes in twice: as numbers, and as the
vector that the sampler makes of CLIP's map, which is read at the transposed place as the weights were trained to.

Two relatives differ by their config.json. Ferret-UI (the same repository; Vicuna, Llama 3 or Gemma speaks) also looks
at tiles of the picture stretched to the best of a few shapes, and regions are read from the sum of both maps. Ferret-v2
(arXiv 2404.07973) looks at the tiles with DINOv2 behind a projector of its own; its code and weights are not public.

Not verified: no numbers of Ferret-UI's tiles are recorded, they follow its code; of v2 there is the paper's description
alone, and the entries `local_vision_config`, `local_side` and the names under `vision.local` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Box, Frame, Place, Placement, Region
from mmchat.layout import DROP, KEYS, tower, tower_sizes
from mmchat.nets import tiles
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import gemma, llama
from mmchat.nets.model import Encoded, Model, Seen, as_map
from mmchat.nets.sampler import RegionSampler
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from mmchat.nets.weights import Part
from mmchat.prompt import Mention, Piece, Slot, Task, Template, Turn
from mmchat.templates import TEMPLATES

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Size = tuple[int, int]
WINDOW = 5  # pixels on each side of a point that belong to it
STROKE = 2 * WINDOW + 1  # width of a drawn line in pixels: the original takes what its brush has painted

# What DINOv2 was trained with, and the shapes in tiles that v2's paper lists (across, down), with their transposes.
SHAPES = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 2), (2, 3))


def tasks(shown: str = " Tell me the coordinates in response.") -> tuple[Task, ...]:
    """Ways of asking; `shown` is added where places are wanted."""
    return (
        Task("free", "Ask freely"),
        Task("shown", "Ask, and see where", f"{{text}}{shown}"),
        Task("describe", "Describe the picture with places", f"Describe this image in detail.{shown}", needs=""),
        Task("find", "Find what I name", "What is the location of {text} in the image?"),
        Task("several", "Find several things", "What are the locations of {text}?"),
        Task("region", "Name my region", "What is the class of object {text}?", needs="region"),
    )


class Local(nn.Module):
    """v2's second tower: DINOv2 over tiles, without its class token, and the projector of its vectors."""

    def __init__(self, config: Mapping[str, Any], language_width: int) -> None:
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        self.tower = Dinov2Model(Dinov2Config(**config))
        self.projector = nn.Sequential(*projector("mlp2x_gelu", config["hidden_size"], language_width))

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """views [n, 3, side, side] -> features [n, T, c] and the language model's vectors [n, T, C]."""
        level = self.tower(views).last_hidden_state[:, 1:]
        return level, self.projector(level)


class Ferret(Model):
    """LLaVA's slots. `regions` reads the tower's own map, not what the bridge makes of it."""

    regions: RegionSampler

    def __init__(self, config: Mapping[str, Any]) -> None:
        width, language_width = config["mm_hidden_size"], config["hidden_size"]
        bridge = LastLevel(*projector(config.get("mm_projector_type", "linear"), width, language_width))
        regions = RegionSampler(width, language_width, pool=config.get("sampler_pooler_mode", "max"))
        speaker = gemma(config) if config.get("model_type") == "ferret_gemma" else llama(config)
        super().__init__(speaker, tower(config), bridge, regions)
        self.tile, self.merge = tile(config), config.get("mm_patch_merge_type", "flat")
        if self.tile and self.merge not in ("flat", "spatial"):
            raise ValueError(f"mm_patch_merge_type is {self.merge!r} in config.json: Ferret knows flat and spatial")
        # Gemma's table of words gives larger vectors than it holds: whatever else it reads must be as large.
        self.scale = math.sqrt(language_width) if config.get("model_type") == "ferret_gemma" else 1.0
        if config.get("local_vision_config"):
            self.vision.local = Local(config["local_vision_config"], language_width)

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """pixels [B, 3, side, side]; with tiles one picture as `Views` lays it out. ValueError for several of those."""
        if not self.tile:
            encoded = super().encode(pixels)
            return replace(encoded, vectors=encoded.vectors * self.scale)
        if len(pixels) != 1:
            raise ValueError(f"Ferret with tiles sees one picture, not {len(pixels)}: start a new talk for another.")
        vectors, level = self.viewed(pixels[0])
        return Encoded(vectors[None] * self.scale, {"vision": level[None]})

    def viewed(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A picture as `Views` lays it out -> vectors [T, C] and the map [c, h, w] that regions are read from.

        The whole picture's vectors come first. "spatial": then the tiles' as one map, row by row; regions are read from
        that map plus the whole picture's, each of its cells over several. "flat": tile by tile, and regions are read
        from the whole picture's map alone.
        """
        side = self.vision.side
        level = self.vision(views[None, :, :side, :side])[-1]
        whole, vectors = as_map(level)[0], self.bridge((level,))[0]
        down, across = (views.shape[1] - side) // self.tile, views.shape[2] // self.tile
        if not down:
            return vectors, whole
        cut = views[:, side:].reshape(3, down, self.tile, across, self.tile).permute(1, 3, 0, 2, 4).flatten(0, 1)
        if hasattr(self.vision, "local"):
            levels, more = self.vision.local(cut)
        else:
            levels = self.vision(cut)[-1]
            more = self.bridge((levels,))
        if self.merge == "flat":
            return torch.cat((vectors, more.flatten(0, 1))), whole
        fine, more = tiles.joined(levels, (across, down)), tiles.joined(more, (across, down))
        stretched = F.interpolate(whole[None].float(), fine.shape[1:])[0].to(fine.dtype)
        return torch.cat((vectors, more.flatten(1).T)), stretched + fine

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
        made = torch.stack(vectors) * self.scale if vectors else None
        return Seen(tuple(encoded.vectors), boxes, owners, made, encoded.levels, encoded.kept)


def tile(config: Mapping[str, Any]) -> int:
    """The side of a tile in pixels; 0 where the checkpoint looks at the whole picture alone."""
    if config.get("image_aspect_ratio") != "anyres":
        return 0
    return int(config.get("local_side") or tower_sizes(config)["image_size"])


@dataclass(frozen=True)
class Views(Frame):
    """The whole picture squashed, and beneath it the picture stretched to the best of the `offered` sizes, which are
    whole numbers of tiles. Places are relative to the picture's own width and height, so they lie in both alike.
    """

    offered: tuple[Size, ...] = ()
    tile: int = 0
    tile_mean: tuple[float, float, float] = CLIP_MEAN
    tile_std: tuple[float, float, float] = CLIP_STD

    def fit(self, image: Image.Image) -> tuple[np.ndarray, Placement]:
        """float32 [3, side + height, width]; beside a whole picture that is narrower stands nothing."""
        import numpy as np

        whole, placement = super().fit(image)
        width, height = tiles.best_resolution(image.size, self.offered)
        out = np.zeros((3, self.side + height, max(self.side, width)), np.float32)
        out[:, : self.side, : self.side] = whole
        stretched = image.resize((width, height))
        each = Frame(self.tile, "squash", mean=self.tile_mean, std=self.tile_std)
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                cut = stretched.crop((left, top, left + self.tile, top + self.tile))
                out[:, self.side + top :, left:][:, : self.tile, : self.tile] = each.fit(cut)[0]
        return out, placement


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
    if len(region.points) == 1:
        return area(within((region.points[0].x, region.points[0].y), size), size)
    box = region.box
    whole = area(within((box.x0, box.y0, box.x1, box.y1), size), size)
    if region.kind == "box":
        return whole
    painted = painted_on(region, size) if region.mask is None else covered(region, size)
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
    """No blanks beside a region's vector: Vicuna's old tokenizer takes them away around a mark that was added to it.

    What is to be found is named as the evaluations name it: one thing without commas, several in small letters.
    """

    def render(self, turns: Sequence[Turn], mention: Mention, task: str | None = None) -> tuple[Piece, ...]:
        if turns and task in ("find", "several"):
            text = turns[-1].text.strip().rstrip(".?!")
            text = text.replace(",", "") if task == "find" else text.lower()
            turns = (*turns[:-1], replace(turns[-1], text=text))
        return super().render(turns, mention, task)

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        pieces = list(super().lay_out(messages))
        for index, piece in enumerate(pieces):
            if isinstance(piece, Slot) and piece.kind == "region":
                for beside, strip in ((index - 1, str.rstrip), (index + 1, str.lstrip)):
                    if 0 <= beside < len(pieces) and isinstance(pieces[beside], str):
                        pieces[beside] = strip(pieces[beside])
        return tuple(pieces)


def tight(template: Template, tasks: tuple[Task, ...]) -> Tight:
    """A Vicuna form with these tasks."""
    return Tight(template.system, template.user, template.assistant, stop=template.stop, tasks=tasks)


def speaks(config: Mapping[str, Any]) -> Template:
    """The form of talk that a checkpoint was trained on, and how it is asked for places."""
    kind = config.get("model_type")
    if config.get("local_vision_config"):
        return tight(TEMPLATES["ferret_v1"], tasks("\nInclude the coordinates for each mentioned object."))
    if kind not in ("ferret_llama", "ferret_gemma"):
        return tight(TEMPLATES["ferret_v1"], tasks())
    asked = tasks("\nProvide the bounding boxes of the mentioned objects.")
    if kind == "ferret_gemma":
        return replace(TEMPLATES["ferret_gemma_instruct"], tasks=asked)
    if config["vocab_size"] > 100_000:  # Llama 3's, four times Vicuna's
        return replace(TEMPLATES["ferret_llama_3"], tasks=asked)
    return tight(TEMPLATES["ferret_vicuna_v1"], asked)


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square, with or without tiles; numbers are relative to its own width and height."""
    square = Frame(tower_sizes(config)["image_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)
    side = tile(config)
    if not side:
        return square
    offered, mean, std = tiles.pinpoints(config.get("image_grid_pinpoints") or ()), CLIP_MEAN, CLIP_STD
    if config.get("local_vision_config"):
        shapes = dict.fromkeys((*SHAPES, *((down, across) for across, down in SHAPES)))
        offered = offered or [(across * side, down * side) for across, down in shapes]
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if not offered or any(length % side for size in offered for length in size):
        raise ValueError(f"image_grid_pinpoints in config.json must offer sizes that are multiples of {side} pixels")
    return Views(square.side, "squash", square.fill, CLIP_MEAN, CLIP_STD, offered=tuple(offered), tile=side,
                 tile_mean=mean, tile_std=std)  # fmt: skip


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """[x, y] of a point, the box of anything else, and behind it the region's vector.

    The box around a mask ends at its last cell, as the original's does, not behind it.
    """
    place: Place = region.points[0] if region.kind == "point" else region.box
    if region.mask is not None:
        box, (across, down) = region.box, region.mask.size
        place = Box(box.x0, box.y0, (round(box.x1 * across) - 1) / across, (round(box.y1 * down) - 1) / down)
    return (dialect.write((place,), None, scene) + " ", Slot("region", number - 1))


FAMILY = Family(
    name="ferret",
    title="Ferret",
    about="Answers about a point, a box, a line or any shape that you draw, and says with boxes what it talks about.",
    template=tight(TEMPLATES["ferret_v1"], tasks()),
    dialect=DIALECTS["ferret"],
    frame=frame,
    build=Ferret,
    mention=mention,
    keys=((r"^model\.region_geo_sampler\.", "regions."), *KEYS),
    types=("ferret_llama", "ferret_gemma", "ferret_v2"),
    speaks=speaks,
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
    unverified="Its published weights were never run here; "
    "Ferret-UI's tiles follow its code without recorded numbers, Ferret-v2 follows its paper alone.",
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
