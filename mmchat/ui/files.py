"""The last answer as a file: the painted picture or one of the exchange formats."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from mmchat import export, paint
from mmchat.desk import Answer
from mmchat.ui.canvas import Surface
from mmchat.ui.steps import last_answer, last_answered, opened, picture_of, sheet_of_answer
from mmchat.ui.words import Talk

# What is offered -> the ending of the file.
FORMS = {
    "Picture with boxes (PNG)": "png",
    "Answer (JSON)": "json",
    "COCO (JSON)": "coco.json",
    "YOLO (ZIP)": "yolo.zip",
    "Pascal VOC (XML)": "voc.xml",
    "Table (CSV)": "csv",
    "Label Studio (JSON)": "label-studio.json",
}


def save(surface: Surface | None, talk: Talk, form: str, model: tuple[str, str], cache: str) -> str:
    """The path of a file in Gradio's cache, named after the picture. ValueError without a picture or an answer.

    model: name and precision of the model that answered. Of an answer about a clip alone there is the JSON.
    """
    ending, last = FORMS.get(form, "png"), last_answered(talk)
    seconds = last.seconds if last is not None and last.clip else None
    if last is not None and last.picture == last.clip and last.answer is not None and ending == "json":
        data = content(Image.new("RGB", (1, 1)), last.answer, ending, "clip", model, seconds)
        return save_bytes_to_cache(data, "clip-mmchat.json", cache)
    picture_of(surface)  # a sentence where there is none
    answer, sheet = last_answer(talk), sheet_of_answer(surface, talk)
    if answer is None or sheet is None:
        raise ValueError("There is no answer about this picture yet: ask something first.")
    assert sheet.image is not None
    image, name = opened(sheet), sheet.image.orig_name or "picture.png"
    data = content(image, answer, ending, name, model, seconds)
    return save_bytes_to_cache(data, f"{Path(name).stem or 'picture'}-mmchat.{ending}", cache)


def content(
    image: Image.Image, answer: Answer, ending: str, name: str, model: tuple[str, str], seconds: float | None = None
) -> bytes:
    """The file's bytes. name: the picture's file name as formats mention it; seconds: length of the talk's clip."""
    named = (name, image.size, answer)
    if ending == "png":
        buffer = io.BytesIO()
        paint.answer(image, answer).save(buffer, "PNG")
        return buffer.getvalue()
    if ending == "yolo.zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for file, text in export.yolo([named]).items():
                packed.writestr(file, text)
        return buffer.getvalue()
    if ending in ("voc.xml", "csv"):
        return (export.voc(*named) if ending == "voc.xml" else export.table([named])).encode()
    if ending == "coco.json":
        value: object = export.coco([named])
    elif ending == "label-studio.json":
        value = export.label_studio([named])
    else:
        value = export.answer_json(answer, image.size, *model, seconds)
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
