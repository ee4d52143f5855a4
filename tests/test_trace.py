"""Heat maps as functions of tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmchat.nets import trace


def test_the_norm_is_largest_where_the_feature_is_longest():
    level = torch.zeros(3, 2, 4)
    level[:, 1, 2] = 5.0
    level[0, 0, 0] = 1.0
    found = trace.norm(level)
    assert found.shape == (2, 4) and np.unravel_index(found.argmax(), found.shape) == (1, 2)
    assert found[1, 2] == 1 and found[0, 1] == 0 and found[0, 0] == pytest.approx(1 / math.sqrt(75))


def test_components_tell_two_kinds_of_cells_apart():
    level = torch.zeros(8, 4, 4)
    level[0, :, :2], level[1, :, 2:] = 1.0, 1.0
    found = trace.components(level)
    assert found.shape == (4, 4, 3) and found.dtype == np.float32
    assert abs(found[0, 0, 0] - found[0, 3, 0]) == 1 and np.allclose(found[:, :2], found[0, 0])


def test_components_do_not_depend_on_the_sign_that_the_solver_chose():
    level = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(0))
    assert np.allclose(trace.components(level), trace.components(level.clone()), atol=1e-5)
    assert np.allclose(trace.components(level), trace.components(level + 3.0), atol=1e-4)  # the mean is taken away


def test_fewer_numbers_than_colours_leave_colours_dark():
    found = trace.components(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert not found[..., 2].any() and found[..., 0].any()


def test_likeness_is_one_inside_the_region_and_less_elsewhere():
    level = torch.zeros(2, 4, 4)
    level[0], level[0, 1, 1], level[1, 1, 1] = 1.0, 0.0, 2.0
    level[:, 3, 3] = torch.tensor([0.0, -1.0])
    found = trace.likeness(level, (0.25, 0.25, 0.5, 0.5))
    assert found[1, 1] == pytest.approx(1) and found[0, 0] == pytest.approx(0.5) and found[3, 3] == pytest.approx(0)


def test_a_box_smaller_than_a_cell_still_has_a_feature():
    level = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
    found = trace.likeness(level, (0.4, 0.4, 0.41, 0.41))
    assert found[1, 1] == pytest.approx(1, abs=1e-5)


def test_a_point_takes_the_cell_it_lies_in():
    assert trace.covered(0.6, 0.6, 4).tolist() == [0, 0, 1, 0]
    assert trace.covered(1.0, 1.0, 4).tolist() == [0, 0, 0, 1]


def test_cells_count_by_how_much_is_covered():
    assert trace.covered(0.125, 0.5, 4) == pytest.approx([0.5, 1, 0, 0])


@pytest.mark.parametrize("values", [[2.0, 2.0], [float("nan"), 0.0], [0.0, 0.0]])
def test_a_flat_map_is_zero_and_not_nan(values):
    assert trace.unit(torch.tensor(values)).tolist() == [0.0, 0.0]


def test_vectors_that_are_no_square_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match="choose another heat map"):
        trace.laid(torch.zeros(7))


def dwarf():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def test_attention_is_what_the_library_gives():
    language = dwarf()
    inputs = torch.randn(1, 9, 16)
    found = trace.attention(language, inputs, [6, 8], slice(1, 5))
    with trace.eager(language), torch.inference_mode():
        rows = language(inputs_embeds=inputs, output_attentions=True).attentions[1][0]
    expected = rows[:, [6, 8], 1:5].mean((0, 1))
    assert torch.allclose(found, expected, atol=1e-6) and found.shape == (4,)


def test_looking_at_attention_leaves_the_model_as_it_was():
    language = dwarf()
    before = language.config._attn_implementation
    trace.attention(language, torch.randn(1, 4, 16), [3], slice(0, 2))
    assert language.config._attn_implementation == before
    assert not any(module._forward_hooks for module in language.modules())


def test_the_lens_at_the_last_layer_is_the_models_own_distribution():
    language = dwarf()
    inputs = torch.randn(1, 6, 16)
    with torch.inference_mode():
        own = language(inputs_embeds=inputs).logits[0].softmax(-1)
    found = trace.lens(language, inputs, list(range(50)), slice(0, 6))  # all tokens: the likeliest of any layer
    assert (found >= own.amax(-1) - 1e-6).all() and (found <= 1).all()
