"""The deformable operator: sampling rule, gradients, choice of back end, clear errors."""

from __future__ import annotations

import pytest
import torch

import mmchat  # isort: skip  # noqa: F401 -- a checkout finds msda through it
import msda  # isort: skip


def drawn(batch=2, shapes=((3, 2),), heads=2, depth=3, queries=4, points=2, dtype=torch.float64, seed=0):
    """Random value, shapes, locations (some outside), weights."""
    generator = torch.Generator().manual_seed(seed)
    places = sum(height * width for height, width in shapes)
    value = torch.randn(batch, places, heads, depth, dtype=dtype, generator=generator)
    size = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*size, 2, dtype=dtype, generator=generator) * 1.4 - 0.2
    weights = torch.randn(*size, dtype=dtype, generator=generator)
    return value, torch.tensor(shapes), locations, weights


def by_hand(value, shapes, locations, weights):
    """The contract, one sample at a time."""
    batch, _, heads, depth = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, depth, dtype=value.dtype)
    starts = [0, *torch.tensor([h * w for h, w in shapes.tolist()]).cumsum(0).tolist()]
    for n, q, m, level, p in torch.cartesian_prod(*(torch.arange(size) for size in weights.shape)).tolist():
        height, width = shapes[level].tolist()
        x, y = (locations[n, q, m, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[n, q, m] += (
                        weights[n, q, m, level, p] * share * value[n, starts[level] + row * width + column, m]
                    )
    return out.flatten(2)


def operator(value, shapes, locations, weights):
    return torch.ops.msda.ms_deform_attn(value, shapes.flatten().tolist(), locations, weights)


SIZES = [
    {},
    {"shapes": ((5, 7), (3, 3), (1, 4), (1, 1)), "points": 3, "depth": 5},
    {"shapes": ((24, 24),) * 4, "heads": 1, "queries": 3, "batch": 1},
    {"batch": 1, "heads": 1, "depth": 1, "queries": 1, "points": 1, "shapes": ((1, 1),)},
]


@pytest.mark.parametrize("size", SIZES)
def test_samples_are_summed_as_the_contract_says(size: dict) -> None:
    given = drawn(**size)
    assert torch.allclose(msda.ms_deform_attn(*given), by_hand(*given), atol=1e-12)


def test_the_operator_and_the_function_agree() -> None:
    given = drawn(shapes=((3, 4), (2, 2)))
    assert torch.equal(operator(*given), msda.ms_deform_attn(*given))


@pytest.mark.parametrize("function", [msda.ms_deform_attn, operator], ids=["function", "operator"])
def test_gradients_are_those_of_the_function(function) -> None:
    value, shapes, locations, weights = drawn(batch=1, shapes=((3, 4), (2, 2)), queries=2)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, x, w: function(v, shapes, x, w), inputs)


def test_the_operator_keeps_torchs_rules() -> None:
    value, shapes, locations, weights = drawn(dtype=torch.float32)
    inputs = (value.requires_grad_(), shapes.flatten().tolist(), locations.requires_grad_(), weights.requires_grad_())
    torch.library.opcheck(torch.ops.msda.ms_deform_attn.default, inputs)


def test_sizes_may_be_given_as_pairs() -> None:
    value, shapes, locations, weights = drawn(shapes=((3, 2), (1, 5)))
    pairs = [(3, 2), (1, 5)]
    assert torch.equal(
        msda.ms_deform_attn(value, pairs, locations, weights), msda.ms_deform_attn(value, shapes, locations, weights)
    )


def test_no_queries_give_an_empty_answer() -> None:
    value, shapes, locations, weights = drawn(queries=0)
    assert msda.ms_deform_attn(value, shapes, locations, weights).shape == (2, 0, 6)


def test_what_lies_far_outside_counts_as_nothing() -> None:
    value, shapes, locations, weights = drawn()
    assert not msda.ms_deform_attn(value, shapes, locations + 3, weights).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values_are_summed_in_float32(dtype: torch.dtype) -> None:
    value, shapes, locations, weights = drawn(dtype=torch.float32)
    half = msda.ms_deform_attn(value.to(dtype), shapes, locations, weights)
    full = msda.ms_deform_attn(value.to(dtype).float(), shapes, locations, weights)
    assert half.dtype == dtype and torch.equal(half, full.to(dtype))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, s, x, w: (v[:, 1:], s, x, w), "5 places"),
        (lambda v, s, x, w: (v, s, x[..., :1], w), "same samples"),
        (lambda v, s, x, w: (v, s, x[:, :, :1], w[:, :, :1]), "do not fit"),
        (lambda v, s, x, w: (v, s[0], x, w), "height, width"),
        (lambda v, s, x, w: (v.long(), s, x, w), "floating point"),
        (lambda v, s, x, w: (v[0], s, x, w), "expected value"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        msda.ms_deform_attn(*change(*drawn()))


def test_the_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(msda.VARIABLE, raising=False)
    assert msda.choose().name in msda.BACKENDS and msda.choose().why
    monkeypatch.setenv(msda.VARIABLE, "reference")
    assert msda.choose() == msda.Choice("reference", "asked for by the variable MSDA_BACKEND")
    assert msda.choose(backend="reference").why == "asked for by the caller"


def test_an_unknown_back_end_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(msda.VARIABLE, "magic")
    with pytest.raises(ValueError, match=r"magic.*MSDA_BACKEND.*reference"):
        msda.ms_deform_attn(*drawn())
