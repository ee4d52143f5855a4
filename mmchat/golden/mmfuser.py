"""Recorded cases of MMFuser (yuecao0119/MMFuser): what LLaVA's are, and its fuser step by step."""

from __future__ import annotations

import torch

from mmchat.dialect import evaluated_boxes
from mmchat.families.mmfuser import FusedProjector, build
from mmchat.golden import Case, Line, Outputs, llava
from mmchat.golden.loading import filled
from mmchat.layout import DROP, KEYS
from mmchat.nets.deform import Fused, MSCrossAttnBlock


def block(config: dict, width: int) -> tuple[int, int, int, int]:
    return width, config["n_levels"], config["n_heads"], config["n_points"]


def steps(fused: Fused) -> dict[str, torch.Tensor]:
    """The fuser's inner values under their recorded names."""
    return {
        "query_norm": fused.query,
        "feat_norm": fused.features,
        "cross_attn": fused.cross.output,
        "norm1": fused.between,
        "self_attn": fused.own.output,
        "cross_sampling_locations": fused.cross.locations,
        "cross_attention_weights": fused.cross.weights,
        "cross_sampled": fused.cross.sampled,
        "self_sampling_locations": fused.own.locations,
        "self_attention_weights": fused.own.weights,
        "self_sampled": fused.own.sampled,
        "fused": fused.output,
    }


@torch.no_grad()
def fuser(case: Case, dtype: torch.dtype) -> Outputs:
    """The block alone."""
    net = filled(lambda: MSCrossAttnBlock(*block(case.config, case.config["d_model"])), case.state(), dtype)
    return steps(net.fuse(case.inputs(dtype)["srcs"]))


def half_fuser(case: Case, dtype: torch.dtype) -> Outputs:
    """The block in bfloat16."""
    return fuser(case, torch.bfloat16)


@torch.no_grad()
def projected(case: Case, dtype: torch.dtype) -> Outputs:
    """The fuser with the projector behind it."""
    config = case.config
    _, levels, heads, points = block(config, 0)
    sizes = (config["mm_projector_type"], config["mm_hidden_size"], config["hidden_size"], levels, heads, points)
    net = filled(lambda: FusedProjector(*sizes), case.state(), dtype)
    fused = net.fuse(case.inputs(dtype)["srcs"])
    return steps(fused) | {"projected": net.project(fused.output)}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Tiny CLIP, fuser and Llama, through the model of the family."""
    model = filled(lambda: build(llava.checkpoint_config(case)), case.state(), dtype, KEYS, DROP)
    return llava.run_whole(case, dtype, model)


def boxes(case: Case) -> list[Line]:
    """The reader of the repository's own evaluation."""
    lines = []
    for entry in case.info["parse"]:
        size, padded = tuple(entry["image_size"]), entry["square_pad_postprocess"]
        ours = [list(box) for box in evaluated_boxes(entry["text"], size, entry["bbox_scale"], padded)]
        lines.append(
            Line(
                f"{entry['text']!r} {size} {'padded' if padded else ''}",
                ours,
                entry["result"]["boxes_xyxy_pixels_original"],
            )
        )
    return lines


HANDLERS = llava.HANDLERS | {
    "dialect": boxes,
    "select_layer_parsing": llava.layers,
    "MSCrossAttnBlock": fuser,
    "MSCrossAttnBlock in bfloat16": half_fuser,
    "build_vision_projector": projected,
    "LlavaLlamaForCausalLM": whole,
}
