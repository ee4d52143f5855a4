"""Recorded numbers of what today's models have beside their words: region heads, a decoder of masks, phrase maps."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmchat.dialect.maps import GROUNDING_DINO, Detection, caption
from mmchat.geometry import Point
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry
from mmchat.nets.moondream import RegionHeads, centre, coordinate_of, extent, size_of
from mmchat.nets.paligemma import MaskDecoder

KEYS = ((r"^region\.", ""),)
REFERENCES = [(0.1, 0.2), (0.3, 0.25, 0.8, 0.9), (0.5, 0.5, 0.5, 0.5), (0.9, 0.05)]


@torch.no_grad()
def region_heads(case: Case, dtype: torch.dtype) -> Outputs:
    """Moondream's encoders and decoders of coordinates and sizes."""
    heads = filled(lambda: RegionHeads(case.config), case.state(), dtype, KEYS)
    given = case.inputs(dtype)
    scores, sizes = heads.score_coordinates(given["hidden"]), heads.score_sizes(given["hidden"])
    spots, sides = heads.embed_places(REFERENCES)
    return {
        "coord_logits": scores,
        "size_logits": sizes,
        "coord_embedding": heads.embed_coordinates(given["coords"]),
        "size_embedding": heads.embed_sizes(given["sizes"]),
        "refs.coords": spots,
        "refs.sizes": sides,
        "coordinate_of_bin": coordinate_of(given["bins"]),
        "size_of_bin": size_of(given["bins"]),
        "center_from_logits": centre(scores),
        "size_from_logits": extent(sizes),
    }


@torch.no_grad()
def mask_decoder(case: Case, dtype: torch.dtype) -> Outputs:
    """PaliGemma's masks, before the threshold."""
    config = case.config
    sizes = (config["codebook"], config["embedding_dim"], config["dim"])
    net = filled(lambda: MaskDecoder(*sizes), case.state(), dtype)
    codes = case.inputs()["indices"]
    return {"quantized": net.quantised(codes), "mask": net(codes)[..., None]}


def phrase_maps(case: Case) -> list[Line]:
    """Grounding DINO's phrases of every caption, by both readers, and what the caption is.

    The originals keep marks of the tokenizer in a phrase; the readers compared here are ours, told to keep them too.
    """
    lines = [line for caption in case.info["cases"] for line in _phrases(case, caption)]
    for entry in case.info["prepare_text"]:
        theirs = entry.get("official", entry.get("transformers"))
        lines.append(texts.line({**entry, "function": "caption"}, _caption, theirs))
    return lines


def _caption(entry: Entry) -> str | list[str]:
    """What transformers makes of a string or of phrases that hold dots is nothing: they are captions as they are."""
    given = entry["text"]
    if "official" in entry:
        return caption(given)
    if isinstance(given, str) or any("." in phrase for phrase in given if isinstance(phrase, str)):
        return given
    return caption(given) if isinstance(given[0], str) else [caption(phrases) for phrases in given]


def _phrases(case: Case, said: Entry) -> list[Line]:
    number = said["index"]
    logits = case.tensors[f"in.logits.{number}"].double().tolist()
    boxes = case.tensors[f"in.boxes_cxcywh.{number}"].double().tolist()
    lines = []
    for entry in said["runs"]:
        kept = replace(
            GROUNDING_DINO,
            box=entry.get("box_threshold", entry.get("threshold")),
            text=entry["text_threshold"],
            tidy=False,
            one=entry.get("remove_combined", False),
        )
        found = kept.detections(logits, said["tokens"], boxes)
        about = f"{entry['function']}: {said['caption']!r} {kept.box} {kept.text} {kept.one}"
        lines.append(Line(about, [_ours(item, entry) for item in found], _theirs(entry)))
    return lines


def _ours(found: Detection, entry: Entry) -> list:
    """A detection as the original gives it: the older one takes the dots out of a phrase."""
    if "phrases" in entry:
        box = found.box
        return [found.phrase.replace(".", ""), [*_point(box.centre), box.width, box.height], found.score]
    return [found.phrase, list(found.box.pixels(tuple(entry["image_size"]))), found.score]


def _point(point: Point) -> tuple[float, float]:
    return point.x, point.y


def _theirs(entry: Entry) -> list:
    names = entry.get("phrases", entry.get("text_labels"))
    places = entry.get("boxes_cxcywh", entry.get("boxes_xyxy_pixels"))
    return [list(item) for item in zip(names, places, entry["scores"], strict=True)]


HANDLERS = {
    "region_head_1": region_heads,
    "region_head_2": region_heads,
    "mask_decoder": mask_decoder,
    "phrase_mapping": phrase_maps,
}
