"""Groma's published layout, its two vocabularies, what may be pointed at, and its boxes on a wide picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import dwarfs
import numpy as np
import published
import pytest
import test_tokenizers
import torch

from mmchat.desk import home
from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.groma import FAMILY, MARKS, survivors
from mmchat.geometry import Box, Region
from mmchat.nets import weights
from mmchat.nets.dinov2 import Dinov2Tower
from mmchat.nets.proposer import Proposer
from mmchat.nets.roi import RegionEncoder
from mmchat.prompt import Slot, Turn

TOWER = "perceiver.vis_encoder."
NAMES = (
    (r"^vision\.patches\.", f"{TOWER}embeddings.patch_embeddings.projection."),
    (r"^vision\.first$", f"{TOWER}embeddings.cls_token"),
    (r"^vision\.positions$", f"{TOWER}embeddings.position_embeddings"),
    (r"^vision\.layers\.(\d+)\.attention\.out\.", rf"{TOWER}encoder.layer.\1.attention.output.dense."),
    (r"^vision\.layers\.(\d+)\.attention\.", rf"{TOWER}encoder.layer.\1.attention.attention."),
    (r"^vision\.layers\.(\d+)\.scale([12])$", rf"{TOWER}encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^vision\.layers\.(\d+)\.fc", rf"{TOWER}encoder.layer.\1.mlp.fc"),
    (r"^vision\.layers\.(\d+)\.", rf"{TOWER}encoder.layer.\1."),
    (r"^proposer\.input_proj\.", "perceiver.input_proj."),
    (r"^proposer\.", "perceiver.ddetr_transformer."),
    (r"^regions\.(input_conv|fuse_convs)\.", r"region_encoder.mlvl_fuse.\1."),
    (r"^regions\.", "region_encoder.roi_align."),
    (r"^bridge\.", "img_txt_bridge."),
    (r"^language\.", "llm."),
)
BASE = FAMILY.dwarf["llm_cfg"]["vocab_size"]


def layout(root: Path) -> Path:
    """Two .bin shards with the marks in tables of their own and the proposer's heads twice."""
    state = published.named(dwarfs.build(FAMILY).state_dict(), NAMES)
    for name, own in (("llm.model.embed_tokens", "new_input_embs"), ("llm.lm_head", "extra_lm_head")):
        whole = state.pop(f"{name}.weight")
        state |= {f"{name}.weight": whole[:BASE].clone(), f"{own}.weight": whole[BASE:].clone()}
    heads = [name for name in state if "ddetr_transformer.bbox_embed" in name or "class_embed_" in name]
    state |= {name.replace("ddetr_transformer.", "ddetr_transformer.decoder."): state[name] for name in heads}
    state |= {f"{TOWER}embeddings.mask_token": torch.ones(1, 64), f"{TOWER}layernorm.weight": torch.ones(64)}
    return published.write(root / "groma-7b-finetune", state, FAMILY.dwarf, "bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return layout(tmp_path_factory.mktemp("groma"))


@pytest.fixture(scope="module")
def model():
    return dwarfs.build(FAMILY)


RECORDED = json.loads((Path(__file__).resolve().parent / "tokenizers" / "groma.json").read_text("utf-8"))


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: f"{entry['talk'][0]}-{entry['legacy']}")
def test_whole_prompts_have_the_ids_of_the_tokenizer_of_the_time(entry, tmp_path):
    """Recorded with transformers 4.32.0, in the file's two ways; -1 is a picture, all regions, or one."""
    sizes = {"llm_cfg": {**FAMILY.dwarf["llm_cfg"], "vocab_size": 640}}
    folder = dwarfs.write(replace(FAMILY, dwarf={**FAMILY.dwarf, **sizes}), tmp_path / "dwarf")
    (folder / "tokenizer.json").unlink()
    test_tokenizers.write(folder, entry["legacy"], list(MARKS))
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    boxes = (Region("box", Box(0.1, 0.1, 0.4, 0.4)), Region("box", Box(0.5, 0.5, 0.9, 0.8)))
    roles = ("user", "assistant", "user")
    turns = [Turn(role, text) for role, text in zip(roles, entry["talk"], strict=False)]
    turns[0] = replace(turns[0], images=(0,), regions=boxes)
    side = FAMILY.frame(FAMILY.dwarf).side
    sight = engine.see((np.zeros((3, side, side), np.float32),), boxes)

    def mention(number, region):
        return FAMILY.mention(number, region, FAMILY.dialect, Scene())

    _, parts = engine._laid_out(FAMILY.template.render(turns, mention), sight.content)
    ids = {mark: 640 + number for number, mark in enumerate(MARKS)}
    own = {ids["<r0>"], ids["<r1>"]} if "@1" in entry["talk"][0] else set()  # the original gives them names later
    ours = [-1 if not isinstance(part, int) else ids["<refer_box>"] if part in own else part for part in parts]
    theirs = [-1 if one in (ids["<image>"], ids["<region>"], ids["<refer_feat>"]) else one for one in entry["ids"]]
    assert ours == theirs and theirs.count(-1) == (4 if own else 2)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    assert published.answer(folder, FAMILY, picture, precision).done


def test_two_vocabularies_become_one(folder):
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    for name, tensor in dwarfs.build(FAMILY).state_dict().items():
        assert torch.equal(engine.model.state_dict()[name], tensor), name
    assert [engine.tokens.token(mark) for mark in MARKS] == list(range(BASE, BASE + len(MARKS)))
    assert engine.model.first == engine.tokens.token("<r0>")


def test_the_marks_have_their_published_ids():
    ids = {mark: 32000 + number for number, mark in enumerate(MARKS)}
    assert len(MARKS) == 114 and ids["<roi>"] == 32004 and ids["[grounding]"] == 32013 and ids["<r2>"] == 32016


@torch.inference_mode()
def test_drawn_regions_come_first_and_all_stay(model):
    drawn = torch.tensor([(0.1, 0.1, 0.5, 0.5), (0.12, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.8)])
    encoded = model.encode(torch.randn(1, 3, 56, 56))
    without, seen = model.gather(encoded), model.gather(encoded, drawn, torch.zeros(3, dtype=torch.long))
    assert torch.allclose(seen.candidates[:3], drawn, atol=1e-6)
    assert len(without.candidates) >= 1 and len(seen.regions) == len(seen.candidates) == len(seen.owners)
    one = model.fill(Slot("region", 1), seen, list)
    every = model.fill(Slot("region", -1), seen, list)
    assert torch.equal(one[0], seen.regions[1]) and torch.equal(every[3], seen.regions[1])
    assert torch.equal(every[2], model.embed([model.first + 1])[0])  # <r1> stands in front of its vector


@torch.inference_mode()
def test_more_regions_than_marks_is_an_error(model):
    encoded = model.encode(torch.randn(1, 3, 56, 56))
    with pytest.raises(ValueError, match="draw fewer"):
        model.gather(encoded, torch.rand(101, 4), torch.zeros(101, dtype=torch.long))
    with pytest.raises(ValueError, match="one picture"):
        model.encode(torch.randn(2, 3, 56, 56))


@torch.inference_mode()
def test_a_proposal_under_a_drawn_box_makes_room(model):
    encoded = model.encode(torch.randn(1, 3, 56, 56))
    proposed, maps = encoded.kept
    two = torch.tensor([[(0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)]])
    proposed = replace(proposed, boxes=two, scores=torch.tensor([[0.9, 0.8]]))
    found = model.chosen(proposed, torch.tensor([(0.3, 0.31, 0.2, 0.2)]))
    assert found.tolist() == two[0, 1:].tolist()
    assert model.chosen(proposed, torch.zeros(0, 4)).tolist() == two[0].tolist()


def test_the_best_box_stays_where_none_is_good_enough():
    boxes = torch.tensor([(0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)])
    assert survivors(boxes, torch.tensor([0.05, 0.1]), torch.zeros(0, 4), 0.6, 0.15, 100).tolist() == [1]


@torch.inference_mode()
def test_regions_are_read_where_the_weights_were_trained_to_read_them():
    """A box around (0.1, 0.1) of size 0.3 is read from 0.2 to 0.6 of the map: its numbers as corners, doubled."""
    torch.manual_seed(0)
    net = RegionEncoder(64, 8, 8)
    maps = [torch.zeros(1, 64, 128 // factor, 128 // factor) for factor in (1, 2, 4)]
    box, owner = torch.tensor([(0.1, 0.1, 0.3, 0.3)]), torch.zeros(1, dtype=torch.long)
    blank = net(maps, box, owner)
    maps[0][0, :, 90:, 90:] = 1.0  # beyond 0.6
    assert torch.equal(net(maps, box, owner), blank)
    maps[0][0, :, 60, 60] = 1.0
    assert not torch.allclose(net(maps, box, owner), blank)


def test_an_answer_lands_on_a_wide_picture():
    placement = FAMILY.frame(FAMILY.dwarf).place((900, 300))
    candidates = (Box(0.5, 0.5, 0.6, 0.6), Box(0.1, 0.4, 0.3, 0.6))
    grounded = FAMILY.dialect.read("<p>a kite</p> <roi><r1></roi>", Scene(candidates, placement.fitted))
    span = home(grounded, placement).spans[0]
    assert span.places[0].pixels((900, 300)) == pytest.approx((90, 120, 270, 180), abs=0.5)


def test_the_tower_equals_the_library_at_its_own_size():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = FAMILY.dwarf["perceiver_cfg"]["vis_encoder_cfg"]
    theirs = Dinov2Model(Dinov2Config(**sizes)).eval()
    state = {}
    newer = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}  # names in memory, not in files
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("layernorm") and "mask_token" not in name:
            name = weights.renamed(f"{TOWER}{name}", FAMILY.keys).removeprefix("vision.")
            state[".".join(newer.get(word, word) for word in name.split("."))] = tensor
    ours = Dinov2Tower(sizes)
    ours.load_state_dict(state)
    pixels = torch.randn(2, 3, 70, 70)
    with torch.inference_mode():
        expected = theirs(pixels, output_hidden_states=True).hidden_states
        for one, other in zip(ours(pixels), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_the_published_sizes_are_those_of_the_card():
    tower = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
    config = {
        "llm_cfg": {"num_hidden_layers": 1}, "num_new_token": 114,
        "perceiver_cfg": {"vis_encoder_cfg": tower, "ddetr_cfg": {"num_feature_levels": 1, "two_stage": True}},
    }  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(tensor.shape) for name, tensor in FAMILY.build(config).state_dict().items()}
    assert shapes["language.model.embed_tokens.weight"] == shapes["language.lm_head.weight"] == (32114, 4096)
    assert shapes["vision.positions"] == (1, 1370, 1024) and "vision.layers.23.scale2" in shapes
    assert shapes["bridge.0.weight"] == (4096, 4096)
    assert shapes["proposer.input_proj.0.0.weight"] == (256, 1024, 1, 1)
    assert shapes["proposer.query_position_embeddings.weight"] == (300, 256)
    assert "proposer.bbox_embed.6.layers.2.weight" in shapes and "proposer.class_embed_coco.5.weight" in shapes
    assert shapes["proposer.level_embed"] == (1, 256)
    assert shapes["regions.input_conv.0.weight"] == (1024, 1026, 1, 1)
    assert shapes["regions.flatten_linear.weight"] == (1024, 200704)
    assert shapes["regions.updims.weight"] == (4096, 1024)


def test_the_first_boxes_are_exact_in_half_precision():
    """What no layer moves lies where the place is, not where bfloat16 can say it: a third of a pixel off."""
    sizes = {**FAMILY.dwarf["perceiver_cfg"]["ddetr_cfg"], "num_queries": 64, "two_stage_num_proposals": 64}
    half = Proposer(sizes, 16).to(torch.bfloat16)
    for parameter in half.bbox_embed[-1].parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        found = half(torch.randn(1, 16, 32, 32, dtype=torch.bfloat16))
    rows, columns = found.chosen[0] // 32, found.chosen[0] % 32
    middles = torch.stack((columns, rows), 1).add(0.5) / 32
    assert torch.allclose(found.first[0, :, :2], middles, atol=1e-6)
