"""Composed scenes as the language model's lessons need them: what is there and at which candidate, beside what the eyes
gave for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmchat.nets.clue import Seen, place_of
from mmchat.nets.evidence import Fuser
from mmchat.nets.regions import iou, roi_align
from mmchat.train.fuser import CHANNELS, WIDTH, cached, in_letterbox
from mmchat.train.questions import Item, Picture
from mmchat.train.words import Noun

SIDE = 6  # picture tokens: SIDE x SIDE
ENOUGH = 0.5  # a candidate that meets a thing this well stands for it


@dataclass(frozen=True)
class Sights:
    """What the eyes gave for one picture: `picture` [36, 256], `regions` [R, 256 + 384], both float32."""

    picture: torch.Tensor
    regions: torch.Tensor


def word_vectors(
    things: torch.Tensor, classes: torch.Tensor, labels: Mapping[str, torch.Tensor], most: int = 10
) -> torch.Tensor:
    """Detector scores [R, 80] and class probabilities [R, 1000] -> [R, 384]: label vectors weighed by them, the `most`
    best classes only."""
    best = classes.topk(most, dim=-1)
    return things @ labels["things"] + (best.values[..., None] * labels["classes"][best.indices]).sum(1)


def picture_of(record: Mapping[str, Any], line: Mapping[str, Any]) -> Picture:
    """Each thing at the candidate that meets it best, or with its box where none does; with the scene's phrases."""
    boxes = record["boxes"].float()
    items: list[Item] = []
    used: set[int] = set()
    for thing in line["objects"]:
        box = in_letterbox(thing["box"], line["width"], line["height"], record["place"])
        met = iou(boxes, torch.tensor([box]))[:, 0]
        for index in used:
            met[index] = 0
        best = int(met.argmax())
        held = best if float(met[best]) >= ENOUGH else None
        if held is not None:
            used.add(held)
        noun = Noun(thing["name"], tuple(thing["synonyms"]), tuple(thing["hypernyms"]), thing["plural"], ())
        place = place_of([value / (line["width"], line["height"])[axis % 2] for axis, value in enumerate(thing["box"])])
        seen = Seen(held, (noun.name, *noun.synonyms)[:2], thing["colour"] or "", place, tuple(box))
        items.append(Item(seen, noun.hypernyms, noun.plural))
    absent = tuple(said["head"] for said in line["phrases"] if said["level"] == "absent")
    return Picture(tuple(items), (), absent, tuple((said["text"], said["object"]) for said in line["phrases"]))


@torch.no_grad()
def sights_of(record: Mapping[str, Any], fuser: Fuser, labels: Mapping[str, torch.Tensor]) -> Sights:
    """The fused map pooled for the picture, averaged for each candidate, with the candidates' word vectors behind."""
    _, fused, _ = fuser([level[None].float() for level in record["levels"]])
    pooled = F.adaptive_avg_pool2d(fused, SIDE).flatten(2)[0].T
    regions = roi_align(fused, record["boxes"].float(), size=3).mean((2, 3))
    return Sights(
        pooled, torch.cat([regions, word_vectors(record["det"].float(), record["cls"].float(), labels)], dim=-1)
    )


@torch.no_grad()
def load_pictures(
    features: Path, scenes: Path, weights: Path, labels: Path, kept: Path
) -> list[tuple[Picture, Sights]]:
    """Every cached scene, seen through the trained fuser; `kept` holds them for the next time. ValueError if none."""
    fuser = Fuser(CHANNELS, WIDTH)
    fuser.load_state_dict({name.removeprefix("fuser."): tensor.float() for name, tensor in load_file(weights).items()})
    fuser.eval()
    table = {name: tensor.float() for name, tensor in load_file(labels).items()}
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = torch.load(kept, weights_only=True) if kept.exists() else {}
    before = len(known)
    out: list[tuple[Picture, Sights]] = []
    for number, record, line in cached(features, scenes):
        if number not in known:
            seen = sights_of(record, fuser, table)
            known[number] = (seen.picture.half(), seen.regions.half())
        out.append((picture_of(record, line), Sights(*(part.float() for part in known[number]))))
    if not out:
        raise ValueError(f"no cached features in {features}: run the features step first")
    if len(known) > before:
        torch.save(known, kept)
    return out
