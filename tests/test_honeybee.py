"""Honeybee's checkpoints: their names and sizes, their layouts and containers, their precisions, what is refused."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import dwarfs
import keylists
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmchat import family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine, check_family
from mmchat.families.honeybee import build, frame, projector, without_class_row
from mmchat.golden import Case
from mmchat.golden.honeybee import checkpoint_config, spliced
from mmchat.golden.llava import greedy, looked_at
from mmchat.nets import archive, weights
from mmchat.nets.abstractors import DAbstractor
from mmchat.nets.resampler import Resampler

FAMILY = family.load("honeybee")
GOLDEN = keylists.GOLDEN / "honeybee"
SIZES = {"7B": (4096, 11008, 32), "13B": (5120, 13824, 40)}
BF16 = 0.05  # rounding the weights alone makes 0.01 (C-Abstractor) and 0.04 (D-Abstractor: places move) here
RELEASED = [  # name, abstractor, queries, side
    ("7B-C-Abs-M144", "c-abs", 144, 224),
    ("7B-D-Abs-M144", "d-abs", 144, 224),
    ("7B-C-Abs-M256", "c-abs", 256, 336),
    ("13B-C-Abs-M256", "c-abs", 256, 336),
    ("13B-D-Abs-M256", "d-abs", 256, 336),
    ("13B-C-Abs-M576", "c-abs", 576, 336),
]


def config_of(name: str, kind: str, queries: int, side: int) -> dict:
    """A config.json as the released ones are written: the tower by name, the language model in full."""
    width, inner, layers = SIZES[name.partition("-")[0]]
    own = {"c-abs": {"depth": 3, "mlp_depth": 2, "hidden_size": 1024, "prenorm": False}}.get(
        kind, {"d_model": 1024, "decoder_layers": 6, "num_feature_levels": 1, "pooled_v_target": "query"}
    )
    about = {"projector_type": kind, "num_query_tokens": queries, "num_eos_tokens": 0, "pos_emb": True}
    tower = "openai/clip-vit-large-patch14" + ("-336" if side == 336 else "")
    return {
        "model_type": "honeybee",
        "vision_config": {"pretrained_vision_name_or_path": tower, "image_size": side, "encoder_type": "openai.clip"},
        "projector_config": about | own | {"feature_layer_index": -1},
        "lm_config": {"pretrained_lm_name_or_path": f"lmsys/vicuna-{name.partition('-')[0].lower()}-v1.5"},
        "text_config": {
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": width // 128, "num_key_value_heads": width // 128, "vocab_size": 32000,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "model_type": "llama",
        },
    }  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "queries", "side"), RELEASED, ids=[one[0] for one in RELEASED])
def test_a_released_checkpoints_parameters_are_ours(name, kind, queries, side):
    width, inner, layers = SIZES[name.partition("-")[0]]
    named = {"WIDTH": width, "INNER": inner, "LAST": layers - 1, "N": (side // 14) ** 2, "M": queries}
    with weights.without_memory():
        model = build(config_of(name, kind, queries, side))
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    theirs = [one for section in ("vision", "language", kind) for one in keylists.listed("honeybee", named, section)]
    assert ours == {weights.renamed(one.name, FAMILY.keys): one.shape for one in theirs if one.used}


@pytest.mark.parametrize(("kind", "count"), [("c-abs", 37_070_336), ("d-abs", 55_616_352)])
def test_an_abstractor_has_as_many_parameters_as_published(kind, count):
    with weights.without_memory():
        model = build(config_of("7B", kind, 144, 224))
    assert sum(parameter.numel() for parameter in model.bridge.parameters()) == count


def test_a_tower_known_by_its_name_alone_has_its_side():
    vision = {"pretrained_vision_name_or_path": "openai/clip-vit-large-patch14-336"}
    assert frame({"vision_config": vision}).side == 336
    assert (
        frame({"vision_config": {}}).side == 224 and frame({"vision_config": vision | {"image_size": 224}}).side == 224
    )


def test_the_whole_picture_is_pressed_into_the_square():
    placement = frame(FAMILY.dwarf).place((200, 50))
    assert placement.scale == (1.0, 1.0) and placement.offset == (0.0, 0.0) and placement.fitted == (56, 56)


# layouts and containers


def old_layout(config: Mapping) -> dict:
    """The same config as older files say it."""
    about = dict(config["projector_config"])
    queries = about.pop("num_query_tokens")
    rest = {key: value for key, value in config.items() if key != "projector_config"}
    width = config["vision_config"].get("hidden_size", 1024)
    return rest | {"visual_projector_config": about | {"encoder_hidden_size": width}, "num_query_tokens": queries,
                   "hidden_size": config["text_config"]["hidden_size"]}  # fmt: skip


def test_an_old_config_is_the_new_one():
    new = config_of(*RELEASED[0])
    assert projector(new).items() <= projector(old_layout(new)).items()
    with weights.without_memory():
        shapes = [
            {key: one.shape for key, one in build(config).state_dict().items()} for config in (new, old_layout(new))
        ]
    assert shapes[0] == shapes[1]


def test_a_config_of_another_family_is_told_by_what_it_lacks():
    with pytest.raises(KeyError, match="projector_config"):
        build({"vision_config": {}, "text_config": FAMILY.dwarf["text_config"]})


@pytest.mark.parametrize("places", [1, 4, 16, 256, 576])
def test_positions_lose_a_row_only_where_they_have_one_too_many(places):
    table = torch.randn(1, places + 1, 3)
    assert torch.equal(without_class_row({"bridge.pos_emb": table})["bridge.pos_emb"], table[:, 1:])
    kept = without_class_row({"bridge.pos_emb": table[:, 1:]})["bridge.pos_emb"]
    assert kept.shape[1] == places and torch.equal(kept, table[:, 1:])
    assert without_class_row({}) == {}


@pytest.fixture(params=["whole_cabs_batch", "whole_dabs_batch"])
def case(request) -> Case:
    return Case(GOLDEN / f"{request.param}.json")


def write(case: Case, folder: Path, container: str, config: Mapping | None = None) -> Path:
    """A recorded whole model as its authors would publish it: names, shards, index, config.json."""
    folder.mkdir(parents=True)
    state = {name: tensor.clone() for name, tensor in case.state().items()}
    names, ending = sorted(state), "bin" if container == "bin" else "safetensors"
    stem = "pytorch_model" if container == "bin" else "model"
    weight_map = {}
    for number in (1, 2):
        file = f"{stem}-{number:05d}-of-00002.{ending}"
        part = {name: state[name] for name in names[number - 1 :: 2]}
        torch.save(part, folder / file) if container == "bin" else save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    about = config or checkpoint_config(case) | {"model_type": "honeybee"}
    (folder / "config.json").write_text(json.dumps(about))
    dwarfs.write_tokenizer(folder)
    return folder


def loaded(folder: Path, precision: str = "fp32"):
    config = weights.read_config(folder, FAMILY.parts)
    with weights.without_memory():
        model = build(config)
    sources = weights.sources(folder, config, FAMILY.parts)
    weights.load(model, sources, FAMILY.keys, FAMILY.drop, FAMILY.fold, precision, FAMILY.keep, parts=FAMILY.parts)
    return model


@torch.no_grad()
def said(model, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the real places, greedy ids."""
    given = case.inputs(model.dtype)
    embeds = spliced(model, given["input_ids"], model.see(given["pixel_values"]))
    real = given["attention_mask"].bool()
    positions = torch.arange(real.shape[1]).expand(len(real), -1)
    mask = looked_at(real, model.dtype)
    logits = model.language(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits[real]
    return logits.float(), greedy(model, embeds, real, case.tensors["out.greedy_ids"].shape[1])


def recorded(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return case.tensors["out.logits"][case.tensors["in.attention_mask"].bool()], case.tensors["out.greedy_ids"]


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_recorded_model_speaks_the_same_from_a_checkpoints_folder(case, container, tmp_path):
    folder = write(case, tmp_path / "last", container)
    logits, ids = said(loaded(folder), case)
    theirs, theirs_ids = recorded(case)
    tolerance = case.info["tolerance"]["float32"]
    torch.testing.assert_close(logits, theirs, atol=tolerance["max_abs"], rtol=tolerance["rel"])
    assert torch.equal(ids, theirs_ids)


def test_the_old_layout_gives_the_same_model(tmp_path):
    case = Case(GOLDEN / "whole_cabs_batch.json")
    folder = write(case, tmp_path / "last", "bin", old_layout(checkpoint_config(case)) | {"model_type": "mllm"})
    check_family(weights.read_config(folder), FAMILY, folder)  # so old files call it
    files = sorted(folder.glob("*.bin"))
    for file in files:  # as old files have it: a row for the class token before the patches' positions
        state = torch.load(file, weights_only=True)
        if "abstractor.pos_emb" in state:
            old = state["abstractor.pos_emb"]
            state["abstractor.pos_emb"] = torch.cat((torch.randn(1, 1, old.shape[2]), old), 1)
            torch.save(state, file)
    logits, _ = said(loaded(folder), case)
    torch.testing.assert_close(logits, recorded(case)[0], atol=3e-4, rtol=1e-4)


def test_bf16_stays_within_a_twentieth_of_the_logits_length(case, tmp_path):
    model = loaded(write(case, tmp_path / "last", "safetensors"), "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits, theirs = said(model, case)[0], recorded(case)[0]
    assert 1e-4 < (logits - theirs).norm() / theirs.norm() < BF16


def test_a_model_in_four_bits_says_what_transformers_own_four_bits_say(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = dict(FAMILY.dwarf) | {"text_config": dict(FAMILY.dwarf["text_config"]) | {"intermediate_size": 128}}
    folder = tmp_path / "dwarf"
    dwarfs.write(replace(FAMILY, dwarf=config), folder)
    ours, plain = loaded(folder, "nf4"), loaded(folder, "fp32")
    import bitsandbytes as bnb

    packed = [path for path, one in ours.named_modules() if isinstance(one, bnb.nn.Linear4bit)]
    assert len(packed) == 14 and all(path.startswith("language.model.layers.") for path in packed)
    plain.language.save_pretrained(tmp_path / "language")
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=ours.dtype, llm_int8_skip_modules=["lm_head"],
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "language", quantization_config=how, dtype=ours.dtype, device_map="cpu"
    )
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(3)).to(ours.dtype)
    with torch.inference_mode():
        vectors = ours.see(pixels).images[0]
        embeds = torch.cat((ours.embed([256, 40]), vectors, ours.embed([50, 60, 70])))[None]
        real = torch.ones(embeds.shape[:2], dtype=torch.bool)
        generated = theirs.generate(inputs_embeds=embeds, attention_mask=real, do_sample=False, max_new_tokens=12,
                                    eos_token_id=None, pad_token_id=0)  # fmt: skip
        assert torch.equal(greedy(ours, embeds, real, 12), generated)
        assert not torch.equal(
            plain.language(inputs_embeds=embeds.float()).logits, ours.language(inputs_embeds=embeds).logits.float()
        )


def test_a_packed_archive_is_opened_and_answers(tmp_path, dwarf_folder):
    packed = tmp_path / "7B-D-Abs-M144.tar.gz"
    with tarfile.open(packed, "w:gz") as stream:
        stream.add(dwarf_folder("honeybee"), "7B-D-Abs-M144/last")
        settings = tmp_path / "exp_config.yaml"
        settings.write_text("seed: 1\n")
        stream.add(settings, "7B-D-Abs-M144/exp_config.yaml")
    folder = archive.opened(packed)
    assert (folder / "config.json").is_file() and folder.name == "last"
    picture = Image.new("RGB", (80, 30), (20, 90, 200))
    asked = Ask((picture,), (Turn("user", "What is here?"),), limits=Limits(new_tokens=4))
    answers = [
        list(Desk(LocalEngine.open(place, FAMILY, "fp32", "cpu")).answer(asked))[-1].raw
        for place in (packed, dwarf_folder("honeybee"))
    ]
    assert answers[0] == answers[1]


def test_a_checkpoint_with_a_parameter_too_few_is_refused_with_its_name(tmp_path):
    folder = write(Case(GOLDEN / "whole_cabs_batch.json"), tmp_path / "last", "safetensors")
    file = folder / "model-00001-of-00002.safetensors"
    state = load_file(file)
    gone = next(name for name in state if name.startswith("abstractor."))
    del state[gone]
    save_file(state, file)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    del listed["weight_map"][gone]
    index.write_text(json.dumps(listed))
    with pytest.raises(weights.WrongWeights) as refused:
        loaded(folder)
    assert refused.value.missing == (weights.renamed(gone, FAMILY.keys),)


# the D-Abstractor


def d_abstractor(**other) -> DAbstractor:
    config = dict(FAMILY.dwarf["projector_config"]) | other
    torch.manual_seed(0)
    net = DAbstractor(config, 32, 64, 16)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@torch.no_grad()
def test_the_d_abstractor_computes_in_float32_whatever_it_is_given():
    half = d_abstractor().bfloat16()
    features = torch.randn(2, 16, 32).bfloat16()
    wide = d_abstractor()
    wide.load_state_dict({name: one.float() for name, one in half.state_dict().items()})
    ours = half((features,))
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, wide((features.float(),)).bfloat16())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.steps(features).layers[0].dtype == torch.float32


def test_fresh_queries_look_at_the_cells_of_the_pooled_grid():
    with torch.no_grad():
        points = DAbstractor(dict(FAMILY.dwarf["projector_config"]), 32, 64, 16).reference_points
    assert points.shape == (1, 9, 2)
    assert torch.allclose(points[0, :3, 0], torch.tensor([0.125, 0.5, 0.875])) and bool(
        (points[0, :3, 1] == 0.125).all()
    )


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"num_feature_levels": 2}, "num_feature_levels must be 1"),
        ({"pooled_v_target": "both"}, "query, tgt and none"),
        ({"num_query_tokens": 8, "num_queries": 8}, "no square"),
        ({"num_queries": 16}, "must be one"),
        ({"activation_function": "gelu"}, "relu"),
    ],
)
def test_settings_that_the_original_cannot_run_are_refused(other, sentence):
    with pytest.raises(ValueError, match=sentence):
        d_abstractor(**other)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("projector_config", {"projector_type": "q-former"}, "c-abs, d-abs, mlp, resampler"),
        ("projector_config", {"feature_layer_index": [1, 2]}, "one layer only"),
        ("projector_config", {"projector_type": "mlp"}, "keeps all 16 vectors"),
        ("vision_config", {"encoder_type": "timm"}, "only openai.clip"),
    ],
)
def test_a_config_that_is_not_known_is_told_in_a_sentence(part, change, sentence):
    config = dict(FAMILY.dwarf)
    config[part] = dict(config[part]) | change
    with pytest.raises(ValueError, match=sentence):
        build(config)


@pytest.mark.parametrize("kind", ["c-abs", "mlp", "resampler"])
def test_every_abstractor_gives_what_the_language_model_takes(kind):
    about = {"projector_type": kind, "num_query_tokens": 16, "num_eos_tokens": 2, "hidden_size": 32,
             "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "depth": 2}  # fmt: skip
    model = build(dict(FAMILY.dwarf) | {"projector_config": about})
    seen = model.see(torch.randn(2, 3, 56, 56))
    assert [tuple(image.shape) for image in seen.images] == [(18, 64), (18, 64)]
    assert tuple(seen.levels["bridge"].shape) == (2, 64, 4, 4)


def test_a_resampler_has_a_layer_in_front_whatever_the_widths():
    net = Resampler({"num_query_tokens": 4, "hidden_size": 32, "num_attention_heads": 4}, 32, 64, 16)
    assert tuple(net.state_dict()["visual_input_fc.weight"].shape) == (32, 32)


def test_a_c_abstractor_has_no_sampling_points_to_show_and_says_what_it_has(tmp_path):
    about = {"projector_type": "c-abs", "num_query_tokens": 9, "hidden_size": 32, "depth": 1, "mlp_depth": 2}
    record = replace(FAMILY, dwarf=dict(FAMILY.dwarf) | {"projector_config": about})
    desk = Desk(LocalEngine.open(dwarfs.write(record, tmp_path / "dwarf"), record, "fp32", "cpu"))
    picture = Image.new("RGB", (30, 40), (9, 200, 90))
    asked = Ask((picture,), (Turn("user", "What?"),), limits=Limits(new_tokens=1))
    answer = list(desk.answer(asked))[-1]
    assert desk.trace(asked, answer, "feature norm", None)[0].map.shape == (4, 4)
    with pytest.raises(ValueError, match="no heat map 'sampling points': choose one of feature norm, ") as told:
        desk.trace(asked, answer, "sampling points", None)
    assert "sampling points" not in str(told.value).partition(":")[2]
