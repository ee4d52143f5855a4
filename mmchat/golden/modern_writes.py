"""What the official writers of today's models make of a box, and the sizes at which they see a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmchat.dialect import DIALECTS, Scene
from mmchat.geometry import Box, native
from mmchat.golden import Case, Line, texts
from mmchat.golden.texts import Entry

NOTEBOOK = {"least": 56 * 56, "most": 14 * 14 * 4 * 1280}
LIMITS = {  # of each recorded function, where the entry names no others: factor, least and most pixels
    "process_bbox notebook": NOTEBOOK,
    "transformers 5.23 qwen2_vl image processor": NOTEBOOK,
    "qwen-vl-utils": {"least": 4 * 28 * 28, "most": 16384 * 28 * 28},
}
OPTIONS = {"factor": "factor", "min_pixels": "least", "max_pixels": "most"}


def _box(entry: Entry) -> Box:
    return Box.from_pixels(entry["box_pixels"], tuple(entry["image_size"]))


def _seen(entry: Entry) -> tuple[int, int]:
    """The size at which Qwen2.5-VL's notebook sees the picture."""
    chosen = {OPTIONS[name]: value for name, value in entry.get("options", {}).items()}
    return native(tuple(entry["image_size"]), **{"factor": 28, **NOTEBOOK, **chosen})


def _resized(entry: Entry) -> list[int]:
    return _numbers(DIALECTS["qwen2_5_vl"].write([_box(entry)], scene=Scene(size=_seen(entry))))


def _tagged(entry: Entry) -> str:
    name = "qwen_vl" if "<ref>" in entry["text"] else "qwen2_vl"
    return DIALECTS[name].write([_box(entry)], entry["phrase"])


def _yx(entry: Entry) -> str:
    y0, x0, y1, x1 = entry["yxyx_0_1"]
    return DIALECTS["paligemma"].write([Box(x0, y0, x1, y1)])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


WRITERS: dict[str, tuple[Callable[[Entry], Any], str]] = {  # ours, and the key of theirs
    "qwen-vl": (_tagged, "text"),
    "qwen2.5-vl": (_resized, "result_resized_pixels"),
    "qwen3-vl": (lambda entry: _numbers(DIALECTS["qwen3_vl"].write([_box(entry)])), "result_1000"),
    "florence-2": (lambda entry: DIALECTS["florence_2"].write([_box(entry)]), "text"),
    "paligemma": (_yx, "text"),
    "rex-omni": (lambda entry: re.sub(r"<\|box_\w+\|>", "", DIALECTS["rex_omni"].write([_box(entry)])), "text"),
}


def written(case: Case) -> list[Line]:
    """The writers' lines, and the sizes of native resolution. Points of Molmo and clicks of UI-TARS are left out."""
    house = case.path.parent.name
    lines: list[Line] = []
    if house in WRITERS:
        ours, key = WRITERS[house]
        lines += texts.table([entry for entry in case.info["write"] if key in entry], ours, key, "write")
    if house in ("qwen2.5-vl", "ui-tars"):
        lines += texts.table(map(_sized, case.info["smart_resize"]), _size, "size", "size")
    return lines


def _sized(entry: Entry) -> Entry:
    return {**entry, "size": entry.get("result_hw", entry.get("smart_resize_hw"))}


def _size(entry: Entry) -> list[int]:
    limits = LIMITS.get(entry.get("function", ""), {"least": 100 * 28 * 28, "most": 16384 * 28 * 28})
    chosen = {OPTIONS[name]: value for name, value in entry.get("options", {}).items()}
    width, height = native((entry["width"], entry["height"]), **{"factor": 28, **limits, **chosen})
    return [height, width]
