"""Recorded cases of Ferret (apple/ml-ferret): texts."""

from __future__ import annotations

from mmchat.dialect.table import FERRET
from mmchat.geometry import Box, Point
from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import MARK_ID, pieces
from mmchat.golden.texts import Entry, Found, found
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


def dialect(case: Case) -> list[Line]:
    """Four readers that disagree with each other, and the questions of an evaluation."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        result = entry["result"] or {"boxes": []}
        names = result.get("phrases") if entry["reader"] == "eval_refexp" else None
        names = names if names and len(names) == len(result["boxes"]) else [None] * len(result["boxes"])
        ours = [item for item in found(FERRET, entry["text"], entry["image_size"]) if len(item[1]) == 4]
        return ours, list(zip(names, result["boxes"], strict=True)), tuple(entry["image_size"])

    def question(entry: Entry) -> str:
        names = (entry["name"], entry["neg_class"])
        first, second = names if entry["position_in_file"] % 2 == 0 else names[::-1]
        where = FERRET.write([_asked(entry)]) if not entry["no_coor"] else ""
        mark = " <region_fea>" if entry["add_region_feature"] else ""
        return f"Is the object {where}{mark} of the image a {first} or a {second}?"

    readers = dict.fromkeys(dict.fromkeys(entry["reader"] for entry in case.info["parse"]), read)
    asked = [entry for entry in case.info["write"] if entry["writer"] == "eval_lvis"]  # the others begin at a brush
    return [*texts.read_all(case.info["parse"], readers), *texts.table(asked, question, "question")]


def _asked(entry: Entry) -> Box | Point:
    if entry["region_format"] == "point":
        (x, y), (width, height) = entry["sample_point"], entry["image_size"]
        return Point(x / width, y / height)
    return Box(*entry["bbox_norm"])


HANDLERS = {"dialect": dialect, "prompts": prompts}
