"""Blocks against the library's classes, the layout's two kinds of checkpoint, regions against a slow twin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmchat import family, layout
from mmchat.dialect import Scene
from mmchat.geometry import Box, Region
from mmchat.nets import regions, tiles, weights
from mmchat.nets.bridges import LastLevel, projector
from mmchat.nets.deform import MSCrossAttnBlock, MSDeformAttn, attended_map, centres
from mmchat.nets.vision import ClipTower

SIZES = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 12,
    "patch_size": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


def tower_names(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The library's names as checkpoints have them, behind `prefix`."""
    return {f"{prefix}vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def library_tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(("select", "class_token"), [(-2, False), (-1, True), ((0, 2, -1), False)])
def test_the_tower_computes_the_librarys_hidden_states(library_tower, select, class_token: bool) -> None:
    tower = ClipTower(SIZES, select, class_token)
    state = tower_names(library_tower.state_dict(), "")
    tower.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in state.items()})
    pictures = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        theirs = library_tower(pictures, output_hidden_states=True).hidden_states
        ours = tower(pictures)
    wanted = (select,) if isinstance(select, int) else select
    for index, level in zip(wanted, ours, strict=True):
        assert torch.allclose(level, theirs[index] if class_token else theirs[index][:, 1:], atol=1e-5)


def test_layers_behind_the_last_wanted_one_are_not_run() -> None:
    tower = ClipTower(SIZES, -2)
    tower.encoder.layers[-1].forward = lambda tokens: pytest.fail("the last layer ran")
    tower(torch.zeros(1, 3, 12, 12))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden states 0\.\.3"):
        ClipTower(SIZES, -5)


@pytest.mark.parametrize("inside", [True, False], ids=["tower inside", "tower in its own folder"])
def test_both_layouts_of_a_checkpoint_give_the_same_model(library_tower, inside: bool, tmp_path: Path) -> None:
    """Official names and the leftovers of real files; the tower inside, or in the folder that the config names."""
    llava = family.load("llava")
    config = {**llava.dwarf, "mm_hidden_size": 24, "mm_vision_tower": "somebody/tower", "vision_config": SIZES}
    torch.manual_seed(1)
    model = llava.build(config)
    state = {
        name.removeprefix("language."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("language.")
    }
    state |= {f"model.mm_projector.{name}": tensor for name, tensor in model.bridge.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    eyes = library_tower.state_dict()
    checkpoint, tower = tmp_path / "checkpoint", tmp_path / "tower"
    checkpoint.mkdir()
    tower.mkdir()
    if inside:
        state |= tower_names(eyes, "model.vision_tower.vision_tower.")
    else:
        extra = {"text_model.embeddings.token_embedding.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
        save_file(tower_names(eyes, "") | extra, tower / "model.safetensors")
        (tower / "config.json").write_text(json.dumps({"vision_config": SIZES}))
    save_file({name: tensor.clone() for name, tensor in state.items()}, checkpoint / "model.safetensors")
    written = {name: value for name, value in config.items() if inside or name != "vision_config"}
    (checkpoint / "config.json").write_text(json.dumps(written))

    read = weights.read_config(checkpoint)
    folders = [checkpoint] if inside else [checkpoint, weights.tower_folder(checkpoint, read)]
    with weights.without_memory():
        ours = llava.build(read)
    weights.load(ours, folders, llava.keys, llava.drop, precision="fp32")
    pictures = torch.randn(1, 3, 12, 12)
    theirs = library_tower(pictures, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(ours.encode(pictures).vectors, model.bridge((theirs,)), atol=1e-5)
    assert torch.equal(ours.language.lm_head.weight, model.language.lm_head.weight)


@pytest.mark.parametrize("name", ["llava", "mmfuser"])
def test_names_once_mapped_stay(name: str) -> None:
    one = family.load(name)
    for ours in one.build(one.dwarf).state_dict():
        assert weights.renamed(ours, one.keys) == ours


def test_gates_keep_their_published_names() -> None:
    one = family.load("mmfuser")
    assert weights.renamed("model.mm_projector.0.gamma1", one.keys) == "bridge.0.gamma1"
    assert "bridge.0.gamma1" in one.build(one.dwarf).state_dict()


def test_mmfuser_refuses_a_config_without_its_layers() -> None:
    one = family.load("mmfuser")
    with pytest.raises(ValueError, match="five layers"):
        one.build({**one.dwarf, "mm_vision_select_layer": -2})


def test_a_fresh_fuser_gives_back_the_deepest_level() -> None:
    levels = [torch.randn(1, 9, 16) for _ in range(5)]
    assert torch.equal(MSCrossAttnBlock(16, 4, 4, 2)(levels), levels[-1])


def test_the_fuser_takes_levels_of_unequal_size() -> None:
    """The pocket model's plan: a deep 13 x 13 map asks maps of 52, 26 and 13."""
    shapes = [(52, 52), (26, 26), (13, 13), (13, 13)]
    levels = [torch.randn(2, height * width, 32, requires_grad=True) for height, width in shapes]
    block = MSCrossAttnBlock(32, 3, 8, 4)
    torch.nn.init.ones_(block.gamma1)
    out = block(levels, shapes)
    out.square().sum().backward()
    assert out.shape == (2, 169, 32) and all(level.grad is not None and level.grad.any() for level in levels)


def test_levels_that_are_no_squares_need_their_sizes() -> None:
    with pytest.raises(ValueError, match="no square map"):
        MSCrossAttnBlock(16, 1, 4, 2)([torch.zeros(1, 12, 16)] * 2)
    assert MSCrossAttnBlock(16, 1, 4, 2)([torch.zeros(1, 12, 16)] * 2, [(3, 4), (4, 3)]).shape == (1, 12, 16)


def test_without_offsets_attention_looks_at_its_own_place() -> None:
    """Equal weights, no offsets: each query reads the pixel it stands on."""
    module = MSDeformAttn(8, 1, 2, 3)
    torch.nn.init.zeros_(module.sampling_offsets.bias)
    source = torch.randn(1, 6, 8)
    seen = module.attend(torch.randn(1, 6, 8), centres(2, 3), source, [(2, 3)])
    assert torch.allclose(seen.sampled, module.value_proj(source), atol=1e-6)


def test_masked_places_count_as_nothing() -> None:
    module = MSDeformAttn(8, 1, 2, 3)
    mask = torch.ones(1, 6, dtype=torch.bool)
    seen = module.attend(torch.randn(1, 6, 8), centres(2, 3), torch.randn(1, 6, 8), [(2, 3)], mask)
    assert not seen.sampled.any()


def test_the_map_of_sampling_points_counts_every_weight_inside() -> None:
    module = MSDeformAttn(8, 2, 2, 3)
    torch.nn.init.zeros_(module.sampling_offsets.bias)
    seen = module.attend(torch.randn(1, 6, 8), centres(2, 3), torch.randn(1, 12, 8), [(2, 3), (2, 3)])
    assert torch.allclose(attended_map(seen, (2, 3)), torch.full((1, 1, 2, 3), 2.0))


def test_projectors_are_numbered_as_in_checkpoints() -> None:
    assert list(LastLevel(*projector("mlp3x_gelu", 4, 6)).state_dict()) == [
        f"{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")
    ]
    assert not LastLevel(*projector("identity", 4, 4)).state_dict()
    with pytest.raises(ValueError, match="mlp2x_gelu"):
        projector("cabstractor", 4, 6)


@pytest.mark.parametrize(
    ("box", "text"),
    [(Box(0.28, 0.34, 0.4, 0.71), "[0.28, 0.34, 0.4, 0.71]"), (Box(0, 0.104, 0.996, 1), "[0.0, 0.1, 1.0, 1.0]")],
)
def test_a_region_is_written_as_in_the_training_texts(box: Box, text: str) -> None:
    one = family.load("llava")
    assert one.mention(1, Region("box", box), one.dialect, Scene(size=(336, 336))) == (text,)


def test_the_frame_follows_the_config() -> None:
    frame = layout.frame({"image_aspect_ratio": "pad"})
    assert (frame.side, frame.way, frame.fill) == (336, "pad", (122, 116, 104))
    assert layout.frame({"vision_config": SIZES}).way == "crop"
    with pytest.raises(ValueError, match=r"1\.6"):
        layout.frame({"image_aspect_ratio": "anyres"})


def test_tiles_cover_the_picture_and_come_together_in_its_order() -> None:
    picture = Image.new("RGB", (30, 10), (200, 10, 10))
    offered = tiles.pinpoints("[(8, 16), [24, 8]]")
    views = tiles.views(picture, offered, 8)
    assert [view.size for view in views] == [(8, 8)] * 4 and tiles.grid((30, 10), offered, 8) == (3, 1)
    vectors = torch.arange(16.0).view(4, 4, 1)
    merged = tiles.merged(vectors, (30, 10), (3, 1), "spatial")[:, 0].tolist()
    assert merged == [0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 6, 7, 10, 11, 14, 15]


def slow_roi_align(maps, box, owner, size, samples, aligned):
    """torchvision's rule, one sample at a time."""
    _, channels, height, width = maps.shape
    shift = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (value * side - shift for value, side in zip(box.tolist(), (width, height) * 2, strict=True))
    across, down = (x1 - x0, y1 - y0) if aligned else (max(x1 - x0, 1.0), max(y1 - y0, 1.0))
    out = torch.zeros(channels, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            for i in range(samples):
                for j in range(samples):
                    y = y0 + down * (row + (i + 0.5) / samples) / size[0]
                    x = x0 + across * (column + (j + 0.5) / samples) / size[1]
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
                    for r, fr in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
                        for c, fc in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
                            out[:, row, column] += maps[owner, :, r, c] * fr * fc / samples**2
    return out


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_is_torchvisions(aligned: bool) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 7)
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.5, 0.5, 0.5, 0.5], [-0.3, -0.4, 1.3, 1.5], [0.9, 0.9, 1, 1]])
    owners = torch.tensor([0, 1, 1, 0])
    ours = regions.roi_align(maps, boxes, owners, (2, 3), 2, aligned)
    for box, owner, one in zip(boxes, owners.tolist(), ours, strict=True):
        assert torch.allclose(one, slow_roi_align(maps, box, owner, (2, 3), 2, aligned), atol=1e-5)


def test_no_boxes_give_no_features() -> None:
    assert regions.roi_align(torch.randn(1, 3, 5, 7), torch.zeros(0, 4)).shape == (0, 3, 7, 7)


def test_of_overlapping_boxes_the_best_stays() -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0.9, 1], [0.5, 0.5, 0.6, 0.6], [0.2, 0.2, 0.2, 0.2]])
    assert regions.nms(boxes, torch.tensor([0.5, 0.9, 0.3, 0.1])).tolist() == [1, 2, 3]
    assert regions.nms(torch.zeros(0, 4), torch.zeros(0)).tolist() == []


def test_points_are_read_at_pixel_centres() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    points = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5], [5.0, 5.0]]])
    assert regions.sample_points(maps, points)[0, :, 0].tolist() == pytest.approx([0.0, 5.0, 2.5, 0.0], abs=1e-6)
