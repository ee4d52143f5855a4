"""Detectors: callables that find what phrases name in a picture (boxes), or cut out what points and boxes show (masks).

`opened(folder)` reads a checkpoint as transformers publishes it and gives one of

    detector(image, phrases, threshold)  -> tuple[Found, ...]     Grounding DINO, OWLv2: `Detector`
    segmenter(image, prompts)            -> tuple[Cutout, ...]    SAM, SAM 2: `mmchat.detectors.sam.Segmenter`

They do not chat: who wants one calls it (the command `detect`, a procedure of several steps). The networks are the
library's own classes; pictures are prepared and answers read here, as the library's processors do it, without
torchvision. One kind is one file with a `Record`; `KINDS` finds it by the model_type of a config.json.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from mmchat import models
from mmchat.geometry import Box, Mask, open_image
from mmchat.nets import plan, weights
from mmchat.nets.regions import nms

if TYPE_CHECKING:
    from PIL import Image

    from mmchat.detectors.sam import Segmenter

KINDS = {
    "grounding-dino": "grounding_dino", "mm-grounding-dino": "grounding_dino", "owlv2": "owlv2",
    "sam": "sam", "sam2": "sam", "sam2_video": "sam",
}  # fmt: skip
OVERLAP = 0.5  # IoU from which the weaker of two boxes of one phrase is taken for the same thing


@dataclass(frozen=True)
class Found:
    """A thing that was found: the phrase that asked for it, its box in the unit square, how sure the model is in 0..1.

    `number`: of the phrase, from 0. `words`: those words of the phrases that the box answers to, where a model tells.
    """

    phrase: str
    box: Box
    score: float
    number: int = 0
    words: str = ""


@dataclass(frozen=True)
class Cutout:
    """A thing that was cut out: its mask over the whole picture, how well the model thinks that it fits (near 0..1).

    `logits` [1, h, w] is the small mask before it was enlarged, as a next prompt may take it.
    """

    mask: Mask
    score: float
    logits: torch.Tensor


class Candidates(NamedTuple):
    """K places: boxes [K, 4] (x0, y0, x1, y1) in the picture's unit square, scores [K], number of the phrase [K]."""

    boxes: torch.Tensor
    scores: torch.Tensor
    numbers: torch.Tensor
    words: Sequence[str]


class Look(Protocol):
    """What a kind of detector does with an upright picture and its phrases."""

    def __call__(self, image: Image.Image, phrases: Sequence[str], threshold: float) -> Candidates: ...


@dataclass(frozen=True)
class Record:
    """A kind of detector.

    `name`: its file. `build` makes the library's network of a config.json, `keys` and `drop` bring published names to
    its own as `nets.weights` has it, `ready` makes the callable. `words`: the files that hold its
    tokenizer where there is no tokenizer.json; none where it reads no words.
    """

    name: str
    title: str
    about: str
    licence: str
    finds: Literal["boxes", "masks"]
    build: Callable[[Mapping[str, Any]], nn.Module]
    ready: Callable[[nn.Module, Path, Mapping[str, Any]], Detector | Segmenter]
    keys: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class Detector:
    """Finds what phrases name. `look` is the kind's own; `threshold` its usual least score."""

    def __init__(self, title: str, look: Look, threshold: float) -> None:
        self.title, self.look, self.threshold = title, look, threshold

    def __call__(
        self, image: Any, phrases: Sequence[str], threshold: float | None = None, overlap: float = OVERLAP
    ) -> tuple[Found, ...]:
        """Everything above the threshold, surest first; nothing is found more than once by the same phrase.

        image: what `open_image` takes. overlap: IoU above which two boxes of one phrase are one thing; 1 keeps all.
        ValueError, with the remedy, for phrases that cannot be asked for and numbers out of range.
        """
        if isinstance(phrases, str) or not phrases:
            raise ValueError(f"{self.title} needs a list of phrases that say what to find: give at least one.")
        asked = [" ".join(phrase.split()) for phrase in phrases]
        for number, phrase in enumerate(asked, 1):
            if not phrase:
                raise ValueError(f"Phrase {number} is empty: say what to find.")
        threshold = self.threshold if threshold is None else threshold
        for name, value in (("threshold", threshold), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"The {name} must be in 0..1, not {value}: 0 keeps everything.")
        with torch.inference_mode():
            seen = self.look(open_image(image), asked, threshold)
        boxes, scores, numbers = seen.boxes.float().cpu(), seen.scores.float().cpu(), seen.numbers.cpu()
        found = []
        for number in numbers.unique().tolist():
            mine = (numbers == number).nonzero()[:, 0]
            for index in mine[nms(boxes[mine], scores[mine], overlap)].tolist():
                box = Box(*boxes[index].tolist()).clipped()
                if box.area > 0:  # all else lies beside the picture, in what it was padded with
                    found.append(Found(phrases[number], box, float(scores[index]), number, seen.words[index]))
        return tuple(sorted(found, key=lambda one: -one.score))


def record(kind: str) -> Record:
    """The record of a model_type; ValueError with the known ones otherwise."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of detector: choose one of {', '.join(KINDS)}.")
    return importlib.import_module(f"mmchat.detectors.{KINDS[kind]}").RECORDS[kind]


def missing(entry: models.Entry) -> str:
    """What keeps a detector from being opened, as `models.missing` says it of a model."""
    own = record(entry.family).words
    return models.missing(entry, ("tokenizer.json", *own) if own else ())


def named(name: str | None, finds: Literal["boxes", "masks"]) -> models.Entry:
    """The detector of that name in models.toml, the first that finds such things without one.

    ValueError with the names that would do otherwise.
    """
    fitting = [entry for entry in models.detectors() if record(entry.family).finds == finds]
    for entry in fitting:
        if name in (None, entry.name):
            return entry
    remedy = f"choose one of {', '.join(entry.name for entry in fitting)}" if fitting else "add one to models.toml"
    raise ValueError(f"There is no detector {name + ' ' if name else ''}that finds {finds}: {remedy}.")


def opened(folder: Path | str, kind: str = "", device: str | None = None) -> Detector | Segmenter:
    """A detector from the folder of a published checkpoint, in float32, on the GPU where there is one.

    kind: the model_type that it must have, where that is known. ValueError, with the remedy, where the folder is not
    whole, of another kind, or too large for what is free.
    """
    folder = Path(folder)
    config = weights.read_config(folder)
    found = str(config.get("model_type", ""))
    if found not in KINDS:
        raise ValueError(
            f"{folder} holds a model of the type {found or 'unknown'}, which is no detector: name one of the types "
            f"{', '.join(KINDS)}."
        )
    if kind and KINDS[kind] != KINDS[found]:
        raise ValueError(f"{folder} holds {record(found).title}, not {record(kind).title}: correct models.toml.")
    known = record(found)
    place = torch_device(device)
    try:
        with weights.without_memory():
            model = known.build(config)
    except Exception as error:  # noqa: BLE001 -- numbers that go together in no network can fail in any way there is
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder}/config.json describes no {known.title} ({said}): download it again.") from None
    plan.require(model, known.title, "fp32", place)
    weights.load(model, folder, known.keys, known.drop, precision="fp32", device=place)
    return known.ready(model, folder, config)


def torch_device(named: str | None) -> str:
    """The device of that name, the GPU where there is one without a name; ValueError for one that is not here."""
    gpus = torch.cuda.device_count()
    here = {"cpu", *(f"cuda:{number}" for number in range(gpus)), *(["cuda"] if gpus else [])}
    if named is not None and named not in here:
        raise ValueError(f"There is no device {named!r} here: choose one of {', '.join(sorted(here))}.")
    return named or ("cuda" if gpus else "cpu")
