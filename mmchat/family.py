"""What a model family is, and the seam through which any engine runs one.

`names()` lists the files of `mmchat/families`; `load(name)` imports one and returns its record. Nothing else knows a
family's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmchat.clip import Clip
from mmchat.dialect import Grounded, Scene
from mmchat.geometry import Box, Frame, Place, Region
from mmchat.prompt import Piece

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).resolve().parent / "families"


class Dialect(Protocol):
    """What `dialect.Marks` and `dialect.Json` both are."""

    def write(self, places: tuple[Place, ...], phrase: str | None = None, scene: Scene = ...) -> str: ...
    def read(self, text: str, scene: Scene = ..., final: bool = True) -> Grounded: ...


@dataclass(frozen=True)
class Family:
    """One family as data. `frame(config)` and `build(config)` take the checkpoint's own config.json as a dict.

    `mention(number, region, dialect, scene)` gives the pieces that stand where the user wrote @number; `as_box`,
    `as_drawn` and `as_number` are such.
    `keys` are ordered (regular expression, replacement) pairs from published parameter names to ours; `drop`
    patterns name what a checkpoint may hold beyond the model; `fold(state)` joins tensors where two become one; `parts`
    are the other folders that it needs (`nets.weights.Part`). `clip(config, clip)` makes of a video or a sound, where
    `takes` names them, the float32 values that its model's `encode` finds in a `Footage`. `dwarf` is a config.json of
    two thin layers.
    """

    name: str
    title: str
    about: str
    template: Any  # prompt.Template
    dialect: Dialect
    frame: Callable[[Mapping[str, Any]], Frame]
    build: Callable[[Mapping[str, Any]], Any]  # -> nets.model.Model
    mention: Callable[[int, Region, Dialect, Scene], tuple[Piece, ...]]
    dwarf: Mapping[str, Any]
    keys: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    fold: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # best a nets.weights.Fold
    parts: tuple[Any, ...] = ()  # of nets.weights.Part
    takes: frozenset[str] = frozenset({"box"})  # geometry's kinds of region, "several pictures", "video", "sound"
    keep: tuple[str, ...] = ()  # full module paths never quantised
    heats: tuple[str, ...] = ()  # kinds of heat map this family can give
    licence: str = ""
    unverified: str = ""  # one sentence: what of it could not be held to its original
    procedure: Callable[..., Any] | None = None
    types: tuple[str, ...] = ()  # model_type of its config.json, beside the dwarf's
    marks: tuple[str, ...] = ()  # tokens that it adds behind its tokenizer's own, in this order
    retrieves: str = ""  # the mark at which it searches pictures of the user's: see nets.retrieval
    speaks: Callable[[Mapping[str, Any]], Any] | None = None  # the template of a config.json, where they differ
    clip: Callable[[Mapping[str, Any], Clip], np.ndarray] | None = None
    dialects: Mapping[str, Dialect] = field(default_factory=dict)  # of tasks whose answers are written otherwise

    def reading(self, task: str | None) -> Dialect:
        """The dialect of a task's answers."""
        return self.dialects.get(task or "", self.dialect)


def as_box(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """The region's box, whatever was drawn, as the dialect writes it."""
    return (dialect.write((region.box,), None, scene),)


def as_drawn(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """A drawn point as a point, everything else as its box, as the dialect writes them."""
    return (dialect.write(region.points[:1] if region.kind == "point" else (region.box,), None, scene),)


def as_number(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """@number, as the user wrote it: for a model that reads nothing as a region."""
    return (f"@{number}",)


@dataclass(frozen=True)
class Limits:
    """How long and how freely a model may speak. temperature 0 is greedy.

    Where a model answers with pictures of the user's: `pictures` for one mark at most (0..9), and `readiness` (0..3),
    by which the mark's score is multiplied before a token is chosen.
    """

    new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cache: bool = True
    pictures: int = 3
    readiness: float = 1.0

    @classmethod
    def of_seed(cls, seed: int | None) -> Limits:
        """The likeliest words without a seed; with one, words are drawn, the same ones for the same seed."""
        return cls() if seed is None else cls(temperature=0.7, top_p=0.9, seed=int(seed))


@dataclass(frozen=True)
class Footage:
    """A video or a sound (`kind`) among the pictures that a model sees, as the family's `clip` made it.

    `values`: float32; an engine hands a model a tensor on its device.
    """

    kind: str
    values: Any


@dataclass(frozen=True)
class Sight:
    """What an engine keeps of pictures it has seen.

    Candidates are in the unit square of the fitted picture; the user's regions come first, `regions` counts them.
    `owners` names the picture of each candidate (empty: the first). `content` belongs to the engine alone.
    """

    key: str
    candidates: tuple[Box, ...] = ()
    regions: int = 0
    content: Any = None
    encoder_runs: int = 0
    owners: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture of the user's that a model answers with: where in its text, which file, how well it fits."""

    at: int
    path: str
    score: float


@dataclass(frozen=True)
class Said:
    """The text so far. `pieces`: (start, end, probability) of each token in it.

    `candidates` replaces the sight's where a head gave them, boxes and masks; `groups` names those of the k-th mark.
    `counters`: prefilled_tokens, new_tokens. `pictures`: what a family that searches pictures answers with, when done;
    `notes`: sentences that a user should read with this answer.
    """

    text: str
    pieces: tuple[tuple[int, int, float], ...] = ()
    candidates: tuple[Place, ...] | None = None
    done: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[tuple[int, ...], ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A small heat map over the fitted picture and one sentence of what it shows.

    `map`: float32 [h, w] in 0..1, or [h, w, 3] for colours.
    """

    kind: str
    map: np.ndarray
    note: str


class Engine(Protocol):
    """Three functions and what the desk must know of the model behind them.

    Regions reach an engine in the unit square of the fitted picture. `notes` are sentences that a user should read with
    every answer. An engine with a tokenizer has `reserved` too: texts that are marks to its model, whoever writes them.
    """

    family: Family
    config: Mapping[str, Any]
    precision: str
    notes: tuple[str, ...]

    def see(self, pictures: tuple[np.ndarray | Footage, ...], regions: tuple[Region, ...]) -> Sight: ...
    def speak(self, prompt: tuple[Piece, ...], sight: Sight, limits: Limits) -> Iterator[Said]: ...
    def trace(
        self, prompt: tuple[Piece, ...], text: str, sight: Sight, want: str, about: Region | str | None = None
    ) -> Trace: ...
    def close(self) -> None: ...


def names() -> tuple[str, ...]:
    """The families there are, alphabetically: the files of mmchat/families that do not begin with an underscore."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")))


def load(name: str) -> Family:
    """The family of that name; ValueError with the known names otherwise."""
    if name not in names():
        raise ValueError(f"There is no family {name!r}: choose one of {', '.join(names())}.")
    return importlib.import_module(f"mmchat.families.{name}").FAMILY
