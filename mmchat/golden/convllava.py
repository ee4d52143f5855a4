"""Recorded cases of ConvLLaVA (alibaba/conv-llava): texts, pictures, the ConvNeXt tower, whole models of tiny size."""

from __future__ import annotations

import torch

from mmchat.dialect.evaluation import padded_box
from mmchat.families.convllava import DROP, KEYS, build
from mmchat.golden import Case, Line, Outputs, llava, texts
from mmchat.golden.loading import filled
from mmchat.nets.convnext import ConvNextTower


def boxes(case: Case) -> list[Line]:
    """The reader of the repository's own evaluation."""

    def ours(entry: texts.Entry) -> object:
        return {"boxes_xyxy_pixels_original": [list(padded_box(entry["text"], tuple(entry["image_size"])))]}

    return texts.table(case.info["parse"], ours, name="evaluation")


@torch.no_grad()
def tower(case: Case, dtype: torch.dtype) -> Outputs:
    """The last stage for every recorded size, the others for the first."""
    config = case.config
    added = tuple(config["add_stage"]) if config["add_stage"] else None
    net = filled(
        lambda: ConvNextTower(config, config["mm_vision_select_layer"], added),
        case.state(),
        dtype,
        ((r"^vision_tower\.", ""),),
        (r"^vision_tower\.layernorm\.",),
    )
    given = case.inputs(dtype)
    out = {name.replace("images", "features"): net(pictures)[0] for name, pictures in given.items()}
    stem, *stages = net.maps(given["images_0"])
    return out | {"stem": stem} | {f"stage_{number}": stage for number, stage in enumerate(stages, 1)}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Tiny ConvNeXt, projector and Llama, through the model of the family."""
    model = filled(lambda: build(llava.checkpoint_config(case)), case.state(), dtype, KEYS, DROP)
    return llava.run_whole(case, dtype, model)


HANDLERS = {
    "prompts": llava.prompts,
    "dialect": boxes,
    "process_images": llava.preprocessed,
    "build_vision_projector": llava.projected,
    "ConvNeXtCLIPVisionTower": tower,
    "LlavaLlamaForCausalLM": whole,
}
