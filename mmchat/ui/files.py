"""The last answer as a file: the painted picture or one of the exchange formats."""

from __future__ import annotations

import io
import json
from pathlib import Path

from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from mmchat import export, paint
from mmchat.desk import Answer, Desk
from mmchat.ui.canvas import Surface
from mmchat.ui.steps import last_answer, picture_of
from mmchat.ui.words import Talk

# What is offered -> the ending of the file.
FORMS = {"Picture with boxes (PNG)": "png", "Answer (JSON)": "json", "COCO (JSON)": "coco.json"}


def save(desk: Desk, surface: Surface | None, talk: Talk, form: str, cache: str) -> str:
    """The path of a file in Gradio's cache, named after the picture. ValueError where there is no picture or no answer."""
    image, answer = picture_of(surface), last_answer(talk)
    if answer is None:
        raise ValueError("There is no answer yet: ask something about the picture first.")
    assert surface is not None and surface.image is not None
    name = Path(surface.image.orig_name or "picture").stem or "picture"
    ending = FORMS.get(form, "png")
    return save_bytes_to_cache(content(desk, image, answer, ending, surface.image.orig_name or "picture"), f"{name}-mmchat.{ending}", cache)


def content(desk: Desk, image: Image.Image, answer: Answer, ending: str, name: str) -> bytes:
    """The file's bytes."""
    if ending == "png":
        buffer = io.BytesIO()
        paint.answer(image, answer).save(buffer, "PNG")
        return buffer.getvalue()
    if ending == "json":
        return _json(export.answer_json(answer, image.size, desk.engine.family.name, desk.engine.precision))
    return _json(export.coco([(name, image.size, answer)]))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
