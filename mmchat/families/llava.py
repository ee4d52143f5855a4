"""LLaVA 1.5 and 1.6: CLIP's last layer but one, a two-layer projector, Vicuna; boxes as numbers in the text.

Liu et al. 2023, github.com/haotian-liu/LLaVA. Checkpoints: liuhaotian/llava-v1.5-7b and -13b (without the tower inside:
CLIP comes from its own folder, `mm_vision_tower` in the config), and what is trained with that code later (tower
inside). 1.6 (liuhaotian/llava-v1.6-vicuna-7b, -mistral-7b, -34b, lmms-lab/llama3-llava-next-8b) also looks at tiles:
`image_aspect_ratio` anyres, or anyres_max_9 as in LLaVA-VL/LLaVA-NeXT.

What boxes of 1.6 refer to, its authors do not say (their issue 1158 asks and has no answer). Here they are relative to
the square that the picture is centred in: so are the boxes in the texts that 1.5 was trained on, which 1.6's mixture
builds upon. Not verified with the published weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmchat.dialect import LLAVA
from mmchat.family import Family
from mmchat.geometry import Frame
from mmchat.layout import DROP, KEYS, TASKS, Views, mention, tower, tower_sizes
from mmchat.layout import frame as padded_or_cropped
from mmchat.nets import tiles
from mmchat.nets.anyres import Anyres
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.prompt import Template
from mmchat.templates import TEMPLATES

YI = 64000  # words of Yi 34B, of which the largest 1.6 is made
LLAMA_3 = 128256  # and of Llama 3, of which llama3-llava-next-8b is; some trainings add a word
MARKED = "<im_start>{image}<im_end>\n{text}"  # with `mm_use_im_start_end`, as before 1.5


class Llava(Anyres):
    """The common slots; for 1.6 also how a picture's tiles come together."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        width, language_width = config["mm_hidden_size"], config["hidden_size"]
        eyes = tower(config)
        bridge = LastLevel(*projector(config.get("mm_projector_type", "linear"), width, language_width))
        most = re.match(r"anyres_max_(\d+)", str(config.get("image_aspect_ratio")))
        super().__init__(
            llama(config), eyes, bridge, language_width, offered(config) if tiled(config) else (),
            config.get("mm_patch_merge_type", "flat"), int(most[1]) if most else None,
        )  # fmt: skip


def build(config: Mapping[str, Any]) -> Llava:
    """The model of a published config.json, parameters yet to be loaded."""
    return Llava(config)


def tiled(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint looks at tiles too."""
    return str(config.get("image_aspect_ratio")).startswith("anyres")


def offered(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The resolutions that `image_grid_pinpoints` names; ValueError where they are no tiles of the tower's side, or
    where a tile is no square of patches.
    """
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise ValueError("tiles are put together patch by patch: mm_vision_select_feature must be patch in config.json")
    side = tower_sizes(config)["image_size"]
    found = tiles.pinpoints(config.get("image_grid_pinpoints") or (), side)
    if not found or any(length % side or not length for size in found for length in size):
        raise ValueError(f"image_grid_pinpoints in config.json must offer sizes that are multiples of {side} pixels")
    return found


def frame(config: Mapping[str, Any]) -> Frame:
    """LLaVA 1.5's square; of a 1.6 checkpoint the picture as a whole and in tiles, its numbers relative to that same
    padded square, as in 1.5's texts, which 1.6 was trained on too.
    """
    if not tiled(config):
        return padded_or_cropped(config)
    sizes = tower_sizes(config)
    plain = padded_or_cropped({**config, "image_aspect_ratio": "pad"})
    return Views.of(plain, offered(config), sizes["image_size"] // sizes["patch_size"])


def speaks(config: Mapping[str, Any]) -> Template:
    """The form of talk that a checkpoint was trained on: 1.6 has relatives that are not Vicuna."""
    name, words = "vicuna_v1", config.get("vocab_size") or 0
    if config.get("model_type") == "llava_mistral":
        name = "mistral_instruct"
    elif words == YI:
        name = "chatml_direct"
    elif words >= LLAMA_3:
        name = "llava_llama_3"
    marked = {"image": MARKED} if config.get("mm_use_im_start_end") else {}
    return replace(TEMPLATES[name], tasks=TASKS, **marked)


FAMILY = Family(
    name="llava",
    title="LLaVA 1.5 and 1.6",
    about="Talks about pictures, finds what a sentence describes, describes a box; 1.6 sees tiles. CLIP and Vicuna.",
    template=replace(TEMPLATES["vicuna_v1"], tasks=TASKS),
    dialect=LLAVA,
    frame=frame,
    build=build,
    mention=mention,
    keys=KEYS,
    drop=DROP,
    keep=("vision", "bridge", "language.lm_head"),
    types=("llava_llama", "llava_mistral"),
    speaks=speaks,
    heats=("feature norm", "components", "likeness", "attention", "logit lens"),
    unverified="Its published weights were never run here; what the boxes of 1.6 refer to, its authors do not say.",
    licence="Code Apache 2.0; weights under their language model's licence (Vicuna: Llama 2 Community License; "
    "Llama 3: its own; Mistral and Yi: Apache 2.0); training data partly for research only.",
    dwarf={
        "model_type": "llava", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
