"""Weights fit exactly or do not load: dwarfs as they come, in shards, as pickles, damaged, of another family."""

from __future__ import annotations

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dwarfs
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat import family, models
from mmchat.engines.local import LocalEngine
from mmchat.nets import files, quantise, saving, weights

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


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", "64"), ("hidden_size", -4), ("hidden_size", None), ("num_attention_heads", 7),
     ("vision_config", {**FAMILY.dwarf["vision_config"], "num_attention_heads": 5})],
)  # fmt: skip
def test_a_size_that_is_none_is_told_in_a_sentence(folder, name, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ValueError, match=r"config\.json"):
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


# Where parts come together.


def opened(record, folder: Path, precision: str = "fp32", parts: tuple = (), drop: tuple = (), **others):
    """By the road that the engine takes."""
    config = weights.read_config(folder, parts)
    with weights.without_memory():
        model = record.build(config)
    found = weights.sources(folder, config, parts)
    weights.load(
        model, found, record.keys, (*record.drop, *drop), record.fold, precision, record.keep, parts=parts, **others
    )
    return model


def split_off(state: dict[str, torch.Tensor], beginning: str) -> tuple[dict, dict]:
    return (
        {name: tensor for name, tensor in state.items() if name.startswith(beginning)},
        {name: tensor for name, tensor in state.items() if not name.startswith(beginning)},
    )


def base_and_delta(folder: Path, dtype: torch.dtype = torch.float16) -> tuple[dict, dict, dict]:
    """What a difference is made of: the target, a base with two tokens less, and what is published."""
    target = {name: tensor.to(dtype) for name, tensor in state_of(folder).items()}
    random = torch.Generator().manual_seed(1)
    language, _ = split_off(target, "language.")
    base = {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=random)).to(dtype)
        for name, tensor in language.items()
    }
    for name in ("language.model.embed_tokens.weight", "language.lm_head.weight"):
        base[name] = base[name][:-2].clone()
    delta = {}
    for name, tensor in target.items():
        delta[name] = tensor.clone()
        if name in base:
            rows = delta[name][: len(base[name])]
            rows.copy_((tensor[: len(base[name])].float() - base[name].float()).to(dtype))
    return target, base, delta


DELTA = weights.Part("base_model", "language model", "thin-llama", "language.", way="delta",
                     alone=(r"^vision\.", r"^bridge\."))  # fmt: skip


def test_a_difference_is_added_to_its_base_and_new_tokens_stay(folder):
    _, base, delta = base_and_delta(folder)
    (folder.parent / "thin-llama").mkdir()
    plain = {name.removeprefix("language."): tensor for name, tensor in base.items()}
    save_file(
        plain | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        folder.parent / "thin-llama" / "model.safetensors",
    )
    save_file(delta, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "base_model": "x/thin-llama"})
    )
    model = opened(FAMILY, folder, parts=(DELTA,))
    for name, tensor in model.state_dict().items():
        wanted = delta[name].clone()
        if name in base:
            rows = len(base[name])
            wanted[:rows] = wanted[:rows] + base[name]  # as the authors' scripts add: in the stored type
        assert torch.equal(tensor, wanted.float()), name


def test_a_difference_without_its_base_says_what_to_put_where(folder):
    named = folder.rename(folder.parent / "dwarf-7b-delta-v1")
    with pytest.raises(
        ValueError, match="difference to the language model thin-llama, which is not there: put its folder"
    ):
        opened(FAMILY, named, parts=(DELTA,))


def test_a_difference_that_was_added_already_is_left_alone(folder):
    named = folder.rename(folder.parent / "dwarf-7b-delta-v1")
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**config, "base_model": None}))
    assert same(opened(FAMILY, named, parts=(DELTA,)), state_of(named))


def test_a_base_of_another_shape_is_refused(folder):
    _, base, delta = base_and_delta(folder)
    (folder.parent / "thin-llama").mkdir()
    base["language.model.layers.0.mlp.up_proj.weight"] = torch.zeros(5, 64)
    save_file(base, folder.parent / "thin-llama" / "model.safetensors")
    save_file(delta, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "base_model": "thin-llama"})
    )
    with pytest.raises(
        ValueError, match="up_proj.weight is .5, 64. in the language model and .96, 64. .*take the right base"
    ):
        opened(FAMILY, folder, parts=(DELTA,))


def pairs_for(state: dict[str, torch.Tensor], rank: int = 4) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(2)
    return {
        name: (
            torch.randn(rank, tensor.shape[1], generator=random),
            torch.randn(tensor.shape[0], rank, generator=random),
        )
        for name, tensor in state.items()
        if name.endswith(("q_proj.weight", "v_proj.weight")) and name.startswith("language.")
    }


def merged(state, pairs, scale: float) -> dict[str, torch.Tensor]:
    return {
        name: tensor + scale * (pairs[name][1] @ pairs[name][0]) if name in pairs else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("middle", ["", "default."])
def test_low_rank_pairs_inside_a_training_scripts_file_are_folded(folder, middle):
    state = state_of(folder)
    language, rest = split_off(state, "language.")
    pairs = pairs_for(state)
    beside = folder.parent / "Llama-thin-chat"
    beside.mkdir()
    save_file(
        {name.removeprefix("language."): tensor for name, tensor in language.items()}, beside / "model.safetensors"
    )
    stored = dict(rest)
    for name, (first, second) in pairs.items():
        path = f"language.base_model.model.{name.removeprefix('language.').removesuffix('.weight')}"
        stored |= {f"{path}.lora_A.{middle}weight": first, f"{path}.lora_B.{middle}weight": second}
    (folder / "model.safetensors").unlink()
    torch.save(
        {"model": stored, "optimizer": {"state": [torch.zeros(3)]}, "config": {"a": 1}, "epoch": 3},
        folder / "checkpoint_stage3.pth",
    )
    part = weights.Part("llama_model", "language model", "Llama-thin-chat", "language.", "language.", scale=0.25)
    model = opened(FAMILY, folder, parts=(part,))
    wanted = merged(state, pairs, 0.25)
    assert all(torch.allclose(tensor, wanted[name], atol=1e-5) for name, tensor in model.state_dict().items())
    assert not torch.allclose(model.state_dict()[next(iter(pairs))], state[next(iter(pairs))], atol=1e-2)


def test_low_rank_pairs_without_their_model_say_what_to_put_where(folder):
    _, rest = split_off(state_of(folder), "language.")
    save_file(rest, folder / "model.safetensors")
    part = weights.Part("llama_model", "language model", "Llama-thin-chat", "language.", "language.", scale=0.25)
    with pytest.raises(weights.WrongWeights, match=r"no language model: put .*own folder \(Llama-thin-chat\), which"):
        opened(FAMILY, folder, parts=(part,))


def adapter(folder: Path, pairs, **more) -> Path:
    """An adapter's folder as peft writes it, for the checkpoint in `folder`."""
    place = folder.parent / "adapter"
    place.mkdir()
    stored = {}
    for name, (first, second) in pairs.items():
        path = f"base_model.model.{name.removeprefix('language.').removesuffix('.weight')}"
        stored |= {f"{path}.lora_A.weight": first.contiguous(), f"{path}.lora_B.weight": second.contiguous()}
    save_file(stored, place / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "base_model_name_or_path": f"somebody/{folder.name}", **more}
    (place / "adapter_config.json").write_text(json.dumps(about))
    return place


@pytest.mark.parametrize(
    ("more", "scale"), [({}, 0.5), ({"use_rslora": True}, 1.0), ({"alpha_pattern": {"q_proj": 8, "v_proj": 8}}, 2.0)]
)
def test_an_adapters_folder_opens_with_its_base(folder, more, scale):
    state = state_of(folder)
    pairs = pairs_for(state)
    model = opened(FAMILY, adapter(folder, pairs, **more))
    wanted = merged(state, pairs, scale)
    assert all(torch.allclose(tensor, wanted[name], atol=1e-5) for name, tensor in model.state_dict().items())


def test_an_adapter_of_layers_that_are_stored_turned_is_turned_too(folder):
    state = state_of(folder)
    pairs = pairs_for(state)
    model = opened(FAMILY, adapter(folder, pairs, fan_in_fan_out=True))
    for name, tensor in model.state_dict().items():
        wanted = state[name] + 0.5 * (pairs[name][1] @ pairs[name][0]).T if name in pairs else state[name]
        assert torch.allclose(tensor, wanted, atol=1e-5), name


def test_an_adapter_speaks_with_the_tokenizer_of_its_base(folder):
    place = adapter(folder, pairs_for(state_of(folder)))
    assert not list(place.glob("tokenizer*"))  # as LLaVA's own adapters are published
    assert models.missing(models.Entry("a", "mmfuser", place)) == ""
    assert LocalEngine.open(place, FAMILY, "fp32", "cpu").tokens.ids("a")


def test_an_adapter_without_its_base_says_so(folder):
    place = adapter(folder, pairs_for(state_of(folder)), base_model_name_or_path="somebody/else")
    (place / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(
        ValueError, match="is an adapter of somebody/else, which is not there: put its folder beside it"
    ):
        opened(FAMILY, place)


def test_half_a_pair_is_named(folder):
    place = adapter(folder, pairs_for(state_of(folder)))
    state = load_file(place / "adapter_model.safetensors")
    del state["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(state, place / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="language.model.layers.0.self_attn.q_proj.weight lacks its half lora_B"):
        opened(FAMILY, place)


def test_a_fold_is_given_what_it_takes_and_no_more(folder):
    state = state_of(folder)
    table = state.pop("language.model.embed_tokens.weight")
    save_file(
        {**state, "old_tokens": table[:300].clone(), "new_tokens": table[300:].clone()}, folder / "model.safetensors"
    )
    given = []

    def join(parts):
        given.append(set(parts))
        return {"language.model.embed_tokens.weight": torch.cat((parts["old_tokens"], parts["new_tokens"]))}

    with weights.without_memory():
        model = FAMILY.build(weights.read_config(folder))
    weights.load(
        model, folder, FAMILY.keys, FAMILY.drop, weights.Fold((r"^(old|new)_tokens$",), join), "fp32", FAMILY.keep
    )
    assert given == [{"old_tokens", "new_tokens"}]
    assert torch.equal(model.language.model.embed_tokens.weight, table)


def test_a_fold_that_lacks_a_tensor_says_so(folder):
    fold = weights.Fold(
        (r"^(old|new)_tokens$",), lambda parts: {"language.model.embed_tokens.weight": parts["old_tokens"]}
    )
    state = state_of(folder)
    del state["language.model.embed_tokens.weight"]
    save_file(state, folder / "model.safetensors")
    with weights.without_memory():
        model = FAMILY.build(weights.read_config(folder))
    with pytest.raises(ValueError, match="do not go together .KeyError: 'old_tokens'.: complete the files"):
        weights.load(model, folder, FAMILY.keys, FAMILY.drop, fold, "fp32", FAMILY.keep)


def test_how_far_it_is_is_told_in_bytes(folder):
    told = []
    opened(FAMILY, folder, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(tensor.nbytes for tensor in state_of(folder).values())
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# Saving, and what comes of it.


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_what_is_saved_loads_equal_and_saving_it_again_changes_nothing(folder, tmp_path, precision):
    first = opened(FAMILY, folder, precision)
    once = saving.save(first, weights.read_config(folder), tmp_path / "once", folder)
    second = opened(FAMILY, once, precision)
    twice = saving.save(second, weights.read_config(once), tmp_path / "twice", once)
    files = sorted(path.name for path in once.iterdir())
    assert files == sorted(path.name for path in twice.iterdir()) and "tokenizer.json" in files
    assert all((once / name).read_bytes() == (twice / name).read_bytes() for name in files)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)).to(first.dtype)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(first.see(pixels).images[0], second.see(pixels).images[0])
        assert torch.equal(first.language(ids).logits, second.language(ids).logits)


def test_shards_of_what_is_saved_load_equal(folder, tmp_path):
    first = opened(FAMILY, folder)
    saved = saving.save(first, weights.read_config(folder), tmp_path / "saved", folder, shard=100_000)
    assert len(list(saved.glob("*.safetensors"))) > 2 and (saved / "model.safetensors.index.json").is_file()
    assert same(opened(FAMILY, saved), state_of(folder))


def test_a_saved_checkpoint_opens_in_the_precision_it_has(folder, tmp_path):
    saved = saving.save(opened(FAMILY, folder, "nf4"), weights.read_config(folder), tmp_path / "saved", folder)
    assert LocalEngine.open(saved, FAMILY, "auto", "cpu").precision == "nf4"
    with pytest.raises(ValueError, match="in nf4 and is opened in fp32: open it with the precision nf4"):
        opened(FAMILY, saved, "fp32")


def test_a_model_in_four_bits_that_has_answered_is_not_saved(folder, tmp_path):
    model = opened(FAMILY, folder, "nf4")
    with torch.inference_mode():
        model.language(torch.arange(8)[None])
    if not quantise.ran(model):
        pytest.skip("this processor computes 4 bits as they are stored")
    with pytest.raises(ValueError, match="has answered already, which reorders its weights"):
        saving.save(model, weights.read_config(folder), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saving_over_something_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is there already: name a new folder"):
        saving.save(opened(FAMILY, folder), weights.read_config(folder), folder)


def test_fp16_is_converted_on_a_processor_and_said(folder):
    model = opened(FAMILY, folder, "fp16")
    name, dtype, notes = weights.settle_precision("fp16")
    assert name in ("bf16", "fp32") and {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert notes == (f"fp16 is not for processors: the model is computed in {name} instead.",)


# Spread over several places.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_kept_on_disk_compute_the_same(folder, tmp_path, precision):
    whole = opened(FAMILY, folder, precision)
    places = {"": "cpu", "language.model.layers.0": "disk", "language.model.layers.1": "disk"}
    spread = opened(FAMILY, folder, precision, device=places, offload=tmp_path / "away")
    assert spread.language.model.layers[1].mlp.up_proj.weight.is_meta
    assert list((tmp_path / "away").glob("*.dat"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(whole.language(ids).logits, spread.language(ids).logits)


def test_four_bits_on_disk_are_refused(folder):
    with pytest.raises(ValueError, match="kept on disk cannot be quantised: choose bf16"):
        opened(FAMILY, folder, "nf4", device={"": "cpu", "language.model.layers.0": "disk"})


def test_a_device_map_without_a_place_for_a_module_says_so(folder):
    with pytest.raises(ValueError, match="no place for vision"):
        opened(FAMILY, folder, device={"language": "cpu", "bridge": "cpu"})


def test_spread_over_what_there_is(folder):
    places = weights.spread(FAMILY.build(FAMILY.dwarf), torch.float32)
    assert set(places.values()) <= {"cpu", 0, 1, 2, 3, 4, 5, 6, 7} and places
    assert same(opened(FAMILY, folder, device="auto"), state_of(folder))


@pytest.mark.parametrize("precision", weights.QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantising_in_pieces_gives_what_quantising_at_once_does(monkeypatch, precision, dtype):
    import bitsandbytes as bnb

    monkeypatch.setattr(quantise, "PIECE", 1000)
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = torch.nn.Sequential(torch.nn.Linear(192, 96, bias=False))
    quantise.pack(model, "0", weight, precision, dtype, "cpu")
    kinds = {"nf4": (bnb.nn.Params4bit, {"quant_type": "nf4"}), "int8": (bnb.nn.Int8Params, {})}
    kind, more = kinds[precision]
    whole = torch.nn.Sequential(
        quantise._empty(torch.nn.Sequential(torch.nn.Linear(192, 96, bias=False)), "0", precision, dtype)
    )
    whole[0].weight = kind(weight.clone(), requires_grad=False, **more).to("cpu")
    mine, theirs = quantise.packed_state(model, "0", precision), quantise.packed_state(whole, "0", precision)
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(model.eval()(x), whole.eval()(x))


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_numbers_that_are_none_are_found_in_every_type(kind: str) -> None:
    dtype = getattr(torch, kind)
    largest = torch.finfo(dtype).max
    fine = torch.tensor([0.0, -0.0, largest, -largest, 1.0, -1.0] * 50_000, dtype=torch.float64).to(dtype)
    assert weights.finite(fine)
    assert weights.finite(fine.reshape(2, -1).T)
    assert weights.finite(fine[2])
    assert weights.finite(fine[:0])
    for number in [math.nan, *([] if kind == "float8_e4m3fn" else [math.inf, -math.inf])]:  # that type has no infinity
        for place in (0, 262_144, len(fine) - 1):
            broken = fine.clone()
            broken[place] = torch.tensor(number, dtype=torch.float64).to(dtype)
            assert not weights.finite(broken), (number, place)


def test_an_old_pickle_is_read_once_for_two_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {name: torch.randn(3) for name in "abcd"}
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    known, read, times = files.stored(tmp_path / "old.bin"), torch.load, []

    def slow(*given, **how):
        times.append(given)
        time.sleep(0.2)  # the second reader comes while the first one is at it
        return read(*given, **how)

    monkeypatch.setattr(torch, "load", slow)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip([one.name for one in known], pool.map(lambda one: one.read(), known), strict=True))
    assert len(times) == 1
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
