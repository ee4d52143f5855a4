"""Train the chooser on composed scenes: for every phrase the candidates that it means, or that it means none of them.

Only what detector, classifier and colours said of a candidate is learned from (`nets.chooser.features`), so cached
features and a few minutes of one core are enough; several judges come from several seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmchat.nets.chooser import FEATURES, Chooser, Facts, Judge, Likeness, features, take_apart
from mmchat.nets.evidence import Eyes, outside_in
from mmchat.nets.regions import iou
from mmchat.train.features import eyes_of

HIT = 0.5  # IoU from which a candidate is what the phrase means
START, SLOPE = 1.85, 1.2  # calibration of the margin; the start was set on the public half of the photo benchmark


@dataclass(frozen=True)
class Lesson:
    """A phrase about a scene. `rows` [R, FEATURES], `prior` [R], `right` [R] bool, `absent`: it means nothing there."""

    rows: torch.Tensor
    prior: torch.Tensor
    right: torch.Tensor
    absent: bool


@torch.no_grad()
def lessons(eyes: Eyes, scenes: Sequence[dict], records: Sequence[dict]) -> list[Lesson]:
    """Every phrase of every scene; those whose thing no candidate covers are left out: nothing there can be chosen."""
    out = []
    for scene, record in zip(scenes, records, strict=True):
        width, height, x, y = record["place"]
        area = torch.tensor([x, y, x + width, y + height])
        boxes = outside_in(record["boxes"].float(), area)
        facts = Facts(boxes, record["det"].float(), record["cls"].float(), record["col"].float())
        phrases = [take_apart(phrase["text"]) for phrase in scene["phrases"]]
        parts = sorted(
            {part for one in phrases for part in (one.head, one.noun, one.text or "thing", one.anchor) if part}
        )
        near = dict(zip(parts, eyes.likeness(parts), strict=True))
        size = torch.tensor([scene["width"], scene["height"]] * 2)
        for phrase, said in zip(phrases, scene["phrases"], strict=True):
            right = torch.zeros(len(boxes), dtype=torch.bool)
            if said["object"] is not None:
                target = torch.tensor(scene["objects"][said["object"]]["box"]) / size
                right = iou(target[None].float(), boxes)[0] >= HIT
                if not right.any():
                    continue
            anchor = near[phrase.anchor] if phrase.anchor else None
            like = Likeness(near[phrase.head], near[phrase.noun], near[phrase.text or "thing"], anchor)
            rows, prior = features(facts, phrase, like)
            out.append(Lesson(rows.half(), prior.half(), right, said["object"] is None))
    return out


def packed(chosen: Sequence[Lesson]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """rows [B, R, F], priors [B, R], mask [B, R], targets [B, R + 1] (the last: none of them), padded with zeros."""
    most = max(len(one.prior) for one in chosen)
    rows, priors = torch.zeros(len(chosen), most, FEATURES), torch.zeros(len(chosen), most)
    mask = torch.zeros(len(chosen), most, dtype=torch.bool)
    right = torch.zeros(len(chosen), most + 1, dtype=torch.bool)
    for index, one in enumerate(chosen):
        count = len(one.prior)
        rows[index, :count], priors[index, :count] = one.rows.float(), one.prior.float()
        mask[index, :count], right[index, :count], right[index, most] = True, one.right, one.absent
    return rows, priors, mask, right


def train(known: Sequence[Lesson], seed: int, steps: int, size: int = 96, peak: float = 1.2e-3) -> Judge:
    """One judge. What features say is blurred: cut-outs are surer or less sure than things in photographs."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), peak, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, step / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        rows, priors, mask, right = packed(chance.sample(known, min(size, len(known))))
        rows = rows * (1 + 0.15 * torch.randn(len(rows), 1, FEATURES)) + 0.02 * torch.randn(len(rows), 1, FEATURES)
        priors = priors * (1 + 0.2 * torch.randn(len(priors), 1))
        likely = judge(rows, priors, mask).log_softmax(-1).masked_fill(~right, -1e9)
        loss = -likely.logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"seed {seed} step {step + 1} loss {float(loss.detach()):.3f}", flush=True)
    return judge.eval()


@torch.no_grad()
def measured(chooser: Chooser, held: Sequence[Lesson], start: float = START) -> dict[str, float]:
    """Shares of held-out phrases: present ones answered rightly (refusals count as wrong), absent ones refused."""
    right = refused = present = 0
    for one in held:
        mask = torch.ones(1, len(one.prior), dtype=torch.bool)
        logits = chooser(one.rows[None].float(), one.prior[None].float(), mask)[0]
        there = float(logits[:-1].logsumexp(0) - logits[-1]) > start
        present += not one.absent
        right += not one.absent and there and bool(one.right[int(logits[:-1].argmax())])
        refused += one.absent and not there
    return {"right": right / max(1, present), "refused": refused / max(1, len(held) - present)}


def main(arguments: list[str]) -> None:
    """python -m mmchat.train chooser --scenes DIR --features DIR --eyes DIR [--steps N] [--seeds 1,2,3]"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train chooser", description=__doc__)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True, help="what the features step wrote")
    parser.add_argument("--eyes", type=Path, required=True, help="converted weights; chooser.safetensors goes there")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--held", type=int, default=2, help="so many of the last feature files are only measured on")
    given = parser.parse_args(arguments)
    files = sorted(given.features.glob("*.pt"))
    if len(files) <= given.held:
        raise ValueError(
            f"{given.features} holds {len(files)} files of features: run the features step for more scenes"
        )
    with (given.scenes / "scenes.jsonl").open(encoding="utf-8") as file:
        scenes = [json.loads(line) for line in file]
    eyes, _ = eyes_of(given.eyes)
    known, held, began = [], [], time.time()
    for path in files:
        records, first = torch.load(path, weights_only=True), int(path.stem)
        taught = lessons(eyes, scenes[first : first + len(records)], records)
        (held if path in files[-given.held :] else known).extend(taught)
    print(f"{len(known)} phrases, {len(held)} held out, {time.time() - began:.0f} s", flush=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    chooser = Chooser(len(seeds)).eval()
    for judge, seed in zip(chooser.judges, seeds, strict=True):
        judge.load_state_dict(train(known, seed, given.steps).state_dict())
    print(json.dumps(measured(chooser, held)), flush=True)
    state = {f"eyes.chooser.{name}": tensor.contiguous() for name, tensor in chooser.state_dict().items()}
    state["eyes.calibration"] = torch.tensor([START, SLOPE])
    save_file(state, given.eyes / "chooser.safetensors")
