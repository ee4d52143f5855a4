"""Fetch: get all that a checkpoint needs into its folder, once, so that nothing is asked of a network when it runs.

`fetch` is the only function of the program that reaches a network. It takes the files of one revision of a hub's
repository (through huggingface_hub), then those of the other repositories that its config.json names: the vision
tower, the base of an adapter. Every file is compared with the sum that the hub gives; manifest.json and SHA256SUMS then
say what must lie there. `lacking` reads the manifest and tells what is missing; it asks nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmchat import family
from mmchat.models import MANIFEST, Entry, lacking
from mmchat.nets import sums
from mmchat.nets.parts import ADAPTED, TOWER, Part, config_file

__all__ = ["fetch", "lacking"]

SAFE, PICKLES = (".safetensors",), (".bin", ".pth", ".pth.tar", ".pt", ".tar.gz")
BESIDE = (".json", ".model", ".txt", ".tiktoken", ".jinja")
USELESS = ("training_args", "optimizer", "scheduler", "trainer_state", "rng_state", "flax_model", "tf_model")
Tell = Callable[[str], object]


def fetch(entry: Entry, tell: Tell = print, endpoint: str | None = None) -> list[Path]:
    """Download a checkpoint and its parts; gives the folders that were filled. What is whole is not fetched again.

    endpoint: another hub's address. ValueError, with the remedy, where the hub, the repository or a file is not there,
    or a file is not what the hub says that it is.
    """
    if not entry.hub:
        raise ValueError(
            f'models.toml says of {entry.name} no hub = "owner/name": add it, or put the files into {entry.folder}.'
        )
    parts = () if entry.detector else (TOWER, ADAPTED, *family.load(entry.family).parts)
    done = [_repository(entry.hub, entry.revision, entry.folder, tell, endpoint)]
    for hub, folder in _named_parts(entry.folder, parts):
        done.append(_repository(hub, "main", folder, tell, endpoint))
    manifest = json.loads((entry.folder / MANIFEST).read_text("utf-8"))
    manifest["parts"] = [os.path.relpath(folder, entry.folder) for folder in done[1:]]
    _write(entry.folder / MANIFEST, manifest)
    return done


def _named_parts(folder: Path, parts: Iterable[Part]) -> list[tuple[str, Path]]:
    """(hub name, folder beside the checkpoint) of the other repositories that a checkpoint names."""
    out = []
    for part in parts:
        about = folder / "adapter_config.json" if part is ADAPTED else config_file(folder)
        try:
            named = json.loads(about.read_text("utf-8")).get(part.key, part.usual if part is not TOWER else "")
        except (OSError, ValueError):
            continue
        if not isinstance(named, str) or named.count("/") != 1 or named.startswith((".", "/", "~")):
            continue  # a path, or nothing: nobody else has it
        place = folder.parent / named.rpartition("/")[2]
        if place != folder and (named, place) not in out:
            out.append((named, place))
    return out


def _repository(hub: str, revision: str, folder: Path, tell: Tell, endpoint: str | None) -> Path:
    api, download = _client(endpoint)
    try:
        about = api.model_info(hub, revision=revision, files_metadata=True)
    except Exception as error:  # noqa: BLE001 -- the client raises what its many libraries raise
        raise ValueError(_refused(hub, revision, error)) from None
    wanted = chosen([one.rfilename for one in about.siblings or ()])
    if not wanted:
        raise ValueError(f"{hub} holds no weights that can be read: name another repository in models.toml.")
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for one in about.siblings or ():
        if one.rfilename not in wanted:
            continue
        path = folder / one.rfilename
        digest = one.lfs.sha256 if one.lfs else None
        if not _same(path, one.size, digest, one.blob_id):
            path.unlink(missing_ok=True)  # the client takes a file that it once brought for whole
            tell(f"{hub}: {one.rfilename} ({(one.size or 0) / 1e6:.1f} MB)")
            try:
                download(hub, one.rfilename, revision=about.sha, local_dir=folder, endpoint=endpoint)
            except Exception as error:  # noqa: BLE001
                raise ValueError(_refused(f"{hub}/{one.rfilename}", revision, error)) from None
            if not _same(path, one.size, digest, one.blob_id):
                path.unlink(missing_ok=True)
                raise ValueError(f"{one.rfilename} of {hub} came damaged and was removed: fetch again.")
        files[one.rfilename] = {"size": path.stat().st_size, "sha256": sums.of(path)}
    _write(folder / MANIFEST, {"hub": hub, "revision": about.sha, "files": files, "parts": []})
    lines = [f"{file['sha256']}  {name}\n" for name, file in sorted(files.items()) if "/" not in name]
    (folder / sums.FILE).write_text("".join(lines), "utf-8")
    return folder


def chosen(names: Sequence[str]) -> set[str]:
    """The files of a repository that a model is read from: safetensors, or pickles where there are none, and what says
    how to read them. Paths that lead elsewhere are never taken.
    """
    good = [name for name in names if _inside(name) and "/" not in name
            and not any(mark in name.lower() for mark in USELESS)]  # fmt: skip
    weights = [name for name in good if name.endswith(SAFE)] or [name for name in good if name.endswith(PICKLES)]
    indexes = {".safetensors.index.json", ".bin.index.json"}
    kind = ".safetensors.index.json" if any(name.endswith(SAFE) for name in weights) else ".bin.index.json"
    beside = [
        name for name in good
        if name.endswith(BESIDE) and (name.endswith(kind) or not any(name.endswith(one) for one in indexes))
    ]  # fmt: skip
    # A projector beside the weights of an adapter is a pickle even where the rest is not.
    beside += [name for name in good if name in ("non_lora_trainables.bin", "mm_projector.bin")]
    return {*weights, *beside} if weights else set()


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _same(path: Path, size: int | None, sha256: str | None, blob: str | None) -> bool:
    """Whether a file is what the hub says: by SHA-256 where it gives one, else by git's sum of its content."""
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    if sha256:
        return sums.of(path) == sha256
    if blob:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob  # noqa: S324 -- git's own
    return True


def _client(endpoint: str | None) -> tuple[Any, Callable[..., str]]:
    try:
        from huggingface_hub import HfApi, constants, hf_hub_download
    except ImportError:
        raise ValueError("huggingface_hub is not installed: pip install -r requirements.txt") from None
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be fetched: unset it for this command.")
    return HfApi(endpoint=endpoint), hf_hub_download


def _refused(what: str, revision: str, error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("GatedRepoError", "RepositoryNotFoundError"):
        return (
            f"{what} is not there or asks for a licence to be accepted: check its name, or log in with `hf auth login`."
        )
    if kind in ("RevisionNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"):
        return f"{what} has no revision {revision} or lacks this file: correct models.toml."
    said = " ".join(str(error).split())[:160]
    return f"{what} cannot be fetched ({kind}: {said}): check the connection and try again, what is here is kept."


def _write(path: Path, value: dict[str, Any]) -> None:
    """The file whole or not at all: a fetch may be stopped at any time."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)
