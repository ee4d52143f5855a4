"""Plays back recorded answers, token by token: for tests, for work on the page, for showing the page without weights.

No model runs, and every answer says so in its notes. A recording is a JSON file of assets/replay/:

    {"name": ..., "candidates": [[x0, y0, x1, y1], ...],                places in the unit square of the fitted picture
     "answers": [{"question": regular expression, "picture": digest or "*", "raw": text, "probability": 0.9}, ...]}

In a raw text `<c2>` stands for recorded candidate 2 and `<u0>` for the user's first region: the user's regions come
first among the candidates, so the numbers are only known when the question is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.dialect import Form, Index, Marks, Scaled
from mmchat.family import Family, Limits, Said, Sight, Trace
from mmchat.geometry import Box, Frame, Region, outline
from mmchat.prompt import Piece, Slot, Task, Template

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "replay"
NOTICE = "This is a recording: no model has seen the picture, and the places may not fit it."
TOKEN = re.compile(r"<[a-z/]+\d*>|\s*[\w']+|\s*[^\w\s]|\s+")

DIALECT = Marks(
    "replay",
    forms=(Form(("<r",), "0-9", (">",), Index(0.7), place="{}"), Form(("[",), r"\d.,;\s", ("]",), Scaled())),
    phrase=("<p>", "</p>"),
    label="marked",
    way="pad",
    space="",
)


def _no_model(config: Mapping[str, Any]) -> Any:
    raise ValueError("The replay family has no model: open a family with weights to run one.")


FAMILY = Family(
    name="replay",
    title="Recorded answers",
    about="A recording, played back for work on the page and for tests: no model runs.",
    template=Template(
        user="Question: {text}\n",
        assistant="Answer: {text}\n",
        tasks=(
            Task("free", "Ask freely"),
            Task("describe", "Describe with places", "Describe the picture with places.", ""),
            Task("find", "Find", "Find {text}.", "phrase"),
            Task("region", "What is this?", "What is {text}?", "region"),
        ),
    ),
    dialect=DIALECT,
    frame=lambda config: Frame(416, "pad", (114, 114, 114)),
    build=_no_model,
    mention=lambda number, region, dialect, scene: (dialect.write((region.place,), None, scene),),
    dwarf={},
    takes=frozenset({"box", "point", "scribble"}),
    heats=("feature norm", "likeness"),
)


@dataclass(frozen=True)
class Recorded:
    """One recorded answer: to a question that matches `question`, about the picture with that digest, or "*" any."""

    question: str
    raw: str
    picture: str = "*"
    probability: float = 0.9
    candidates: tuple[Box, ...] = ()


def recordings(folder: Path = FOLDER) -> tuple[Recorded, ...]:
    """All recorded answers of a folder, file by file; ValueError naming the file that is none."""
    found: list[Recorded] = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text("utf-8"))
            boxes = tuple(Box(*corners) for corners in data.get("candidates", ()))
            for answer in data["answers"]:
                re.compile(answer["question"])
                found.append(
                    Recorded(
                        answer["question"],
                        answer["raw"],
                        answer.get("picture", "*"),
                        answer.get("probability", 0.9),
                        boxes,
                    )
                )
        except (KeyError, TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"{path.name} is no recording ({error}): see mmchat/engines/replay.py for the format."
            ) from None
    return tuple(found)


class ReplayEngine:
    """An engine without a model. `delay`: seconds before each token, so that streaming and Stop can be seen."""

    family: Family = FAMILY
    config: Mapping[str, Any] = {}
    precision: str = "recording"
    notes: tuple[str, ...] = (NOTICE,)

    def __init__(self, answers: tuple[Recorded, ...] | None = None, delay: float = 0.0) -> None:
        self.answers = recordings() if answers is None else answers
        self.delay = delay
        self.seen: set[str] = set()
        self.tokens = 0  # given out since the start: a test can see that Stop stops

    def see(self, pictures: tuple[np.ndarray, ...], regions: tuple[Region, ...]) -> Sight:
        """pictures float32 [3, H, W]; regions in the unit square of the fitted picture."""
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(picture).tobytes() for picture in pictures)).hexdigest()
        runs = int(bool(pictures) and digest not in self.seen)
        self.seen.add(digest)
        user = tuple(outline(region.place) for region in regions)
        recorded = next((answer.candidates for answer in self._about(digest)), ())
        return Sight(digest, user + recorded, len(user), pictures, runs)

    def speak(self, prompt: tuple[Piece, ...], sight: Sight, limits: Limits) -> Iterator[Said]:
        """The recorded answer to the last question, token by token."""
        question = "".join("" if isinstance(piece, Slot) else piece for piece in prompt).rpartition("Question: ")[2]
        question = question.rpartition("\nAnswer:")[0] or question
        found = next((answer for answer in self._about(sight.key) if re.search(answer.question, question, re.I)), None)
        if found is None:
            raw, probability, candidates = "There is no recorded answer to this question.", 1.0, sight.candidates
        else:
            candidates = sight.candidates[: sight.regions] + found.candidates
            raw, probability = found.raw, found.probability
            raw = re.sub(r"<c(\d+)>", lambda match: f"<r{int(match[1]) + sight.regions}>", raw)
            raw = re.sub(r"<u(\d+)>", r"<r\1>", raw)
        pieces: list[tuple[int, int, float]] = []
        for match in TOKEN.finditer(raw):
            if len(pieces) == limits.new_tokens:
                break
            if self.delay:
                time.sleep(self.delay)
            self.tokens += 1
            pieces.append((match.start(), match.end(), probability))
            yield Said(raw[: match.end()], tuple(pieces), candidates, False, self._counters(pieces))
        end = pieces[-1][1] if pieces else 0
        yield Said(raw[:end], tuple(pieces), candidates, True, self._counters(pieces))

    def trace(
        self, prompt: tuple[Piece, ...], text: str, sight: Sight, want: str, about: Region | str | None = None
    ) -> Trace:
        """A map made from the picture's own pixels: their local contrast, or their likeness in colour to a region."""
        cells = 26
        shown = about.image if isinstance(about, Region) else -1
        picture = np.asarray(sight.content[shown], np.float32)
        side = picture.shape[-1] // cells
        blocks = picture[:, : side * cells, : side * cells].reshape(3, cells, side, cells, side)
        colours = blocks.mean((2, 4))
        if want == "feature norm":
            heat, note = blocks.std((2, 4)).mean(0), "local contrast of the pixels"
        elif want == "likeness" and isinstance(about, Region):
            box = outline(about.place).clipped()
            y0, x0 = int(box.y0 * cells), int(box.x0 * cells)
            y1, x1 = max(y0 + 1, round(box.y1 * cells)), max(x0 + 1, round(box.x1 * cells))
            mean = colours[:, y0:y1, x0:x1].mean((1, 2))
            heat, note = -np.linalg.norm(colours - mean[:, None, None], axis=0), "likeness in colour to the region"
        elif want == "likeness":
            raise ValueError("Likeness is about a region: draw one on the picture first.")
        else:
            raise ValueError(f"A recording has no heat map {want!r}: choose one of {', '.join(self.family.heats)}.")
        heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-6)
        return Trace(want, heat.astype(np.float32), f"{note.capitalize()}; this is a recording, no model runs.")

    def close(self) -> None:
        """Nothing to free."""

    def _about(self, digest: str) -> Iterator[Recorded]:
        """Recordings for this picture, then those for any."""
        for wanted in (digest, "*"):
            yield from (answer for answer in self.answers if answer.picture == wanted)

    @staticmethod
    def _counters(pieces: list[tuple[int, int, float]]) -> dict[str, int]:
        return {"prefilled_tokens": 0, "new_tokens": len(pieces)}
