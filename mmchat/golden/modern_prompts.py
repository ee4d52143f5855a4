"""Recorded prompts of today's models, and how InternVL cuts its pictures."""

from __future__ import annotations

from collections.abc import Mapping

from mmchat.dialect import DIALECTS
from mmchat.geometry import tiling
from mmchat.golden import Case, Line, texts
from mmchat.golden.texts import Entry
from mmchat.templates import REX_OMNI, TEMPLATES, florence_2

Words = Mapping[str, str]  # of a talk, by what they are for: the record states them nowhere else
NAMES = {
    "Hermes-2": "internvl",
    "internlm2-chat": "internvl",
    "phi3-chat": "internvl_phi3",
    "internvl2_5": "internvl2_5",
    "deepseek": "deepseek_vl2",
    "deepseekv2": "deepseek_vl2_bare",
    "plain": "deepseek_vl2_plain",
}
PICTURES = {"internvl": "Image-{}: <image>\n", "deepseek-vl2": "This is image_{}: <image>\n"}


def _said(entry: Entry, words: Words) -> list[tuple[str, str | None]]:
    """Questions and answers; a question alone has none yet."""
    if entry["turns"] == 1:
        return [(words["first"], None)]
    every = [(words["first"], words["answer"]), (words["second"], words["reply"]), (words["third"], None)]
    return every[: entry["turns"]]


def _talk(house: str, entry: Entry, words: Words) -> str:
    said = _said(entry, words)
    count = entry["images"]
    named = "<image>\n" if count == 1 else "".join(PICTURES[house].format(number + 1) for number in range(count))
    said[0] = (named + said[0][0], said[0][1])
    return texts.talk(TEMPLATES[NAMES[entry["template"]]], said)


def internvl(entry: Entry, words: Words) -> str:
    if "question" in entry:
        phrase = DIALECTS["internvl"].write((), entry["input"]["phrase"])
        return f"Please provide the bounding box coordinate of the region this sentence describes: {phrase}"
    return _talk("internvl", entry, words)


def deepseek_vl2(entry: Entry, words: Words) -> str:
    if entry["template"] == "alignment":  # of training: the question is a picture whatever it was
        said = _said(entry, words)
        return "".join(
            f"<image>\n{answer or ''}" if index < entry["turns"] - 1 else "<image>\n"
            for index, (_, answer) in enumerate(said)
        )
    return _talk("deepseek-vl2", entry, words)


def cogvlm(entry: Entry, words: Words) -> str:
    template = TEMPLATES[f"cogvlm_{entry['template']}"]
    history = [] if template.assistant is None else entry["history"]  # these forms hold the last question alone
    return "<EOI>" + texts.talk(
        template, [*((question, answer) for question, answer in history), (entry["query"], None)]
    )


def qwen_vl(entry: Entry, words: Words) -> str:
    if "task" in entry:
        phrase = DIALECTS["qwen_vl"].write((), entry["input"]["phrase"])
        return f"<img>{entry['input']['image']}</img>{phrase}<box>"
    names = [item["image"] for item in entry["input"] if "image" in item]
    words = "".join(item.get("text", "") for item in entry["input"])
    return "".join(f"Picture {number}: <img>{name}</img>\n" for number, name in enumerate(names, 1)) + words


def rex_omni(entry: Entry, words: Words) -> str:
    return REX_OMNI[entry["task"]].replace(
        "{text}", words["boxes" if "{visual_prompt}" in entry["template"] else "named"]
    )


WRITERS = {
    "internvl": internvl,
    "deepseek-vl2": deepseek_vl2,
    "cogvlm": cogvlm,
    "qwen-vl": qwen_vl,
    "rex-omni": rex_omni,
    "florence-2": lambda entry, words: florence_2(entry["input"]),
}


def prompts(case: Case) -> list[Line]:
    """Every recorded prompt of a model."""
    house = case.path.parent.name
    entries = [
        {**entry, "prompt": entry.get("prompt", entry.get("example", entry.get("question")))}
        for entry in case.info["prompts"]
    ]
    return texts.told(entries, WRITERS[house])


def tiles(case: Case) -> list[Line]:
    """The steps of InternVL's cutting: the resize, the crops, the thumbnail."""

    def ours(entry: Entry) -> list:
        across, down = tiling(tuple(entry["image_size"]), entry["min_num"], entry["max_num"], entry["tile"])
        side = entry["tile"]
        steps: list = [["resize", [across * side, down * side]]]
        steps += [
            ["crop", [column * side, row * side, (column + 1) * side, (row + 1) * side]]
            for row in range(down)
            for column in range(across)
        ]
        return steps + ([["resize", [side, side]]] if entry["thumbnail"] and across * down > 1 else [])

    return texts.table(case.info["cases"], ours, "steps", "tiles")
