"""Recorded cases of Kosmos-2 (transformers `models/kosmos2`): texts, pictures, positions, parts, a tiny whole model."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmchat.dialect import Cells, Scene
from mmchat.dialect.table import KOSMOS2
from mmchat.families.kosmos2 import FAMILY, Resampler, Tower, build, sizes
from mmchat.geometry import Box, Frame, outline
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import images
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found, found
from mmchat.templates import TEMPLATES

PHRASE = re.compile(r"<phrase>.+?</phrase>")
ABSORBED = re.compile(r" (?=</?(?:image|phrase|object|grounding|patch_index|delimiter))")


def prompts(case: Case) -> list[Line]:
    """Tasks with and without picture and boxes; a space before a mark belongs to the mark's token and is left out."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES["kosmos2"]
        text = with_boxes(entry["text"], ast.literal_eval(entry["bboxes"]))
        asked = template.beside((text,), (0,)) if entry["image"] else (text,)
        written = texts.talk(template, [(asked, None)]) if not entry["image"] else _shown(asked, entry)
        return ABSORBED.sub("", written)

    single = [entry for entry in case.info["prompts"] if "prompt" in entry]  # the others show a tokenizer's batch
    recorded = [{**entry, "prompt": ABSORBED.sub("", entry["prompt"])} for entry in single]
    return texts.prompts(recorded, ours)


def _shown(asked: tuple, entry: texts.Entry) -> str:
    """The picture's slot as the recorded number of marks."""
    slots = "<image>" * entry["num_image_tokens"]
    return "".join(piece if isinstance(piece, str) else slots for piece in asked)


def with_boxes(text: str, given: list | None) -> str:
    """Boxes put behind the phrases of a text, one entry a phrase: cells (two ints), corners (four floats), a list of
    such, or None. ValueError where their numbers or kinds do not fit.
    """
    text = text.strip()
    if not given:
        return text
    ends = [match.end() for match in PHRASE.finditer(text)]
    if len(given) != len(ends):
        raise ValueError(f"the text has {len(ends)} phrases and {len(given)} entries of boxes: give one for each")
    parts = [text[start:end] for start, end in zip((0, *ends), (*ends, len(text)), strict=True)]
    return "".join(map("".join, zip(parts, [*map(_object, given), ""], strict=True)))


def _object(boxes: list | tuple | None) -> str:
    """What stands behind one phrase."""
    chosen = boxes if isinstance(boxes, list) else [] if boxes is None else [boxes]
    if not all(isinstance(box, tuple) for box in chosen):
        raise ValueError("a box is a tuple of two cells or of four corners")
    marks = [f"<patch_index_{first:04d}><patch_index_{last:04d}>" for first, last in map(_cells, chosen)]
    return f"<object>{'</delimiter_of_multi_objects/>'.join(marks)}</object>" if marks else ""


def _cells(box: tuple) -> tuple[int, int]:
    if len(box) == 2 and all(isinstance(cell, int) for cell in box):
        return box
    if len(box) != 4 or not all(isinstance(corner, float) for corner in box) or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError("corners are four floats with an area between them")
    first, last = re.findall(r"\d+", KOSMOS2.write([Box(*box)]))
    return int(first), int(last)


def dialect(case: Case) -> list[Line]:
    """Three readers, boxes to cells, and prompts with boxes put in."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        entities = (entry["result"] or {}).get("entities") or []
        theirs = [(entity["phrase"].strip(), box) for entity in entities for box in entity["boxes"]]
        theirs = [(None if label.startswith("<") else label, box) for label, box in theirs]
        return found(KOSMOS2, entry["text"], (1, 1)), theirs, (1.0, 1.0)

    def cells(entry: Entry) -> list[int]:
        x0, y0, x1, y1 = entry["box_01_xyxy"]
        if x1 <= x0 or y1 <= y0:
            raise ValueError("a box needs an area")
        form = replace(KOSMOS2.forms[0], code=Cells(entry.get("patches_per_side", 32)))
        return [int(number) for number in re.findall(r"\d+", form.write([Box(x0, y0, x1, y1)], Scene()) or "")]

    readers = dict.fromkeys(dict.fromkeys(entry["reader"] for entry in case.info["parse"]), read)
    inserted = [
        {**entry, "result": ABSORBED.sub("", entry["result"])} if entry["result"] else entry
        for entry in case.info["prompt_writer"]
    ]
    return [
        *texts.read_all(case.info["parse"], readers),
        *texts.table(case.info["write"], cells, "cells_transformers"),
        *texts.table(inserted, _inserted, "result", "prompt_writer"),
        *texts.table(case.info["training_center_crop"], _cropped, "box_in_crop_01", "training_center_crop"),
    ]


def _cropped(entry: Entry) -> list[float] | None:
    """A box in the middle square of a picture; None where too little of it is left."""
    short, side = entry["resize_short_side"], entry["crop"]
    square = outline(Frame(short, "crop").place(tuple(entry["image_size"])).into(Box(*entry["box_01"])))
    numbers = (square.x0, square.y0, square.x1, square.y1)
    whole = Box(*((number - 0.5) * short / side + 0.5 for number in numbers))
    box = whole.clipped()
    kept = box.area > entry["drop_crop_thr"] * whole.area
    return [box.x0, box.y0, box.x1, box.y1] if kept else None


def _inserted(entry: Entry) -> str:
    text = with_boxes(entry["text"], ast.literal_eval(entry["bboxes"]))
    if entry["with_image"]:
        template = TEMPLATES["kosmos2"]
        text = _shown(template.beside((text,), (0,)), entry)
    return ABSORBED.sub("", text)


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The squashed picture as PIL resizes it, which is the original's way and ours; and as torch resizes bytes, which
    transformers does by now.
    """
    config = case.config
    side, mean, std = config["size"][0], tuple(config["mean"]), tuple(config["std"])
    frame, out = Frame(side, "squash", mean=mean, std=std), {}
    for name, image in images(case).items():
        number = name.rpartition(".")[2]
        bytes_ = case.inputs()[name].permute(2, 0, 1)[None]
        resized = F.interpolate(bytes_, size=(side, side), mode="bicubic", antialias=True)[0]
        middle, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
        out[f"pixel_values_pil.{number}"] = torch.from_numpy(frame.fit(image)[0])
        out[f"pixel_values.{number}"] = (resized.float() / 255 - middle) / spread
    return out


def config_of(case: Case) -> dict[str, Any]:
    """The case's sizes under the keys of a published config.json."""
    config = case.config
    return {
        "vision_config": config["vision"], "text_config": config["text"], "latent_query_num": config["latent_query_num"]
    }  # fmt: skip


@torch.no_grad()
def seen(case: Case, dtype: torch.dtype) -> Outputs:
    """Tower and resampler step by step."""
    config = config_of(case)

    class Eyes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.bridge = Tower(config["vision_config"]), Resampler(sizes(config))

    net = filled(Eyes, case.state(), dtype, FAMILY.keys, FAMILY.drop)
    pixels = case.inputs(dtype)["pixel_values"]
    tower, states = net.vision, net.vision.hidden_states(pixels)
    (normalised,) = tower(pixels)
    return {
        "embeddings": tower.embeddings(pixels),
        "pre_layrnorm": states[0],
        **{f"layer.{index}": state for index, state in enumerate(states[1:])},
        "last_hidden_state": states[-1],
        "post_layernorm": tower.post_layernorm(states[-1]),
        "normalised": normalised,
        "image_embeds": net.bridge((normalised,)),
    }


def positions(case: Case, dtype: torch.dtype) -> Outputs:
    """The sinusoidal table and which row of it each token takes."""
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextSinusoidalPositionalEmbedding as Positions

    config, ids = case.config, case.inputs()["input_ids"]
    made = Positions(config["num_positions"], config["embedding_dim"], config["padding_idx"])
    past = int(case.inputs()["past"])
    vectors = torch.zeros(*ids.shape, config["embedding_dim"])
    return {
        "table": made.weights,
        "position_ids": made.create_position_ids_from_input_ids(ids, made.padding_idx),
        "positions": made(input_ids=ids),
        "one_token_with_past": made(input_ids=ids[:, -1:], past_key_values_length=past),
        "from_embeds": made(inputs_embeds=vectors),
    }


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures and ids to hidden states, logits and greedy ids, through the family's model."""
    config, given = config_of(case), case.inputs(dtype)
    model = filled(lambda: build(config), case.state(), dtype, FAMILY.keys, FAMILY.drop)
    language, ids, mask = model.language, given["input_ids"], given["attention_mask"]
    vectors = torch.stack(model.see(given["pixel_values"]).images)

    def run(rows: torch.Tensor, real: torch.Tensor, pictures: torch.Tensor | None) -> Any:
        embeds = model.embed(rows)
        if pictures is not None:
            embeds[given["image_embeds_position_mask"][: len(rows), : rows.shape[1]].bool()] = pictures.flatten(0, 1)
        # Positions count what is real: the library would count embeddings without looking at the mask.
        places = (real.cumsum(1) * real + language.config.pad_token_id).long()
        return language(inputs_embeds=embeds, attention_mask=real, position_ids=places, output_hidden_states=True)

    pads = (ids != language.config.pad_token_id).long()
    torch.set_default_dtype(dtype)  # the library's causal mask has the type that tensors have by default
    try:
        result, text = run(ids, mask, vectors), run(ids, mask, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(pads, mask), "the record's mask is where its ids are not padding"
    recorded, real = case.tensors, mask.bool()[..., None]
    out = {
        "image_embeds": vectors,
        # The record says that rows of padding mean nothing.
        "logits": torch.where(real, result.logits, recorded["out.logits"].to(dtype)),
        "logits_text_only": torch.where(real, text.logits, recorded["out.logits_text_only"].to(dtype)),
    }
    for index, state in enumerate(result.hidden_states):
        out[f"hidden.{index}"] = torch.where(real, state, recorded[f"out.hidden.{index}"].to(dtype))
    if dtype == torch.float32:
        asked = given["input_ids_generate"]
        steps = recorded["out.generated"].shape[1] - asked.shape[1]
        out["generated"] = spoken(model, asked, vectors[:1], given["image_embeds_position_mask"][:1], steps)
        out["generated_no_repeat_ngram"] = spoken(
            model, asked, vectors[:1], given["image_embeds_position_mask"][:1], steps,
            case.config["no_repeat_ngram_size"],
        )  # fmt: skip
    return out


def spoken(
    model: nn.Module, ids: torch.Tensor, pictures: torch.Tensor, mask: torch.Tensor, steps: int, ngram: int = 0
) -> torch.Tensor:
    """Greedy ids [1, T + steps], each step computed afresh. `ngram`: no run of so many ids comes twice (0: any may)."""
    for _ in range(steps):
        embeds = model.embed(ids)
        shown = mask[:, : ids.shape[1]].bool()
        embeds[:, : shown.shape[1]][shown] = pictures.flatten(0, 1)
        logits = model.language(inputs_embeds=embeds).logits[0, -1]
        if ngram:
            said = ids[0].tolist()
            tail = said[len(said) - ngram + 1 :]
            for start in range(len(said) - ngram + 1):
                if said[start : start + ngram - 1] == tail:
                    logits[said[start + ngram - 1]] = -torch.inf
        ids = torch.cat((ids, logits.argmax().reshape(1, 1)), 1)
    return ids


HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "CLIPImageProcessor (tensor resize) and CLIPImageProcessorPil with a square size": preprocessed,
    "Kosmos2VisionModel, post_layernorm, L2 normalisation, Kosmos2ImageToTextProjection": seen,
    "Kosmos2TextSinusoidalPositionalEmbedding": positions,
    "Kosmos2ForConditionalGeneration": whole,
}
