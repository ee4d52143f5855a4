"""Recorded cases of ConvLLaVA (alibaba/conv-llava): texts."""

from __future__ import annotations

from mmchat.dialect.evaluation import padded_box
from mmchat.golden import Case, Line, llava, texts


def boxes(case: Case) -> list[Line]:
    """The reader of the repository's own evaluation."""

    def ours(entry: texts.Entry) -> object:
        return {"boxes_xyxy_pixels_original": [list(padded_box(entry["text"], tuple(entry["image_size"])))]}

    return texts.table(case.info["parse"], ours, name="evaluation")


HANDLERS = {"prompts": llava.prompts, "dialect": boxes}
