"""Recorded cases of LLaVA-Grounding (UX-Decoder/LLaVA-Grounding): texts, pictures, parts."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from mmchat.dialect import Marks, Scene, home
from mmchat.dialect.table import LLAVA_GROUNDING
from mmchat.geometry import Box, Frame, outline
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found
from mmchat.nets.swin import Swin
from mmchat.templates import TEMPLATES

SAID = (
    ("<image>\nWhere is the red cup?", "<g_s> red cup <g_e> <seg> ."),
    ("How many?", "Two ."),
    ("Describe it .", None),
)
COLOURED = re.compile(r"<span style='color: rgb\([^)]*\);'>(.*?)</span>", re.DOTALL)
DEMO = (("Describe the scene (with grounding)", "A red cup  on grass ."), ("How many?", "Two."))


def prompts(case: Case) -> list[Line]:
    """The exact prompts of the demo, and the forms. The demo feeds answers back without their marks and `</s>`."""

    def ours(entry: texts.Entry) -> str:
        if "question" not in entry:
            return texts.talk(TEMPLATES[entry["template"]], SAID if entry["turns"] == 3 else [(SAID[0][0], None)])
        said = [*(DEMO if entry["turns"] == 3 else ()), (entry["question"], None)]
        said[0] = (f"<image>\n{said[0][0]}", said[0][1])
        return texts.talk(TEMPLATES["llava_grounding"], said)

    return texts.prompts(case.info["prompts"], ours)


def dialect(case: Case) -> list[Line]:
    """Marks with the boxes that the grounding head gave: what remains, what is exported, what the demo colours."""

    def kept(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        theirs = [(None, box) for boxes in (entry["result"] or {}).get("boxes", ()) for box in boxes]
        return _read(replace(LLAVA_GROUNDING, way="squash"), entry), theirs, (1.0, 1.0)

    def exported(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        written = (entry["result"] or {}).get("boxes", ())
        theirs = [
            (None, [float(number) for number in box.split(",")])
            for one in written
            for box in one.strip("[]").split(";")
        ]
        ours = [
            (label, [value / entry["image_size"][axis % 2] for axis, value in enumerate(given)])
            for label, given in _read(LLAVA_GROUNDING, entry)
        ]
        return ours, theirs, (1.0, 1.0)

    def coloured(entry: Entry) -> list[str]:
        whole = Box(0.0, 0.0, 1.0, 1.0)
        grounded = LLAVA_GROUNDING.read(entry["text"], Scene((whole,) * entry["text"].count("<seg>")))
        return [" ".join(grounded.text[span.start : span.end].split()) for span in grounded.spans]

    def back(entry: Entry) -> list[list[float]]:
        size = tuple(entry["image_size"])
        placement = Frame(1, "pad_end").place(size)
        boxes = [outline(placement.back(Box(*box))) for box in entry["boxes_square_xyxy"]]
        return [[box.x0, box.y0, box.x1, box.y1] for box in boxes]

    readers = {
        "filter_empty_box_mask (demo)": kept,
        "filter_empty_box (evaluator)": kept,
        "unresize_box + formatting (evaluator export text)": exported,
    }
    html = [
        {**entry, "result": [" ".join(phrase.split()) for phrase in COLOURED.findall(entry["result"] or "")]}
        for entry in case.info["parse"]
        if entry["function"] not in readers
    ]
    return [
        *texts.read_all([entry for entry in case.info["parse"] if entry["function"] in readers], readers),
        *texts.table(html, coloured),
        *texts.table(case.info["unresize_box"], back, "boxes_original_fraction", "unresize_box"),
    ]


def _read(dialect: Marks, entry: Entry) -> Found:
    """Ours, the k-th mark standing for the k-th list of boxes."""
    boxes = [Box(*box) for group in entry["boxes_square_xyxy"] for box in group]
    groups, start = [], 0
    for group in entry["boxes_square_xyxy"]:
        groups.append(tuple(range(start, start + len(group))))
        start += len(group)
    grounded = dialect.read(entry["text"], Scene(tuple(boxes), groups=tuple(groups) or ((),)))
    size = (entry["image_size"][0], entry["image_size"][1])
    if dialect.way != "squash":
        grounded = home(grounded, Frame(1, dialect.way).place(size))
    frame = size if dialect.way != "squash" else (1, 1)
    return [
        (grounded.text[span.start : span.end], texts.numbers(place, frame))
        for span in grounded.spans
        for place in span.places
    ]


@torch.no_grad()
def backbone(case: Case, dtype: torch.dtype) -> Outputs:
    """The Swin tower, picture sizes that no window divides."""
    config = case.config
    sizes = {
        "embed_dim": config["e"], "depths": config["depths"], "num_heads": config["heads"],
        "window_size": config["win"], "mlp_ratio": config["mlp"],
    }  # fmt: skip
    net = filled(lambda: Swin(sizes), case.state(torch.float32), dtype, ((r"^backbone\.", ""),))
    maps = net(case.inputs(dtype)["image"])
    return {f"res{index}": level for index, level in enumerate(maps, 2)}


HANDLERS = {"dialect": dialect, "prompts": prompts, "swin_backbone": backbone}
