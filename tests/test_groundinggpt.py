"""GroundingGPT's published layout, its roads for videos and sounds, and its boxes on a wide picture."""

from __future__ import annotations

import dwarfs
import published
import pytest
import torch

from mmchat.desk import home
from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.groundinggpt import FAMILY, build, moments
from mmchat.nets import weights

NAMES = (
    (r"^bridge\.", "model.mm_vision_projector."), (r"^(?:watching|hearing)\.", "model."), (r"^language\.", ""),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two .bin shards, the tower in a folder of its own, and a trunk for sound that is left unread."""
    root = tmp_path_factory.mktemp("grounding")
    state = dwarfs.build(FAMILY).state_dict()
    named = published.named(state, NAMES) | {"model.audio_encoder.trunk.weight": torch.ones(3)}
    config = {key: value for key, value in FAMILY.dwarf.items() if key != "vision_config"}
    config |= {"model_type": "LEGO", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    tower = published.named(state, ((r"^vision\.", "vision_model."),))
    published.write(root / "clip-vit-large-patch14-336", tower, {"vision_config": FAMILY.dwarf["vision_config"]})
    return published.write(root / "GroundingGPT", named, config, "bin")


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    assert published.answer(folder, FAMILY, picture, precision).done


def test_videos_and_sounds_become_vectors_of_the_language_model(folder):
    model = LocalEngine.open(folder, FAMILY, "fp32", "cpu").model
    with torch.inference_mode():
        assert model.video(torch.randn(5, 3, 28, 28)).shape == (6, 64)
        assert model.sound(torch.randn(3, 16)).shape == (4, 64)
        with pytest.raises(ValueError, match="pick at most"):
            model.video(torch.randn(9, 3, 28, 28))


def test_frames_are_picked_evenly():
    assert moments(3) == [0, 1, 2] and moments(0) == []
    assert moments(128)[:3] == [0, 2, 4] and len(moments(1000)) == 64 and max(moments(1000)) < 1000


def test_boxes_of_an_answer_come_back_to_a_wide_picture():
    placement = FAMILY.frame(FAMILY.dwarf).place((900, 300))
    grounded = FAMILY.dialect.read("a kite [0.100, 0.400, 0.300, 0.600]", Scene((), placement.fitted))
    box = home(grounded, placement).spans[0].places[0]
    assert box.pixels((900, 300)) == pytest.approx((90, 60, 270, 240), abs=0.5)


def test_a_span_of_time_is_read_as_one():
    (moment,) = FAMILY.dialect.read("The door opens at {0.25, 0.50}.", Scene()).moments
    assert (moment.kind, moment.first, moment.last) == ("span", 0.25, 0.5)


def test_the_published_sizes_are_those_of_the_card():
    config = {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32,
        "vocab_size": 32009, "mm_vision_hidden_size": 1024,
    }  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    assert shapes["watching.query_tokens"] == (1, 32, 768) and shapes["watching.llama_proj.weight"] == (4096, 768)
    assert shapes["watching.video_frame_position_embedding.weight"] == (64, 768)
    assert shapes["hearing.audio_position_embedding.weight"] == (8, 1024)
    assert shapes["watching.Qformer.bert.encoder.layer.10.crossattention.self.key.weight"] == (768, 1408)
    assert "watching.Qformer.bert.encoder.layer.11.crossattention.self.key.weight" not in shapes
    assert shapes["bridge.2.weight"] == (4096, 4096)
