"""Memory is planned before a weight is read: by arithmetic on published configs, by what dwarfs really hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmchat import family
from mmchat.engines.local import LocalEngine
from mmchat.family import Limits
from mmchat.nets import plan, weights
from mmchat.prompt import Slot

SIZES = {  # hidden, intermediate, layers, heads, parameters of the language model as its authors count them
    "7b": (4096, 11008, 32, 32, 6_738_415_616),
    "13b": (5120, 13824, 40, 40, 13_015_864_320),
}
LINEAR = {"7b": 32 * (4 * 4096**2 + 3 * 4096 * 11008), "13b": 40 * (4 * 5120**2 + 3 * 5120 * 13824)}
CLIP_L_336 = 303_507_456  # the tower alone, without the half for text


def llava(size: str) -> torch.nn.Module:
    hidden, inner, layers, heads, _ = SIZES[size]
    config = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
    }  # fmt: skip
    with weights.without_memory():
        return family.load("llava").build(config)


KEEP = family.load("llava").keep


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_parts_of_a_published_size_are_its_parameters_times_their_width(size: str, precision: str, width: int) -> None:
    told = plan.planned(llava(size), precision, "cpu", KEEP)
    assert told.parts["language"] == pytest.approx(SIZES[size][4] * width, rel=1e-4)
    assert told.parts["vision"] == pytest.approx(CLIP_L_336 * width, rel=1e-3)
    hidden = SIZES[size][0]
    assert told.parts["bridge"] == (1024 * hidden + hidden + hidden * hidden + hidden) * width


@pytest.mark.parametrize("size", SIZES)
def test_four_bits_are_counted_with_their_scales_and_the_rest_is_not_quantised(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.nets.quantise.native_bf16", lambda device="cpu": True)
    told = plan.planned(llava(size), "nf4", "cpu", KEEP)
    rest = SIZES[size][4] - LINEAR[size]  # embedding, head, norms
    # Half a byte, a byte of scale for 64 and four bytes for 64 * 256.
    assert told.parts["language"] == pytest.approx(LINEAR[size] * (0.5 + 1 / 64 + 4 / 16384) + 2 * rest, rel=1e-3)
    assert told.parts["vision"] == pytest.approx(2 * CLIP_L_336, rel=1e-3)


def test_keys_and_values_of_a_thousand_tokens() -> None:
    for size, (hidden, _, layers, _, _) in SIZES.items():
        assert plan.planned(llava(size), "bf16", "cpu", KEEP).talk_thousand == 2 * layers * hidden * 2 * 1000


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_what_a_dwarf_holds_is_what_was_planned(dwarf_folder: Any, precision: str) -> None:
    known = family.load("llava")
    with weights.without_memory():
        shapes = known.build(known.dwarf)
    told = plan.planned(shapes, precision, "cpu", known.keep)
    engine = LocalEngine.open(dwarf_folder("llava"), known, precision)
    held = 0
    for module in engine.model.modules():
        for one in (*module._parameters.values(), *module._buffers.values()):
            if one is None:
                continue
            held += one.numel() * one.element_size()
            state = getattr(one, "quant_state", None)
            if state is not None:
                tables = (state.absmax, state.code, state.state2.absmax, state.state2.code)
                held += sum(table.numel() * table.element_size() for table in tables)
            if type(one).__name__ == "Int8Params":
                held += one.SCB.numel() * 4
    assert told.weights == pytest.approx(held, rel=0.02)


def test_keys_and_values_really_take_what_was_planned(dwarf_folder: Any) -> None:
    engine = LocalEngine.open(dwarf_folder("llava"), family.load("llava"), "fp32")
    side = engine.family.frame(engine.config).side
    sight = engine.see((torch.zeros(3, side, side).numpy(),), ())
    list(engine.speak(("look ", Slot("image", 0), "x" * 200), sight, Limits(new_tokens=1)))
    from mmchat.engines.talks import held

    cache = engine._talks[-1].cache
    length = cache.get_seq_length()
    assert held(cache) == plan.talk_bytes(engine.model, length, torch.float32) and length > 200


def test_a_head_tied_to_the_embedding_is_counted_once() -> None:
    known = family.load("llava")
    with weights.without_memory():
        apart, tied = (known.build({**known.dwarf, "tie_word_embeddings": value}) for value in (False, True))
    size = known.dwarf["vocab_size"] * known.dwarf["hidden_size"] * 4
    sizes = [plan.planned(model, "fp32", "cpu").weights for model in (apart, tied)]
    assert sizes[0] - sizes[1] == size


@pytest.mark.parametrize(
    ("free", "offer"),
    [(29.5, "the context 1024"), (27, "the precision bf16"), (14, "the precision int8"), (8, "the precision nf4"),
     (5, "the device disk"), (2, "free memory")],
)  # fmt: skip
def test_a_refusal_offers_the_smallest_change_that_would_fit(
    free: float, offer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.nets.quantise.native_bf16", lambda device="cpu": True)
    with pytest.raises(plan.NoRoom, match=offer) as refused:
        plan.require(llava("7b"), "LLaVA", "fp32", "cpu", KEEP, free=int(free * 2**30))
    sentence = str(refused.value)
    assert "LLaVA needs 28.8 GiB in fp32 (language 25.1 GiB" in sentence and sentence.count(". ") == 0
    assert f"{free:.1f} GiB is free: " in sentence


def test_what_is_offered_does_fit() -> None:
    model = llava("7b")
    for free in (5.0, 8.0, 14.0, 27.0):
        with pytest.raises(plan.NoRoom) as refused:
            plan.require(model, "LLaVA", "fp32", "cpu", KEEP, free=int(free * 2**30))
        kind, value = refused.value.offers[0].split()[1:3]
        choice = {"precision": "fp32", "device": "cpu", kind: value.rstrip(",")}
        plan.require(model, "LLaVA", choice["precision"], choice["device"], KEEP, free=int(free * 2**30))


def test_nothing_is_read_of_a_model_that_does_not_fit(dwarf_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "load", lambda *values, **more: pytest.fail("weights were read"))
    with pytest.raises(plan.NoRoom, match="LLaVA 1.5 and 1.6 needs"):
        LocalEngine.open(dwarf_folder("llava"), family.load("llava"), "fp32", free=100_000)


def test_a_container_s_limit_is_less_than_the_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert list(plan._limits(tmp_path)) == [(1_000_000, 500_000)]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(plan._limits(tmp_path)) == []


def test_layers_kept_on_disk_answer_as_those_in_memory(dwarf_folder: Any, recwarn: pytest.WarningsRecorder) -> None:
    known, said = family.load("llava"), []
    for device in ("cpu", "disk"):
        recwarn.clear()
        engine = LocalEngine.open(dwarf_folder("llava"), known, "fp32", device)
        assert not [one for one in recwarn if "device_map" in str(one.message)]
        side = known.frame(engine.config).side
        sight = engine.see((torch.ones(3, side, side).numpy(),), ())
        said.append([one.text for one in engine.speak(("a", Slot("image", 0), "b"), sight, Limits(new_tokens=8))])
        on_meta = [name for name, one in engine.model.named_parameters() if one.is_meta]
        assert bool(on_meta) == (device == "disk") and all(".layers." in name for name in on_meta)
        engine.close()
    assert said[0] == said[1]


@pytest.mark.parametrize(("device", "words"), [("gpu", "choose cpu, cuda"), ("cuda:99", "There is no GPU")])
def test_a_device_that_is_not_there_is_refused(dwarf_folder: Any, device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalEngine.open(dwarf_folder("llava"), family.load("llava"), "fp32", device)


def test_a_shorter_context_is_kept_to(dwarf_folder: Any) -> None:
    engine = LocalEngine.open(dwarf_folder("llava"), family.load("llava"), "fp32", context=40)
    side = engine.family.frame(engine.config).side
    sight = engine.see((torch.zeros(3, side, side).numpy(),), ())
    with pytest.raises(ValueError, match="reads at most 40: shorten"):
        list(engine.speak(("a" * 50, Slot("image", 0)), sight, Limits(new_tokens=1)))
