"""Recorded cases of the deformable operator and the module around it (fundamentalvision/Deformable-DETR)."""

from __future__ import annotations

import torch
from msda import ms_deform_attn

from mmchat.golden import Case, Outputs
from mmchat.golden.loading import filled
from mmchat.nets.deform import MSDeformAttn


def operator(case: Case, dtype: torch.dtype) -> Outputs:
    """The operator's output and the gradients of sum(output * grad_output)."""
    given = case.inputs(dtype)
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, attention = (given[name].requires_grad_() for name in names)
    output = ms_deform_attn(value, given["spatial_shapes"], locations, attention)
    grads = torch.autograd.grad(output, (value, locations, attention), given["grad_output"])
    return {"output": output.detach(), **{f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}}


def module(case: Case, dtype: torch.dtype) -> Outputs:
    """The module's output, inner values, and the gradients of all parameters and inputs."""
    config, given = case.config, case.inputs(dtype)
    sizes = (config["d_model"], config["n_levels"], config["n_heads"], config["n_points"])
    net = filled(lambda: MSDeformAttn(*sizes), case.state(), dtype)
    leaves = {name: given[name].requires_grad_() for name in ("query", "reference_points", "input_flatten")}
    shapes = [(height, width) for height, width in given["spatial_shapes"].tolist()]
    out = net.attend(
        leaves["query"], leaves["reference_points"], leaves["input_flatten"], shapes, given.get("padding_mask")
    )
    leaves |= dict(net.named_parameters())
    grads = torch.autograd.grad(out.output, tuple(leaves.values()), given["grad_output"])
    inner = {"output": out.output, "value": out.value, "offsets": out.offsets, "logits": out.logits}
    return {name: tensor.detach() for name, tensor in inner.items()} | {
        f"grad.{name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def start(case: Case, dtype: torch.dtype) -> Outputs:
    """Where a fresh module points."""
    heads, levels, points = case.inputs()["heads_levels_points"].tolist()
    return {"sampling_offsets_bias": MSDeformAttn(heads, levels, heads, points).sampling_offsets.bias.detach()}


HANDLERS = {"ms_deform_attn_core_pytorch": operator, "MSDeformAttn": module, "MSDeformAttn._reset_parameters": start}
