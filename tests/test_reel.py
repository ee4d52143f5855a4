"""Videos and sounds on the page: a clip beside the pictures, a talk about it, its strip of time in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_clip as clips

from mmchat import family
from mmchat.desk import Desk, Limits
from mmchat.dialect import DIALECTS
from mmchat.engines.local import LocalEngine
from mmchat.engines.replay import FAMILY, Recorded, ReplayEngine

pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements.txt")
from mmchat.ui import api, files, panels, reel, steps, words  # noqa: E402
from mmchat.ui.canvas import surface_of  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SAID = "The door opens at {0.25, 0.50} and <b>a bell</b> rings at {0.70, 0.90}."


class Watching(ReplayEngine):
    """Recorded answers of a model that takes clips; notes what it was shown."""

    family = replace(
        FAMILY, takes=frozenset({"box", "video", "sound"}), dialect=DIALECTS["groundinggpt"],
        clip=lambda config, clip: np.full((2, 3), clip.seconds, np.float32),
        template=replace(FAMILY.template, video="{video}{text}", sound="{sound}{text}"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__((Recorded("picture", "A kite [0.100, 0.400, 0.300, 0.600]."), Recorded(".", SAID)))
        self.shown: list[tuple[str, ...]] = []

    def see(self, pictures, regions):
        self.shown.append(tuple(getattr(one, "kind", "image") for one in pictures))
        return super().see(tuple(getattr(one, "values", one) for one in pictures), regions)


@pytest.fixture
def desk() -> Desk:
    return Desk(Watching())


@pytest.fixture
def video(tmp_path) -> reel.Reel:
    return reel.reel_of(clips.video(tmp_path / "door.webm", code="VP80"))


@pytest.fixture
def surface(tmp_path, picture):
    picture.save(tmp_path / "street.png")
    return surface_of(tmp_path / "street.png", str(tmp_path / "cache"))


def answered(desk: Desk, surface: Any, talk: words.Talk, text: str, clip: reel.Reel | None) -> words.Talk:
    begun = steps.begin(desk, surface, talk, text, None, clip)
    return list(steps.speak(desk, surface, begun, reel=clip))[-1]


def test_a_clip_is_asked_about_without_a_picture(desk, video):
    talk = answered(desk, None, (), "When?", video)
    assert desk.engine.shown == [("video",)] and (talk[-1].clip, talk[-1].seconds) == (video.key, 3.0)
    html = words.talk_html(talk)
    assert html.count('class="mm-moment"') == 2 and f'data-clip="{video.key}"' in html
    assert 'data-start="0.750" data-end="1.500"' in html and 'data-start="2.100" data-end="2.700"' in html
    assert "0.75–1.50 s" in html and "2 stretches of time" in html and "<b>" not in html


def test_a_clip_comes_behind_the_picture_and_the_talk_goes_on(desk, surface, video):
    talk = answered(desk, surface, (), "this picture?", None)
    talk = answered(desk, surface, talk, "When?", video)
    talk = answered(desk, surface, talk, "this picture?", video)
    assert desk.engine.shown == [("image",), ("image", "video"), ("image", "video")]
    assert [exchange.question.images for exchange in talk] == [(0,), (1,), ()]
    assert [exchange.clip for exchange in talk] == ["", video.key, video.key]
    assert talk[-1].picture == talk[0].picture and len(talk[-1].answer.spans) == 1


def test_another_clip_begins_a_new_talk(desk, video, tmp_path):
    talk = answered(desk, None, (), "When?", video)
    other = reel.reel_of(clips.sound(tmp_path / "bell.wav", clips.tone(2, 8000), 8000))
    assert len(answered(desk, None, talk, "And here?", other)) == 1 and desk.engine.shown[-1] == ("sound",)


def test_a_clip_that_went_while_its_answer_was_awaited_is_told(desk, video):
    begun = steps.begin(desk, None, (), "When?", None, video)
    with pytest.raises(ValueError, match="The clip of this talk is no longer here"):
        list(steps.speak(desk, None, begun))


def test_a_model_without_clips_is_not_shown_one(surface, video):
    desk = Desk(ReplayEngine())
    talk = steps.begin(desk, surface, (), "What is here?", None, video)
    assert talk[-1].clip == "" and len(talk[-1].pictures) == 1
    with pytest.raises(ValueError, match="There is no picture yet"):
        steps.begin(desk, None, (), "What is here?", None, video)


def test_what_a_browser_says_of_a_clip_is_not_believed(desk, video):
    lied = video.model_copy(update={"seconds": 9999.0, "kind": "sound", "key": "f" * 64})
    talk = steps.begin(desk, None, (), "When?", None, lied)
    assert (talk[-1].seconds, talk[-1].clip) == (3.0, video.key)


def test_a_model_that_takes_clips_is_asked_and_traced_by_this_road(dwarf_folder, surface, video):
    local = LocalEngine.open(dwarf_folder("groundinggpt"), family.load("groundinggpt"), "fp32", "cpu")
    desk, limits = Desk(local), Limits(new_tokens=4)
    begun = steps.begin(desk, surface, (), "What happens?", None, video)
    grown = list(steps.speak(desk, surface, begun, limits, video))
    assert grown[-1][-1].answer.done and grown[-1][-1].clip == video.key
    assert steps.heat(desk, surface, grown[-1], "feature norm", "", video).size == tuple(surface.size)
    stopped = steps.speak(desk, surface, steps.begin(desk, surface, grown[-1], "And then?", None, video), limits, video)
    assert next(stopped)[-1].answer is not None
    stopped.close()
    (alone,) = list(steps.speak(desk, None, steps.begin(desk, None, (), "What?", None, video), limits, video))[-1]
    assert alone.answer.done


def test_an_answer_about_a_clip_is_saved_and_told_in_seconds(desk, surface, video, tmp_path):
    talk = answered(desk, None, (), "When?", video)
    path = files.save(None, talk, "Answer (JSON)", ("small", "fp32"), str(tmp_path))
    saved = json.loads(Path(path).read_text())
    assert saved["seconds"] == 3.0 and saved["spans"][0]["places"][0]["seconds"] == [0.75, 1.5]
    with pytest.raises(ValueError, match="There is no picture yet"):
        files.save(None, talk, "COCO (JSON)", ("small", "fp32"), str(tmp_path))
    assert "0.75–1.50 s" in panels.details_html(talk[-1].answer, (1, 1), talk[-1].seconds)
    both = answered(desk, surface, (), "When?", video)
    told = json.loads(Path(files.save(surface, both, "Answer (JSON)", ("", ""), str(tmp_path))).read_text())
    assert told["spans"][1]["places"][0]["seconds"] == pytest.approx([2.1, 2.7])


def test_the_endpoint_takes_a_clip(desk, video):
    told = api.answered(desk, "small", video.file.path, "When?", None, None, None)
    assert told["seconds"] == 3.0 and [span["phrase"] for span in told["spans"]][0] == "The door opens"
    with pytest.raises(ValueError, match="takes no videos"):
        api.answered(Desk(ReplayEngine()), "replay", video.file.path, "When?", None, None, None)


def test_a_stretch_without_a_clip_stays_words():
    answer = DIALECTS["groundinggpt"].read("The door opens at {0.25, 0.50}.")
    said = words.answer_html(words.Answer(answer.text, "", moments=answer.moments), 0)
    assert "mm-moment" not in said and "0.25 to 0.5" in said


# In a browser.


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A visitor's page on a running program, wide enough for two columns."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    from mmchat.ui.page import build, launch_options

    desk = Desk(Watching())
    rows = [{"name": "watching"}, {"name": "plain"}]
    engines = {"watching": desk.engine, "plain": ReplayEngine()}
    built = build(
        desk, model="watching", models=rows, open_model=lambda name, precision, told: desk.open(engines[name])
    )
    options = {**launch_options(), "server_name": "127.0.0.1", "quiet": True, "prevent_thread_lock": True}
    _, address, _ = built.launch(**options)
    with sync_api.sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--mute-audio"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.goto(address)
        opened.wait_for_selector(".mm-empty", timeout=30_000)
        yield opened
        browser.close()
    built.close()


def given(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#mm-clip").click()
    chooser.value.set_files(str(path))


def brought(page: Any, path: Path) -> None:
    """The clip is there and its length is known to the player."""
    given(page, path)
    page.wait_for_function(
        "(name) => (document.querySelector('.mm-reel')?.innerText || '').includes(name)", arg=path.name
    )
    page.wait_for_function("() => document.querySelector('.mm-player').duration > 0")


def asked(page: Any, text: str) -> None:
    before = page.locator(".mm-model").count()
    page.fill("#mm-question textarea", text)
    page.press("#mm-question textarea", "Enter")
    page.wait_for_function(
        "(n) => document.querySelectorAll('.mm-model[data-state=done]').length > n || "
        "(document.querySelectorAll('.mm-model').length === 1 && document.querySelector('.mm-model[data-state=done]'))",
        arg=before,
    )


def at(page: Any, seconds: float) -> None:
    """The player comes to stand there."""
    page.wait_for_function(
        "(at) => Math.abs(document.querySelector('.mm-player').currentTime - at) < 0.06", arg=seconds
    )


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["video", "sound"])
def test_stretches_of_an_answer_lie_on_the_strip_and_seek(page, tmp_path, kind):
    if kind == "video":
        path = clips.video(tmp_path / "door.webm", code="VP80", size=(320, 180))
    else:
        path = clips.sound(tmp_path / "bell.wav", clips.tone(3, 8000), 8000)
    brought(page, path)
    assert page.evaluate("() => document.querySelector('.mm-player').paused")
    assert page.locator(".mm-stretch").count() == 0
    asked(page, "When does it happen?")
    page.wait_for_function("() => document.querySelectorAll('.mm-stretch').length === 2")
    strip = page.locator(".mm-strip").bounding_box()
    for bar, (start, end) in zip(page.locator(".mm-stretch").all(), ((0.25, 0.5), (0.7, 0.9)), strict=True):
        box = bar.bounding_box()
        assert (box["x"] - strip["x"]) / strip["width"] == pytest.approx(start, abs=0.01)
        assert box["width"] / strip["width"] == pytest.approx(end - start, abs=0.01)
    phrases, bars = page.locator(".mm-moment"), page.locator(".mm-stretch")
    for number in range(2):
        assert phrases.nth(number).get_attribute("data-colour") in bars.nth(number).get_attribute("style")
    bars.nth(0).click()
    at(page, 0.75)
    phrases.nth(1).click()
    at(page, 2.1)
    page.mouse.click(strip["x"] + 0.5 * strip["width"], strip["y"] + 2)
    at(page, 1.5)
    assert page.evaluate("() => document.querySelector('.mm-player').paused")
    page.get_by_role("button", name="Remove", exact=True).click()
    page.wait_for_function("() => !document.querySelector('.mm-player')")


@pytest.mark.browser
def test_a_picture_is_asked_about_without_a_clip(page, tmp_path, picture):
    picture.save(tmp_path / "street.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(str(tmp_path / "street.png"))
    page.wait_for_function("() => document.querySelector('.mm-picture')?.naturalWidth > 0")
    asked(page, "What is in this picture?")
    page.wait_for_selector(".mm-place")
    assert page.locator(".mm-card").count() == 0


@pytest.mark.browser
def test_what_is_no_clip_is_told_on_the_page(page, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"words, not a film")
    given(page, tmp_path / "broken.mp4")
    page.wait_for_selector(".mm-card")
    assert "is no video or sound that can be read" in page.locator(".mm-card").inner_text()


def switched(page: Any, name: str) -> None:
    page.get_by_role("tab", name="Model").click()
    page.locator("#mm-model-name input").click()
    page.get_by_role("option", name=name).click()
    page.locator("#mm-model-open").click()
    page.wait_for_function("(name) => document.querySelector('.mm-pill').innerText.includes(name)", arg=name)


@pytest.mark.browser
def test_the_tool_for_clips_comes_and_goes_with_the_model_and_the_clip_stays(page, tmp_path):
    brought(page, clips.video(tmp_path / "again.webm", code="VP80"))
    switched(page, "plain")
    page.wait_for_selector("#mm-clip", state="hidden")
    switched(page, "watching")
    page.wait_for_selector("#mm-clip")
    page.wait_for_function("() => document.querySelector('.mm-player')?.duration > 0")
    asked(page, "When does it happen?")
    page.wait_for_function("() => document.querySelectorAll('.mm-stretch').length === 2")
    page.locator(".mm-stretch").nth(1).click()
    at(page, 2.1)
