"""MiniGPT-v2's published layout: projection and low-rank pairs in one file, Llama 2 and EVA's tower beside it."""

from __future__ import annotations

import json
from pathlib import Path

import dwarfs
import published
import pytest
import torch

from mmchat.engines.local import LocalEngine
from mmchat.families.minigpt_v2 import FAMILY, build
from mmchat.nets import weights
from mmchat.nets.eva import EvaTower, relative_places, resized
from mmchat.prompt import Turn, encode

LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
RANK = 64  # what peft's scale of 0.25 goes with


def layout(root: Path, wording: str) -> Path:
    """Three parts whose sum is the dwarf; `wording`: what stands behind lora_A in the names (peft's versions)."""
    state = dwarfs.build(FAMILY).state_dict()
    pairs, llama = {}, {}
    chance = torch.Generator().manual_seed(5)
    for name, tensor in state.items():
        if not name.startswith("language."):
            continue
        own = tensor.clone()
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            down, up = (torch.randn(shape, generator=chance) * 0.05 for shape in ((RANK, 64), (64, RANK)))
            own -= 0.25 * up @ down
            stem = "llama_model.base_model.model." + name.removeprefix("language.").removesuffix(".weight")
            pairs |= {f"{stem}.lora_A{wording}.weight": down, f"{stem}.lora_B{wording}.weight": up}
        llama[name.removeprefix("language.")] = own
    folder = root / "minigpt-v2"
    folder.mkdir(parents=True)
    sizes = {key: value for key, value in FAMILY.dwarf.items() if "size" in key or key.startswith(("num_", "rms_"))}
    published.write(root / "Llama-2-7b-chat-hf", llama, sizes | {"model_type": "llama", "max_position_embeddings": 512})
    tower = {name.removeprefix("vision."): tensor for name, tensor in state.items() if name.startswith("vision.")}
    tower |= {"blocks.39.norm1.weight": torch.ones(32), "head.weight": torch.ones(2, 32)}
    torch.save(tower, root / "eva_vit_g.pth")
    own = {name.removeprefix("bridge."): state[name] for name in state if name.startswith("bridge.llama_proj")}
    torch.save({"model": own | pairs, "epoch": 3}, folder / "checkpoint.pth")
    config = {"model_type": "minigpt_v2", "llama_model": "Llama-2-7b-chat-hf", "vit_model": "eva_vit_g.pth"}
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": FAMILY.dwarf["vision_config"]}))
    dwarfs.write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("wording", ["", ".default"])
def test_the_three_parts_are_the_model(tmp_path, wording):
    engine = LocalEngine.open(layout(tmp_path, wording), FAMILY, "fp32", "cpu")
    for name, tensor in dwarfs.build(FAMILY).state_dict().items():
        if "ln_vision" in name:  # never published: one and zero
            tensor = torch.full_like(tensor, float(name.endswith("weight")))
        assert torch.allclose(engine.model.state_dict()[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(tmp_path, picture, precision):
    assert published.answer(layout(tmp_path, ""), FAMILY, picture, precision).done


def test_each_of_the_six_marks_has_a_button():
    """The card's task identifiers, each in front of what training asked behind it."""
    asked = {task.name: task.pattern for task in FAMILY.template.tasks}
    marks = {"describe": "grounding", "find": "refer", "detect": "detection", "region": "identify", "short": "vqa"}
    assert all(asked[name].startswith(f"[{mark}] ") for name, mark in marks.items())
    turns = (Turn("user", "", images=(0,)),)
    before, _, behind = FAMILY.template.render(turns, lambda number, region: (), "caption")
    assert before + behind == "<s>[INST] <Img></Img> [caption] Briefly describe this image. [/INST]"


def test_a_talk_begins_twice_and_each_question_once_more(tmp_path):
    """The tokenizer's start and the one that is written; later questions have the written one alone."""
    engine = LocalEngine.open(layout(tmp_path, ""), FAMILY, "fp32", "cpu")
    (start,) = engine.tokens.start
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    prompt = FAMILY.template.render(turns, lambda number, region: ())
    ids = encode(prompt, engine.tokens.ids, engine.tokens.start)
    assert ids[:2] == [start, start] and ids.count(start) == 3


def test_without_its_tower_it_does_not_load(tmp_path):
    folder = layout(tmp_path, "")
    (tmp_path / "eva_vit_g.pth").unlink()
    with pytest.raises(ValueError, match="vision tower"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


def test_as_published_it_sees_448_pixels_whatever_its_table_has_places_for():
    with weights.without_memory():
        assert build({"llm_config": LLAMA_7B}).vision.rows == 32


def test_a_stored_position_table_is_stretched_to_the_grid():
    stored = torch.randn(1, 1 + 16, 3)
    made = resized(stored, 8)
    assert made.shape == (1, 65, 3) and torch.equal(made[:, 0], stored[:, 0])
    assert resized(stored, 4) is stored


@pytest.mark.parametrize("options", [
    {"use_rel_pos_bias": True}, {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False},
    {"qkv_bias": False, "init_values": 0.1},
])  # fmt: skip
def test_the_options_of_the_tower_change_its_parameters_and_run(options):
    tower = EvaTower({"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2} | options)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert tower(torch.randn(2, 3, 16, 16))[0].shape == (2, 16, 8)


def test_relative_places_know_direction():
    index = relative_places(2)
    assert index[1, 2] != index[2, 1] and index[1, 2] == index[3, 4] and index[0, 0] == index.max()
