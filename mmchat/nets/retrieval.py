"""An index of the user's pictures: a row of numbers for each, kept on disk; the rows that a mark asks for, best first.

It lies in the checkpoint's folder, because rows are of use to the model that made them alone. Only names of files are
kept, never pixels; a file that has not changed since is not looked at again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mmchat.nets.files import whole_file
from mmchat.picture import open_image

FILE = Path("pictures") / "index.safetensors"  # in a folder of its own: the checkpoint's folder holds weights
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SPARE = 3  # pictures that are tried beyond those wanted, where some can no longer be opened
BATCH = 8  # pictures that go through the tower together
SAVED = 512  # after so many new pictures the index is written, so that a stopped run goes on there

Embed = Callable[[list[Image.Image]], torch.Tensor]  # upright RGB pictures -> rows [n, D]
Tell = Callable[[int, int, int], object]  # (pictures done, of all, of these unreadable)


@dataclass(frozen=True)
class Library:
    """Pictures with their rows [n, D], float32, of any length.

    `stamps` tell a changed file: its size and time. `maker` names the weights that made the rows.
    """

    paths: tuple[str, ...]
    rows: torch.Tensor
    stamps: tuple[str, ...] = ()
    maker: str = ""

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class Shelf:
    """What of a library was offered already, so that no picture is offered twice; `opened`: the paths tried."""

    library: Library
    opens: Callable[[str], bool]
    taken: set[int] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)

    def best(self, likeness: torch.Tensor, most: int) -> list[int]:
        """The indices of at most `most` pictures that open, likeliest first; likeness [n]. SPARE more are tried."""
        order = likeness.argsort(descending=True, stable=True).tolist()
        found: list[int] = []
        for index in [one for one in order if one not in self.taken][: most + SPARE]:
            if len(found) == most:
                break
            self.taken.add(index)
            self.opened.append(self.library.paths[index])
            if self.opens(self.library.paths[index]):
                found.append(index)
        return found


def readable(path: str) -> bool:
    """Whether a file is still a picture that can be opened."""
    try:
        open_image(path)
    except ValueError:
        return False
    return True


def pictures_in(folder: Path) -> list[Path]:
    """The pictures under a folder, in the order of their paths; hidden files and folders are passed over."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(base) / name for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]  # fmt: skip
    return sorted(found)


def build(folder: Path, target: Path, embed: Embed, maker: str, tell: Tell = lambda *_: None) -> Library:
    """The index of the pictures under `folder`, written to `target` (a file), with what it holds of other folders left
    out. ValueError where there are no pictures, or none can be read.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: name one that holds pictures.")
    paths = pictures_in(folder)
    if not paths:
        raise ValueError(f"There are no pictures under {folder} ({', '.join(sorted(SUFFIXES))}): name another folder.")
    known: dict[tuple[str, str], torch.Tensor] = {}
    if target.is_file():
        try:
            old = read(target, maker)
            known = dict(zip(zip(old.paths, old.stamps, strict=True), old.rows, strict=True))
        except ValueError:  # of other weights, or damaged: made anew
            known = {}
    done: dict[tuple[str, str], torch.Tensor] = {}
    waiting: list[tuple[tuple[str, str], Image.Image]] = []
    unreadable = new = 0

    def flush() -> None:
        nonlocal new
        if waiting:
            rows = embed([image for _, image in waiting]).float().cpu()
            done.update(zip((key for key, _ in waiting), rows, strict=True))
            new += len(waiting)
            waiting.clear()

    for number, path in enumerate(paths, 1):
        key = (str(path), stamp(path))
        if key in known:
            done[key] = known[key]
        else:
            try:
                waiting.append((key, open_image(str(path))))
            except ValueError:
                unreadable += 1
        if len(waiting) == BATCH or number == len(paths):
            flush()
            tell(number, len(paths), unreadable)
            if new >= SAVED:
                new = 0
                write(_library({**known, **done}, maker), target)
    if not done:
        raise ValueError(f"None of the {len(paths)} pictures under {folder} can be read: name another folder.")
    made = _library(done, maker)
    write(made, target)
    return made


def _library(rows: dict[tuple[str, str], torch.Tensor], maker: str) -> Library:
    keys = sorted(rows)
    return Library(
        tuple(path for path, _ in keys), torch.stack([rows[key] for key in keys]), tuple(s for _, s in keys), maker
    )


def stamp(path: Path) -> str:
    """What changes when a file does."""
    about = path.stat()
    return f"{about.st_size}-{about.st_mtime_ns}"


def maker_of(tensors: Sequence[torch.Tensor]) -> str:
    """A name for the weights that make rows, the same in every precision."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().to(torch.bfloat16).view(torch.int16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write(library: Library, path: Path) -> None:
    """Whole or not at all: a new file takes the old one's place. ValueError where it cannot be written."""
    about = {"paths": list(library.paths), "stamps": list(library.stamps), "maker": library.maker}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"rows": library.rows.contiguous()}, beside, {"pictures": json.dumps(about)})
        beside.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): free its folder for writing.") from None
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path, maker: str) -> Library:
    """An index that weights named `maker` made; ValueError, with the remedy, where it is another's or damaged."""
    try:
        whole_file(path)
        with safe_open(path, "pt") as file:
            about, rows = json.loads(file.metadata()["pictures"]), file.get_tensor("rows").float()
        paths, stamps = tuple(map(str, about["paths"])), tuple(map(str, about["stamps"]))
        whole = rows.ndim == 2 and len(rows) == len(paths) == len(stamps) and bool(rows.isfinite().all())
        made_by = str(about["maker"])
    except Exception:  # noqa: BLE001 -- the library raises nothing narrower
        whole, made_by = False, maker
    if not whole:
        raise ValueError(f"{path} is no index of pictures: build it anew with `python -m mmchat index FOLDER`.")
    if made_by != maker:
        raise ValueError(f"{path} was made by other weights: build it anew with `python -m mmchat index FOLDER`.")
    return Library(paths, rows, stamps, made_by)
