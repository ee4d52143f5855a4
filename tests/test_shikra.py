"""Shikra's published layout: a delta in two .bin shards, the original LLaMA and the tower in folders of their own."""

from __future__ import annotations

from pathlib import Path

import dwarfs
import published
import pytest
import torch

from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.shikra import FAMILY
from mmchat.geometry import Box, Point, Region
from mmchat.golden.shikra import message
from mmchat.prompt import Slot, Turn

NAMES = ((r"^language\.", ""), (r"^bridge\.0\.", "model.mm_projector."))
TOWER = ((r"^vision\.", "vision_model."),)


def layout(root: Path) -> Path:
    """Delta, base and tower whose sum is the dwarf, vocabulary grown by three rows."""
    state = {name: tensor.half().float() for name, tensor in dwarfs.build(FAMILY).state_dict().items()}
    target = published.named(state, NAMES)
    generator = torch.Generator().manual_seed(3)
    rows = FAMILY.dwarf["vocab_size"] - 3
    base, delta = {}, {}
    for name, tensor in target.items():
        if name.startswith("model.mm_projector"):
            delta[name] = tensor
            continue
        base[name] = torch.randn(tensor.shape, generator=generator) * 0.05
        delta[name] = tensor - base[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            delta[name][rows:], base[name] = tensor[rows:], base[name][:rows].clone()
    config = {key: value for key, value in FAMILY.dwarf.items() if key != "vision_config"}
    named = {"mm_vision_tower": "openai/clip-vit-large-patch14", "base_model": "llama-7b-hf"}
    published.write(root / "llama-7b-hf", base, {"model_type": "llama"}, "bin")
    published.write(
        root / "clip-vit-large-patch14",
        published.named(state, TOWER),
        {"vision_config": dict(FAMILY.dwarf["vision_config"])},
        shards=1,
    )
    return published.write(root / "shikra-7b-delta-v1", delta, config | named, "bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return layout(tmp_path_factory.mktemp("shikra"))


def test_delta_base_and_tower_together_are_the_model(folder):
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    wanted = dwarfs.build(FAMILY).state_dict()
    for name, tensor in engine.model.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=2e-3), name


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    said = published.answer(folder, FAMILY, picture, precision)
    assert said.done and dict(said.notes)["new_tokens"] > 0


def test_a_delta_without_its_base_says_what_to_fetch(folder, tmp_path):
    alone = tmp_path / "shikra-7b-delta-v1"
    alone.mkdir()
    for path in folder.iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="original LLaMA"):
        LocalEngine.open(alone, FAMILY, "fp32", "cpu")


def test_the_picture_stands_in_the_sentence_where_training_had_it():
    pieces = FAMILY.template.render(
        (Turn("user", "the {image} cup", images=(0,)),), lambda number, region: ("",), "find"
    )
    assert [piece for piece in pieces if isinstance(piece, Slot)] == [Slot("image", 0)]
    before, _, behind = pieces
    assert before.endswith("USER: Can you point out the {image} cup in the image <im_start>")
    assert behind == "<im_end> and provide the coordinates of its location? ASSISTANT:"


def test_points_and_boxes_are_written_with_three_decimals():
    point = Region("point", Box(0.3, 0.4, 0.3, 0.4), (Point(0.3, 0.4),))
    assert FAMILY.mention(1, point, FAMILY.dialect, Scene()) == ("[0.300,0.400]",)
    box = Region("box", Box(0.1, 0.2, 0.3, 0.4))
    assert FAMILY.mention(1, box, FAMILY.dialect, Scene()) == ("[0.100,0.200,0.300,0.400]",)


def test_bins_are_those_of_the_original_where_a_place_lies_between_two():
    """The formatter beside the released one: a box is rounded to three decimals before, a point is not."""
    entry = {
        "writer": "token_bins", "template": "<boxes> <points>", "image_size": [400, 300],
        "boxes_px": [[69, 261, 330, 284]], "boxes_seq": [[0]], "points_px": [[69, 261]], "points_seq": [[0]],
    }  # fmt: skip
    box, point = (69 / 400, 311 / 400, 330 / 400, 334 / 400), (69 / 400, 311 / 400)
    bins = [" ".join(f"<bin_{number}>" for number in numbers) for numbers in (
        [round(round(value, 3) * 1000) for value in box], [round(value * 1000) for value in point],
    )]  # fmt: skip
    assert message("PICTURE", entry) == f"PICTURE <b_st>{bins[0]}<b_ed> <p_st>{bins[1]}<p_ed>"
    assert bins[0].split()[1] != bins[1].split()[1]


def test_a_place_for_regions_wants_some():
    entry = {"writer": "plain", "template": "<image> <boxes>", "image_size": [9, 9], "points_px": None}
    with pytest.raises(ValueError, match="names no region"):
        message("PICTURE", entry | {"boxes_px": [[1, 2, 3, 4]], "boxes_seq": [[]], "points_seq": None})
