"""Recorded cases of INF-LLaVA (WeihuangLin/INF-LLaVA): texts, pictures, views, their mixing, whole tiny models."""

from __future__ import annotations

import torch

from mmchat.families.inf_llava import KEYS, InfLlava, build
from mmchat.golden import Case, Line, Outputs, llava
from mmchat.golden.loading import filled
from mmchat.layout import DROP
from mmchat.nets import tiles
from mmchat.nets.crossview import SCALE, Attention, SpatialEmbed

COUNT = SCALE * SCALE


def pictures(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """The case's pictures [B, 3, H, W]; large ones are recorded as sums of three products of columns and rows."""
    given = case.inputs(dtype)
    if "u" in given:
        whole = torch.einsum("...crh,...crw->...chw", given["u"], given["v"]) / 64
        return whole if whole.ndim == 4 else whole[None]
    return given["image"] if "image" in given else given["images"]


@torch.no_grad()
def pieces(case: Case, dtype: torch.dtype) -> Outputs:
    """A map cut both ways, and both kinds of pieces put together both ways."""
    given = case.inputs(dtype)
    n, maps = int(given["n"]), given["x"].permute(0, 2, 3, 1)
    crops, strides = tiles.cut(maps, n), tiles.strided(maps, n)
    return {
        "crops": crops.permute(0, 1, 4, 2, 3),
        "strides": strides.permute(0, 1, 4, 2, 3),
        "crops_recombined": tiles.pasted(crops, n),
        "strides_recombined": tiles.interleaved(strides, n),
        "crops_interleaved": tiles.interleaved(crops, n),
        "strides_tiled": tiles.pasted(strides, n),
    }


@torch.no_grad()
def views(case: Case, dtype: torch.dtype) -> Outputs:
    """The 19 views, of which the record keeps some pixels."""
    found = tiles.all_views(pictures(case, dtype), case.config["view"], case.config["scale"])[:, 0]
    return {
        "view_count": torch.tensor([len(found)]),
        "views_sub": found[:, :, 5::21, 5::21],
        "views_corner": found[:, :, :4, :4],
        "views_end": found[:, :, -4:, -4:],
    }


@torch.no_grad()
def attention(case: Case, dtype: torch.dtype) -> Outputs:
    """The attention block alone."""
    config, given = case.config, case.inputs(dtype)
    net = filled(lambda: Attention(config["d_model"], config["h"]), case.state(), dtype)
    output, weights = net.attended(given["q"], given["k"], given["v"], given.get("mask"))
    return {"output": output, "weights": weights}


@torch.no_grad()
def mixing(case: Case, dtype: torch.dtype) -> Outputs:
    """The mixing over every place, and by the short road where there is one; that one's result is judged."""
    config = case.config
    net = filled(lambda: SpatialEmbed(config["channel"], config["heads"]), case.state(), dtype)
    features = case.inputs(dtype)["features"].unflatten(2, tuple(config["grid"]))
    n = config["n"]
    local, strides = features[: n * n], features[n * n :]
    full = net.steps(local, strides)
    out = {"G_prime": full.global_asks, "L_prime": full.local_asks, "fused": full.fused, "pooled": full.pooled}
    if n == SCALE and not any(length % SCALE for length in config["grid"]):
        middle = strides[COUNT // 2]
        asked_local, asked_global = net.central(local, middle)
        out |= {
            "L_prime_center": asked_local,
            "G_prime_center": asked_global,
            "fused_center": net.joined(asked_local, asked_global),
            "pooled": net(local, middle),
        }
    return out


def loaded(case: Case, dtype: torch.dtype) -> InfLlava:
    return filled(lambda: build(llava.checkpoint_config(case)), case.state(), dtype, KEYS, DROP)


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Tiny CLIP, mixer and Llama through the family's model, in ten views; the recorded views' features, too."""
    model, given = loaded(case, dtype), pictures(case, dtype)
    few = tiles.few_views(given, model.vision.side)
    seen = model.looked(few)
    thumbnail = model.looked(tiles.enlarged(given, model.vision.side)[None])[0]
    out = {
        "tower_local_0": seen[0],
        "tower_local_8": seen[8],
        "tower_stride_4": seen[9],
        "tower_thumbnail": thumbnail,
    }
    out = {name: value.flatten(1, 2) for name, value in out.items()}
    out["spatial_embed"] = model.bridge.spatial_embed(seen[:-1], seen[-1])
    return out | llava.run_whole(case, dtype, model, given)


@torch.no_grad()
def identity(case: Case) -> list[Line]:
    """How far ten and eleven passes lie from nineteen on the whole cases that lie beside this table."""
    lines = []
    for entry in case.info["measured"]:
        other = Case(case.path.with_name(f"{entry['case']}.json"))
        dtype = getattr(torch, entry["dtype"])
        model, given = loaded(other, dtype), pictures(other, dtype)
        every = model.encode_all(given)
        seen = model.looked(tiles.few_views(given, model.vision.side))
        thumbnail = model.looked(tiles.enlarged(given, model.vision.side)[None])[0]
        mixed = model.bridge.spatial_embed(seen[:-1], seen[-1])
        eleven = model.bridge.projector((mixed + thumbnail.flatten(1, 2)) / 2)
        ten = model.encode(given).vectors
        ours = [every.abs().max().item(), (ten - every).abs().max().item(), (eleven - every).abs().max().item()]
        names = ("max_abs_image_feature", "max_abs_diff_10_passes_vs_19", "max_abs_diff_11_passes_vs_19")
        lines.append(Line(f"{entry['case']} {entry['dtype']}", ours, [entry[name] for name in names]))
    return lines


HANDLERS = {
    "prompts": llava.prompts,
    "process_images": llava.preprocessed,
    "identity_10_passes": identity,
    "crop_pixels_N, extract_pixels_N, combine_crop_features_N, combine_stride_features_N": pieces,
    "LlavaMetaForCausalLM.encode_images (the 19 views given to the tower)": views,
    "MultiHeadedAttention": attention,
    "SpatialEmbed": mixing,
    "LlavaLlamaForCausalLM": whole,
}
