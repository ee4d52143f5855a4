"""What the official writers of today's models make of a box, and the sizes at which they see a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mmchat.dialect import DIALECTS, Scene
from mmchat.dialect.points import molmo2_groups, molmo2_tracks
from mmchat.dialect.table import MOLMO2
from mmchat.geometry import Box, Point, native
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


# Molmo's points, UI-TARS's clicks, GLM's numbers


def molmo(entry: Entry) -> str:
    """Points of a picture, or a sentence that counts them."""
    points = [_point(pair, entry) for pair in entry["points_pixels"]]
    if not points:
        return "There are none."
    written = DIALECTS["molmo"].write(points, entry["label"])
    return f"Counting the {written} shows a total of {len(points)}." if entry["style"] == "point_count" else written


def molmo2(entry: Entry) -> str:
    """Points of one picture with their counting sentence, of several pictures, of a video, and tracks."""
    apart = "\t" if entry["format"] == "html-v1" else ";"
    label, alt = entry["label"], entry.get("alt")
    if entry["kind"] == "tracks":
        groups = [
            (
                float(frame["time"]),
                {name: _pair(t["point"], entry) for name, t in frame["points"].items() if not t["occluded"]},
            )
            for frame in entry["tracks"]
        ]
        return molmo2_tracks(groups, label, alt, apart)
    if entry["kind"] != "image":
        names = entry.get("times", range(1, len(entry["points_pixels"]) + 1))
        groups = [
            (name, sorted(_pair(pair, entry) for pair in pairs))
            for name, pairs in zip(names, entry["points_pixels"], strict=True)
        ]
        return molmo2_groups(groups, label, alt, apart)
    count, mode = len(entry["points_pixels"]), entry["mode"]
    if not count:
        return "There are none."
    if mode == "count":
        return str(count)
    if alt is None:
        written = DIALECTS["molmo2"].write([_point(pair, entry) for pair in entry["points_pixels"]], label)
    else:
        written = molmo2_groups([(1, sorted(_pair(pair, entry) for pair in entry["points_pixels"]))], label, alt)
    sentence = {
        "point_then_count": "Counting the {} shows a total of {}.",
        "count_then_point": "There are {1} {0}.",
    }.get(mode, "{}")
    return sentence.format(written, count)


def _point(pair: Sequence[float], entry: Entry) -> Point:
    return Point(pair[0] / entry["image_size"][0], pair[1] / entry["image_size"][1])


def _pair(pair: Sequence[float], entry: Entry) -> tuple[str, ...]:
    return MOLMO2.forms[0].code.write(_point(pair, entry), Scene())


WRITERS: dict[str, tuple[Callable[[Entry], Any], str]] = {  # ours, and the key of theirs
    "qwen-vl": (_tagged, "text"),
    "qwen2.5-vl": (_resized, "result_resized_pixels"),
    "qwen3-vl": (lambda entry: _numbers(DIALECTS["qwen3_vl"].write([_box(entry)])), "result_1000"),
    "florence-2": (lambda entry: DIALECTS["florence_2"].write([_box(entry)]), "text"),
    "molmo": (molmo, "text"),
    "molmo2": (molmo2, "text"),
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
