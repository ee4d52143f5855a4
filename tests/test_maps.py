"""Phrase maps of detectors, and the masks that PaliGemma writes as codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmchat.dialect import DIALECTS, Scene, home
from mmchat.dialect.maps import GROUNDING_DINO, OWL, Detection, caption, grounded
from mmchat.dialect.results import florence_result
from mmchat.geometry import Box, Frame, Mask, Polygon
from mmchat.nets.moondream import RegionHeads, centre, extent
from mmchat.nets.paligemma import MaskDecoder, load

TOKENS = ["[CLS]", "red", "cup", "##s", ".", "a", "dog", ".", "[SEP]"]
YES, NO = 3.0, -3.0
BOX = [0.5, 0.5, 0.2, 0.4]


def row(*best: int) -> list[float]:
    return [YES if place in best else NO for place in range(len(TOKENS))]


def test_pieces_that_score_become_a_phrase_with_a_box():
    (found,) = GROUNDING_DINO.detections([row(1, 2, 3, 4), row()], TOKENS, [BOX, BOX])
    assert found.phrase == "red cups" and found.score == pytest.approx(1 / (1 + np.exp(-3)))
    assert found.box.pixels((100, 100)) == pytest.approx((40, 30, 60, 70))


def test_a_phrase_stays_between_the_separators_around_its_best_piece():
    scores = row(1, 2, 3, 5, 6)
    scores[6] = 5.0
    (found,) = GROUNDING_DINO.detections([scores], TOKENS, [BOX])
    assert found.phrase == "a dog"


def test_counts_that_do_not_fit_are_one_sentence():
    with pytest.raises(ValueError, match="a row of 9 scores"):
        GROUNDING_DINO.detections([[1.0, 2.0]], TOKENS, [BOX])


def test_a_detector_of_whole_phrases_chooses_the_best():
    found = OWL.choices([[0.0, 2.0], [-9.0, -8.0]], ["cat", "dog"], [BOX, BOX])
    assert [item.phrase for item in found] == ["dog"]


@pytest.mark.parametrize("given", ["A cat", " a cat. ", ["A cat"]])
def test_a_caption_closes_each_phrase(given):
    assert caption(given) == "a cat."


def test_detections_become_words_with_places():
    boxes = [Box(0.1, 0.1, 0.3, 0.3), Box(0.5, 0.5, 1.2, 0.9), Box(0.2, 0.2, 0.4, 0.4), Box(0.0, 0.0, 0.1, 0.1)]
    names = ["dog", "red cup", "dog", ""]
    answer = grounded([Detection(name, box, 0.9) for name, box in zip(names, boxes, strict=True)])
    assert answer.text == "dog, red cup"
    assert [(answer.text[span.start : span.end], len(span.places)) for span in answer.spans] == [
        ("dog", 2),
        ("red cup", 1),
    ]
    assert answer.spans[1].places == (Box(0.5, 0.5, 1.0, 0.9),)
    assert [(item.start, item.reason.partition(":")[0]) for item in answer.dropped] == [
        (1, "out of range"),
        (3, "no phrase"),
    ]


CODES = "".join(f"<seg{number:03d}>" for number in range(16))
WRITTEN = f"<loc0256><loc0128><loc0768><loc0512>{CODES} cat"


def left_half(codes: list[int]) -> list[list[float]]:
    assert codes == list(range(16))
    return [[1.0] * 32 + [-1.0] * 32] * 64


def test_codes_become_a_mask_inside_their_box_where_a_decoder_is_at_hand():
    answer = DIALECTS["paligemma"].read(WRITTEN, Scene(size=(224, 224), masks=left_half))
    (span,) = answer.spans
    box, mask = span.places
    assert answer.text == "cat" and not answer.dropped and isinstance(box, Box) and isinstance(mask, Mask)
    middle = (box.x0 + box.x1) / 2
    assert mask.box.pixels((224, 224)) == pytest.approx(Box(box.x0, box.y0, middle, box.y1).pixels((224, 224)), abs=1)
    assert WRITTEN[slice(*span.source[1])] == CODES
    (back,) = home(answer, Frame(224, "squash").place((640, 480))).spans
    assert outlined(back.places[1]) == pytest.approx((640 * 128 / 1023, 480 * 256 / 1023), abs=3)


def outlined(mask: Mask) -> tuple[float, float]:
    return mask.box.pixels((640, 480))[:2]


def test_codes_stay_in_the_report_without_a_decoder_and_without_a_box():
    answer = DIALECTS["paligemma"].read(WRITTEN)
    assert len(answer.spans[0].places) == 1 and "decoder" in answer.dropped[0].reason
    alone = DIALECTS["paligemma"].read(f"{CODES} cat", Scene(masks=left_half))
    assert not alone.spans and len(alone.dropped) == 1


def test_the_decoder_loads_its_published_file_and_draws(tmp_path):
    torch.manual_seed(0)
    made = MaskDecoder(8, 6, 16)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
    np.savez(tmp_path / "vae.npz", **{name: value.numpy() for name, value in made.state_dict().items()})
    codes = [number % 8 for number in range(16)]
    drawn = torch.tensor(load(tmp_path / "vae.npz").draw(codes))
    assert drawn.shape == (64, 64) and torch.equal(drawn, made(torch.tensor([codes]))[0])
    with pytest.raises(ValueError, match="needs 16 codes"):
        made.draw([1])


def test_another_file_is_no_decoder(tmp_path):
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"give the published vae-oid\.npz"):
        load(tmp_path / "other.npz")


def test_a_box_comes_out_of_three_hidden_states():
    torch.manual_seed(0)
    names = ("dim", "coord_feat_dim", "coord_out_dim", "size_feat_dim", "size_out_dim", "inner_dim")
    heads = RegionHeads(dict(zip(names, (8, 4, 16, 4, 32, 8), strict=True)))
    x, y, size = torch.randn(3, 8)
    x0, y0, x1, y1 = heads.box(x, y, size)
    assert (x0 + x1) / 2 == pytest.approx(centre(heads.score_coordinates(x)).item())
    assert [x1 - x0, y1 - y0] == pytest.approx(extent(heads.score_sizes(size)).tolist())
    assert (y0 + y1) / 2 == pytest.approx(centre(heads.score_coordinates(y)).item())


def test_florences_dictionary_becomes_words_with_places():
    given = {"<OD>": {"bboxes": [[10, 10, 20, 30], [5, 5, 50, 400], [1, 1, 9, 9]], "labels": ["dog", "cat", "dog"]}}
    answer = florence_result(given, (100, 200))
    assert answer.text == "dog, cat" and [len(span.places) for span in answer.spans] == [2, 1]
    assert answer.spans[1].places == (Box(0.05, 0.025, 0.5, 1.0),) and "clipped" in answer.dropped[0].reason
    outlines = {"<REFERRING_EXPRESSION_SEGMENTATION>": {"polygons": [[[5, 5, 30, 6, 28, 30]]], "labels": [""]}}
    (span,) = florence_result(outlines, (100, 200)).spans
    assert isinstance(span.places[0], Polygon) and span.start == span.end
    with pytest.raises(ValueError, match="one task"):
        florence_result({}, (1, 1))
