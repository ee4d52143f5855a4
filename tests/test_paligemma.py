"""PaliGemma: the library's own whole model, saved as it saves, says what it says behind our slots."""

from __future__ import annotations

import json
from dataclasses import replace

import independent
import numpy as np
import pytest
import torch
from PIL import Image
from test_native import plain_tokenizer
from transformers import PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene, home
from mmchat.engines.local import LocalEngine
from mmchat.families.paligemma import FAMILY
from mmchat.geometry import Box

LENGTH = 20
IMAGE = 262


@pytest.fixture(scope="module", params=["gemma2", "gemma"])
def both(request, tmp_path_factory):
    """The library's model and the desk with ours from its folder, of the second and the first generation."""
    torch.manual_seed(0)
    words = {**FAMILY.dwarf["text_config"], "model_type": request.param, "vocab_size": 264}
    if request.param == "gemma":  # the first one keeps no window
        del words["sliding_window"]
    config = {**FAMILY.dwarf, "text_config": words, "image_token_index": IMAGE, "vocab_size": 264, "eos_token_id": 257}
    theirs = independent.made(PaliGemmaForConditionalGeneration, config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.8 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    plain_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return theirs, Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_task_is_answered_as_by_the_library(both, seed):
    theirs, desk = both
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56}, resample=3)
    pixels = processor(images=[noise(seed)], return_tensors="pt")["pixel_values"]
    tokenizer = plain_tokenizer()
    ids = torch.tensor([[IMAGE] * 16 + [256] + tokenizer.encode("detect a kite\n").ids])
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids),
            pixel_values=pixels, max_new_tokens=LENGTH, do_sample=False, eos_token_id=257,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    given = [one for one in out.sequences[0, ids.shape[1] :].tolist() if one != 257]
    wanted = tokenizer.decode(given, skip_special_tokens=False)
    sure = [float(logits[0].float().softmax(-1).max()) for logits in out.logits][: len(given)]
    ask = Ask((noise(seed),), (Turn("user", "a kite"),), "find", Limits(new_tokens=LENGTH))
    # Another question first: nothing that was read of it may serve this one.
    list(desk.answer(replace(ask, turns=(Turn("user", "a kit"),), limits=Limits(new_tokens=2))))
    ready = desk._prepare(ask)
    said = list(desk.engine.speak(ready.prompt, ready.sight, ask.limits))[-1]
    # Random weights with a tied head repeat themselves: the probabilities tell that every step is the same.
    assert said.text == wanted and [one for _, _, one in said.pieces] == pytest.approx(sure, rel=1e-3)
    assert len({round(one, 4) for one in sure}) > 1


def test_a_scripted_answer_lands_within_a_step_on_a_wide_picture():
    placement = FAMILY.frame(FAMILY.dwarf).place((900, 300))
    drawn = Box(0.21, 0.13, 0.66, 0.91)
    text = FAMILY.dialect.write((placement.into(drawn),), "kite", Scene((), placement.fitted))
    assert text == "<loc0133><loc0215><loc0931><loc0675> kite"
    (span,) = home(FAMILY.dialect.read(text, Scene((), placement.fitted)), placement).spans
    found = span.places[0]
    for name in ("x0", "y0", "x1", "y1"):
        assert abs(getattr(found, name) - getattr(drawn, name)) <= 1 / 1023
