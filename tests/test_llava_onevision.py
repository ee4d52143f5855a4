"""LLaVA-OneVision: the library's own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

import json
from typing import Any

import independent
import numpy as np
import pytest
import torch
from PIL import Image
from test_native import plain_tokenizer
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.families.llava_onevision import FAMILY, Tower, build, frame
from mmchat.geometry import Box, Region
from mmchat.nets import plan, weights

LENGTH = 16
IMAGE = 262  # of the tokenizer's marks the one that stands for a picture
MARK = "<|image_pad|>"
SHAPES = [(170, 60), (60, 40), (100, 100), (120, 75), (40, 30), (400, 300), (23, 11), (300, 3)]
TALL = [(60, 170), (31, 90), (3, 300)]
# The published conversions' chat template: pictures first, each text on a new line.
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for one in message['content'] if one['type'] == 'image' %}{{ 'MARK' }}{% endfor %}"
    "{% for one in message['content'] if one['type'] == 'text' %}{{ '\n' + one['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
).replace("MARK", MARK)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of which no part is like another."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["anyres_max_9", "anyres_max_2"])
def both(request, tmp_path_factory):
    """The library's model and the desk with ours from its folder; in the second most pictures become too long."""
    words = {**FAMILY.dwarf["text_config"], "vocab_size": 264, "bos_token_id": 256, "eos_token_id": 260}
    config = {**FAMILY.dwarf, "text_config": words, "image_token_index": IMAGE, "video_token_index": 261}
    config["vision_aspect_ratio"] = request.param
    theirs = independent.made(LlavaOnevisionForConditionalGeneration, config).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
    with torch.no_grad():
        theirs.lm_head.weight[256:] = 0  # a mark that it wrote would be taken for a picture
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    plain_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    desk = Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))
    yield theirs, desk
    desk.close()


def processor(theirs: Any) -> LlavaOnevisionProcessor:
    """The library's own, with a tokenizer of bytes and marks."""
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        image_grid_pinpoints=theirs.config.image_grid_pinpoints,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain_tokenizer(), eos_token="<|im_end|>")
    made = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)  # its own wants a video processor of torchvision
    made.image_processor, made.tokenizer, made.image_token, made.num_image_tokens = pictures, tokenizer, MARK, 16
    made.vision_aspect_ratio, made.vision_feature_select_strategy = theirs.config.vision_aspect_ratio, "full"
    return made


def wanted(theirs: Any, images: list[Image.Image], *talk: tuple[str, str]) -> dict[str, torch.Tensor]:
    """What the library's processor makes of a talk whose first turn shows the pictures."""
    made = processor(theirs)
    messages = [
        {"role": role, "content": [{"type": "image"}] * (len(images) * (not index)) + [{"type": "text", "text": text}]}
        for index, (role, text) in enumerate(talk)
    ]
    text = made.tokenizer.apply_chat_template(
        messages, chat_template=CHAT, tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    pictures = dict(made.image_processor(images=[images], return_tensors="pt"))
    parts = text.split(MARK)
    told = "".join(f"{part}{made.replace_image_token(pictures, index)}" for index, part in enumerate(parts[:-1]))
    ids = torch.tensor([plain_tokenizer().encode(told + parts[-1]).ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}


def said(theirs: Any, given: dict[str, torch.Tensor]) -> str:
    with torch.no_grad():
        out = theirs.generate(**given, max_new_tokens=LENGTH, do_sample=False, eos_token_id=260, pad_token_id=0)
    return plain_tokenizer().decode(out[0, given["input_ids"].shape[1] :].tolist(), skip_special_tokens=False)


def ours(desk: Desk, images: tuple[Image.Image, ...], *turns: Turn) -> str:
    return list(desk.answer(Ask(images, turns, limits=Limits(new_tokens=LENGTH))))[-1].raw


def seen(desk: Desk, images: tuple[Image.Image, ...]) -> tuple[list[int], torch.Tensor]:
    """The prompt's ids, pictures as marks, and its vectors."""
    ready = desk._prepare(Ask(images, (Turn("user", "What?"),)))
    _, parts = desk.engine._laid_out(ready.prompt, ready.sight.content)
    ids = [one for part in parts for one in ([part] if isinstance(part, int) else [IMAGE] * len(part.vectors))]
    with torch.inference_mode():
        return ids, desk.engine.inputs(parts)


@pytest.mark.parametrize("size", SHAPES)
def test_pixels_prompt_logits_and_text_are_the_librarys(both, size):
    theirs, desk = both
    picture = noise(*size)
    given = wanted(theirs, [picture], ("user", "What?"))
    canvas, _ = frame(desk.engine.config).fit(picture)
    below = canvas[:, 56:-1, :-1]
    tiles = [below[:, top : top + 56, left : left + 56]
             for top in range(0, below.shape[1], 56) for left in range(0, below.shape[2], 56)]  # fmt: skip
    assert np.array_equal(np.stack([canvas[:, :56, :56], *tiles]), given["pixel_values"][0].numpy())
    ids, inputs = seen(desk, (picture,))
    assert ids == given["input_ids"][0].tolist()
    with torch.inference_mode():
        expected = theirs(**given).logits
        assert (desk.engine.model.language(inputs_embeds=inputs).logits - expected).abs().max() <= 1e-5
    text = ours(desk, (picture,), Turn("user", "What?"))
    assert text == said(theirs, given) and len(set(text)) > 3
    assert text != ours(desk, (noise(*size, seed=1),), Turn("user", "What?"))


@pytest.mark.parametrize("size", TALL)
def test_a_tall_picture_is_answered_as_by_the_library_from_our_pixels(both, size):
    """The whole of a tall picture is brought to its height first, as in LLaVA's recorded numbers: the library goes by
    width first, so that its pixels differ by a grey level here and there; the tiles are equal."""
    theirs, desk = both
    picture = noise(*size)
    given = wanted(theirs, [picture], ("user", "What?"))
    whole = torch.from_numpy(frame(desk.engine.config).fit(picture)[0][:, :56, :56].copy())
    assert (given["pixel_values"][0, 0] - whole).abs().max() <= 12 / 255 * 2
    given["pixel_values"][0, 0] = whole
    ids, _ = seen(desk, (picture,))
    assert ids == given["input_ids"][0].tolist()
    assert ours(desk, (picture,), Turn("user", "What?")) == said(theirs, given)


def test_several_pictures_are_each_one_padded_square(both):
    theirs, desk = both
    pictures = noise(170, 60), noise(40, 90), noise(56, 56)
    given = wanted(theirs, list(pictures), ("user", "What?"))
    assert given["pixel_values"].shape[1] == 1
    ids, inputs = seen(desk, pictures)
    assert ids == given["input_ids"][0].tolist() and ids.count(IMAGE) == 3 * 17
    with torch.inference_mode():
        expected = theirs(**given).logits
        assert (desk.engine.model.language(inputs_embeds=inputs).logits - expected).abs().max() <= 1e-5
    assert ours(desk, pictures, Turn("user", "What?")) == said(theirs, given)


def test_the_next_turn_is_laid_out_as_the_library_does(both):
    theirs, desk = both
    picture = noise(170, 60)
    turns = Turn("user", "One?"), Turn("assistant", "Yes."), Turn("user", "Two?")
    given = wanted(theirs, [picture], *((turn.role, turn.text) for turn in turns))
    assert ours(desk, (picture,), *turns) == said(theirs, given)


@pytest.mark.parametrize("kind", FAMILY.heats)
def test_heat_maps_of_one_and_of_several(both, kind):
    _, desk = both
    most = 9 if desk.engine.config["vision_aspect_ratio"].endswith("9") else 2
    one, several = (noise(170, 60),), (noise(170, 60), noise(40, 90))
    for pictures, shape in ((one, {9: (12, 12), 2: (9, 9)}[most]), (several, (4, 4))):
        box = Region("box", Box(0.1, 0.1, 0.6, 0.9), image=len(pictures) - 1)
        ask = Ask(pictures, (Turn("user", "What?"),), limits=Limits(new_tokens=4))
        answer = list(desk.answer(ask))[-1]
        trace, _, _ = desk.trace(ask, answer, kind, box if kind == "likeness" else None)
        assert trace.map.shape[:2] == shape and len(np.unique(trace.map)) > 3


def test_it_answers_in_four_bits(both, tmp_path):
    theirs, _ = both
    theirs.save_pretrained(tmp_path)
    plain_tokenizer().save(str(tmp_path / "tokenizer.json"))
    desk = Desk(LocalEngine.open(tmp_path, FAMILY, "nf4", "cpu"))
    assert list(desk.answer(Ask((noise(60, 60),), (Turn("user", "So?"),), limits=Limits(new_tokens=3))))[-1].done


def published() -> dict[str, Any]:
    """The 0.5B conversion's config.json, as far as it matters."""
    side = [384 * number for number in range(1, 7)]
    return {
        "model_type": "llava_onevision", "image_token_index": 151646, "video_token_index": 151647,
        "image_grid_pinpoints": [[height, width] for height in side for width in side],
        "vision_aspect_ratio": "anyres_max_9", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False, "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 152000, "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
            "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
        },
    }  # fmt: skip


def test_the_published_sizes_are_planned_and_older_names_land():
    with weights.without_memory():
        model = build(published())
        theirs = LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionForConditionalGeneration.config_class(
                **{key: value for key, value in published().items() if key != "model_type"}
            )
        )
    assert model.vision.grid == (27, 27)
    assert 729 * 10 < model.picture_tokens <= 729 + 1.21 * 9 * 729 + 6 * 27
    assert plan.planned(model).tokens == plan.TALK - 576 + model.picture_tokens
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    new = {weights.renamed(name, FAMILY.keys): tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert new == mine
    old = {  # as transformers wrote them before 4.52
        name.replace("model.language_model.", "language_model.model.").replace("model.vision_tower.",
        "vision_tower.vision_model.").replace("model.multi_modal", "multi_modal").replace("model.image", "image")
        .replace("lm_head.", "language_model.lm_head.") for name in theirs.state_dict()
    }  # fmt: skip
    assert {weights.renamed(name, FAMILY.keys) for name in old} == set(mine)


def test_an_earlier_layer_may_be_chosen():
    config = {**FAMILY.dwarf, "vision_feature_layer": -2}
    assert build(config).vision.depth == 1 and build(FAMILY.dwarf).vision.depth == 2
    assert isinstance(build(config).vision, Tower)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"vision_feature_layer": [-1, -2]}, "one number"),
        ({"vision_aspect_ratio": "pad"}, "write anyres_max_9"),
        ({"image_grid_pinpoints": [[60, 56]]}, "multiples of 56"),
    ],
)
def test_what_no_published_config_says_is_refused(entry, words):
    with pytest.raises(ValueError, match=words):
        frame({**FAMILY.dwarf, **entry})
