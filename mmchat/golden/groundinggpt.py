"""Recorded cases of GroundingGPT (lzw-lzw/GroundingGPT): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts
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


HANDLERS = {"prompts": prompts}
