"""Against supervision: the same boxes where an answer is whole, never fewer where it is broken; and the document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import supervision as sv

from mmchat import versus
from mmchat.cli import main
from mmchat.dialect import DIALECTS, Scene
from mmchat.geometry import Box, outline

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "dialects.md"
SIZE = (1000, 800)
STEP = 1.0  # pixels of SIZE that two readers of the same number may differ by: PaliGemma's 1023 or 1024, float32
GEMINI = ("gemini_2_0", "gemini_3_5", "gemini_3_6", "gemini_3_7")  # beside 2.5, which stands in the table
BOXES = [Box(0, 0, 1, 1), Box(0.1, 0.2, 0.4, 0.7), Box(0.333, 0.001, 0.5, 0.999), Box(0.9, 0.05, 0.98, 0.11)]


def mine(name: str, text: str) -> list[tuple[float, ...]]:
    read = DIALECTS[name].read(text, Scene(size=SIZE))
    assert not read.dropped, text
    return [outline(place).pixels(SIZE) for span in read.spans for place in span.places]


def assert_same(name: str, text: str, found: np.ndarray) -> None:
    wanted = mine(name, text)
    assert len(wanted) == len(found) > 0
    for box, other in zip(wanted, found, strict=True):
        assert box == pytest.approx(other.tolist(), abs=STEP), text


@pytest.mark.parametrize("name", versus.PEERS)
def test_a_whole_answer_gives_the_boxes_that_supervision_gives(name: str) -> None:
    for box in BOXES:
        text = versus.answer(name, (box, Box(0.25, 0.25, 0.75, 0.5)))
        scaled = [Box.pixels(found, SIZE) for _, found in versus.theirs(name, text)]
        assert_same(name, text, np.array(scaled))


def test_florence_gives_the_box_of_a_region_that_supervision_gives() -> None:
    for box in BOXES:
        text = DIALECTS["florence_2"].write([box], "a dog", Scene(size=SIZE))
        found = sv.Detections.from_vlm(sv.VLM.FLORENCE_2, {"<REGION_TO_CATEGORY>": text}, resolution_wh=SIZE)
        assert_same("florence_2", text, found.xyxy)


def test_kosmos_gives_the_boxes_that_supervision_gives_of_what_its_processor_read() -> None:
    from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes as entities

    for box in BOXES:
        text = DIALECTS["kosmos2"].write([box, BOXES[1]], "a dog", Scene(size=SIZE))
        found = sv.Detections.from_vlm(sv.VLM.KOSMOS_2, entities(f"<grounding>{text}"), resolution_wh=SIZE)
        assert_same("kosmos2", text, found.xyxy)


@pytest.mark.parametrize("version", GEMINI)
def test_every_gemini_gives_the_boxes_that_supervision_gives(version: str) -> None:
    text = versus.answer("gemini", (BOXES[1], BOXES[2]))
    if version in ("gemini_3_6", "gemini_3_7"):  # these put the list under a key
        text = f'{{"boxes": {text.removeprefix("```json").removesuffix("```").strip()}}}'
    found = sv.Detections.from_vlm(sv.VLM(version), text, resolution_wh=SIZE)
    assert_same("gemini", text, found.xyxy)


def test_every_dialect_of_supervision_is_compared() -> None:
    assert {vlm.value for vlm in sv.VLM} == {*versus.PEERS.values(), "florence_2", "kosmos_2", *GEMINI}


def test_no_broken_answer_loses_a_box_that_could_be_meant_or_gives_one_that_could_not() -> None:
    for name, way, ours, _ in versus.rows():
        good, _, meant = ours.split(",")[0].partition(" of ")
        assert good == meant and "wrong" not in ours, (name, way, ours)


def test_verdicts_count_what_is_missing_what_is_wrong_and_what_is_called_otherwise() -> None:
    meant = [("dog", versus.DOG), ("cat", versus.CAT)]
    assert versus.verdict(meant, meant) == "2 of 2"
    assert versus.verdict([("cat", versus.DOG)], meant) == "1 of 2, 1 with another label"
    assert versus.verdict([("cat", Box(0, 0, 0.1, 0.1))], meant) == "0 of 2, 1 wrong"


def test_the_document_is_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "--list", "--markdown"]) == 0
    told = capsys.readouterr().out
    assert DOCUMENT.read_text("utf-8") == told, (
        "docs/dialects.md is old: run `python -m mmchat read --list --markdown > docs/dialects.md`"
    )
    assert all(f"\n## {name}\n" in told for name in DIALECTS)
