"""Recorded cases of Kosmos-2 (transformers `models/kosmos2`): texts."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from mmchat.dialect import Cells, Scene
from mmchat.dialect.table import KOSMOS2
from mmchat.geometry import Box
from mmchat.golden import Case, Line, texts
from mmchat.golden.texts import Entry, Found, found
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
    """Boxes put behind the phrases of a text, one entry a phrase: cells (two ints), corners (four floats), a list of
    such, or None. ValueError where their numbers or kinds do not fit.
    """
    parts = PHRASE.split(text.strip())
    if not given:
        return text.strip()
    if len(given) != len(parts) - 1:
        raise ValueError(f"the text has {len(parts) - 1} phrases and {len(given)} entries of boxes: give one for each")
    if "<phrase></phrase>" in text:
        raise ValueError("a phrase is empty: write what the box shows")
    return "".join(map("".join, zip(parts, [*map(_object, given), ""], strict=True)))


def _object(boxes: list | tuple | None) -> str:
    """What stands behind one phrase."""
    chosen = boxes if isinstance(boxes, list) else [] if boxes is None else [boxes]
    if not all(isinstance(box, tuple) for box in chosen):
        raise ValueError("a box is a tuple of two cells or of four corners")
    marks = [f"<patch_index_{first:04d}><patch_index_{last:04d}>" for first, last in map(_cells, chosen)]
    return f"<object>{'</delimiter_of_multi_objects/>'.join(marks)}</object>" if marks else ""


def _cells(box: tuple) -> tuple[int, int]:
    if len(box) == 2:
        return box
    if not all(isinstance(corner, float) for corner in box) or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError("corners are four floats with an area between them")
    first, last = re.findall(r"\d+", KOSMOS2.write([Box(*box)]))
    return int(first), int(last)


def dialect(case: Case) -> list[Line]:
    """Three readers, boxes to cells, and prompts with boxes put in."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        entities = (entry["result"] or {}).get("entities") or []
        theirs = [(entity["phrase"].strip(), box) for entity in entities for box in entity["boxes"]]
        theirs = [(None if label.startswith("<") else label, box) for label, box in theirs]
        return found(KOSMOS2, entry["text"], (1, 1)), theirs, (1.0, 1.0)

    def cells(entry: Entry) -> list[int]:
        x0, y0, x1, y1 = entry["box_01_xyxy"]
        if x1 <= x0 or y1 <= y0:
            raise ValueError("a box needs an area")
        form = replace(KOSMOS2.forms[0], code=Cells(entry.get("patches_per_side", 32)))
        return [int(number) for number in re.findall(r"\d+", form.write([Box(x0, y0, x1, y1)], Scene()) or "")]

    readers = dict.fromkeys(dict.fromkeys(entry["reader"] for entry in case.info["parse"]), read)
    inserted = [
        {**entry, "result": ABSORBED.sub("", entry["result"])} if entry["result"] else entry
        for entry in case.info["prompt_writer"]
    ]
    return [
        *texts.read_all(case.info["parse"], readers),
        *texts.table(case.info["write"], cells, "cells_transformers"),
        *texts.table(inserted, _inserted, "result", "prompt_writer"),
    ]


def _inserted(entry: Entry) -> str:
    text = with_boxes(entry["text"], ast.literal_eval(entry["bboxes"]))
    if entry["with_image"]:
        template = TEMPLATES["kosmos2"]
        text = _shown(template.beside((text,), (0,)), entry)
    return ABSORBED.sub("", text)


HANDLERS = {"dialect": dialect, "prompts": prompts}
