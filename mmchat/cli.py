"""The command line: python -m mmchat ask, detect, read, write, models, fetch, save, index, golden, evaluate, doctor,
export.

JSON goes to standard output alone, everything else to standard error. Exit status: 0; 2 with one sentence (cause and
remedy) for what a user can mend; 1 from `golden` where a case fails. torch, gradio and drawing libraries take seconds
to import and are imported by the commands that need them: `read` and `write` must answer at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from mmchat import commands

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "nf4")  # those of nets.weights, without its torch
FORMATS = ("coco", "yolo", "voc", "csv", "label-studio", "json")
NUMBERED = ("--region", "--box", "--size", "--fit")  # options whose value may begin with a minus


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence like every other one."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}: see `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status."""
    out = sys.stdout
    for stream in (out, sys.stderr):  # words of any language, whatever the terminal is set to
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        options = parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
        # Libraries print as they please: nothing but a command's own output may reach standard output.
        with redirect_stdout(sys.stderr):
            return options.run(options, out)
    except ValueError as error:
        print(f"mmchat: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmchat: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read us has gone, `| head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def joined(arguments: Sequence[str]) -> list[str]:
    """--region -5,0,10,10 as --region=-5,0,10,10, which argparse would take for an option."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] in NUMBERED and argument[:1] == "-" and argument[1:2].isdigit():
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


def parser() -> argparse.ArgumentParser:
    top = Parser("python -m mmchat", description="Ask models about pictures and get words with places.")
    known = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        made = known.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    one = command("ask", commands.ask, "ask about a picture, a video or a sound; places are in pixels of the picture")
    one.add_argument("image", metavar="IMAGE", help="a picture; a video or a sound for a model that takes them")
    one.add_argument("text", metavar="TEXT", nargs="?", default="", help="may say @1, @2 for the regions")
    one.add_argument(
        "--region", metavar="x0,y0,x1,y1", type=drawn, action="append", default=[],
        help='a box; x,y: a point; scribble, polygon, mask as JSON: {"kind": "scribble", "points": [[x, y], ...]}',
    )  # fmt: skip
    one.add_argument(
        "--picture", metavar="FILE", action="append", default=[],
        help='a further picture beside IMAGE; a region as JSON names its own: {"box": [...], "image": 1}, IMAGE is 0',
    )  # fmt: skip
    one.add_argument("--clip", metavar="CLIP", action="append", default=[], help="a video or a sound beside IMAGE")
    one.add_argument("--model", metavar="NAME", help="a name of the `models` command, or replay (recorded answers)")
    one.add_argument("--precision", default="auto", metavar="|".join(PRECISIONS))
    one.add_argument("--device", metavar="cpu|cuda|auto|disk", help="auto spreads over GPUs and CPU, disk reads layers")
    one.add_argument("--context", metavar="N", type=whole, help="tokens that the talk may have, where memory is short")
    one.add_argument("--task", metavar="TASK", help="one of the model's ways of asking: find, describe, region ...")
    one.add_argument("--seed", metavar="N", type=whole, help="sample with this seed; greedy without one")
    one.add_argument("--json", action="store_true")
    one.add_argument("--save", metavar="OUT.png", type=Path, help="the picture with the answer's places painted in")
    one.add_argument("--heat", metavar="KIND", help="a heat map; about the first region where one is given")
    one.add_argument("--heat-save", metavar="OUT.png", type=Path)

    one = command("detect", commands.detect, "find what phrases name, with a detector: a model that does not chat")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("phrase", metavar="PHRASE", nargs="+")
    one.add_argument("--model", metavar="NAME", help="a detector of the `models` command; the first one otherwise")
    one.add_argument("--threshold", metavar="T", type=share, help="least score of what is found, 0 to 1")
    one.add_argument("--segment", metavar="NAME", help="cut out what is found with this one: masks instead of boxes")
    one.add_argument("--device", metavar="cpu|cuda")
    one.add_argument("--json", action="store_true", help="as `ask` prints it; `export` takes it, too")
    one.add_argument("--save", metavar="OUT.png", type=Path, help="the picture with the places painted in")

    one = command("read", commands.read, "a model's text from standard input as words with places, in JSON")
    one.add_argument("dialect", metavar="DIALECT", nargs="?")
    one.add_argument("--size", metavar="WxH", type=size_of, help="of the upright picture, in pixels")
    one.add_argument("--fit", metavar="WxH", type=size_of, help="of the picture as the model saw it")
    one.add_argument("--candidates", metavar="FILE.json", type=Path, help="[[x0, y0, x1, y1], ...] in pixels")
    one.add_argument("--list", action="store_true", help="list the dialects instead")
    one.add_argument("--markdown", action="store_true", help="with --list: as docs/dialects.md, with its comparison")
    one.add_argument("--inspect", action="store_true", help="read it in every scale, frame and order, likeliest first")

    one = command("write", commands.write, "the text that a prompt would hold for a place")
    one.add_argument("dialect", metavar="DIALECT")
    one.add_argument("--size", metavar="WxH", type=size_of, required=True)
    one.add_argument("--fit", metavar="WxH", type=size_of)
    one.add_argument("--box", metavar="x0,y0,x1,y1", type=corners, action="append", required=True)
    one.add_argument("--phrase", metavar="P")

    one = command("models", commands.models, "the models, where their weights are, what is missing")
    one.add_argument("--markdown", action="store_true", help="the families behind them instead, as docs/families.md")
    one.add_argument("--json", action="store_true")
    one.add_argument("--check", metavar="NAME", help="open this one and check its tokens and its recorded answer")
    one.add_argument(
        "--record", metavar=("IMAGE", "TEXT"), nargs=2, help="with --check: record the answer to compare with"
    )

    one = command(
        "fetch", commands.fetch, "download a model of models.toml and all that it needs; the only command that does"
    )
    one.add_argument("name", metavar="NAME")

    one = command(
        "save", commands.save, "a model as a checkpoint of its own, in our names and in the precision asked for"
    )
    one.add_argument("name", metavar="NAME")
    one.add_argument("folder", metavar="FOLDER", type=Path, help="a new one: name it in models.toml to open it")
    one.add_argument("--precision", default="auto", metavar="|".join(PRECISIONS))

    one = command("index", commands.index, "index a folder of your pictures, for a model that answers with pictures")
    one.add_argument("folder", metavar="FOLDER", type=Path)
    one.add_argument("--model", metavar="NAME")
    one.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|int8|nf4")

    one = command(
        "golden", commands.golden, "recompute the recorded cases of the original systems; exit status 1 on a FAIL"
    )
    one.add_argument("folder", metavar="FOLDER", type=Path)
    one.add_argument("--json", action="store_true")
    one.add_argument(
        "--layout", choices=["file", "shards", "bin"], default="file",
        help="the parameters travel through one file, two shards with their index, or two of torch's own kind",
    )  # fmt: skip

    one = command("evaluate", commands.evaluate, "a model's predictions for a labelled set of photographs")
    one.add_argument("what", choices=["photos"], metavar="photos")
    one.add_argument("folder", metavar="FOLDER", type=Path, help="with images/ and labels.json")
    one.add_argument("--model", metavar="NAME")
    one.add_argument("--precision", default="auto", metavar="|".join(PRECISIONS))
    one.add_argument("--out", metavar="predictions.json", type=Path, required=True)
    one.add_argument("--limit", metavar="N", type=whole, help="the first N photographs only")

    one = command("doctor", commands.doctor, "what this machine can run, and what would help")
    one.add_argument("--json", action="store_true")

    one = command("export", commands.export, "an answer of `ask --json` in another tool's format")
    one.add_argument("format", choices=FORMATS, metavar="|".join(FORMATS))
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("answer", metavar="ANSWER.json", type=Path)
    one.add_argument("--out", metavar="PATH", type=Path, help="a file (yolo: a folder); standard output without it")
    return top


# What the options hold.


def corners(text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 4) or not all(abs(number) < 1e12 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no place, write x0,y0,x1,y1 (or x,y) in pixels")
    return numbers


def drawn(text: str) -> list[float] | dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return corners(text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        shape = '{"kind": "scribble", "points": [[x, y], ...]}'
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is no place, write x0,y0,x1,y1 or {shape} in pixels")
    return found


def size_of(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 20):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, write width and height as 640x480")
    return int(width), int(height)


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number


def whole(text: str) -> int:
    if not (text.isdecimal() and len(text) < 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)
