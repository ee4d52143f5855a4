"""The checkpoints that a user may open, as models.toml names them: shown name, family, folder, precision.

[[model]]
name = "llava-7b"                 # what --model takes and the page shows
family = "llava"                  # a file of mmchat/families
folder = "weights/llava-v1.5-7b"  # from the repository's root, or a whole path; ~ is the home folder
precision = "auto"                # auto, fp32, bf16, int8 or nf4
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "models.toml"


@dataclass(frozen=True)
class Entry:
    """A checkpoint by name. The first one of the file is opened where none is named."""

    name: str
    family: str
    folder: Path
    precision: str = "auto"
    title: str = ""


def listed(file: Path | None = None) -> tuple[Entry, ...]:
    """The checkpoints of a models.toml: this one, the one that MMCHAT_MODELS names, or the one in the root."""
    file = Path(file or os.environ.get("MMCHAT_MODELS") or FILE)
    try:
        found = tomllib.loads(file.read_text("utf-8")).get("model", [])
        entries = tuple(_entry(row, file.parent) for row in found)
    except FileNotFoundError:
        raise ValueError(f"There is no {file}: name the checkpoints there.") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a list of models ({error}): see mmchat/models.py for its form.") from None
    if not entries:
        raise ValueError(f"{file} names no model: add one.")
    return entries


def find(name: str | None = None, file: Path | None = None) -> Entry:
    """The checkpoint of that name, the first one without a name; ValueError with the known names otherwise."""
    entries = listed(file)
    if name is None:
        return entries[0]
    for entry in entries:
        if entry.name == name:
            return entry
    raise ValueError(f"There is no model {name!r}: choose one of {', '.join(entry.name for entry in entries)}.")


def missing(entry: Entry) -> str:
    """What keeps a checkpoint from being opened, one sentence; empty where its files are there and whole.

    Looks at names and headers only: whether the parameters fit the family shows when they are loaded.
    """
    from mmchat.nets import weights  # torch is kept off the path of those who only read names

    try:
        weights.read_config(entry.folder)
        weights.shards(entry.folder)
    except ValueError as error:
        return str(error)
    if not any((entry.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return f"There is no tokenizer.json or tokenizer.model in {entry.folder}: complete the download."
    return ""


def _entry(row: dict[str, str], base: Path) -> Entry:
    folder = Path(row["folder"]).expanduser()
    folder = folder if folder.is_absolute() else base / folder
    return Entry(row["name"], row["family"], folder, row.get("precision", "auto"), row.get("title", ""))
