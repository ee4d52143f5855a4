"""Broken checkpoints: each ends in one sentence with a remedy and leaves everything as it was; none loads silently."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import dwarfs
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat import cli, family, models
from mmchat.engines.local import LocalEngine
from mmchat.nets import archive, sums, weights

FAMILY = family.load("mmfuser")
MUTANTS = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two shards with an index, in half precision to be small; tests copy it."""
    return dwarfs.write(FAMILY, tmp_path_factory.mktemp("whole") / "dwarf", shards=2, dtype=torch.float16)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dwarf"))


def opened(folder: Path):
    with weights.without_memory():
        model = FAMILY.build(weights.read_config(folder))
    found = weights.sources(folder, weights.read_config(folder))
    weights.load(model, found, FAMILY.keys, FAMILY.drop, FAMILY.fold, "fp32", FAMILY.keep)
    return model


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Two hundred mutants, each a random damage of one kind. A random number decides where; the seed is its number.


def shard_of(folder: Path, dice: random.Random) -> Path:
    return dice.choice([*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))])


def flip(path: Path, first: int, last: int, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 4, 32])):
        data[dice.randrange(first, last)] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def flip_header(folder: Path, dice: random.Random) -> None:
    path = shard_of(folder, dice)
    length = struct.unpack("<Q", path.read_bytes()[:8])[0] if path.suffix == ".safetensors" else 2000
    flip(path, 0, 8 + length, dice)


def flip_anywhere(folder: Path, dice: random.Random) -> None:
    path = shard_of(folder, dice)
    flip(path, 0, path.stat().st_size, dice)


def flip_index(folder: Path, dice: random.Random) -> None:
    (path,) = folder.glob("*.index.json")
    flip(path, 0, path.stat().st_size, dice)


def rewritten(folder: Path, dice: random.Random, change: Callable[[dict, str], None]) -> None:
    path = shard_of(folder, dice)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    change(state, dice.choice(sorted(state)))
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    for index in folder.glob("*.index.json"):  # an index that says what the files hold, as a converter would write it
        index.write_text(json.dumps({"weight_map": {name: one.name for one in sorted(folder.glob("*.safetensors"))
                                                    for name in load_file(one)}}))  # fmt: skip


def drop(folder: Path, dice: random.Random) -> None:
    rewritten(folder, dice, lambda state, name: state.pop(name))


def rename(folder: Path, dice: random.Random) -> None:
    def change(state: dict, name: str) -> None:
        at = dice.randrange(len(name))
        state[dice.choice([f"{name}2", f"x{name}", name[:at] + "_" + name[at:], name.upper()])] = state.pop(name)

    rewritten(folder, dice, change)


def reshape(folder: Path, dice: random.Random) -> None:
    def change(state: dict, name: str) -> None:
        tensor = state[name]
        ways = [lambda: tensor[None].clone(), lambda: tensor.reshape(-1, 1).clone(), lambda: tensor.to(torch.int16),
                lambda: torch.cat((tensor, tensor)), lambda: tensor[: len(tensor) // 2].clone()]  # fmt: skip
        state[name] = dice.choice(ways)() if tensor.ndim else tensor.to(torch.int16)

    rewritten(folder, dice, change)


def truncate(folder: Path, dice: random.Random) -> None:
    path = shard_of(folder, dice)
    os.truncate(path, dice.randrange(path.stat().st_size))


def swap(folder: Path, dice: random.Random) -> None:
    """One shard's bytes under the other one's name."""
    first, second = sorted(folder.glob("*.safetensors")) or [None, None]
    if first is None:
        truncate(folder, dice)
    else:
        shutil.copyfile(first, second)


DAMAGES = (flip_header, flip_anywhere, flip_index, drop, rename, reshape, truncate, swap)


def pickled(folder: Path) -> None:
    """The same checkpoint as one pickle."""
    torch.save(state_of(folder), folder / "pytorch_model.bin")
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()


def mutant(whole: Path, place: Path, number: int, recorded: bool) -> tuple[Path, str]:
    """Every third one is a pickle."""
    dice = random.Random(number)
    folder = Path(shutil.copytree(whole, place))
    if number % 3 == 0:
        pickled(folder)
    if recorded:
        sums.write(folder)
    damages = DAMAGES if number % 3 else tuple(one for one in DAMAGES if one is not flip_index)
    damage = damages[number // 3 % len(damages)]
    before = listing(folder)
    while listing(folder) == before:  # two flips of one bit are none
        damage(folder, dice)
    return folder, damage.__name__


def outcome(folder: Path) -> tuple[str, object]:
    """("refused", sentence), ("loaded", model) or, which must never be, what else was raised."""
    before = listing(folder)
    try:
        found = "loaded", opened(folder)
    except ValueError as error:
        found = "refused", str(error)
    assert listing(folder) == before, "opening a checkpoint changed it"
    return found


def test_no_mutant_of_a_checkpoint_whose_sums_are_known_loads(whole, tmp_path):
    for number in range(MUTANTS):
        folder, damage = mutant(whole, tmp_path / str(number), number, recorded=True)
        what, found = outcome(folder)
        assert what == "refused", f"mutant {number} ({damage}) loaded without a word"
        assert "\n" not in found and found.rstrip().endswith("."), found
        shutil.rmtree(folder)


def test_a_mutant_without_known_sums_is_refused_or_no_worse_than_flipped_finite_numbers(whole, tmp_path):
    """Without a sum nothing in a safetensors file says what its numbers were: there, and only there, a flip that leaves
    a number finite loads. A pickle's zip carries sums, so that none loads there with another number.
    """
    state, loaded = state_of(whole), {}
    for number in range(MUTANTS):
        folder, damage = mutant(whole, tmp_path / str(number), number, recorded=False)
        what, found = outcome(folder)
        if what == "loaded":
            other = [
                name for name, tensor in found.state_dict().items() if not torch.equal(tensor, state[name].float())
            ]
            assert not other or (damage == "flip_anywhere" and number % 3), f"mutant {number} ({damage}): {other}"
            assert all(tensor.isfinite().all() for tensor in found.state_dict().values())
            loaded[number] = damage
        shutil.rmtree(folder)
    assert set(loaded.values()) <= {"flip_anywhere", "flip_header", "flip_index"} and len(loaded) < MUTANTS // 4, loaded


# Broken files as users meet them, through the command line: one sentence, exit status 2, nothing changed.


def empty(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")


def pointer(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )


def web_page(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_text("<!doctype html><html>Please log in</html>")


def cut(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 10)


def longer(folder: Path) -> None:
    with (folder / "model-00001-of-00002.safetensors").open("ab") as file:
        file.write(b"more")


def gone(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()


def all_gone(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()


def outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))


def twice(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    shutil.copyfile(folder / "model-00001-of-00002.safetensors", folder / "again.safetensors")


def other_family(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "qwen2"}))


def other_weights(folder: Path) -> None:
    all_gone(folder)
    save_file({"model.layers.0.weight": torch.zeros(2)}, folder / "model.safetensors")


def no_tower(folder: Path) -> None:
    state = {name: tensor for name, tensor in state_of(folder).items() if not name.startswith("vision.")}
    all_gone(folder)
    save_file(state, folder / "model.safetensors")


def not_numbers(folder: Path) -> None:
    state = state_of(folder)
    all_gone(folder)
    state["bridge.0.gamma1"][3] = float("nan")
    save_file(state, folder / "model.safetensors")


def code(folder: Path) -> None:
    all_gone(folder)
    torch.save({"a": Harmful()}, folder / "pytorch_model.bin")


def code_in_an_old_pickle(folder: Path) -> None:
    all_gone(folder)
    torch.save({"a": Harmful()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def no_parameters(folder: Path) -> None:
    all_gone(folder)
    torch.save({"epoch": 3, "lr": [0.1]}, folder / "pytorch_model.bin")


def cut_pickle(folder: Path) -> None:
    pickled(folder)
    os.truncate(folder / "pytorch_model.bin", 5000)


def cut_config(folder: Path) -> None:
    os.truncate(folder / "config.json", 40)


def other_sum(folder: Path) -> None:
    sums.write(folder)
    path = folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the last bit of a half-precision number: no shape and no name tells
    path.write_bytes(data)


def noted_sum(folder: Path) -> None:
    """As the hub's client notes it beside a download."""
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "model-00001-of-00002.safetensors.metadata").write_text(f"revision\n{'0' * 64}\n1700000000.0\n")


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


CASES = [
    (empty, "is empty (0 bytes): download it again"),
    (pointer, "is a Git LFS pointer, not the weights: run `git lfs pull`"),
    (web_page, "is a web page, not the weights: download it again"),
    (cut, "is cut off or damaged: download it again"),
    (longer, "is cut off or damaged: download it again"),
    (gone, "lacks model-00001-of-00002.safetensors, which its index names: complete the download"),
    (all_gone, "There are no weights in"),
    (outside, "is no index of weights: download it again"),
    (twice, "and again in"),
    (other_family, "is of the type 'qwen2', and MMFuser opens"),
    (other_weights, "do not fit this family"),
    (no_tower, "holds no vision tower: put the vision tower's own folder"),
    (not_numbers, "bridge.0.gamma1 in"),
    (code, "is not opened, as it could run code: convert it to safetensors"),
    (code_in_an_old_pickle, "is not opened, as it could run code: convert it to safetensors"),
    (no_parameters, "holds no parameters: give the file of a model's weights"),
    (cut_pickle, "is cut off or damaged: download it again"),
    (cut_config, "is not JSON: download it again"),
    (other_sum, "is not the file that its sum was made of: download it again"),
    (noted_sum, "is not the file that its sum was made of: download it again"),
]


@pytest.mark.parametrize(("damage", "sentence"), CASES, ids=[damage.__name__ for damage, _ in CASES])
def test_a_broken_checkpoint_is_one_sentence_and_status_2(folder, tmp_path, monkeypatch, capsys, damage, sentence):
    damage(folder)
    (tmp_path / "models.toml").write_text(f'[[model]]\nname = "a"\nfamily = "mmfuser"\nfolder = "{folder}"\n')
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    before = listing(tmp_path)
    assert cli.main(["ask", "p.png", "What?", "--model", "a", "--precision", "fp32"]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.err.startswith("mmchat: ") and not said.out
    assert listing(tmp_path) == before


def test_the_whole_one_is_taken(folder):
    state = state_of(folder)
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in opened(folder).state_dict().items())


def test_a_projector_alone_is_told_for_what_it_is(folder):
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"model.mm_projector.1.bias": torch.zeros(64)}, folder / "mm_projector.bin")
    with pytest.raises(weights.WrongWeights, match="holds no language model and is a part of a checkpoint: put all"):
        opened(folder)


@pytest.mark.parametrize("lies", ["named", "beside", "inside"])
def test_an_archive_is_found_where_a_user_puts_it_and_is_no_missing_folder(folder, tmp_path, lies):
    base = tmp_path / "weights"
    (base / "honey" if lies == "inside" else base).mkdir(parents=True)
    packed = base / "honey" / "other.tar.gz" if lies == "inside" else base / "honey.tar.gz"
    with tarfile.open(packed, "w:gz") as stream:
        stream.add(folder, "checkpoints/honey/last")
    entry = models.Entry("honey", "mmfuser", packed if lies == "named" else base / "honey")
    assert models.missing(entry) == ""
    place = archive.opened(entry.folder)
    assert place.name == "last" and listing(place) == listing(folder) and models.missing(entry) == ""
    assert archive.opened(entry.folder) == place  # and unpacked once
    (place / "tokenizer.json").unlink()
    assert models.missing(entry).endswith("complete the download, or copy the tokenizer of its language model there.")


def test_what_can_be_fetched_and_was_not_says_how(tmp_path, monkeypatch):
    (tmp_path / "models.toml").write_text('[[model]]\nname = "a"\nfamily = "mmfuser"\nfolder = "none"\nhub = "b/c"\n')
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    with pytest.raises(ValueError, match="python -m mmchat fetch a"):
        LocalEngine.named("a")


def test_known_sums_that_agree_are_taken(folder):
    sums.write(folder)
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
    path = folder / "model-00001-of-00002.safetensors"
    (folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata").write_text(f"r\n{sums.of(path)}\n1\n")
    opened(folder)


def test_a_hub_caches_file_is_checked_by_its_name(folder):
    path = folder / "model-00001-of-00002.safetensors"
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    shutil.move(path, blobs / sums.of(path))
    path.symlink_to(next(blobs.iterdir()))
    opened(folder)
    wrong = blobs / ("0" * 64)
    shutil.move(path.resolve(), wrong)
    path.unlink()
    path.symlink_to(wrong)
    with pytest.raises(ValueError, match="not the file that its sum was made of"):
        opened(folder)


# Archives.


def packed(folder: Path, inside: str = "checkpoints/dwarf/last") -> Path:
    path = folder.with_name("7B-dwarf.tar.gz")
    with tarfile.open(path, "w:gz") as stream:
        stream.add(folder, inside)
    return path


def test_an_archive_opens_as_the_folder_in_it_and_is_unpacked_once(folder):
    path = packed(folder)
    state = state_of(folder)
    model = LocalEngine.open(path, FAMILY, "fp32", "cpu").model
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())
    before = listing(path.parent)
    assert archive.opened(path) == path.parent / "7B-dwarf" / "checkpoints" / "dwarf" / "last"
    assert listing(path.parent) == before


def hostile(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """An archive of (name, content) files and (name, target) links."""
    with tarfile.open(path, "w:gz") as stream:
        for name, what in members:
            one = tarfile.TarInfo(name)
            if isinstance(what, str):
                one.type, one.linkname = (tarfile.LNKTYPE if name.startswith("hard") else tarfile.SYMTYPE), what
                stream.addfile(one)
            else:
                one.size = len(what)
                stream.addfile(one, io.BytesIO(what))
    return path


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("../outside", b"x")], "outside its folder: do not use it"),
        ([("a/../../outside", b"x")], "outside its folder: do not use it"),
        ([("/tmp/outside", b"x")], "outside its folder: do not use it"),
        ([("link", "/etc/passwd")], "which is no plain file: do not use it"),
        ([("hard", "/etc/passwd")], "which is no plain file: do not use it"),
        ([("link", ".."), ("link/outside", b"x")], "which is no plain file: do not use it"),
        ([("good", b"x"), ("big", b"x" * 5000)], "unpacks to more than"),
        ([("same", b"x"), ("same", b"y")], "cannot be unpacked|cut off or damaged"),
    ],
)
def test_an_archive_that_means_harm_leaves_nothing(tmp_path, members, sentence):
    path = hostile(tmp_path / "inner" / "bad.tar.gz", *members) if (tmp_path / "inner").mkdir() is None else tmp_path
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        archive.opened(path, most=4000)
    assert listing(tmp_path) == before and list((tmp_path / "inner").iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 20, 5000, 60000])
def test_a_cut_archive_leaves_nothing(folder, kept):
    path = packed(folder)
    os.truncate(path, kept)
    with pytest.raises(ValueError, match="is cut off or damaged: download it again"):
        archive.opened(path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["7B-dwarf.tar.gz", "dwarf"]
