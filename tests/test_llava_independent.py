"""LLaVA against transformers' own model of it, independent code, with the same random weights."""

from __future__ import annotations

import dwarfs
import independent
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mmchat.families.llava import FAMILY
from mmchat.nets.model import Model
from mmchat.prompt import Slot

MARK = 319  # the id that stands for a picture's vectors in the other model
LAYERS = (
    ("model.vision_tower.vision_model.", "model.vision_tower.", "vision."),
    ("model.multi_modal_projector.linear_1.", "", "bridge.0."),
    ("model.multi_modal_projector.linear_2.", "", "bridge.2."),
    ("model.language_model.", "", "language.model."),
    ("lm_head.", "", "language.lm_head."),
)


@pytest.fixture(scope="module")
def pair() -> tuple[Model, LlavaForConditionalGeneration]:
    """Our dwarf, and the other model with its weights: every one of them, by name."""
    ours = dwarfs.build(FAMILY)
    return ours, independent.llava(LlavaForConditionalGeneration, FAMILY.dwarf, ours.state_dict(), LAYERS, MARK)


def spliced(model: Model, row: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """One row of ids as vectors; each MARK is a whole picture."""
    seen, number, parts = model.see(pixels), 0, []
    for token in row:
        if token == MARK:
            parts.append(model.fill(Slot("image", number), seen, list))
            number += 1
        else:
            parts.append(model.embed([token]))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "rows", [[[1, MARK, 7, 8]], [[1, 5, MARK, 9, MARK, 11]], [[1, MARK, 7, 8, 9], [1, 4, 6, MARK, 3]]],
    ids=["one picture", "two pictures", "a batch"],
)  # fmt: skip
@torch.inference_mode()
def test_logits_and_greedy_ids_are_equal(pair, rows):
    ours, theirs = pair
    torch.manual_seed(3)
    counts = [row.count(MARK) for row in rows]
    pixels = torch.randn(sum(counts), 3, 56, 56)
    places = ours.vision.grid[0] ** 2
    ids = torch.tensor([[one for token in row for one in [token] * (places if token == MARK else 1)] for row in rows])
    embeds = torch.stack([spliced(ours, row, part) for row, part in zip(rows, pixels.split(counts), strict=True)])
    logits = ours.language(inputs_embeds=embeds).logits
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    assert (logits - expected).abs().max() <= 1e-5 and expected.std() > 0.05
    said = ours.language.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), max_new_tokens=8,
                                  do_sample=False, eos_token_id=None, pad_token_id=0)  # fmt: skip
    theirs_said = theirs.generate(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids),
                                  max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)  # fmt: skip
    assert torch.equal(said, theirs_said[:, ids.shape[1] :])
