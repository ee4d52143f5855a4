"""GroundingGPT (once LEGO): LLaVA 1.5's road for pictures, Q-Formers for videos and sounds; boxes as decimals in the
text.

Li et al. 2024, arXiv 2401.06071, github.com/lzw-lzw/GroundingGPT; checkpoint zwli/GroundingGPT, CLIP in a folder of its
own. Boxes refer to the centred square and come back to the picture; spans of time are {start, end}, whose scale only
the paper tells. A video is watched without its sound, which comes as a clip of its own.

Not verified: the ears (ImageBind's, no numbers are recorded of them; from their features on all is), and how frames and
samples are decoded. The original's "inference" crops video frames at random; ours does not crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mmchat.clip import Clip, evenly
from mmchat.dialect import DIALECTS
from mmchat.family import Family, Footage, as_box
from mmchat.geometry import Frame
from mmchat.layout import DROP, tower, tower_sizes
from mmchat.nets import imagebind
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.eva import VIT_G, EvaTower
from mmchat.nets.language import llama
from mmchat.nets.model import Encoded, Model
from mmchat.nets.qformer import QFormer
from mmchat.nets.vision import CLIP_MEAN, CLIP_STD
from mmchat.prompt import Task
from mmchat.templates import TEMPLATES

MARKS = tuple(f"<{kind}_{mark}>" for kind in ("im", "vi", "so") for mark in ("patch", "start", "end"))
AT_ONCE = 16  # frames that the tower sees together: sixty-four would take a gigabyte
PLACES = " Include the object positions in [x0, y0, x1, y1] format."
TASKS = (
    Task("free", "Ask freely"),
    Task("describe", "Describe the picture with places", "Describe the image in detail." + PLACES, needs=""),
    Task("find", "Find what I name", "Where is {text}?" + PLACES),
    Task("region", "Describe my region", "Describe the region {text} of the image.", needs="region"),
)


class Watching(nn.Module):
    """Frames -> EVA -> queries of each frame, placed in time -> queries of the video -> language width."""

    def __init__(self, sizes: Mapping[str, Any], language_width: int) -> None:
        super().__init__()
        width, inner, heads = sizes["qformer_width"], sizes["qformer_inner"], sizes["qformer_heads"]
        self.visual_encoder = EvaTower(sizes["eva"])
        self.ln_vision = nn.LayerNorm(self.visual_encoder.width, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.empty(1, sizes["frame_queries"], width))
        self.Qformer = QFormer(
            self.visual_encoder.width, width, inner, heads, *(sizes[f"qformer_{one}"] for one in ("layers", "every"))
        )
        self.video_frame_position_embedding = nn.Embedding(sizes["frames"], width)
        self.video_query_tokens = nn.Parameter(torch.empty(1, sizes["video_queries"], width))
        self.video_Qformer = QFormer(width, width, inner, heads, sizes["clip_layers"], sizes["clip_every"])
        self.llama_proj = nn.Linear(width, language_width)

    def frames(self, video: torch.Tensor) -> torch.Tensor:
        """video [N, 3, F, S, S] -> queries of each frame [N * F, q, C]."""
        few = video.transpose(1, 2).flatten(0, 1).split(AT_ONCE)
        return torch.cat(
            [self.Qformer(self.query_tokens, self.ln_vision(self.visual_encoder.tokens(one))) for one in few]
        )

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """video [N, 3, F, S, S], F at most the number of places in time -> [N, Q, language width]."""
        found = self.frames(video).unflatten(0, (len(video), -1))
        found = found + self.video_frame_position_embedding.weight[: found.shape[1], None]
        return self.llama_proj(self.video_Qformer(self.video_query_tokens, found.flatten(1, 2)))


class Hearing(nn.Module):
    """Features of clips, placed in time -> queries of the sound -> language width."""

    def __init__(self, sizes: Mapping[str, Any], language_width: int) -> None:
        super().__init__()
        width, heard = sizes["qformer_width"], sizes["sound_width"]
        self.audio_position_embedding = nn.Embedding(8, heard)
        self.audio_query_tokens = nn.Parameter(torch.empty(1, sizes["sound_queries"], width))
        inner, heads = sizes["qformer_inner"], sizes["qformer_heads"]
        self.audio_Qformer = QFormer(heard, width, inner, heads, sizes["clip_layers"], sizes["clip_every"])
        self.audio_llama_proj = nn.Linear(width, language_width)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """clips [N, 1..8, width of ImageBind's features] -> [N, Q, language width]."""
        placed = clips + self.audio_position_embedding.weight[: clips.shape[1]]
        return self.audio_llama_proj(self.audio_Qformer(self.audio_query_tokens, placed))


class GroundingGPT(Model):
    """LLaVA's slots, with `watching`, `ears` and `hearing` beside them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        sizes, width = sizes_of(config), config["hidden_size"]
        bridge = LastLevel(*projector("mlp2x_gelu", config["mm_vision_hidden_size"], width))
        super().__init__(llama(config), tower(config), bridge)
        self.watching, self.hearing = Watching(sizes, width), Hearing(sizes, width)
        self.ears = imagebind.Ears(sizes["ears"]) if sizes["ears"] else None  # recorded cases have none

    def encode(self, pixels: torch.Tensor | Sequence[torch.Tensor | Footage]) -> Encoded:
        """Pictures [B, 3, H, W], or a list with clips among them. In the levels a clip has the first picture's map."""
        if isinstance(pixels, torch.Tensor):
            return super().encode(pixels)
        rows, pictures = [], []
        for one in pixels:
            rows.append(len(pictures) if isinstance(one, torch.Tensor) else None)
            pictures += [one] if isinstance(one, torch.Tensor) else []
        seen = super().encode(torch.stack(pictures)) if pictures else Encoded([])
        vectors = [self.clip(one) if row is None else seen.vectors[row] for row, one in zip(rows, pixels, strict=True)]
        return Encoded(vectors, {name: level[[row or 0 for row in rows]] for name, level in seen.levels.items()})

    def clip(self, clip: Footage) -> torch.Tensor:
        """What stands for a video or a sound [Q, C]."""
        return self.video(clip.values) if clip.kind == "video" else self.sound(self.ears(clip.values))

    def video(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames [F, 3, S, S] of one video, evenly picked and normalised -> [Q, C]."""
        most = len(self.watching.video_frame_position_embedding.weight)
        if len(frames) > most:
            raise ValueError(f"The video has {len(frames)} frames: pick at most {most} evenly.")
        return self.watching(frames.transpose(0, 1)[None])[0]

    def sound(self, clips: torch.Tensor) -> torch.Tensor:
        """ImageBind's features [clips, 1024] of one sound -> [Q, C]."""
        return self.hearing(clips[None])[0]


SIZES = {
    "eva": {**VIT_G, "img_size": 224}, "ears": imagebind.HUGE, "frames": 64, "frame_queries": 32, "video_queries": 64,
    "sound_queries": 8, "sound_width": 1024, "qformer_width": 768, "qformer_inner": 3072, "qformer_heads": 12,
    "qformer_layers": 12, "qformer_every": 2, "clip_layers": 2, "clip_every": 1,
}  # fmt: skip
"""Sizes of the video and sound roads as published."""
NAMED = {"frames": "max_frame", "frame_queries": "num_query_token", "video_queries": "video_token_len",
         "sound_queries": "sound_token_len"}  # fmt: skip
"""Those that a published config.json says."""


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the video and sound roads."""
    told = {ours: config[theirs] for ours, theirs in NAMED.items() if theirs in config}
    return {**SIZES, **told, **config.get("video_and_sound", {})}


def frame(config: Mapping[str, Any]) -> Frame:
    """A centred square filled with CLIP's mean colour."""
    return Frame(tower_sizes(config)["image_size"], "pad", (122, 116, 104), CLIP_MEAN, CLIP_STD)


def clip(config: Mapping[str, Any], given: Clip) -> np.ndarray:
    """Frames [F, 3, S, S] of a video, squashed to squares; pictures of a sound [clips, 1, rows, columns]."""
    if given.kind == "sound":
        return imagebind.pictures(torch.from_numpy(given.samples), given.rate).numpy()
    sizes = sizes_of(config)
    square = Frame(sizes["eva"]["img_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)
    looked = evenly(len(given.frames), sizes["frames"])
    return np.stack([square.fit(given.frames[index])[0] for index in looked])


def build(config: Mapping[str, Any]) -> GroundingGPT:
    """The model of a published config.json, parameters yet to be loaded."""
    return GroundingGPT(config)


WATCHING = r"visual_encoder|ln_vision|query_tokens|Qformer|video_frame_position_embedding|video_query_tokens"

FAMILY = Family(
    name="groundinggpt",
    title="GroundingGPT",
    about="Describes pictures and finds things in them, with boxes in its sentences; watches videos, listens to "
    "sounds, and says when things happen. Its ears (ImageBind) are not checked against numbers of the original.",
    template=replace(
        TEMPLATES["lego"], tasks=TASKS, order=("sound", "video", "image"),
        image="<im_start>{image}<im_end>\n{text}", video="<vi_start>{video}<vi_end>\n{text}",
        sound="<so_start>{sound}<so_end>\n{text}",
    ),
    dialect=DIALECTS["groundinggpt"],
    frame=frame,
    build=build,
    mention=as_box,  # no code of the original writes a region
    clip=clip,
    takes=frozenset({"box", "video", "sound"}),
    marks=MARKS,
    keys=(
        (r"^vision_model\.", "vision."),
        (r"^model\.mm_vision_projector\.", "bridge."),
        (rf"^model\.({WATCHING}|video_Qformer|llama_proj)(?=[.]|$)", r"watching.\1"),
        (r"^model\.(audio_(?:Qformer|query_tokens|llama_proj|position_embedding))(?=[.]|$)", r"hearing.\1"),
        *((rf"^model\.audio_encoder\.{name[1:]}", f"ears.{ours}") for name, ours in imagebind.Ears.KEYS),
        (r"^(model|lm_head)\.", r"language.\1."),
    ),
    drop=(
        *DROP, *(rf"^model\.audio_encoder\.{name}" for name in imagebind.Ears.DROP),
        r"relative_position_index$", r"^model\.visual_encoder\.blocks\.39\.",
    ),
    keep=("vision", "bridge", "watching", "ears", "hearing", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here; "
    "of its ears, and of how frames and samples are decoded, no numbers are recorded.",
    licence="Code Apache 2.0; weights are made from Vicuna 1.5 under the Llama 2 Community License, the ears are "
    "ImageBind's (CC BY-NC 4.0: not for commercial use).",
    types=("LEGO",),
    dwarf={
        "model_type": "groundinggpt", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "mm_vision_hidden_size": 32, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "video_and_sound": {
            "eva": {"img_size": 28, "patch_size": 14, "embed_dim": 20, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
            "ears": {"width": 24, "depth": 1, "heads": 2, "patch": 16, "stride": 10, "out": 16},
            "frames": 8, "frame_queries": 4, "video_queries": 6, "sound_queries": 4, "sound_width": 16,
            "qformer_width": 24, "qformer_inner": 32, "qformer_heads": 2, "qformer_layers": 2,
        },
    },
)  # fmt: skip
