"""Recorded cases of Shikra (shikras/shikra): texts, pictures, a tiny whole model, the sum with its base model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from mmchat.dialect import Form, Marks, Scaled
from mmchat.dialect.table import SHIKRA
from mmchat.families.shikra import FAMILY, WHITE, build
from mmchat.geometry import Box, Frame, Point, clipped
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import MARK, greedy, images, looked_at, pieces, pixels
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found, found
from mmchat.nets import weights
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Model
from mmchat.templates import TEMPLATES


def patches(case: Case) -> str:
    """The tokens of a picture, as many as the record says that it shortened them to."""
    count = re.search(r"(\d+) image (?:patch )?tokens instead", " ".join(case.info.get("notes", ())))
    return f"<im_start>{'<im_patch>' * (int(count[1]) if count else 4)}<im_end>"


def prompts(case: Case) -> list[Line]:
    """Talks and tasks. The picture stands where its mark is, in the first question; a later mark is taken out."""
    shown = patches(case)

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
        return written.replace(MARK, shown)

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


# The formatters that the code offers beside the one of the released model.
SQUARE = replace(SHIKRA, way="squash")  # as the original, which stays in the padded square
ROUND = replace(SQUARE, forms=(replace(SHIKRA.forms[0], open=("(",), close=(")",)),))
_BINS = Form(
    ("<b_st>", "<p_st>"), r"<>a-z_0-9 ", ("<b_ed>", "<p_ed>"), Scaled(1000, 0),
    "<bin_{}> <bin_{}> <bin_{}> <bin_{}>", "<bin_{}> <bin_{}>", join="<b_sep>", split="<[bp]_(?:sep|st|ed)>",
    number=r"<bin_(\d+)>",
)  # fmt: skip
BINS = Marks("shikra_bins", (_BINS,), way="squash")


def dialect(case: Case) -> list[Line]:
    """Four readers on the same texts, and user messages with regions filled in."""

    def read(dialect: Marks, count: int):
        def places(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
            ours = [item for item in found(dialect, entry["text"], (1, 1)) if len(item[1]) == count]
            result = entry["result"] or []
            theirs = (
                [result] if entry["reader"] == "rec_answer" and result else [one for part in result for one in part]
            )
            return ours, [(None, one) for one in theirs], (1.0, 1.0)

        return places

    readers = {
        "plain_boxes": read(SQUARE, 4),
        "plain_points": read(SQUARE, 2),
        "rec_answer": read(SQUARE, 4),
        "round_boxes": read(ROUND, 4),
        "token_boxes": read(BINS, 4),
        "token_points": read(BINS, 2),
    }

    def square(entry: Entry) -> list:
        size = tuple(entry["image_size"])
        placement = Frame(1, "pad").place(size)
        side = size[0] / placement.scale[0]
        placed = placement.into(Box.from_pixels(entry["box_px"], size))
        point = placement.into(Point(entry["point_px"][0] / size[0], entry["point_px"][1] / size[1]))
        said = box(entry["box_px"], entry["image_size"])
        read = [float(number) for number in said.strip("[]").split(",")]
        inside = [texts.numbers(place, (side, side)) for place in (placed, point)]
        return [
            side,
            *inside,
            read,
            texts.numbers(clipped(point), (1, 1)),
            said,
            SHIKRA.write([point]),
            [side * v for v in read],
        ]

    scored = [{**entry, "result": [entry["result"][name] for name in SCORES]} for entry in case.info["rec_metric"]]
    squares = [{**entry, "all": [entry[name] for name in STEPS]} for entry in case.info["square"]]
    return [
        *texts.read_all(case.info["parse"], readers),
        *(
            texts.line(entry, partial(message, patches(case)), entry["text"], odd(entry))
            for entry in case.info["write"]
        ),
        *texts.table(squares, square, "all", "square"),
        *texts.table(scored, _scored, "result", "rec_metric"),
    ]


SCORES = ("accuracy", "target_failed", "failed", "iou")
STEPS = (
    "square_side", "box_in_square", "point_in_square", "box_normalised", "point_normalised", "box_written",
    "point_written", "box_back_to_square_px",
)  # fmt: skip


def odd(entry: Entry) -> str:
    """What a message is called by: who writes its regions, and whether it holds what the original stumbles over."""
    braces = any(sign in entry["template"] for sign in "{}")
    return f"{entry['writer']}{' with braces' if braces else ''}"


def _scored(entry: Entry) -> list[float]:
    """The measure of finding: an answer counts where it has one box alone, which meets the target's by more than
    half.
    """

    def only(text: str) -> Box | None:
        boxes = [numbers for _, numbers in found(SQUARE, text, (1, 1)) if len(numbers) == 4]
        return Box(*boxes[0]) if len(boxes) == 1 else None

    said, wanted = [only(text) for text in entry["preds"]], [only(text) for text in entry["targets"]]
    met = [ours.iou(theirs) if ours and theirs else 0.0 for ours, theirs in zip(said, wanted, strict=True)]
    return [sum(one > 0.5 for one in met) / len(met), wanted.count(None), said.count(None), sum(met) / len(met)]


def message(shown: str, entry: Entry) -> str:
    """A user's message with its regions filled in and its picture `shown`; a wrong number is a ValueError."""
    form = BINS if entry["writer"] == "token_bins" else SHIKRA
    if not entry["image_size"] and any(mark in entry["template"] for mark in (MARK, "<boxes>", "<points>")):
        raise ValueError("this message names a picture and has none: add one")
    size = tuple(entry["image_size"] or (1, 1))
    placement = Frame(1, "pad").place(size)
    text = entry["template"]
    for mark, regions, order in (("<boxes>", "boxes_px", "boxes_seq"), ("<points>", "points_px", "points_seq")):
        drawn, order = entry[regions] or [], entry[order] or []
        if text.count(mark) != len(order):
            raise ValueError(f"the message has {text.count(mark)} places {mark} and {len(order)} lists for them")
        for numbers in order:
            if not numbers:
                raise ValueError(f"a list for {mark} names no region: name one, or leave out the mark")
            if any(not 0 <= number < len(drawn) for number in numbers):
                raise ValueError(f"there are {len(drawn)} regions: {numbers} names one that does not exist")
            chosen = [[value / size[axis % 2] for axis, value in enumerate(drawn[number])] for number in numbers]
            fitted = [placement.into(Point(*one) if len(one) == 2 else Box(*one)) for one in chosen]
            written = _tokens(fitted) if form is BINS else form.write(fitted)
            text = text.replace(mark, written, 1)
    if entry["image_size"] and MARK not in text:
        text = f"{MARK} {text}"
    return text.replace(MARK, shown)


def _tokens(fitted: list) -> str:
    """Bins have marks of their own for points. A box is rounded to three decimals before, a point is not."""
    kind = "p" if isinstance(fitted[0], Point) else "b"
    forms = (replace(_BINS, open=(f"<{kind}_st>",), close=(f"<{kind}_ed>",), join=f"<{kind}_sep>"),)
    return Marks("shikra_bins", forms).write([_snapped(place) for place in fitted])


def _snapped(place: Box | Point) -> Box | Point:
    """A place on the bins that stand for it: halves go to the even one, as Python rounds."""
    if isinstance(place, Point):
        return Point(*(round(round(value, 12) * 1000) / 1000 for value in texts.numbers(place, (1, 1))))
    return Box(*(float(number) for number in SHIKRA.write([place]).strip("[]").split(",")))


HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "Expand2square + CLIPImageProcessor": preprocessed,
    "ShikraLlamaModel.mm_projector (one linear layer)": projected,
    "ShikraLlamaForCausalLM": whole,
    "apply_delta (loading and saving replaced, arithmetic official)": summed,
}
