"""Benchmarks that print one row each: python -m mmchat.bench ROW... (all of them without one).

A row measures what is claimed elsewhere, on models with random weights made for it in a temporary folder. Exit status 1
where a row misses its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = {"50 MB": (384, 8, 1), "150 MB": (704, 9, 2), "500 MB": (1152, 14, 4)}  # hidden size, layers, tower layers
PRECISIONS = ("fp32", "bf16", "nf4")
SWITCHES = 10
MOST_LEFT = 100e6  # bytes that switching may leave behind
MOST_OF_NINETEEN = 0.6  # of the time that nineteen passes take, for ten
LEAST_FASTER = 2.5  # than padding and CLIPImageProcessor
MOST_OF_READING = 20.0  # milliseconds of CPU for 1,000 places
MOST_OF_IMPORTING = 0.2  # seconds of CPU
MOST_OFF = 0.15  # of the measured memory that a plan may be off


def plan() -> Iterator[tuple[str, bool]]:
    """Predicted against measured memory: the process before and after loading a model and one answer."""
    with tempfile.TemporaryDirectory() as place:
        for title, sizes in SIZES.items():
            folder = checkpoint(Path(place) / title.replace(" ", ""), *sizes)
            for precision in PRECISIONS:
                told = apart("measured", str(folder), precision)
                off = told["planned"] / told["measured"] - 1
                yield (
                    f"plan    {title:>7} {precision:5} planned {told['planned'] / 1e6:7.1f} MB, "
                    f"measured {told['measured'] / 1e6:7.1f} MB, off by {off:+.1%}",
                    abs(off) <= MOST_OFF,
                )


def switch() -> Iterator[tuple[str, bool]]:
    """Memory after ten switches between two models, against that before them."""
    with tempfile.TemporaryDirectory() as place:
        folders = [checkpoint(Path(place) / name, *SIZES[name]) for name in ("50 MB", "150 MB")]
        for precision in PRECISIONS:
            told = apart("switched", *map(str, folders), precision)
            steps = ", ".join(f"{left / 1e6:+.0f}" for left in told["left"])
            worst = max(told["left"])
            yield f"switch  {precision:5} left after each of {SWITCHES} switches: {steps} MB", worst <= MOST_LEFT


def load() -> Iterator[tuple[str, bool]]:
    """Peak memory and time of loading 1.3 GB, against the model's own size and the time of reading its files."""
    with tempfile.TemporaryDirectory() as place:
        for kind in ("fp32 safetensors", "bf16 safetensors", "bf16 bin"):
            precision, ending = kind.split()
            folder = large(Path(place) / kind.replace(" ", "-"), precision, ending)
            told = apart("loaded", str(folder), precision)
            peak, time = told["peak"] / told["size"], told["seconds"] / told["reading"]
            yield (
                f"load    {kind:16} {told['files'] / 1e9:.2f} GB: peak {peak:.3f} of its size, "
                f"{told['seconds']:.2f} s, "
                f"{time:.2f} of reading its files",
                peak <= 1.15 and time <= 1.5,
            )
            shutil.rmtree(folder)


def quantise() -> Iterator[tuple[str, bool]]:
    """Peak memory while a checkpoint of 1.3 GB in bf16 is quantised, against 0.45 of that and 300 MB."""
    with tempfile.TemporaryDirectory() as place:
        folder = large(Path(place) / "bf16", "bf16", "safetensors")
        for precision in ("nf4", "int8"):
            told = apart("loaded", str(folder), precision)
            most = 0.45 * told["files"] + 300e6
            yield (
                f"quantise {precision:5} of {told['files'] / 1e9:.2f} GB in bf16: peak {told['peak'] / 1e6:.0f} MB "
                f"of at most {most / 1e6:.0f}, {told['size'] / 1e6:.0f} MB in the end, {told['seconds']:.1f} s",
                told["peak"] <= most,
            )


def passes() -> Iterator[tuple[str, bool]]:
    """INF-LLaVA's pictures in ten passes through a tower of middling size, against the authors' nineteen."""
    import torch

    from mmchat import family

    known = family.load("inf_llava")
    sizes = {**known.dwarf["vision_config"], "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    model = known.build({**known.dwarf, "mm_hidden_size": 256, "vision_config": {**sizes, "image_size": 336}}).eval()
    pixels, counted = torch.randn(1, 3, 1008, 1008), []
    model.vision.register_forward_hook(lambda *_: counted.append(1))
    with torch.inference_mode():
        model.encode(pixels)
        ten = len(counted)
        model.encode_all(pixels)
        nineteen = len(counted) - ten
        short, long = in_turn(lambda: model.encode(pixels), lambda: model.encode_all(pixels), times=3)
    line = f"passes  {ten} take {short:.2f} s, {nineteen} take {long:.2f} s: ratio {short / long:.2f}"
    yield line, (ten, nineteen) == (10, 19) and short / long <= MOST_OF_NINETEEN


def fit() -> Iterator[tuple[str, bool]]:
    """Pictures brought to a padded square of 336, against padding and transformers' CLIPImageProcessor."""
    import numpy as np
    from PIL import Image
    from transformers import CLIPImageProcessor

    from mmchat import family

    frame = family.load("llava").frame({"image_aspect_ratio": "pad"})
    theirs = CLIPImageProcessor()
    theirs.size, theirs.crop_size = {"shortest_edge": 336}, {"height": 336, "width": 336}
    for title, width, height in (("1080p", 1920, 1080), ("4K", 3840, 2160)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))

        def other(image: Image.Image = image) -> np.ndarray:
            square = Image.new("RGB", (image.width, image.width), frame.fill)
            square.paste(image, (0, (image.width - image.height) // 2))
            return np.asarray(theirs(square, return_tensors="np")["pixel_values"][0])

        equal = np.array_equal(frame.fit(image)[0], other())
        ours, long = in_turn(lambda image=image: frame.fit(image), other)
        line = f"fit     {title:>5} {ours * 1e3:.0f} ms against {long * 1e3:.0f} ms: {long / ours:.1f} times as fast"
        yield f"{line}, pixels {'equal' if equal else 'NOT equal'}", equal and long / ours >= LEAST_FASTER


def read() -> Iterator[tuple[str, bool]]:
    """CPU time of reading 1,000 places in each dialect, and of importing the dialects in a process of their own."""
    from mmchat.dialect import DIALECTS, Json, Scene
    from mmchat.geometry import Box

    scene = Scene(tuple(Box(n / 20, 0.1, n / 20 + 0.05, 0.5) for n in range(20)), (640, 480))
    for name, dialect in DIALECTS.items():
        piece = f"{dialect.example} and "
        each = sum(len(span.places) for span in dialect.read(piece, scene).spans) or 1
        text = piece * (1000 // each)
        if isinstance(dialect, Json):  # one long list, as such models answer
            text = "[" + ", ".join([dialect.example.strip("[]")] * (1000 // each)) + "]"
        times = []
        for _ in range(15):
            start = time.process_time()
            dialect.read(text, scene)
            times.append((time.process_time() - start) * 1e3)
        line = f"read    {name:20} {statistics.median(times):5.1f} ms, at best {min(times):.1f}"
        yield line, min(times) <= MOST_OF_READING
    code = (
        "import time; start, spent = time.perf_counter(), time.process_time(); import mmchat.dialect; "
        "print(time.perf_counter() - start, time.process_time() - spent)"
    )
    taken = []
    for _ in range(7):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        taken.append([float(number) for number in told.split()])
    wall, spent = zip(*taken, strict=True)
    line = f"read    import mmchat.dialect: {min(spent):.3f} s of CPU, {statistics.median(wall):.3f} s by the clock"
    yield line, min(spent) <= MOST_OF_IMPORTING


def in_turn(*works: Callable[[], Any], times: int = 15) -> list[float]:
    """The median seconds of each of some works, run by turns; the first round of all is not counted."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(times + 1):
        for work, found in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            if number:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in taken]


ROWS: dict[str, Callable[[], Iterator[tuple[str, bool]]]] = {
    "plan": plan,
    "switch": switch,
    "load": load,
    "quantise": quantise,
    "passes": passes,
    "fit": fit,
    "read": read,
}


def main(arguments: list[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="python -m mmchat.bench", description=__doc__.splitlines()[0])
    reader.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    reader.add_argument("--apart", nargs="+", help=argparse.SUPPRESS)
    options = reader.parse_args(arguments)
    if options.apart:
        print(
            json.dumps(
                {"measured": measured, "switched": switched, "loaded": loaded}[options.apart[0]](*options.apart[1:])
            )
        )
        return 0
    if unknown := sorted(set(options.rows) - set(ROWS)):
        print(f"There is no row {', '.join(unknown)}: choose of {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    missed = 0
    for name in options.rows or ROWS:
        for line, good in ROWS[name]():
            missed += not good
            print(line if good else f"{line}   MISSED", flush=True)
    return int(missed > 0)


# What runs in a process of its own, where nobody else's memory is counted.


def apart(*what: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "mmchat.bench", "--apart", *what],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(folder: str, precision: str, tokens: int = 512) -> dict[str, int]:
    """Planned bytes of weights and of the talk that was held, and how much the process grew by them."""
    from mmchat import family
    from mmchat.nets import plan, weights

    warm(Path(folder), precision)
    known = family.load("llava")
    with weights.without_memory():
        shapes = known.build(weights.read_config(Path(folder)))
    told = plan.planned(shapes, precision, "cpu", known.keep, tokens)
    before = resident()
    engine = opened(Path(folder), precision)
    length = answered(engine, tokens)
    after = resident()
    return {
        "planned": told.weights + told.talk_thousand * length // 1000 + plan.WORKSPACE, "measured": after - before,
        "tokens": length, "moment": told.moment,
    }  # fmt: skip


def switched(first: str, second: str, precision: str) -> dict[str, list[int]]:
    """How much more the process holds after each switch than when the first of two models was open for the first time;
    compared while the same model is open.
    """
    from mmchat.desk import Desk

    warm(Path(first), precision)
    desk = Desk(opened(Path(first), precision))
    answered(desk.engine, 256)
    start = {first: resident()}
    left = []
    for number in range(SWITCHES):
        folder = (second, first)[number % 2]
        desk.switch(lambda folder=folder: opened(Path(folder), precision))
        answered(desk.engine, 256)
        now = resident()
        left.append(now - start.setdefault(folder, now))
    return {"left": left}


def loaded(folder: str, precision: str) -> dict[str, float]:
    """Seconds and peak bytes of loading a large checkpoint, bytes that the model then holds, seconds of reading its
    files; medians of fifteen of each in turn, as a virtual machine's fresh memory comes erratically, up to a second
    more (of three where it is quantised: that time has no bound).
    """
    from mmchat import family
    from mmchat.nets import quantise, weights

    known = family.load("llava")
    warm(Path(folder), precision)
    paths = weights.shards(Path(folder))
    told: dict[str, float] = {"files": sum(path.stat().st_size for path in paths), "peak": 0, "size": 0}
    reading, seconds = [], []
    for _ in range(3 if precision in quantise.QUANTISED else 15):
        began = time.perf_counter()
        kept = [path.read_bytes() for path in paths]  # kept as a model keeps them: both need as many fresh pages
        reading.append(time.perf_counter() - began)
        del kept
        config = weights.read_config(Path(folder))
        with weights.without_memory():
            model = known.build(config)
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        began = time.perf_counter()
        weights.load(model, Path(folder), known.keys, known.drop, known.fold, precision, known.keep)
        seconds.append(time.perf_counter() - began)
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text("utf-8").splitlines())
        told["peak"] = max(told["peak"], int(lines["VmHWM"].split()[0]) * 1024 - before)
        packed = quantise.packed_layers(model)
        told["size"] = sum(one.nbytes for one in model.state_dict().values())
        told["size"] += sum(quantise.packed_state(model, path, "int8")[f"{path}.SCB"].nbytes
                            for path, kind in packed.items() if kind == "int8")  # fmt: skip
        del model
    return told | {"reading": statistics.median(reading), "seconds": statistics.median(seconds)}


def warm(folder: Path, precision: str) -> None:
    """Import and start what every model needs, with a model of two thin layers, and let go of it."""
    small = checkpoint(folder.parent / f"warm-{os.getpid()}", 64, 2, 2)
    engine = opened(small, precision)
    answered(engine, 64)
    engine.close()


def opened(folder: Path, precision: str) -> Any:
    from mmchat import family
    from mmchat.engines.local import LocalEngine

    return LocalEngine.open(folder, family.load("llava"), precision)


def answered(engine: Any, tokens: int) -> int:
    """Ask about one picture with a question of about that many tokens; how many the talk has in the end."""
    import numpy as np

    from mmchat.family import Limits
    from mmchat.prompt import Slot

    side = engine.family.frame(engine.config).side
    sight = engine.see((np.zeros((3, side, side), np.float32),), ())
    patches = len(sight.content.images[0])
    prompt = ("a" * 8, Slot("image", 0), "b" * max(1, tokens - patches - 16))
    said = list(engine.speak(prompt, sight, Limits(new_tokens=4)))[-1]
    return int(said.counters["prefilled_tokens"] + said.counters["new_tokens"])


def resident() -> int:
    """Bytes that this process holds in memory, after all that is free was handed back."""
    from mmchat.engines.local import give_back

    give_back()
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def checkpoint(folder: Path, width: int, layers: int, tower: int) -> Path:
    """A LLaVA checkpoint of random weights in that size, with a tokenizer of bytes; written once."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from mmchat import family

    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    known = family.load("llava")
    config = {
        **known.dwarf, "hidden_size": width, "intermediate_size": width * 11 // 4 // 64 * 64,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "vocab_size": 8000, "max_position_embeddings": 2048, "mm_hidden_size": 256,
        "vision_config": {**known.dwarf["vision_config"], "hidden_size": 256, "intermediate_size": 1024,
                          "num_hidden_layers": tower, "image_size": 112},
    }  # fmt: skip
    torch.manual_seed(0)
    model = known.build(config)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def large(folder: Path, precision: str, ending: str) -> Path:
    """A LLaVA checkpoint of 1.3 GB of random weights in four files, written one file at a time."""
    import torch
    from safetensors.torch import save_file

    from mmchat import family
    from mmchat.nets import weights

    known = family.load("llava")
    small = checkpoint(folder.parent / "small", 64, 2, 2)
    config = {**json.loads((small / "config.json").read_text("utf-8")), "hidden_size": 2048, "intermediate_size": 5632,
              "num_hidden_layers": 12 if precision == "bf16" else 6, "num_attention_heads": 16,
              "num_key_value_heads": 16}  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(one.shape) for name, one in known.build(config).state_dict().items()}
    folder.mkdir()
    names, dtype = list(shapes), {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    places = {}
    for number in range(4):
        part = names[number * len(names) // 4 : (number + 1) * len(names) // 4]
        state = {name: torch.empty(shapes[name], dtype=dtype).normal_(std=0.02) for name in part}
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        if ending == "bin":
            file = f"pytorch_{file.removesuffix('.safetensors')}.bin"
            torch.save(state, folder / file)
        else:
            save_file(state, folder / file)
        places |= dict.fromkeys(part, file)
    index = "pytorch_model.bin.index.json" if ending == "bin" else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": places}), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
