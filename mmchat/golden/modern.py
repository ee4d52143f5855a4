"""Recorded cases of today's models: what each official reader found in an answer, against our dialect of that model."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

from mmchat.dialect import DIALECTS, Json, Marks, Scaled, Scene
from mmchat.dialect.points import pictures
from mmchat.dialect.results import florence_result
from mmchat.geometry import clipped, native, outline
from mmchat.golden import Case, Line, modern_heads, texts
from mmchat.golden.modern_prompts import prompts, tiles
from mmchat.golden.modern_writes import written
from mmchat.golden.texts import Entry, Found, Reader, found


def boxes(given: list[list[float]], labels: list[str] | None = None) -> Found:
    """Plain lists of numbers, named by `labels` where there are as many."""
    names = labels if labels and len(labels) == len(given) else [None] * len(given)
    return [(name, list(numbers)) for name, numbers in zip(names, given, strict=True)]


def pixels(dialect: Marks | Json, theirs: Callable[[Any], Found], first: bool = False) -> Reader:
    """Ours in pixels of the recorded picture; `first`: the original looks for one place only."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        ours = found(dialect, entry["text"], entry["image_size"], entry.get("resized_size", (0, 0)))
        if classes := entry.get("classes"):
            ours = [item for item in ours if item[0] in classes]
        return ours[:1] if first else ours, _theirs(theirs, entry), tuple(entry["image_size"])

    return read


def framed(dialect: Marks | Json, side: float, theirs: Callable[[Any], Found], first: bool = False) -> Reader:
    """Ours in the numbers 0..side that the text itself holds."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        ours = found(dialect, entry["text"], (side, side))
        return ours[:1] if first else ours, _theirs(theirs, entry), (side, side)

    return read


def _theirs(convert: Callable[[Any], Found], entry: Entry) -> Found:
    """The recorded places; none where the original failed or gave nothing."""
    return convert(entry["result"]) if entry["result"] else []


def drawn(result: Any) -> Found:
    """What a demo draws."""
    shapes = [
        (item.get("phrase", item.get("label")), item.get("box", item.get("xy")), item) for item in result["drawn"]
    ]
    return [
        (
            label,
            given if item.get("kind", "rectangle") == "rectangle" else [given[0] + 5, given[1] + 5],
        )  # a dot's centre
        for label, given, item in shapes
    ]


def detected(result: Any) -> Found:
    """What supervision returns."""
    names = result.get("class_name") or (result.get("data") or {}).get("class_name")
    return boxes(result["xyxy"], names)


def one(key: str) -> Callable[[Any], Found]:
    """A single box under `key`; the box of four zeros means that none was found."""
    return lambda result: boxes([result[key]] if result and result.get(key) and any(result[key]) else [])


def _cog(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    ours = found(DIALECTS["cogvlm"], f"[[{entry['text']}]]", (1, 1))
    return ours, boxes(entry["result"] or []), (1.0, 1.0)


def _pali(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """The library divides by 1024 where training multiplied by 1023."""
    return pixels(PALIGEMMA_1024, detected)(entry)


def _pali_masks(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """The box under a mask; a mask's numbers are judged with the box, by what the reader reports of them."""
    grounded = D["paligemma"].read(entry["text"])
    given = entry["result"]
    ours = found(D["paligemma"], entry["text"], (1, 1))
    codes = [dropped.reason.partition("[")[2] for dropped in grounded.dropped if "decoder" in dropped.reason]
    if not given["valid"]:
        return ours, [], (1.0, 1.0)
    y0, x0, y1, x1 = given["yxyx_0_1"]
    if [f"{str(given['seg'])[1:]}"] != codes:
        raise ValueError(f"the mask's numbers are {codes}, recorded {given['seg']}")
    return ours, boxes([[x0, y0, x1, y1]]), (1.0, 1.0)


def _points(dialect: Marks | Json, start: int) -> Reader:
    """Rows of which x and y begin at `start`."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        rows = [(None, list(row[start : start + 2])) for row in entry["result"] or ()]
        return found(dialect, entry["text"], entry["image_size"]), rows, tuple(entry["image_size"])

    return read


def _pairs(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """Points taken two by two as corners: the vendor's reader of boxes."""
    ours = [given for _, given in found(D["molmo"], entry["text"], entry["image_size"]) if len(given) == 2]
    pairs = [(None, [*one, *other]) for one, other in zip(ours[::2], ours[1::2], strict=False)]
    return pairs, boxes(entry["result"]), tuple(entry["image_size"])


def _tracks(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    theirs = [(None, point["point"]) for frame in entry["result"] for point in frame["points"].values()]
    return found(D["molmo2"], entry["text"], entry["image_size"]), theirs, tuple(entry["image_size"])


def _several(entry: Entry) -> list[list[float]]:
    """Rows (number of the picture or of the point and its picture from 0, x, y) of points on pictures of two sizes."""
    grounded = D["molmo2"].read(entry["text"])
    sizes = (entry["image_size"], entry["second_image_size"])
    rows: list[list[float]] = []
    for span, numbers in zip(grounded.spans, pictures(entry["text"], grounded), strict=True):
        for place, number in zip(span.places, numbers, strict=True):
            width, height = sizes[int(number) - 1]
            x, y = texts.numbers(place, (width, height))
            first = [len(rows) + 1, int(number) - 1] if entry["function"].startswith("extract_any") else [number]
            rows.append([*first, x, y])
    return rows


def _moondream(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    ours = found(D["moondream"], json.dumps(entry["object"]), entry["image_size"])
    return ours, boxes(entry["result"] or []), tuple(entry["image_size"])


def _one_size(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    theirs = boxes([entry["result"]] if entry["result"] else [])
    return found(LLAVA_SQUASHED, entry["text"], (1, 1))[:1], theirs, (1.0, 1.0)


def _glm(kind: int) -> Reader:
    """`kind`: how many numbers the original was asked for (6: an outline)."""

    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        ours = found(D["glm_v"], entry["text"], (1000, 1000))
        fitting = [item for item in ours if len(item[1]) == kind or (kind == 6 and len(item[1]) > 4)]
        return fitting, boxes(entry["result"]["coordinates_0_1000"]), (1000.0, 1000.0)

    return read


def _glm_objects(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """The record holds the first two objects."""
    given = [item for item in entry["result"].values() if isinstance(item, dict) and "bbox_2d" in item]
    theirs = [(item.get("label"), item["bbox_2d"]) for item in given]
    ours = found(D["glm_v_json"], entry["text"], (1000, 1000))
    return (ours[: len(theirs)] if len(theirs) == 2 else ours), theirs, (1000.0, 1000.0)


def _qwen_first(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """The evaluation divides by 999 where the drawing code divides by 1000."""
    dialect = D["qwen_vl" if entry["style"] == "qwen-vl" else "qwen2_vl"]
    evaluated = replace(dialect, forms=(replace(dialect.forms[0], code=Scaled(999, 0)),))
    return pixels(evaluated, one("box_xyxy_pixels"), first=True)(entry)


def _layout(result: Any) -> Found:
    return [(None, item["box"]) for item in result]


def _vlm(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """supervision's one door for all models."""
    name, given, size = entry["vlm"], entry["input"], entry["image_size"]
    options = entry["options"]
    theirs = detected(entry["result"]) if entry["result"] else []
    if not isinstance(given, str):
        given = json.dumps(given)
    if name not in VLMS:
        return [], theirs, tuple(size)
    ours = found(VLMS[name], given, size, options.get("input_wh", options.get("resolution_wh", (0, 0))))
    if classes := options.get("classes"):
        ours = [item for item in ours if item[0] in classes]
    return ours, theirs, tuple(size)


def _dictionary(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """Florence-2's dictionary at supervision's door; of outlines it returns the boxes around them, in whole pixels.

    In a text it takes a bin's number for its edge, where the model's own processor takes the middle.
    """
    size, given = tuple(entry["image_size"]), entry["input"]
    theirs = detected(entry["result"]) if entry["result"] else []
    if isinstance(given, dict) and isinstance(text := next(iter(given.values())), str):
        return found(FLORENCE_EDGES, text, size), theirs, size
    if isinstance(given, dict) and (next(iter(given.values())) or {}).get("polygons"):
        theirs = [(name, [int(number) for number in numbers]) for name, numbers in theirs]
    try:
        grounded = florence_result(given, size)
    except ValueError:
        grounded = None
    named = grounded.spans if grounded else ()
    ours = [
        (grounded.text[span.start : span.end] or None, texts.numbers(outline(place), size))
        for span in named
        for place in span.places
    ]
    return _sorted(ours), _sorted(theirs), size


def _sorted(places: Found) -> Found:
    """By their numbers: a name's places stand together with us, in the order of the answer with the original."""
    return sorted(places, key=lambda item: [int(number) for number in item[1]])


def _florence(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """Each task has its own form of answer."""
    task, size = entry["task"], entry["image_size"]
    given = entry["result"][task]
    if isinstance(given, str):  # a caption: the original keeps marks in it
        return [], [], tuple(size)
    if "polygons" in given and ("bboxes" not in given or "<poly>" in entry["text"]):
        theirs = [
            (label, outline)
            for label, outlines in zip(
                given.get("labels", given.get("polygons_labels")), given["polygons"], strict=True
            )
            for outline in outlines
        ]
        return found(DIALECTS["florence_2_outlines"], entry["text"], size), theirs, tuple(size)
    if "quad_boxes" in given:
        return (
            found(DIALECTS["florence_2_ocr"], entry["text"], size),
            boxes(given["quad_boxes"], given["labels"]),
            tuple(size),
        )
    theirs = boxes(given["bboxes"], given.get("labels", given.get("bboxes_labels")))
    return found(DIALECTS["florence_2"], entry["text"], size), theirs, tuple(size)


def _rex(result: Any) -> Found:
    return [
        (
            phrase,
            [n for pair in item["coords"] for n in pair] if isinstance(item["coords"][0], list) else item["coords"],
        )
        for phrase, items in result.items()
        for item in items
    ]


def _tars(dialect: Marks) -> Reader:
    def read(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
        theirs: Found = []
        for action in entry["result"] or ():
            for key, value in action["action_inputs"].items():
                if "box" in key and value.startswith("["):
                    x0, y0, x1, y1 = ast.literal_eval(value)
                    theirs.append((None, [x0, y0] if (x0, y0) == (x1, y1) else [x0, y0, x1, y1]))
        return found(dialect, entry["text"], (1, 1), _resized(entry)), theirs, (1.0, 1.0)

    return read


def _clicked(entry: Entry) -> Line:
    """Where the code that UI-TARS's agent writes presses: the middles of our places, in pixels of the screen."""
    size = tuple(entry["image_size"])
    ours = [(None, _middle(given)) for _, given in found(D["ui_tars_1_5"], entry["text"], size, _resized(entry))]
    return texts.places(entry, ours, boxes(entry["coordinates_in_code"]), size, "pyautogui")


def _middle(given: list[float]) -> list[float]:
    return [(given[0] + given[-2]) / 2, (given[1] + given[-1]) / 2]


def _denormalised(entry: Entry) -> list[float]:
    """GLM's numbers in pixels; the picture is cut at 1000, where the original cuts at 999."""
    code = D["glm_v"].forms[0].code
    place = code.read(entry["values"], Scene())
    return [round(value, 2) for value in texts.numbers(clipped(place), entry["image_size"])] if place else []


def _xml(entry: Entry) -> tuple[Found, Found, tuple[float, float]]:
    """The points of Qwen2.5-VL's notebook, in the numbers of the text.

    Our words are the model's, so that &amp; stays in them; the notebook's reader of XML makes & of it.
    """
    given = entry["result"] or {"points": [], "phrase": None}
    theirs = [(given["phrase"], [float(x), float(y)]) for x, y in given["points"] if x is not None]
    ours = found(D["qwen2_5_vl_points"], entry["text"], (1000, 1000), (1000, 1000))
    return [(unescape(label or ""), numbers) for label, numbers in ours], theirs, (1000.0, 1000.0)


def _video(result: Any) -> Found:
    items = result if isinstance(result, list) else []
    return [(None, item["bbox_2d"]) for item in items if "bbox_2d" in item]


def _resized(entry: Entry) -> tuple[int, int]:
    return native(tuple(entry["image_size"]), 28, 100 * 28 * 28, 16384 * 28 * 28)


D = DIALECTS
PALIGEMMA_1024 = replace(
    D["paligemma"],
    forms=(replace(D["paligemma"].forms[0], code=Scaled(1024, 0, order="yxyx")), D["paligemma"].forms[1]),
)
FLORENCE_EDGES = replace(D["florence_2"], forms=(replace(D["florence_2"].forms[0], code=Scaled(1000, 0)),))
LLAVA_SQUASHED = replace(D["llava"], way="squash")
VLMS: dict[str, Marks | Json] = {
    "paligemma": PALIGEMMA_1024,
    "qwen_2_5_vl": D["qwen2_5_vl"],
    "qwen_3_vl": D["qwen3_vl"],
    "gemini_2_0": D["gemini"],
    "gemini_2_5": D["gemini"],
    "deepseek_vl_2": D["deepseek_vl2"],
    "moondream": D["moondream"],
}
READERS: dict[str, dict[str, Reader]] = {
    "cogvlm": {
        "demo_draw": pixels(D["cogvlm"], drawn),
        "grounding_parser": framed(D["cogvlm"], 1, lambda r: [(None, b) for item in r for b in item["boxes_0_1"]]),
        "boxstr_to_boxes": _cog,
    },
    "deepseek-vl2": {
        "demo_parse_ref_bbox": pixels(D["deepseek_vl2"], drawn),
        "supervision": pixels(D["deepseek_vl2"], detected),
        "supervision_classes": pixels(D["deepseek_vl2"], detected),
    },
    "florence-2": {"post_process_generation": _florence},
    "gemini": dict.fromkeys(
        (f"supervision_gemini_{number}{tail}" for number in ("2_0", "2_5") for tail in ("", "_classes")),
        pixels(D["gemini"], detected),
    ),
    "internvl": {
        "evaluator_first_box": pixels(D["internvl"], one("box_xyxy_pixels"), first=True),
        "demo_boxes": pixels(D["internvl"], drawn),
        "remote_sensing_first_box": pixels(D["internvl"], one("box"), first=True),
    },
    "lfm-vl": {
        "permissive_first_box": framed(D["lfm_vl"], 1, lambda r: boxes([r] if r else []), first=True),
        "strict_boxes": framed(D["lfm_vl"], 1, boxes),
        "reward_boxes": framed(D["lfm_vl"], 1, lambda r: boxes(r[0])),
    },
    "glm-v": {
        "coordinates_bbox": _glm(4),
        "coordinates_point": _glm(2),
        "coordinates_polygon": _glm(6),
        "detection": _glm_objects,
        "tracking": _glm_objects,
    },
    "molmo": {
        "extract_points": _points(D["molmo"], 0),
        "extract_bboxes": _pairs,
        "extract_points_from_point_count": _points(D["molmo"], 0),
    },
    "molmo2": {
        "extract_points": _points(D["molmo2"], 0),
        "extract_multi_image_points": _points(D["molmo2"], 1),
        "extract_any_points": _points(D["molmo2"], 2),
        "extract_tracks_fps_2": _tracks,
    },
    "moondream": {"supervision": _moondream, "old_demo_extract_bbox": _one_size},
    "paligemma": {
        "supervision": _pali,
        "supervision_classes": _pali,
        "big_vision_segmentation_evaluator": _pali_masks,
    },
    "qwen-vl": {
        "evaluator_first_box": _qwen_first,
        "tokenizer_boxes_with_ref": framed(D["qwen_vl"], 1000, lambda r: [(i.get("ref"), i["box"]) for i in r]),
    },
    "supervision": {**dict.fromkeys((*VLMS, "unknown"), _vlm), "florence_2": _dictionary},
    "ui-tars": {"v1_factor_1000": _tars(D["ui_tars"]), "v1_5_resized_pixels": _tars(D["ui_tars_1_5"])},
    "qwen3-vl": {
        "cookbook_plot_1000": pixels(D["qwen3_vl"], lambda r: [(i.get("label"), i["box"]) for i in r]),
        "odinw_eval_relative": pixels(D["qwen3_vl"], lambda r: boxes(r["boxes"])),
        "supervision": pixels(D["qwen3_vl"], detected),
        "cookbook_video_json": framed(D["qwen3_vl"], 1000, _video),
        "cookbook_points": framed(D["qwen3_vl"], 1000, lambda r: boxes(r["points"], r["labels"])),
    },
    "qwen2.5-vl": {
        "cookbook_plot": pixels(D["qwen2_5_vl"], lambda r: [(i.get("label"), i["box"]) for i in r]),
        "cookbook_xml_points": _xml,
        "odinw_eval_absolute": pixels(D["qwen2_5_vl"], lambda r: boxes(r["boxes"])),
        "supervision": pixels(D["qwen2_5_vl"], detected),
        "supervision_classes": pixels(D["qwen2_5_vl"], detected),
    },
    "rex-omni": {"parse_prediction": pixels(D["rex_omni"], _rex)},
    "unlimited-ocr": {"parse_detections": framed(D["unlimited_ocr"], 999, _layout)},
}


def dialect(case: Case) -> list[Line]:
    """Every answer of a table, by the reader that its original function asks for, and what the writers write.

    Left out: Rex-Omni's keypoints (a form of its own, which no dialect here reads), 3-D boxes and their projection, and
    UI-TARS's rewriting of its own history, text to text.
    """
    readers = READERS[case.path.parent.name]
    asked = [entry for entry in case.info["parse"] if (entry.get("function") or entry["vlm"]) in readers]
    several = [entry for entry in case.info["parse"] if entry.get("function", "").endswith("_two_sizes")]
    return [
        *texts.read_all(asked, readers),
        *texts.table(several, _several),
        *texts.table(case.info.get("denormalise", ()), _denormalised, "pixels", "denormalise"),
        *map(_clicked, case.info.get("pyautogui", ())),
        *written(case),
    ]


HANDLERS = {"dialect": dialect, "prompts": prompts, "tiling": tiles, **modern_heads.HANDLERS}
