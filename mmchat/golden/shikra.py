"""Recorded cases of Shikra (shikras/shikra): texts."""

from __future__ import annotations

from mmchat.dialect.table import SHIKRA
from mmchat.geometry import Box, Frame
from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import MARK, pieces
from mmchat.templates import TEMPLATES

PATCHES = "<im_patch>" * 4  # as many as the record shortened them to


def prompts(case: Case) -> list[Line]:
    """Talks and tasks. The picture stands where its mark is, in the first question; a later mark is taken out."""

    def ours(entry: texts.Entry) -> str:
        questions = [text for role, text in entry["messages"] if role == "human"]
        answers = [text for role, text in entry["messages"] if role == "gpt"] + [None]
        if not entry["image"] and any(MARK in question for question in questions):
            raise ValueError("this talk names a picture and has none: add one")
        questions = [question if index == 0 else question.replace(MARK, "") for index, question in enumerate(questions)]
        if entry.get("box_px"):
            questions[0] = questions[0].replace("<boxes>", box(entry["box_px"], entry["image_size"]))
        if entry["image"] and MARK not in questions[0]:
            questions[0] = f"{MARK} {questions[0]}"
        said = [(pieces(question), answer) for question, answer in zip(questions, answers, strict=True)]
        written = texts.talk(TEMPLATES["shikra"], said)
        return written.replace(MARK, f"<im_start>{PATCHES}<im_end>")

    return texts.prompts(case.info["prompts"], ours)


def box(corners: list[float], size: list[int]) -> str:
    """A box in pixels as Shikra's question holds it."""
    placed = Frame(1, "pad").place((size[0], size[1])).into(Box.from_pixels(corners, (size[0], size[1])))
    return SHIKRA.write([placed])


HANDLERS = {"prompts": prompts}
