"""Archive: a checkpoint that comes as one .tar.gz is unpacked beside it, once, and nowhere else.

An archive is somebody else's: only plain files and folders are taken, none may lie outside, and no more is written than
`most` bytes. It is read once from front to back, into a folder that gets its name only when all is there.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

ENDINGS = (".tar.gz", ".tgz", ".tar")
MOST = 200 << 30
FILES = 10_000


def opened(path: Path, most: int = MOST) -> Path:
    """The folder of a checkpoint that lies as `located` says; an archive is unpacked first.

    ValueError, with the remedy, where an archive is damaged, too large or wants to write elsewhere.
    """
    place = located(path)
    ending = packed(place)
    if not ending:
        return place
    if not place.is_file():
        raise ValueError(f"There is no {place}: put the checkpoint there or name another one.")
    target = place.with_name(place.name[: -len(ending)])
    unpack(place, target, most)
    return located(target)


def located(path: Path) -> Path:
    """Where a checkpoint lies: the folder of its config.json, or an archive that was not unpacked yet.

    path: a folder (config.json may lie deeper in it), an archive, a folder that holds one archive, or what an archive
    beside it is called without its ending.
    """
    path = Path(path)
    if ending := packed(path):
        target = path.with_name(path.name[: -len(ending)])
        path = target if target.is_dir() else path
    elif not path.is_dir():
        path = next((one for end in ENDINGS if (one := path.with_name(path.name + end)).is_file()), path)
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    inside = sorted({found.parent for depth in ("*", "*/*", "*/*/*") for found in path.glob(f"{depth}/config.json")})
    archives = [] if inside else [one for one in sorted(path.iterdir()) if packed(one)]
    if len(archives) == 1:
        return located(archives[0])
    return inside[0] if len(inside) == 1 else path


def packed(path: Path) -> str:
    """The ending that makes a path an archive's; empty where it is none."""
    name = path.name.lower()
    if name.endswith(".pth.tar") or path.is_dir():
        return ""
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def unpack(archive: Path, target: Path, most: int = MOST) -> None:
    """Unpack a .tar or .tar.gz into a new folder; all of it or nothing."""
    most = min(most, shutil.disk_usage(archive.parent).free - (1 << 29))
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as place:
        room = Path(place) / "inside"
        room.mkdir()
        try:
            with tarfile.open(archive, "r|*") as stream:
                _take(stream, room, archive, most)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise ValueError(f"{archive} cannot be unpacked ({error.strerror}): make room beside it.") from None
            raise ValueError(f"{archive} is cut off or damaged: download it again.") from None
        room.rename(target)


def _take(stream: tarfile.TarFile, room: Path, archive: Path, most: int) -> None:
    taken = count = 0
    for member in stream:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
            raise ValueError(f"{archive} wants to write {member.name!r}, outside its folder: do not use it.")
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"{archive} holds {member.name!r}, which is no plain file: do not use it.")
        place, taken, count = room / name, taken + member.size, count + 1
        if taken > most or count > FILES:
            raise ValueError(
                f"{archive} unpacks to more than {most / 2**30:.1f} GiB or {FILES:,} files: make room or do not use it."
            )
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        source = stream.extractfile(member)
        with place.open("xb") as file:
            if source is not None:
                shutil.copyfileobj(source, file, 1 << 20)
        if place.stat().st_size != member.size:
            raise EOFError
