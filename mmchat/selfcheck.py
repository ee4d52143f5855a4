"""Self check: whether an open model is what it should be, with a sentence for each thing that is not.

That no parameter is missing or left over, loading has made sure. Here: every special token is one id of its own that
the embedding has a row for, the marks that end an answer among them; and where a folder holds a recorded answer
(selfcheck.json), asking the same again gives boxes at the same place.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from mmchat.desk import Answer, Ask, Desk, Turn
from mmchat.geometry import Box, open_image, outline

# {"picture": path from the folder, "sha256", "text", "precision", "boxes": [[x0, y0, x1, y1] in 0..1]}
FILE = "selfcheck.json"
ENOUGH = 0.9  # overlap of a box with the recorded one
MARK = re.compile(r"<[^<>\s]+>")


def faults(desk: Desk, folder: Path) -> tuple[str, ...]:
    """One sentence for each thing that is wrong with the model on the desk; empty where nothing is."""
    return (*token_faults(desk.engine), *golden_faults(desk, folder))


def token_faults(engine: Any) -> list[str]:
    """Special tokens that are not one id of their own within the embedding. An engine without a tokenizer has none."""
    tokens = getattr(engine, "tokens", None)
    if tokens is None or not hasattr(engine, "model"):
        return []
    out = []
    rows = engine.model.language.get_input_embeddings().weight.shape[0]
    added = {one.content: index for index, one in tokens.tokenizer.get_added_tokens_decoder().items()}
    for content, index in sorted(added.items(), key=lambda row: row[1]):
        ids = tokens.tokenizer.encode(content, add_special_tokens=False).ids
        if content.strip() and ids != [index]:
            out.append(f"The special token {content} is read as {len(ids)} ids: take the checkpoint's own tokenizer.")
        if index >= rows:
            out.append(
                f"The special token {content} has the id {index} and the model {rows} rows: take its own tokenizer."
            )
    for mark in engine.family.template.stop:
        if MARK.fullmatch(mark) and tokens.token(mark) is None:
            out.append(f"The mark {mark}, which ends an answer, is no token: take the checkpoint's own tokenizer.")
    return out


def golden_faults(desk: Desk, folder: Path) -> list[str]:
    """Whether the recorded answer comes again, where one is recorded."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        told = json.loads(path.read_text("utf-8"))
        picture = folder / told["picture"]
        wanted = [Box(*map(float, box)) for box in told["boxes"]]
        question, digest, precision = str(told["text"]), told["sha256"], told["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{path} cannot be read: record it again or remove it."]
    if desk.engine.precision != precision and {desk.engine.precision, precision} & {"int8", "nf4"}:
        return []  # few bits move boxes by more than this check allows: that is no fault of the weights
    if not picture.is_file() or hashlib.sha256(picture.read_bytes()).hexdigest() != digest:
        return [f"The recorded picture {picture} is not there or another one: record it again."]
    found = boxes(answered(desk, picture, question))
    overlaps = [max((box.iou(one) for one in found), default=0.0) for box in wanted]
    if overlaps and min(overlaps) < ENOUGH:
        return [
            f"Asked {question!r} about the recorded picture, a box overlaps its recorded place by {min(overlaps):.2f} "
            f"instead of {ENOUGH}: the weights are not those that were recorded."
        ]
    return []


def record(desk: Desk, folder: Path, picture: str, text: str) -> Path:
    """Write selfcheck.json from what the model on the desk answers now. picture: a path from the folder.

    ValueError where the answer has no box, which would check nothing.
    """
    found = boxes(answered(desk, folder / picture, text))
    if not found:
        raise ValueError("The answer has no box, so that it would check nothing: ask for a place.")
    told = {
        "picture": picture,
        "sha256": hashlib.sha256((folder / picture).read_bytes()).hexdigest(),
        "text": text,
        "precision": desk.engine.precision,
        "boxes": [[round(number, 6) for number in (box.x0, box.y0, box.x1, box.y1)] for box in found],
    }
    (folder / FILE).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return folder / FILE


def answered(desk: Desk, picture: Path, text: str) -> Answer:
    return list(desk.answer(Ask((open_image(str(picture)),), (Turn("user", text, images=(0,)),))))[-1]


def boxes(answer: Answer) -> list[Box]:
    """The outlines of all places of an answer, in 0..1."""
    return [outline(place) for span in answer.spans for place in span.places]
