"""Recorded cases of Ferret (apple/ml-ferret): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import MARK_ID, pieces
from mmchat.prompt import Slot, encode
from mmchat.templates import TEMPLATES


def prompts(case: Case) -> list[Line]:
    """Forms of demo and evaluation, and the splitting of texts at image marks."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES["ferret_v1" if entry["template"] == "ferret_v1" else "ferret_first"]
        said = [(pieces(question), answer) for question, answer in entry["messages"]]
        if entry["image"]:
            said[0] = (template.beside(said[0][0], (0,)), said[0][1])
        return texts.talk(template, said)

    def split(entry: texts.Entry) -> list[int]:
        ids = encode(pieces(entry["text"]), lambda text: [ord(character) for character in text], [1])
        return [MARK_ID if isinstance(token, Slot) else token for token in ids]

    return [
        *texts.prompts(case.info["prompts"], ours),
        *texts.table(case.info["image_token_split"], split, "ids", "split"),
    ]


HANDLERS = {"prompts": prompts}
