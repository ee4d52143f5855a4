"""Recorded cases of LLaVA (haotian-liu/LLaVA): texts, pictures, parts and whole models of tiny size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from mmchat.geometry import Frame
from mmchat.golden import Case, Line, Outputs
from mmchat.golden.loading import filled
from mmchat.layout import DROP, KEYS, select_layers, tower
from mmchat.nets import tiles
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.model import Model, Seen
from mmchat.prompt import Slot, Turn, encode, joined
from mmchat.templates import TEMPLATES

MARK = "<image>"
BESIDE = "  (as a tuple message"  # how the record says that the picture was handed over beside the text
MARK_ID, IGNORED = -200, -100


def checkpoint_config(case: Case) -> dict[str, Any]:
    """The case's config under the keys of a published config.json."""
    config = case.config
    return config | {"vision_config": config["vision"]}


# texts
#
#
#
#
#
#
#
#


def pieces(text: str, first: int = 0) -> tuple[str | Slot, ...]:
    """A recorded text with its image marks as slots, counted from `first`: here, and only here, a mark in a text means
    a picture.
    """
    parts = text.split(MARK)
    return joined(
        piece
        for index, part in enumerate(parts)
        for piece in (part, Slot("image", first + index))[: 2 if index < len(parts) - 1 else 1]
    )


def written(prompt: Sequence[str | Slot]) -> str:
    """Pieces as the original writes them."""
    return "".join(piece if isinstance(piece, str) else MARK for piece in prompt)


def prompts(case: Case) -> list[Line]:
    """Every recorded prompt of every form, and the splitting of texts at image marks."""
    lines = []
    for entry in case.info["prompts"]:
        about = f"{entry['template']}: {entry['messages']}"
        recorded = ("raises",) if entry.get("raises") else entry["prompt"]
        try:
            ours: Any = written(rendered(entry))
        except ValueError:
            ours = ("raises",)
        lines.append(Line(about, ours, recorded))
    for entry in case.info["image_token_splicing"]:
        start = [1] if entry["tokenizer"].startswith("with BOS") else []
        ids = encode(pieces(entry["text"]), lambda text: [10 + ord(character) % 90 for character in text], start)
        ours = [MARK_ID if isinstance(token, Slot) else token for token in ids]
        lines.append(Line(f"{entry['text']!r} {entry['tokenizer']}", ours, entry["ids"]))
    return lines


def rendered(entry: dict[str, Any]) -> tuple[str | Slot, ...]:
    """One recorded prompt from our template. A picture handed over beside the text is placed by the template; one
    marked in it stays there.
    """
    template = TEMPLATES[entry["template"]]
    if entry["image"] == "tuple" and not template.image.startswith("{text}"):
        question = entry["messages"][0][0].partition(BESIDE)[0].replace(MARK, "").strip()
        return template.render((Turn("user", question, images=(0,)),), lambda number, region: ())
    messages = []
    for question, answer in entry["messages"]:
        question = question.partition(BESIDE)[0]
        messages += [("user", pieces(question)), ("assistant", pieces(answer or ""))]
    return template.lay_out(messages)


def resolutions(case: Case) -> list[Line]:
    """Which grid a picture gets, and which part of a map it covers."""
    info, lines = case.info, []
    offered = tiles.pinpoints(info["pinpoints"])
    side = math.gcd(*chain.from_iterable(offered))
    for entry in info["select_best_resolution"]:
        size = tuple(entry["image_size"])
        ours = [*tiles.best_resolution(size, offered), *tiles.grid(size, offered, side)]
        ours += tiles.grid(size, tiles.pinpoints(str(info["pinpoints"])), side)
        theirs = [*entry["best_resolution"], *entry["grid_shape_wh"], *entry["grid_shape_from_string"]]
        lines.append(Line(f"size {size}", ours, theirs))
    for entry in info["unpad_image"]:
        rows, columns = entry["map_hw"]
        places = torch.arange(rows * columns).view(1, rows, columns)
        kept = tiles.unpadded(places, tuple(entry["original_size_wh"]))
        first = list(divmod(int(kept.flatten()[0]), columns)) if kept.numel() else [None, None]
        about = f"unpad {entry['original_size_wh']} from {entry['map_hw']}"
        lines.append(
            Line(about, [*kept.shape[1:], *first], [*entry["result_hw"], entry["first_row"], entry["first_col"]])
        )
    return lines


def layers(case: Case) -> list[Line]:
    """What the text form of the layer list means."""
    lines = []
    for entry in case.info["cases"]:
        try:
            ours: Any = select_layers(entry["input"])
        except ValueError:
            ours = ("raises", "ValueError")
        lines.append(
            Line(repr(entry["input"]), ours, ("raises", entry["raises"]) if entry["raises"] else entry["result"])
        )
    return lines


# pictures
#
#
#
#
#
#
#
#


def squares(case: Case, dtype: torch.dtype) -> Outputs:
    """The pad to a square, as plain pixels."""
    fill_colour = tuple(case.config["fill"])
    return {
        name.replace("image", "square"): pixels(Frame(max(image.size), "pad", fill_colour).fitted(image)[0])
        for name, image in images(case).items()
    }


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures as the tower sees them, fitted by our frame."""
    config = case.config
    processor, ratio = config["processor"], config["image_aspect_ratio"]
    frame = Frame(
        processor["crop"],
        "pad" if ratio == "pad" else "crop",
        tuple(int(value * 255) for value in processor["mean"]),
        tuple(processor["mean"]),
        tuple(processor["std"]),
    )
    out = {}
    for name, image in images(case).items():
        if ratio == "anyres":
            views = tiles.views(image, tiles.pinpoints(config["image_grid_pinpoints"], frame.side), frame.side)
            fitted = torch.stack([torch.from_numpy(frame.fit(view)[0]) for view in views])
        else:
            fitted = torch.from_numpy(frame.fit(image)[0])
        out[name.replace("image", "pixels")] = fitted
    return out


def images(case: Case) -> dict[str, Image.Image]:
    return {name: Image.fromarray(array.numpy()) for name, array in case.inputs().items()}


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


# parts
#
#
#
#
#
#
#
#


@torch.no_grad()
def projected(case: Case, dtype: torch.dtype) -> Outputs:
    """A projector alone."""
    config = case.config
    sizes = (config["mm_projector_type"], config["mm_hidden_size"], config["hidden_size"])
    net = filled(lambda: LastLevel(*projector(*sizes)), case.state(), dtype, ((r"^(weight|bias)$", r"0.\1"),))
    return {"output": net((case.inputs(dtype)["x"],))}


@torch.no_grad()
def tower_states(case: Case, dtype: torch.dtype) -> Outputs:
    """All hidden states, and the chosen ones."""
    net = filled(lambda: tower(checkpoint_config(case)), case.state(), dtype, ((r"^vision_tower\.vision_model\.", ""),))
    given = case.inputs(dtype)["images"]
    several = not isinstance(select_layers(case.config["mm_vision_select_layer"]), int)
    chosen = [torch.stack(net(batch)) if several else net(batch)[0] for batch in (given, *given.split(1))]
    return {
        "hidden_states_all": torch.stack(net.hidden_states(given)),
        "selected": chosen[0],
        "selected_from_list": torch.cat(chosen[1:], 1 if several else 0),
    }


# whole models


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures and token ids to features, spliced rows, logits, loss and greedy ids, through the model of the
    family.
    """
    from mmchat.families.llava import build

    return run_whole(case, dtype, filled(lambda: build(checkpoint_config(case)), case.state(), dtype, KEYS, DROP))


def run_whole(case: Case, dtype: torch.dtype, model: Model, pictures: torch.Tensor | None = None) -> Outputs:
    """The same for any model of this layout; `pictures` where the case does not hold them as they are, or where the
    tower does not see them whole.
    """
    config, given = case.config, case.inputs(dtype)
    out = {}
    if pictures is not None:
        vectors = model.see(pictures).images
        out["image_features"] = torch.stack(vectors)
    elif "images" in given:
        levels = model.vision(given["images"])
        out["tower_features"] = torch.stack(levels) if len(levels) > 1 else levels[0]
        vectors = model.see(given["images"]).images
        out["image_features"] = torch.stack(vectors)
    else:
        sizes = given["image_sizes"].tolist() if "image_sizes" in given else ()  # none: words alone
        vectors = tuple(model.tiled(given[f"tiles_{index}"], tuple(size)) for index, size in enumerate(sizes))
    seen = Seen(vectors, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids, dtype=torch.bool))
    rows, labels, picture = [], [], 0
    for row, real, label in zip(ids, mask, given.get("labels", torch.full_like(ids, IGNORED)), strict=True):
        row, label = row[real], label[real]
        rows.append(spliced(model, row, seen, picture))
        lengths = [len(vectors[picture + index]) for index in range(int((row == MARK_ID).sum()))]
        labels.append(spliced_labels(row, label, lengths))
        picture += max(1, len(lengths))  # a row without a picture uses one up all the same
    longest = config.get("tokenizer_model_max_length")
    left = config.get("tokenizer_padding_side") == "left"
    embeds, real, marked = padded([row[:longest] for row in rows], [label[:longest] for label in labels], left)
    positions = torch.arange(real.shape[1]).expand(
        len(real), -1
    )  # over the padded row, as the original's forward counts
    result = model.language(
        inputs_embeds=embeds,
        attention_mask=looked_at(real, dtype),
        position_ids=positions,
        labels=marked if "labels" in given else None,
    )
    out |= {"inputs_embeds": embeds, "attention_mask": real.to(torch.uint8), "labels": marked, "logits": result.logits}
    if "labels" in given:
        out["loss"] = result.loss.reshape(1)
    if "out.greedy_ids" in case.tensors and dtype == torch.float32:
        out["greedy_ids"] = greedy(model, embeds, real, case.tensors["out.greedy_ids"].shape[1])
    return out


def spliced(model: Model, row: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
    """A row of ids as vectors, each mark filled with a picture's, counted from `picture`."""
    parts: list[torch.Tensor] = []
    for index, run in enumerate(runs(row)):
        if index:
            parts.append(model.fill(Slot("image", picture + index - 1), seen, list))
        parts.append(model.embed(run))
    return torch.cat(parts)


def spliced_labels(row: torch.Tensor, label: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The labels of a row; a picture's vectors have none."""
    kept, at = [], 0
    for index, run in enumerate(runs(row)):
        if index:
            kept.append(torch.full((lengths[index - 1],), IGNORED))
            at += 1
        kept.append(label[at : at + len(run)])
        at += len(run)
    return torch.cat(kept)


def runs(row: torch.Tensor) -> list[torch.Tensor]:
    """The ids between the marks."""
    marks = (row == MARK_ID).nonzero().flatten().tolist()
    return [row[start + 1 : stop] for start, stop in zip([-1, *marks], [*marks, len(row)], strict=True)]


def padded(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], left: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of one length: vectors [B, T, C], which places are real [B, T] bool, labels [B, T]."""
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    marked = torch.full((len(rows), length), IGNORED)
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        embeds[index, where], real[index, where], marked[index, where] = row, True, label
    return embeds, real, marked


def looked_at(real: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which places each place looks at, as numbers to add [B, 1, T, T]: the real ones up to itself.

    A padded place looks at everything: so did the transformers of the recording, and with left padding its guess at a
    row's first token is
    part of the recorded loss.
    """
    earlier = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    allowed = (earlier & real[:, None, :]) | ~real[:, :, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def greedy(model: Model, embeds: torch.Tensor, real: torch.Tensor, steps: int) -> torch.Tensor:
    """The likeliest next ids [B, steps], each step computed afresh; positions count the real places only."""
    ids = []
    for _ in range(steps):
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        logits = model.language(inputs_embeds=embeds, attention_mask=real, position_ids=positions).logits[:, -1]
        ids.append(logits.argmax(-1))
        embeds = torch.cat((embeds, model.embed(ids[-1])[:, None]), 1)
        real = F.pad(real, (0, 1), value=True)
    return torch.stack(ids, 1)


HANDLERS = {
    "prompts": prompts,
    "anyres_tables": resolutions,
    "expand2square": squares,
    "process_images": preprocessed,
    "build_vision_projector": projected,
    "CLIPVisionTower": tower_states,
    "LlavaLlamaForCausalLM": whole,
}
