"""Benchmarks that print one row each: python -m mmchat.bench ROW... (all of them without one).

A row measures what is claimed elsewhere, on models with random weights made for it in a temporary folder. Exit status 1
where a row misses its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = {"50 MB": (384, 8, 1), "150 MB": (704, 9, 2), "500 MB": (1152, 14, 4)}  # hidden size, layers, tower layers
PRECISIONS = ("fp32", "bf16", "nf4")
SWITCHES = 10
MOST_LEFT = 100e6  # bytes that switching may leave behind
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


ROWS: dict[str, Callable[[], Iterator[tuple[str, bool]]]] = {"plan": plan, "switch": switch}


def main(arguments: list[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="python -m mmchat.bench", description=__doc__.splitlines()[0])
    reader.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    reader.add_argument("--apart", nargs="+", help=argparse.SUPPRESS)
    options = reader.parse_args(arguments)
    if options.apart:
        print(json.dumps({"measured": measured, "switched": switched}[options.apart[0]](*options.apart[1:])))
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
        "planned": told.weights + told.talk_thousand * length // 1000, "measured": after - before, "tokens": length,
        "moment": told.moment,
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


if __name__ == "__main__":
    sys.exit(main())
