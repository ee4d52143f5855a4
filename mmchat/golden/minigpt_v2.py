"""Recorded cases of MiniGPT-v2 (Vision-CAIR/MiniGPT-4): texts, pictures, the tower, the join, a tiny whole model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mmchat.dialect.table import MINIGPT_V2
from mmchat.families.minigpt_v2 import FAMILY, Joined, build
from mmchat.geometry import Box, Frame
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import greedy, images, pieces
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found, found
from mmchat.nets.eva import EvaTower, resized
from mmchat.nets.model import Seen
from mmchat.prompt import Slot
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


def dialect(case: Case) -> list[Line]:
    """What the demo finds, the boxes that training writes, and what the demo's buttons ask.

    Left out: what is no place (the clean-up of training's sentences, an IoU with a pixel more, behind which questions
    a drawn box is put: here the user says @1), and the demo's brush, whose mask is first shrunk to 100 x 100: our boxes
    are cut off from the drawn corners themselves.
    """

    def demo(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        result = entry["result"]
        size = result.get("picture_size") or (500, 500)
        ours = found(MINIGPT_V2, entry["text"], size)
        if result.get("entities"):
            return ours, [(phrase, box) for phrase, boxes in result["entities"] for box in boxes], tuple(size)
        return ours, [(None, box) for box in result.get("rectangles_500") or ()], tuple(size)

    def referred(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        ours = found(MINIGPT_V2, entry["text"], entry["image_size"])
        if not entry["result"]["kept_answer"]:
            return ours, [], tuple(entry["image_size"])
        x, y, width, height = entry["result"]["target_xywh"]
        return ours[:1], [(None, [x, y, x + width, y + height])], tuple(entry["image_size"])

    def trained(entry: Entry) -> str:
        return MINIGPT_V2.write([Box.from_pixels(entry["box_px_xyxy"], tuple(entry["image_size"]))])

    parsed = [
        entry for entry in case.info["parse"] if entry["reader"] != "demo_extract_substrings"
    ]  # a step of the demo's
    written = [
        entry for entry in case.info["write"] if entry["writer"] == "training_box"
    ]  # the others begin at a brush
    asked = [task.pattern.replace("{text}", "") for task in FAMILY.template.tasks]
    return [
        *texts.read_all(parsed, {"demo": demo, "eval_ref": referred}),
        *(texts.line(entry, trained, entry["text"], odd(entry)) for entry in written),
        *(
            Line(f"button {said!r}", said if said in asked else asked, said)
            for said, _ in case.info.get("task_shortcuts", ())
        ),
    ]


def odd(entry: Entry) -> str:
    """What a box of training is called by: whether it leaves the picture, or its division falls a hair short."""
    size = entry["image_size"] * 2
    shares = [number / length for number, length in zip(entry["box_px_xyxy"], size, strict=True)]
    if min(shares) < 0 or max(shares) > 1:
        return "training_box beyond the picture"
    short = any(int(share * 100) != int(share * 100 + 1e-9) for share in shares)
    return f"training_box{' a hair short' if short else ''}"


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The picture squashed to the tower's square."""
    config = case.config
    frame = Frame(config["image_size"], "squash", mean=tuple(config["mean"]), std=tuple(config["std"]))
    return {
        name.replace("image", "pixel_values"): torch.from_numpy(frame.fit(image)[0])
        for name, image in images(case).items()
    }


@torch.no_grad()
def tower(case: Case, dtype: torch.dtype) -> Outputs:
    """The tower step by step, with the options that the recorded one was built with."""
    net = filled(lambda: EvaTower(case.config), case.state(), dtype, EvaTower.KEYS, EvaTower.DROP)
    pixels = case.inputs(dtype)["image"]
    tokens = net.embed(pixels)
    shared = None if net.shared is None else net.shared()
    first = net.blocks[0]
    out = {
        "patch_embed": net.patch_embed(pixels),
        "embedded": tokens,
        "block0_attention": first.attn(first.norm1(tokens), shared),
        "tokens": net.tokens(pixels),
    }
    if shared is not None:
        out["shared_rel_pos_bias"] = shared
    for index, block in enumerate(net.blocks):
        tokens = block(tokens, shared)
        out[f"block.{index}"] = tokens
    return out


def positions(case: Case, dtype: torch.dtype) -> Outputs:
    """The position table for a finer grid."""
    return {"pos_embed": resized(case.inputs(dtype)["pos_embed"], case.config["new_grid"][0])}


@torch.no_grad()
def joined(case: Case, dtype: torch.dtype) -> Outputs:
    """Norm, join and projection of a tower's tokens."""
    config = case.config
    net = filled(lambda: Joined(config["vit_width"], config["hidden_size"]), case.state(), dtype)
    return {"image_embeds": net((case.inputs(dtype)["vit_tokens"][:, 1:],))}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures and pieces of ids -> spliced rows, logits, greedy ids, through the family's model with its low-rank
    pairs folded in.
    """
    config, given = case.config, case.inputs(dtype)
    sizes: dict[str, Any] = {"llm_config": config["llama"], "vision_config": config["vit"]}
    parts = tuple(replace(part, scale=config["lora_alpha"] / config["lora_r"]) for part in FAMILY.parts)
    model = filled(lambda: build(sizes), case.state(), dtype, FAMILY.keys, FAMILY.drop, FAMILY.fold, parts)
    tokens = model.vision.tokens(given["image"])
    seen = model.see(given["image"])
    out = {
        "vit_tokens": tokens,
        "ln_vision": model.bridge.normed(tokens),
        "image_embeds": torch.stack(seen.images),
        "prompt_wrap": wrapped(case, model, seen),
    }
    for number in range(len(config["texts"])):
        first, second = (model.embed(given[f"segment_ids.{number}.{piece}"]) for piece in (0, 1))
        row = torch.cat((first, model.fill(Slot("image", number), seen, list), second))[None]
        out |= {f"context_emb.{number}": row, f"logits.{number}": model.language(inputs_embeds=row).logits}
        if dtype == torch.float32:
            steps = case.tensors[f"out.generated.{number}"].shape[1]
            out[f"generated.{number}"] = greedy(model, row, torch.ones(row.shape[:2], dtype=torch.bool), steps)
    return out


def wrapped(case: Case, model: torch.nn.Module, seen: Seen) -> torch.Tensor:
    """The rows of training: words, picture, words, and the pad token's embedding where the mask is 0.

    The record has no ids of these words: each is taken for the token whose embedding it is, so that this holds the
    pictures' vectors, their place and the padding to the record, and no tokenizer.
    """
    recorded, mask = case.tensors["out.prompt_wrap"], case.tensors["in.prompt_wrap_attention"].bool()
    table = case.tensors["state.llama_model.base_model.model.model.embed_tokens.weight"]
    rows = []
    for number, (row, real) in enumerate(zip(recorded, mask, strict=True)):
        apart, ids = torch.cdist(row[real], table, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        words = model.embed(ids)
        first = int((apart > 1e-4).long().argmax())
        picture = model.fill(Slot("image", number), seen, list)
        made = torch.cat((words[:first], picture, words[first + len(picture) :]))
        pad = model.embed([case.config["llama"]["pad_token_id"]]).expand(int((~real).sum()), -1)
        rows.append(torch.cat((made, pad)))
    return torch.stack(rows)


HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "Blip2ImageEvalProcessor (= Blip2ImageTrainProcessor, which the demo uses)": preprocessed,
    "VisionTransformer": tower,
    "interpolate_pos_embed": positions,
    "MiniGPTv2.encode_img without its tower (ln_vision, 4-token join, llama_proj)": joined,
    "MiniGPTv2": whole,
}
