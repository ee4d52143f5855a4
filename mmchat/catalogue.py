"""The families side by side, told from their records: frame, roads in and out, parts, checkpoint, licence, what is
verified.

Nothing is written by hand but a family's own words: a dwarf is built without memory to see its parts, a region is
mentioned and a place written to show the roads, and the recorded cases under tests/golden are counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmchat import family, models
from mmchat.dialect import Scene
from mmchat.family import Family
from mmchat.geometry import Box, Frame, Region
from mmchat.nets import weights

HEAD = (
    "family",
    "title",
    "frame",
    "takes",
    "road in",
    "road out",
    "parts",
    "checkpoint",
    "licence",
    "verified",
    "unverified",
)
WAYS = {
    "squash": "squashed to a square",
    "pad": "padded to a square",
    "pad_end": "padded to a square at the end",
    "crop": "middle crop",
    "native": "its own size",
    "tiles": "squashed onto a grid of tiles, and the whole as one more",
}
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
INTRODUCTION = """# Families

Written by `python -m mmchat models --markdown`; a test holds it to the records in `mmchat/families`.

A picture is fitted into the *frame*; numbers refer to it and come back to the picture as it was. The *road in* is what
the prompt holds for a drawn box (x 0.25 to 0.6, y 0.4 to 0.9 of a picture of 640 x 480), the *road out* how the model
writes the same box, called "it"; candidates are numbered where a model points at them. *Parts* are the slots of its
model, then the folders that it needs beside its own. *Verified* counts the cases recorded from the original system
that `python -m mmchat golden tests/golden` recomputes, and says what else holds the family to its original;
*unverified* is what could not be held to it."""


def markdown() -> str:
    """All families as a document."""
    lines = [INTRODUCTION, "", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row(name)))} |" for name in family.names())])


def row(name: str) -> tuple[str, ...]:
    """A family in the columns of `HEAD`."""
    record = family.load(name)
    frame = record.frame(record.dwarf)
    way_in, way_out = roads(record, frame)
    takes = ", ".join(sorted(record.takes)) or "no regions"
    return (
        name, record.title, _frame(frame), takes, way_in, way_out, parts(record), checkpoints(name), record.licence,
        verified(name), record.unverified or "nothing",
    )  # fmt: skip


def roads(record: Family, frame: Frame) -> tuple[str, str]:
    """What a prompt holds for a drawn box, and how the model writes it."""
    placement = frame.place((640, 480))
    box = placement.into(Box(0.25, 0.4, 0.6, 0.9))
    scene = Scene((box,), placement.fitted)
    if getattr(record.dialect, "forms", True):
        out = f"`{record.dialect.write((box,), 'it', scene)}`"
    else:
        out = f"no places; pictures at `{record.retrieves}`" if record.retrieves else "no places"
    if not record.takes & {"box", "point", "scribble", "mask", "polygon"}:
        return "none", out
    pieces = record.mention(1, Region("box", box, size=(640, 480)), record.dialect, scene)
    told = [f"`{piece.strip()}`" if isinstance(piece, str) else "its vectors" for piece in pieces if piece != " "]
    return " ".join(told), out


def parts(record: Family) -> str:
    """The filled slots of the family's model, and the other folders that it needs."""
    with weights.without_memory():
        model = record.build(record.dwarf)
    slots = ("vision", "bridge", "regions", "proposer", "head", "language")
    named = [f"{slot}: {_kind(getattr(model, slot))}" for slot in slots if getattr(model, slot) is not None]
    return "; ".join([*named, *(f"beside it: {part.title}" for part in record.parts)])


def checkpoints(name: str) -> str:
    """Where the checkpoints that models.toml knows come from; their titles where nothing names a place."""
    found = [entry.hub or entry.title or entry.name for entry in models.listed(models.FILE) if entry.family == name]
    return ", ".join(dict.fromkeys(found)) or "not in models.toml"


def verified(name: str) -> str:
    """What is recorded of the original system under tests/golden, and what the folder's own note adds."""
    folders = {folder.name.replace("-", ""): folder for folder in GOLDEN.iterdir() if folder.is_dir()}
    folder = folders.get(name.replace("_", ""), GOLDEN / name)
    cases = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith("toy_")]
    numbers = [path for path in cases if path.with_suffix(".safetensors").exists()]
    whole = sum(path.stem.startswith("whole") for path in numbers)
    said = [
        f"{whole} of the whole model" if whole else "",
        f"{len(numbers) - whole} of parts" if len(numbers) > whole else "",
        *(f"table of {path.stem}" for path in cases if path not in numbers),
        "published names" if (folder / "keys.txt").is_file() else "",
    ]
    note = folder / "verified.txt"
    said += [note.read_text("utf-8").strip()] if note.is_file() else []
    return "; ".join(one for one in said if one) or "no original: it is trained here"


def _frame(frame: Any) -> str:
    """How the picture is fitted, in words."""
    if frame.way == "native":
        return f"{WAYS['native']}, sides multiples of {frame.factor}"
    if getattr(frame, "offered", ()):
        return "the whole squashed, and tiles of it beside"
    return WAYS[frame.way]


def _kind(module: Any) -> str:
    """A part's class; the library's own is named as such."""
    kind = type(module)
    inner = getattr(module, "model", None) if kind.__module__.startswith("mmchat.nets.native") else None
    kind = type(inner) if inner is not None else kind
    return f"{kind.__name__} (transformers)" if kind.__module__.startswith("transformers.") else kind.__name__


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
