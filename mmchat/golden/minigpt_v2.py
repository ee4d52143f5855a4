"""Recorded cases of MiniGPT-v2 (Vision-CAIR/MiniGPT-4): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts
from mmchat.golden.llava import pieces
from mmchat.templates import TEMPLATES


def prompts(case: Case) -> list[Line]:
    """Talks, tasks, and the form of training."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES["minigpt_v2"]
        said = [(pieces(question), answer) for question, answer in entry["messages"]]
        if entry["image"]:
            said[0] = (template.beside(said[0][0], (0,)), said[0][1])
        return texts.talk(template, said).replace("<image>", "<ImageHere>")

    def trained(entry: texts.Entry) -> str:
        template = TEMPLATES["minigpt_v2_training"]
        asked = template.beside((entry["instruction"],), (0,))
        return texts.talk(template, [(asked, None)]).replace("<image>", "<ImageHere>")

    training = [
        {**entry, "text": entry["instruction"], "prompt": entry["text"]} for entry in case.info["training_text"]
    ]
    return [*texts.prompts(case.info["prompts"], ours), *texts.prompts(training, trained)]


HANDLERS = {"prompts": prompts}
