"""A table of the operator's back ends: medians in milliseconds and ratios to the reference, measured in turn.

    python -m msda.bench [--device cpu] [--rounds 7] [--backward]

It asserts nothing: numbers on a busy machine are what they are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import msda

# name: queries, heads, depth, levels, points (batch 1)
CASES = {
    "mmfuser cross": (576, 16, 64, [(24, 24)] * 4, 4),
    "mmfuser self": (576, 16, 64, [(24, 24)], 4),
    "honeybee d-abstractor": (144, 8, 128, [(24, 24)], 4),
    "pocket cross": (169, 8, 32, [(52, 52), (26, 26), (13, 13)], 4),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    options = parser.parse_args()
    ready = [state.name for state in msda.states(options.device) if state.ready]
    print(f"{options.device}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'case':24}" + "".join(f"{name:>16}{'ratio':>8}" for name in ready))
    for case in CASES:
        runs = {name: measured(case, name, options.device, options.backward) for name in ready}
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(options.rounds):
            for name, run in runs.items():
                times[name].append(run())
        medians = {name: statistics.median(all_) for name, all_ in times.items()}
        cells = (f"{medians[name]:13.2f} ms{medians['reference'] / medians[name]:7.2f}x" for name in ready)
        print(f"{case:24}" + "".join(cells))


def measured(case: str, backend: str, device: str, backward: bool) -> Callable[[], float]:
    """A function that runs the case once and gives the milliseconds; warmed up."""
    queries, heads, depth, shapes, points = CASES[case]
    places = sum(height * width for height, width in shapes)
    value = torch.randn(1, places, heads, depth, device=device, requires_grad=backward)
    locations = torch.rand(1, queries, heads, len(shapes), points, 2, device=device, requires_grad=backward)
    weights = torch.rand(1, queries, heads, len(shapes), points, device=device, requires_grad=backward)

    def run() -> float:
        start = time.perf_counter()
        out = msda.ms_deform_attn(value, shapes, locations, weights, backend)
        if backward:
            torch.autograd.grad(out.sum(), (value, locations, weights))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1000

    run()
    return run


if __name__ == "__main__":
    main()
