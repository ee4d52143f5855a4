"""LLaVA-Grounding: LLaVA with CLIP at 224 pixels; a second look at 1024 turns its marks into boxes and masks.

Zhang et al. 2023, arXiv 2312.02949, github.com/UX-Decoder/LLaVA-Grounding; checkpoint
Haozhangcx/llava_grounding_gd_vp. Whenever it writes <seg>, the state that wrote it is kept; when the answer has
ended, OpenSeeD looks for all of them at once. A drawn place goes in as one vector, which Semantic-SAM's decoder of
prompts makes.

The two looks have two frames: CLIP sees the middle square alone, the boxes belong to the whole picture. A click is a
point; of a line, an outline or a painted shape the box around it is the prompt, as in the demo, where all is painted.
Not verified against recorded numbers: the decoder of prompts, which is read from the authors' code (its layers are
held, and where its vector goes). Marks drawn into the picture, the paper's fourth stage, were never published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Frame, Placement, Region
from mmchat.layout import DROP, KEYS, tower, tower_sizes
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Located, Model, Seen, as_map
from mmchat.nets.openseed import BASE, PixelDecoder, Predictor, PromptPredictor, corners, matched
from mmchat.nets.swin import Swin
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from mmchat.prompt import Mention, Piece, Slot, Task, Template, Turn
from mmchat.templates import TEMPLATES

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

GREY = (128, 128, 128)
SIDE = 1024
CLICK = 0.006  # width and height of a point, in the padded square
MARKS = ("<g_s>", "<g_e>", "<seg>")  # tokens behind the tokenizer's own, in this order
THRESHOLD = 0.05  # share of a phrase's weight above which a query is one of its places

TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture with places", "Describe the image in detail (with grounding)", needs=""),
    Task("grounded", "Answer with places", "{text} (with grounding)"),
    Task("find", "Find what I name", "Please detect the object according to the text {text} (referring)."),
    Task("region", "Describe my region", "What is the object {text} in the image?", needs="region"),
)


@dataclass(frozen=True)
class TwoFrames(Frame):
    """The picture at the top left of a square, to which all places refer, and below it what CLIP sees of it: its middle
    square, `eye` pixels wide. Steps and rounding are detectron2's.
    """

    eye: int = 224

    @property
    def small(self) -> Frame:
        """CLIP's frame."""
        return Frame(self.eye, "crop", mean=CLIP_MEAN, std=CLIP_STD)

    def fit(self, image: Image.Image) -> tuple[np.ndarray, Placement]:
        """An upright RGB picture as float32 [3, side + eye, side], and its placement in the upper square."""
        import numpy as np

        square, placement = super().fit(image)
        below = np.zeros((3, self.eye, self.side), np.float32)
        below[:, :, : self.eye] = self.small.fit(image)[0]
        return np.concatenate((square, below), 1), placement

    def fitted(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        """The upper square, 8-bit: resized first, then filled up."""
        from PIL import Image

        resized = image.resize(self.inside(image.size), Image.Resampling.BILINEAR)
        canvas = Image.new("RGB", (self.side, self.side), self.fill)
        canvas.paste(resized, (0, 0))
        return canvas, self.place(image.size)

    def inside(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the picture in the upper square, in whole pixels."""
        scale = self.side / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(frozen=True)
class Spoken(Template):
    """The talk as the demo feeds it: earlier answers without their marks, a place where a word would stand."""

    def render(self, turns: Sequence[Turn], mention: Mention, task: str | None = None) -> tuple[Piece, ...]:
        dialect = DIALECTS["llava_grounding"]
        plain = [
            replace(turn, text=dialect.read(turn.text, Scene()).text) if turn.role == "assistant" else turn
            for turn in turns
        ]
        pieces = list(super().render(plain, mention, task))
        for index, piece in enumerate(pieces):
            # A place stands for the one token of " %", which brings its own blank.
            if isinstance(piece, Slot) and piece.kind == "region" and index and isinstance(pieces[index - 1], str):
                pieces[index - 1] = re.sub(r" \Z", "", pieces[index - 1])
        return tuple(piece for piece in pieces if piece != "")


class Grounder(nn.Module):
    """Tower, pixel decoder and decoder of queries: states of the language model -> their boxes and masks."""

    def __init__(self, tower: Mapping[str, Any], sizes: Mapping[str, Any], width: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.backbone = Swin(tower)
        self.pixel_decoder = PixelDecoder(self.backbone.widths, sizes)
        self.predictor = Predictor(sizes, width)

    def forward(self, maps: Sequence[torch.Tensor], states: torch.Tensor) -> Located:
        """maps of one picture [1, C, h, w], finest first; states [K, width]. The surest place of a mark comes first."""
        found = self.predictor(self.pixel_decoder(maps), states[None])
        logits, boxes = found.logits[0], corners(found.boxes[0]).clamp(0.0, 1.0)
        chosen = [
            queries[logits[queries, mark].argsort(descending=True)]
            for mark, queries in enumerate(matched(logits, self.threshold))
        ]
        marks = [torch.full_like(queries, mark) for mark, queries in enumerate(chosen)]
        queries = torch.cat(chosen)
        return Located(boxes[queries], torch.cat(marks), found.masks[0][queries] > 0)


class Prompter(nn.Module):
    """A tower and a pixel decoder of its own: a drawn place -> one vector of the language model."""

    def __init__(self, tower: Mapping[str, Any], sizes: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.backbone = Swin(tower)
        self.pixel_decoder = PixelDecoder(self.backbone.widths, sizes, masks=False)
        self.predictor = PromptPredictor(sizes)
        self.obj_projector = nn.Linear(sizes["width"], width)

    def forward(self, squares: torch.Tensor, boxes: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """squares [B, 3, side, side]; boxes [n, 4] in 0..1, those without an area are clicks; owners [n] -> [n, width].

        Only pictures on which something is drawn are looked at.
        """
        boxes, owners = boxes.to(squares.device), owners.to(squares.device)
        size = boxes[:, 2:] - boxes[:, :2]
        drawn = (size > 0).all(-1)
        size = size.where(drawn[:, None], CLICK)
        prompts = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, size), -1)
        wanted, where = owners.unique(return_inverse=True)
        levels = self.pixel_decoder(self.backbone(squares[wanted])).levels
        return torch.cat([
            self.obj_projector(
                self.predictor(
                    [level[picture : picture + 1] for level in levels], prompts[number, None], drawn[number, None]
                )
            )
            for number, picture in enumerate(where.tolist())
        ])  # fmt: skip


class LlavaGrounding(Model):
    """Pixels hold both frames, one below the other."""

    head_marks = MARKS[-1:]

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """pixels [B, 3, side + eye, side]. Levels are the grounding tower's, which sees the whole picture."""
        eye = self.vision.side
        squares, small = pixels[:, :, :-eye], pixels[:, :, -eye:, :eye]
        vectors = self.bridge(self.vision(small))
        maps = self.head.backbone(squares)
        return Encoded(vectors, {f"res{index}": as_map(level) for index, level in enumerate(maps, 2)}, squares)

    def gather(self, encoded: Encoded, boxes: torch.Tensor | None = None, owners: torch.Tensor | None = None) -> Seen:
        """The drawn places as vectors; nothing is looked at for them where nothing is drawn."""
        boxes = torch.zeros(0, 4) if boxes is None else boxes.float()
        owners = torch.zeros(len(boxes), dtype=torch.long) if owners is None else owners.long()
        vectors = self.regions(encoded.kept, boxes, owners) if len(boxes) else None
        return Seen(tuple(encoded.vectors), boxes, owners, vectors, encoded.levels, encoded.kept)

    def locate(self, states: torch.Tensor, seen: Seen, picture: int) -> Located:
        maps = [level[picture : picture + 1] for level in seen.levels.values()]
        device = maps[0].device
        return self.head(maps, states.to(device))


def sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with CLIP at 224 pixels where the loader found no other."""
    return {"vision_config": {**CLIP_LARGE, "image_size": 224}, **config}


def frame(config: Mapping[str, Any]) -> TwoFrames:
    """Places refer to the whole picture, at the top left of a square."""
    eye = tower_sizes(sized(config))["image_size"]
    side = config.get("grounding_config", {}).get("image_size", SIDE)
    return TwoFrames(side, "pad_end", GREY, IMAGENET_MEAN, IMAGENET_STD, "bilinear", eye=eye)


def build(config: Mapping[str, Any]) -> LlavaGrounding:
    """The model of a published config.json, parameters yet to be loaded. `grounding_config` is for other sizes of the
    two heads than the published ones; `matching_threshold` for another share than the demo's.
    """
    width, given = config["hidden_size"], config.get("grounding_config", {})
    sizes, tower_given = {**BASE, **given}, given.get("tower", {})
    return LlavaGrounding(
        llama(config),
        tower(sized(config)),
        LastLevel(*projector("linear", config["mm_hidden_size"], width)),
        regions=Prompter(tower_given, sizes, width),
        head=Grounder(tower_given, sizes, width, config.get("matching_threshold", THRESHOLD)),
    )


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The region's vector."""
    return (Slot("region", number - 1),)


_BASE = replace(TEMPLATES["llava_grounding"], tasks=TASKS, words=frozenset({"region"}))

FAMILY = Family(
    name="llava_grounding",
    title="LLaVA-Grounding",
    about="Talks about pictures and marks what it names with boxes and masks; answers about a place that is drawn.",
    template=Spoken(**{field.name: getattr(_BASE, field.name) for field in fields(Template)}),
    dialect=DIALECTS["llava_grounding"],
    frame=frame,
    build=build,
    mention=mention,
    keys=(
        (r"^seg_model\.model\.(?:sem_seg_head\.)?", "head."),
        (r"^interactive_model\.model\.(?:sem_seg_head\.)?", "regions."),
        *KEYS,
    ),
    drop=(
        *DROP,
        r"relative_position_index$",
        r"\.(?:criterion\.empty_weight|pixel_mean|pixel_std)$",
        # The same tensors once more, and what only training used.
        r"\.predictor\.(?:decoder\.)?bbox_embed\.",
        r"\.predictor\.decoder\.norm\.",
        r"\.lang_mapper$",
        # What the prompts' masks, classes and qualities are made of: only the vector is taken.
        r"^(?:interactive_model\.model\.sem_seg_head\.|regions\.)pixel_decoder\.(?:adapter_1|layer_1|mask_features)\.",
        r"^(?:interactive_model\.model\.sem_seg_head\.|regions\.)predictor\.(?:mask_embed|iou_prediction_head)\.",
        r"^(?:interactive_model\.model\.sem_seg_head\.|regions\.)predictor\.class_embed(?:_part)?$",
        r"^interactive_model\.model\.logit_scale$",
    ),
    takes=frozenset({"box", "point", "scribble", "polygon", "mask"}),
    keep=("vision", "bridge", "regions", "head", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published weights were never run here; "
    "the decoder of drawn places follows the authors' code without recorded numbers.",
    licence="Code Apache 2.0; weights made from Vicuna, under LLaMA's licence: research only.",
    types=("llava",),
    marks=MARKS,
    dwarf={
        "model_type": "llava_grounding", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_vision_select_layer": -2,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "grounding_config": {
            "image_size": 128, "width": 32, "heads": 4, "inner": 48, "encoder_layers": 1, "decoder_layers": 3,
            "mask_width": 16, "queries": 12,
            "tower": {"embed_dim": 8, "depths": [2, 2, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4},
        },
    },
)  # fmt: skip
