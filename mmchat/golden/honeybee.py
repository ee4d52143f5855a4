"""Recorded cases of Honeybee (kakaobrain/honeybee): texts."""

from __future__ import annotations

from dataclasses import replace

from mmchat.dialect import brackets
from mmchat.dialect.table import HONEYBEE
from mmchat.geometry import Box
from mmchat.golden import Case, Line, texts
from mmchat.templates import TEMPLATES

HUNDREDTHS = replace(HONEYBEE, forms=(brackets(decimals=2, comma=","),))
SHORT = "Answer the question using a single word or phrase. "
LETTER = "Answer with the option's letter from the given choices directly. "


def boxes(case: Case) -> list[Line]:
    """The writer of boxes; the repository has no reader."""

    def ours(entry: texts.Entry) -> str:
        if entry["bbox_coord_style"] not in (2, 3):
            raise ValueError("Honeybee writes two or three decimals")
        x, y, width, height = entry["box_xywh"]
        size = (1, 1) if entry.get("bbox_format") == "none" else tuple(entry["image_size"])
        dialect = HONEYBEE if entry["bbox_coord_style"] == 3 else HUNDREDTHS
        return dialect.write([Box.from_pixels((x, y, x + width, y + height), size)])

    return texts.table(case.info["write"], ours, "text", "write")


WHERE = "Provide the bounding box coordinate of the region this sentence describes. {phrase}"
OPTIONS = "There are several options:\n{option}\n"
QUESTIONS = {  # the wrapper's name and its number -> the question, the name of its answer ("" where none is given)
    **dict.fromkeys((("vqa", 0), ("gqa", 0), ("kvqa", 0)), (f"{SHORT}{{question}}", "answer")),
    **dict.fromkeys((("mme", 0), ("eval-vqa", 0)), (f"{SHORT}{{question}}", "")),
    ("vqa-o", 0): (f"{LETTER}{{question}}\n{OPTIONS}", "answer"),
    ("sqa", 0): (f"{LETTER}{{question}}\nContext: {{context}}\n{OPTIONS}", "answer"),
    ("eval-sqa", 0): (f"{LETTER}{{question}}\nContext: {{context}}\n{OPTIONS}", ""),
    ("mmb", 0): (f"{LETTER}{{question}}", ""),
    ("vsr", 0): (f"{SHORT}{{question_interro}} Please answer yes or no.", "answer"),
    ("eval-vsr", 0): (f"{SHORT}{{question_interro}} Please answer yes or no.", ""),
    **dict.fromkeys(((name, 0) for name in ("loc", "refcoco", "refcocop", "refcocog")), (WHERE, "bbox")),
    ("eval-refexploc", 0): (WHERE, ""),
    ("loc", 1): ("Provide a short description for this region. {bbox}", "phrase"),
    ("refcoco", 1): (
        "Provide a description for the region {bbox}, utilizing positional words to refer to objects. "
        "Example: 'The large blue teddy bear next to the red balloon'",
        "phrase",
    ),
    ("refcocop", 1): (
        "Provide a description for the region {bbox}, focusing on the appearance of objects without using positional "
        "words. Example: 'The large blue teddy bear holding a red balloon.'",
        "phrase",
    ),
    ("refcocog", 1): (
        "Provide a description for the region {bbox}, using detailed and descriptive expressions to refer to objects. "
        "Example: 'The large blue teddy bear holding a red balloon with a joyful expression.'",
        "phrase",
    ),
}


def prompts(case: Case) -> list[Line]:
    """Every wrapper of the data sets, the bare benchmark prompt, the demo's talk, and how a prompt is cut into ids."""

    def wrapped(entry: texts.Entry) -> str:
        if entry["template"] == "captioning":
            if entry["turns"] > 1:
                raise ValueError("a caption is one turn")
            template, shown = TEMPLATES["honeybee_captions"], entry["values"][0]["caption"]
            asked = template.beside((shown,), (0,))  # a caption always has its picture
            return "[NO_PROMPT] " + texts.talk(template, [(asked, None)])
        question, answer = QUESTIONS[entry["template"], entry["pattern_index"]]
        said = [(question.format(**values), values.get(answer)) for values in entry["values"]]
        return talk("honeybee", said, entry["image"])

    def bare(entry: texts.Entry) -> str:
        return talk("honeybee_polite", [(entry["question"], None)], True)

    def demo(entry: texts.Entry) -> str:
        answers = [*entry["answers"], None]
        return talk("honeybee_demo", list(zip(entry["questions"], answers, strict=True)), bool(entry["image"]))

    return [
        *texts.prompts(case.info["templates"], wrapped),
        *texts.prompts(case.info["benchmark_prompt_without_template"], bare),
        *texts.prompts(case.info["demo_server"], demo, "after_process_image"),
    ]


def talk(name: str, said: list[tuple[str, str | None]], image: bool) -> str:
    """A talk in the form `name`, with a picture in its first question or without one."""
    template = TEMPLATES[name]
    asked = [(question,) for question, _ in said]
    if image:
        asked[0] = template.beside(asked[0], (0,))
    return texts.talk(template, [(question, answer) for question, (_, answer) in zip(asked, said, strict=True)])


HANDLERS = {"dialect": boxes, "prompts": prompts}
