"""InternVL: the library's own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dwarfs
import independent
import pytest
import torch
from PIL import Image
from test_native import filled, noise
from tokenizers import Tokenizer, decoders
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene, home
from mmchat.engines.local import LocalEngine
from mmchat.engines.talks import Filled
from mmchat.families.internvl import FAMILY
from mmchat.geometry import Box, Region
from mmchat.nets.tiled import squares

MARKS = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
END, PICTURE, CELLS, LENGTH = 260, 263, 4, 24
WORDS = {**FAMILY.dwarf["text_config"], "vocab_size": 264, "bos_token_id": 256, "eos_token_id": END}
CONFIG = {**FAMILY.dwarf, "image_token_id": PICTURE, "image_seq_length": CELLS, "text_config": WORDS}
# The published chat template.
TALK = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = [(270, 90), (90, 270), (120, 110), (56, 56), (30, 400)]


def tokenizer() -> Tokenizer:
    """One token for each byte and mark, each written as a sign of its own: what is said tells every id."""
    made = dwarfs.byte_tokenizer(MARKS)
    made.decoder = decoders.Fuse()
    return made


def save(model: Any, folder: Any, **more: Any) -> None:
    """The checkpoint as the library writes it, with a tokenizer of bytes and marks."""
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "add_bos_token": False}
    independent.save(model, folder, tokenizer(), settings, **more)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The library's model, and the desk with ours from its folder."""
    theirs = filled(independent.made(InternVLForConditionalGeneration, CONFIG))
    folder = tmp_path_factory.mktemp("internvl")
    save(theirs, folder)
    return theirs, Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))


def seen(images: list[Image.Image], side: int = 56) -> dict[str, torch.Tensor]:
    """What the library's processor makes of pictures."""
    frame = FAMILY.frame(CONFIG)
    processor = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=12, resample=3,
        image_mean=list(frame.mean), image_std=list(frame.std),
    )  # fmt: skip
    return processor(images=images, return_tensors="pt")


def asked(turns: list[tuple[str, str, int]], counts: list[int]) -> torch.Tensor:
    """Ids [1, T] of a talk (role, words, pictures) as the library lays it out; counts: views of each picture."""
    messages = [
        {"role": role, "content": [*([{"type": "image"}] * pictures), {"type": "text", "text": words}]}
        for role, words, pictures in turns
    ]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    text = fast.apply_chat_template(messages, chat_template=TALK, add_generation_prompt=True, tokenize=False)
    marks = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=CELLS
    )
    first, *rest = text.split("<IMG_CONTEXT>")
    for number, part in enumerate(rest):
        first += InternVLProcessor.replace_image_token(marks, {"num_patches": counts}, number) + part
    return torch.tensor([fast(first, add_special_tokens=False)["input_ids"]])


def wanted(theirs: Any, turns: list[tuple[str, str, int]], images: list[Image.Image]) -> str:
    """What the library's own `generate` says."""
    pictures = seen(images)
    ids = asked(turns, pictures["num_patches"].tolist())
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures["pixel_values"],
            max_new_tokens=LENGTH, do_sample=False, eos_token_id=END,
        )  # fmt: skip
    given = [one for one in out[0, ids.shape[1] :].tolist() if one != END]
    return tokenizer().decode(given, skip_special_tokens=False)


def ours(desk: Desk, images: tuple[Image.Image, ...], *turns: Turn) -> str:
    """What our desk says."""
    return list(desk.answer(Ask(images, turns, limits=Limits(new_tokens=LENGTH))))[-1].raw


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (640, 480), (448, 448), (37, 41), (60, 2000), (1999, 1400)])
def test_the_pixels_are_the_librarys(size):
    frame = FAMILY.frame({"vision_config": {}, "text_config": {}})
    assert frame.side == 448
    picture = noise(*size)
    views, _ = squares(torch.from_numpy(frame.fit(picture)[0]), 448)
    theirs = seen([picture], 448)["pixel_values"]
    assert views.shape == theirs.shape and (views - theirs).abs().max() <= 2e-6


@pytest.mark.parametrize("size", SHAPES)
def test_a_picture_of_any_shape_is_answered_as_by_the_library(both, size):
    theirs, desk = both
    picture = noise(*size)
    said = ours(desk, (picture,), Turn("user", "What is here?"))
    assert said == wanted(theirs, [("user", "What is here?", 1)], [picture]) and len(set(said)) > 3
    assert said != ours(desk, (noise(*size, seed=1),), Turn("user", "What is here?"))


@pytest.mark.parametrize("size", SHAPES)
def test_ids_and_logits_are_the_librarys(both, size):
    theirs, desk = both
    picture = noise(*size)
    pictures = seen([picture])
    ids = asked([("user", "What is\nhere?", 1)], pictures["num_patches"].tolist())
    ready = desk._prepare(Ask((picture,), (Turn("user", "What is\nhere?"),)))
    _, parts = desk.engine._laid_out(ready.prompt, ready.sight.content)
    laid = [one for part in parts for one in ([PICTURE] * len(part.vectors) if isinstance(part, Filled) else [part])]
    assert laid == ids[0].tolist()
    with torch.no_grad():
        found = desk.engine.model.language(inputs_embeds=desk.engine.inputs(parts)).logits
        expected = theirs(input_ids=ids, pixel_values=pictures["pixel_values"]).logits
    assert expected.std() > 0.5 and (found - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))


def test_the_next_turn_goes_on_as_the_library_would(both):
    theirs, desk = both
    picture = noise(270, 90)
    first = ours(desk, (picture,), Turn("user", "One?"))
    second = ours(desk, (picture,), Turn("user", "One?"), Turn("assistant", first), Turn("user", "Two?"))
    talk = [("user", "One?", 1), ("assistant", "", 0), ("user", "Two?", 0)]
    ids = asked(talk, seen([picture])["num_patches"].tolist())
    at = ids[0].tolist().index(END, ids[0].tolist().index(END) + 1)  # where the first answer would end
    signs = [tokenizer().token_to_id(one) for one in first]  # a sign an id: no mark is said by these weights
    ids = torch.cat((ids[:, :at], torch.tensor([signs]), ids[:, at:]), 1)
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=seen([picture])["pixel_values"],
            max_new_tokens=LENGTH, do_sample=False, eos_token_id=END,
        )  # fmt: skip
    given = [one for one in out[0, ids.shape[1] :].tolist() if one != END]
    assert second == tokenizer().decode(given, skip_special_tokens=False)


def test_two_pictures_of_different_shapes(both):
    theirs, desk = both
    pictures = (noise(270, 90), noise(90, 140, seed=2))
    said = ours(desk, pictures, Turn("user", "Which?"))
    assert said == wanted(theirs, [("user", "Which?", 2)], list(pictures))
    assert said != ours(desk, pictures[::-1], Turn("user", "Which?"))


def test_a_scripted_answer_lands_within_a_step_on_a_wide_picture():
    frame = FAMILY.frame(CONFIG)
    placement = frame.place((900, 300))
    assert placement.fitted == (336, 112)  # twice as many tiles as the shape needs
    drawn = Box(0.21, 0.13, 0.66, 0.91)
    text = "<ref>a kite</ref><box>[[210, 130, 660, 910]]</box>"
    assert FAMILY.dialect.write((placement.into(drawn),), "a kite", Scene((), placement.fitted)) == text
    (span,) = home(FAMILY.dialect.read("Here: " + text, Scene((), placement.fitted)), placement).spans
    found = span.places[0]
    for name in ("x0", "y0", "x1", "y1"):
        assert abs(getattr(found, name) - getattr(drawn, name)) <= 1 / 1000


def test_a_drawn_region_is_said_in_thousandths_of_its_own_picture(both):
    _, desk = both
    region = Region("box", Box(0.25, 0.5, 0.75, 1.0), image=1)
    ask = Ask((noise(270, 90), noise(90, 270)), (Turn("user", "", (region,), (0, 1)),), "region")
    prompt = desk._prepare(ask).prompt
    assert prompt[-1].endswith(
        "\nPlease describe the region <box>[[250, 500, 750, 1000]]</box> in the image.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_finding_is_asked_as_the_card_says(both):
    _, desk = both
    prompt = desk._prepare(Ask((noise(60, 60),), (Turn("user", "the red cup"),), "find")).prompt
    asked_ = "Please provide the bounding box coordinate of the region this sentence describes: <ref>the red cup</ref>"
    assert f"\n{asked_}<|im_end|>" in prompt[-1]


def test_fewer_tiles_where_the_config_says_so():
    frame = FAMILY.frame({**CONFIG, "max_dynamic_patch": 4})
    assert frame.place((900, 90)).fitted == (4 * 56, 56) and FAMILY.frame(CONFIG).place((900, 90)).fitted[0] == 10 * 56


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_the_table_of_words_where_the_config_says_so(tied):
    model = FAMILY.build({**CONFIG, "tie_word_embeddings": tied})
    assert (model.language.lm_head.weight is model.language.get_input_embeddings().weight) == tied
    older = {key: one for key, one in CONFIG.items() if key != "tie_word_embeddings"}
    model = FAMILY.build({**older, "text_config": {**WORDS, "tie_word_embeddings": tied}})
    assert (model.language.lm_head.weight is model.language.get_input_embeddings().weight) == tied
