"""Recorded cases of GroundingGPT (lzw-lzw/GroundingGPT): texts, pictures, its three roads, a tiny whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from mmchat.dialect import brackets
from mmchat.dialect.table import GROUNDINGGPT
from mmchat.families.groundinggpt import FAMILY, GroundingGPT, Hearing, Watching, build
from mmchat.geometry import Box, Frame, outline
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import pixels
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found, found
from mmchat.templates import TEMPLATES

KINDS = ("im", "vi", "so")
MEDIA = {"image": ("im",), "video": ("vi",), "sound": ("so",), "image and sound": ("so", "im"), "none": ()}


def prompts(case: Case) -> list[Line]:
    """Every form with every medium."""
    entries = case.info["prompts"]
    # The record shortened them.
    patches = {kind: max(entry.get("prompt", "").count(f"<{kind}_patch>") for entry in entries) for kind in KINDS}

    def ours(entry: Entry, words: Mapping[str, str]) -> str:
        shown = "".join(
            f"<{kind}_start>{f'<{kind}_patch>' * patches[kind]}<{kind}_end>\n" for kind in MEDIA[entry["media"]]
        )
        said = [(words["first"], words["answer"]), (words["second"], words["reply"]), (words["third"], None)]
        said = said if entry["turns"] == 3 else [(words["first"], None)]
        name = {"default": "lego", "llava_v0": "lego_greeted"}.get(entry["template"], entry["template"])
        return texts.talk(TEMPLATES[name], [(shown + said[0][0], said[0][1]), *said[1:]])

    return texts.told(entries, ours)


ORIGINAL = replace(GROUNDINGGPT, way="squash", forms=(brackets(decimals=3, join=""),))  # of the rewritten text


def dialect(case: Case) -> list[Line]:
    """Boxes of the padded square brought to the original picture: in the text, in the demo, and by themselves."""

    def rewritten(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        theirs = [(None, box) for _, box in found(ORIGINAL, entry["result"], (1, 1))] if entry["result"] else []
        ours = _fractions(entry)
        if len(ours) == len(theirs):  # the original rounds to whole pixels on its way
            ours = [(label, _within(box, other, entry)) for (label, box), (_, other) in zip(ours, theirs, strict=True)]
        return ours, theirs, (1.0, 1.0)

    def demo(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        size = tuple(entry["image_size"])
        shapes = (entry["result"] or {}).get("rectangles") or ()
        theirs = [(None, [one["x"], one["y"], one["x"] + one["w"], one["y"] + one["h"]]) for one in shapes]
        return found(ORIGINAL, entry["text"], size), theirs, size

    def back(entry: Entry) -> list[float]:
        size = tuple(entry["image_size"])
        side = max(size)
        box = Box.from_pixels(entry["square_box_pixels"], (side, side))
        return [round(number) for number in outline(Frame(1, "pad").place(size).back(box)).pixels(size)]

    readers = {
        "postprocess_output (text with original-frame boxes)": rewritten,
        "web demo postprocess_image_answer_gradio": demo,
    }
    return [
        *texts.read_all(case.info["parse"], readers),
        *texts.table(case.info["convert_box"], back, "original_box_pixels", "convert_box"),
    ]


def _within(box: list[float], other: list[float], entry: Entry) -> list[float]:
    """The original's numbers where ours are no more than a pixel off."""
    pairs = enumerate(zip(box, other, strict=True))
    off = [abs(ours - theirs) * entry["image_size"][axis % 2] for axis, (ours, theirs) in pairs]
    return other if max(off) <= 1.5 else box


def _fractions(entry: Entry) -> Found:
    """Ours in fractions of the original picture."""
    size = entry["image_size"]
    pixels = found(GROUNDINGGPT, entry["text"], size)
    return [(label, [value / size[axis % 2] for axis, value in enumerate(given)]) for label, given in pixels]


def config_of(case: Case) -> dict[str, Any]:
    """The case's sizes under the keys of a published config.json, and of ours where none publishes them."""
    told = case.config
    eva, clip, frames, clips = (told[name] for name in ("eva", "clip", "image_qformer", "video_and_audio_qformer"))
    image_side, video_side = told["cimg"], told["vimg"]
    return {
        "hidden_size": told["h"], "intermediate_size": told["ff"], "num_hidden_layers": told["layers"],
        "num_attention_heads": told["heads"], "num_key_value_heads": told["heads"], "vocab_size": told["vocab"],
        "rms_norm_eps": 1e-5, "mm_vision_hidden_size": told["cv"], "mm_vision_select_layer": clip["select_layer"],
        "vision_config": {
            "hidden_size": told["cv"], "intermediate_size": rows(case, "layers.0.mlp.fc1.weight"),
            "num_hidden_layers": clip["layers"], "num_attention_heads": clip["heads"], "image_size": image_side,
            "patch_size": clip["patch"], "hidden_act": "quick_gelu",
        },
        "video_and_sound": {
            "eva": {
                "img_size": video_side, "patch_size": eva["patch"], "embed_dim": told["ve"], "depth": eva["depth"],
                "num_heads": eva["heads"], "mlp_ratio": eva["mlp_ratio"], "qkv_bias": eva["qkv_bias"],
            },
            "ears": None,  # their features are what is recorded
            "frames": told["maxf"], "frame_queries": told["nq"], "video_queries": told["nv"],
            "sound_queries": told["na"], "sound_width": told["ah"], "qformer_width": told["qh"],
            "qformer_inner": rows(case, "intermediate_query.dense.weight"), "qformer_heads": told["qheads"],
            "qformer_layers": frames["layers"], "qformer_every": frames["cross_attention_freq"],
            "clip_layers": clips["layers"], "clip_every": clips["cross_attention_freq"],
        },
    }  # fmt: skip


def rows(case: Case, ending: str) -> int:
    """Rows of a recorded parameter that no config tells; 1 where the case has none such."""
    return next((len(tensor) for name, tensor in case.tensors.items() if name.endswith(ending)), 1)


def state_of(case: Case) -> dict[str, torch.Tensor]:
    """The recorded parameters under published names; the tower's stand under `clip.`, as it lies apart."""
    return {name.removeprefix("clip."): tensor.float() for name, tensor in case.state().items()}


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The padded square, and what the tower sees of it."""
    out = {}
    for name, array in case.inputs().items():
        image = Image.fromarray(array.numpy())
        number = name.partition(".")[0]
        frame = FAMILY.frame({"vision_config": {"image_size": case.config["size"]}})
        square = replace(frame, side=max(image.size), mean=(0.0,) * 3, std=(1.0,) * 3)
        out[f"{number}.square"] = pixels(square.fitted(image)[0])
        out[f"{number}.pixels"] = torch.from_numpy(frame.fit(image)[0])
    return out


@torch.no_grad()
def projected(case: Case, dtype: torch.dtype) -> Outputs:
    """The road of pictures."""

    class Eyes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = GroundingGPT(config_of(case))
            self.vision, self.bridge = whole.vision, whole.bridge

    net = filled(Eyes, state_of(case), dtype, FAMILY.keys, FAMILY.drop)
    levels = net.vision(case.inputs(dtype)["image"])
    return {"clip_select": levels[-1], "projected": net.bridge(levels)}


@torch.no_grad()
def watched(case: Case, dtype: torch.dtype) -> Outputs:
    """The roads of videos and of sounds."""
    config = config_of(case)

    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = config["video_and_sound"]
            self.watching, self.hearing = Watching(sizes, config["hidden_size"]), Hearing(sizes, config["hidden_size"])

    net, given = filled(Others, state_of(case), dtype, FAMILY.keys, FAMILY.drop), case.inputs(dtype)
    frames = given["video"].transpose(1, 2).flatten(0, 1)
    seen = net.watching.visual_encoder.tokens(frames)
    return {
        "eva": seen,
        "ln_vision": net.watching.ln_vision(seen),
        "frame_queries": net.watching.frames(given["video"]),
        "video_tokens": net.watching(given["video"]),
        "audio_tokens": net.hearing(given["audio_features"]),
    }


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Ids with patch tokens of three kinds -> spliced rows and logits, through the family's model."""
    given, vocabulary = case.inputs(dtype), case.config["vocab"]
    model = filled(lambda: build(config_of(case)), state_of(case), dtype, FAMILY.keys, FAMILY.drop)
    vectors = {
        vocabulary - 9: model.see(given["image"]).images[0],
        vocabulary - 6: model.video(given["video"][0].transpose(0, 1)),
        vocabulary - 3: model.sound(given["audio_features"][0]),
    }
    out = {}
    for name, ids in given.items():
        if not name.startswith("ids."):
            continue
        row = model.embed(ids)
        for patch, vector in vectors.items():
            if (ids == patch).any():
                row[ids == patch] = vector
        kind = name.removeprefix("ids.")
        out |= {f"inputs_embeds.{kind}": row, f"logits.{kind}": model.language(inputs_embeds=row).logits}
    return out


HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "image_projector": projected,
    "preprocess": preprocessed,
    "video_audio_adapters": watched,
    "whole": whole,
}
