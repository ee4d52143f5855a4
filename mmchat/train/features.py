"""What the frozen eyes see of each composed scene, cached: half a second a scene on one core, so nobody looks twice."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from mmchat.geometry import Frame
from mmchat.nets.evidence import GREY, Eyes

PART = 50  # scenes a file


def eyes_of(folder: Path) -> tuple[Eyes, Frame]:
    """The eyes whose converted (and, where there are any, trained) weights lie in `folder`, and the frame they look
    through. ValueError where the folder holds none."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: run the convert step first")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    eyes = Eyes(sizes).eval()
    state: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):
        state |= {name.removeprefix("eyes."): tensor for name, tensor in load_file(part).items()}
    missing, unknown = eyes.load_state_dict(
        {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()},
        strict=False,
    )
    frozen = [name for name in missing if name.startswith(("encoder.", "detector.", "text.", "lexicon."))]
    if frozen or unknown:
        raise ValueError(f"the weights in {folder} do not fit: missing {frozen[:3]}, unknown {unknown[:3]}")
    grey = int(GREY)
    return eyes, Frame(sizes["picture_side"], "pad", (grey,) * 3, (0.0,) * 3, (1 / 255,) * 3)


@torch.no_grad()
def record(eyes: Eyes, frame: Frame, image: Image.Image) -> dict[str, Any]:
    """One picture: `boxes` [R, 4] in the letterbox, `place` (width, height, x, y) of the picture in it, `det` [R, 80],
    `cls` [R, 1000], `col` [R, 11], `levels` of the encoder [c, h, w] from stride 8 on; all but boxes in half precision.
    """
    pixels = torch.from_numpy(frame.fit(image)[0])[None]
    looked = eyes.encode(pixels)
    x0, y0, x1, y1 = looked.area.tolist()
    levels = eyes.encoder.levels(F.avg_pool2d(pixels, 2))[1:]
    return {
        "boxes": looked.boxes,
        "place": (x1 - x0, y1 - y0, x0, y0),
        "det": looked.things.half(),
        "cls": looked.classes.half(),
        "col": looked.shares.half(),
        "levels": [level[0].half() for level in levels],
    }


def main(arguments: list[str]) -> None:
    """python -m mmchat.train features --scenes DIR --eyes DIR --out DIR [--first N] [--count N]"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train features", description=__doc__)
    parser.add_argument("--scenes", type=Path, required=True, help="what the compose step wrote")
    parser.add_argument("--eyes", type=Path, required=True, help="what the convert step wrote")
    parser.add_argument("--out", type=Path, required=True, help="files that are there already are left alone")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    given = parser.parse_args(arguments)
    if not (given.scenes / "scenes.jsonl").is_file():
        raise ValueError(f"{given.scenes} has no scenes.jsonl: run the compose step first")
    with (given.scenes / "scenes.jsonl").open(encoding="utf-8") as file:
        scenes = [json.loads(line) for line in file]
    eyes, frame = eyes_of(given.eyes)
    given.out.mkdir(parents=True, exist_ok=True)
    for start in range(given.first, min(len(scenes), given.first + given.count), PART):
        path = given.out / f"{start:05d}.pt"
        if path.exists():
            continue
        began = time.time()
        kept = []
        for scene in scenes[start : start + PART]:
            with Image.open(given.scenes / scene["file"]) as image:
                kept.append(record(eyes, frame, image.convert("RGB")))
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        print(f"{start} to {start + len(kept) - 1}: {time.time() - began:.0f} s", flush=True)
