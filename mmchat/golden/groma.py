"""Recorded cases of Groma (FoundationVision/Groma): texts."""

from __future__ import annotations

from mmchat.dialect import Scene
from mmchat.dialect.table import GROMA
from mmchat.geometry import Box, outline
from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import written
from mmchat.golden.texts import Entry
from mmchat.prompt import Slot
from mmchat.templates import TEMPLATES

REFERRED = "<roi><refer_box></roi><refer_feat>"
LATER = (("And now?", "Two."), ("Describe the rest.", None))
NAMES = {"llava": "groma", "default": "groma_default", "simple": "groma_simple", "llama_2": "groma_llama_2"}
QUESTIONS = {
    "free question": "What is on the red cup?",
    "grounded caption": "[grounding]Describe the image in a short sentence.",
    "refer (run with boxes)": f"Please briefly describe {REFERRED}.",
}


def prompts(case: Case) -> list[Line]:
    """Every form with every way of asking. An instruction of the data sets alone is no prompt and is left out."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES[NAMES[entry["template"]]]
        question = QUESTIONS.get(entry["task"]) or entry["instruction"].format(_object(entry))
        said = [(template.beside((question,), (0,)), "<p>the man in white</p> <roi><r3></roi>"), *LATER]
        said = said if entry["turns"] == 3 else [(said[0][0], None)]
        messages = []
        for asked, answer in said:
            asked = asked if isinstance(asked, tuple) else (asked,)
            messages += [("user", asked), ("assistant", (answer,) if answer else ())]
        return regions(template.lay_out(messages))

    return texts.prompts([entry for entry in case.info["prompts"] if "prompt" in entry], ours)


def _object(entry: texts.Entry) -> str:
    """What stands for {} in an instruction: words to locate where its data set gives words, else a drawn region."""
    words = any(name in entry["task"] for name in ("refcoco_rec", "coco.INSTRUCTIONS"))
    return "<p>red cup</p>" if words else REFERRED


def regions(prompt: tuple[str | Slot, ...]) -> str:
    """Pieces as the original writes them, the candidates as <region>."""
    return written(
        tuple("<region>" if isinstance(piece, Slot) and piece.kind == "region" else piece for piece in prompt)
    )


def dialect(case: Case) -> list[Line]:
    """Which regions an answer names, how a caption is cleaned, how a phrase is asked for."""

    def named(entry: Entry) -> dict:
        count = entry["number_of_boxes"]
        given = {int(key): value for key, value in entry["boxes_cxcywh"].items()}
        boxes = tuple(_box(given.get(number, (0.5, 0.5, 0.5, 0.5))) for number in range(count))
        grounded = GROMA.read(entry["text"], Scene(boxes))
        chosen = sorted(
            (source, region, place)
            for span in grounded.spans
            for source, region, place in zip(span.source, span.regions, span.places, strict=True)
        )
        ids = [region for _, region, _ in chosen]
        size = tuple(entry["image_size"])
        return {"ids": ids, "boxes_xyxy_pixels": [list(outline(place).pixels(size)) for _, _, place in chosen]}

    def cut(entry: Entry) -> dict:
        """The original's boxes inside of the picture, as ours are."""
        size = tuple(entry["image_size"])
        boxes = [Box.from_pixels(box, size).clipped().pixels(size) for box in entry["result"]["boxes_xyxy_pixels"]]
        return {"ids": entry["result"]["ids"], "boxes_xyxy_pixels": [list(box) for box in boxes]}

    regions = [entry for entry in case.info["parse"] if entry["function"].startswith("region ids")]
    captions = [entry for entry in case.info["parse"] if not entry["function"].startswith("region ids")]
    asked = [entry for entry in case.info["write"] if entry["what"] == "phrase to locate"]
    return [
        *texts.table([{**entry, "result": cut(entry)} for entry in regions], named),
        *texts.table(
            [{**entry, "result": _words(entry["result"])} for entry in captions],
            lambda entry: _words(GROMA.read(entry["text"]).text),
        ),
        *texts.table(asked, lambda entry: GROMA.write((), entry["text"][3:-4]), "text", "write"),
    ]


def _words(text: str) -> str:
    """A caption without its blanks and quotes: how these stand is for scoring alone."""
    return "".join(text.split()).strip("'\"")


def _box(numbers: tuple[float, ...]) -> Box:
    x, y, width, height = numbers
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


HANDLERS = {"dialect": dialect, "prompts": prompts}
