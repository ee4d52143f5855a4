"""Drives a desk over a labelled set of photographs and writes what the model says; a scorer outside judges it.

A set is a folder with images/ and labels.json: a list of {"file", "width", "height", "referring": [{"text"}],
"absent": [text], "region_names": [{"box": pixels}], "questions": [{"question"}]}. The predictions have one key a
photograph, each list parallel to the label's of that name; null means "nothing found". Answers in the labels are never
looked at.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.desk import Answer, Ask, Desk, Limits, Turn
from mmchat.geometry import Box, Region, open_image, outline

if TYPE_CHECKING:
    from PIL import Image

SHORT = " Answer in one word."  # the form of the free question that scorers can read
LIMITS = Limits(new_tokens=64)
Predictions = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Photograph:
    """What is asked about one photograph: phrases (there and not there), boxes in the unit square, questions."""

    file: str
    referring: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    regions: tuple[Box, ...] = ()
    questions: tuple[str, ...] = ()


def entries(folder: Path) -> list[Photograph]:
    """The photographs of a set, in the order of its labels. ValueError where it is none or a picture is missing."""
    path = Path(folder) / "labels.json"
    try:
        labels = json.loads(path.read_text("utf-8"))
        found = [_photograph(entry) for entry in labels]
    except FileNotFoundError:
        raise ValueError(f"There is no {path}: give a folder with labels.json and images/.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is no list of labelled photographs ({error!r}): see mmchat/evaluate.py.") from None
    lost = [one.file for one in found if not (Path(folder) / "images" / one.file).is_file()]
    if lost:
        raise ValueError(f"{folder}/images lacks {', '.join(lost[:5])}: complete the folder.")
    return found


def _photograph(entry: Mapping[str, Any]) -> Photograph:
    size = (entry["width"], entry["height"])
    return Photograph(
        Path(entry["file"]).name,  # never a path out of the folder
        tuple(item["text"] for item in entry.get("referring", ())),
        tuple(text if isinstance(text, str) else text["text"] for text in entry.get("absent", ())),
        tuple(Box.from_pixels(item["box"], size) for item in entry.get("region_names", ())),
        tuple(item["question"] for item in entry.get("questions", ())),
    )


def predictions(
    desk: Desk, folder: Path, photographs: Sequence[Photograph], progress: Callable[[str], None] = lambda line: None
) -> Predictions:
    """What the model on the desk finds and says; the same each time, as it speaks greedily and each talk is new."""
    found: Predictions = {}
    started = time.monotonic()
    for number, photograph in enumerate(photographs, 1):
        image = open_image(Path(folder) / "images" / photograph.file)
        found[photograph.file] = {
            "referring": [first_box(find(desk, image, phrase), image.size) for phrase in photograph.referring],
            "absent": [first_box(find(desk, image, phrase), image.size) for phrase in photograph.absent],
            "region_names": [short(asked(desk, image, f"What is @1?{SHORT}", box)) for box in photograph.regions],
            "questions": [short(asked(desk, image, question + SHORT)) for question in photograph.questions],
        }
        progress(f"{number}/{len(photographs)} {photograph.file} {time.monotonic() - started:.0f} s")
    return found


def find(desk: Desk, image: Image.Image, phrase: str) -> Answer:
    """The answer to where the phrase is: by the model's own task "find" where it has one."""
    tasks = [task.name for task in desk.engine.family.template.tasks]
    if "find" in tasks:
        return asked(desk, image, phrase, task="find")
    return asked(desk, image, f"Where is {phrase}?")


def asked(desk: Desk, image: Image.Image, text: str, box: Box | None = None, task: str | None = None) -> Answer:
    """The whole answer to one question of a new talk."""
    regions = () if box is None else (Region("box", box),)
    question = Ask((image,), (Turn("user", text, regions, images=(0,)),), task, LIMITS)
    (answer,) = deque(desk.answer(question), maxlen=1)  # the last one is whole
    return answer


def first_box(answer: Answer, size: tuple[int, int]) -> list[float] | None:
    """[x0, y0, x1, y1] in pixels of the first place of the answer; None where it has none, as in a refusal."""
    for span in answer.spans:
        for place in span.places:
            return [round(number, 2) for number in outline(place).pixels(size)]
    return None


def short(answer: Answer) -> str:
    """The words, without the full stop that ends a sentence."""
    return " ".join(answer.text.split()).rstrip(".")
