"""Answers in the formats of other tools, and back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mmchat import export
from mmchat.dialect import DIALECTS, Dropped, Grounded, Span
from mmchat.geometry import Box, Mask, Point, Polygon, outline

SIZE = (640, 480)
BOX, OTHER = Box.from_pixels((100, 120, 300, 360), SIZE), Box.from_pixels((10, 20, 30, 45), SIZE)
OUTLINE = Polygon((Point(0.25, 0.25), Point(0.75, 0.25), Point(0.5, 0.75)))
MASK = Mask.from_array(np.arange(640 * 480).reshape(480, 640) % 640 < 64)


@dataclass(frozen=True)
class Said:
    """What a desk's answer offers to the exporter."""

    text: str
    raw: str
    spans: tuple[Span, ...]
    scores: tuple[tuple[float | None, ...], ...]
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[tuple[str, Any], ...] = ()
    pictures: tuple[Any, ...] = ()


ANSWER = Said(
    "a dog, two cats & <b>",
    "raw",
    (
        Span(0, 5, (BOX,), ((0, 1),), (3,)),
        Span(7, 15, (OTHER, BOX), ((1, 2), (2, 3)), (None, None)),
        Span(7, 15, (Point(0.5, 0.5),), ((3, 4),), (None,)),
        Span(18, 21, (OUTLINE,), ((4, 5),), (None,)),
        Span(0, 0, (MASK,), ((5, 6),), (None,)),
    ),
    ((0.9,), (0.5, None), (None,), (0.25,), (None,)),
    (Dropped(8, 9, "cut off"),),
    (("encoder_runs", 1), ("hint", "look")),
)


def assert_same(read: Grounded, step: float, but: str = "") -> None:
    """The places of ANSWER, within a step in pixels; `but`: a label left aside."""
    wanted = [item for item in export.found(ANSWER) if item.label != but]
    items = [item for item in export.found(read) if item.label != but]
    assert [item.label for item in items] == [item.label for item in wanted]
    for item, other in zip(items, wanted, strict=True):
        assert outline(item.place).pixels(SIZE) == pytest.approx(outline(other.place).pixels(SIZE), abs=step)


def test_the_json_of_ask_gives_places_in_pixels() -> None:
    data = export.answer_json(ANSWER, SIZE, "pocket", "fp32")
    assert json.loads(json.dumps(data)) == data
    assert (data["model"], data["precision"], data["text"], data["raw"]) == ("pocket", "fp32", ANSWER.text, "raw")
    first = data["spans"][0]
    assert first == {
        "start": 0, "end": 5, "phrase": "a dog",
        "places": [{"kind": "box", "box": [100, 120, 300, 360], "score": 0.9, "region": 3}],
    }  # fmt: skip
    assert [place["kind"] for span in data["spans"] for place in span["places"]] == [
        "box", "box", "box", "point", "polygon", "mask",
    ]  # fmt: skip
    assert data["spans"][2]["places"][0]["point"] == [320, 240]
    assert data["dropped"] == [{"start": 8, "end": 9, "reason": "cut off"}]
    assert data["notes"] == [{"encoder_runs": 1}, {"hint": "look"}]


def test_our_json_reads_back() -> None:
    read = export.from_json(json.loads(json.dumps(export.answer_json(ANSWER, SIZE))), SIZE)
    assert read.text == ANSWER.text and read.dropped == ANSWER.dropped
    assert_same(read, 0.01)
    assert read.spans[4].places == (MASK,) and read.spans[0].regions == (3,)


def test_detections_have_boxes_class_ids_labels_and_masks() -> None:
    found = export.detections(ANSWER, SIZE)
    assert found.xyxy[0].tolist() == pytest.approx([100, 120, 300, 360])
    assert found.class_id.tolist() == [0, 1, 1, 1, 2, 3]
    assert found.data["class_name"].tolist() == ["a dog", "two cats", "two cats", "two cats", "<b>", "object"]
    assert found.mask[-1].sum() == 64 * 480
    assert len(export.detections(Grounded("nothing"), SIZE)) == 0


ANNOTATORS = [
    "BackgroundOverlay", "Blur", "Box", "BoxCorner", "Circle", "Color", "Crop", "Dot", "Ellipse", "Halo", "HeatMap",
    "Label", "Mask", "PercentageBar", "Pixelate", "Polygon", "RichLabel", "RoundBox", "Triangle",
]  # fmt: skip


@pytest.mark.parametrize("name", ANNOTATORS)
def test_every_annotator_of_detections_draws_them(name: str) -> None:
    """All but those that want more than a place: tracks, icons, turned boxes, a second set."""
    import supervision as sv

    scene = np.random.default_rng(0).integers(60, 200, (480, 640, 3), dtype=np.uint8)
    drawn = getattr(sv, f"{name}Annotator")().annotate(scene.copy(), export.detections(ANSWER, SIZE))
    assert (np.asarray(drawn) != scene).any()


def test_polygons_and_masks_come_back_from_coco_and_outlines_from_yolo() -> None:
    (_, _, read), *_ = export.from_coco(json.loads(json.dumps(export.coco([("a.jpg", SIZE, ANSWER)]))))
    outline_, mask = (item.place for item in export.found(read)[-2:])
    assert isinstance(outline_, Polygon) and mask == MASK
    files = export.yolo([("a.jpg", SIZE, ANSWER)])
    again = export.found(export.from_yolo(files["a.txt"], files["classes.txt"].splitlines()))[-2].place
    for place in (outline_, again):
        assert isinstance(place, Polygon)
        assert [(p.x, p.y) for p in place.points] == [pytest.approx((p.x, p.y), abs=1e-4) for p in OUTLINE.points]


def test_a_table_reads_back() -> None:
    (name, size, read), (other, _, empty) = export.from_table(
        export.table([("=evil()", SIZE, ANSWER), ("b.jpg", (10, 10), Grounded("cat", (Span(0, 3, (BOX,)),)))])
    )
    assert (name, size, other, len(empty.spans)) == ("=evil()", SIZE, "b.jpg", 1)
    assert_same(read, 0.01)
    assert isinstance(export.found(read)[3].place, Point)
    with pytest.raises(ValueError, match="CSV"):
        export.from_table("a,b\n1,2\n")


def test_label_studio_reads_back() -> None:
    ((name, size, read),) = export.from_label_studio(json.loads(json.dumps(export.label_studio([("a", SIZE, ANSWER)]))))
    assert (name, size) == ("a", SIZE)
    assert_same(read, 0.01)
    assert isinstance(export.found(read)[3].place, Point) and isinstance(export.found(read)[4].place, Polygon)


def test_coco_counts_pixels_from_the_corner_and_reads_back() -> None:
    data = json.loads(json.dumps(export.coco([("a.jpg", SIZE, ANSWER), ("b.jpg", (10, 10), Grounded("none"))])))
    assert data["images"][1] == {"id": 2, "file_name": "b.jpg", "width": 10, "height": 10}
    assert data["annotations"][0]["bbox"] == [100, 120, 200, 240]
    assert [entry["name"] for entry in data["categories"]] == ["a dog", "two cats", "<b>", "object"]
    assert data["annotations"][5]["segmentation"]["counts"][:2] == [0, 64 * 480]
    (name, size, read), (_, _, empty) = export.from_coco(data)
    assert (name, size, empty.spans) == ("a.jpg", SIZE, ())
    assert_same(read, 0.01)
    assert read.spans[5].places[0].array().sum() == 64 * 480


def test_yolo_writes_centres_and_reads_back() -> None:
    files = export.yolo([("photos/a.b.jpg", SIZE, ANSWER)])
    assert sorted(files) == ["a.b.txt", "classes.txt"]
    assert files["a.b.txt"].splitlines()[0] == "0 0.312500 0.500000 0.312500 0.500000"
    read = export.from_yolo(files["a.b.txt"], files["classes.txt"].splitlines())
    assert_same(read, 0.001)


def test_voc_counts_pixels_from_one_and_reads_back() -> None:
    text = export.voc("a.jpg", SIZE, ANSWER)
    assert "<xmin>101</xmin>" in text and "<xmax>300</xmax>" in text and "&lt;b&gt;" in text
    name, size, read = export.from_voc(text)
    assert (name, size) == ("a.jpg", SIZE)
    assert_same(read, 0.5, but="two cats")  # one of them is a point, and VOC knows only boxes of a pixel or more


def test_voc_with_entities_is_refused() -> None:
    with pytest.raises(ValueError, match="DOCTYPE"):
        export.from_voc('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')


def test_a_table_has_one_row_a_place_and_no_formulas() -> None:
    rows = list(csv.reader(io.StringIO(export.table([("=evil()", SIZE, ANSWER)]))))
    assert rows[0][:4] == ["file", "width", "height", "label"] and len(rows) == 7
    assert rows[1] == ["'=evil()", "640", "480", "a dog", "box", "100.0", "120.0", "300.0", "360.0", "0.9"]


def test_label_studio_counts_in_percent() -> None:
    (task,) = export.label_studio([("a.jpg", SIZE, ANSWER)])
    first, *_, outline_, mask = task["predictions"][0]["result"]
    assert first["value"] == {
        "x": 15.625, "y": 25.0, "width": 31.25, "height": 50.0, "rotation": 0, "rectanglelabels": ["a dog"],
    }  # fmt: skip
    assert first["score"] == 0.9 and outline_["type"] == "polygonlabels" and mask["value"]["width"] == 10
    assert json.loads(json.dumps(task)) == task


def test_a_stretch_of_time_is_a_place_of_kind_span_and_comes_back():
    text = "a dog barks {0.12,0.4}"
    data = export.reading_json(DIALECTS["groundinggpt"].read(text), SIZE)
    (place,) = data["spans"][-1]["places"]
    assert place == {"kind": "span", "first": 0.12, "last": 0.4, "score": None, "region": None}
    read = export.from_json(json.loads(json.dumps(data)), SIZE)
    (moment,) = read.moments
    assert (moment.first, moment.last) == (0.12, 0.4) and not read.spans
    assert read.text[moment.start : moment.end] == data["spans"][-1]["phrase"]
