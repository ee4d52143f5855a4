"""Fetching from a hub on loopback: all that a checkpoint needs, compared with its sums, and noted in a manifest."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mmchat import fetch, models
from mmchat.cli import main
from mmchat.nets import sums

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories on loopback, in the form of the hub's two addresses: what a repository holds, and a file of it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.broken: set[str] = set()  # files that come with a flipped byte
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                path = self.path.split("?")[0].strip("/")
                hub.asked.append(f"{self.command} {path}")
                if path.startswith("api/models/"):
                    name = "/".join(path.split("/")[2:4])
                    if name not in hub.files:
                        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                        return
                    self.answer(200, json.dumps(hub.about(name)).encode(), {"Content-Type": "application/json"})
                    return
                name, _, file = path.partition("/resolve/")
                file = file.partition("/")[2]
                content = hub.files.get(name, {}).get(file)
                if content is None:
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                tag = hashlib.sha256(content).hexdigest() if file.endswith(".safetensors") else hub.blob(content)
                if file in hub.broken:
                    content = content[:-1] + bytes([content[-1] ^ 1])
                self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body)

            def answer(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body and self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *values: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def blob(content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def about(self, name: str) -> dict[str, Any]:
        siblings = []
        for file, content in self.files[name].items():
            one: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": self.blob(content)}
            if file.endswith(".safetensors"):
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(one)
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def entry(hub: Hub, dwarf_folder: Callable[[str], Path], tmp_path: Path) -> models.Entry:
    """LLaVA's dwarf on the hub, its tower in a repository of its own as the published ones have it."""
    from safetensors.torch import load_file, save

    source = dwarf_folder("llava")
    state = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    vision = config.pop("vision_config")
    tower = {f"vision_model.{name.removeprefix('vision.')}": state.pop(name)
             for name in list(state) if name.startswith("vision.")}  # fmt: skip
    hub.files["ours/llava-dwarf"] = {
        "config.json": json.dumps({**config, "mm_vision_tower": "eyes/clip-dwarf"}).encode(),
        "model.safetensors": save(state), "pytorch_model.bin": b"the same again", "optimizer.pt": b"useless",
        "README.md": b"read me", "logs/events.json": b"{}",
        **{name: (source / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")},
    }  # fmt: skip
    hub.files["eyes/clip-dwarf"] = {"config.json": json.dumps(vision).encode(), "model.safetensors": save(tower)}
    return models.Entry("dwarf", "llava", tmp_path / "weights" / "dwarf", "fp32", hub="ours/llava-dwarf")


def test_a_checkpoint_comes_with_its_tower_and_opens_without_a_network(hub: Hub, entry: models.Entry) -> None:
    from mmchat import family
    from mmchat.engines.local import LocalEngine

    done = fetch.fetch(entry, lambda line: None, hub.address)
    assert done == [entry.folder, entry.folder.parent / "clip-dwarf"]
    have = {path.name for path in entry.folder.iterdir() if path.is_file()}
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert have == {*wanted, "manifest.json", sums.FILE}
    hub.server.shutdown()
    assert models.missing(entry) == ""
    LocalEngine.open(entry.folder, family.load("llava"), "fp32").close()


def test_the_manifest_names_revision_sizes_and_sums(hub: Hub, entry: models.Entry) -> None:
    fetch.fetch(entry, lambda line: None, hub.address)
    manifest = json.loads((entry.folder / "manifest.json").read_text())
    assert (manifest["hub"], manifest["revision"], manifest["parts"]) == (entry.hub, COMMIT, ["../clip-dwarf"])
    content = hub.files[entry.hub]["model.safetensors"]
    assert manifest["files"]["model.safetensors"] == {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert sums.known(entry.folder)["config.json"] == manifest["files"]["config.json"]["sha256"]


def test_what_is_whole_is_not_fetched_again_and_what_changed_is(hub: Hub, entry: models.Entry) -> None:
    fetch.fetch(entry, lambda line: None, hub.address)
    told: list[str] = []
    fetch.fetch(entry, told.append, hub.address)
    assert told == []
    path = entry.folder / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b" ")
    fetch.fetch(entry, told.append, hub.address)
    assert [line.split()[1] for line in told] == ["tokenizer.json"] and path.read_bytes() == whole


def test_a_file_that_comes_damaged_is_removed_and_said(hub: Hub, entry: models.Entry) -> None:
    hub.broken.add("model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors of ours/llava-dwarf came damaged and was removed: fetch"):
        fetch.fetch(entry, lambda line: None, hub.address)
    assert not (entry.folder / "model.safetensors").exists()
    assert not (entry.folder / "manifest.json").exists()


def test_the_manifest_says_what_is_missing(hub: Hub, entry: models.Entry) -> None:
    fetch.fetch(entry, lambda line: None, hub.address)
    (entry.folder / "tokenizer.json").unlink()
    tower = entry.folder.parent / "clip-dwarf" / "model.safetensors"
    tower.write_bytes(tower.read_bytes()[:-1])
    assert models.lacking(entry.folder) == ["tokenizer.json", "clip-dwarf/model.safetensors"]
    assert "lacks tokenizer.json, clip-dwarf/model.safetensors: fetch dwarf again" in models.missing(entry)
    (entry.folder / "manifest.json").write_text("{")
    assert "manifest.json that can be read" in models.missing(entry)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hub": "ours/none"}, "ours/none is not there or asks for a licence"), ({"hub": ""}, 'no hub = "owner/name"')],
)
def test_a_repository_that_is_not_there_is_one_sentence(
    hub: Hub, entry: models.Entry, change: dict[str, str], words: str
) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match=words):
        fetch.fetch(replace(entry, **change), lambda line: None, hub.address)
    assert not entry.folder.exists()


def test_a_repository_without_weights_is_refused(hub: Hub, entry: models.Entry) -> None:
    hub.files[entry.hub] = {"README.md": b"soon"}
    with pytest.raises(ValueError, match="holds no weights"):
        fetch.fetch(entry, lambda line: None, hub.address)


def test_only_plain_files_of_the_repository_itself_are_chosen() -> None:
    names = ["../evil.safetensors", "/etc/a.bin", "sub/b.safetensors", "a\\b.bin", "model.bin", "x.json"]
    assert fetch.chosen(names) == {"model.bin", "x.json"}
    both = ["a.safetensors", "model.safetensors.index.json", "b.bin", "pytorch_model.bin.index.json"]
    assert fetch.chosen(both) == {"a.safetensors", "model.safetensors.index.json"}
    assert fetch.chosen(["x.json"]) == set()


def test_offline_is_kept_to(entry: models.Entry, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        fetch.fetch(entry, lambda line: None, hub.address)
    assert hub.asked == []


def test_the_command_fetches_by_the_name_of_models_toml(
    hub: Hub, entry: models.Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.toml").write_text(
        f'[[model]]\nname = "dwarf"\nfamily = "llava"\nfolder = "weights/dwarf"\nhub = "{entry.hub}"\n'
    )
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    assert main(["fetch", "dwarf"]) == 0
    assert "model.safetensors" in capsys.readouterr().err
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["missing"] == ""
    assert main(["fetch", "nothing"]) == 2
