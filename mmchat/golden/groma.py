"""Recorded cases of Groma (FoundationVision/Groma): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import written
from mmchat.prompt import Slot
from mmchat.templates import TEMPLATES

REFERRED = "<roi><refer_box></roi><refer_feat>"
LATER = (("And now?", "Two."), ("Describe the rest.", None))
NAMES = {"llava": "groma", "default": "groma_default", "simple": "groma_simple", "llama_2": "groma_llama_2"}
QUESTIONS = {
    "free question": "What is on the red cup?",
    "grounded caption": "[grounding]Describe the image in a short sentence.",
    "refer (run with boxes)": f"Please briefly describe {REFERRED}.",
}


def prompts(case: Case) -> list[Line]:
    """Every form with every way of asking. An instruction of the data sets alone is no prompt and is left out."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES[NAMES[entry["template"]]]
        question = QUESTIONS.get(entry["task"]) or entry["instruction"].format(_object(entry))
        said = [(template.beside((question,), (0,)), "<p>the man in white</p> <roi><r3></roi>"), *LATER]
        said = said if entry["turns"] == 3 else [(said[0][0], None)]
        messages = []
        for asked, answer in said:
            asked = asked if isinstance(asked, tuple) else (asked,)
            messages += [("user", asked), ("assistant", (answer,) if answer else ())]
        return regions(template.lay_out(messages))

    return texts.prompts([entry for entry in case.info["prompts"] if "prompt" in entry], ours)


def _object(entry: texts.Entry) -> str:
    """What stands for {} in an instruction: words to locate where its data set gives words, else a drawn region."""
    words = any(name in entry["task"] for name in ("refcoco_rec", "coco.INSTRUCTIONS"))
    return "<p>red cup</p>" if words else REFERRED


def regions(prompt: tuple[str | Slot, ...]) -> str:
    """Pieces as the original writes them, the candidates as <region>."""
    return written(
        tuple("<region>" if isinstance(piece, Slot) and piece.kind == "region" else piece for piece in prompt)
    )


HANDLERS = {"prompts": prompts}
