"""INF-LLaVA: ten passes for nineteen, preparation as in training, real sizes, published layouts on disk."""

from __future__ import annotations

import json

import dwarfs
import keylists
import published
import pytest
import torch
from safetensors.torch import save_file

from mmchat import golden
from mmchat.desk import Desk
from mmchat.engines.local import LocalEngine
from mmchat.families.inf_llava import DROP, FAMILY, KEYS, build, frame
from mmchat.golden import Case, inf_llava, llava
from mmchat.nets import tiles, weights
from mmchat.nets.crossview import SpatialEmbed

GOLDEN = keylists.GOLDEN / "inf-llava"
OURS = (
    (r"^vision\.", "model.vision_tower.vision_tower.vision_model."),
    (r"^bridge\.spatial_embed\.", "model.spatial_embed."),
    (r"^bridge\.projector\.", "model.mm_projector."),
    (r"^language\.", ""),
)
REAL = keylists.language(keylists.LLAMA_3_8B, 32) | {
    "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "rope_theta": 500000.0,
    "image_aspect_ratio": "pad", "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}  # fmt: skip


def test_pictures_are_prepared_as_in_training_unless_the_loaders_way_is_asked_for():
    assert frame(REAL).side == 1008 and frame(REAL | {"picture_preparation": "loader"}).side == 336
    with pytest.raises(ValueError, match="choose one of training, loader"):
        frame(REAL | {"picture_preparation": "other"})


@pytest.mark.parametrize("size", [(84, 84), (252, 252)])
def test_ten_passes_give_what_nineteen_give(size):
    model = dwarfs.build(FAMILY)
    passes = []
    model.vision.register_forward_hook(lambda *_: passes.append(1))
    pixels = torch.randn(2, 3, *size)
    with torch.inference_mode():
        ours = model.encode(pixels).vectors
        assert len(passes) == 10
        theirs = model.encode_all(pixels)
    assert len(passes) == 10 + 19
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(60, 60), (97, 200), (400, 300)])
def test_other_sizes_differ_by_the_rounding_of_the_resize_alone(size):
    model = dwarfs.build(FAMILY)
    pixels = torch.randn(1, 3, *size)
    with torch.inference_mode():
        ours, theirs = model.encode(pixels).vectors, model.encode_all(pixels)
    torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=1e-4)


def test_the_other_views_are_dead_inputs():
    torch.manual_seed(0)
    net = SpatialEmbed(32)
    seen, noise = torch.randn(9, 2, 6, 6, 32), torch.randn(9, 2, 6, 6, 32)
    strides = torch.randn(9, 2, 6, 6, 32)
    noise[4] = strides[4]
    with torch.inference_mode():
        assert torch.equal(net.steps(seen, strides).pooled, net.steps(seen, noise).pooled)
        torch.testing.assert_close(net(seen, strides[4]), net.steps(seen, strides).pooled, atol=1e-5, rtol=1e-5)


def test_a_recorded_grid_that_holds_no_whole_blocks_is_mixed_over_every_place(tmp_path):
    net = SpatialEmbed(32)
    kept = {f"state.{name}": one for name, one in net.state_dict().items()} | {
        "in.features": torch.randn(18, 1, 25, 32)
    }
    config = {"channel": 32, "n": 3, "grid": [5, 5], "heads": 8}
    (tmp_path / "odd.json").write_text(json.dumps({"system": "inf-llava", "object": "SpatialEmbed", "config": config}))
    save_file(kept, tmp_path / "odd.safetensors")
    out = inf_llava.mixing(Case(tmp_path / "odd.json"), torch.float32)
    assert out["pooled"].shape == (1, 25, 32)
    torch.testing.assert_close(out["pooled"].view(5, 5, 32), out["fused"][0, 1::3, 1::3])  # the middle of each block


def test_pieces_come_together_again():
    maps = torch.randn(2, 12, 18, 5)
    for n in (1, 2, 3):
        assert torch.equal(tiles.pasted(tiles.cut(maps, n), n), maps)
        assert torch.equal(tiles.interleaved(tiles.strided(maps, n), n), maps)


def test_a_tower_whose_patches_make_no_blocks_is_refused():
    sizes = FAMILY.dwarf["vision_config"] | {"image_size": 56}
    with pytest.raises(ValueError, match="4 x 4 patches"):
        build(FAMILY.dwarf | {"vision_config": sizes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The dwarf as published, in two shards of either kind."""
    state, place = published.named(dwarfs.build(FAMILY).state_dict(), OURS), tmp_path_factory.mktemp("inf-llava")
    return {kind: published.write(place / kind, state, FAMILY.dwarf, kind) for kind in ("safetensors", "bin")}


def test_both_kinds_of_shards_say_the_same_as_the_model_itself(checkpoint, dwarf_folder, picture):
    first = published.answer(dwarf_folder("inf_llava"), FAMILY, picture).raw
    assert first and [published.answer(folder, FAMILY, picture).raw for folder in checkpoint.values()] == [first] * 2


def test_four_bits_quantise_the_language_model_alone_and_answer(checkpoint, picture):
    desk = Desk(LocalEngine.open(checkpoint["safetensors"], FAMILY, "nf4", "cpu"))
    packed = {name for name, part in desk.engine.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert "language.model.layers.0.self_attn.q_proj" in packed
    assert not [name for name in packed if not name.startswith("language.model.layers.")]
    answers = {published.answer(folder, FAMILY, picture, "nf4").raw for folder in checkpoint.values()}
    assert len(answers) == 1 and answers != {""}
    desk.engine.close()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_whole_model_is_loaded_from_disk(kind, precision, tmp_path):
    case = Case(GOLDEN / "whole_other_size.json")
    folder = published.write(tmp_path / kind, case.state(), llava.checkpoint_config(case), kind)
    with weights.without_memory():
        model = build(weights.read_config(folder))
    weights.load(model, folder, KEYS, DROP, None, precision=precision, keep=FAMILY.keep)
    with torch.inference_mode():
        out = llava.run_whole(case, model.dtype, model, inf_llava.pictures(case, model.dtype))
    theirs = case.tensors["out.logits"]
    error = (out["logits"].float() - theirs).abs().max() / theirs.abs().max()
    assert error <= {"fp32": 5e-5, "bf16": 0.05}[precision]  # bf16 keeps 8 bits, of pixels and of every layer
    if precision == "fp32":
        assert torch.equal(out["greedy_ids"], case.tensors["out.greedy_ids"])


def test_the_recorded_folder_is_judged_without_a_skip():
    assert {row.status for row in golden.run(GOLDEN)} <= {"ok"}
