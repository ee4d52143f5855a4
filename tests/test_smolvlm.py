"""SmolVLM: the library's own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

from typing import Any

import dwarfs
import independent
import pytest
import torch
from PIL import Image
from test_native import filled, noise
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, get_image_prompt_string

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.engines.talks import Filled
from mmchat.families.smolvlm import FAMILY, marks
from mmchat.geometry import Box, Region
from mmchat.nets.tiled import squares

NAMES = (
    "<s>", "</s>", "<unk>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>",
    "<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
)  # fmt: skip
END, PICTURE, CELLS, LENGTH = 260, 261, 4, 24
WORDS = {**FAMILY.dwarf["text_config"], "vocab_size": 256 + len(NAMES), "bos_token_id": 259, "eos_token_id": END}
CONFIG = {**FAMILY.dwarf, "image_token_id": PICTURE, "longest_edge": 168, "text_config": WORDS}
SHAPES = [(270, 90), (90, 270), (120, 110), (56, 56), (30, 400)]


def tokenizer() -> Tokenizer:
    """One token for each byte and mark, each written as a sign of its own: what is said tells every id."""
    made = dwarfs.byte_tokenizer(NAMES)
    made.decoder = decoders.Fuse()
    return made


def save(model: Any, folder: Any, **more: Any) -> None:
    """The checkpoint as the library writes it, with a tokenizer of bytes and marks."""
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>"}
    independent.save(model, folder, tokenizer(), settings, **more)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The library's model, and the desk with ours from its folder."""
    theirs = filled(independent.made(SmolVLMForConditionalGeneration, CONFIG))
    folder = tmp_path_factory.mktemp("smolvlm")
    save(theirs, folder)
    return theirs, Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))


def seen(images: list[Image.Image], side: int = 56, longest: int = 168) -> dict[str, Any]:
    """What the library's processor makes of the pictures of one talk."""
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": side}, return_row_col_info=True
    )
    return processor(images=[images], return_tensors="pt")


def asked(turns: list[tuple[str, str, int]], pictures: dict[str, Any]) -> torch.Tensor:
    """Ids [1, T] of a talk (role, words, pictures) as the library lays it out."""
    messages = [
        {"role": role, "content": [*([{"type": "image"}] * count), {"type": "text", "text": words}]}
        for role, words, count in turns
    ]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    text = fast.apply_chat_template(
        messages, chat_template=DEFAULT_CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    first, *rest = text.split("<image>")
    for number, part in enumerate(rest):
        rows, columns = pictures["rows"][0][number], pictures["cols"][0][number]
        first += get_image_prompt_string(rows, columns, CELLS, NAMES[6], "<image>", NAMES[7]) + part
    return torch.tensor([fast(first, add_special_tokens=False)["input_ids"]])


def generated(theirs: Any, ids: torch.Tensor, pictures: dict[str, Any]) -> str:
    """What the library's own `generate` says."""
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures["pixel_values"],
            pixel_attention_mask=pictures["pixel_attention_mask"], max_new_tokens=LENGTH, do_sample=False,
            eos_token_id=END, pad_token_id=0,
        )  # fmt: skip
    given = [one for one in out[0, ids.shape[1] :].tolist() if one != END]
    return tokenizer().decode(given, skip_special_tokens=False)


def ours(desk: Desk, images: tuple[Image.Image, ...], *turns: Turn) -> str:
    """What our desk says."""
    return list(desk.answer(Ask(images, turns, limits=Limits(new_tokens=LENGTH))))[-1].raw


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (640, 480), (512, 512), (37, 41), (6, 2000), (1999, 1400)])
def test_the_pixels_and_the_grid_are_the_librarys(size):
    frame = FAMILY.frame({"vision_config": {"image_size": 512, "patch_size": 16}, "text_config": {}})
    picture = noise(*size)
    views, (across, down) = squares(torch.from_numpy(frame.fit(picture)[0]), 512)
    theirs = seen([picture], 512, 2048)
    assert (theirs["rows"], theirs["cols"]) == ([[down]], [[across]])
    assert views.shape == theirs["pixel_values"][0].shape
    assert (views - theirs["pixel_values"][0]).abs().max() <= 2e-6
    assert theirs["pixel_attention_mask"].all()  # no view is padded: the tower needs no mask


def test_a_picture_of_one_tile_is_seen_alone():
    theirs = seen([noise(80, 70)], 56, 56)
    frame = FAMILY.frame({**CONFIG, "longest_edge": 56})
    views, grid = squares(torch.from_numpy(frame.fit(noise(80, 70))[0]), 56)
    assert grid == (1, 1) and theirs["rows"] == [[0]]
    assert views.shape == theirs["pixel_values"][0].shape
    assert (views - theirs["pixel_values"][0]).abs().max() <= 2e-6
    assert "".join(f"{words}I" for words in marks(1, 1))[:-1] == get_image_prompt_string(
        0, 0, 1, NAMES[6], "I", NAMES[7]
    )


@pytest.mark.parametrize("size", SHAPES)
def test_a_picture_of_any_shape_is_answered_as_by_the_library(both, size):
    theirs, desk = both
    picture = noise(*size)
    pictures = seen([picture])
    said = ours(desk, (picture,), Turn("user", "What is here?"))
    assert said == generated(theirs, asked([("user", "What is here?", 1)], pictures), pictures)
    assert len(set(said)) > 3
    assert said != ours(desk, (noise(*size, seed=1),), Turn("user", "What is here?"))


@pytest.mark.parametrize("size", SHAPES)
def test_ids_and_logits_are_the_librarys(both, size):
    theirs, desk = both
    picture = noise(*size)
    pictures = seen([picture])
    ids = asked([("user", "What is\nhere?", 1)], pictures)
    ready = desk._prepare(Ask((picture,), (Turn("user", "What is\nhere?"),)))
    model, tokens = desk.engine.model, desk.engine.tokens
    _, parts = desk.engine._laid_out(ready.prompt, ready.sight.content)
    laid: list[int] = []
    for part in parts:
        if isinstance(part, Filled):  # a slot: its words' ids, and the mark for each vector
            words = [tokens.ids(one) for one in marks(*ready.sight.content.kept[0])]
            laid += [one for some in words[:-1] for one in [*some, *[PICTURE] * CELLS]] + words[-1]
        else:
            laid.append(part)
    assert laid == ids[0].tolist()
    with torch.no_grad():
        found = model.language(inputs_embeds=desk.engine.inputs(parts)).logits
        expected = theirs(input_ids=ids, pixel_values=pictures["pixel_values"]).logits
    assert expected.std() > 0.5 and (found - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))


def test_the_next_turn_goes_on_as_the_library_would(both):
    theirs, desk = both
    picture = noise(270, 90)
    pictures = seen([picture])
    first = ours(desk, (picture,), Turn("user", "One?"))
    second = ours(desk, (picture,), Turn("user", "One?"), Turn("assistant", first), Turn("user", "Two?"))
    ids = asked([("user", "One?", 1), ("assistant", "", 0), ("user", "Two?", 0)], pictures)
    at = ids[0].tolist().index(END, ids[0].tolist().index(END) + 1)  # where the first answer would end
    signs = [tokenizer().token_to_id(one) for one in first]  # a sign an id: no mark is said by these weights
    # The blank of the template is not there: what the model said begins right behind the colon.
    ids = torch.cat((ids[:, : at - 1], torch.tensor([signs]), ids[:, at:]), 1)
    assert second == generated(theirs, ids, pictures)


def test_two_pictures_of_different_shapes(both):
    theirs, desk = both
    images = (noise(270, 90), noise(90, 140, seed=2))
    pictures = seen(list(images))
    said = ours(desk, images, Turn("user", "Which?"))
    assert said == generated(theirs, asked([("user", "Which?", 2)], pictures), pictures)
    assert said != ours(desk, images[::-1], Turn("user", "Which?"))


def test_a_turn_without_a_picture_begins_with_a_blank(both):
    _, desk = both
    turns = (Turn("user", "One?", images=(0,)), Turn("assistant", "Yes."), Turn("user", "Two?"))
    prompt = desk._prepare(Ask((noise(60, 60),), turns)).prompt
    words = "".join(piece for piece in prompt if isinstance(piece, str))
    assert words == (
        "<|im_start|>User:One?<end_of_utterance>\nAssistant: Yes.<end_of_utterance>\nUser: Two?<end_of_utterance>\n"
        "Assistant:"
    )


def test_a_region_is_refused_with_a_remedy(both):
    _, desk = both
    ask = Ask((noise(60, 60),), (Turn("user", "What is @1?", (Region("box", Box(0, 0, 0.5, 0.5)),)),))
    with pytest.raises(ValueError, match="takes no regions"):
        list(desk.answer(ask))


def test_numbers_in_an_answer_are_no_places():
    text = "I count [1, 2, 3, 4]<end_of_utterance>"
    read = FAMILY.dialect.read(text)
    assert not read.spans and read.text == "I count [1, 2, 3, 4]"
