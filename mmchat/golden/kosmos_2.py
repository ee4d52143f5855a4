"""Recorded cases of Kosmos-2 (transformers `models/kosmos2`): texts."""

from __future__ import annotations

import ast
import re

from mmchat.dialect.table import KOSMOS2
from mmchat.geometry import Box
from mmchat.golden import Case, Line, texts
from mmchat.templates import TEMPLATES

PHRASE = re.compile(r"(?<=</phrase>)")
ABSORBED = re.compile(r" (?=</?(?:image|phrase|object|grounding|patch_index|delimiter))")


def prompts(case: Case) -> list[Line]:
    """Tasks with and without picture and boxes; a space before a mark belongs to the mark's token and is left out."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES["kosmos2"]
        text = with_boxes(entry["text"], ast.literal_eval(entry["bboxes"]))
        asked = template.beside((text,), (0,)) if entry["image"] else (text,)
        written = texts.talk(template, [(asked, None)]) if not entry["image"] else _shown(asked, entry)
        return ABSORBED.sub("", written)

    single = [entry for entry in case.info["prompts"] if "prompt" in entry]  # the others show a tokenizer's batch
    recorded = [{**entry, "prompt": ABSORBED.sub("", entry["prompt"])} for entry in single]
    return texts.prompts(recorded, ours)


def _shown(asked: tuple, entry: texts.Entry) -> str:
    """The picture's slot as the recorded number of marks."""
    slots = "<image>" * entry["num_image_tokens"]
    return "".join(piece if isinstance(piece, str) else slots for piece in asked)


def with_boxes(text: str, given: list | None) -> str:
    """Boxes put behind the phrases of a text, one entry a phrase: cells (two ints) or corners (four floats)."""
    parts = PHRASE.split(text)
    if not given:
        return text
    written = [KOSMOS2.write([_box(box) for box in (boxes if isinstance(boxes, list) else [boxes])]) for boxes in given]
    return "".join(part + (written[index] if index < len(written) else "") for index, part in enumerate(parts))


def _box(numbers: tuple) -> Box:
    if len(numbers) == 4:
        return Box(*numbers)
    (y0, x0), (y1, x1) = (divmod(number, 32) for number in numbers)
    return Box((x0 + 0.5) / 32, (y0 + 0.5) / 32, (x1 + 0.5) / 32, (y1 + 0.5) / 32)


HANDLERS = {"prompts": prompts}
