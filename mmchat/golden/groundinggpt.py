"""Recorded cases of GroundingGPT (lzw-lzw/GroundingGPT): texts."""

from __future__ import annotations

from dataclasses import replace

from mmchat.dialect import brackets
from mmchat.dialect.table import GROUNDINGGPT
from mmchat.geometry import Box, Frame, outline
from mmchat.golden import Case, Line, texts
from mmchat.golden.texts import Entry, Found, found
from mmchat.templates import TEMPLATES

QUESTION = "Where is the red cup? Include the object positions in [x0, y0, x1, y1] format."
SAID = ((QUESTION, "It is at [0.100, 0.200, 0.300, 0.400]."), ("How many?", "Two."), ("Describe it.", None))
PATCHES = {"im": 6, "vi": 4, "so": 3}  # as many as the record shortened them to
MEDIA = {"image": ("im",), "video": ("vi",), "sound": ("so",), "image and sound": ("so", "im"), "none": ()}


def prompts(case: Case) -> list[Line]:
    """Every form with every medium."""

    def ours(entry: texts.Entry) -> str:
        shown = "".join(
            f"<{kind}_start>{f'<{kind}_patch>' * PATCHES[kind]}<{kind}_end>\n" for kind in MEDIA[entry["media"]]
        )
        said = SAID if entry["turns"] == 3 else ((QUESTION, None),)
        name = {"default": "lego", "llava_v0": "lego_greeted"}.get(entry["template"], entry["template"])
        return texts.talk(TEMPLATES[name], [(shown + said[0][0], said[0][1]), *said[1:]])

    return texts.prompts(case.info["prompts"], ours)


ORIGINAL = replace(GROUNDINGGPT, way="squash", forms=(brackets(decimals=3, join=""),))  # of the rewritten text


def dialect(case: Case) -> list[Line]:
    """Boxes of the padded square brought to the original picture: in the text, in the demo, and by themselves."""

    def rewritten(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        theirs = [(None, box) for _, box in found(ORIGINAL, entry["result"], (1, 1))] if entry["result"] else []
        ours = _fractions(entry)
        if len(ours) == len(theirs):  # the original rounds to whole pixels on its way
            ours = [(label, _within(box, other, entry)) for (label, box), (_, other) in zip(ours, theirs, strict=True)]
        return ours, theirs, (1.0, 1.0)

    def demo(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        size = tuple(entry["image_size"])
        shapes = (entry["result"] or {}).get("rectangles") or ()
        theirs = [(None, [one["x"], one["y"], one["x"] + one["w"], one["y"] + one["h"]]) for one in shapes]
        return found(ORIGINAL, entry["text"], size), theirs, size

    def back(entry: Entry) -> list[float]:
        size = tuple(entry["image_size"])
        side = max(size)
        box = Box.from_pixels(entry["square_box_pixels"], (side, side))
        return [round(number) for number in outline(Frame(1, "pad").place(size).back(box)).pixels(size)]

    readers = {
        "postprocess_output (text with original-frame boxes)": rewritten,
        "web demo postprocess_image_answer_gradio": demo,
    }
    return [
        *texts.read_all(case.info["parse"], readers),
        *texts.table(case.info["convert_box"], back, "original_box_pixels", "convert_box"),
    ]


def _within(box: list[float], other: list[float], entry: Entry) -> list[float]:
    """The original's numbers where ours are no more than a pixel off."""
    pairs = enumerate(zip(box, other, strict=True))
    off = [abs(ours - theirs) * entry["image_size"][axis % 2] for axis, (ours, theirs) in pairs]
    return other if max(off) <= 1.5 else box


def _fractions(entry: Entry) -> Found:
    """Ours in fractions of the original picture."""
    size = entry["image_size"]
    pixels = found(GROUNDINGGPT, entry["text"], size)
    return [(label, [value / size[axis % 2] for axis, value in enumerate(given)]) for label, given in pixels]


HANDLERS = {"dialect": dialect, "prompts": prompts}
