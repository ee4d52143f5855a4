"""Recorded cases of LLaVA-Grounding (UX-Decoder/LLaVA-Grounding): texts, pictures, parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from mmchat.dialect import Marks, Scene, home
from mmchat.dialect.table import LLAVA_GROUNDING
from mmchat.families.llava_grounding import FAMILY, GREY, LlavaGrounding, TwoFrames
from mmchat.geometry import Box, Frame, outline
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import MARK_ID, images, pixels
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found
from mmchat.layout import tower
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Seen
from mmchat.nets.openseed import BASE, PixelDecoder, Predictor, corners, matched
from mmchat.nets.swin import Swin
from mmchat.nets.vision import IMAGENET_MEAN, IMAGENET_STD
from mmchat.prompt import Slot
from mmchat.templates import TEMPLATES

COLOURED = re.compile(r"<span style='color: rgb\([^)]*\);'>(.*?)</span>", re.DOTALL)


def prompts(case: Case) -> list[Line]:
    """The exact prompts of the demo, and the forms. The demo feeds answers back without their marks and `</s>`."""

    def ours(entry: Entry, words: Mapping[str, str]) -> str:
        demo = "question" in entry
        asked, name = ("demo ", "llava_grounding") if demo else ("", entry["template"])
        said = [(words[f"{asked}first"], words[f"{asked}answer"]), (words[f"{asked}second"], words[f"{asked}reply"])]
        last = entry["question"] if demo else words["first" if entry["turns"] == 1 else "third"]
        said = [*(said if entry["turns"] == 3 else ()), (last, None)]
        said[0] = (f"<image>\n{said[0][0]}", said[0][1])
        return texts.talk(TEMPLATES[name], said)

    return texts.told(case.info["prompts"], ours)


def dialect(case: Case) -> list[Line]:
    """Marks with the boxes that the grounding head gave: what remains, what is exported, what the demo colours."""

    def kept(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        theirs = [(None, box) for boxes in (entry["result"] or {}).get("boxes", ()) for box in boxes]
        return _read(replace(LLAVA_GROUNDING, way="squash"), entry), theirs, (1.0, 1.0)

    def exported(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        written = (entry["result"] or {}).get("boxes", ())
        theirs = [
            (None, [float(number) for number in box.split(",")])
            for one in written
            for box in one.strip("[]").split(";")
        ]
        ours = [
            (label, [value / entry["image_size"][axis % 2] for axis, value in enumerate(given)])
            for label, given in _read(LLAVA_GROUNDING, entry)
        ]
        return ours, theirs, (1.0, 1.0)

    def coloured(entry: Entry) -> list[str]:
        whole = Box(0.0, 0.0, 1.0, 1.0)
        grounded = LLAVA_GROUNDING.read(entry["text"], Scene((whole,) * entry["text"].count("<seg>")))
        return [" ".join(grounded.text[span.start : span.end].split()) for span in grounded.spans]

    def back(entry: Entry) -> list[list[float]]:
        size = tuple(entry["image_size"])
        placement = Frame(1, "pad_end").place(size)
        boxes = [outline(placement.back(Box(*box))) for box in entry["boxes_square_xyxy"]]
        return [[box.x0, box.y0, box.x1, box.y1] for box in boxes]

    readers = {
        "filter_empty_box_mask (demo)": kept,
        "filter_empty_box (evaluator)": kept,
        "unresize_box + formatting (evaluator export text)": exported,
    }
    # Nothing painted: the original hands on NaN or raises, ours has no region to ask about.
    painted = [entry for entry in case.info["write"] if entry["painted_pixels_inclusive"]]
    html = [
        {**entry, "result": [" ".join(phrase.split()) for phrase in COLOURED.findall(entry["result"] or "")]}
        for entry in case.info["parse"]
        if entry["function"] not in readers
    ]
    return [
        *texts.read_all([entry for entry in case.info["parse"] if entry["function"] in readers], readers),
        *texts.table(html, coloured),
        *texts.table(case.info["unresize_box"], back, "boxes_original_fraction", "unresize_box"),
        *texts.table(painted, _drawn, "points_cxcywh_square", "write"),
    ]


CLICK = 0.006  # width and height that a click stands for


def _drawn(entry: Entry) -> list[list[float]]:
    """A painted stretch of pixels (x0, y0, x1, y1, none behind the last) as a box or a click in the end-padded square:
    centre, width, height.
    """
    size = tuple(entry["image_size"])
    box = outline(Frame(1, "pad_end").place(size).into(Box.from_pixels(entry["painted_pixels_inclusive"], size)))
    middle = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
    return [[*middle, *([CLICK] * 2 if entry["mode"] == "Click" else [box.x1 - box.x0, box.y1 - box.y0])]]


def _read(dialect: Marks, entry: Entry) -> Found:
    """Ours, the k-th mark standing for the k-th list of boxes."""
    boxes = [Box(*box) for group in entry["boxes_square_xyxy"] for box in group]
    groups, start = [], 0
    for group in entry["boxes_square_xyxy"]:
        groups.append(tuple(range(start, start + len(group))))
        start += len(group)
    grounded = dialect.read(entry["text"], Scene(tuple(boxes), groups=tuple(groups) or ((),)))
    size = (entry["image_size"][0], entry["image_size"][1])
    if dialect.way != "squash":
        grounded = home(grounded, Frame(1, dialect.way).place(size))
    frame = size if dialect.way != "squash" else (1, 1)
    return [
        (grounded.text[span.start : span.end], texts.numbers(place, frame))
        for span in grounded.spans
        for place in span.places
    ]


@torch.no_grad()
def backbone(case: Case, dtype: torch.dtype) -> Outputs:
    """The Swin tower, picture sizes that no window divides."""
    config = case.config
    sizes = {
        "embed_dim": config["e"], "depths": config["depths"], "num_heads": config["heads"],
        "window_size": config["win"], "mlp_ratio": config["mlp"],
    }  # fmt: skip
    net = filled(lambda: Swin(sizes), case.state(torch.float32), dtype, ((r"^backbone\.", ""),))
    maps = net(case.inputs(dtype)["image"])
    return {f"res{index}": level for index, level in enumerate(maps, 2)}


@torch.no_grad()
def grounded(case: Case, dtype: torch.dtype) -> Outputs:
    """Pixel decoder and decoder of queries step by step, from a tower's maps."""
    config, given = case.config, case.inputs(dtype)
    sizes = {
        **BASE, "width": config["d"], "heads": config["heads"], "inner": config["ff"], "encoder_layers": config["enc"],
        "decoder_layers": config["dec"], "mask_width": config["mask"], "queries": config["q"],
        "levels": config["total levels"], "points": config["points"],
    }  # fmt: skip

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pixel_decoder = PixelDecoder(config["ch"], sizes)
            self.predictor = Predictor(sizes, config["proj"])

    head = filled(Head, case.state(torch.float32), dtype, ((r"^sem_seg_head\.", ""),), TWICE)
    seen = head.pixel_decoder([given[f"res{index}"] for index in range(2, 6)])
    found = head.predictor(seen, given["seg_hidden"])
    return {
        "mask_features": seen.masks,
        **{f"multi_scale.{index}": level for index, level in enumerate(seen.levels)},
        "memory": found.memory,
        "proposal_score": found.proposal_score,
        "interm_boxes": found.first_boxes,
        **{f"decoder_state.{index}": state for index, state in enumerate(found.states)},
        **{f"reference.{index}": reference for index, reference in enumerate(found.references)},
        "pred_logits": found.logits,
        "pred_boxes": found.boxes,
        "pred_masks": found.masks,
    }


@torch.no_grad()
def judged(case: Case, dtype: torch.dtype) -> Outputs:
    """Scores, masks, and which queries a phrase gets."""
    config, given = case.config, case.inputs(dtype)
    sizes = {**BASE, "width": config["hidden"], "heads": 1, "mask_width": config["mask_dim"]}
    parts = ("class_embed", "logit_scale", "mask_embed", "decoder_norm")

    def build() -> Predictor:
        whole = Predictor(sizes, config["dim_proj"])
        for name in {name.partition(".")[0] for name in whole.state_dict()} - set(parts):
            delattr(whole, name)
        return whole

    head = filled(build, case.state(torch.float32), dtype)
    logits, masks = head.judged(given["queries"].transpose(0, 1), given["mask_features"], given["seg_hidden"])
    out = {"logits": logits, "masks": masks}
    boxes = corners(given["match.boxes_cxcywh"][0])
    for entry in case.info["matching"]:
        threshold = entry["threshold"]
        if threshold is None:  # the original fails; ours asks for a number
            continue
        for phrase, queries in enumerate(matched(given["match.logits"][0], threshold)):
            # The original hands on a box of zeros where no query is above the threshold; ours has none.
            out[f"match.{threshold}.{phrase}"] = boxes[queries] if len(queries) else boxes.new_zeros(1, 4)
    return out


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """Both frames of a picture. What fills the larger one up counts as picture, in the original because its mask of
    padding is filled up with a number that is not 0: no place of the square is padding to the head.
    """
    config = case.config
    side, eye = config["size"], config["clip size"]
    frame, out = TwoFrames(side, "pad_end", GREY, IMAGENET_MEAN, IMAGENET_STD, "bilinear", eye=eye), {}
    for name, image in images(case).items():
        number = name.partition(".")[0]
        both = torch.from_numpy(frame.fit(image)[0])
        out[f"{number}.grounding_uint8"] = pixels(frame.fitted(image)[0]).permute(2, 0, 1)
        out[f"{number}.grounding_normalised"] = both[:, :side]
        out[f"{number}.padding_mask"] = torch.zeros(both.shape[2], both.shape[2], dtype=torch.bool)
        out[f"{number}.clip_pixels"] = both[:, side:, :eye]
    return out


@torch.no_grad()
def spoken(case: Case, dtype: torch.dtype) -> Outputs:
    """A tiny LLaVA: rows of vectors, a greedy answer, and the states that wrote its marks."""
    config, given = case.config, case.inputs(dtype)
    clip = config["clip"]
    sizes = {
        "hidden_size": config["h"], "intermediate_size": config["ff"], "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"], "num_key_value_heads": config["heads"], "vocab_size": config["vocab"],
        "rms_norm_eps": 1e-5,  # not in the record's config; with 1e-6 all its numbers are off by as much as that makes
        "mm_hidden_size": config["cv"], "mm_vision_select_layer": clip["select_layer"],
        "vision_config": {
            "hidden_size": config["cv"], "intermediate_size": case.tensors[FIRST].shape[0],
            "num_hidden_layers": clip["layers"], "num_attention_heads": clip["heads"], "image_size": config["img"],
            "patch_size": clip["patch"], "hidden_act": "quick_gelu",
        },
    }  # fmt: skip

    def build() -> LlavaGrounding:
        bridge = LastLevel(*projector("linear", config["cv"], config["h"]))
        return LlavaGrounding(llama(sizes), tower(sizes), bridge)

    model = filled(build, case.state(), dtype, FAMILY.keys, FAMILY.drop)
    vectors = model.bridge(model.vision(given["image"]))
    drawn = Seen(tuple(vectors), torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), given["object_feature"][0])

    def row(ids: list[int], regions: bool = False) -> torch.Tensor:
        parts, shown = [], False
        for index in ids:
            if index == MARK_ID:
                parts, shown = [*parts, model.fill(Slot("image"), drawn, list)], True
            elif index == PLACE and shown and regions:
                parts.append(model.fill(Slot("region"), drawn, list))
            else:
                parts.append(model.embed([index]))
        return torch.cat(parts)[None]

    embeds = row(given["input_ids"][0].tolist())
    length, written, states = embeds.shape[1], [], []
    while len(written) < 1000 and (not written or written[-1] != config["eos id"]):
        grown = torch.cat((embeds, model.embed(written)[None]), 1) if written else embeds
        out = model.language(inputs_embeds=grown, output_hidden_states=True)
        written.append(int(out.logits[0, -1].argmax()))
        if written[-1] == config["seg id"]:
            states.append(out.hidden_states[-1][:, -1:])
    whole = torch.cat((embeds, model.embed(written)[None]), 1)
    return {
        "projected_image": vectors,
        "inputs_embeds": embeds,
        "inputs_embeds_region": row(given["input_ids_region"][0].tolist(), regions=True),
        "output_ids": torch.tensor(written),
        "seg_hidden": torch.cat(states, 1),
        "full_hidden": model.language(inputs_embeds=whole, output_hidden_states=True).hidden_states[-1],
        "picked_positions": torch.tensor(
            [length - 1 + index for index, one in enumerate(written) if one == config["seg id"]]
        ),
    }


PLACE = 1273  # the id of " %", where a drawn place goes
FIRST = "state.model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
TWICE = (r"^sem_seg_head\.predictor\.decoder\.norm\.", r"predictor\.lang_mapper$")
HANDLERS = {
    "dialect": dialect, "prompts": prompts, "swin_backbone": backbone, "openseed_head": grounded,
    "grounding_head": judged, "preprocess": preprocessed, "generate_seg": spoken,
}  # fmt: skip
