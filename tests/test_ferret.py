"""Ferret: its published layout (a delta, Vicuna, the tower inside), and regions of every shape through the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dwarfs
import numpy as np
import published
import pytest
import torch
from PIL import Image

from mmchat.desk import Ask, Desk, Limits
from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.ferret import FAMILY, area, shape, speaks
from mmchat.geometry import Box, Mask, Point, Region, region
from mmchat.nets import sampler
from mmchat.nets.model import as_map
from mmchat.nets.sampler import RegionSampler
from mmchat.prompt import Slot, Turn

NAMES = ((r"^language\.", ""), (r"^bridge\.0\.", "model.mm_projector."), (r"^regions\.", "model.region_geo_sampler."))
TOWER = ((r"^vision\.", "vision_model."),)
ALONE = ("model.mm_projector", "model.region_geo_sampler")
WIDE = (600, 200)


def layout(root: Path) -> Path:
    """Delta and base whose sum is the dwarf, vocabulary grown by the region's mark; the tower inside the checkpoint."""
    state = {name: tensor.half().float() for name, tensor in dwarfs.build(FAMILY).state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    rows = FAMILY.dwarf["vocab_size"] - 1
    base, delta = {}, {}
    for name, tensor in published.named(state, NAMES).items():
        if name.startswith(ALONE):
            delta[name] = tensor
            continue
        base[name] = torch.randn(tensor.shape, generator=generator) * 0.05
        delta[name] = tensor - base[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            delta[name][rows:], base[name] = tensor[rows:], base[name][:rows].clone()
    config = {key: value for key, value in FAMILY.dwarf.items() if key != "vision_config"}
    named = {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    published.write(root / "vicuna-7b-v1.3", base, {"model_type": "llama"}, "bin")
    folder = published.write(root / "ferret-7b-delta", delta, config | named, "bin")
    sizes = {"vision_config": dict(FAMILY.dwarf["vision_config"])}
    published.write(folder / "vision_tower", published.named(state, TOWER), sizes, shards=1)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return layout(tmp_path_factory.mktemp("ferret"))


@pytest.fixture(scope="module")
def desk(dwarf_folder) -> Desk:
    return Desk(LocalEngine.open(dwarf_folder("ferret"), FAMILY, "fp32", "cpu"))


@pytest.fixture(scope="module")
def wide() -> Image.Image:
    """Three times as wide as high."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (WIDE[1], WIDE[0], 3), dtype=np.uint8))


def vectors(desk: Desk, image: Image.Image, *drawn: Region) -> torch.Tensor:
    """What the language model is given for the regions, by the road of every question."""
    ask = Ask((image,), (Turn("user", "What is @1?", drawn),), limits=Limits(new_tokens=1))
    return desk._prepare(ask).sight.content.regions


# the published layout


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
    alone = tmp_path / "ferret-7b-delta"
    alone.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (alone / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"Vicuna 1\.3"):
        LocalEngine.open(alone, FAMILY, "fp32", "cpu")


# regions


def test_shapes_inside_one_box_are_told_apart(desk, wide):
    box = region({"kind": "box", "box": [0.2, 0.1, 0.7, 0.8]})
    line = region({"kind": "scribble", "points": [[0.2, 0.1], [0.7, 0.8]]})
    outline = region({"kind": "polygon", "points": [[0.2, 0.1], [0.7, 0.8], [0.2, 0.8]]})
    cells = np.zeros((200, 600), bool)
    cells[20:160, 120:420], cells[60:120, 200:300] = True, False
    mask = Region("mask", box.box, mask=Mask.from_array(cells))
    made = torch.cat([vectors(desk, wide, one) for one in (box, line, outline, mask)])
    assert all((made[i] - made[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


def test_a_region_has_the_same_vector_whatever_else_is_drawn(desk, wide):
    one, other = (region({"kind": "box", "box": [x, 0.1, x + 0.3, 0.8]}) for x in (0.1, 0.6))
    alone = vectors(desk, wide, other)[0]
    both = vectors(desk, wide, one, other)
    assert torch.equal(both[1], alone) and not torch.allclose(both[0], alone, atol=1e-3)


def test_the_words_that_the_model_reads_are_numbers_and_a_vector(desk, wide):
    drawn = (
        region({"kind": "box", "box": [0.2, 0.1, 0.7, 0.8]}),
        region({"kind": "point", "points": [[0.412, 0.655]]}),
    )
    ask = Ask((wide,), (Turn("user", "Is @1 left of @2?", drawn),), limits=Limits(new_tokens=1))
    pieces = desk._prepare(ask).prompt
    assert pieces[1:] == (
        Slot("image", 0),
        "\nIs [200, 100, 700, 800]",
        Slot("region", 0),
        "left of [412, 655]",
        Slot("region", 1),
        "? ASSISTANT:",
    )


@pytest.mark.parametrize(("task", "typed", "asked"), [
    ("find", "the man, left.", "What is the location of the man left in the image?"),
    ("several", "A man, the Dog?", "What are the locations of a man, the dog?"),
    ("free", "The man, left.", "The man, left."),
])  # fmt: skip
def test_what_is_to_be_found_is_named_as_the_evaluations_name_it(task, typed, asked):
    turns = (Turn("user", "A, b.", images=(0,)), Turn("assistant", "C, d."), Turn("user", typed))
    prompt = FAMILY.template.render(turns, lambda number, region: (), task)
    assert prompt[-1] == f"\nA, b. ASSISTANT: C, d.</s>USER: {asked} ASSISTANT:"


def test_the_box_around_a_mask_ends_at_its_last_cell():
    cells = np.zeros((120, 200), bool)
    cells[10:101, 10:21] = cells[90:101, 10:151] = True
    mask = Mask.from_array(cells)
    assert FAMILY.mention(1, Region("mask", mask.box, mask=mask), FAMILY.dialect, Scene()) == (
        "[50, 83, 750, 833] ",
        Slot("region", 0),
    )


def test_an_answer_on_a_wide_picture_lands_where_it_says(wide):
    placement = FAMILY.frame(FAMILY.dwarf).place(wide.size)
    span = FAMILY.dialect.read("A dog [100, 150, 300, 200].", Scene((), placement.fitted)).spans[0]
    found = placement.back(span.places[0]).pixels(WIDE)
    assert found == pytest.approx((60, 30, 180, 40), abs=0.61)  # a thousandth of 600


def test_a_point_is_a_window_of_eleven_pixels_of_the_picture_itself():
    point = Region("point", Box(0.5, 0.5, 0.5, 0.5), (Point(0.5, 0.5),))
    mask = shape(point, WIDE)
    assert mask.shape == WIDE and mask.nonzero().amin(0).tolist() == [295, 95] and mask.sum() == 121
    corner = Region("point", Box(1, 1, 1, 1), (Point(1, 1),))
    assert shape(corner, WIDE).sum() == 36


def test_a_box_holds_the_pixel_at_its_far_edge():
    box = Region("box", Box.from_pixels((100, 150, 300, 190), WIDE))
    assert torch.equal(shape(box, WIDE), area((100, 150, 300, 190), WIDE))
    assert shape(Region("box", Box(0, 0, 1, 1)), WIDE).all()


def test_a_line_is_as_wide_as_a_brush_and_a_dab_of_it_is_a_point():
    line = shape(region({"kind": "scribble", "points": [[0.2, 0.5], [0.7, 0.5]]}), WIDE)
    assert line.any(1).sum() == pytest.approx(300, abs=11) and line[300].nonzero().flatten().tolist() == [
        *range(95, 106)
    ]
    dab = shape(region({"kind": "scribble", "points": [[0.5, 0.5]]}), WIDE)
    assert torch.equal(dab, shape(region({"kind": "point", "points": [[0.5, 0.5]]}), WIDE))
    corner = shape(region({"kind": "polygon", "points": [[0, 0], [0.5, 0], [0, 0.5]]}), WIDE)
    assert corner[10, 10] and not corner[290, 90] and corner.sum() == pytest.approx(15_000, rel=0.05)


def test_a_mask_of_other_cells_covers_the_same_part_and_is_never_empty():
    cells = np.zeros((4, 6), bool)
    cells[1:3, 2:4] = True
    mask = shape(Region("mask", Mask.from_array(cells).box, mask=Mask.from_array(cells)), WIDE)
    assert mask.nonzero().amin(0).tolist() == [200, 50] and mask.nonzero().amax(0).tolist() == [399, 149]
    fine = np.zeros((500, 500), bool)
    fine[1, 1] = True
    assert shape(Region("mask", Mask.from_array(fine).box, mask=Mask.from_array(fine)), (20, 20)).any()


# the sampler


def test_features_are_read_at_the_transposed_place():
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    read = sampler.transposed(torch.stack((rows, columns)), torch.tensor([[0.875, 0.10]]))
    assert read.tolist()[0] == pytest.approx([20.125, 2.3], abs=1e-4)  # row from x, column from y


def test_places_are_counted_column_by_column():
    mask = torch.rand(30, 17, generator=torch.Generator().manual_seed(0)) > 0.7
    expected = mask.nonzero() / torch.tensor([30, 17])
    assert torch.equal(sampler.positions(mask, torch.arange(len(expected))), expected)
    assert torch.equal(sampler.positions(mask, torch.tensor([9, 3, 3])), expected[[9, 3, 3]])


@pytest.mark.parametrize("places", [5, 512, 4000, 90_000_000])
def test_as_many_points_are_drawn_as_the_sampler_takes(places):
    net = RegionSampler(6, 8)
    picked = net.choose(places).points
    assert len(picked) == 512 and picked.max() < places
    assert len(picked.unique()) == min(places, 512)
    assert torch.equal(picked, net.choose(places).points)


def test_centres_are_far_from_each_other_and_neighbours_near():
    points = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    chosen = sampler.farthest(points, 12, 7)
    assert chosen[0] == 7 and len(chosen.unique()) == 12
    exact = torch.cdist(points, points)
    assert all(exact[chosen[:n]].amin(0).argmax() == chosen[n] for n in range(1, 12))
    near = sampler.nearest(points[chosen], points, 5)
    assert torch.equal(near.sort().values, exact[chosen].topk(5, largest=False).indices.sort().values)


def test_an_empty_mask_and_an_unknown_pooling_are_refused():
    with pytest.raises(ValueError, match="covers no pixel"):
        RegionSampler(6, 8)(torch.zeros(6, 4, 4), torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="max or mean"):
        RegionSampler(6, 8, pool="sum")


# the relatives: tiles, Llama 3 and Gemma (Ferret-UI), DINOv2 over the tiles (v2)

TILED = {
    "model_type": "ferret_llama", "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial",
    "mm_projector_type": "mlp2x_gelu", "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}  # fmt: skip
GEMMA = TILED | {"model_type": "ferret_gemma", "head_dim": 16, "tie_word_embeddings": True}
SECOND = {
    "model_type": "ferret_v2", "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial",
    "mm_projector_type": "mlp2x_gelu", "local_side": 84,
    "local_vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 84,
        "patch_size": 14,
    },
}  # fmt: skip
RELATIVES = {"tiles": TILED, "gemma": GEMMA, "v2": SECOND}


def relative(config: Mapping[str, Any], folder: Path) -> Desk:
    """The dwarf of a relative, opened by the road of every checkpoint."""
    kin = replace(FAMILY, dwarf={**FAMILY.dwarf, **config})
    return Desk(LocalEngine.open(dwarfs.write(kin, folder / "dwarf"), FAMILY, "fp32", "cpu"))


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_answers_about_every_kind_of_region(name, tmp_path, wide):
    desk = relative(RELATIVES[name], tmp_path)
    drawn = (
        region({"kind": "box", "box": [0.2, 0.1, 0.7, 0.8]}),
        region({"kind": "point", "points": [[0.5, 0.5]]}),
        region({"kind": "scribble", "points": [[0.2, 0.1], [0.7, 0.8]]}),
    )
    ask = Ask((wide,), (Turn("user", "Compare @1, @2 and @3.", drawn),), limits=Limits(new_tokens=4))
    answer = list(desk.answer(ask))[-1]
    assert answer.done and dict(answer.notes)["new_tokens"] > 0
    made = desk._prepare(ask).sight.content.regions
    assert made.shape == (3, 64) and (made[0] - made[1]).abs().max() > 1e-3
    trace, _, _ = desk.trace(ask, answer, "feature norm")
    assert trace.map.shape[1] > trace.map.shape[0]  # the map of a wide picture is wide
    desk.close()


def test_tiles_are_read_as_one_map_and_regions_from_the_sum(tmp_path, wide):
    desk = relative(TILED, tmp_path)
    model, frame_ = desk.engine.model, FAMILY.frame(desk.engine.config)
    views, placement = frame_.fit(wide)
    assert views.shape == (3, 56 + 56, 112) and placement.fitted == (56, 56)
    with torch.inference_mode():
        encoded = model.encode(torch.from_numpy(views)[None])
        whole = torch.from_numpy(views[None, :, :56, :56].copy())
        left, right = (torch.from_numpy(views[None, :, 56:, x : x + 56].copy()) for x in (0, 56))
        maps = [as_map(model.vision(one)[-1])[0] for one in (whole, left, right)]
        vectors = [model.bridge(model.vision(one))[0] for one in (whole, left, right)]
    level = encoded.levels["vision"][0]
    assert level.shape == (32, 4, 8)
    for row in range(4):
        for column in range(8):
            fine = maps[1 + column // 4][:, row, column % 4]
            assert torch.allclose(level[:, row, column], maps[0][:, row, column // 2] + fine, atol=1e-5)
    rows = [torch.cat((vectors[1][4 * row : 4 * row + 4], vectors[2][4 * row : 4 * row + 4])) for row in range(4)]
    assert torch.allclose(encoded.vectors[0], torch.cat((vectors[0], *rows)), atol=1e-5)
    desk.close()


def test_the_tiles_hold_the_stretched_picture(wide):
    views, _ = FAMILY.frame({**FAMILY.dwarf, **TILED}).fit(wide)
    plain = FAMILY.frame(FAMILY.dwarf)
    stretched = wide.resize((112, 56))
    for left in (0, 56):
        expected, _ = plain.fit(stretched.crop((left, 0, left + 56, 56)))
        assert np.array_equal(views[:, 56:, left : left + 56], expected)
    assert np.array_equal(views[:, :56, :56], plain.fit(wide)[0]) and not views[:, :56, 56:].any()


def test_gemma_reads_vectors_as_large_as_its_words(tmp_path, wide):
    desk = relative(GEMMA, tmp_path)
    model = desk.engine.model
    views, _ = FAMILY.frame(desk.engine.config).fit(wide)
    with torch.inference_mode():
        seen = model.see(torch.from_numpy(views)[None], torch.tensor([[0.1, 0.1, 0.8, 0.8]]))
        vectors, level = model.viewed(torch.from_numpy(views))
        alone = model.regions(level, area((5, 5, 44, 44), (56, 56)))
    assert torch.allclose(seen.images[0], vectors * 8, atol=1e-5)  # the root of 64
    assert torch.allclose(seen.regions[0], alone * 8, atol=1e-4)
    table = model.language.get_input_embeddings()
    assert torch.allclose(model.embed([5])[0], table.weight[5] * 8)
    desk.close()


def test_v2_looks_at_larger_tiles_with_another_tower(tmp_path, wide):
    desk = relative(SECOND, tmp_path)
    views, _ = FAMILY.frame(desk.engine.config).fit(wide)
    assert views.shape == (3, 56 + 84, 3 * 84)  # 3 x 1 tiles
    with torch.inference_mode():
        vectors, level = desk.engine.model.viewed(torch.from_numpy(views))
    assert len(vectors) == 16 + 3 * 36 and level.shape == (32, 6, 18)
    desk.close()


@pytest.mark.parametrize(
    ("config", "begins", "asks"),
    [
        ({}, "A chat between a human and an AI that understands visuals.", " Tell me the coordinates in response."),
        (SECOND, "A chat between", "\nInclude the coordinates for each mentioned object."),
        (TILED, "A chat between", "\nProvide the bounding boxes of the mentioned objects."),
        (TILED | {"vocab_size": 128_257}, "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nA chat", ""),
        (GEMMA, "A chat between", "<end_of_turn>\n<start_of_turn>model\n"),
    ],
)
def test_each_is_spoken_to_in_its_own_form(config, begins, asks):
    template = speaks({**FAMILY.dwarf, **config})
    pieces = template.render((Turn("user", "Who?", images=(0,)),), lambda number, drawn: (), "shown")
    assert pieces[0].startswith(begins) and asks in pieces[-1] and isinstance(pieces[1], Slot)


def test_what_cannot_be_read_is_refused(tmp_path, wide):
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        FAMILY.frame({**FAMILY.dwarf, **TILED, "image_grid_pinpoints": [[60, 112]]})
    with pytest.raises(ValueError, match="flat and spatial"):
        FAMILY.build({**FAMILY.dwarf, **TILED, "mm_patch_merge_type": "spatial_unpad"})
    desk = relative(TILED, tmp_path)
    ask = Ask((wide, wide), (Turn("user", "Which?"),), limits=Limits(new_tokens=1))
    with pytest.raises(ValueError, match="one picture"):
        list(desk.answer(ask))
    desk.close()
