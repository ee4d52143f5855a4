"""Measures the operator: python -m msda.bench [--device cpu] [--rounds 9] [--rows cross,self] [--compile] [--backward]

One process, all variants in turn, outputs compared first. Each ratio stands twice: of the median times (of the process
on a CPU, which is what a busy machine leaves comparable; by CUDA events on a GPU) and of the least wall times. Against:
the grid_sample form that everybody falls back to (the reference), a plain C++ port of the CUDA kernel's loop (compiled
here, one thread), torch.compile of the reference. It asserts nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

import msda
from msda import cpu, reference

PYRAMID = [(64, 64), (32, 32), (16, 16), (8, 8)]
# name: pictures, queries, heads, depth, levels, points
CASES = {
    "cross": (1, 576, 16, 64, [(24, 24)] * 4, 4),  # MMFuser
    "self": (1, 576, 16, 64, [(24, 24)], 4),
    "cross8": (8, 576, 16, 64, [(24, 24)] * 4, 4),
    "encoder": (1, 5440, 8, 32, PYRAMID, 4),  # DETR
    "decoder": (2, 300, 8, 32, PYRAMID, 4),
}
Variant = Callable[[], torch.Tensor]
Times = dict[str, list[tuple[float, float]]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", default=",".join([*CASES, "block"]))
    parser.add_argument("--compile", action="store_true", help="torch.compile of the reference too (slow to start)")
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    options = parser.parse_args()
    print(
        f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; ratios to the first variant"
    )
    if options.device == "cpu":
        print(f"ceilings here: {' · '.join(f'{name} {amount:.0f}' for name, amount in ceilings().items())}")
    for row in options.rows.split(","):
        if row == "block":
            table("fuser block", blocks(options.device), options, 0.0)
        else:
            table(row, variants(row, options), options, work(row))


def table(name: str, runs: Mapping[str, Variant], options: argparse.Namespace, gigaflop: float) -> None:
    """One case: every variant's times, its ratios to the first one, the arithmetic it gets through."""
    outputs = {one: run().detach().double().cpu() for one, run in runs.items()}
    first = next(iter(runs))
    times = measured(runs, options.rounds, options.device)
    middle = {one: statistics.median(busy for busy, _ in taken) for one, taken in times.items()}
    least = {one: min(wall for _, wall in taken) for one, taken in times.items()}
    scale = outputs[first].abs().max()
    print(f"\n{name:18}{'median':>10}{'ratio':>9}{'least wall':>12}{'ratio':>9}{'GFLOP/s':>9}{'off by':>10}")
    for one in runs:
        rate = f"{gigaflop / least[one]:9.1f}" if gigaflop else " " * 9
        print(
            f"{one:18}{middle[one] * 1e3:7.2f} ms{middle[first] / middle[one]:8.2f}x{least[one] * 1e3:9.2f} ms"
            f"{least[first] / least[one]:8.2f}x{rate}{(outputs[one] - outputs[first]).abs().max() / scale:10.1e}"
        )


def measured(runs: Mapping[str, Variant], rounds: int, device: str) -> Times:
    """(busy, wall) seconds of each run, the variants in turn."""
    times: Times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if device.startswith("cuda"):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                stop.synchronize()
                times[name].append((start.elapsed_time(stop) / 1e3,) * 2)
            else:
                wall, busy = time.perf_counter(), time.process_time()
                run()
                times[name].append((time.process_time() - busy, time.perf_counter() - wall))
    return times


def variants(row: str, options: argparse.Namespace) -> dict[str, Variant]:
    """Everything that is compared in one case, from raw projections; the reference first."""
    shapes, given = drawn(row, options.device)
    leaves = [tensor.requires_grad_(options.backward) for tensor in given]

    def whole(compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        out = compute(*inputs)
        if options.backward:
            torch.autograd.grad(out.sum(), inputs)
        return out

    def through(backend: str, value: torch.Tensor | None = None) -> Variant:
        inputs = leaves if value is None else [value, *leaves[1:]]
        return lambda: whole(lambda v, *rest: msda.ms_deform_attn_fused(v, shapes, *rest, backend=backend), *inputs)

    found = {"grid_sample": through("reference")}
    ready = [state.name for state in msda.states(options.device) if state.ready and state.name != "reference"]
    for name in ready:
        if name == "cpu":
            for instructions in cpu.SETS[: cpu._library().msda_best() + 1]:
                found[f"cpu {instructions}"] = held(instructions, through(name))
        else:
            found[name] = through(name)
        found[f"{name} bf16 value"] = through(name, given[0].detach().bfloat16().requires_grad_(options.backward))
    if options.device == "cpu" and not options.backward:
        port = plain_port()
        if port is not None:
            found["plain C++ port"] = lambda: port(shapes, *given)
    if options.compile:
        compiled = torch.compile(lambda *inputs: reference.forward_fused(inputs[0], shapes, *inputs[1:], None))
        found["torch.compile"] = lambda: whole(compiled, *leaves)
    return found


def drawn(row: str, device: str) -> tuple[list[tuple[int, int]], list[torch.Tensor]]:
    """Levels, and random value, reference points, offsets of some pixels, logits."""
    batch, queries, heads, depth, shapes, points = CASES[row]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, depth, generator=generator)
    if row == "decoder":
        places = torch.rand(1, queries, 1, 2, generator=generator)
    else:
        places = torch.cat([centres(*shape) for shape in (shapes if row == "encoder" else shapes[:1])])[None, :, None]
    offsets = torch.randn(batch, queries, heads, len(shapes), points, 2, generator=generator) * 2
    logits = torch.randn(batch, queries, heads, len(shapes), points, generator=generator)
    return shapes, [tensor.to(device) for tensor in (value, places, offsets, logits)]


def centres(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).view(-1, 2)


def work(row: str) -> float:
    """GFLOP of adding up the corners alone."""
    batch, queries, heads, depth, shapes, points = CASES[row]
    return batch * queries * heads * len(shapes) * points * 4 * depth * 2 / 1e9


def ceilings() -> dict[str, float]:
    """What this machine reaches with the same threads: float32 multiplication of matrices, reading of memory."""
    matrix, memory = torch.rand(1024, 1024), torch.rand(1 << 26)
    best = {"matmul GFLOP/s": 0.0, "read GB/s": 0.0}
    for _ in range(5):
        for name, amount, run in (
            ("matmul GFLOP/s", 2 * 1024**3, lambda: matrix @ matrix),
            ("read GB/s", memory.nbytes, memory.max),
        ):
            start = time.perf_counter()
            run()
            best[name] = max(best[name], amount / (time.perf_counter() - start) / 1e9)
    return best


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def held(instructions: str, run: Variant) -> Variant:
    def inside() -> torch.Tensor:
        with variable(cpu.VARIABLE, instructions):
            return run()

    return inside


def plain_port() -> Callable[..., torch.Tensor] | None:
    """The CUDA kernel's loop in C++ behind torch's softmax and locations; None, said, where there is no compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        print("no C++ compiler: the plain port is left out")
        return None
    source = Path(__file__).parent / "csrc" / "plain_port.cpp"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain_port.so"
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).plain_port

    def run(shapes: list, value: torch.Tensor, points: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor):
        locations = reference.placed(shapes, points, offsets, torch.float32)
        weights = reference.shared_out(logits, torch.float32)
        sizes = torch.tensor(shapes)
        out = value.new_empty(len(value), logits.shape[1], value.shape[2] * value.shape[3])
        counts = (*value.shape, logits.shape[1], *logits.shape[3:])
        function(
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (value, sizes, locations, weights)),
            *(ctypes.c_int64(count) for count in counts), ctypes.c_void_p(out.data_ptr()),
        )  # fmt: skip
        return out

    return run


def blocks(device: str) -> dict[str, Variant]:
    """MMFuser's block at its real size: as published on grid_sample, and on the operator, in float32 and bfloat16."""
    best = msda.choose(device).name
    maps = [torch.randn(1, 576, 1024, generator=torch.Generator().manual_seed(seed), device="cpu") for seed in range(5)]
    found: dict[str, Variant] = {}
    for name, dtype, backend in (
        ("official fp32", torch.float32, "reference"), ("official bf16", torch.bfloat16, "reference"),
        (f"{best} fp32", torch.float32, best), (f"{best} bf16", torch.bfloat16, best),
    ):  # fmt: skip
        torch.manual_seed(0)
        block = Block().to(device, dtype).requires_grad_(False)
        inputs = [one.to(device, dtype) for one in maps]
        found[name] = lambda block=block, inputs=inputs, backend=backend: block(inputs, backend)
    return found


class Block(torch.nn.Module):
    """Five maps of 24 x 24 in, the last one asks the first four and then itself (Cao et al. 2024)."""

    def __init__(self, width: int = 1024, heads: int = 16) -> None:
        super().__init__()
        self.heads, self.norms = heads, torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(3))
        sizes = [(width, width), (width, heads * 32), (width, heads * 16), (width, width)]
        own = [(width, width), (width, heads * 8), (width, heads * 4), (width, width)]
        self.cross, self.own = (
            torch.nn.ModuleList(torch.nn.Linear(*size) for size in layers) for layers in (sizes, own)
        )
        self.register_buffer("points", centres(24, 24)[None, :, None])

    def forward(self, maps: list[torch.Tensor], backend: str) -> torch.Tensor:
        query, features = self.norms[0](maps[-1]), self.norms[1](torch.cat(maps[:4], 1))
        cross = self.attend(self.cross, query, features, 4, backend)
        between = self.norms[2](cross)
        return maps[-1] + cross + self.attend(self.own, between, between, 1, backend)

    def attend(self, layers: torch.nn.ModuleList, query, source, levels: int, backend: str) -> torch.Tensor:
        value, offsets, logits = layers[0](source), layers[1](query), layers[2](query)
        value, shape = value.unflatten(-1, (self.heads, -1)), (self.heads, levels, 4)
        offsets, logits = offsets.unflatten(-1, (*shape, 2)), logits.unflatten(-1, shape)
        points, shapes = self.points.float(), [(24, 24)] * levels
        return layers[3](msda.ms_deform_attn_fused(value, shapes, points, offsets, logits, backend=backend))


if __name__ == "__main__":
    with torch.no_grad() if "--backward" not in sys.argv else torch.enable_grad():
        main()
