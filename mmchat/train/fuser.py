"""Train MMFuser's block over the frozen encoder's levels: a region of the fused map should tell what lies in it, by
name and by colour.

Reads the cached features of composed scenes: FEATURES/*.pt, each a list of records with `boxes` [R, 4] and `place`
(width, height, x, y: where the picture lies) in the unit square of the letterbox, `levels` [[c, h, w], ...] and what
detector and classifier said of each box.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mmchat.nets.evidence import Fuser
from mmchat.nets.regions import iou, roi_align
from mmchat.train.words import COLOURS

CHANNELS = (48, 120, 352, 1280)  # EfficientNet-Lite2's levels at strides 8, 16, 32 and its head at stride 32
WIDTH = 256


class Teacher(nn.Module):
    """What the fuser is asked in training; not shipped. `names` [n, 384]: word vectors of the nouns, of length one."""

    def __init__(self, names: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("names", names)
        self.name = nn.Linear(WIDTH, names.shape[1])
        self.colour = nn.Linear(WIDTH, len(COLOURS))
        self.warmth = nn.Parameter(torch.tensor(2.5))

    def forward(self, regions: torch.Tensor, nouns: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """regions [K, 256]; nouns [K] rows of `names`; colours [K] or -1. The sum of both cross entropies."""
        likeness = F.normalize(self.name(regions), dim=-1) @ self.names.T
        loss = F.cross_entropy(likeness * self.warmth.exp(), nouns)
        if bool((colours >= 0).any()):
            loss = loss + 0.5 * F.cross_entropy(self.colour(regions), colours, ignore_index=-1)
        return loss


def in_letterbox(box: Sequence[float], width: int, height: int, place: Sequence[float]) -> list[float]:
    """A box in pixels of the picture -> unit square of the letterbox. `place`: (width, height, x, y) of the picture in
    it."""
    across, down, left, top = place
    x0, y0, x1, y1 = box
    return [left + x0 / width * across, top + y0 / height * down, left + x1 / width * across, top + y1 / height * down]


def cached(features: Path, scenes: Path) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    """(scene number, record of features, line of scenes.jsonl), in the order of the numbers."""
    lines = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text(encoding="utf-8").splitlines()]
    for path in sorted(features.glob("*.pt")):
        for offset, record in enumerate(torch.load(path, weights_only=True)):
            yield int(path.stem) + offset, record, lines[int(path.stem) + offset]


def lesson(
    record: Mapping[str, Any], line: Mapping[str, Any], rows: Mapping[str, int]
) -> tuple[torch.Tensor, ...] | None:
    """Boxes [K, 4] of a scene's things and of the candidates that meet them, noun rows [K], colours [K]; None without
    any."""
    boxes, nouns, colours = [], [], []
    true = torch.tensor(
        [in_letterbox(thing["box"], line["width"], line["height"], record["place"]) for thing in line["objects"]]
    )
    met = iou(record["boxes"].float(), true)
    for index, thing in enumerate(line["objects"]):
        near = [record["boxes"][k].float() for k in (met[:, index] > 0.6).nonzero().flatten().tolist()]
        for box in [true[index], *near[:2]]:
            boxes.append(box)
            nouns.append(rows[thing["name"]])
            colours.append(COLOURS.index(thing["colour"]) if thing["colour"] else -1)
    return (torch.stack(boxes), torch.tensor(nouns), torch.tensor(colours)) if boxes else None


def train(
    fuser: Fuser, teacher: Teacher, lessons: Sequence[tuple], steps: int, peak: float, seed: int = 0, size: int = 8
) -> Iterator[float]:
    """Yields the loss of each step. `lessons`: (levels, boxes, nouns, colours) of each scene."""
    chance = random.Random(seed)
    learned = [*fuser.parameters(), *teacher.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=peak, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=0.1)
    for _ in range(steps):
        batch = chance.sample(lessons, min(size, len(lessons)))
        levels = [torch.stack([row[0][level] for row in batch]).float() for level in range(len(batch[0][0]))]
        owners = torch.cat([torch.full((len(row[1]),), index) for index, row in enumerate(batch)])
        _, fused, _ = fuser(levels)
        regions = roi_align(fused, torch.cat([row[1] for row in batch]), owners, size=3).mean((2, 3))
        loss = teacher(regions, torch.cat([row[2] for row in batch]), torch.cat([row[3] for row in batch]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        plan.step()
        yield float(loss.detach())


def start(fuser: Fuser) -> None:
    """Gates a little open: from zero they would wait for the rest to be good, and the rest for them."""
    nn.init.constant_(fuser.block.gamma1, 0.3)
    nn.init.constant_(fuser.block.gamma2, 0.3)


def main(arguments: list[str]) -> None:
    """python -m mmchat.train fuser --features DIR --scenes DIR --vectors FILE --out FILE [--steps N]"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train fuser", description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument(
        "--vectors",
        type=Path,
        required=True,
        help="safetensors: `vectors` [n, 384] of the nouns; beside it .json: names",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args(arguments)
    names = json.loads(given.vectors.with_suffix(".json").read_text(encoding="utf-8"))
    rows = {name: row for row, name in enumerate(names)}
    lessons = []
    for _, record, line in cached(given.features, given.scenes):
        taught = lesson(record, line, rows)
        if taught is not None:
            lessons.append((record["levels"], *taught))
    if not lessons:
        raise ValueError(f"no cached features in {given.features}: run the features step first")
    held, lessons = lessons[: max(1, len(lessons) // 12)], lessons[max(1, len(lessons) // 12) :]
    torch.manual_seed(0)
    fuser, teacher = Fuser(CHANNELS, WIDTH), Teacher(load_file(given.vectors)["vectors"])
    start(fuser)
    began, window = time.time(), []
    for step, loss in enumerate(train(fuser, teacher, lessons, given.steps, given.rate)):
        window.append(loss)
        if step % 25 == 24:
            print(f"step {step + 1} loss {sum(window) / len(window):.3f} {time.time() - began:.0f} s", flush=True)
            window.clear()
    print(f"{len(lessons)} scenes; held out: {measure(fuser, teacher, held)}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"fuser.{name}": tensor.contiguous() for name, tensor in fuser.state_dict().items()}, given.out)


@torch.no_grad()
def measure(fuser: Fuser, teacher: Teacher, lessons: Sequence[tuple]) -> dict[str, float]:
    """Share of regions whose noun is the nearest of all names, among the five nearest, and whose colour is right."""
    first = five = count = right = coloured = 0
    for levels, boxes, nouns, colours in lessons:
        _, fused, _ = fuser([level[None].float() for level in levels])
        regions = roi_align(fused, boxes, size=3).mean((2, 3))
        order = (F.normalize(teacher.name(regions), dim=-1) @ teacher.names.T).topk(5, dim=-1).indices
        first += int((order[:, 0] == nouns).sum())
        five += int((order == nouns[:, None]).any(-1).sum())
        count += len(nouns)
        told = colours >= 0
        right += int((teacher.colour(regions).argmax(-1) == colours)[told].sum())
        coloured += int(told.sum())
    return {"noun": first / count, "noun in five": five / count, "colour": right / max(1, coloured)}
