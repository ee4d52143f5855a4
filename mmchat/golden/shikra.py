"""Recorded cases of Shikra (shikras/shikra): texts, pictures, a tiny whole model, the sum with its base model."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from mmchat.dialect.table import SHIKRA
from mmchat.families.shikra import FAMILY, WHITE, build
from mmchat.geometry import Box, Frame
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import MARK, greedy, images, looked_at, pieces, pixels
from mmchat.golden.loading import filled
from mmchat.nets import weights
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Model
from mmchat.templates import TEMPLATES

PATCHES = "<im_patch>" * 4  # as many as the record shortened them to


def prompts(case: Case) -> list[Line]:
    """Talks and tasks. The picture stands where its mark is, in the first question; a later mark is taken out."""

    def ours(entry: texts.Entry) -> str:
        questions = [text for role, text in entry["messages"] if role == "human"]
        answers = [text for role, text in entry["messages"] if role == "gpt"] + [None]
        if not entry["image"] and any(MARK in question for question in questions):
            raise ValueError("this talk names a picture and has none: add one")
        questions = [question if index == 0 else question.replace(MARK, "") for index, question in enumerate(questions)]
        if entry.get("box_px"):
            questions[0] = questions[0].replace("<boxes>", box(entry["box_px"], entry["image_size"]))
        if entry["image"] and MARK not in questions[0]:
            questions[0] = f"{MARK} {questions[0]}"
        said = [(pieces(question), answer) for question, answer in zip(questions, answers, strict=True)]
        written = texts.talk(TEMPLATES["shikra"], said)
        return written.replace(MARK, f"<im_start>{PATCHES}<im_end>")

    return texts.prompts(case.info["prompts"], ours)


def box(corners: list[float], size: list[int]) -> str:
    """A box in pixels as Shikra's question holds it."""
    placed = Frame(1, "pad").place((size[0], size[1])).into(Box.from_pixels(corners, (size[0], size[1])))
    return SHIKRA.write([placed])


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The white square, and what the tower sees of it."""
    config = case.config
    frame = Frame(config["crop_size"][0], "pad", WHITE, tuple(config["image_mean"]), tuple(config["image_std"]))
    out = {}
    for name, image in images(case).items():
        whole = Frame(max(image.size), "pad", WHITE)
        out[name.replace("image", "square")] = pixels(whole.fitted(image)[0])
        out[name.replace("image", "pixel_values")] = torch.from_numpy(frame.fit(image)[0])
    return out


@torch.no_grad()
def projected(case: Case, dtype: torch.dtype) -> Outputs:
    """The one linear layer."""
    sizes = (case.config["mm_hidden_size"], case.config["hidden_size"])
    keys = ((r"^(weight|bias)$", r"0.\1"),)
    net = filled(lambda: LastLevel(*projector("linear", *sizes)), case.state(), dtype, keys)
    return {"projected": net((case.inputs(dtype)["features"],))}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Ids with patch tokens, pictures -> features, spliced rows, logits, greedy ids, through the family's model."""
    config, given = case.config, case.inputs(dtype)
    sizes = {**config["llama"], "mm_hidden_size": config["vision"]["hidden_size"], "vision_config": config["vision"]}
    sizes["mm_vision_select_layer"] = config["mm_vision_select_layer"]
    # The tower is recorded apart, as it lies apart from the checkpoint.
    state = case.state() | case.part("state_vision.")
    model = filled(lambda: build(sizes), state, dtype, FAMILY.keys, FAMILY.drop)
    seen = model.see(given["images"])
    ids, real = given["input_ids"], given["attention_mask"].bool()
    embeds = model.embed(ids)
    left = list(seen.images)
    for row in range(len(ids)):
        patches = ids[row] == config["im_patch_token"]
        if patches.any():
            embeds[row, patches] = left.pop(0)
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)  # over the padded row, as the original counts
    logits = model.language(inputs_embeds=embeds, attention_mask=looked_at(real, dtype), position_ids=positions).logits
    recorded = case.tensors["out.logits"].to(dtype)
    out = {
        "vision_features": model.vision(given["images"])[-1],
        "projected": torch.stack(seen.images),
        "inputs_embeds": embeds,
        "logits": torch.where(real[..., None], logits, recorded),  # the record says that padded places mean nothing
    }
    if dtype == torch.float32:
        first = embeds[:1, real[0]]
        steps = case.tensors["out.generated_sample0"].shape[1]
        out["generated_sample0"] = greedy(model, first, torch.ones(first.shape[:2], dtype=torch.bool), steps)
    return out


def summed(case: Case, dtype: torch.dtype) -> Outputs:
    """Delta and base in two folders, loaded by the road that loads a checkpoint; exact in half precision."""
    delta, base = case.part("in.delta."), case.part("in.base.")
    rows, width = delta["lm_head.weight"].shape
    sizes = {"vocab_size": rows, "hidden_size": width, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes["intermediate_size"] = len(delta["model.layers.0.mlp.gate_proj.weight"])
    sizes["num_hidden_layers"] = len({name.split(".")[2] for name in delta if name.startswith("model.layers.")})
    seen = delta["model.mm_projector.weight"].shape[1]
    with weights.without_memory():
        model = Model(llama(sizes), bridge=LastLevel(*projector("linear", seen, width)))
    with TemporaryDirectory() as scratch:
        folders = {"delta": delta, "base": base}
        for name, state in folders.items():
            (Path(scratch) / name).mkdir()
            save_file(state, Path(scratch) / name / "model.safetensors")
        config = {"base_model": str(Path(scratch) / "base")}
        (Path(scratch) / "delta" / "config.json").write_text(json.dumps(config))
        (Path(scratch) / "base" / "config.json").write_text("{}")
        found = weights.sources(Path(scratch) / "delta", config, FAMILY.parts)
        weights.load(model, found, FAMILY.keys, FAMILY.drop, precision="fp32", parts=FAMILY.parts)
    state = model.state_dict()
    return {name: state[weights.renamed(name, FAMILY.keys)].half() for name in delta}


HANDLERS = {
    "prompts": prompts,
    "Expand2square + CLIPImageProcessor": preprocessed,
    "ShikraLlamaModel.mm_projector (one linear layer)": projected,
    "ShikraLlamaForCausalLM": whole,
    "apply_delta (loading and saving replaced, arithmetic official)": summed,
}
