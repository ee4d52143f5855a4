"""GroundingGPT's published layout, its roads for videos and sounds, and its boxes on a wide picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dwarfs
import published
import pytest
import test_clip as clips
import torch

from mmchat import family
from mmchat.clip import Clip, evenly, open_clip
from mmchat.desk import Answer, Ask, Desk, Limits, Turn, home
from mmchat.dialect import Moment, Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.groundinggpt import FAMILY, build
from mmchat.family import Said
from mmchat.geometry import Box, Region
from mmchat.nets import imagebind, weights
from mmchat.prompt import Slot

EARS = "model.audio_encoder.modality_"
NAMES = (
    (r"^bridge\.", "model.mm_vision_projector."), (r"^(?:watching|hearing)\.", "model."), (r"^language\.", ""),
    (r"^ears\.tokens\.", f"{EARS}preprocessors.audio."), (r"^ears\.blocks\.", f"{EARS}trunks.audio.blocks."),
    (r"^ears\.norm\.", f"{EARS}heads.audio.0."), (r"^ears\.head\.", f"{EARS}heads.audio.2."),
    (r"^ears\.log", f"{EARS}postprocessors.audio.1.log"),
)  # fmt: skip
SHORT = Limits(new_tokens=6)


def layout(root: Path) -> Path:
    """Two .bin shards, the tower in a folder of its own, and senses of ImageBind's that are left unread."""
    state = dwarfs.build(FAMILY).state_dict()
    named = published.named(state, NAMES) | {f"{EARS}trunks.vision.blocks.0.norm_1.weight": torch.ones(3)}
    config = {key: value for key, value in FAMILY.dwarf.items() if key != "vision_config"}
    config |= {"model_type": "LEGO", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    tower = published.named(state, ((r"^vision\.", "vision_model."),))
    published.write(root / "clip-vit-large-patch14-336", tower, {"vision_config": FAMILY.dwarf["vision_config"]})
    return published.write(root / "GroundingGPT", named, config, "bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return layout(tmp_path_factory.mktemp("grounding"))


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    assert published.answer(folder, FAMILY, picture, precision).done


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_clips_are_answered_about_in_few_bits(folder, video, sound, precision):
    desk = Desk(LocalEngine.open(folder, FAMILY, precision, "cpu"))
    assert asked(desk, video)[-1].done and asked(desk, sound)[-1].done
    seen = desk._prepare(Ask((video, sound), (Turn("user", "What?"),))).sight.content.images
    assert all(vectors.isfinite().all() and vectors.std() > 0 for vectors in seen)


def test_videos_and_sounds_become_vectors_of_the_language_model(folder):
    model = LocalEngine.open(folder, FAMILY, "fp32", "cpu").model
    with torch.inference_mode():
        assert model.video(torch.randn(5, 3, 28, 28)).shape == (6, 64)
        assert model.sound(torch.randn(3, 16)).shape == (4, 64)
        with pytest.raises(ValueError, match="pick at most"):
            model.video(torch.randn(9, 3, 28, 28))


def test_frames_are_picked_evenly():
    assert evenly(3, 64) == [0, 1, 2] and evenly(0, 64) == []
    assert evenly(128, 64)[:3] == [0, 2, 4] and len(evenly(1000, 64)) == 64 and max(evenly(1000, 64)) < 1000


@pytest.fixture
def video(tmp_path) -> Clip:
    """Three seconds of 40 x 30 pixels."""
    return open_clip(clips.video(tmp_path / "a.avi", size=(40, 30)))


@pytest.fixture
def sound(tmp_path) -> Clip:
    """Five seconds of a tone."""
    return open_clip(clips.sound(tmp_path / "a.wav", clips.tone(5, 8000), 8000))


@pytest.fixture(scope="module")
def desk(folder):
    return Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))


def asked(desk: Desk, *shown, text: str = "What happens?", **more) -> list[Answer]:
    return list(desk.answer(Ask(shown, (Turn("user", text),), limits=SHORT, **more)))


@pytest.mark.parametrize("kind", ["video", "sound"])
def test_a_clip_is_answered_about_growing_and_seen_once(kind, desk, request):
    clip = request.getfixturevalue(kind)
    said = asked(desk, clip)
    assert said[-1].done and len(said) > 1 and not said[0].done
    assert [dict(answer.notes)["encoder_runs"] for answer in (said[-1], asked(desk, clip, text="When?")[-1])] == [1, 0]


@pytest.mark.parametrize("kind", ["video", "sound"])
def test_what_is_in_a_clip_reaches_the_language_model(kind, desk, request):
    clip = request.getfixturevalue(kind)
    if kind == "video":
        other = replace(clip, frames=clip.frames[::-1])
        wanted = torch.from_numpy(FAMILY.clip(FAMILY.dwarf, clip))
        vectors = desk.engine.model.video(wanted)
    else:
        other = replace(clip, samples=clip.samples[::-1].copy() * 0.1)
        wanted = imagebind.pictures(torch.from_numpy(clip.samples), clip.rate)
        vectors = desk.engine.model.sound(desk.engine.model.ears(wanted))
    seen = [desk._prepare(Ask((one,), (Turn("user", "What?"),))).sight.content.images[0] for one in (clip, other)]
    assert torch.equal(seen[0], vectors) and not torch.equal(seen[0], seen[1])


def test_marks_stand_around_clips_and_sounds_come_first(desk, video, sound, picture):
    prompt = desk._prepare(Ask((picture, video, sound), (Turn("user", "Where?"),))).prompt
    assert prompt[1:6] == (
        Slot("sound", 2), "<so_end>\n<vi_start>", Slot("video", 1), "<vi_end>\n<im_start>", Slot("image", 0),
    )  # fmt: skip
    assert prompt[0].endswith("###Human: <so_start>") and prompt[6].startswith("<im_end>\nWhere?###")
    tokens = desk.engine.tokens
    assert [tokens.ids(mark) for mark in ("<im_patch>", "<so_end>")] == [[259], [267]]


def test_a_picture_keeps_its_vectors_and_its_map_beside_clips(desk, video, sound, picture):
    alone = desk._prepare(Ask((picture,), (Turn("user", "Where?"),))).sight.content
    among = desk._prepare(Ask((sound, picture, video), (Turn("user", "Where?"),))).sight.content
    assert torch.allclose(among.images[1], alone.images[0], atol=1e-5)
    assert [len(vectors) for vectors in among.images] == [4, 16, 6]
    trace, placement, shown = desk.trace(Ask((sound, picture), (Turn("user", "Where?"),)), None, "feature norm")
    assert shown is picture and placement.size == picture.size and trace.map.max() > 0


def scripted(desk: Desk, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The model says this, a character at a time."""

    def speak(prompt, sight, limits):
        for end in range(1, len(text) + 1):
            yield Said(text[:end], tuple((k, k + 1, 0.9) for k in range(end)), done=end == len(text))

    monkeypatch.setattr(desk.engine, "speak", speak)


@pytest.mark.parametrize(
    ("kind", "said", "seconds"),
    [
        ("video", "The door opens at {0.25, 0.50}.", (0.75, 1.5)),
        ("video", "The door opens at {1.5, 2.0}.", (1.5, 2.0)),
        ("sound", "A bell rings {0.40, 0.90}.", (2.0, 4.5)),
        ("sound", "A bell rings {4, 9}.", (4.0, 5.0)),
    ],
)
def test_a_scripted_stretch_of_time_is_read_while_it_grows_and_lands(kind, said, seconds, desk, request, monkeypatch):
    clip = request.getfixturevalue(kind)
    scripted(desk, monkeypatch, said)
    answers = asked(desk, clip)
    assert all("{" not in answer.text for answer in answers)
    moments = [answer.moments for answer in answers]
    (found,) = moments[-1]
    assert moments[0] == () and moments[-2] in ((), (found,))
    assert found.within(clip.seconds) == pytest.approx(seconds, abs=0.01 * clip.seconds)
    assert answers[-1].text[found.start : found.end] == ("The door opens" if kind == "video" else "A bell rings")


def test_where_a_sound_comes_from_is_a_box_on_the_picture(desk, sound, picture, monkeypatch):
    scripted(desk, monkeypatch, "a dog [0.250, 0.375, 0.500, 0.625].")
    for shown in ((picture, sound), (sound, picture)):
        box = asked(desk, *shown)[-1].spans[0].places[0]
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0.25, 1 / 3, 0.5, 2 / 3), abs=0.002)


def test_what_cannot_be_done_with_a_clip_is_one_sentence(desk, video, sound, dwarf_folder):
    with pytest.raises(ValueError, match="lies over a picture, not over a video"):
        desk.heat(Ask((video,), (Turn("user", "What?"),)), None, "feature norm")
    drawn = Turn("user", "What is @1?", (Region("box", Box(0.1, 0.1, 0.5, 0.5)),))
    with pytest.raises(ValueError, match="Region 1 is on no picture, but on a clip: draw it on a picture."):
        list(desk.answer(Ask((video,), (drawn,))))
    other = Desk(LocalEngine.open(dwarf_folder("llava"), family.load("llava"), "fp32", "cpu"))
    for clip in (video, sound):
        with pytest.raises(ValueError, match=f"LLaVA.* takes no {clip.kind}s: choose another model, or ask about a p"):
            asked(other, clip)


def test_numbers_up_to_one_are_fractions_and_others_seconds():
    assert Moment(0, 0, 0.25, 1).within(8) == (2, 8) and Moment(0, 0, 0.5, 3).within(8) == (0.5, 3)
    assert Moment(0, 0, 6, 12).within(8) == (6, 8)


def test_boxes_of_an_answer_come_back_to_a_wide_picture():
    placement = FAMILY.frame(FAMILY.dwarf).place((900, 300))
    grounded = FAMILY.dialect.read("a kite [0.100, 0.400, 0.300, 0.600]", Scene((), placement.fitted))
    box = home(grounded, placement).spans[0].places[0]
    assert box.pixels((900, 300)) == pytest.approx((90, 60, 270, 240), abs=0.5)


def test_a_span_of_time_is_read_as_one():
    (moment,) = FAMILY.dialect.read("The door opens at {0.25, 0.50}.", Scene()).moments
    assert (moment.kind, moment.first, moment.last) == ("span", 0.25, 0.5)


def test_the_published_sizes_are_those_of_the_card():
    config = {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32,
        "vocab_size": 32009, "mm_vision_hidden_size": 1024,
    }  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    assert shapes["watching.query_tokens"] == (1, 32, 768) and shapes["watching.llama_proj.weight"] == (4096, 768)
    assert shapes["watching.video_frame_position_embedding.weight"] == (64, 768)
    assert shapes["hearing.audio_position_embedding.weight"] == (8, 1024)
    assert shapes["watching.Qformer.bert.encoder.layer.10.crossattention.self.key.weight"] == (768, 1408)
    assert "watching.Qformer.bert.encoder.layer.11.crossattention.self.key.weight" not in shapes
    assert shapes["bridge.2.weight"] == (4096, 4096)
    assert shapes["ears.tokens.pos_embedding_helper.pos_embed"] == (1, 229, 768)
    assert shapes["ears.blocks.11.attn.bias_k"] == (1, 1, 768) and shapes["ears.head.weight"] == (1024, 768)
