"""Florence-2: the library's own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import dwarfs
import independent
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import (
    BartTokenizer,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
)
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.engines.talks import held, size
from mmchat.families.florence2 import FAMILY, MARKS, SIDE
from mmchat.geometry import Box, Polygon, Region
from mmchat.nets import plan, weights
from mmchat.templates import FLORENCE_2

LENGTH = 24
BOS, EOS, IMAGE = 256, 257, 1283
CELLS = 37  # vectors of the dwarf's picture: 6 x 6 and their mean
TOKENS = {  # the published token of each task
    "find": "<CAPTION_TO_PHRASE_GROUNDING>", "describe": "<CAPTION>", "detail": "<DETAILED_CAPTION>",
    "paragraph": "<MORE_DETAILED_CAPTION>", "objects": "<OD>", "dense": "<DENSE_REGION_CAPTION>",
    "proposals": "<REGION_PROPOSAL>", "detect": "<OPEN_VOCABULARY_DETECTION>",
    "segment": "<REFERRING_EXPRESSION_SEGMENTATION>", "region": "<REGION_TO_DESCRIPTION>",
    "name": "<REGION_TO_CATEGORY>", "outline": "<REGION_TO_SEGMENTATION>", "read": "<OCR>",
    "lines": "<OCR_WITH_REGION>", "read_region": "<REGION_TO_OCR>",
}  # fmt: skip
RULES = {  # as published, with the dwarf's ids
    "num_beams": 3, "early_stopping": True, "forced_bos_token_id": BOS, "forced_eos_token_id": EOS,
    "decoder_start_token_id": EOS, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 258,
    "no_repeat_ngram_size": 3,
}  # fmt: skip
BOX = Region("box", Box(0.21, 0.13, 0.66, 0.91))


def bart(marks: tuple[str, ...] = (*MARKS, "<image>")) -> Any:
    """BART's kind of tokenizer with one token for each byte, then the dwarf's marks of begin and end, then these."""
    words = {sign: index for index, sign in enumerate([*dwarfs.BYTES, "<s>", "</s>", "<pad>"])}
    made = BartTokenizer(vocab=words, merges=[], unk_token="<pad>", mask_token="<pad>")
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return made


def published(large: bool) -> dict[str, Any]:
    """The authors' config.json, as far as it says sizes."""
    width, layers, heads = (1024, 12, 16) if large else (768, 6, 12)
    stages, groups = ([256, 512, 1024, 2048], [8, 16, 32, 64]) if large else ([128, 256, 512, 1024], [4, 8, 16, 32])
    return {
        "model_type": "florence2", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": width,
        "text_config": {
            "vocab_size": 51289, "d_model": width, "max_position_embeddings": 1024, "scale_embedding": False,
            "encoder_layers": layers, "encoder_attention_heads": heads, "encoder_ffn_dim": 4 * width,
            "decoder_layers": layers, "decoder_attention_heads": heads, "decoder_ffn_dim": 4 * width,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2,
            "forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "num_beams": 3,
        },
        "vision_config": {
            "model_type": "davit", "drop_path_rate": 0.1, "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2],
            "patch_padding": [3, 1, 1, 1], "patch_prenorm": [False, True, True, True], "dim_embed": stages,
            "num_heads": groups, "num_groups": groups, "depths": [1, 1, 9, 1], "window_size": 12,
            "projection_dim": width, "enable_checkpoint": False,
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The library's dwarf with weights large enough that every part changes what comes out."""
    torch.manual_seed(0)
    model = independent.made(Florence2ForConditionalGeneration, FAMILY.dwarf)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.8 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folder(theirs: Any, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as the library writes it."""
    made = tmp_path_factory.mktemp("florence2")
    theirs.generation_config = GenerationConfig(**RULES)
    theirs.save_pretrained(made)
    processor.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def desk(folder: Path) -> Desk:
    return Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))


@pytest.fixture(scope="module")
def processor() -> Any:
    words = bart()
    words.image_token, words.image_token_id = "<image>", IMAGE
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=square, crop_size=square, do_center_crop=False, resample=3, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    images.image_seq_length = CELLS
    return Florence2Processor(images, words)


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 90, 3), dtype=np.uint8))


def ready(desk: Desk, task: str, text: str = "", seed: int = 0) -> Any:
    return desk._prepare(Ask((noise(seed),), (Turn("user", text, (BOX,)),), task))


def told(task: str, words: str) -> str:
    """What a user of the library writes: the task's token and what is beside it."""
    marks = "<loc_210><loc_130><loc_660><loc_910>"
    needs = FAMILY.template.task(task).needs
    return TOKENS[task] + {"": "", "phrase": words, "region": marks}[needs]


def test_the_picture_is_the_processors(processor: Any) -> None:
    wanted = processor.image_processor(images=[noise()], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(FAMILY.frame(FAMILY.dwarf).fit(noise())[0], wanted, atol=1e-6)


def test_every_published_task_is_offered() -> None:
    assert sorted(TOKENS.values()) == sorted(FLORENCE_2) and [*TOKENS] == [one.name for one in FAMILY.template.tasks]


@pytest.mark.parametrize("task", TOKENS)
def test_a_task_is_asked_as_the_processor_asks_it(task: str, desk: Desk, processor: Any) -> None:
    wanted = processor(text=told(task, "a red kite"), images=noise(), return_tensors="pt")["input_ids"][0].tolist()
    asked = ready(desk, task, "a red kite" if FAMILY.template.task(task).needs == "phrase" else "")
    _, parts = desk.engine._laid_out(asked.prompt, asked.sight.content)
    ours = [one for part in parts for one in ([part] if isinstance(part, int) else [IMAGE] * size(part))]
    assert ours == wanted and wanted.count(IMAGE) == CELLS


@torch.no_grad()
def test_both_halves_give_the_librarys_numbers(theirs: Any, desk: Desk, processor: Any) -> None:
    given = processor(text=told("find", "a kite"), images=noise(), return_tensors="pt")
    written = [BOS, 7, 300, 12]
    wanted = theirs(**given, decoder_input_ids=torch.tensor([[EOS, *written]]), output_hidden_states=True)
    asked = ready(desk, "find", "a kite")
    engine = desk.engine
    talk, parts = engine._laid_out(asked.prompt, asked.sight.content)
    read = engine.model.language.model.encoder(inputs_embeds=engine.inputs(parts)).last_hidden_state
    torch.testing.assert_close(read, wanted.encoder_last_hidden_state, atol=1e-5, rtol=1e-5)
    rows = [engine._prefill(talk, parts, None, 0)[0], *(engine._step(talk, index) for index in written[1:])]
    torch.testing.assert_close(torch.stack(rows), wanted.logits[0, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", ["find", "objects", "region"])
def test_a_task_is_answered_as_by_the_library(desk: Desk, theirs: Any, processor: Any, task: str, seed: int) -> None:
    given = processor(text=told(task, "a kite"), images=noise(seed), return_tensors="pt")
    with torch.no_grad():
        out = theirs.generate(
            **given, num_beams=1, do_sample=False, max_new_tokens=LENGTH + 2, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
    assert out.sequences[0, :2].tolist() == [EOS, BOS]
    ids = [one for one in out.sequences[0, 2 : LENGTH + 2].tolist() if one != EOS]
    sure = [float(scores[0].softmax(-1).max()) for scores in out.scores[1:]][: len(ids)]
    words = "a kite" if task == "find" else ""
    ask = Ask((noise(seed),), (Turn("user", words, (BOX,)),), task, Limits(new_tokens=LENGTH))
    # Another question first: nothing that was read of it may serve this one.
    list(desk.answer(replace(ask, task="detect", turns=(Turn("user", "a kit"),), limits=Limits(new_tokens=2))))
    asked = desk._prepare(ask)
    said = list(desk.engine.speak(asked.prompt, asked.sight, ask.limits))[-1]
    assert desk.engine._talks[-1].answer == ids and len(ids) > 3
    assert [one for _, _, one in said.pieces] == pytest.approx(sure, rel=1e-3)
    again = list(desk.engine.speak(asked.prompt, asked.sight, replace(ask.limits, cache=False)))[-1]
    assert again.text == said.text and again.pieces == said.pieces


def test_no_three_tokens_come_twice_only_where_the_checkpoint_says_so(theirs: Any, desk: Desk, folder: Path) -> None:
    def rows(engine: LocalEngine) -> list[tuple[int, ...]]:
        asked = ready(desk, "find", "a kite")
        list(engine.speak(asked.prompt, asked.sight, Limits(new_tokens=60)))
        ids = engine._talks[-1].answer
        return [tuple(ids[at : at + 3]) for at in range(len(ids) - 2)]

    loose = {"generation_config": {**RULES, "no_repeat_ngram_size": 0}}
    free = LocalEngine.open(folder, FAMILY, "fp32", "cpu", otherwise=loose)
    kept, all_ = rows(desk.engine), rows(free)
    assert len(kept) > 20 and len(set(kept)) == len(kept) and len(set(all_)) < len(all_)


@pytest.mark.parametrize("unique", [0, 1, 2, 3, 4])
def test_what_may_come_next_is_what_the_library_allows(desk: Desk, unique: int, monkeypatch: Any) -> None:
    model = desk.engine.model
    monkeypatch.setattr(model, "unique", unique)
    random = np.random.default_rng(unique)
    banned = 0
    for length in range(30):
        logits, row = torch.randn(300), [EOS, BOS, *random.choice([1, 2, BOS, EOS], length).tolist()]
        wanted = NoRepeatNGramLogitsProcessor(unique)(torch.tensor([row]), logits[None])[0] if unique else logits
        torch.testing.assert_close(model.allowed(logits, row[2:]), wanted)
        banned += int(wanted.isinf().sum())
    assert bool(banned) == bool(unique)


class Scripted:
    """Puts words into a model's mouth: whatever it would say, these ids come next."""

    def __init__(self, desk: Desk, text: str) -> None:
        self.model = desk.engine.model
        self.ids = [*desk.engine.tokens.ids(text), EOS]

    def __enter__(self) -> None:
        self.model.allowed = lambda logits, written, read: torch.eye(len(logits))[self.ids[len(written)]]

    def __exit__(self, *error: object) -> None:
        del self.model.allowed


def spoken(desk: Desk, task: str, text: str) -> Any:
    wide = Image.new("RGB", (900, 300), (90, 160, 60))
    words = {"phrase": "a kite"}.get(FAMILY.template.task(task).needs, "")
    with Scripted(desk, text):
        return list(desk.answer(Ask((wide,), (Turn("user", words, (BOX,)),), task, Limits(new_tokens=200))))[-1]


def test_boxes_land_within_a_step_on_a_wide_picture(desk: Desk) -> None:
    drawn = (Box(0.21, 0.13, 0.66, 0.91), Box(0.02, 0.4, 0.3, 0.95))
    text = FAMILY.dialect.write(drawn, "kite", Scene((), (SIDE, SIDE)))
    assert text == "kite<loc_210><loc_130><loc_660><loc_910><loc_20><loc_400><loc_300><loc_950>"
    answer = spoken(desk, "objects", text)
    assert answer.text == "kite" and answer.done and len(answer.spans[0].places) == 2
    for found, wanted in zip(answer.spans[0].places, drawn, strict=True):
        for name in ("x0", "y0", "x1", "y1"):
            assert abs(getattr(found, name) - getattr(wanted, name)) <= 1 / 1000
    assert all(score is not None for score in answer.scores[0])


def test_outlines_and_lines_of_text_are_read_by_their_task(desk: Desk) -> None:
    corners = ((0.1, 0.2), (0.5, 0.25), (0.45, 0.8), (0.12, 0.7))
    marks = "".join(f"<loc_{round(x * 1000)}><loc_{round(y * 1000)}>" for x, y in corners)
    for task, text in (("segment", marks), ("outline", marks), ("lines", "EXIT" + marks)):
        (span,) = spoken(desk, task, text).spans
        (place,) = span.places
        assert isinstance(place, Polygon)
        found = [(point.x, point.y) for point in place.points]
        assert np.abs(np.array(found) - corners).max() <= 1 / 1000
    (cut,) = spoken(desk, "segment", marks + "<loc_55>").spans  # the library leaves the half corner out, too
    assert cut.places == spoken(desk, "segment", marks).spans[0].places
    two = spoken(desk, "segment", f"{marks}<sep>{marks}").spans[0].places
    assert len(two) == 2 and all(isinstance(one, Polygon) for one in two)
    boxes = spoken(desk, "objects", "EXIT" + marks).spans[0].places  # the same marks where boxes were asked for
    assert len(boxes) == 2 and all(isinstance(one, Box) for one in boxes)


def test_an_answer_stops_where_it_is_closed_or_long_enough(desk: Desk) -> None:
    asked = ready(desk, "describe")
    speaking = desk.engine.speak(asked.prompt, asked.sight, Limits(new_tokens=LENGTH))
    first = next(speaking)
    speaking.close()
    whole = list(desk.engine.speak(asked.prompt, asked.sight, Limits(new_tokens=LENGTH)))
    assert not first.done and whole[0].text == first.text and whole[-1].counters["new_tokens"] <= LENGTH
    cut = list(desk.engine.speak(asked.prompt, asked.sight, Limits(new_tokens=5)))[-1]
    assert cut.done and cut.counters["new_tokens"] == 5 and whole[-1].text.startswith(cut.text)
    warm = [
        list(desk.engine.speak(asked.prompt, asked.sight, Limits(LENGTH, temperature=2.0, seed=seed)))[-1].text
        for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_prompt_and_answer_have_the_models_positions_each(desk: Desk, folder: Path) -> None:
    most = FAMILY.dwarf["text_config"]["max_position_embeddings"]
    asked = ready(desk, "find", "k" * 400)
    length = sum(size(part) for part in desk.engine._laid_out(asked.prompt, asked.sight.content)[1])
    with Scripted(desk, "ab" * most):  # never ends of itself
        last = list(desk.engine.speak(asked.prompt, asked.sight, Limits(new_tokens=10 * most)))[-1]
    assert length < most and last.done and last.counters["new_tokens"] == most - 1
    asked = ready(desk, "find", "k" * most)
    with pytest.raises(ValueError, match=f"reads at most {most}: shorten the question"):
        next(desk.engine.speak(asked.prompt, asked.sight, Limits()))


def test_keys_and_values_of_both_halves_are_planned_for(desk: Desk) -> None:
    asked = ready(desk, "find", "a kite")
    list(desk.engine.speak(asked.prompt, asked.sight, Limits(new_tokens=9)))
    talk = desk.engine._talks[-1]
    read = sum(size(part) for part in desk.engine._laid_out(asked.prompt, asked.sight.content)[1])
    written = talk.cache.get_seq_length()
    assert written == 2 + 8 and read > CELLS  # two that every answer begins with, and the last token is not read
    kept = held(talk.cache)
    layers, width = 2, 64
    assert kept == 2 * layers * width * 4 * (read + written)
    assert kept <= plan.talk_bytes(desk.engine.model, read, torch.float32)  # as long an answer as its prompt


@torch.no_grad()
def test_attention_is_that_of_the_librarys_decoder_to_the_picture(theirs: Any, desk: Desk, processor: Any) -> None:
    ask = Ask((noise(),), (Turn("user", "a kite"),), "find", Limits(new_tokens=8))
    answer = list(desk.answer(ask))[-1]
    ids = desk.engine._talks[-1].answer
    found, _, _ = desk.trace(ask, answer, "attention")
    given = processor(text=told("find", "a kite"), images=noise(), return_tensors="pt")
    theirs.set_attn_implementation("eager")
    out = theirs(**given, decoder_input_ids=torch.tensor([[EOS, BOS, *ids]]), output_attentions=True)
    theirs.set_attn_implementation("sdpa")
    looked = out.cross_attentions[1][0, :, 1 : 1 + len(ids), 1:CELLS].mean((0, 1)).reshape(6, 6)
    wanted = (looked - looked.min()) / (looked.max() - looked.min())
    np.testing.assert_allclose(found.map, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_it_answers_in_fewer_bits(folder: Path, precision: str) -> None:
    desk = Desk(LocalEngine.open(folder, FAMILY, precision, "cpu"))
    ask = Ask((noise(),), (Turn("user", "a kite"),), "find", Limits(new_tokens=4))
    assert list(desk.answer(ask))[-1].done
    packed = {type(module).__name__ for module in desk.engine.model.language.modules()}
    assert (precision == "bf16") == (packed.isdisjoint({"Linear4bit", "Linear8bitLt"}))


AUTHORS = (  # from the library's names to those of the authors' own files, in this order
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.multi_modal_projector\.image_projection\.weight$", "image_projection"),
    (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
    (r"^model\.multi_modal_projector\.", ""),
    (r"^model\.(vision_tower\.convs\.\d\.)conv\.", r"\1proj."),
    (r"^model\.(vision_tower\..*)\.(conv[12])\.", r"\1.\2.fn.dw."),
    (r"^model\.(vision_tower\..*spatial_block)\.norm1\.", r"\1.window_attn.norm."),
    (r"^model\.(vision_tower\..*channel_block)\.norm1\.", r"\1.channel_attn.norm."),
    (r"^model\.(vision_tower\..*)\.norm2\.", r"\1.ffn.norm."),
    (r"^model\.(vision_tower\..*)\.ffn\.(fc[12])\.", r"\1.ffn.fn.net.\2."),
    (r"^model\.(vision_tower\..*_attn)\.(qkv|proj)\.", r"\1.fn.\2."),
    (r"^model\.(vision_tower\.)", r"\1"),
)


def test_the_authors_own_files_are_opened_too(theirs: Any, desk: Desk, tmp_path: Path) -> None:
    state = {weights.renamed(name, AUTHORS): tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert "vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv.weight" in state
    assert "vision_tower.blocks.1.0.channel_block.ffn.fn.net.fc1.bias" in state and "image_proj_norm.bias" in state
    state["image_projection"] = state["image_projection"].T.contiguous()
    state["language_model.final_logits_bias"] = torch.zeros(1, 1288)
    save_file(state, tmp_path / "model.safetensors")
    eyes = dict(FAMILY.dwarf["vision_config"])
    eyes["model_type"], eyes["dim_embed"] = "davit", eyes.pop("embed_dim")
    eyes["visual_temporal_embedding"] = {
        "type": "COSINE", "max_temporal_embeddings": eyes.pop("max_temporal_embeddings")
    }  # fmt: skip
    eyes["image_pos_embed"] = {"type": "learned_abs_2d", "max_pos_embeddings": eyes.pop("max_position_embeddings")}
    eyes["image_feature_source"] = ["spatial_avg_pool", "temporal_avg_pool"]
    (tmp_path / "config.json").write_text(json.dumps({**FAMILY.dwarf, "projection_dim": 64, "vision_config": eyes}))
    bart(()).save_pretrained(tmp_path)  # theirs has no marks of places: the program adds them
    other = Desk(LocalEngine.open(tmp_path, FAMILY, "fp32", "cpu"))
    ask = Ask((noise(),), (Turn("user", "", (BOX,)),), "region", Limits(new_tokens=LENGTH))
    wanted, found = (list(one.answer(ask))[-1] for one in (desk, other))
    assert found.raw == wanted.raw and len(set(re.findall(r"<\w+>|.", found.raw))) > 3


@pytest.mark.parametrize(("large", "said"), [(False, 0.23e9), (True, 0.77e9)])
def test_the_published_sizes_have_as_many_parameters_as_the_authors_say(large: bool, said: float) -> None:
    config = published(large)
    if large:  # files that say nothing of choosing tokens: what is published holds
        del config["text_config"]["forced_bos_token_id"], config["text_config"]["no_repeat_ngram_size"]
    with weights.without_memory():
        model = FAMILY.build(config)
    assert sum(one.numel() for one in model.parameters()) == pytest.approx(said, abs=0.005e9)
    assert model.language.begins == (2, 0) and model.unique == 3 and model.context == 1024


def test_the_eyes_are_planned_for() -> None:
    with weights.without_memory():
        model = FAMILY.build(published(False))
    told = plan.planned(model, "fp32", "cpu", FAMILY.keep)
    assert told.moment == 16 * 192 * 192 * 128 * 4 > told.talk == 2 * 2 * 6 * 768 * 4 * 1024


def test_both_lists_of_layers_can_stay_on_disk(desk: Desk, folder: Path) -> None:
    engine = LocalEngine.open(folder, FAMILY, "fp32", "disk")
    bart = engine.model.language.model
    away = [one.is_meta for half in (bart.encoder, bart.decoder) for one in half.layers.parameters()]
    assert all(away) and not engine.model.language.lm_head.weight.is_meta
    ask = Ask((noise(),), (Turn("user", "", (BOX,)),), "region", Limits(new_tokens=6))
    assert list(Desk(engine).answer(ask))[-1].raw == list(desk.answer(ask))[-1].raw


def test_an_outline_is_not_read_again_as_boxes(desk: Desk) -> None:
    marks = "".join(f"<loc_{step}>" for step in (100, 200, 500, 250, 450, 800, 120, 700))
    others = [one for _, one in desk.reread(spoken(desk, "segment", marks), (900, 300))[1:]]
    assert others and all(isinstance(place, Polygon) for one in others for span in one.spans for place in span.places)
