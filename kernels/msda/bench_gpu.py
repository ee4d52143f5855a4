"""One sitting on a GPU: first whether every back end is right there, then rows G1 to G3 against what others run.

    python -m msda.bench_gpu [--golden FOLDER] [--rounds 15]

Everything to keep is printed: machine, versions, errors, medians, ratios, shares of what the memory was measured to
give. A kernel is timed inside a captured graph, so that no launch is in the figure; "eager" rows are what a caller
waits for. `--device cpu` walks through the same lines without a graph, to see that they run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import msda
from msda import backends, reference

Run = Callable[[], object]
HEADS, DEPTH, POINTS, SIDE, REPEATS = 16, 64, 4, 24, 20
WIDTH = HEADS * DEPTH


def main() -> None:
    """Check, then measure. A back end that is wrong is named and not measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--golden", type=Path, help="folder of recorded cases, op_*.json")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: install a torch built for CUDA, and the device's driver")
    print(
        time.strftime("%Y-%m-%d"), torch.cuda.get_device_name(device) if on_gpu else "CPU", "torch", torch.__version__
    )
    print("CUDA", torch.version.cuda, "triton", version("triton"), "transformers", version("transformers"))
    ready = []
    for state in msda.states(device.type):
        print(f"  {state.name:10} {'ready' if state.ready else 'no'}: {state.why}")
        if state.ready and state.name != "reference":
            ready.append(state.name)
    right = [name for name in ready if correct(name, device, options.golden)]
    with torch.no_grad():
        rate = bandwidth(device)
        print(f"\nmeasured copy, read and written: {rate / 1e12:.2f} TB/s")
        for row, batch in (("G1", 1), ("G2", 8)):
            operator(row, batch, right, device, options.rounds, rate)
        block(right, device, options.rounds)


def version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as found

    try:
        return found(package)
    except PackageNotFoundError:
        return "absent"


# Right or wrong


def problem(batch: int, levels: int, dtype: torch.dtype, device: torch.device, queries: int = SIDE * SIDE) -> tuple:
    """value, shapes, reference points, offsets, logits, no mask: MMFuser's, with offsets of a few pixels."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((SIDE, SIDE),) * levels
    size = (batch, queries, HEADS, levels, POINTS)
    value = torch.randn(batch, levels * SIDE * SIDE, HEADS, DEPTH, generator=draw).to(device, dtype)
    offsets = (3 * torch.randn(*size, 2, generator=draw)).to(device, dtype)
    logits = torch.randn(size, generator=draw).to(device, dtype)
    centre = (torch.arange(SIDE, dtype=torch.float32) + 0.5) / SIDE
    points = torch.cartesian_prod(centre, centre).flip(-1)[None, :queries, None].to(device)
    return value, shapes, points, offsets, logits, None


def correct(name: str, device: torch.device, golden: Path | None) -> bool:
    """Print each type's error over plain torch's own in that type (both against float64), and the recorded cases."""
    module, good = backends.module(name), True
    print(f"\n{name}: error against float64, in plain torch's own error; output, then gradients")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        if module.state(device.type, dtype):
            print(f"  {str(dtype):16} {module.state(device.type, dtype)}")
            continue
        given = problem(2, 3, dtype, device, queries=101)
        grad = torch.randn_like(reference.forward_fused(*given))
        wide = [one.double() if isinstance(one, torch.Tensor) else one for one in (grad, *given)]
        truth = (reference.forward_fused(*wide[1:]), *reference.backward_fused(*wide))
        made = (module.forward_fused(*given), *module.backward_fused(grad, *given))
        plain = (reference.forward_fused(*given), *reference.backward_fused(grad, *given))
        ratios = []
        for ours, theirs, exact in zip(made, plain, truth, strict=True):
            # A step of the type the sums are made in is what any order of adding may miss.
            step = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * exact.abs().max()
            ratios.append(((ours - exact).abs().max() / ((theirs - exact).abs().max() + 4 * step)).item())
        good &= max(ratios) <= 2
        print(f"  {str(dtype):16}", *(f"{ratio:.2f}" for ratio in ratios), "" if max(ratios) <= 2 else "WRONG")
    for case in sorted(golden.glob("op_*.json")) if golden else ():
        good &= recorded(module, case, device)
    return good


def recorded(module, case: Path, device: torch.device) -> bool:
    from safetensors.torch import load_file  # only needed where recorded cases are at hand

    tensors, limits = load_file(case.with_suffix(".safetensors")), json.loads(case.read_text("utf-8"))["tolerance"]
    names = ("value", "sampling_locations", "attention_weights")
    good = True
    for dtype, limit in ((torch.float32, limits["float32"]), (torch.float64, limits["float64"])):
        value, locations, weights, grad = (tensors[f"in.{one}"].to(device, dtype) for one in (*names, "grad_output"))
        shapes = tuple(tuple(pair) for pair in tensors["in.spatial_shapes"].tolist())
        made = (
            module.forward(value, shapes, locations, weights),
            *module.backward(grad, value, shapes, locations, weights),
        )
        for name, ours in zip(("output", *(f"grad_{one}" for one in names)), made, strict=True):
            key = f"out.{name}" + (".f64" if dtype == torch.float64 else "")
            if key in tensors:  # a gradient that is undefined was not recorded
                relative = limit.get("grad_locations_rel" if "locations" in name else "rel", 0.0)
                good &= torch.allclose(ours.cpu(), tensors[key], rtol=relative, atol=limit["max_abs"])
    print(f"  {case.stem:32} {'ok' if good else 'WRONG'}")
    return good


# Time


def medians(runs: dict[str, tuple[Run, bool]], device: torch.device, rounds: int) -> dict[str, float]:
    """Microseconds of one call each, taken in turn. With True a call is captured REPEATS times into a graph."""
    calls = {name: prepared(run, captured, device) for name, (run, captured) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, count) in calls.items():
            times[name].append(microseconds(call, device) / count)
    return {name: statistics.median(all_) for name, all_ in times.items()}


def prepared(run: Run, captured: bool, device: torch.device) -> tuple[Run, int]:
    """What to call, warmed up, and how many runs it stands for."""
    if device.type != "cuda":
        run()
        return run, 1
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    if not captured:
        return run, 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            run()
    graph.replay()
    return graph.replay, REPEATS


def microseconds(call: Run, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) * 1e3


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty((1 << 30) if device.type == "cuda" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = medians({"copy": (lambda: target.copy_(source), False)}, device, 7)["copy"]
    return 2 * source.numel() / took * 1e6


def operator(row: str, batch: int, names: list[str], device: torch.device, rounds: int, rate: float) -> None:
    """The cross attention's operator in bfloat16: raw projections in, sampled values out."""
    given = problem(batch, 4, torch.bfloat16, device)
    value, shapes, points, offsets, logits, _ = given
    locations = reference.placed(shapes, points, offsets, torch.float32)
    weights = reference.shared_out(logits, torch.float32)
    runs: dict[str, tuple[Run, bool]] = {
        "grid_sample eager": (lambda: reference.forward_fused(*given), False),
        "grid_sample captured": (lambda: reference.forward(value, shapes, locations, weights), True),
    }
    for name in names:
        module = backends.module(name)
        runs[f"{name} fused"] = (lambda module=module: module.forward_fused(*given), True)
        runs[f"{name} fused, eager"] = (lambda module=module: module.forward_fused(*given), False)
        runs[f"{name} plain"] = (lambda module=module: module.forward(value, shapes, locations, weights), True)
    compiled = torch.compile(reference.forward)
    others: dict[str, Run] = {"grid_sample compiled": lambda: compiled(value, shapes, locations, weights)}
    peer = transformers_form()
    if peer is not None:
        sizes = torch.tensor(shapes, device=device)
        wide = value.float()  # it samples in the type of the locations
        others["transformers' form"] = lambda: peer(
            value=wide, value_spatial_shapes=sizes, value_spatial_shapes_list=list(shapes), level_start_index=None,
            sampling_locations=locations, attention_weights=weights, im2col_step=64,
        )  # fmt: skip
    for name, run in others.items():
        try:
            run()
        except Exception as error:  # another's form that does not run here is a line of the table, not our failure
            print(f"  {name}: does not run here ({type(error).__name__}: {str(error).splitlines()[0][:90]})")
        else:
            runs[name] = (run, False)
    took = medians(runs, device, rounds)
    bytes_moved = (
        sum(one.numel() * one.element_size() for one in (value, offsets, logits)) + 2 * batch * SIDE**2 * WIDTH
    )
    print(
        f"\n{row}: operator, MMFuser's cross attention, bfloat16, batch {batch}; in microseconds, values warm in cache"
    )
    for name, median in took.items():
        ratio = took["grid_sample eager"] / median
        share = f"{bytes_moved / rate * 1e6 / median:6.1%} of the copy's rate" if "fused" in name else ""
        print(f"  {name:28}{median:10.1f}{ratio:9.1f}x eager grid_sample  {share}")


def transformers_form() -> Callable | None:
    """The operator as transformers computes it; None where transformers is absent or has moved it."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as theirs  # an optional peer

        return theirs.MultiScaleDeformableAttention().forward
    except (ImportError, AttributeError):
        return None


# G3: the block around it, as plain functions of weights


def attend(query, source, weights, levels: int, points: torch.Tensor, sample: Callable) -> torch.Tensor:
    """One deformable attention; `weights` value, offsets and logits (one matrix), output."""
    to_value, to_places, to_output = weights
    value = F.linear(source, to_value).unflatten(-1, (HEADS, DEPTH))
    cut, size = HEADS * levels * POINTS * 2, (HEADS, levels, POINTS)
    places = F.linear(query, to_places)
    offsets, logits = places[..., :cut].unflatten(-1, (*size, 2)), places[..., cut:].unflatten(-1, size)
    return F.linear(sample(value, ((SIDE, SIDE),) * levels, points, offsets, logits, None), to_output)


def block(names: list[str], device: torch.device, rounds: int) -> None:
    """Normalise, look across four levels, normalise, look at itself, add: bfloat16, batch 1."""
    draw = torch.Generator().manual_seed(1)

    def matrix(rows: int) -> torch.Tensor:
        return (torch.randn(rows, WIDTH, generator=draw) / 32).to(device, torch.bfloat16)

    layers = [(levels, (matrix(WIDTH), matrix(HEADS * levels * POINTS * 3), matrix(WIDTH))) for levels in (4, 1)]
    query = torch.randn(1, SIDE * SIDE, WIDTH, generator=draw).to(device, torch.bfloat16)
    source = torch.randn(1, 4 * SIDE * SIDE, WIDTH, generator=draw).to(device, torch.bfloat16)
    points = problem(1, 1, torch.bfloat16, device)[2]

    def fuse(sample: Callable) -> torch.Tensor:
        (levels, cross), (one, own) = layers
        seen = attend(F.layer_norm(query, (WIDTH,)), F.layer_norm(source, (WIDTH,)), cross, levels, points, sample)
        between = F.layer_norm(seen, (WIDTH,))
        return query + seen + attend(between, between, own, one, points, sample)

    runs: dict[str, tuple[Run, bool]] = {"grid_sample eager": (lambda: fuse(reference.forward_fused), False)}
    for name in names:
        sample = backends.module(name).forward_fused
        runs[f"{name} captured"] = (lambda sample=sample: fuse(sample), True)
        runs[f"{name} eager"] = (lambda sample=sample: fuse(sample), False)
    took = medians(runs, device, rounds)
    print("\nG3: MMFuser's block, bfloat16, batch 1; in microseconds")
    for name, median in took.items():
        print(f"  {name:28}{median:10.1f}{took['grid_sample eager'] / median:9.1f}x eager grid_sample")


if __name__ == "__main__":
    main()
