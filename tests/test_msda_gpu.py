"""The operator's kernels for graphics processors, checked where there is none: Triton's run through its interpreter,
CUDA's on a stand-in for the device (cuda_on_cpu.h). Where there is a device, the same tests run on it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import mmchat  # isort: skip  # noqa: F401 -- a checkout finds msda through it
from msda import build_cuda, cuda, reference, triton_kernel  # isort: skip

HERE = Path(__file__).parent
CASES = sorted((HERE / "golden" / "deformable-attention").glob("op_*.json"))
NAMES = ("value", "sampling_locations", "attention_weights")


class Runner(NamedTuple):
    """A back end, and where its tensors lie."""

    module: ModuleType
    device: str

    def run(self, function: str, *given: object) -> tuple[torch.Tensor, ...]:
        """The results, on the CPU."""
        there = [one.to(self.device) if isinstance(one, torch.Tensor) else one for one in given]
        made = getattr(self.module, function)(*there)
        return tuple(one.cpu() for one in ((made,) if isinstance(made, torch.Tensor) else made))


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA source as a library that runs on this processor."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the stand-in for a CUDA device with")
    made = tmp_path_factory.mktemp("msda") / "libmsda_on_cpu.so"
    flags = ["-std=c++17", "-O1", "-DMSDA_ON_CPU", f"-I{HERE}", "-Wall", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run(["g++", "-x", "c++", *flags, str(build_cuda.SOURCE), "-o", str(made)], check=True, timeout=300)
    return made


# Triton decides when it is first imported, anywhere, whether it interprets: without a device its rows stand in a
# process of their own.
INTERPRETED = triton_kernel.interpreted()
ROWS = ["triton"] if INTERPRETED else ["core", pytest.param("cuda", marks=pytest.mark.gpu)]
if torch.cuda.is_available() and not INTERPRETED:
    ROWS.append(pytest.param("triton", marks=pytest.mark.gpu))


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_triton_through_its_interpreter() -> None:
    """All rows below that take a `runner`, in a process that interprets."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton, on Linux")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "triton and not interpreter",
        str(Path(__file__)),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=900)
    assert child.returncode == 0, child.stdout[-4000:]
    assert " passed" in child.stdout and " skipped" not in child.stdout


@pytest.fixture(params=ROWS)
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runner:
    if request.param == "triton":
        pytest.importorskip("triton", reason="triton is not installed: pip install triton, on Linux")
        return Runner(triton_kernel, "cpu" if INTERPRETED else "cuda")
    if request.param == "cuda":
        lacks = cuda.state("cuda", torch.float32)
        if lacks:
            pytest.skip(lacks)
        return Runner(cuda, "cuda")
    return on_processor(request.getfixturevalue("stand_in"), monkeypatch)


def on_processor(library: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(cuda, "LIBRARY", library)
    fresh = cuda._library.__wrapped__()
    monkeypatch.setattr(cuda, "_library", lambda: fresh)
    return Runner(cuda, "cpu")


class Size(NamedTuple):
    batch: int = 1
    shapes: tuple[tuple[int, int], ...] = ((4, 5), (3, 2))
    heads: int = 2
    depth: int = 4
    queries: int = 5
    points: int = 2
    numbers: int = 2  # of a reference: 2 points, 4 boxes
    shared: bool = False  # whether pictures and levels share their references


def plain(size: Size, dtype: torch.dtype, seed: int = 0) -> tuple:
    """grad, value, shapes, locations (some outside), weights."""
    draw = torch.Generator().manual_seed(seed)
    places = sum(height * width for height, width in size.shapes)
    side = (size.batch, size.queries, size.heads, len(size.shapes), size.points)
    value = torch.randn(size.batch, places, size.heads, size.depth, generator=draw, dtype=torch.float64)
    locations = torch.rand(*side, 2, generator=draw, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.randn(side, generator=draw, dtype=torch.float64)
    grad = torch.randn(size.batch, size.queries, size.heads * size.depth, generator=draw, dtype=torch.float64)
    wide = reference.widest(value.to(dtype))
    return grad.to(dtype), value.to(dtype), size.shapes, locations.to(wide), weights.to(wide)


def fused(size: Size, dtype: torch.dtype, masked: bool = True, seed: int = 1) -> tuple:
    """grad, value, shapes, reference points, offsets, logits, mask."""
    grad, value, shapes, locations, weights = plain(size, dtype, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    pictures, levels = (1, 1) if size.shared else (size.batch, len(shapes))
    points = torch.rand(pictures, size.queries, levels, size.numbers, generator=draw, dtype=torch.float64)
    mask = torch.rand(value.shape[:2], generator=draw) < 0.3 if masked else None
    return grad, value, shapes, points.to(locations.dtype), (4 * locations).to(dtype), weights.to(dtype), mask


def widened(given: tuple) -> tuple:
    return tuple(one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in given)


def agree(runner: Runner, kind: str, given: tuple, tolerance: float) -> None:
    """Output and gradients are the reference's up to `tolerance`, relative to each one's largest number."""
    for name, arguments in ((f"forward{kind}", given[1:]), (f"backward{kind}", given)):
        made, expected = runner.run(name, *arguments), Runner(reference, "cpu").run(name, *arguments)
        for ours, theirs in zip(made, expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_recorded_numbers_of_the_original(case: Path, dtype: torch.dtype, runner: Runner) -> None:
    info, tensors = json.loads(case.read_text()), load_file(case.with_suffix(".safetensors"))
    shapes = tuple(tuple(pair) for pair in tensors["in.spatial_shapes"].tolist())
    value, locations, weights, grad = (tensors[f"in.{name}"].to(dtype) for name in (*NAMES, "grad_output"))
    made = runner.run("forward", value, shapes, locations, weights)
    made += runner.run("backward", grad, value, shapes, locations, weights)
    limits = info["tolerance"][str(dtype).removeprefix("torch.")]
    for name, ours in zip(("output", *(f"grad_{name}" for name in NAMES)), made, strict=True):
        key = f"out.{name}" + (".f64" if dtype == torch.float64 else "")
        if key not in tensors:
            assert name == "grad_sampling_locations" and "exact" in case.stem  # undefined exactly on a border
            continue
        relative = limits.get("grad_locations_rel" if name == "grad_sampling_locations" else "rel", 0.0)
        assert torch.allclose(ours, tensors[key], rtol=relative, atol=limits["max_abs"]), name


SIZES = {
    "pictures and heads": Size(batch=2, heads=3, depth=6),
    "five levels, single pixels": Size(shapes=((5, 7), (3, 3), (1, 4), (2, 1), (1, 1)), points=1),
    "more samples than a tile": Size(points=11, queries=2),
    "an odd head": Size(depth=7, heads=1),
    "a head wider than a warp": Size(depth=300, heads=1, queries=2),
    "everything one": Size(shapes=((1, 1),), heads=1, depth=1, queries=1, points=1),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_plain_form_is_the_references(size: Size, runner: Runner) -> None:
    agree(runner, "", plain(size, torch.float64), 1e-13)


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_fused_form_is_the_references(numbers: int, shared: bool, masked: bool, runner: Runner) -> None:
    size = Size(batch=2, numbers=numbers, shared=shared)
    agree(runner, "_fused", fused(size, torch.float64, masked), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["", "_fused"], ids=["plain", "fused"])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, kind: str, runner: Runner) -> None:
    size = Size(batch=2, depth=32, queries=6, points=3)
    given = fused(size, dtype) if kind else plain(size, dtype)
    for name, arguments in ((f"forward{kind}", given[1:]), (f"backward{kind}", given)):
        truth = Runner(reference, "cpu").run(name, *widened(arguments))
        torchs = Runner(reference, "cpu").run(name, *arguments)
        for ours, theirs, exact in zip(runner.run(name, *arguments), torchs, truth, strict=True):
            # Where torch happens to meet the truth, half a step of float32 is what any sum may miss.
            allowed = 2 * (theirs - exact).abs().max() + 2**-23 * exact.abs().max()
            assert (ours - exact).abs().max() <= allowed


def test_one_projections_halves_need_no_copy(runner: Runner) -> None:
    size = Size(batch=2)
    grad, value, shapes, points, offsets, logits, mask = fused(size, torch.float64)
    both = torch.cat((offsets.flatten(2), logits.flatten(2)), -1)
    cut = offsets[0, 0].numel()
    halves = both[..., :cut].unflatten(2, offsets.shape[2:]), both[..., cut:].unflatten(2, logits.shape[2:])
    assert not halves[0].is_contiguous()
    agree(runner, "_fused", (grad, value, shapes, points, *halves, mask), 1e-13)


def test_what_lies_nowhere_counts_as_nothing(runner: Runner) -> None:
    grad, value, shapes, locations, weights = plain(Size(queries=4), torch.float32)
    for query, nowhere in enumerate((1e30, -1e30, float("inf"), float("nan"))):
        locations[:, query] = nowhere
    value[:] = float("nan")  # nothing of it may be touched
    assert (runner.run("forward", value, shapes, locations, weights)[0] == 0).all()
    assert all((made == 0).all() for made in runner.run("backward", grad, value, shapes, locations, weights))


@pytest.mark.parametrize("kind", ["", "_fused"], ids=["plain", "fused"])
def test_no_queries_give_an_empty_answer(kind: str, runner: Runner) -> None:
    size = Size(queries=0)
    given = fused(size, torch.float32) if kind else plain(size, torch.float32)
    assert runner.run(f"forward{kind}", *given[1:])[0].shape == (1, 0, 8)
    made = runner.run(f"backward{kind}", *given)
    assert [one.shape for one in made] == [one.shape for one in given[1:] if isinstance(one, torch.Tensor)][: len(made)]
    assert (made[0] == 0).all()


def test_too_many_levels_are_one_clear_sentence(runner: Runner) -> None:
    given = plain(Size(shapes=((1, 1),) * 9), torch.float32)
    with pytest.raises(ValueError, match="up to 8 levels.*got 9"):
        runner.run("forward", *given[1:])


@pytest.mark.parametrize("processors", [1, 4000])
def test_a_large_device_shares_out_a_querys_samples(processors: int, stand_in: Path, monkeypatch) -> None:
    """The launch splits samples among lanes while the device would idle: the answer stays."""
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", str(processors))
    runner = on_processor(stand_in, monkeypatch)
    agree(runner, "", plain(Size(points=9, depth=8, heads=3, queries=7), torch.float64), 1e-13)
    agree(runner, "_fused", fused(Size(points=9, depth=8, heads=3, queries=7), torch.float64), 1e-13)


def test_where_they_cannot_run_they_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "the tensors are on cpu" in cuda.state("cpu", torch.float32)
    monkeypatch.setattr(triton_kernel.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in triton_kernel.state("cuda", torch.float32)
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in cuda.state("cuda", torch.float32)


@pytest.mark.compiled
def test_nvcc_builds_for_every_architecture_without_a_warning(tmp_path: Path) -> None:
    if build_cuda.compiler() is None:
        pytest.skip("there is no nvcc: install the CUDA toolkit")
    assert {75, 80, 90} <= set(build_cuda.architectures(build_cuda.compiler()))
    library = ctypes.CDLL(str(build_cuda.build(tmp_path)))
    assert library.msda_cuda_abi() == cuda.ABI
    assert all(hasattr(library, name) for name in ("msda_cuda_forward", "msda_cuda_backward", "msda_cuda_error"))


def test_without_nvcc_the_build_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cuda, "compiler", lambda: None)
    with pytest.raises(ValueError, match="install the CUDA toolkit"):
        build_cuda.build(tmp_path)
