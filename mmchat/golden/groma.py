"""Recorded cases of Groma (FoundationVision/Groma): texts, the tower and its proposals, regions, a tiny whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmchat.dialect import Scene
from mmchat.dialect.table import GROMA
from mmchat.families.groma import FAMILY, Merged, frame, merged, survivors
from mmchat.geometry import Box, outline
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import images, written
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry
from mmchat.nets.dinov2 import Dinov2Tower
from mmchat.nets.model import as_map
from mmchat.nets.openseed import corners
from mmchat.nets.proposer import Proposed, Proposer
from mmchat.nets.regions import iou
from mmchat.nets.roi import RegionEncoder
from mmchat.prompt import Piece, Slot
from mmchat.templates import TEMPLATES

REFERRED = "<roi><refer_box></roi><refer_feat>"
NAMES = {"llava": "groma", "default": "groma_default", "simple": "groma_simple", "llama_2": "groma_llama_2"}


def prompts(case: Case) -> list[Line]:
    """Every form with every way of asking. An instruction of the data sets alone is no prompt and is left out."""

    def ours(entry: Entry, words: Mapping[str, str]) -> str:
        template = TEMPLATES[NAMES[entry["template"]]]
        question = (
            entry["instruction"].format(_object(entry, words)) if "instruction" in entry else words[entry["task"]]
        )
        said: list[tuple[tuple[Piece, ...], str | None]] = [(template.beside((question,), (0,)), words["answer"])]
        said += [((words["second"],), words["reply"]), ((words["third"],), None)]
        said = said if entry["turns"] == 3 else [(said[0][0], None)]
        messages = []
        for asked, answer in said:
            messages += [("user", asked), ("assistant", (answer,) if answer else ())]
        return spelled(template.lay_out(messages))

    return texts.told([entry for entry in case.info["prompts"] if "prompt" in entry], ours)


def _object(entry: Entry, words: Mapping[str, str]) -> str:
    """What stands for {} in an instruction: words to locate where its data set gives words, else a drawn region."""
    named = any(name in entry["task"] for name in ("refcoco_rec", "coco.INSTRUCTIONS"))
    return f"<p>{words['named']}</p>" if named else REFERRED


def spelled(prompt: tuple[str | Slot, ...]) -> str:
    """Pieces as the original writes them, the candidates as <region>."""
    return written(
        tuple("<region>" if isinstance(piece, Slot) and piece.kind == "region" else piece for piece in prompt)
    )


def dialect(case: Case) -> list[Line]:
    """Which regions an answer names, how a caption is cleaned, how a phrase is asked for."""

    def named(entry: Entry) -> dict:
        count = entry["number_of_boxes"]
        given = {int(key): value for key, value in entry["boxes_cxcywh"].items()}
        boxes = tuple(_box(given.get(number, (0.5, 0.5, 0.5, 0.5))) for number in range(count))
        grounded = GROMA.read(entry["text"], Scene(boxes))
        chosen = sorted(
            (source, region, place)
            for span in grounded.spans
            for source, region, place in zip(span.source, span.regions, span.places, strict=True)
        )
        ids = [region for _, region, _ in chosen]
        size = tuple(entry["image_size"])
        return {"ids": ids, "boxes_xyxy_pixels": [list(outline(place).pixels(size)) for _, _, place in chosen]}

    def cut(entry: Entry) -> dict:
        """The original's boxes inside of the picture, as ours are."""
        size = tuple(entry["image_size"])
        boxes = [Box.from_pixels(box, size).clipped().pixels(size) for box in entry["result"]["boxes_xyxy_pixels"]]
        return {"ids": entry["result"]["ids"], "boxes_xyxy_pixels": [list(box) for box in boxes]}

    regions = [entry for entry in case.info["parse"] if entry["function"].startswith("region ids")]
    captions = [entry for entry in case.info["parse"] if not entry["function"].startswith("region ids")]
    asked = [entry for entry in case.info["write"] if entry["what"] == "phrase to locate"]
    return [
        *texts.table([{**entry, "result": cut(entry)} for entry in regions], named),
        *texts.table(
            [{**entry, "result": _words(entry["result"])} for entry in captions],
            lambda entry: _words(GROMA.read(entry["text"]).text),
        ),
        *texts.table(asked, lambda entry: GROMA.write((), entry["text"][3:-4]), "text", "write"),
    ]


def _words(text: str) -> str:
    """A caption without its blanks and quotes: how these stand is for scoring alone."""
    return "".join(text.split()).strip("'\"")


def _box(numbers: tuple[float, ...]) -> Box:
    x, y, width, height = numbers
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def steps(proposed: Proposed) -> dict[str, torch.Tensor]:
    """The proposer's inner values under their recorded names."""
    return {
        "encoder": proposed.memory,
        "enc_class": proposed.place_scores,
        "enc_coord_logits": proposed.place_boxes,
        "topk": proposed.chosen,
        "init_reference": proposed.first,
        "decoder_states": proposed.states,
        "references": proposed.references,
        "logits_coco": proposed.coco,
        "logits_sa1b": proposed.sa1b,
        "pred_boxes": proposed.boxes,
        "score": proposed.scores,
    }


@torch.no_grad()
def proposer(case: Case, dtype: torch.dtype) -> Outputs:
    """The transformer of the proposer alone."""
    net = filled(lambda: Proposer(case.config), case.state(), dtype)
    given = case.inputs(dtype)
    return steps(net.propose([given[f"sources.{level}"] for level in range(net.levels)]))


class Perceiver(nn.Module):
    """Tower and proposer, as they are recorded together."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vision = Dinov2Tower(config["vis_encoder_cfg"])
        self.proposer = Proposer(config["ddetr_cfg"], self.vision.width)


@torch.no_grad()
def perceiver(case: Case, dtype: torch.dtype) -> Outputs:
    """Hidden states, the mean of the last four, its projections, and the proposals."""
    state = {f"perceiver.{name}": tensor for name, tensor in case.state().items()}
    net = filled(lambda: Perceiver(case.config), state, dtype, FAMILY.keys, FAMILY.drop)
    states = net.vision(case.inputs(dtype)["images"])
    mean = as_map(torch.stack(states[-4:]).mean(0)[:, 1:])
    sources = [project(mean) for project in net.proposer.input_proj]
    out = {f"hidden.{number}": tensor for number, tensor in enumerate(states)}
    out |= {f"sources.{number}": tensor for number, tensor in enumerate(sources)}
    return {**out, "mean4": mean, **steps(net.proposer(mean))}


@torch.no_grad()
def bridge(case: Case, dtype: torch.dtype) -> Outputs:
    """Four patches in one, and the two layers."""
    config, tokens = case.config, case.inputs(dtype)["tokens"]
    keys = ((r"^(?:img_txt_bridge\.)?", ""),)
    net = filled(lambda: Merged(config["hidden"], config["out"]), case.state(), dtype, keys)
    return {"merged": merged(tokens), "bridge": net(tokens)}


@torch.no_grad()
def regions(case: Case, dtype: torch.dtype) -> Outputs:
    """Joined levels, and boxes read from them step by step; odd boxes too."""
    config, given = case.config, case.inputs(dtype)
    sizes = (config["embed_dims"], config["out_dims"], config["mid_dims"])
    keys = ((r"^region_encoder\.(?:mlvl_fuse|roi_align)\.", ""),)
    net = filled(lambda: RegionEncoder(*sizes), case.state(), dtype, keys)
    maps = net.fuse([as_map(given[f"feats.{level}"]) for level in range(3)])
    boxes = [given[f"boxes.{number}"] for number in range(len(maps[0]))]
    owners = torch.cat([torch.full((len(some),), number) for number, some in enumerate(boxes)])
    gathered = net.gather(maps, torch.cat(boxes), owners)
    out = {"flatten_linear": gathered.flat, "box_embedding": gathered.placed}
    for number, (level, cells) in enumerate(zip(maps, gathered.cells, strict=True)):
        out |= {f"fused_channel_mean.{number}": level.mean(1), f"fused_channel3.{number}": level[:, 3]}
        out |= {f"roi_mean.{number}": cells.mean(1), f"roi_channel0.{number}": cells[:, 0]}
    for number, vectors in enumerate(gathered.vectors.split([len(some) for some in boxes])):
        out[f"regions.{number}"] = vectors
    return out


def selection(case: Case, dtype: torch.dtype) -> Outputs:
    """Which boxes stay. Those worth the same have no order of their own: ours are put in the recorded one."""
    given, out = case.inputs(dtype), {}
    for one in case.config["cases"]:
        number = one["case"]
        boxes, scores, drawn = (given[f"{number}.{name}"] for name in ("boxes", "scores", "refer_boxes"))
        kept = survivors(boxes, scores, drawn, one["iou_threshold"], one["score_threshold"], one["max_num"])
        recorded = case.tensors[f"out.{number}.index"]
        worth = torch.cat((scores, torch.ones(len(drawn))))
        for value in worth[kept].unique().tolist():
            ties = worth[kept] == value
            theirs = recorded[worth[recorded] == value]
            if set(kept[ties].tolist()) == set(theirs.tolist()):
                kept[ties] = theirs
        out |= {f"{number}.index": kept, f"{number}.boxes": torch.cat((boxes, drawn))[kept]}
    return out


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures, ids and drawn boxes -> proposals, regions, spliced rows, logits, through the family's model.

    Regions are numbered as recorded; which stay is chosen here. Ids are laid out as the engine does: a picture's
    vectors, all regions with their marks, a drawn region's mark and its vector.
    """
    config, given = case.config, case.inputs(dtype)
    ids = config["special ids"]
    sizes = {**config, "region_middle": case.tensors["state.region_encoder.roi_align.updims.weight"].shape[1]}
    model = filled(lambda: FAMILY.build(sizes), case.state(), dtype, FAMILY.keys, FAMILY.drop, FAMILY.fold)
    model.first = ids["first region id"]
    out: dict[str, torch.Tensor] = {}
    made: dict[str, list[torch.Tensor]] = {name: [] for name in LISTED}
    for number, row in enumerate(given["input_ids"]):
        encoded = model.encode(given["images"][number : number + 1])
        proposed, maps = encoded.kept
        drawn = given.get(f"refer_boxes.{number}", torch.zeros(0, 4)).float()
        boxes, scores = proposed.boxes[0], proposed.scores[0]
        kept = survivors(boxes.float(), scores.float(), drawn, model.overlap, model.least, model.most)
        order = given[f"permutation.{number}"].long()
        selected = torch.cat((boxes.float(), drawn))[kept][order]
        seen = model.with_regions(encoded, selected, maps)
        out[f"selected_boxes.{number}"] = selected
        best = iou(corners(drawn), corners(selected)).argmax(1) if len(drawn) else []
        marks, features = iter(best), iter(best)
        parts = []
        for one in row.tolist():
            if one == ids["image"]:
                parts.append(model.fill(Slot("image", 0), seen, list))
            elif one == ids["region"]:
                parts.append(model.fill(Slot("region", -1), seen, list))
            elif one == ids["refer_box"]:
                parts.append(model.embed([model.first + int(next(marks))]))
            elif one == ids["refer_feat"]:
                parts.append(model.fill(Slot("region", int(next(features))), seen, list))
            else:
                parts.append(model.embed([one]))
        made["inputs_embeds"].append(torch.cat(parts))
        real = sum(len(part) for part, one in zip(parts, row.tolist(), strict=True) if one != ids["pad"])
        logits = model.language(inputs_embeds=torch.cat(parts)[None, :real]).logits[0]
        made["logits"].append(logits)
        for name, value in zip(LISTED[2:], (boxes, scores, encoded.vectors[0], seen.regions), strict=True):
            made[name].append(value)
    # Behind the end of a row nothing means anything: the recorded padding stands there.
    for name in ("inputs_embeds", "logits"):
        for number, (rows, theirs) in enumerate(zip(made[name], case.tensors[f"out.{name}"], strict=True)):
            made[name][number] = torch.cat((rows, theirs[len(rows) :].to(rows)))
    out |= {name: torch.stack(made[name]) for name in LISTED[:-1]}
    return out | {"region_features": torch.cat(made["region_features"])}


LISTED = ("inputs_embeds", "logits", "pred_boxes", "scores", "image_features", "region_features")


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The picture squashed to the square: as the demo does, which is the family's road; and as training did."""
    out = {}
    shape = frame({"seen_side": case.config["size"]})
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (shape.mean, shape.std))
    for name, image in images(case).items():
        number = name.partition(".")[0]
        out[f"{number}.demo"] = torch.from_numpy(shape.fit(image)[0])
        squashed = training_squash(np.asarray(image), case.config["size"])
        out[f"{number}.training"] = (torch.from_numpy(squashed).permute(2, 0, 1) / 255 - mean) / std
    return out


def training_squash(image: np.ndarray, side: int) -> np.ndarray:
    """OpenCV's bilinear resizing of uint8 [h, w, 3] to a square: weights are whole 2048ths, sums are cut as it does.

    Beyond a side's edge its pixel counts alone; beyond the top or bottom it counts twice, and is cut twice.
    """

    def along(length: int, alone: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        at = ((np.arange(side) + 0.5) * (length / side) - 0.5).astype(np.float32)
        low = np.floor(at).astype(np.int64)
        part = (at - low).astype(np.float32)
        if alone:
            part[(low < 0) | (low >= length - 1)] = 0.0
        near, far = (np.rint(weight * 2048).astype(np.int64) for weight in (1 - part, part))
        return low.clip(0, length - 1), (low + 1).clip(0, length - 1), near, far

    left, right, near_x, far_x = along(image.shape[1], True)
    upper, lower, near_y, far_y = along(image.shape[0], False)
    wide = image.astype(np.int64)
    rows = wide[:, left] * near_x[:, None] + wide[:, right] * far_x[:, None]
    above, below = (
        (weight[:, None, None] * (rows[index] >> 4)) >> 16 for index, weight in ((upper, near_y), (lower, far_y))
    )
    return ((above + below + 2) >> 2).clip(0, 255).astype(np.float32)


HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "proposer_one_level": proposer,
    "proposer_three_levels": proposer,
    "perceiver_one_level": perceiver,
    "perceiver_four_levels": perceiver,
    "token_merge_bridge": bridge,
    "region_encoder": regions,
    "region_selection": selection,
    "whole": whole,
    "whole_refer": whole,
    "preprocess": preprocessed,
}
