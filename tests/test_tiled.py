"""Pictures in tiles and as a whole: where things lie, and checkpoints of the two families from file to answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import independent
import numpy as np
import pytest
import test_internvl
import test_smolvlm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from test_native import filled, noise
from torch import nn
from transformers import InternVLForConditionalGeneration, SmolVLMForConditionalGeneration

from mmchat import family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.geometry import Box
from mmchat.nets import weights
from mmchat.nets.tiled import Tiled, shuffled, squares
from mmchat.tiled import Tiled as Frame

LIBRARYS = {"internvl": InternVLForConditionalGeneration, "smolvlm": SmolVLMForConditionalGeneration}
HELP = {"internvl": test_internvl, "smolvlm": test_smolvlm}
ASK = Ask((noise(270, 90),), (Turn("user", "What is here?"),), limits=Limits(new_tokens=12))
# Of the published config.json files, what decides names and shapes, and some of the rest that stands there.
REAL: dict[str, dict[str, Any]] = {
    "internvl": {  # InternVL3-1B-hf
        "model_type": "internvl", "downsample_ratio": 0.5, "image_seq_length": 256, "image_token_id": 151667,
        "projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0",
        "text_config": {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151674, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768, "rope_theta": 1000000.0, "sliding_window": None,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "torch_dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "internvl_vision", "attention_bias": True, "hidden_size": 1024, "image_size": [448, 448],
            "patch_size": [14, 14], "num_hidden_layers": 24, "num_attention_heads": 16, "use_qk_norm": False,
        },
    },
    "smolvlm": {  # SmolVLM2-500M-Video-Instruct
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 4, "tie_word_embeddings": False,
        "use_cache": False, "use_reentrant_checkpointing": False, "vocab_size": 49280,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"], "model_type": "llama", "head_dim": 64, "hidden_size": 960,
            "intermediate_size": 2560, "is_llama_config": True, "max_position_embeddings": 8192,
            "neftune_noise_alpha": 0.0, "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5,
            "pad_token_id": 2, "pixel_shuffle_factor": 4, "qk_layer_norms": False, "rms_norm_eps": 1e-05,
            "rope_interleaved": False, "rope_theta": 100000, "torch_dtype": "bfloat16", "vocab_size": 49280,
        },
        "vision_config": {
            "model_type": "smolvlm_vision", "hidden_size": 768, "image_size": 512, "num_attention_heads": 12,
            "max_image_size": {"longest_edge": 512}, "patch_size": 16, "size": {"longest_edge": 2048},
            "tie_word_embeddings": False, "use_base_siglip": False,
        },
    },
}  # fmt: skip


def theirs(name: str, config: dict[str, Any]) -> Any:
    """The library's model of a config.json."""
    return independent.made(LIBRARYS[name], config)


@pytest.fixture(scope="module", params=sorted(LIBRARYS))
def checkpoint(request, tmp_path_factory):
    """A family's name, and a folder that the library wrote in several shards."""
    folder = tmp_path_factory.mktemp(request.param)
    HELP[request.param].save(filled(theirs(request.param, HELP[request.param].CONFIG)), folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return request.param, folder


@pytest.fixture(scope="module")
def desk(checkpoint):
    return Desk(LocalEngine.open(checkpoint[1], family.load(checkpoint[0]), "fp32", "cpu"))


class Brightness(nn.Module):
    """A tower that sees how bright each cell of 14 x 14 pixels is."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor]:
        return (F.avg_pool2d(pictures.mean(1, keepdim=True), 14).flatten(2).transpose(1, 2),)


class Last(nn.Module):
    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return levels[-1]


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (640, 480), (112, 112), (100, 100)])
@pytest.mark.parametrize("longest", [0, 448])
def test_maps_lie_where_the_picture_has_it(size, longest):
    """A bright patch of a picture is bright in the features, in the vectors, and in what both views say of it."""
    patch = Box(0.25, 0.5, 0.5, 1.0)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), tuple(round(one) for one in patch.pixels(size)))
    frame = Frame(112, longest=longest, resample="bilinear")
    pixels, placement = frame.fit(image)
    assert placement.into(patch) == patch  # the whole picture lies on the grid, whatever its shape
    model = Tiled(nn.Module(), Brightness(), Last(), 112, 64, 12)
    seen = model.see(torch.from_numpy(pixels)[None])
    across, down = seen.kept[0]
    assert len(seen.images[0]) == 64 * (across * down + (across * down > 1))
    spread = model.spread(seen.images[0][:, 0], seen, 0)
    for level in (seen.levels["vision"][0][0], seen.levels["bridge"][0][0], spread):
        assert level.shape == (8 * down, 8 * across)
        rows, columns = (level > 0.5).nonzero().T.numpy()
        ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        found = np.divide(ends, (8 * across, 8 * down) * 2)
        cells = (8, 8) if level is spread else (8 * across, 8 * down)  # the whole picture has eight along each side
        assert (np.abs(found - (patch.x0, patch.y0, patch.x1, patch.y1)) <= 1.01 / np.array(cells * 2)).all()


def test_the_whole_and_its_tiles_count_alike():
    model = Tiled(nn.Module(), Brightness(), Last(), 112, 64, 12)
    seen = model.see(torch.zeros(1, 3, 224, 224))  # two tiles below the whole
    assert seen.kept[0] == (2, 1)
    tile, whole = torch.zeros(192), torch.zeros(192)
    tile[64 + 8], whole[128:] = 1, 1
    found = model.spread(tile, seen, 0)
    assert found[1, 8] == 0.5 and found.sum() == 0.5  # the right tile's second row begins in the middle of the map
    assert torch.allclose(model.spread(whole, seen, 0), torch.tensor(0.5))


def test_views_are_cut_as_the_frame_says_they_lie():
    frame = Frame(8, tiles=(6, 6))
    assert frame.place((300, 200)).fitted == (24, 16)
    canvas = torch.arange(3 * 24 * 24).reshape(3, 24, 24)
    views, grid = squares(canvas, 8)
    assert grid == (3, 2) and len(views) == len(frame.views((300, 200))) == 7
    for number, view in enumerate(frame.views((300, 200))[:-1]):
        left, top = (int(-one * 8) for one in view.offset)
        assert torch.equal(views[number], canvas[:, 8 + top : 16 + top, left : left + 8])
    assert torch.equal(views[-1], canvas[:, :8, :8])


def test_a_square_of_cells_becomes_one_row_by_row():
    level = torch.arange(16).reshape(1, 16, 1)
    assert shuffled(level, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_shards_load_to_the_last_name(checkpoint, tmp_path):
    name, folder = checkpoint
    for damage in ("missing", "left"):
        copy = tmp_path / damage
        copy.mkdir()
        state: dict[str, torch.Tensor] = {}
        for file in folder.glob("model-*.safetensors"):
            state |= load_file(file)
        if damage == "missing":
            del state[next(key for key in state if "connector" in key or "multi_modal_projector.linear_2.bias" in key)]
        else:
            state["vision_tower.more"] = torch.zeros(2)
        save_file(state, copy / "model.safetensors")
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (copy / file).write_text((folder / file).read_text())
        with pytest.raises(weights.WrongWeights) as caught:
            LocalEngine.open(copy, family.load(name), "fp32", "cpu")
        assert len(getattr(caught.value, damage)) == 1


def test_a_head_that_is_not_the_table_it_is_said_to_be_is_refused(checkpoint):
    """Both stand in the files: the one must not silently take the other's place."""
    name, folder = checkpoint
    with pytest.raises(ValueError, match="which config.json says it is: write .tie_word_embeddings.: false"):
        LocalEngine.open(folder, family.load(name), "fp32", "cpu", otherwise={"tie_word_embeddings": True})


def test_four_bits_quantise_the_words_layers_alone_and_answer(checkpoint):
    engine = LocalEngine.open(checkpoint[1], family.load(checkpoint[0]), "nf4", "cpu")
    packed = {path for path, part in engine.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert "language.model.layers.0.self_attn.q_proj" in packed
    assert not [path for path in packed if not path.startswith("language.model.layers.")]
    assert list(Desk(engine).answer(ASK))[-1].done
    engine.close()


def test_it_streams_and_stops_at_the_next_token(desk, monkeypatch):
    answers = [answer.raw for answer in desk.answer(ASK)]
    pairs = zip(answers, answers[1:], strict=False)
    assert len(answers) > 3 and all(after.startswith(before) for before, after in pairs)
    steps: list[int] = []
    step = desk.engine._step
    monkeypatch.setattr(desk.engine, "_step", lambda talk, index: steps.append(index) or step(talk, index))
    speaking = desk.answer(ASK)
    for _ in range(3):
        next(speaking)
    speaking.close()
    assert len(steps) == 2


@pytest.mark.parametrize("kind", ["attention", "logit lens", "feature norm: bridge", "feature norm"])
def test_maps_have_the_shape_of_the_joined_tiles(desk, kind, monkeypatch):
    answer = list(desk.answer(ASK))[-1]
    family_ = desk.engine.family
    across, down = (length // 56 for length in family_.frame(desk.engine.config).place((270, 90)).fitted)
    monkeypatch.setattr(desk.engine, "family", type("Open", (), {**vars(family_), "heats": (kind,)}))
    trace, _, _ = desk.trace(ASK, answer, kind)
    each = 4 if kind == "feature norm" else 2
    assert trace.map.shape == (each * down, each * across) and trace.map.max() == 1


def test_attention_is_that_of_the_pictures_own_vectors(desk):
    """What is said of the words between tiles is left out, and the rest is in order."""
    ready = desk._prepare(ASK)
    seen, model = ready.sight.content, desk.engine.model
    _, parts = desk.engine._laid_out(ready.prompt, seen)
    (filling,) = [part.vectors for part in parts if not isinstance(part, int)]
    order = torch.zeros(len(filling))
    for number, vector in enumerate(seen.images[0]):
        (at,) = (filling == vector).all(1).nonzero()[:, 0].tolist()
        order[at] = number + 1
    found = model.spread(order, seen, 0)
    across, down = seen.kept[0]
    plain = Tiled.spread(model, torch.arange(len(seen.images[0])) + 1.0, seen, 0)
    assert torch.equal(found, plain) and found.shape == (2 * down, 2 * across)


@pytest.mark.parametrize("name", sorted(REAL))
def test_the_published_sizes_land_name_for_name(name):
    record = family.load(name)
    with torch.device("meta"):
        library = theirs(name, {**REAL[name], "tie_word_embeddings": False})
    with weights.without_memory():
        model = record.build(REAL[name])
    wanted = {key: tuple(one.shape) for key, one in model.state_dict().items()}
    published = {key: tuple(one.shape) for key, one in library.state_dict().items()}
    spellings = [published]
    if name == "internvl":  # as releases before 4.53, and from 5 on, spell them
        older = {
            key.replace("model.language_model.", "language_model.model.")
            .replace("model.vision_tower.", "vision_tower.")
            .replace("model.multi_modal_projector.", "multi_modal_projector.")
            .replace("lm_head.", "language_model.lm_head."): shape
            for key, shape in published.items()
        }
        spellings.append(older)
    for spelling in spellings:
        assert {weights.renamed(key, record.keys): shape for key, shape in spelling.items()} == wanted
    assert model.cells == {"internvl": 256, "smolvlm": 64}[name]
    assert model.picture_tokens == {"internvl": 13 * 256, "smolvlm": 17 * 64}[name]
    assert (
        record.frame(REAL[name]).place((1600, 1200)).fitted == {"internvl": (1792, 1344), "smolvlm": (2048, 1536)}[name]
    )


def test_the_line_in_models_toml_may_ask_for_fewer_tiles(checkpoint):
    name, folder = checkpoint
    entry = {"internvl": {"max_dynamic_patch": 2}, "smolvlm": {"longest_edge": 112}}[name]
    engine = LocalEngine.open(folder, family.load(name), "fp32", "cpu", otherwise=entry)
    assert engine.family.frame(engine.config).place((270, 90)).fitted == (112, 56)
    assert list(Desk(engine).answer(ASK))[-1].done
    assert json.loads(Path(folder, "config.json").read_text()).get("longest_edge") != 112
