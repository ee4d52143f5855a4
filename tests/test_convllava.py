"""ConvLLaVA: real sizes, pictures of any shape, the encoder's own folder, published layouts on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import dwarfs
import keylists
import numpy as np
import published
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmchat import commands, golden, models
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene, home
from mmchat.engines.local import LocalEngine
from mmchat.families.convllava import DROP, FAMILY, KEYS, build, frame
from mmchat.geometry import Box, Region
from mmchat.golden import Case, llava
from mmchat.nets import weights
from mmchat.nets.convnext import CONVNEXT_LARGE, ConvNextTower

GOLDEN = keylists.GOLDEN / "convllava"
OURS = (
    (r"^vision\.", "model.vision_tower.vision_tower."),
    (r"^bridge\.", "model.mm_projector."),
    (r"^language\.", ""),
)


def real(side: int, sizes: dict[str, int], heads: int) -> dict:
    return keylists.language(sizes, heads) | {
        "mm_hidden_size": 3072, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -1,
        "image_aspect_ratio": "pad", "mm_vision_tower": f"ConvLLaVA/ConvLLaVA-ConvNeXt-{side}",
    }  # fmt: skip


def test_the_encoder_has_as_many_parameters_as_published():
    with weights.without_memory():
        tower = ConvNextTower(CONVNEXT_LARGE)
    unused = 2 * 3072  # the last norm, which the published count holds and nobody applies
    assert sum(parameter.numel() for parameter in tower.parameters()) + unused == 669_167_808
    assert sum(parameter.numel() for parameter in tower.encoder.stages[4].parameters()) == 472_934_400


@pytest.mark.parametrize(("side", "tokens"), [(768, 144), (1024, 256), (1536, 576)])
def test_a_side_is_known_by_the_encoders_name_and_gives_its_tokens(side, tokens):
    assert frame(real(side, keylists.VICUNA_7B, 32)).side == side
    with torch.inference_mode():
        (level,) = ConvNextTower(FAMILY.dwarf["vision_config"])(torch.zeros(1, 3, side, side))
    assert level.shape[1] == tokens


@pytest.mark.parametrize(("size", "grid"), [((768, 1024), (12, 16)), ((800, 600), (12, 9)), ((1000, 777), (15, 12))])
def test_any_height_and_width_is_seen_and_each_stride_floors(size, grid):
    model = dwarfs.build(FAMILY)
    with torch.inference_mode():
        seen = model.see(torch.randn(1, 3, *size))
    assert len(seen.images[0]) == grid[0] * grid[1]
    assert tuple(seen.levels["vision"].shape[-2:]) == tuple(seen.levels["bridge"].shape[-2:]) == grid


def test_an_unknown_encoder_a_wrong_layer_and_a_tiny_picture_are_told():
    with pytest.raises(ValueError, match="put the ConvNeXt encoder's folder beside"):
        frame({"mm_vision_tower": "someone/other"})
    with pytest.raises(ValueError, match="write -1"):
        ConvNextTower(FAMILY.dwarf["vision_config"], -3)
    with pytest.raises(ValueError, match="too small"):
        ConvNextTower(FAMILY.dwarf["vision_config"])(torch.zeros(1, 3, 63, 200))


def test_a_last_block_left_out_is_the_map_before_it():
    torch.manual_seed(0)
    sizes = FAMILY.dwarf["vision_config"] | {"depths": [1, 1, 1, 1, 2]}
    whole, less = ConvNextTower(sizes), ConvNextTower(sizes, -2)
    less.load_state_dict({name: value for name, value in whole.state_dict().items() if name in less.state_dict()})
    whole.encoder.stages[-1].layers[-1].layer_scale_parameter.data.zero_()  # then the last block adds nothing
    pixels = torch.randn(1, 3, 128, 192)
    assert torch.equal(whole(pixels)[0], less(pixels)[0])


def test_the_block_left_out_is_the_encoders_own_not_one_of_the_added_stage():
    sizes = FAMILY.dwarf["vision_config"] | {"depths": [1, 1, 1, 2], "hidden_sizes": [8, 12, 16, 24]}
    stages = ConvNextTower(sizes, -2, (3, 32)).encoder.stages
    assert [len(stage.layers) for stage in stages] == [1, 1, 1, 1, 3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The dwarf as published: two shards of either kind, a ConvNeXt copy inside."""
    state = published.named(dwarfs.build(FAMILY).state_dict(), OURS)
    config = dict(FAMILY.dwarf)
    place = tmp_path_factory.mktemp("convllava")
    return {kind: published.write(place / kind, state, config, kind) for kind in ("safetensors", "bin")}


def test_both_kinds_of_shards_say_the_same_as_the_model_itself(checkpoint, dwarf_folder, picture):
    first = published.answer(dwarf_folder("convllava"), FAMILY, picture).raw
    assert first and [published.answer(folder, FAMILY, picture).raw for folder in checkpoint.values()] == [first] * 2


def test_the_encoders_own_folder_takes_the_place_of_the_copy_inside(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint["safetensors"], tmp_path / "llm")
    config = {key: value for key, value in FAMILY.dwarf.items() if key != "vision_config"}
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "ConvLLaVA/encoder"}))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    other = dwarfs.build(FAMILY, seed=1).vision.state_dict()
    save_file({name: value.contiguous() for name, value in other.items()}, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps(FAMILY.dwarf["vision_config"]))
    config = weights.read_config(folder, FAMILY.parts)
    with weights.without_memory():
        model = build(config)
    found = weights.sources(folder, config, FAMILY.parts)
    weights.load(model, found, KEYS, DROP, None, precision="fp32", parts=FAMILY.parts)
    assert all(torch.equal(value, other[name]) for name, value in model.vision.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_whole_model_is_loaded_from_disk(kind, precision, tmp_path):
    case = Case(GOLDEN / "whole_arbitrary_aspect.json")
    folder = published.write(tmp_path / kind, case.state(), llava.checkpoint_config(case), kind)
    with weights.without_memory():
        model = build(weights.read_config(folder))
    weights.load(model, folder, KEYS, DROP, None, precision=precision, keep=FAMILY.keep)
    with torch.inference_mode():
        out = llava.run_whole(case, model.dtype, model)
    theirs = case.tensors["out.logits"]
    error = (out["logits"].float() - theirs).abs().max() / theirs.abs().max()
    assert error <= {"fp32": 1e-5, "bf16": 0.02}[precision]  # bf16 keeps 8 bits; seven layers add up their rounding
    if precision == "fp32":
        assert torch.equal(out["greedy_ids"], case.tensors["out.greedy_ids"])


def test_four_bits_quantise_the_language_model_alone_and_answer(checkpoint, picture):
    desk = Desk(LocalEngine.open(checkpoint["safetensors"], FAMILY, "nf4", "cpu"))
    packed = {name for name, part in desk.engine.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert "language.model.layers.0.self_attn.q_proj" in packed
    assert not [name for name in packed if not name.startswith("language.model.layers.")]
    answers = {published.answer(folder, FAMILY, picture, "nf4").raw for folder in checkpoint.values()}
    assert len(answers) == 1 and answers != {""}
    desk.engine.close()


def test_a_photograph_is_padded_to_the_encoders_side():
    pixels, placement = frame(FAMILY.dwarf).fit(Image.new("RGB", (300, 100), (9, 9, 9)))
    assert pixels.shape == (3, 256, 256) and placement.offset[1] > 0


NATIVE = {"picture_preparation": "native"}


@pytest.fixture(scope="module")
def shaped(checkpoint, tmp_path_factory):
    """A desk with the dwarf that keeps a picture's shape, named in a models.toml."""
    file = tmp_path_factory.mktemp("listed") / "models.toml"
    row = f'name = "own"\nfamily = "convllava"\nfolder = "{checkpoint["safetensors"]}"\nprecision = "fp32"\n'
    file.write_text(f'[[model]]\n{row}config = {{picture_preparation = "native"}}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODELS", str(file))
        desk = Desk(commands.engine("own", "auto"))
    yield desk
    desk.close()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (40, 1), (1, 40), (260, 250), (4000, 3000), (640, 480)])
def test_a_picture_in_its_own_shape_fills_about_the_square_and_wastes_nothing(size):
    placement = frame({**FAMILY.dwarf, **NATIVE}).place(size)
    across, down = (length / 64 for length in placement.fitted)
    assert across.is_integer() and down.is_integer() and 8 <= across * down <= (16 if min(size) > 1 else 22)
    assert (placement.scale, placement.offset) == ((1.0, 1.0), (0.0, 0.0))
    if min(size) > 1:  # otherwise one token is the least
        assert 0.7 <= (across / down) / (size[0] / size[1]) <= 1.4


def test_the_published_sides_keep_their_budget_of_tokens():
    for side, most in ((768, 144), (1024, 256), (1536, 576)):
        native = frame(real(side, keylists.VICUNA_7B, 32) | NATIVE)
        for size in ((640, 480), (1920, 1080), (3000, 1000), (1536, 1536)):
            across, down = native.place(size).fitted
            assert most * 0.6 <= across * down / 64**2 <= most
    four = CONVNEXT_LARGE | {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]}
    config = real(768, keylists.VICUNA_7B, 32) | NATIVE | {"vision_config": four}
    assert frame(config).factor == 32 and frame(config | {"vision_add_five_stage": 6}).factor == 64


def test_the_desk_answers_about_a_wide_picture_as_the_parts_do(shaped):
    wide = noise(900, 300)
    model = shaped.engine.model
    pixels, placement = frame({**FAMILY.dwarf, **NATIVE}).fit(wide)
    assert pixels.shape == (3, 128, 384) == (3, *placement.fitted[::-1])
    ready = shaped._prepare(Ask((wide,), (Turn("user", "What?"),)))
    with torch.inference_mode():
        vectors = model.bridge(model.vision(torch.from_numpy(pixels)[None]))[0]
    assert torch.equal(ready.sight.content.images[0], vectors) and len(vectors) == 2 * 6
    assert ready.sight.content.levels["vision"][0].shape[-2:] == (2, 6)


def test_several_pictures_of_different_shapes_are_each_seen_as_alone(shaped):
    pictures = noise(900, 300), noise(200, 420), noise(150, 150)
    both = shaped._prepare(Ask(pictures, (Turn("user", "Which?"),))).sight.content
    assert [len(one) for one in both.images] == [12, 10, 16]
    for number, picture in enumerate(pictures):
        alone = shaped._prepare(Ask((picture,), (Turn("user", "Which?"),))).sight.content
        assert torch.allclose(both.images[number], alone.images[0], atol=1e-5)
        assert torch.allclose(both.levels["bridge"][number], alone.levels["bridge"][0], atol=1e-5)
    answer = list(shaped.answer(Ask(pictures, (Turn("user", "Which?"),), limits=Limits(new_tokens=4))))[-1]
    assert answer.done


@pytest.mark.parametrize("kind", FAMILY.heats)
def test_heat_maps_have_the_rows_and_columns_of_their_picture(shaped, kind):
    pictures = noise(900, 300), noise(200, 420)
    box = Region("box", Box(0.1, 0.1, 0.6, 0.9), image=1)
    ask = Ask(pictures, (Turn("user", "Which is @1?", (box,)),), limits=Limits(new_tokens=6))
    answer = list(shaped.answer(ask))[-1]
    trace, _, _ = shaped.trace(ask, replace(answer, raw="ab"), kind, box if kind == "likeness" else None)
    assert trace.map.shape[:2] == (5, 2)  # of the last picture
    assert len(np.unique(trace.map)) > 5


def test_attention_lies_where_its_vectors_do(shaped):
    wide = noise(900, 300)
    seen = shaped._prepare(Ask((wide,), (Turn("user", "What?"),))).sight.content
    one = torch.zeros(12)
    one[7] = 1.0
    assert shaped.engine.model.spread(one, seen, 0).nonzero().tolist() == [[1, 1]]


def test_a_box_on_a_wide_picture_comes_back_within_a_step():
    placement = frame({**FAMILY.dwarf, **NATIVE}).place((900, 300))
    drawn = Box(0.213, 0.137, 0.664, 0.912)
    scene = Scene((), placement.fitted)
    (words,) = FAMILY.mention(1, Region("box", placement.into(drawn)), FAMILY.dialect, scene)
    assert words == "[0.21, 0.14, 0.66, 0.91]"
    (span,) = home(FAMILY.dialect.read(f"There: {words}", scene), placement).spans
    found = span.places[0]
    pairs = zip((found.x0, found.y0, found.x1, found.y1), (drawn.x0, drawn.y0, drawn.x1, drawn.y1), strict=True)
    assert all(abs(ours - theirs) <= 0.005 + 1e-9 for ours, theirs in pairs)


def test_an_unknown_preparation_and_a_wrong_table_are_told(tmp_path):
    with pytest.raises(ValueError, match="choose one of training, native"):
        frame({**FAMILY.dwarf, "picture_preparation": "wide"})
    (tmp_path / "models.toml").write_text('[[model]]\nname = "a"\nfamily = "llava"\nfolder = "a"\nconfig = "b"\n')
    with pytest.raises(ValueError, match="config must be a table"):
        models.listed(tmp_path / "models.toml")


def test_the_recorded_folder_is_judged_without_a_skip():
    assert {row.status for row in golden.run(GOLDEN)} <= {"ok"}
