"""Recorded cases of Ferret (apple/ml-ferret): texts, pictures, masks, the region sampler, a whole model, its sum."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from mmchat.dialect import Scene
from mmchat.dialect.table import FERRET
from mmchat.families.ferret import FAMILY, Ferret, area, shape
from mmchat.geometry import Box, Frame, Mask, Point, Region
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import MARK_ID, greedy, images, pieces
from mmchat.golden.loading import filled
from mmchat.golden.texts import Entry, Found, found
from mmchat.nets import sampler, weights
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.language import llama
from mmchat.nets.model import Model, as_map
from mmchat.nets.sampler import Choices, RegionSampler
from mmchat.prompt import Slot, Template, Turn, encode
from mmchat.templates import TEMPLATES


def prompts(case: Case) -> list[Line]:
    """Forms of demo and evaluation, and the splitting of texts at image marks."""

    def ours(entry: texts.Entry) -> str:
        template = TEMPLATES["ferret_v1" if entry["template"] == "ferret_v1" else "ferret_first"]
        said = [(pieces(question), answer) for question, answer in entry["messages"]]
        if entry["image"]:
            said[0] = (template.beside(said[0][0], (0,)), said[0][1])
        return texts.talk(template, said)

    def split(entry: texts.Entry) -> list[int]:
        ids = encode(pieces(entry["text"]), lambda text: [ord(character) for character in text], [1])
        return [MARK_ID if isinstance(token, Slot) else token for token in ids]

    return [
        *texts.prompts(case.info["prompts"], ours),
        *texts.table(case.info["image_token_split"], split, "ids", "split"),
    ]


def dialect(case: Case) -> list[Line]:
    """Four readers that disagree with each other, and the questions of an evaluation."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        result = entry["result"] or {"boxes": []}
        names = result.get("phrases") if entry["reader"] == "eval_refexp" else None
        names = names if names and len(names) == len(result["boxes"]) else [None] * len(result["boxes"])
        ours = [item for item in found(FERRET, entry["text"], entry["image_size"]) if len(item[1]) == 4]
        return ours, list(zip(names, result["boxes"], strict=True)), tuple(entry["image_size"])

    def question(entry: Entry) -> str:
        names = (entry["name"], entry["neg_class"])
        first, second = names if entry["position_in_file"] % 2 == 0 else names[::-1]
        where = FERRET.write([_asked(entry)]) if not entry["no_coor"] else ""
        mark = " <region_fea>" if entry["add_region_feature"] else ""
        return f"Is the object {where}{mark} of the image a {first} or a {second}?"

    readers = dict.fromkeys(dict.fromkeys(entry["reader"] for entry in case.info["parse"]), read)
    asked = [entry for entry in case.info["write"] if entry["writer"] == "eval_lvis"]
    drawings = [
        {**entry, "all": [entry["text"], entry["mask_count"], entry["mask_bbox_inclusive_xyxy"]]}
        for entry in case.info["write"]
        if entry["writer"] == "demo_draw"
    ]
    filled_in = [{**entry, "all": [entry["text"], entry["mask_order"]]} for entry in case.info["region_prompt"]]
    return [
        *texts.read_all(case.info["parse"], readers),
        *(texts.line(entry, question, entry["question"], edge(entry)) for entry in asked),
        *texts.table(drawings, brushed, "all", "demo_draw"),
        *texts.table(filled_in, mentioned, "all", "region_prompt"),
    ]


def brushed(entry: Entry) -> list:
    """What was painted with the demo's brush -> the region's text, how many pixels it has, and the box around them."""
    width, height = size = tuple(entry["image_size"])
    paint = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in entry["brush_rectangles_inclusive_xyxy_px"]:
        paint[y0 : y1 + 1, x0 : x1 + 1] = True
    if not paint.any():
        raise ValueError("nothing was painted inside the picture: draw on it")
    down, across = (torch.from_numpy(places) for places in paint.nonzero())
    mask = Mask.from_array(paint)
    if entry["mode"] == "Point":
        point = Point(int(across.median()) / width, int(down.median()) / height)
        region = Region("point", Box(point.x, point.y, point.x, point.y), (point,))
    elif entry["mode"] == "Box":
        box = [int(along.aminmax()[end]) for end in (0, 1) for along in (across, down)]
        region = Region("box", Box.from_pixels(box, size))
    else:
        region = Region("mask", mask.box, mask=mask)
    pixels = shape(region, size).nonzero()
    text = FAMILY.mention(1, region, FERRET, Scene())[0]
    return [str(text).strip(), len(pixels), [*pixels.amin(0).tolist(), *pixels.amax(0).tolist()]]


def mentioned(entry: Entry) -> list:
    """A question with [region0] in it -> the question with numbers and marks, and which region each mark is."""
    regions = []
    for text in entry["region_coordinates"]:
        numbers = [int(number) / 1000 for number in re.findall(r"\d+", text)]
        points = (Point(*numbers),) if len(numbers) == 2 else ()
        regions.append(Region("point" if points else "box", Box(*(numbers * 2)[:4]), points))
    turn = Turn("user", entry["prompt"], tuple(regions))
    pieces = Template().render((turn,), lambda number, region: FAMILY.mention(number, region, FERRET, Scene()))
    slots = [piece.index for piece in pieces if isinstance(piece, Slot)]
    return ["".join(piece if isinstance(piece, str) else "<region_fea>" for piece in pieces), slots]


def edge(entry: Entry) -> str:
    """What a question of the evaluation is called by: whether its box reaches where numbers end."""
    reaches = entry["region_format"] != "point" and max(entry["bbox_norm"]) >= 1
    return f"eval_lvis{' at the edge' if reaches else ''}"


def _asked(entry: Entry) -> Box | Point:
    if entry["region_format"] == "point":
        (x, y), (width, height) = entry["sample_point"], entry["image_size"]
        return Point(x / width, y / height)
    return Box(*entry["bbox_norm"])


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures squashed to the square that the tower sees."""
    config = case.config
    frame = Frame(config["size"][0], "squash", mean=tuple(config["image_mean"]), std=tuple(config["image_std"]))
    return {
        name.replace("image", "pixel_values"): torch.from_numpy(frame.fit(image)[0])
        for name, image in images(case).items()
    }


def masks(case: Case, dtype: torch.dtype) -> Outputs:
    """Pixels of boxes and points, cut out of what was sketched where there is a sketch."""
    given, out = case.inputs(), {}
    for name in [name for name in given if name.startswith("coor.")]:
        number = name.removeprefix("coor.")
        mask = area(given[name].tolist(), tuple(given[f"size_wh.{number}"].tolist()))
        out[f"mask.{number}"] = mask.to(torch.uint8)
        if f"segment.{number}" in given:
            out[f"mask_with_segment.{number}"] = mask * given[f"segment.{number}"]
    return out


# the sampler


def drawn(given: Outputs) -> list[tuple[int, torch.Tensor]]:
    """The recorded masks with the number of their picture, in order."""
    names = [name for name in given if name.startswith("mask.")]
    numbered = sorted([int(part) for part in name.split(".")[1:]] for name in names)
    return [(picture, given[f"mask.{picture}.{region}"]) for picture, region in numbered]


def recorded(given: Outputs, region: int, stages: int) -> Choices:
    """What the record drew by chance for a region, and what followed from that."""
    centres = tuple(given[f"fps_index.{stage}"][region].long() for stage in range(stages))
    around = tuple(given[f"knn_index.{stage}"][region].long() for stage in range(stages))
    starts = tuple(int(centre[0]) for centre in centres)
    return Choices(given["point_index"][region].long(), starts, centres, around)


@torch.no_grad()
def sampled(case: Case, dtype: torch.dtype) -> Outputs:
    """Every step of the sampler under the recorded choices; our own search must find what the record found."""
    config, given = case.config, case.inputs()
    dtype = torch.float16 if case.info["dtype"] == "float16" else dtype
    net = filled(
        lambda: RegionSampler(
            config["input_dim"], config["output_dim"], config["num_init_point"], config["num_sub_point"],
            config["num_neighbor"], config["pooler_mode"],
        ),
        case.state(),
        dtype,
    )  # fmt: skip
    levels = given["feature_map"].to(dtype).transpose(1, 2).unflatten(2, config["grid"])
    steps: list[dict[str, torch.Tensor]] = []
    for region, (picture, mask) in enumerate(drawn(given)):
        choices = recorded(given, region, len(net.centres))
        points = sampler.positions(mask, choices.points).to(dtype)
        features = sampler.transposed(levels[picture], points)
        step = {"points": points, "point_features": features}
        if region == 0:
            first = net.difference(0, points, features, choices.centres[0], choices.neighbours[0])
        for stage in range(len(net.centres)):
            same_search(points, choices, stage)
            points, features = net.stage(stage, points, features, choices)
            step |= {f"points.{stage + 1}": points, f"pooled.{stage}": features}
        flat = net.flatten_projector(features.flatten())
        whole = net(levels[picture], mask, choices)
        steps.append({**step, "flatten": flat, "region_features": whole})
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]} | {"diff0_first_region": first}


def same_search(points: torch.Tensor, choices: Choices, stage: int) -> None:
    """ValueError where our search for centres or neighbours finds others than the record did.

    Places of a pixel lattice are often equally far: then another of equals is as good. In half precision the record
    itself goes by rounded distances, and which library rounds how is no matter of ours.
    """
    centres, around = choices.centres[stage], choices.neighbours[stage]
    if points.dtype != torch.float32:
        return
    ours = sampler.farthest(points, len(centres), choices.starts[stage])
    if not torch.equal(ours, centres):
        raise ValueError(f"stage {stage}: other centres than recorded")
    distances = sampler.apart(points[centres], points)
    near = sampler.nearest(points[centres], points, around.shape[1])
    far = [distances.gather(1, one).sort(-1).values for one in (near, around)]
    if not torch.allclose(*far, rtol=0, atol=1e-6):
        raise ValueError(f"stage {stage}: other neighbours than recorded")


@torch.no_grad()
def adapted(case: Case, dtype: torch.dtype) -> Outputs:
    """The plain road: one layer, then the mean over a mask's places."""
    config, given = case.config, case.inputs()
    sizes = (config["mm_hidden_size"], config["hidden_size"])
    net = filled(lambda: LastLevel(*projector("linear", *sizes)), case.state(), dtype, ((r"^(weight|bias)$", r"0.\1"),))
    mapped = net((given["feature_map"].to(dtype),))
    levels = mapped.transpose(1, 2).unflatten(2, config["grid"])
    vectors = [sampler.averaged(levels[picture], mask) for picture, mask in drawn(given)]
    return {"adapted_map": mapped, "region_features": torch.stack(vectors)}


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures, regions and ids -> features, spliced rows, logits, greedy ids, through the family's model."""
    config, given = case.config, case.inputs(dtype)
    sizes = {
        **config["llama"], "mm_hidden_size": config["vision"]["hidden_size"], "vision_config": config["vision"],
        "mm_vision_select_layer": config["mm_vision_select_layer"],
        "mm_vision_select_feature": config["mm_vision_select_feature"],
        "sampler_pooler_mode": config["sampler_pooler_mode"],
    }  # fmt: skip

    def built() -> Ferret:
        """The model with the record's counts of points: no config.json names them, all published ones have the same."""
        model = Ferret(sizes)
        counts = (config["max_sample_point"], config["num_sub_point"], config["num_neighbor"])
        model.regions = RegionSampler(
            sizes["mm_hidden_size"], sizes["hidden_size"], *counts, sizes["sampler_pooler_mode"]
        )
        return model

    model = filled(built, case.state(), dtype, FAMILY.keys, FAMILY.drop)
    seen = model.see(given["images"])
    levels = as_map(model.vision(given["images"])[-1])
    regions = [
        model.regions(levels[picture], mask, recorded(given, number, len(model.regions.centres)))
        for number, (picture, mask) in enumerate(drawn(given))
    ]
    rows, waiting = [], iter(regions)
    for row, picture in zip(given["input_ids"], seen.images, strict=True):
        parts = []
        for token in row.tolist():
            if token == MARK_ID:
                parts.append(picture)
            elif token == config["im_region_fea_token"]:
                parts.append(next(waiting)[None])
            else:
                parts.append(model.embed([token]))
        rows.append(torch.cat(parts))
    embeds = torch.stack(rows)
    out = {
        "vision_features": model.vision(given["images"])[-1],
        "projected": torch.stack(seen.images),
        "region_features": torch.stack(regions),
        "inputs_embeds": embeds,
        "logits": model.language(inputs_embeds=embeds).logits,
    }
    if dtype == torch.float32:
        steps = case.tensors["out.generated_image0"].shape[1]
        out["generated_image0"] = greedy(model, embeds[:1], torch.ones(embeds[:1].shape[:2], dtype=torch.bool), steps)
    return out


def summed(case: Case, dtype: torch.dtype) -> Outputs:
    """Delta and base in two folders, loaded by the road that loads a checkpoint; exact in half precision."""
    delta, base = case.part("in.delta."), case.part("in.base.")
    rows, width = delta["lm_head.weight"].shape
    seen = delta["model.mm_projector.weight"].shape[1]
    sampled = {name.removeprefix("model.region_geo_sampler.") for name in delta if ".region_geo_sampler." in name}
    stages = len([name for name in sampled if name.startswith("diff_projector_list.") and name.endswith(".weight")])
    last = delta["model.region_geo_sampler.flatten_projector.weight"].shape[1] // seen
    sizes = {"vocab_size": rows, "hidden_size": width, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes["intermediate_size"] = len(delta["model.layers.0.mlp.gate_proj.weight"])
    sizes["num_hidden_layers"] = len({name.split(".")[2] for name in delta if name.startswith("model.layers.")})
    with weights.without_memory():
        bridge = LastLevel(*projector("linear", seen, width))
        model = Model(llama(sizes), bridge=bridge, regions=RegionSampler(seen, width, centres=(last,) * stages))
    with TemporaryDirectory() as scratch:
        config = {"base_model": str(Path(scratch) / "base")}
        for name, state, said in (("delta", delta, config), ("base", base, {})):
            (Path(scratch) / name).mkdir()
            save_file(state, Path(scratch) / name / "model.safetensors")
            (Path(scratch) / name / "config.json").write_text(json.dumps(said))
        sources = weights.sources(Path(scratch) / "delta", config, FAMILY.parts)
        weights.load(model, sources, FAMILY.keys, FAMILY.drop, precision="fp32", parts=FAMILY.parts)
    state = model.state_dict()
    return {name: state[weights.renamed(name, FAMILY.keys)].half() for name in delta}


_SAMPLER = "GeoRegionSampler (+ generate_mask_for_feature of ferret/serve/gradio_web_server.py for the masks)"
_MASKS = "generate_mask_for_feature (the version of ferret/eval/model_lvis.py gives the same)"
HANDLERS = {
    "dialect": dialect,
    "prompts": prompts,
    "CLIPImageProcessor_GIT called as in ferret/eval/model_refcoco.py": preprocessed,
    _MASKS: masks,
    _SAMPLER: sampled,
    "region_fea_adapter + extract_region_feature": adapted,
    "FERRETLlamaForCausalLM": whole,
    "apply_delta (loading and saving replaced, arithmetic official)": summed,
}
