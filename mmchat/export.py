"""Answers in the formats of other tools: JSON, supervision's Detections, COCO, YOLO, VOC, CSV, Label Studio; and back.

A format takes a list of (file name, picture size, answer). Places are the unit square of the upright picture inside,
and what the format asks for outside. Labels are the phrases of the answer; a span without words is called "object".
"""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mmchat.dialect import Dropped, Grounded, Moment, Span
from mmchat.geometry import Box, Mask, Place, Point, Polygon, outline

if TYPE_CHECKING:
    import supervision as sv

NAMELESS = "object"
LABEL_STUDIO = ("rectanglelabels", "polygonlabels", "keypointlabels")


class Answered(Protocol):
    """What is exported of an answer: `desk.Answer`, or with no raw text, scores and notes a `dialect.Grounded`."""

    @property
    def text(self) -> str: ...

    @property
    def spans(self) -> Sequence[Span]: ...

    @property
    def dropped(self) -> Sequence[Dropped]: ...


Named = tuple[str, tuple[int, int], Answered]


@dataclass(frozen=True)
class Found:
    """One place of an answer, flat: its label, the place, its score, the span's number."""

    label: str
    place: Place
    score: float | None
    span: int


def found(answer: Answered) -> list[Found]:
    """Every place of an answer in the order of its text."""
    flat = []
    for index, span in enumerate(answer.spans):
        label = answer.text[span.start : span.end].strip() or NAMELESS
        flat += [Found(label, place, _score(answer, index, number), index) for number, place in enumerate(span.places)]
    return flat


def labels(answers: Sequence[Answered]) -> list[str]:
    """The labels of all answers, each once, in order of first appearance: position = class id."""
    return list(dict.fromkeys(item.label for answer in answers for item in found(answer)))


def answer_json(
    answer: Any,
    size: tuple[int, int],
    model: str = "",
    precision: str = "",
    seconds: float | None = None,
    pictures: int = 1,
) -> dict[str, Any]:
    """The JSON of the `ask` command: places in pixels of the upright picture of `size` (width, height).

    seconds: length of the video or sound that was asked about; stretches of time are then told in seconds as well.
    pictures: how many were asked about; of several, "image" says which one the places are on, from 0.
    """
    return {
        "model": model,
        "precision": precision,
        "text": answer.text,
        "raw": answer.raw,
        **({} if seconds is None else {"seconds": round(seconds, 3)}),
        **({"image": answer.shown} if pictures > 1 else {}),
        **_spans_json(answer, size, seconds),
        "notes": [{name: value} for name, value in answer.notes],
        **({"pictures": [asdict(picture) for picture in answer.pictures]} if answer.pictures else {}),
    }


def reading_json(grounded: Answered, size: tuple[int, int]) -> dict[str, Any]:
    """The JSON of the `read` command: "text", "spans", "dropped" of a reading whose places are home."""
    return {"text": grounded.text, **_spans_json(grounded, size)}


def _spans_json(answer: Answered, size: tuple[int, int], seconds: float | None = None) -> dict[str, Any]:
    spans = []
    for index, span in enumerate(answer.spans):
        listed = []
        for number, place in enumerate(span.places):
            region = span.regions[number] if number < len(span.regions) else None
            listed.append({**place_json(place, size), "score": _score(answer, index, number), "region": region})
        phrase = answer.text[span.start : span.end]
        spans.append({"start": span.start, "end": span.end, "phrase": phrase, "places": listed})
    for moment in getattr(answer, "moments", ()):  # a stretch of time is a place of another kind
        stretch = {"kind": moment.kind, "first": moment.first, "last": moment.last, "score": None, "region": None}
        if seconds is not None:
            stretch["seconds"] = [round(time, 3) for time in moment.within(seconds)]
        phrase = answer.text[moment.start : moment.end]
        spans.append({"start": moment.start, "end": moment.end, "phrase": phrase, "places": [stretch]})
    dropped = [{"start": item.start, "end": item.end, "reason": item.reason} for item in answer.dropped]
    return {"spans": spans, "dropped": dropped}


def place_json(place: Place, size: tuple[int, int]) -> dict[str, Any]:
    """{"kind", "box"} and for other kinds "point", "points" or "mask" as well; pixels with two decimals."""
    box = [round(number, 2) for number in outline(place).pixels(size)]
    if isinstance(place, Point):
        return {"kind": "point", "box": box, "point": [round(place.x * size[0], 2), round(place.y * size[1], 2)]}
    if isinstance(place, Polygon):
        points = [[round(point.x * size[0], 2), round(point.y * size[1], 2)] for point in place.points]
        return {"kind": "polygon", "box": box, "points": points}
    if isinstance(place, Mask):
        return {"kind": "mask", "box": box, "mask": {"size": list(place.size), "runs": list(place.runs)}}
    return {"kind": "box", "box": box}


def from_json(data: Mapping[str, Any], size: tuple[int, int]) -> Grounded:
    """A reading from the JSON of `ask` or `read`."""
    spans, moments = [], []
    for span in data["spans"]:
        stretches = [place for place in span["places"] if place["kind"] == Moment.kind]
        moments += [Moment(span["start"], span["end"], place["first"], place["last"]) for place in stretches]
        if stretches:
            continue
        places = tuple(_place_from_json(place, size) for place in span["places"])
        regions = tuple(place.get("region") for place in span["places"])
        spans.append(Span(span["start"], span["end"], places, ((0, 0),) * len(places), regions))
    dropped = tuple(Dropped(item["start"], item["end"], item["reason"]) for item in data.get("dropped", ()))
    return Grounded(data["text"], tuple(spans), dropped, tuple(moments))


def _place_from_json(data: Mapping[str, Any], size: tuple[int, int]) -> Place:
    kind = data["kind"]
    if kind == "point":
        return Point(data["point"][0] / size[0], data["point"][1] / size[1])
    if kind == "polygon":
        return Polygon(tuple(Point(x / size[0], y / size[1]) for x, y in data["points"]))
    if kind == "mask":
        width, height = data["mask"]["size"]
        return Mask((width, height), tuple(data["mask"]["runs"]))
    return Box.from_pixels(data["box"], size)


def detections(answer: Answered, size: tuple[int, int]) -> sv.Detections:
    """Boxes in pixels with class ids, scores (1 where unknown) and data["class_name"]; masks where any place is one.

    Class ids are set so that every annotator of supervision draws it as it is.
    """
    import numpy as np  # with supervision below two seconds: only when asked for
    import supervision as sv

    items = found(answer)
    if not items:
        return sv.Detections.empty()
    names = labels([answer])
    masks = None
    if any(isinstance(item.place, Mask) for item in items):
        masks = np.stack([_bitmap(item.place, size) for item in items])
    return sv.Detections(
        xyxy=np.array([outline(item.place).pixels(size) for item in items], dtype=np.float32),
        mask=masks,
        confidence=np.array([1.0 if item.score is None else item.score for item in items], dtype=np.float32),
        class_id=np.array([names.index(item.label) for item in items]),
        data={"class_name": np.array([item.label for item in items])},
    )


def _bitmap(place: Place, size: tuple[int, int]) -> Any:
    """bool [height, width] of the picture."""
    import numpy as np  # see detections
    from PIL import Image, ImageDraw

    if isinstance(place, Mask):
        return np.asarray(Image.fromarray(place.array()).resize(size, Image.Resampling.NEAREST)).astype(bool)
    canvas = Image.new("1", size)
    if isinstance(place, Polygon):
        ImageDraw.Draw(canvas).polygon([(point.x * size[0], point.y * size[1]) for point in place.points], fill=1)
    else:
        x0, y0, x1, y1 = outline(place).pixels(size)
        ImageDraw.Draw(canvas).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=1)
    return np.asarray(canvas).astype(bool)


def coco(answers: Sequence[Named]) -> dict[str, Any]:
    """COCO object detection: bbox [x, y, width, height] in pixels; polygons and masks as segmentation, points as boxes.

    Scores stand in "score", as in COCO result files. Masks are uncompressed run lengths, column by column as COCO wants
    them.
    """
    names = labels([answer for _, _, answer in answers])
    images, annotations = [], []
    for image, (name, size, answer) in enumerate(answers, 1):
        images.append({"id": image, "file_name": name, "width": size[0], "height": size[1]})
        for item in found(answer):
            x0, y0, x1, y1 = outline(item.place).pixels(size)
            entry = {
                "id": len(annotations) + 1, "image_id": image, "category_id": names.index(item.label) + 1,
                "bbox": [round(number, 2) for number in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2), "iscrowd": 0, "segmentation": [],
            }  # fmt: skip
            if isinstance(item.place, Polygon):
                flat = [
                    round(number, 2) for point in item.place.points for number in (point.x * size[0], point.y * size[1])
                ]
                entry["segmentation"] = [flat]
            if isinstance(item.place, Mask):
                bitmap = _bitmap(item.place, size)
                turned = Mask.from_array(bitmap.T)
                entry |= {
                    "segmentation": {"size": [size[1], size[0]], "counts": list(turned.runs)},
                    "area": int(bitmap.sum()),
                }
            if item.score is not None:
                entry["score"] = round(item.score, 4)
            annotations.append(entry)
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def from_coco(data: Mapping[str, Any]) -> list[Named]:
    """Readings from COCO object detection; each label becomes a phrase of a text that lists them."""
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    listed = []
    for image in data["images"]:
        size = (image["width"], image["height"])
        items = []
        for entry in data["annotations"]:
            if entry["image_id"] == image["id"]:
                items.append((names[entry["category_id"]], _place_from_coco(entry, size)))
        listed.append((image["file_name"], size, _reading(items)))
    return listed


def _place_from_coco(entry: Mapping[str, Any], size: tuple[int, int]) -> Place:
    shape = entry.get("segmentation")
    if isinstance(shape, Mapping):
        height, width = shape["size"]
        return Mask.from_array(Mask((height, width), tuple(shape["counts"])).array().T)
    if shape and len(shape) == 1 and len(shape[0]) >= 6:
        flat = shape[0]
        return Polygon(tuple(Point(x / size[0], y / size[1]) for x, y in zip(flat[::2], flat[1::2], strict=True)))
    x, y, width, height = entry["bbox"]
    return Box.from_pixels((x, y, x + width, y + height), size)


def yolo(answers: Sequence[Named]) -> dict[str, str]:
    """File name -> text: classes.txt, and a .txt for each picture: class, centre x, centre y, width, height in 0..1.

    Polygons stand as YOLO segments: class, x, y, x, y ...
    """
    names = labels([answer for _, _, answer in answers])
    files = {"classes.txt": "".join(f"{_line(name)}\n" for name in names)}
    for name, _, answer in answers:
        lines = []
        for item in found(answer):
            box = outline(item.place)
            numbers = [box.centre.x, box.centre.y, box.width, box.height]
            if isinstance(item.place, Polygon):
                numbers = [number for point in item.place.points for number in (point.x, point.y)]
            lines.append(" ".join([str(names.index(item.label)), *(f"{number:.6f}" for number in numbers)]))
        files[_stem(name) + ".txt"] = "".join(f"{line}\n" for line in lines)
    return files


def from_yolo(text: str, names: Sequence[str]) -> Grounded:
    """A reading from one label file; `names` are the lines of classes.txt."""
    items: list[tuple[str, Place]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        index, *rest = line.split()
        numbers = [float(number) for number in rest]
        if len(numbers) == 4:
            x, y, width, height = numbers
            place: Place = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            place = Polygon(tuple(Point(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)))
        items.append((names[int(index)], place))
    return _reading(items)


def voc(name: str, size: tuple[int, int], answer: Answered) -> str:
    """Pascal VOC: one XML of a picture; corners are whole pixels counted from 1."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = _xml(name)
    shape = ElementTree.SubElement(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(shape, tag).text = str(value)
    for item in found(answer):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = _xml(item.label)
        ElementTree.SubElement(entry, "difficult").text = "0"
        corners = ElementTree.SubElement(entry, "bndbox")
        x0, y0, x1, y1 = outline(item.place).pixels(size)
        # VOC counts pixels from 1 and includes the last one.
        values = (min(round(x0) + 1, size[0]), min(round(y0) + 1, size[1]), max(round(x1), 1), max(round(y1), 1))
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True):
            ElementTree.SubElement(corners, tag).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def from_voc(text: str) -> Named:
    """A reading from one VOC file. ValueError where it declares entities, which an annotation never needs."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("This VOC file declares entities: remove its DOCTYPE.")
    root = ElementTree.fromstring(text)
    size = (int(root.findtext("size/width", "1")), int(root.findtext("size/height", "1")))
    items = []
    for entry in root.iter("object"):
        x0, y0, x1, y1 = (float(entry.findtext(f"bndbox/{tag}", "1")) for tag in ("xmin", "ymin", "xmax", "ymax"))
        items.append((entry.findtext("name", NAMELESS), Box.from_pixels((x0 - 1, y0 - 1, x1, y1), size)))
    return root.findtext("filename", ""), size, _reading(items)


def table(answers: Sequence[Named]) -> str:
    """CSV: one row a place, pixels of the upright picture."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "width", "height", "label", "kind", "x0", "y0", "x1", "y1", "score"])
    for name, size, answer in answers:
        for item in found(answer):
            place = place_json(item.place, size)
            score = "" if item.score is None else round(item.score, 4)
            writer.writerow([_cell(name), *size, _cell(item.label), place["kind"], *place["box"], score])
    return out.getvalue()


def from_table(text: str) -> list[Named]:
    """Readings from the CSV of `table`; outlines and masks come back as the boxes around them, a picture without places
    not at all. ValueError for other tables.
    """
    listed: dict[tuple[str, tuple[int, int]], list[tuple[str, Place]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        try:
            size = (int(row["width"]), int(row["height"]))
            corners = [float(row[corner]) for corner in ("x0", "y0", "x1", "y1")]
            box, kind, name, label = Box.from_pixels(corners, size), row["kind"], row["file"], row["label"]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise ValueError("This is no CSV of places: give one that `export` wrote.") from None
        place = Point(box.x0, box.y0) if kind == "point" else box
        listed.setdefault((_uncell(name), size), []).append((_uncell(label), place))
    return [(name, size, _reading(items)) for (name, size), items in listed.items()]


def label_studio(answers: Sequence[Named]) -> list[dict[str, Any]]:
    """Label Studio tasks with predictions, in percent of the picture.

    Boxes go as rectanglelabels, outlines as polygonlabels, points as keypointlabels, a mask as the box around it.
    """
    tasks = []
    for name, size, answer in answers:
        result = []
        for number, item in enumerate(found(answer)):
            kind, value = _label_studio_value(item.place)
            result.append({
                "id": f"place-{number}", "type": kind, "from_name": "label", "to_name": "image", "original_width":
                size[0], "original_height": size[1], "image_rotation": 0, "value": {**value, kind: [item.label]}, **({}
                if item.score is None else {"score": round(item.score, 4)}),
            })  # fmt: skip
        tasks.append({"data": {"image": name}, "predictions": [{"model_version": "mmchat", "result": result}]})
    return tasks


def _label_studio_value(place: Place) -> tuple[str, dict[str, Any]]:
    if isinstance(place, Point):
        return "keypointlabels", {"x": place.x * 100, "y": place.y * 100, "width": 0.75}
    if isinstance(place, Polygon):
        return "polygonlabels", {"points": [[point.x * 100, point.y * 100] for point in place.points], "closed": True}
    box = outline(place)
    return "rectanglelabels", {
        "x": box.x0 * 100, "y": box.y0 * 100, "width": box.width * 100, "height": box.height * 100, "rotation": 0,
    }  # fmt: skip


def from_label_studio(tasks: Sequence[Mapping[str, Any]]) -> list[Named]:
    """Readings from Label Studio tasks: rectangles, polygons and key points of their annotations, or else predictions.

    A task without any has no size: (1, 1). ValueError where it is no task.
    """
    listed: list[Named] = []
    for task in tasks:
        try:
            results = [entry for told in task.get("annotations") or task["predictions"] for entry in told["result"]]
            known = [
                entry for entry in results if entry["type"] in ("rectanglelabels", "polygonlabels", "keypointlabels")
            ]
            size = (known[0]["original_width"], known[0]["original_height"]) if known else (1, 1)
            items = [(entry["value"][entry["type"]][0], _place_from_label_studio(entry["value"])) for entry in known]
            listed.append((task["data"]["image"], size, _reading(items)))
        except (KeyError, TypeError, IndexError, AttributeError):
            raise ValueError("This is no task of Label Studio: give a list of tasks with predictions.") from None
    return listed


def _place_from_label_studio(value: Mapping[str, Any]) -> Place:
    if "points" in value:
        return Polygon(tuple(Point(x / 100, y / 100) for x, y in value["points"]))
    x, y = value["x"] / 100, value["y"] / 100
    if "height" not in value:
        return Point(x, y)
    return Box(x, y, x + value["width"] / 100, y + value["height"] / 100)


def _reading(items: Sequence[tuple[str, Place]]) -> Grounded:
    """A text that lists the labels, and their places."""
    text, spans = "", []
    for label, place in items:
        text += ", " if text else ""
        spans.append(Span(len(text), len(text) + len(label), (place,), ((0, 0),), (None,)))
        text += label
    return Grounded(text, tuple(spans))


def _score(answer: Answered, span: int, number: int) -> float | None:
    scores = getattr(answer, "scores", ())
    return scores[span][number] if span < len(scores) and number < len(scores[span]) else None


def _stem(name: str) -> str:
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[0] or base


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _uncell(text: str) -> str:
    return text[1:] if text[:1] == "'" and _cell(text[1:]) == text else text


def _xml(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(character for character in text if character in "\t\n" or ord(character) >= 32)
