"""The checkpoints that a user may open, as models.toml names them: shown name, family, folder, precision.

[[model]]
name = "llava-7b"                 # what --model takes and the page shows
family = "llava"                  # a file of mmchat/families
folder = "weights/llava-v1.5-7b"  # from the repository's root, or a whole path; ~ is the home folder
precision = "auto"                # auto, fp32, bf16, int8 or nf4
hub = "owner/name"                # where `python -m mmchat fetch NAME` gets it; may be left out
revision = "main"                 # of the hub's repository: a branch, a tag or a commit
config = {picture_preparation = "native"}  # entries of its config.json to read otherwise; may be left out

[[detector]]                      # entries of the same form for what finds or cuts out things and does not chat
name = "owlv2"
family = "owlv2"                  # the model_type of its config.json: see mmchat/detectors
folder = "weights/owlv2-base-patch16-ensemble"
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "models.toml"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a checkpoint without one has its language model's
MANIFEST = "manifest.json"  # what `fetch` notes in a folder: the files that must lie there


@dataclass(frozen=True)
class Entry:
    """A checkpoint by name. The first one of the file is opened where none is named."""

    name: str
    family: str
    folder: Path
    precision: str = "auto"
    title: str = ""
    hub: str = ""
    revision: str = "main"
    config: Mapping[str, Any] = field(default_factory=dict)
    detector: bool = False


def listed(file: Path | None = None) -> tuple[Entry, ...]:
    """The checkpoints of a models.toml: this one, the one that MMCHAT_MODELS names, or the one in the root."""
    file = Path(file or os.environ.get("MMCHAT_MODELS") or FILE)
    entries = _read(file, "model")
    if not entries:
        raise ValueError(f"{file} names no model: add one.")
    return entries


def detectors(file: Path | None = None) -> tuple[Entry, ...]:
    """The detectors of the same file; there may be none."""
    return _read(Path(file or os.environ.get("MMCHAT_MODELS") or FILE), "detector")


def _read(file: Path, table: str) -> tuple[Entry, ...]:
    try:
        found = tomllib.loads(file.read_text("utf-8")).get(table, [])
        return tuple(_entry(row, file.parent, table == "detector") for row in found)
    except FileNotFoundError:
        raise ValueError(f"There is no {file}: name the checkpoints there.") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a list of models ({error}): see mmchat/models.py for its form.") from None


def find(name: str | None = None, file: Path | None = None) -> Entry:
    """The checkpoint of that name, the first one without a name; ValueError with the known names otherwise."""
    entries = listed(file)
    if name is None:
        return entries[0]
    for entry in entries:
        if entry.name == name:
            return entry
    if any(entry.name == name for entry in detectors(file)):
        raise ValueError(f"{name} is a detector and does not chat: use it with `python -m mmchat detect`.")
    raise ValueError(f"There is no model {name!r}: choose one of {', '.join(entry.name for entry in entries)}.")


def missing(entry: Entry, tokenizers: Sequence[str] = TOKENIZERS) -> str:
    """What keeps a checkpoint from being opened, one sentence; empty where its files are there and whole.

    tokenizers: files of which one must be there, too; none where a model reads no words.
    Looks at names and headers only: whether the parameters fit the family shows when they are loaded.
    """
    from mmchat.nets import archive, weights  # torch is kept off the path of those who only read names

    if gone := lacking(entry.folder):
        return f"{entry.folder} lacks {', '.join(gone)}: fetch {entry.name} again."
    place = archive.located(entry.folder)
    if archive.packed(place) and place.is_file():
        return ""  # what is in it shows when it is opened
    try:
        config = weights.read_config(place)
        weights.shards(place)
        found = weights.sources(place, config)
    except ValueError as error:
        return unfetched(entry) or str(error)
    parts = [str(named).rstrip("/").rpartition("/")[2] for named in config.values() if isinstance(named, str)]
    folders = [one.path for one in found] + [*(base / part for part in parts if part for base in (place, place.parent))]
    if tokenizers and not any((folder / name).is_file() for folder in folders for name in tokenizers):
        return (
            f"There is no {' or '.join(tokenizers[:2])} in {place}: complete the download, or copy the tokenizer of "
            "its language model there."
        )
    return ""


def unfetched(entry: Entry) -> str:
    """The sentence that a checkpoint can be fetched and was not; empty otherwise."""
    if not entry.hub or entry.folder.exists():
        return ""
    return f"There is no folder {entry.folder}: python -m mmchat fetch {entry.name}."


def lacking(folder: Path) -> list[str]:
    """Files that a folder's manifest names and that are not there in their size, those of its parts included; empty
    where there is no manifest. Nothing is read but sizes: sums are compared when the weights are loaded.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {folder / name: file["size"] for name, file in manifest["files"].items()}
        parts = [(folder / part).resolve() for part in manifest.get("parts", ())]
    except OSError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"a {MANIFEST} that can be read"]
    gone = [path.name for path, size in files.items() if not path.is_file() or path.stat().st_size != size]
    for part in parts:
        if not (part / MANIFEST).is_file():
            gone.append(f"the folder {part}")
        elif part != folder.resolve():
            gone += [f"{part.name}/{name}" for name in lacking(part)]
    return gone


def _entry(row: dict[str, Any], base: Path, detector: bool) -> Entry:
    folder = Path(row["folder"]).expanduser()
    folder = folder if folder.is_absolute() else base / folder
    more = {key: row[key] for key in ("precision", "title", "hub", "revision", "config") if key in row}
    if bad := [key for key, value in {**row, "folder": "", "config": ""}.items() if not isinstance(value, str)]:
        raise TypeError(f"{', '.join(bad)} must be text")
    if not isinstance(row.get("config", {}), dict):
        raise TypeError("config must be a table")
    return Entry(row["name"], row["family"], folder, **more, detector=detector)
