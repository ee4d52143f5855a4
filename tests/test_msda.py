"""The deformable operator: sampling rule, gradients, choice of back end, clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmchat  # isort: skip  # noqa: F401 -- a checkout finds msda through it
import msda  # isort: skip
from msda import cpu, reference  # isort: skip


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


# The compiled CPU back end, each instruction set that this processor has, against the reference.

built = pytest.mark.skipif(bool(cpu.state("cpu", torch.float32)), reason=cpu.state("cpu", torch.float32) or "ready")
compiled = lambda test: pytest.mark.compiled(built(test))  # noqa: E731


@pytest.fixture(params=cpu.SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hold the back end to one instruction set."""
    if request.param not in cpu.SETS[: cpu._library().msda_best() + 1]:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv(cpu.VARIABLE, request.param)
    return request.param


def raw(kind=2, shared=False, masked=False, dtype=torch.float64, seed=1, **size):
    """Value, shapes as pairs, reference points or boxes, offsets, logits, mask."""
    value, shapes, locations, weights = drawn(dtype=dtype, seed=seed, **size)
    generator = torch.Generator().manual_seed(seed)
    batch, queries, _, levels = weights.shape[:4]
    first = (1, queries, 1) if shared else (batch, queries, levels)
    reference = torch.rand(*first, kind, dtype=dtype, generator=generator) * 1.2 - 0.1
    mask = torch.rand(value.shape[:2], generator=generator) < 0.3 if masked else None
    offsets = torch.randn(locations.shape, dtype=dtype, generator=generator) * 2
    return value, [tuple(pair) for pair in shapes.tolist()], reference, offsets, weights * 3, mask


ODD = [
    {},
    {"shapes": ((5, 7), (3, 3), (1, 4), (1, 1)), "points": 3, "depth": 5, "queries": 11},
    {"shapes": ((9, 8), (4, 4), (2, 2), (1, 1)), "points": 4, "depth": 64, "heads": 3, "queries": 40},
    {"shapes": ((6, 5),), "points": 4, "depth": 131, "queries": 7},
    {"shapes": ((7, 1), (1, 7), (2, 3), (3, 2), (1, 1)), "points": 5, "depth": 24, "queries": 50},
    {"shapes": ((16, 16),), "points": 1, "depth": 33, "queries": 1, "heads": 1},
]
WAYS = [
    {"kind": 2},
    {"kind": 4},
    {"kind": 2, "shared": True, "masked": True},
    {"kind": 4, "shared": True},
    {"kind": 4, "masked": True},
]


def test_the_fused_form_is_softmax_locations_and_the_operator() -> None:
    value, shapes, points, offsets, logits, mask = raw(shapes=((3, 4), (2, 5)), masked=True)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = points[:, :, None, :, None] + offsets / sizes[:, None]
    expected = msda.ms_deform_attn(value.masked_fill(mask[..., None, None], 0), shapes, locations, weights)
    assert torch.allclose(msda.ms_deform_attn_fused(value, shapes, points, offsets, logits, mask), expected, atol=1e-12)
    boxes = torch.cat((points, points.abs()), -1)
    locations = points[:, :, None, :, None] + offsets / 2 * points.abs()[:, :, None, :, None] * 0.5
    expected = msda.ms_deform_attn(value, shapes, locations, weights)
    assert torch.allclose(msda.ms_deform_attn_fused(value, shapes, boxes, offsets, logits), expected, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=[built, pytest.mark.compiled])])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_fused_gradients_are_those_of_the_function(way: dict, backend: str) -> None:
    value, shapes, *rest, mask = raw(batch=2, shapes=((3, 4), (2, 2)), queries=2, **way)
    inputs = [tensor.requires_grad_() for tensor in (value, *rest)]
    names = [side for pair in shapes for side in pair]

    def node(v: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return torch.ops.msda.ms_deform_attn_fused(v, names, *others, mask, backend)

    assert torch.autograd.gradcheck(node, inputs)


def test_the_fused_operator_keeps_torchs_rules() -> None:
    value, shapes, *rest, mask = raw(dtype=torch.float32, masked=True)
    flat = [side for pair in shapes for side in pair]
    inputs = (value.requires_grad_(), flat, *(tensor.requires_grad_() for tensor in rest), mask)
    torch.library.opcheck(torch.ops.msda.ms_deform_attn_fused.default, inputs)


def test_compiled_code_meets_one_node() -> None:
    value, shapes, *rest, mask = raw(dtype=torch.float32)
    whole = torch.compile(lambda *given: msda.ms_deform_attn_fused(given[0], shapes, *given[1:]) * 2, backend="eager",
                          fullgraph=True)  # fmt: skip
    assert torch.allclose(whole(value, *rest), msda.ms_deform_attn_fused(value, shapes, *rest) * 2)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", ODD, ids=str)
def test_the_cpu_back_end_samples_as_the_reference_does(size: dict, dtype: torch.dtype, instructions: str) -> None:
    value, shapes, locations, weights = drawn(dtype=torch.float64, **size)
    exact = reference.forward(value, shapes.tolist(), locations, weights)
    given = [tensor.to(dtype) for tensor in (value, locations, weights)]
    ours = msda.ms_deform_attn(given[0], shapes, *given[1:], backend="cpu")
    assert ours.dtype == dtype and torch.allclose(ours.double(), exact, atol=2e-5 if dtype == torch.float32 else 1e-12)


@compiled
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", ODD, ids=str)
def test_the_cpu_back_end_fuses_as_the_reference_does(size: dict, way: dict, instructions: str) -> None:
    given = raw(**size, **way)
    exact = reference.forward_fused(*given)
    assert torch.allclose(cpu.forward_fused(*given), exact, atol=1e-12)
    single = [tensor.float() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else tensor
              for tensor in given]  # fmt: skip
    assert torch.allclose(cpu.forward_fused(*single).double(), exact, atol=2e-5)


@compiled
@pytest.mark.parametrize("size", ODD, ids=str)
def test_the_cpu_gradients_are_the_references(size: dict, instructions: str) -> None:
    value, shapes, locations, weights = drawn(**size)
    grad = torch.randn(reference.forward(value, shapes.tolist(), locations, weights).shape, dtype=value.dtype)
    given = (grad, value, shapes.tolist(), locations, weights)
    for ours, exact in zip(cpu.backward(*given), reference.backward(*given), strict=True):
        assert torch.allclose(ours, exact, atol=1e-10)


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype: torch.dtype, instructions: str) -> None:
    value, shapes, points, offsets, logits, _ = raw(shapes=((9, 8), (4, 4)), depth=64, queries=60, dtype=torch.float32)
    given = (value.to(dtype), shapes, points, offsets.to(dtype), logits.to(dtype), None)
    exact = reference.forward_fused(*(t.double() if isinstance(t, torch.Tensor) else t for t in given))
    error = {one: (one.forward_fused(*given).double() - exact).abs().max() for one in (cpu, reference)}
    assert 0 < error[cpu] <= 2 * error[reference]


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_low_precision_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype, instructions: str) -> None:
    """All finite 16-bit numbers, read at their pixel's centre and scaled: subnormal, exact, and too large results."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    value = every.where(every.isfinite(), 0).view(1, 1 << 16, 1, 1).expand(-1, -1, -1, 17).contiguous()
    axis = (torch.arange(256) + 0.5) / 256
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack((columns, rows), -1).view(1, 1 << 16, 1, 1, 1, 2)
    for scale in (1.0, 1 / 3, 3.0):
        weights = torch.full((1, 1 << 16, 1, 1, 1), scale)
        ours = cpu.forward(value, [(256, 256)], places, weights)
        assert torch.equal(ours, (value[:, :, 0].float() * weights[..., 0, 0, 0, None]).to(dtype))


@compiled
def test_memory_may_lie_apart(instructions: str) -> None:
    value, shapes, points, offsets, logits, _ = raw(shapes=((4, 4), (2, 2)), depth=16, queries=9)
    exact = reference.forward_fused(value, shapes, points, offsets, logits, None)
    joined = torch.cat((offsets.flatten(2), logits.flatten(2)), -1)  # one projection, two halves of its rows
    ways = (
        joined[..., : offsets[0, 0].numel()].view(offsets.shape),
        joined[..., -logits[0, 0].numel() :].view(logits.shape),
    )
    turned = value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not (turned.is_contiguous() or ways[0].is_contiguous())
    assert torch.allclose(cpu.forward_fused(turned, shapes, points, *ways, None), exact, atol=1e-12)
    spread = offsets.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.allclose(cpu.forward_fused(value, shapes, points, spread, logits, None), exact, atol=1e-12)


@compiled
def test_threads_change_nothing() -> None:
    given = raw(shapes=((20, 20), (9, 9)), depth=32, queries=500, heads=3, points=4, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpu.forward_fused(*given)
        torch.set_num_threads(4)
        assert torch.equal(cpu.forward_fused(*given), alone) and cpu._team() is not None
    finally:
        torch.set_num_threads(before)


@compiled
def test_an_empty_side_gives_zeros_of_the_right_shape() -> None:
    value, shapes, points, offsets, logits, _ = raw(queries=0)
    assert msda.ms_deform_attn_fused(value, shapes, points, offsets, logits, backend="cpu").shape == (2, 0, 6)
    inputs = [tensor.requires_grad_() for tensor in (value, points, offsets, logits)]
    out = msda.ms_deform_attn_fused(inputs[0], shapes, *inputs[1:], backend="cpu")
    assert not torch.autograd.grad(out.sum(), inputs)[0].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({2: lambda t: t[:, :1]}, "reference points"),
        ({2: lambda t: t[..., :1]}, "points hold 2 numbers, boxes 4"),
        ({3: lambda t: t[:, :, :1]}, "same samples"),
        ({5: lambda t: torch.zeros(2, 5, dtype=torch.bool)}, "mask must be bool"),
        ({5: lambda t: torch.zeros(2, 6)}, "mask must be bool"),
        ({1: lambda t: [(0, 2), (3, 2)]}, "at least one place"),
    ],
)
def test_raw_shapes_that_do_not_fit_are_named(change: dict, said: str) -> None:
    given = list(raw())
    for place, one in change.items():
        given[place] = one(given[place])
    with pytest.raises(ValueError, match=said):
        msda.ms_deform_attn_fused(*given)


def test_a_library_that_is_not_there_or_not_ours_is_only_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "none.so")
    assert "make kernels" in cpu.state("cpu", torch.float32)
    (tmp_path / "none.so").write_bytes(b"from another machine")
    cpu._library.cache_clear()
    try:
        assert "does not load" in cpu.state("cpu", torch.float32)
    finally:
        cpu._library.cache_clear()


@compiled
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ABI", cpu.ABI + 1)
    assert "another version" in cpu.state("cpu", torch.float32)


def test_what_was_forced_and_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="'cuda', asked for by the caller, cannot run here: ."):
        msda.ms_deform_attn(*drawn(), backend="cuda")
    assert cpu.state("cuda", torch.float32) and cpu.state("cpu", torch.int8)


@compiled
def test_an_instruction_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.VARIABLE, "avx1024")
    with pytest.raises(ValueError, match="MSDA_CPU=avx1024"):
        msda.ms_deform_attn(*drawn(), backend="cpu")
