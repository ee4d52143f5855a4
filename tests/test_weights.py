"""Weights fit exactly or do not load: dwarfs as they come, in shards, as pickles, damaged, of another family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dwarfs
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat import family, models
from mmchat.engines.local import LocalEngine
from mmchat.nets import quantise, weights

FAMILY = family.load("mmfuser")  # its gamma keys are what careless loaders rename


@pytest.fixture
def folder(dwarf_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(dwarf_folder("mmfuser"), tmp_path / "dwarf"))


def loaded(folder: Path, precision: str = "fp32", **others):
    with weights.without_memory():
        model = FAMILY.build(weights.read_config(folder))
    weights.load(model, folder, FAMILY.keys, FAMILY.drop, FAMILY.fold, precision, FAMILY.keep, **others)
    return model


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that LLaVA's code gives the same parameters."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("language.")
        name = (
            name.replace("vision.", "model.vision_tower.vision_tower.vision_model.", 1)
            if name.startswith("vision.")
            else name
        )
        name = name.replace("bridge.", "model.mm_projector.", 1) if name.startswith("bridge.") else name
        out[name] = tensor
    return out


def same(model, state) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_every_parameter_arrives(folder):
    assert same(loaded(folder), state_of(folder))


def test_published_names_and_ours_load_the_same(folder):
    state = state_of(folder)
    save_file(published(state), folder / "model.safetensors")
    assert same(loaded(folder), state)


def test_shards_with_an_index_load_the_same(tmp_path, folder):
    dwarfs.write(FAMILY, tmp_path / "shards", shards=3)
    assert same(loaded(tmp_path / "shards"), state_of(folder))


def test_a_pickle_of_tensors_loads_the_same(folder):
    state = state_of(folder)
    torch.save(published(state), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(loaded(folder), state)


def test_an_old_pickle_loads_the_same(folder):
    state = state_of(folder)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert same(loaded(folder), state)


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_with_code_is_not_run(folder, capsys):
    torch.save({"a": Harmful()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="convert it to safetensors"):
        loaded(folder)
    assert "run" not in capsys.readouterr().out


def test_half_precision_files_are_computed_in_fp32(tmp_path):
    dwarfs.write(FAMILY, tmp_path, dtype=torch.float16)
    assert {parameter.dtype for parameter in loaded(tmp_path).parameters()} == {torch.float32}


def test_a_missing_gamma_is_named(folder):
    state = state_of(folder)
    del state["bridge.0.gamma1"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(weights.WrongWeights) as caught:
        loaded(folder)
    assert caught.value.missing == ("bridge.0.gamma1",) and "bridge.0.gamma1" in str(caught.value)


def test_what_is_left_over_is_named(folder):
    save_file({**state_of(folder), "language.extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(weights.WrongWeights) as caught:
        loaded(folder)
    assert caught.value.left == ("language.extra.weight",)


def test_another_shape_is_named_with_both_shapes(folder):
    save_file({**state_of(folder), "bridge.0.gamma1": torch.zeros(7)}, folder / "model.safetensors")
    with pytest.raises(weights.WrongWeights, match=r"gamma1: \[7\] in the file, \[32\] in the model"):
        loaded(folder)


def test_a_missing_tower_says_where_to_put_it(folder):
    state = {name: tensor for name, tensor in state_of(folder).items() if not name.startswith("vision.")}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(weights.WrongWeights, match="no vision tower: put"):
        loaded(folder)


def test_a_tower_in_a_folder_of_its_own_is_found(folder):
    state = state_of(folder)
    tower = folder.parent / "clip-dwarf"
    tower.mkdir()
    eyes = {name.replace("vision.", "vision_model.", 1): t for name, t in state.items() if name.startswith("vision.")}
    save_file({**eyes, "logit_scale": torch.zeros(())}, tower / "model.safetensors")
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("vision.")}
    save_file(published(rest), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"vision_config": config.pop("vision_config")}))
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "somebody/clip-dwarf"}))
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    assert same(engine.model, state)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(path: Path) -> None:
    path.write_bytes(b"\x20" * 200)


def damage_gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_empty, "is empty .0 bytes.: download it again"),
        (damage_pointer, "is a Git LFS pointer, not the weights: run `git lfs pull`"),
        (damage_cut, "is cut off or damaged: download it again"),
        (damage_header, "is cut off or damaged: download it again"),
        (damage_gone, "There are no weights in"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_a_remedy(folder, damage, sentence):
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match=sentence) as caught:
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    assert "\n" not in str(caught.value)


def test_a_cut_pickle_is_one_sentence(folder):
    torch.save(state_of(folder), folder / "pytorch_model.bin")
    damage_cut(folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cut off or damaged"):
        loaded(folder)


def test_a_shard_that_the_index_names_is_missed(tmp_path):
    dwarfs.write(FAMILY, tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        loaded(tmp_path)


def test_another_type_of_model_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(ValueError, match="is of the type 'qwen2', and MMFuser opens"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json"])
def test_a_folder_that_is_not_whole_says_what_it_lacks(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=f"There is no {lost}"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


@pytest.mark.parametrize(("precision", "count"), [("int8", 14), ("nf4", 12)])
def test_only_the_language_models_linear_layers_are_quantised(folder, precision, count):
    import bitsandbytes as bnb

    kind = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}[precision]
    model = loaded(folder, precision)
    linear = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    packed = {path for path, found in linear.items() if type(found) is kind}
    wanted = {path for path in linear if path.startswith("language.model.layers.")}
    if precision == "nf4":  # rows of 96, which only dwarfs have
        wanted = {path for path in wanted if linear[path].in_features % 64 == 0}
    assert packed == wanted and len(packed) == count
    assert all(type(found) is torch.nn.Linear for path, found in linear.items() if path not in packed)
    assert all(type(linear[path]) is torch.nn.Linear for path in linear if path.startswith(("vision.", "bridge.")))
    assert type(model.language.lm_head) is torch.nn.Linear


def test_a_name_to_keep_that_no_module_has_is_refused(folder):
    with weights.without_memory():
        model = FAMILY.build(weights.read_config(folder))
    with pytest.raises(ValueError, match="no module vision_tower to keep"):
        weights.linear_layers(model, ("vision_tower",))


def test_four_bits_stay_close_to_what_they_stand_for(folder):
    whole, packed = loaded(folder), loaded(folder, "nf4")
    path = "language.model.layers.0.mlp.up_proj"
    x = torch.randn(4, whole.get_submodule(path).in_features, generator=torch.Generator().manual_seed(0))
    one, other = whole.get_submodule(path)(x), packed.get_submodule(path)(x)
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.98


def test_a_tied_head_needs_no_tensor_of_its_own(folder):
    config = {**json.loads((folder / "config.json").read_text()), "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    state = state_of(folder)
    del state["language.lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    model = loaded(folder)
    assert model.language.lm_head.weight is model.language.model.embed_tokens.weight
    assert not model.language.lm_head.weight.is_meta


@pytest.mark.parametrize("name", family.names())
def test_renaming_what_is_renamed_changes_nothing(name):
    record = family.load(name)
    with weights.without_memory():
        names = list(record.build(record.dwarf).state_dict())
    assert [weights.renamed(one, record.keys) for one in names] == names


def test_building_without_memory_keeps_buffers_real():
    with weights.without_memory():
        model = FAMILY.build(FAMILY.dwarf)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, int8, nf4"):
        weights.settle_precision("fp8")


def test_a_processor_without_bf16_gets_fp32_and_a_warning_where_bf16_is_asked_for(monkeypatch):
    monkeypatch.setattr(quantise, "native_bf16", lambda device="cpu": False)
    assert weights.settle_precision("auto") == ("fp32", torch.float32, ())
    name, dtype, notes = weights.settle_precision("bf16")
    assert (name, dtype) == ("bf16", torch.bfloat16) and "choose fp32" in notes[0]


def test_a_processor_with_bf16_gets_it(monkeypatch):
    monkeypatch.setattr(quantise, "native_bf16", lambda device="cpu": True)
    assert weights.settle_precision("auto") == ("bf16", torch.bfloat16, ())


def test_models_are_listed_from_a_file(tmp_path):
    (tmp_path / "models.toml").write_text('[[model]]\nname = "a"\nfamily = "llava"\nfolder = "w/a"\n')
    entry = models.find(None, tmp_path / "models.toml")
    assert (entry.name, entry.family, entry.folder, entry.precision) == ("a", "llava", tmp_path / "w/a", "auto")


def test_an_unknown_model_names_the_known_ones(tmp_path):
    (tmp_path / "models.toml").write_text('[[model]]\nname = "a"\nfamily = "llava"\nfolder = "w/a"\n')
    with pytest.raises(ValueError, match="no model 'b': choose one of a"):
        models.find("b", tmp_path / "models.toml")


def test_every_listed_model_is_of_a_known_family():
    assert {entry.family for entry in models.listed()} <= {*family.names(), "pocket"}
