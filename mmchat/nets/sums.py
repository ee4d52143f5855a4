"""Sums: whether files are still what their publisher wrote, where somebody has said what their SHA-256 is.

Three places may say it: SHA256SUMS in the folder (as `sha256sum * > SHA256SUMS` writes it), what the hub's client
notes beside a download (.cache/huggingface/download), and a file's name in the hub's cache, which is its sum. Where
none does, a flipped bit that leaves numbers finite cannot be told from a weight.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

FILE = "SHA256SUMS"
_SUM = re.compile(r"[0-9a-f]{64}")


def known(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, for the files of a folder (or one file) whose sum is known; ValueError for a bad list."""
    folder = Path(folder)
    if folder.is_file():
        return {name: digest for name, digest in known(folder.parent).items() if name == folder.name}
    out: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        blob = path.resolve().name if path.is_symlink() else ""
        noted = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
        lines = noted.read_text("utf-8", "replace").splitlines() if noted.is_file() else []
        tag = lines[1].strip() if len(lines) > 1 else ""
        for one in (tag, blob):
            if _SUM.fullmatch(one):
                out[path.name] = one
    if (folder / FILE).is_file():
        for line in (folder / FILE).read_text("utf-8", "replace").splitlines():
            digest, _, name = line.strip().partition(" ")
            name = name.strip().removeprefix("*").removeprefix("./")
            if not line.strip():
                continue
            if not _SUM.fullmatch(digest.lower()) or not name:
                raise ValueError(f"{folder / FILE} is no list of SHA-256 sums: make it again or remove it.")
            if "/" not in name:
                out[name] = digest.lower()
    return out


def write(folder: Path) -> Path:
    """Write SHA256SUMS of all files of a folder, in the form of `sha256sum`."""
    lines = [f"{of(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file() and path.name != FILE]
    (folder / FILE).write_text("".join(lines), "utf-8")
    return folder / FILE


def of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Check:
    """Compares the sums of a folder in a thread of its own, while the files are read for something else anyway."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.sums: Mapping[str, str] = known(self.folder)
        self._stop = False
        self._pool = ThreadPoolExecutor(1) if self.sums else None
        self._found: Future[str] | None = self._pool.submit(self._compare) if self._pool else None

    def result(self) -> str:
        """One sentence about the first file that is not what it was; empty where all are."""
        if self._found is None or self._pool is None:
            return ""
        self._pool.shutdown(wait=True)
        return self._found.result()

    def _compare(self) -> str:
        base = self.folder if self.folder.is_dir() else self.folder.parent
        for name, digest in self.sums.items():
            path = base / name
            if not path.is_file():
                return f"{path} is missing, and a sum of it is known: complete the download."
            if of(path) != digest:
                return f"{path} is not the file that its sum was made of: download it again."
        return ""
