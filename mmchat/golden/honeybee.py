"""Recorded cases of Honeybee (kakaobrain/honeybee): texts, pictures, abstractors and whole models of tiny size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmchat.dialect import brackets
from mmchat.dialect.table import HONEYBEE
from mmchat.families.honeybee import DROP, FAMILY, KEYS, abstractor, build, frame
from mmchat.geometry import Box
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import greedy, images, looked_at, pieces
from mmchat.golden.loading import filled
from mmchat.nets.abstractors import CAbstractor, DAbstractor, first_places
from mmchat.nets.model import Seen
from mmchat.prompt import Slot
from mmchat.templates import TEMPLATES

HUNDREDTHS = replace(HONEYBEE, forms=(brackets(decimals=2, comma=","),))
SHORT = "Answer the question using a single word or phrase. "
LETTER = "Answer with the option's letter from the given choices directly. "


def boxes(case: Case) -> list[Line]:
    """The writer of boxes; the repository has no reader."""

    def ours(entry: texts.Entry) -> str:
        if entry["bbox_coord_style"] not in (2, 3):
            raise ValueError("Honeybee writes two or three decimals")
        x, y, width, height = entry["box_xywh"]
        size = (1, 1) if entry.get("bbox_format") == "none" else tuple(entry["image_size"])
        dialect = HONEYBEE if entry["bbox_coord_style"] == 3 else HUNDREDTHS
        return dialect.write([Box.from_pixels((x, y, x + width, y + height), size)])

    return texts.table(case.info["write"], ours, "text", "write")


WHERE = "Provide the bounding box coordinate of the region this sentence describes. {phrase}"
OPTIONS = "There are several options:\n{option}\n"
QUESTIONS = {  # the wrapper's name and its number -> the question, the name of its answer ("" where none is given)
    **dict.fromkeys((("vqa", 0), ("gqa", 0), ("kvqa", 0)), (f"{SHORT}{{question}}", "answer")),
    **dict.fromkeys((("mme", 0), ("eval-vqa", 0)), (f"{SHORT}{{question}}", "")),
    ("vqa-o", 0): (f"{LETTER}{{question}}\n{OPTIONS}", "answer"),
    ("sqa", 0): (f"{LETTER}{{question}}\nContext: {{context}}\n{OPTIONS}", "answer"),
    ("eval-sqa", 0): (f"{LETTER}{{question}}\nContext: {{context}}\n{OPTIONS}", ""),
    ("mmb", 0): (f"{LETTER}{{question}}", ""),
    ("vsr", 0): (f"{SHORT}{{question_interro}} Please answer yes or no.", "answer"),
    ("eval-vsr", 0): (f"{SHORT}{{question_interro}} Please answer yes or no.", ""),
    **dict.fromkeys(((name, 0) for name in ("loc", "refcoco", "refcocop", "refcocog")), (WHERE, "bbox")),
    ("eval-refexploc", 0): (WHERE, ""),
    ("loc", 1): ("Provide a short description for this region. {bbox}", "phrase"),
    ("refcoco", 1): (
        "Provide a description for the region {bbox}, utilizing positional words to refer to objects. "
        "Example: 'The large blue teddy bear next to the red balloon'",
        "phrase",
    ),
    ("refcocop", 1): (
        "Provide a description for the region {bbox}, focusing on the appearance of objects without using positional "
        "words. Example: 'The large blue teddy bear holding a red balloon.'",
        "phrase",
    ),
    ("refcocog", 1): (
        "Provide a description for the region {bbox}, using detailed and descriptive expressions to refer to objects. "
        "Example: 'The large blue teddy bear holding a red balloon with a joyful expression.'",
        "phrase",
    ),
}


def prompts(case: Case) -> list[Line]:
    """Every wrapper of the data sets, the bare benchmark prompt, the demo's talk, and how a prompt is cut into ids."""

    def wrapped(entry: texts.Entry) -> str:
        if entry["template"] == "captioning":
            if entry["turns"] > 1:
                raise ValueError("a caption is one turn")
            template, shown = TEMPLATES["honeybee_captions"], entry["values"][0]["caption"]
            asked = template.beside((shown,), (0,))  # a caption always has its picture
            return "[NO_PROMPT] " + texts.talk(template, [(asked, None)])
        question, answer = QUESTIONS[entry["template"], entry["pattern_index"]]
        said = [(question.format(**values), values.get(answer)) for values in entry["values"]]
        return talk("honeybee", said, entry["image"])

    def bare(entry: texts.Entry) -> str:
        return talk("honeybee_polite", [(entry["question"], None)], True)

    def demo(entry: texts.Entry) -> str:
        answers = [*entry["answers"], None]
        return talk("honeybee_demo", list(zip(entry["questions"], answers, strict=True)), bool(entry["image"]))

    return [
        *texts.prompts(case.info["templates"], wrapped),
        *texts.prompts(case.info["benchmark_prompt_without_template"], bare),
        *texts.prompts(case.info["demo_server"], demo, "after_process_image"),
        *texts.table(case.info["encoding"]["cases"], encoded, "input_ids", "encoding"),
    ]


CAPTION = "[NO_PROMPT]"  # how the record marks a text that is all answer
START, END, PICTURE = 1, 2, -1


def encoded(entry: texts.Entry) -> list[int]:
    """The ids of a text, cut by our template, with the recording's toy tokenizer."""
    text, caption = entry["prompt"], entry["prompt"].startswith(CAPTION)
    ids, answer = [START], caption
    for piece in pieces(text.removeprefix(CAPTION).strip() if caption else text):
        if isinstance(piece, Slot):
            ids += [PICTURE] * entry["num_visual_tokens"]
            continue
        for part in FAMILY.template.cut(piece):
            part = part.strip() if caption else part
            ids += [10 + ord(character) % 90 for character in part]
            # The end stands where our template writes it: behind an answer, never behind the cue of one to come.
            is_role = part in FAMILY.template.cuts
            if answer and not is_role and not (entry["no_eos"] and text.endswith(part)):
                ids.append(END)
            answer = caption or part == FAMILY.template.cue()
    longest = entry["max_length"]
    return ids if longest is None else ids[: longest + 1]


def talk(name: str, said: list[tuple[str, str | None]], image: bool) -> str:
    """A talk in the form `name`, with a picture in its first question or without one."""
    template = TEMPLATES[name]
    asked = [(question,) for question, _ in said]
    if image:
        asked[0] = template.beside(asked[0], (0,))
    return texts.talk(template, [(question, answer) for question, (_, answer) in zip(asked, said, strict=True)])


# pictures


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures as the tower sees them, fitted by our frame."""
    fit = frame({"vision_config": case.config}).fit
    return {name.replace("image", "pixels"): torch.from_numpy(fit(image)[0]) for name, image in images(case).items()}


# parts


def projected(kind: str) -> Callable[[Case, torch.dtype], Outputs]:
    """A handler of abstractors alone: every stage and what comes out."""

    def run(case: Case, dtype: torch.dtype) -> Outputs:
        with torch.no_grad():
            features = case.inputs(dtype)["x"]
            net = projector(kind, case, dtype)
            return steps(net, features) | {"output": net((features,))}

    return run


def projector(kind: str, case: Case, dtype: torch.dtype) -> nn.Module:
    config = {"projector_type": kind, **case.config}
    sizes = (config["encoder_hidden_size"], config["output_hidden_size"], config["num_input_tokens"])
    keys = ((r"^abstractor\.", "bridge."),)
    return filled(
        lambda: nn.ModuleDict({"bridge": abstractor(config, *sizes)}), case.state(), dtype, keys, (), FAMILY.fold
    ).bridge


def steps(net: nn.Module, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """An abstractor's inner values under their recorded names."""
    if isinstance(net, DAbstractor):
        found = net.steps(features)
        named = {f"layer_{number}": state for number, state in enumerate(found.layers)}
        return named | {"layer_0_self_attn": found.own[0], "layer_0_cross_attn": found.cross[0]}
    if isinstance(net, CAbstractor):
        made = net.steps(features)
        stages = {"pooled": made.pooled}
        if made.before:
            stages |= {"stage1_block1": made.before[0], "stage1": made.before[-1], "stage2": made.after[-1]}
        return stages
    return {}


def start(case: Case, dtype: torch.dtype) -> Outputs:
    """Where a fresh D-Abstractor's queries look."""
    pairs = case.inputs()["n_m"].tolist()
    return {f"refs_{count}_from_{places}": first_places(places, count) for places, count in pairs}


# whole models


def checkpoint_config(case: Case) -> dict[str, Any]:
    """The case's config under the keys of a published config.json."""
    config = case.config
    about = {key: config[key] for key in ("num_query_tokens",) if key in config} | config["projector"]
    return {"vision_config": config["vision"], "projector_config": about, "text_config": config["llm"]}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures and ids to features, spliced rows, logits and greedy ids, through the model of the family."""
    model = filled(lambda: build(checkpoint_config(case)), case.state(), dtype, KEYS, DROP, FAMILY.fold)
    given = case.inputs(dtype)
    seen = model.see(given["pixel_values"])
    vectors = torch.stack(seen.images)
    embeds = spliced(model, given["input_ids"], seen)
    real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    positions = torch.arange(real.shape[1]).expand(len(real), -1)  # the original's forward counts the padding too
    mask = looked_at(real, dtype)
    logits = model.language(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    out = {
        "vision_features": model.vision(given["pixel_values"])[-1],
        "visual_embeds": vectors,
        "input_embeds": embeds,
        "built_attention_mask": real.to(dtype),
        "attention_mask": real,
        "logits": logits,
    }
    if "out.greedy_ids" in case.tensors and dtype == torch.float32:
        out["greedy_ids"] = greedy(model, embeds, real, case.tensors["out.greedy_ids"].shape[1])
    return out


def spliced(model: Any, ids: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Rows of ids as vectors; each run of picture ids is filled with the next picture, row by row."""
    picture, rows = 0, []
    for row in ids:
        parts, at = [], 0
        while at < len(row):
            if row[at] >= 0:
                parts.append(model.embed(row[at : at + 1]))
                at += 1
                continue
            parts.append(model.fill(Slot("image", picture), seen, list))
            picture, at = picture + 1, at + len(parts[-1])
        rows.append(torch.cat(parts))
    return torch.stack(rows)


HANDLERS = {
    "dialect": boxes,
    "prompts": prompts,
    "DefaultProcessor": preprocessed,
    "CAbstractor": projected("c-abs"),
    "DAbstractor": projected("d-abs"),
    "MLPProjector": projected("mlp"),
    "HoneybeeVisualProjectorModel": projected("resampler"),
    "DAbstractor (constructor value of reference_points)": start,
    "HoneybeeForConditionalGeneration": whole,
}
