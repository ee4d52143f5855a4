"""Scenes for training: photographic cut-outs pasted over backgrounds, with boxes, colours and referring phrases.
Deterministic from a seed.

`assets` is a folder with `tux/` (the unpacked tuxpaint-stamps-default package), `fluent/` (the unpacked
@lobehub/fluent-emoji-3d package), `emoji.json` (of emoji-datasource) and `backgrounds/` (JPEG files that show no
nameable thing in front).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from mmchat.train.phrases import Phrase, Thing, phrases
from mmchat.train.words import COLOURS, Noun, catalogue

CUT_SIDE = 320  # cut-outs are kept no larger than this: scenes are small

_OUTDOORS = {"plant", "flower", "place", "building", "cloud", "rock", "log", "moon", "globe"}


@dataclass(frozen=True)
class CutOut:
    """A thing with alpha around it: RGBA, cropped to what is visible. `photo`: a photograph's look, not a drawing's."""

    noun: Noun
    image: Image.Image
    colour: str | None
    photo: bool = True


@dataclass(frozen=True)
class Scene:
    """A composed picture with what is in it and what may be said about it."""

    image: Image.Image
    things: tuple[Thing, ...]
    phrases: tuple[Phrase, ...]
    seed: int


def colour_word(rgb: np.ndarray) -> str | None:
    """The leading colour of pixels uint8 [N, 3], a word of COLOURS, or None when none holds 45 %."""
    if not len(rgb):
        return None
    r, g, b = (rgb[:, channel].astype(np.float32) / 255 for channel in range(3))
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    span = high - low
    safe = np.where(span > 0, span, 1)
    hue = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    vivid = span / np.maximum(high, 1e-3)
    words = np.full(len(rgb), 10)
    chromatic = (vivid > 0.2) & (high > 0.2)
    for limit, word in ((360, 0), (345, 6), (290, 5), (255, 4), (170, 3), (68, 2), (42, 1), (16, 0)):
        words = np.where(chromatic & (hue < limit), word, words)
    brown = chromatic & (hue < 48) & (hue >= 8) & ((high < 0.62) | ((vivid < 0.55) & (high < 0.8)))
    pink = chromatic & ((hue > 320) | (hue < 14)) & (vivid < 0.58) & (high > 0.7)
    words = np.where(brown, 7, np.where(pink, 6, words))
    words = np.where(~chromatic & (high < 0.27), 8, np.where(~chromatic & (high > 0.75) & (vivid < 0.17), 9, words))
    share = np.bincount(words, minlength=len(COLOURS)) / len(rgb)
    lead = int(share.argmax())
    return COLOURS[lead] if share[lead] >= 0.45 else None


def load_cutouts(assets: Path) -> list[CutOut]:
    """Every picture that the catalogue names, in the catalogue's order. ValueError when there is none."""
    stamps: dict[str, list[Path]] = {}
    for path in sorted((assets / "tux").rglob("*.png")):
        if "cartoon" not in path.parts:
            stamps.setdefault(path.stem, []).append(path)
    shapes = assets / "fluent" / "package" / "assets"
    points: dict[str, str] = {}
    if (assets / "emoji.json").exists():
        for entry in json.loads((assets / "emoji.json").read_text(encoding="utf-8")):
            points[entry["name"].lower()] = entry["unified"].lower()
    out: list[CutOut] = []
    for noun in catalogue():
        for source in noun.sources:
            if source.startswith("t:"):
                paths = stamps.get(source[2:], [])
            else:
                point = source[2:] if source.startswith("e:") else points.get(source.lower(), "")
                paths = [
                    path
                    for path in (shapes / f"{name}.webp" for name in (point, point.replace("-fe0f", "")))
                    if path.exists()
                ][:1]
            for path in paths:
                image = Image.open(path).convert("RGBA")
                box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 40)).getbbox()
                if box is None or image.getchannel("A").getextrema()[0] > 200:
                    continue
                image = image.crop(box)
                image.thumbnail((CUT_SIDE, CUT_SIDE), Image.Resampling.LANCZOS)
                pixels = np.asarray(image)
                out.append(
                    CutOut(noun, image, colour_word(pixels[pixels[..., 3] > 128][:, :3]), source.startswith("t:"))
                )
    if not out:
        raise ValueError(f"no cut-out found under {assets}: unpack the packages there as compose.py's first lines say")
    return out


def compose(seed: int, cutouts: Sequence[CutOut], backgrounds: Sequence[Path]) -> Scene:
    """One scene. Everything in it follows from the seed and the two lists."""
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    size = _size(chance)
    canvas, outdoors = _background(size, backgrounds, chance, noise)
    owner = np.full((size[1], size[0]), 255, dtype=np.uint8)
    placed: list[tuple[CutOut, int]] = []
    chosen = _choose(cutouts, chance)
    for cut in chosen:
        for _ in range(8):
            if _paste(canvas, owner, cut, len(placed), chance, size, placed):
                placed.append((cut, len(placed)))
                break
    things = []
    for cut, layer in placed:
        ys, xs = np.nonzero(owner == layer)
        things.append(
            Thing(cut.noun, (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1), cut.colour, layer)
        )
    image = _photograph(canvas, chance, noise)
    # A photographed background may hold trees, hills and clouds that nobody labelled: none of these is called absent
    # over one.
    nouns = [noun for noun in catalogue() if not (outdoors and (_OUTDOORS & {*noun.hypernyms, noun.name}))]
    return Scene(image, tuple(things), tuple(phrases(things, size, nouns, chance)), seed)


def write(out: Path, count: int, seed: int, assets: Path, quiet: bool = False) -> None:
    """`count` scenes into `out`: NUMBER.jpg and one line each in scenes.jsonl (see `line`). Goes on where an earlier
    run stopped."""
    out.mkdir(parents=True, exist_ok=True)
    cutouts, backgrounds = load_cutouts(assets), sorted((assets / "backgrounds").glob("*.jpg"))
    listing = out / "scenes.jsonl"
    done = sum(1 for _ in listing.open(encoding="utf-8")) if listing.exists() else 0
    with listing.open("a", encoding="utf-8") as lines:
        for number in range(done, count):
            scene = compose(seed * 1_000_003 + number, cutouts, backgrounds)
            scene.image.save(out / f"{number:06d}.jpg", quality=90)
            lines.write(json.dumps(line(scene, f"{number:06d}.jpg"), ensure_ascii=False) + "\n")
            lines.flush()
            if not quiet and number % 500 == 499:
                print(f"{number + 1} scenes", flush=True)


def line(scene: Scene, file: str) -> dict:
    """A scene as JSON: file, width, height, objects (box in pixels), phrases (object: index or null)."""
    objects = [
        {
            "name": t.noun.name,
            "synonyms": t.noun.synonyms,
            "hypernyms": t.noun.hypernyms,
            "plural": t.noun.plural,
            "colour": t.colour,
            "box": t.box,
            "layer": t.layer,
        }
        for t in scene.things
    ]
    said = [{"text": p.text, "level": p.level, "object": p.target, "head": p.head} for p in scene.phrases]
    return {
        "file": file,
        "width": scene.image.width,
        "height": scene.image.height,
        "seed": scene.seed,
        "objects": objects,
        "phrases": said,
    }


def _size(chance: random.Random) -> tuple[int, int]:
    long = chance.randint(416, 640)
    short = int(long / chance.choice((1.0, 1.25, 4 / 3, 4 / 3, 1.5, 1.5, 1.6, 16 / 9)))
    return (long, short) if chance.random() < 0.7 else (short, long)


def _choose(cutouts: Sequence[CutOut], chance: random.Random) -> list[CutOut]:
    """Two to six, far things first. Often of one kind, so that a phrase has to tell them apart; stamps, which look like
    photographs, lead."""
    photos = [cut for cut in cutouts if cut.photo] or list(cutouts)
    drawn = [cut for cut in cutouts if not cut.photo] or list(cutouts)

    def one(pool: Sequence[CutOut] | None = None) -> CutOut:
        source = photos if chance.random() < 0.6 else drawn
        # By noun first, or kinds with many pictures would crowd the others out.
        if pool is None:
            noun = chance.choice(source).noun if chance.random() < 0.5 else chance.choice(cutouts).noun
            pool = [cut for cut in cutouts if cut.noun is noun]
        return chance.choice(pool)

    chosen = [one()]
    for _ in range(chance.choices((1, 2, 3, 4, 5), (3, 5, 5, 3, 2))[0]):
        like, roll = chance.choice(chosen), chance.random()
        if roll < 0.2:
            chosen.append(one([cut for cut in cutouts if cut.noun.name == like.noun.name]))
        elif roll < 0.42:
            chosen.append(one([cut for cut in cutouts if cut.noun.hypernyms[0] == like.noun.hypernyms[0]]))
        else:
            chosen.append(one())
    chance.shuffle(chosen)
    return chosen


@lru_cache(maxsize=160)
def _opened(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((1100, 1100))
    return image


def _background(
    size: tuple[int, int], backgrounds: Sequence[Path], chance: random.Random, noise: np.random.Generator
) -> tuple[Image.Image, bool]:
    """The ground and whether it is a picture of something."""
    roll = chance.random()
    if backgrounds and roll < 0.72:
        image = _opened(chance.choice(list(backgrounds)))
        share = chance.uniform(0.45, 1.0)
        scale = share * min(image.width / size[0], image.height / size[1])
        width, height = int(size[0] * scale), int(size[1] * scale)
        x, y = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
        image = image.resize(size, Image.Resampling.BILINEAR, (x, y, x + width, y + height))
        if chance.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return (
            image.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 3))) if chance.random() < 0.4 else image
        ), True
    first, second = (np.array([chance.randint(0, 255) for _ in range(3)], dtype=np.float32) for _ in range(2))
    if roll < 0.86:  # a floor and a wall, or a plain run of colours
        ramp = np.linspace(0, 1, size[1], dtype=np.float32)[:, None, None]
        ramp = (ramp > chance.uniform(0.4, 0.75)).astype(np.float32) if chance.random() < 0.4 else ramp
        field = first * (1 - ramp) + second * ramp + np.zeros((1, size[0], 1), dtype=np.float32)
        return Image.fromarray(
            np.clip(field + noise.normal(0, 4, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
        ), False
    coarse = noise.integers(0, 255, (chance.randint(2, 12), chance.randint(2, 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), False


def _paste(
    canvas: Image.Image,
    owner: np.ndarray,
    cut: CutOut,
    layer: int,
    chance: random.Random,
    size: tuple[int, int],
    placed: Sequence,
) -> bool:
    """Puts the cut-out somewhere unless it would hide too much of an earlier one; True when it was put."""
    side = math.exp(chance.uniform(math.log(0.13), math.log(0.62))) * min(size)
    image = cut.image
    scale = side / math.sqrt(image.width * image.height)
    width, height = max(12, int(image.width * scale)), max(12, int(image.height * scale))
    if max(width / size[0], height / size[1]) > 0.95:
        return False
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if chance.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if chance.random() < 0.25:
        image = image.rotate(chance.uniform(-14, 14), Image.Resampling.BILINEAR, expand=True)
    out = 0.15 if chance.random() < 0.2 else 0.0  # now and then the edge of the picture cuts it
    x = chance.randint(int(-out * image.width), max(0, int(size[0] - image.width * (1 - out))))
    y = chance.randint(int(-out * image.height), max(0, int(size[1] - image.height * (1 - out))))
    solid = np.zeros_like(owner, dtype=bool)
    x0, y0, x1, y1 = max(0, x), max(0, y), min(size[0], x + image.width), min(size[1], y + image.height)
    if x1 - x0 < 10 or y1 - y0 < 10:
        return False
    alpha = np.asarray(image.getchannel("A"))[y0 - y : y1 - y, x0 - x : x1 - x] > 100
    solid[y0:y1, x0:x1] = alpha
    if alpha.sum() < 60:
        return False
    for other in range(len(placed)):
        mine = owner == other
        if (mine & solid).sum() > 0.3 * mine.sum():
            return False
    owner[solid] = layer
    light = chance.uniform(0.75, 1.2)
    colour = Image.merge(
        "RGB", [band.point([min(255, int(value * light)) for value in range(256)]) for band in image.split()[:3]]
    )
    if chance.random() < 0.3:  # a soft shadow
        shadow = image.getchannel("A").point(lambda value: value * 0.45).filter(ImageFilter.GaussianBlur(5))
        canvas.paste((20, 20, 20), (x + chance.randint(2, 9), y + chance.randint(2, 9)), shadow)
    canvas.paste(colour, (x, y), image.getchannel("A"))
    return True


def _photograph(canvas: Image.Image, chance: random.Random, noise: np.random.Generator) -> Image.Image:
    """What a camera does: light, warmth, contrast, blur, grain, compression; all of it mild."""
    if chance.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(chance.uniform(0.3, 1.1)))
    gamma, warmth = chance.uniform(0.8, 1.25), chance.uniform(-0.07, 0.07)
    bands = []
    for band, gain in zip(canvas.split(), (1 + warmth, 1.0, 1 - warmth), strict=True):
        bands.append(band.point([min(255, int(255 * (value / 255) ** gamma * gain)) for value in range(256)]))
    canvas = Image.merge("RGB", bands)
    if chance.random() < 0.3:
        grain = noise.integers(-9, 10, (canvas.height, canvas.width, 1), dtype=np.int16)
        canvas = Image.fromarray(np.clip(np.asarray(canvas).astype(np.int16) + grain, 0, 255).astype(np.uint8))
    if chance.random() < 0.4:
        held = io.BytesIO()
        canvas.save(held, "jpeg", quality=chance.randint(45, 85))
        canvas = Image.open(held).convert("RGB")
    return canvas


def main(arguments: list[str]) -> None:
    """python -m mmchat.train compose --out DIR --count N --seed S --assets DIR"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train compose", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    write(given.out, given.count, given.seed, given.assets)
