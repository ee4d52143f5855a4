"""Recorded cases of LLaVA-Grounding (UX-Decoder/LLaVA-Grounding): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts
from mmchat.templates import TEMPLATES

SAID = (
    ("<image>\nWhere is the red cup?", "<g_s> red cup <g_e> <seg> ."),
    ("How many?", "Two ."),
    ("Describe it .", None),
)
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


HANDLERS = {"prompts": prompts}
