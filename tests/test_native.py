"""Families that transformers runs: its own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

import re
from typing import Any

import dwarfs
import independent
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmchat import family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene, home
from mmchat.engines.local import LocalEngine
from mmchat.geometry import Box, Region

MARKS = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
QWEN = {
    "bos_token_id": 256, "eos_token_id": 260, "vision_start_token_id": 261, "image_token_id": 262,
    "vision_end_token_id": 263, "video_token_id": 3, "vocab_size": 264,
}  # fmt: skip
LIBRARYS = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
LENGTH = 24
SIGNS = re.compile("|".join([*map(re.escape, MARKS), "."]))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of which no part is like another."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights large enough that every part changes what comes out."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
    with torch.no_grad():
        model.lm_head.weight[256:] = 0  # a mark that it wrote would be taken for a picture in the next turn
    return model.eval()


def marked(dwarf: Any) -> dict[str, Any]:
    """The dwarf's config.json with the ids of our marks; newer ones keep the words' sizes in a part of their own."""
    config = {**dwarf, **QWEN}
    if "text_config" in dwarf:
        words = {key: config.pop(key) for key in ("vocab_size", "bos_token_id", "eos_token_id")}
        config["text_config"] = {**dwarf["text_config"], **words}
    return config


def plain_tokenizer() -> Tokenizer:
    """One token for each byte and mark, each written as a sign of its own: what is said tells every id."""
    tokenizer = dwarfs.byte_tokenizer(MARKS)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def save(model: Any, folder: Any) -> None:
    """The checkpoint as the library writes it, with a tokenizer of bytes and marks."""
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "add_bos_token": False}
    independent.save(model, folder, plain_tokenizer(), settings)


@pytest.fixture(scope="module", params=sorted(LIBRARYS))
def both(request, tmp_path_factory):
    """The library's model, the desk with ours from its folder, and the family."""
    record = family.load(request.param)
    kind = LIBRARYS[request.param]
    theirs = filled(kind(kind.config_class(**marked(record.dwarf))))
    folder = tmp_path_factory.mktemp(request.param)
    save(theirs, folder)
    return theirs, Desk(LocalEngine.open(folder, record, "fp32", "cpu")), record


def wanted(theirs: Any, record: Any, talk: str, images: list[Image.Image], more: str = "", said: str = "") -> str:
    """What the library's own `generate` says: marks repeated as its processor would, pictures through its processor.

    said: an earlier answer, each sign an id, with the words `more` behind it.
    """
    frame = record.frame(record.dwarf)
    vision = theirs.config.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        size={"shortest_edge": frame.area[0], "longest_edge": frame.area[1]},
        image_mean=list(frame.mean), image_std=list(frame.std),
    )  # fmt: skip
    pictures = processor(images=images, return_tensors="pt")
    parts = talk.split("<|image_pad|>")
    for number, grid in enumerate(pictures["image_grid_thw"]):
        parts[number] += "<|image_pad|>" * int(grid.prod() // vision.spatial_merge_size**2)
    tokenizer = plain_tokenizer()
    spelled = [tokenizer.token_to_id(one) for one in SIGNS.findall(said)]
    ids = torch.tensor([[*tokenizer.encode("".join(parts)).ids, *spelled, *tokenizer.encode(more).ids]])
    kinds = (ids == QWEN["image_token_id"]).long()
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **pictures,
            max_new_tokens=LENGTH, do_sample=False, eos_token_id=QWEN["eos_token_id"],
        )  # fmt: skip
    given = [one for one in out[0, ids.shape[1] :].tolist() if one != QWEN["eos_token_id"]]
    return tokenizer.decode(given, skip_special_tokens=False)


def opened(record: Any, words: str) -> str:
    """A first turn as the published chat template lays it out."""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if record.name == "qwen2_5_vl" else ""
    return f"{system}<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"


def ours(desk: Desk, images: tuple[Image.Image, ...], *turns: Turn) -> str:
    """What our desk says."""
    return list(desk.answer(Ask(images, turns, limits=Limits(new_tokens=LENGTH))))[-1].raw


SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize("size", [(270, 90), (90, 270), (120, 110)])
def test_a_picture_of_any_shape_is_answered_as_by_the_library(both, size):
    theirs, desk, record = both
    picture = noise(*size)
    said = ours(desk, (picture,), Turn("user", "What is here?"))
    assert said == wanted(theirs, record, opened(record, SHOWN + "What is here?"), [picture])
    assert len(set(said)) > 3
    assert said != ours(desk, (noise(*size, seed=1),), Turn("user", "What is here?"))


def test_the_next_turn_goes_on_as_the_library_would(both):
    theirs, desk, record = both
    picture = noise(270, 90)
    first = ours(desk, (picture,), Turn("user", "One?"))
    second = ours(desk, (picture,), Turn("user", "One?"), Turn("assistant", first), Turn("user", "Two?"))
    more = "<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    assert second == wanted(theirs, record, opened(record, SHOWN + "One?"), [picture], more, first)


def test_two_pictures_of_different_sizes(both):
    theirs, desk, record = both
    pictures = (noise(270, 90), noise(90, 140))
    said = ours(desk, pictures, Turn("user", "Which?"))
    assert said == wanted(theirs, record, opened(record, SHOWN * 2 + "Which?"), list(pictures))


def test_a_scripted_answer_lands_within_a_step_on_a_wide_picture(both):
    _, _, record = both
    placement = record.frame(record.dwarf).place((900, 300))
    drawn = Box(0.21, 0.13, 0.66, 0.91)
    scene = Scene((), placement.fitted)
    text = "Here: " + record.dialect.write((placement.into(drawn),), "a kite", scene)
    (span,) = home(record.dialect.read(text, scene), placement).spans
    found = span.places[0]
    step = 1 / np.array(placement.fitted if record.dialect.code.scale == 0 else (1000, 1000))
    assert abs(found.x0 - drawn.x0) <= step[0] and abs(found.x1 - drawn.x1) <= step[0]
    assert abs(found.y0 - drawn.y0) <= step[1] and abs(found.y1 - drawn.y1) <= step[1]


def test_a_region_is_said_in_the_numbers_of_its_own_picture(both):
    _, _, record = both
    for size in ((270, 90), (90, 270)):
        frame = record.frame(record.dwarf).place(size).fitted
        (words,) = record.mention(1, Region("box", Box(0, 0, 1, 1)), record.dialect, Scene((), frame))
        across, down = (frame[0] - 1, frame[1] - 1) if record.dialect.code.scale == 0 else (1000, 1000)
        assert words == f"[0, 0, {across}, {down}]"


@pytest.mark.parametrize("precision", ["nf4"])
def test_it_answers_in_four_bits(both, tmp_path, precision):
    theirs, _, record = both
    save(theirs, tmp_path)
    desk = Desk(LocalEngine.open(tmp_path, record, precision, "cpu"))
    assert list(desk.answer(Ask((noise(60, 60),), (Turn("user", "So?"),), limits=Limits(new_tokens=3))))[-1].done
