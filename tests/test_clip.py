"""Clips: videos become few upright pictures, sounds samples, whatever cannot be read one sentence."""

from __future__ import annotations

import builtins
import wave
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmchat import clip
from mmchat.clip import evenly, is_clip, open_clip


def video(path: Path, count: int = 30, size: tuple[int, int] = (64, 48), rate: float = 10, code: str = "MJPG") -> Path:
    """A video whose frame k is grey of 8 k and white in its upper left quarter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, size)
    for number in range(count):
        frame = np.full((size[1], size[0], 3), 8 * number % 200, np.uint8)
        frame[: size[1] // 2, : size[0] // 2] = 255
        writer.write(frame)
    writer.release()
    return path


def sound(path: Path, samples: np.ndarray, rate: int = 16000, width: int = 2) -> Path:
    """A WAV file of samples [N] or [N, channels] in -1..1."""
    samples = samples.reshape(len(samples), -1)
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    data = (
        (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    )
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(data.tobytes())
    return path


def tone(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("name", "code"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.webm", "VP80")])
def test_a_video_becomes_frames_picked_evenly(tmp_path, name, code):
    found = open_clip(video(tmp_path / name, code=code), 10)
    assert (found.kind, found.seconds, found.size, len(found.frames)) == ("video", 3.0, (64, 48), 10)
    greys = [frame.getpixel((60, 44))[1] for frame in found.frames]
    assert greys == pytest.approx([8 * number % 200 for number in range(0, 30, 3)], abs=6)
    assert all(frame.mode == "RGB" for frame in found.frames)


def test_of_a_short_video_every_frame_is_kept(tmp_path):
    assert len(open_clip(video(tmp_path / "a.avi", 5)).frames) == 5


def test_the_even_choice_of_an_even_choice_is_one_of_the_whole():
    for count in (1, 5, 64, 100, 901):
        kept = evenly(count, 64)
        assert [kept[index] for index in evenly(len(kept), 8)] == evenly(count, 8)


def test_large_frames_are_kept_smaller(tmp_path):
    assert open_clip(video(tmp_path / "a.avi", 2, (1440, 960))).size == (720, 480)


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """The rotation in the header of an MP4's track written anew: six of its nine numbers, 16.16."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (number * 65536 for number in matrix)
    rows = (a, b, 0, c, d, 0)
    data[at : at + 24] = b"".join(number.to_bytes(4, "big", signed=True) for number in rows)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "size", "white"), [((0, 1, -1, 0), (48, 64), (40, 8)), ((-1, 0, 0, -1), (64, 48), (56, 40))]
)
def test_a_turned_video_is_set_upright(tmp_path, matrix, size, white):
    found = open_clip(turned(video(tmp_path / "a.mp4", code="mp4v"), matrix))
    assert found.size == size and found.frames[0].getpixel(white) > (240, 240, 240)


def test_a_video_that_ends_early_is_taken_as_far_as_it_goes(tmp_path):
    path = video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    found = open_clip(path, 8)
    assert 0.5 < found.seconds < 3 and len(found.frames) == 8


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wav_of_every_width_becomes_its_first_channel(tmp_path, width):
    heard = tone(0.5, 8000)
    found = open_clip(sound(tmp_path / "a.wav", np.stack([heard, 0 * heard], 1), 8000, width))
    assert (found.kind, found.rate, found.samples.dtype, found.seconds) == ("sound", 8000, np.float32, 0.5)
    assert np.abs(found.samples - heard).max() < (0.01 if width == 1 else 1e-4)


def encoded(path: Path, heard: np.ndarray, rate: int, codec: str) -> Path:
    av = pytest.importorskip("av", reason="PyAV comes with supervision")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(heard[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        for piece in av.AudioResampler(format=stream.format, layout="mono", rate=rate).resample(frame):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.ogg", "libopus"), ("a.m4a", "aac")])
def test_other_sounds_are_decoded(tmp_path, name, codec):
    found = open_clip(encoded(tmp_path / name, tone(1, 48000), 48000, codec))
    assert found.kind == "sound" and found.rate == 48000 and found.seconds == pytest.approx(1, abs=0.05)
    assert 0.45 < np.abs(found.samples[9600:38400]).max() < 0.75


def test_words_in_a_sound_that_are_no_utf8_do_no_harm(tmp_path):
    av = pytest.importorskip("av", reason="PyAV comes with supervision")
    path = encoded(tmp_path / "a.m4a", tone(1, 48000), 48000, "aac")
    with av.open(str(path)) as given, av.open(str(tmp_path / "b.mp3"), "w") as file:
        file.metadata["title"] = "XXXX"
        stream = file.add_stream("libmp3lame", rate=48000)
        for frame in given.decode(audio=0):
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = (tmp_path / "b.mp3").read_bytes()
    assert b"XXXX" in data
    (tmp_path / "b.mp3").write_bytes(data.replace(b"XXXX", b"caf\xe9"))
    assert open_clip(tmp_path / "b.mp3").kind == "sound"


def test_without_a_decoder_the_remedy_is_told(tmp_path, monkeypatch):
    path = encoded(tmp_path / "a.flac", tone(1, 48000), 48000, "flac")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="no decoder for other sounds is here: save it as 16 bit WAV, or install PyAV"):
        open_clip(path)


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    return path


def empty_wav(path: Path) -> Path:
    return sound(path, tone(0.01, 8000), 8000)


def no_frames(path: Path) -> Path:
    whole = video(path, code="mp4v").read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    return path


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (lambda path: path, "a.mp4", "There is no clip"),
        (lambda path: path.mkdir() or path, "a.mp4", "cannot be read"),
        (lambda path: path.write_bytes(b"") and path or path, "a.mp4", "is empty"),
        (lambda path: path.write_bytes(b"words") and path, "a.mp4", "is no video or sound that can be read"),
        (playlist, "a.mp4", "is no video or sound that can be read"),
        (no_frames, "a.mp4", "a.mp4 is damaged or cut off"),
        (lambda path: path.write_bytes(b"fLaC" + b"x" * 99) and path, "a.flac", "a.flac is damaged or cut off"),
        (lambda path: path.write_bytes(b"RIFF\4\0\0\0WAVE") and path, "a.wav", "a.wav is damaged or cut off"),
        (empty_wav, "a.wav", "less than 0.1 seconds"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, make, name, words):
    with pytest.raises(ValueError, match=words) as told:
        open_clip(make(tmp_path / name))
    assert str(told.value).endswith(".") and "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["a.avi", "a.mp4", "a.webm", "a.wav", "a.flac", "a.ogg"])
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, kind):
    codes = {"a.avi": "MJPG", "a.mp4": "mp4v", "a.webm": "VP80"}
    codecs = {"a.flac": "flac", "a.ogg": "libopus"}
    if kind in codes:
        path = video(tmp_path / kind, code=codes[kind])
    elif kind in codecs:
        path = encoded(tmp_path / kind, tone(0.5, 48000), 48000, codecs[kind])
    else:
        path = sound(tmp_path / kind, tone(0.5, 8000), 8000)
    whole, random = path.read_bytes(), np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, min(len(data), random.choice([64, 400, len(data)])), random.choice([1, 3, 20])):
            data[place] = random.integers(256)
        path.write_bytes(data[: random.integers(8, len(data))] if random.random() < 0.3 else data)
        try:
            found = open_clip(path)
            assert found.seconds > 0 and (found.frames or len(found.samples))
        except ValueError as told:
            assert str(told).startswith("a.") and str(told).endswith(".")


def test_a_sound_of_an_impossible_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a.wav is damaged"):
        open_clip(sound(tmp_path / "a.wav", tone(1, 8000), 7))


@pytest.mark.parametrize("make", [lambda path: video(path), lambda path: sound(path, tone(2, 8000), 8000)])
def test_a_clip_that_is_too_long_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.setattr(clip, "LONGEST", 1.0)
    with pytest.raises(ValueError, match="is longer than the limit of"):
        open_clip(make(tmp_path / "a.avi"))


def test_frames_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "LARGEST", 3000)
    with pytest.raises(ValueError, match="a.avi has frames of 64 x 48 pixels, the limit is 0 megapixels: make it sm"):
        open_clip(video(tmp_path / "a.avi"))


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "HEAVIEST", 1000)
    with pytest.raises(ValueError, match="the limit is 0 MiB"):
        open_clip(video(tmp_path / "a.avi"))


def test_pictures_are_no_clips(tmp_path, picture):
    for ending in ("png", "jpg", "gif", "webp", "avif", "tiff", "bmp"):
        picture.save(tmp_path / f"a.{ending}")
        assert not is_clip(tmp_path / f"a.{ending}")
    assert is_clip(video(tmp_path / "a.avi")) and is_clip(sound(tmp_path / "a.wav", tone(1, 8000), 8000))
    assert not is_clip(tmp_path / "nothing.mp4") and not is_clip(b"RIFFxxxxWAVE")
