"""The command line: JSON alone on standard output, one sentence and status 2 for what a user can mend."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dwarfs
import numpy as np
import pytest
import test_clip as clips
from PIL import Image

from mmchat import commands, golden
from mmchat.cli import main
from mmchat.desk import LONGEST
from mmchat.dialect import DIALECTS, Index
from mmchat.engines.local import LocalEngine
from mmchat.family import Said, load
from mmchat.golden import Row

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What do you see?"
Told = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Runs the command; gives status, standard output, standard error."""

    def told(*arguments: object) -> Told:
        status = main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return told


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(path)
    return path


def refused(told: Told, *words: str) -> None:
    """Status 2, nothing on standard output, one sentence that says the words."""
    status, out, err = told
    assert (status, out) == (2, "")
    assert err.startswith("mmchat: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


# ask


def test_ask_prints_json_alone_on_standard_output(run, photo: Path) -> None:
    status, out, _ = run("ask", photo, QUESTION, "--model", "replay", "--json")
    told = json.loads(out)
    assert status == 0
    assert list(told) == ["model", "precision", "text", "raw", "spans", "dropped", "notes"]
    assert told["text"] == "I see a bus and two people." and told["model"] == "replay"


def test_ask_gives_places_in_pixels_of_the_upright_picture(run, photo: Path) -> None:
    _, out, _ = run("ask", photo, QUESTION, "--model", "replay", "--json")
    span = json.loads(out)["spans"][0]
    assert (span["phrase"], span["places"][0]["kind"]) == ("a bus", "box")
    recorded = json.loads((ROOT / "assets" / "replay" / "street.json").read_text("utf-8"))["candidates"][0]
    # The recording's frame pads 320 x 240 to a square: bars of an eighth of its side above and below.
    x0, y0, x1, y1 = recorded
    wanted = [x0 * 320, (y0 - 0.125) / 0.75 * 240, x1 * 320, (y1 - 0.125) / 0.75 * 240]
    assert span["places"][0]["box"] == pytest.approx(wanted, abs=1)


def test_ask_turns_a_photograph_by_its_exif_before_it_speaks_of_places(run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: shown 240 wide and 320 high
    Image.new("RGB", (320, 240), "grey").save(tmp_path / "held.jpg", exif=exif)
    status, out, _ = run("ask", tmp_path / "held.jpg", "What is @1?", "--model", "replay", "--json",
                         "--region", "0,250,240,320")  # fmt: skip
    assert status == 0  # below 240: only an upright picture has pixels there


def test_ask_without_json_prints_words_then_phrases_with_places(run, photo: Path) -> None:
    status, out, err = run("ask", photo, QUESTION, "--model", "replay")
    lines = out.splitlines()
    assert status == 0 and lines[0] == "I see a bus and two people."
    assert [line.split(":")[0] for line in lines[1:]] == ["  a bus", "  two people", "  two people"]
    assert "recording" in err  # hints are told elsewhere


def test_ask_saves_the_painted_picture_and_the_heat_map(run, photo: Path, tmp_path: Path) -> None:
    saved, warm = tmp_path / "out.png", tmp_path / "heat.png"
    status, _, _ = run("ask", photo, QUESTION, "--model", "replay", "--json", "--save", saved,
                       "--heat", "feature norm", "--heat-save", warm)  # fmt: skip
    assert status == 0
    before = np.asarray(Image.open(photo))
    for path in (saved, warm):
        after = np.asarray(Image.open(path))
        assert after.shape == before.shape and (after != before).any()


def test_ask_takes_a_task_without_words(run, photo: Path) -> None:
    status, out, _ = run("ask", photo, "--task", "describe", "--model", "replay", "--json")
    assert status == 0 and json.loads(out)["text"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--region", "10,10,10,50"], "no area"),
        (["--region", "400,10,500,50"], "Region 1"),
        (["--region", "-90,-90,-10,-10"], "Region 1"),
        (["--region", "1,2,3"], "x0,y0,x1,y1"),
        (["--region", "a,b,c,d"], "x0,y0,x1,y1"),
        (["--region", "nan,0,5,5"], "x0,y0,x1,y1"),
        (["--region", "{kind: 1}"], "x0,y0,x1,y1 or {"),
        (["--region", '{"kind": "polygon", "points": [[1, 2], [3, 4]]}'], "3 or more"),
        (["--task", "dance"], "choose one of"),
        (["--heat", "feature norm"], "--heat-save"),
        (["--heat", "moon", "--heat-save", "{tmp}/heat.png"], "choose one of"),
        (["--save", "{tmp}/none/out.png"], "folder that exists"),
        (["--seed", "-1"], "whole number"),
        (["--model", "nobody"], "choose one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_ask_says_in_one_sentence_what_is_wrong(run, photo: Path, tmp_path: Path, extra: list[str], words: str) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in extra]
    given += [] if "--model" in given else ["--model", "replay"]
    told = run("ask", photo, QUESTION, "--json", *given)
    status, out, err = told
    assert status == 2 and err.count("\n") == 1 and words in err, err


def test_a_line_is_given_as_json(run, photo: Path) -> None:
    line = '{"kind": "scribble", "points": [[20, 20], [100, 60], [60, 100]]}'
    status, out, _ = run("ask", photo, "What is @1?", "--model", "replay", "--json", "--region", line)
    assert status == 0 and json.loads(out)["text"]
    assert json.loads(out)["spans"][0]["places"][0]["box"] == pytest.approx([20, 20, 100, 100], abs=0.1)


def test_a_region_that_sticks_out_is_cut(run, photo: Path) -> None:
    status, out, _ = run("ask", photo, "What is @1?", "--model", "replay", "--json", "--region", "-50,10,100,500")
    places = [place for span in json.loads(out)["spans"] for place in span["places"] if place["region"] == 0]
    assert status == 0
    for place in places:
        assert place["box"] == pytest.approx([0, 10, 100, 240], abs=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), ("   ", "empty"), ("a" * 10_000, "10000 characters")],
    ids=["empty", "blank", "10,000 characters"],
)
def test_a_question_must_have_a_sane_length(run, photo: Path, text: str, words: str) -> None:
    assert LONGEST < 10_000
    refused(run("ask", photo, text, "--model", "replay", "--json"), words)


# Pictures of every kind.


def bomb(path: Path) -> None:
    """A PNG that says 20,000 x 20,000 and holds next to nothing."""
    Image.new("1", (1, 1)).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no picture": (lambda path: path.write_text("hello"), "not a picture"),
    "cut off": (cut_off, "cut off"),
    "0 bytes": (lambda path: path.write_bytes(b""), "0 bytes"),
    "20,000 x 20,000": (bomb, "pixels"),
    "missing": (lambda path: None, "There is no picture"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_is_refused_in_one_sentence(run, tmp_path: Path, kind: str) -> None:
    make, words = WRONG[kind]
    make(tmp_path / "given.jpg")
    refused(run("ask", tmp_path / "given.jpg", QUESTION, "--model", "replay", "--json"), words)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def palette(path: Path) -> None:
    image = Image.new("P", (60, 40))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(path, "PNG", transparency=b"\x00\xff")


ODD: dict[str, Callable[[Path], object]] = {
    "CMYK": lambda path: Image.new("CMYK", (60, 40), (0, 200, 0, 0)).save(path, "JPEG"),
    "16-bit": lambda path: Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(path, "PNG"),
    "palette with alpha": palette,
    "animated": animated,
    "1 x 1": lambda path: Image.new("RGB", (1, 1), "red").save(path, "PNG"),
    "1:40": lambda path: Image.new("RGB", (20, 800), "red").save(path, "PNG"),
    "40:1": lambda path: Image.new("RGB", (800, 20), "red").save(path, "PNG"),
    "grey with alpha": lambda path: Image.new("LA", (60, 40), (9, 128)).save(path, "PNG"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_answered_about(run, tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "given")
    status, out, err = run("ask", tmp_path / "given", QUESTION, "--model", "replay", "--json")
    assert status == 0, err
    width, height = Image.open(tmp_path / "given").size
    for span in json.loads(out)["spans"]:
        for place in span["places"]:
            x0, y0, x1, y1 = place["box"]
            assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height


# Weights.


@pytest.fixture
def listed(dwarf_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a models.toml with one model, "small", on a copy of a dwarf; gives the copy's folder."""

    def write(stored: str = "llava", opened_as: str = "llava") -> Path:
        folder = tmp_path / "small"
        shutil.copytree(dwarf_folder(stored), folder)
        (tmp_path / "models.toml").write_text(f'[[model]]\nname = "small"\nfamily = "{opened_as}"\nfolder = "small"\n')
        monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
        return folder

    return write


def test_ask_runs_the_first_model_of_models_toml(run, listed, photo: Path) -> None:
    listed()
    status, out, err = run("ask", photo, QUESTION, "--json", "--precision", "fp32")
    told = json.loads(out)
    notes = {name: value for note in told["notes"] for name, value in note.items()}
    assert status == 0, err
    assert (told["model"], told["precision"], notes["encoder_runs"]) == ("small", "fp32", 1)
    assert notes["prefilled_tokens"] > 0 and notes["new_tokens"] > 0


def test_the_same_seed_gives_the_same_answer_and_another_one_another(run, listed, photo: Path) -> None:
    listed()
    raw = [json.loads(run("ask", photo, QUESTION, "--json", "--seed", seed)[1])["raw"] for seed in (1, 1, 2)]
    assert raw[0] == raw[1] != raw[2]


@pytest.mark.parametrize("kind", ["video", "sound"])
def test_ask_says_when_things_happen_in_a_clip(run, listed, photo: Path, tmp_path: Path, monkeypatch, kind) -> None:
    listed("groundinggpt", opened_as="groundinggpt")
    said = Said("The door opens at {0.25, 0.50}.", done=True)
    path = tmp_path / "clip"
    clips.video(path.with_suffix(".avi")).rename(path) if kind == "video" else clips.sound(path, clips.tone(1.5, 16000))
    status, out, err = run("ask", path, QUESTION, "--json")
    seconds = json.loads(out)["seconds"]
    assert (status, seconds) == (0, 3.0 if kind == "video" else 1.5), err
    monkeypatch.setattr(LocalEngine, "speak", lambda self, prompt, sight, limits: iter((said,)))
    (span,) = json.loads(run("ask", path, QUESTION, "--json")[1])["spans"]
    (place,) = span["places"]
    assert span["phrase"] == "The door opens" and place["kind"] == "span"
    assert (place["first"], place["last"]) == (0.25, 0.5)
    assert place["seconds"] == pytest.approx([seconds / 4, seconds / 2], abs=0.01)
    assert f"  The door opens: {seconds / 4:.2f} s to {seconds / 2:.2f} s\n" in run("ask", path, QUESTION)[1]
    assert json.loads(run("ask", photo, QUESTION, "--clip", path, "--json")[1])["seconds"] == seconds


def test_what_a_clip_cannot_do_is_told(run, listed, photo: Path, tmp_path: Path) -> None:
    listed()
    path = clips.video(tmp_path / "a.avi")
    refused(run("ask", path, QUESTION, "--json"), "LLaVA", "takes no videos: choose another model")
    for extra in (("--region", "1,1,9,9"), ("--save", tmp_path / "out.png")):
        refused(run("ask", path, QUESTION, *extra), "is no picture: leave out --region, --save and --heat")
    refused(run("ask", photo, QUESTION, "--clip", photo), "street.png is no video or sound")
    refused(run("ask", photo, QUESTION, "--clip", tmp_path / "none.mp4"), "There is no clip")


def test_ask_takes_several_pictures_and_says_which_one_the_places_are_on(run, listed, photo, tmp_path, monkeypatch):
    listed("qwen3_vl", opened_as="qwen3_vl")
    other, found = tmp_path / "other.png", tmp_path / "found.png"
    Image.new("RGB", (100, 50), "red").save(other)
    said = Said('[{"bbox_2d": [100, 200, 500, 800], "label": "cup"}]', done=True)
    monkeypatch.setattr(LocalEngine, "speak", lambda self, prompt, sight, limits: iter((said,)))
    with Image.open(photo) as opened:
        width, height = opened.size
    for image, size in ((0, (width, height)), (1, (100, 50))):
        where = json.dumps({"kind": "box", "box": [2, 2, 40, 40], "image": image})
        asked = ("ask", photo, "What is @1?", "--picture", other, "--region", where, "--json", "--save", found)
        status, out, err = run(*asked)
        told = json.loads(out)
        assert (status, told["image"]) == (0, image), err
        (place,) = told["spans"][0]["places"]
        assert place["box"] == pytest.approx([0.1 * size[0], 0.2 * size[1], 0.5 * size[0], 0.8 * size[1]], abs=1)
        with Image.open(found) as painted:
            assert painted.size == size
    assert "image" not in json.loads(run("ask", photo, QUESTION, "--json")[1])


def test_what_several_pictures_cannot_do_is_told(run, listed, photo: Path, tmp_path: Path) -> None:
    listed()
    refused(run("ask", photo, QUESTION, "--picture", photo), "takes one picture at a time: leave out the others")
    refused(run("ask", photo, QUESTION, "--picture", tmp_path / "none.png"), "There is no picture")
    for image, told in ((1, "one picture alone"), (-1, "one picture alone"), ("first", "one picture alone")):
        where = json.dumps({"kind": "box", "box": [1, 1, 9, 9], "image": image})
        refused(run("ask", photo, "What is @1?", "--region", where), "Region 1 names no picture", told)


def test_missing_weights_are_told_with_their_folder(run, listed, photo: Path) -> None:
    (listed() / "model.safetensors").unlink()
    refused(run("ask", photo, QUESTION, "--json"), "no weights", "small")


def test_a_missing_folder_is_told(run, listed, photo: Path) -> None:
    shutil.rmtree(listed())
    refused(run("ask", photo, QUESTION, "--json"), "There is no folder")


def test_truncated_weights_are_told(run, listed, photo: Path) -> None:
    path = listed() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(run("ask", photo, QUESTION, "--json"), "cut off", "download it again")


def test_weights_of_another_family_are_told(run, listed, photo: Path) -> None:
    listed("llava", opened_as="mmfuser")
    status, out, err = run("ask", photo, QUESTION, "--json")
    assert (status, out) == (2, "") and err.count("\n") == 1 and "family" in err


def test_an_unknown_precision_is_told(run, listed, photo: Path) -> None:
    listed()
    refused(run("ask", photo, QUESTION, "--json", "--precision", "fp8"), "choose one of")


# read and write


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))

    return give


def test_read_gives_words_and_places_home_in_pixels(run, typed) -> None:
    typed("a kite [0.250,0.375,0.750,0.500]\n")
    status, out, _ = run("read", "shikra", "--size", "640x480")
    told = json.loads(out)
    assert status == 0 and list(told) == ["text", "spans", "dropped"]
    assert told["text"] == "a kite"
    # Shikra's picture is padded: bars of 80 of 640 above and below.
    assert told["spans"][0]["places"][0]["box"] == pytest.approx([160, 160, 480, 240], abs=0.1)


def test_read_takes_pixels_of_the_fitted_picture(run, typed) -> None:
    typed('[{"bbox_2d": [112, 56, 336, 224], "label": "cup"}]')
    _, out, _ = run("read", "qwen2_5_vl", "--size", "1280x960", "--fit", "448x448")
    place = json.loads(out)["spans"][0]["places"][0]
    assert place["box"] == pytest.approx([320, 120, 960, 480], abs=0.1)


def test_read_takes_candidates_in_pixels(run, typed, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("[[10, 20, 110, 220], [300, 40, 400, 200]]")
    typed("<p>a mug</p> <roi><r1></roi> and <p>a cat</p> <roi><r7></roi>")
    _, out, _ = run("read", "groma", "--size", "640x480", "--candidates", tmp_path / "boxes.json")
    told = json.loads(out)
    assert told["spans"][0]["places"][0] == {"kind": "box", "box": [300, 40, 400, 200], "score": None, "region": 1}
    assert "index 7" in told["dropped"][0]["reason"]


# Two dialects write no places in a prompt: a head finds them.
@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"fromage", "llava_grounding"}))
def test_what_write_writes_read_reads(run, typed, tmp_path: Path, name: str) -> None:
    box = [64, 120, 384, 360]
    status, out, err = run("write", name, "--size", "640x480", "--box", ",".join(map(str, box)), "--phrase", "the dog")
    assert status == 0, err
    typed(out)
    _, told, _ = run("read", name, "--size", "640x480", *_candidates(name, box, tmp_path))
    places = [place for span in json.loads(told)["spans"] for place in span["places"]]
    # A dialect that only points writes the middle.
    wanted = [224, 240, 224, 240] if places[0]["kind"] == "point" else box
    assert places[0]["box"] == pytest.approx(wanted, abs=21)


def _candidates(name: str, box: list[int], folder: Path) -> list[str]:
    """Marks that number candidates need them."""
    if not any(isinstance(form.code, Index) for form in getattr(DIALECTS[name], "forms", ())):
        return []
    (folder / "boxes.json").write_text(json.dumps([box]))
    return ["--candidates", str(folder / "boxes.json")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["read", "klingon", "--size", "6x4"], "choose one of"),
        (["read", "shikra"], "--size"),
        (["read", "shikra", "--size", "640"], "640x480"),
        (["read", "shikra", "--size", "0x4"], "from 1"),
        (["read", "shikra", "--size", "6x4", "--fit", "3x4"], "equal sides"),
        (["read", "shikra", "--size", "6x4", "--candidates", "/nowhere.json"], "cannot be read"),
        (["write", "shikra", "--size", "6x4"], "--box"),
        (["write", "shikra", "--size", "6x4", "--box", "1,1"], "four numbers"),
        (["write", "shikra", "--size", "6x4", "--box", "1,1,1,1"], "no area"),
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["ask"], "IMAGE"),
        (["ask", "x.png", "y", "--colour", "red"], "--colour"),
        (["evaluate", "photos", "/nowhere", "--out", "{tmp}/p.json"], "labels.json"),
        (["golden", "/nowhere"], "There is no folder"),
        (["export", "coco", "/nowhere.png", "/nowhere.json"], "There is no picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(run, typed, tmp_path: Path, arguments: list[str], words: str) -> None:
    typed("")
    refused(run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)), words)


def test_read_lists_its_dialects(run) -> None:
    status, out, _ = run("read", "--list")
    assert status == 0 and {"shikra", "groma", "kosmos2"} <= {line.split()[0] for line in out.splitlines()}


# the others


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    run, listed, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmchat.nets import plan

    listed()
    monkeypatch.setattr(plan, "free_memory", lambda device="cpu": (100_000, 1 << 40))
    status, out, err = run("ask", str(photo), "What?", "--precision", "fp32")
    assert (status, out) == (2, "") and "needs" in err and "is free: " in err


def test_a_shorter_context_can_be_asked_for(run, listed, photo: Path) -> None:
    listed()
    status, _, err = run("ask", str(photo), "What? " * 40, "--context", "60")
    assert status == 2 and "reads at most 60" in err


def test_models_lists_what_is_here_and_what_is_missing(run, listed) -> None:
    folder = listed()
    (row,) = json.loads(run("models", "--json")[1])
    assert (row["name"], row["family"], row["folder"], row["missing"]) == ("small", "llava", str(folder), "")
    (folder / "config.json").unlink()
    (row,) = json.loads(run("models", "--json")[1])
    assert "config.json" in row["missing"]


@pytest.mark.parametrize(("status", "exit"), [("ok", 0), ("skip", 0), ("differs", 0), ("fail", 1)])
def test_golden_ends_with_1_where_a_case_fails(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, exit: int
) -> None:
    monkeypatch.setattr(golden, "run", lambda folder: [Row("llava", "one", "projector", 0.5, 1e-5, status, "because")])
    told = run("golden", tmp_path, "--json")
    assert told[0] == exit
    keys = ["system", "case", "object", "error", "tolerance", "status", "why"]
    assert list(json.loads(told[1])[0]) == keys


def test_golden_prints_a_line_a_case(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [Row("llava", "one", "projector", 0.5, 1e-5, "fail", "it is off"), Row("llava", "two", "p", 0, 0, "ok")]
    monkeypatch.setattr(golden, "run", lambda folder: rows)
    lines = run("golden", tmp_path)[1].splitlines()
    assert len(lines) == 2 and "FAIL it is off" in lines[0] and lines[1].endswith("ok")


@pytest.mark.parametrize("form", ["coco", "voc", "csv", "label-studio", "json"])
def test_an_answer_goes_into_other_tools_formats(run, photo: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "answer.json").write_text(run("ask", photo, QUESTION, "--model", "replay", "--json")[1])
    status, out, err = run("export", form, photo, tmp_path / "answer.json")
    assert status == 0, err
    assert "a bus" in out and "two people" in out


def test_an_answer_goes_into_a_yolo_folder(run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(run("ask", photo, QUESTION, "--model", "replay", "--json")[1])
    assert run("export", "yolo", photo, tmp_path / "answer.json", "--out", tmp_path / "yolo")[0] == 0
    assert (tmp_path / "yolo" / "classes.txt").read_text().split("\n")[:2] == ["a bus", "two people"]
    assert len((tmp_path / "yolo" / "street.txt").read_text().splitlines()) == 3


# As a user runs it: a process of its own, from a bare clone.


def process(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mmchat", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, env=clean, timeout=120)


def test_a_process_reads_without_torch_numpy_or_gradio() -> None:
    loaded = "sorted({'torch', 'numpy', 'gradio'} & set(sys.modules))"
    code = f"import sys; from mmchat.cli import main; main(); print({loaded})"
    command = [sys.executable, "-c", code, "write", "shikra", "--size", "640x480", "--box", "1,1,9,9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_process_gives_json_and_nothing_else(photo: Path) -> None:
    done = process("ask", str(photo), QUESTION, "--model", "replay", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["spans"]


def test_a_process_ends_with_2_and_one_sentence() -> None:
    done = process("read", "klingon", "--size", "6x4")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_the_operator_is_found_in_a_bare_clone() -> None:
    code = "import mmchat, msda; print(msda.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and Path(done.stdout.strip()).parent.name == "msda", done.stderr


# app.py


def app(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, "app.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_app_says_where_the_page_is_and_how_long_it_took_and_the_page_answers() -> None:
    port = free_port()
    running = app("--engine", "replay", "--port", str(port))
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        found = re.fullmatch(r"mmchat: (http://\S+) is ready after \d+\.\d s .*\n", line)
        assert found and str(port) in found[1], line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert page.status == 200 and b"mmchat" in page.read()
    finally:
        running.terminate()
        running.communicate(timeout=30)


def test_app_listens_on_this_machine_alone_unless_it_is_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    import app as program

    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("MMCHAT_HOST", raising=False)
    alone = program.flags().parse_args([])
    monkeypatch.setenv("SPACE_ID", "someone/mmchat")
    assert (alone.host, program.flags().parse_args([]).host, alone.port) == ("127.0.0.1", "0.0.0.0", 7860)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--engine", "remote"), "choose"), (("--model", "nobody"), "choose one of"), (("--port", "x"), "invalid int")],
)
def test_app_ends_with_2_and_says_why(arguments: tuple[str, ...], words: str) -> None:
    running = app(*arguments)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (2, "") and words in err and "Traceback" not in err


@pytest.mark.parametrize("precision", ["fp32", "nf4", "int8"])
def test_a_saved_model_answers_as_the_one_it_was_made_of(run, photo, tmp_path, monkeypatch, precision):
    family = load("llava")
    dwarfs.write(replace(family, dwarf={**family.dwarf, "intermediate_size": 128}), tmp_path / "dwarf", shards=2)
    entries = [
        f'[[model]]\nname = "{name}"\nfamily = "llava"\nfolder = "{tmp_path / name}"\n' for name in ("dwarf", "one")
    ]
    (tmp_path / "models.toml").write_text("\n".join(entries), "utf-8")
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    status, out, _ = run("save", "dwarf", tmp_path / "one", "--precision", precision)
    assert (status, out.strip()) == (0, str(tmp_path / "one"))
    asked = ("ask", photo, QUESTION, "--json", "--model")
    plain = ("--precision", "fp32") if precision == "fp32" else ()  # what is quantised tells its precision by itself
    before, after = run(*asked, "dwarf", "--precision", precision), run(*asked, "one", *plain)
    assert before[0] == after[0] == 0
    before, after = json.loads(before[1]), json.loads(after[1])
    assert after["precision"] == precision and after["raw"] == before["raw"]
    kept = (tmp_path / "one" / "model.safetensors").read_bytes()
    refused(run("save", "dwarf", tmp_path / "one"), "is there already: name a new folder")
    refused(run("save", "nobody", tmp_path / "two"), "There is no model 'nobody'")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == kept and not (tmp_path / "two").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_how_much_is_read_and_nothing_else_is():
    stream = Terminal()
    tell = commands.loading(stream, after=0)
    for done in (0, 1, 25, 100):
        tell(done * 10**7, 10**9)
    assert stream.getvalue().split("\r")[1:] == [
        "loading ....................   0 % of 1.0 GB",
        "loading ....................   1 % of 1.0 GB",
        "loading #####...............  25 % of 1.0 GB",
        " " * len("loading ....................   0 % of 1.0 GB"),
        "",
    ]
    quick = Terminal()
    commands.loading(quick)(10, 10)
    assert commands.loading(io.StringIO()) is None and quick.getvalue() == ""
