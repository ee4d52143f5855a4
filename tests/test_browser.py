"""The page in a real browser (marker `browser`): pictures, drawing, streaming, Stop, lit phrases and boxes, heat."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmchat.desk import Answer, Ask, Desk
from mmchat.engines.replay import FAMILY, Recorded, ReplayEngine
from mmchat.geometry import KINDS, Box, Region

pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]

QUIET = ", and nothing else moves" + " while the morning is still young" * 6 + "."
ANSWERS = (
    Recorded("long", "On and on. " * 300 + "<p>a bus</p><c0>.", candidates=(Box(0.1, 0.3, 0.5, 0.7),)),
    Recorded("script", "<script>document.title='broken'</script> <p>the <b>bus</b></p><c0>.",
             candidates=(Box(0.1, 0.3, 0.5, 0.7),)),
    Recorded("what is", "<p>This</p><u0> is a wheel.", candidates=(Box(0.1, 0.3, 0.5, 0.7),)),
    Recorded("numbers", "It is <p>a bus</p>[100,300,550,800].", candidates=(Box(0.1, 0.3, 0.5, 0.7),)),
    Recorded(".", f"In the street I see <p>a red bus</p><c0> and also <p>two people</p><c1><c2> who wait there{QUIET}",
             candidates=(Box(0.1, 0.3, 0.5, 0.7), Box(0.6, 0.4, 0.72, 0.82), Box(0.75, 0.42, 0.86, 0.8))),
)  # fmt: skip
WIDTH, HEIGHT = 900, 600
MODELS = {
    "boxes": {"box", "point"},
    "wordy": set(),
    "finder": {"several pictures"},
    "all": {*KINDS, "several pictures"},
}
# Notes each state of the answer that the page shows: length of its text, phrases in it, running or done.
WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const said = document.querySelector('.mm-model');
        if (!said) return;
        window.seen.push([said.innerText.length, said.querySelectorAll('.mm-phrase').length, said.dataset.state]);
    }).observe(document.querySelector('#mm-chat'),
        { childList: true, subtree: true, characterData: true, attributes: true });
}"""


class Watched(Desk):
    """A desk that keeps the questions it was asked."""

    asked: list[Ask] = []

    def answer(self, ask: Ask) -> Iterator[Answer]:
        self.asked = [*self.asked, ask]
        return super().answer(ask)


def taking(takes: set[str]) -> ReplayEngine:
    """An engine whose family takes these kinds alone."""
    engine = ReplayEngine(ANSWERS, delay=0.002)
    finds = "[RET]" if "several pictures" in takes and len(takes) == 1 else ""
    engine.family = replace(FAMILY, takes=frozenset(takes), title="Taker", retrieves=finds)
    return engine


class Served:
    """A running page, its engine and its address."""

    def __init__(self, examples: Path, engine: ReplayEngine | None = None) -> None:
        from mmchat.ui.page import build, launch_options

        self.engine = engine or ReplayEngine(ANSWERS, delay=0.02)
        self.desk = Watched(self.engine)
        self.opened: list[tuple[str, str]] = []
        names = ("second", *MODELS)
        rows = [
            {"name": "replay"},
            {"name": "large", "missing": ["weights/large"]},
            *({"name": name} for name in names),
        ]
        self.page = build(self.desk, models=rows, open_model=self.open_model, examples=examples)
        options = {**launch_options(), "server_name": "127.0.0.1", "quiet": True, "prevent_thread_lock": True}
        _, self.address, _ = self.page.launch(**options)

    def open_model(self, name: str, precision: str, progress: Any) -> None:
        self.opened.append((name, precision))
        if name == "large":
            raise ValueError("The weights of large are missing: put them under weights/large.")
        if name in MODELS:
            return self.desk.open(taking(MODELS[name]))
        for done in range(1, 5):
            time.sleep(0.25)
            progress(done, 4)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    across = np.linspace(30, 220, WIDTH)[None, :, None] * np.ones((HEIGHT, 1, 3))
    across[..., 1] = np.linspace(40, 200, HEIGHT)[:, None]
    path = tmp_path_factory.mktemp("pictures") / "street.jpg"
    Image.fromarray(across.astype(np.uint8)).save(path, quality=92)
    return path


@pytest.fixture(scope="module")
def served(photo: Path) -> Iterator[Served]:
    running = Served(photo.parent)
    yield running
    running.page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet + camera)
        yield opened
        opened.close()


class Visit:
    """One visitor: a page, and what a visitor does on it."""

    def __init__(self, browser: Any, served: Served, **options: Any) -> None:
        self.served = served
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 820}, **options})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "request", lambda request: self.hosts.add(request.url.split("/")[2] if "//" in request.url else "")
        )
        self.page.goto(served.address)
        self.page.wait_for_selector(".mm-empty", timeout=30_000)

    def load(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Choose a file").click()
        chooser.value.set_files(str(path))

    def picture(self) -> dict[str, float]:
        self.page.wait_for_selector(".mm-stage .mm-picture")
        self.page.wait_for_function("() => document.querySelector('.mm-picture').naturalWidth > 0")
        return self.page.locator(".mm-stage").bounding_box()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        at = self.picture()
        self.page.mouse.move(at["x"] + x0 * at["width"], at["y"] + y0 * at["height"])
        self.page.mouse.down()
        self.page.mouse.move(at["x"] + x1 * at["width"], at["y"] + y1 * at["height"], steps=4)
        self.page.mouse.up()

    def regions(self) -> list[list[float]]:
        """What is drawn, in pixels of the picture."""
        return [self.on_picture(found) for found in self.page.locator(".mm-region").all()]

    def on_picture(self, found: Any) -> list[float]:
        at, box = self.picture(), found.bounding_box()
        x, y = WIDTH / at["width"], HEIGHT / at["height"]
        left, top = (box["x"] - at["x"]) * x, (box["y"] - at["y"]) * y
        return [left, top, left + box["width"] * x, top + box["height"] * y]

    def ask(self, text: str) -> None:
        self.page.fill("#mm-question textarea", text)
        self.page.press("#mm-question textarea", "Enter")

    def answered(self, state: str = "done") -> str:
        self.page.wait_for_selector(f'.mm-model[data-state="{state}"]', timeout=20_000)
        return self.page.locator(".mm-model .mm-body").last.inner_text()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A place of the picture on the screen."""
        shown = self.picture()
        return shown["x"] + x * shown["width"], shown["y"] + y * shown["height"]

    def tool(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def stroke(self, *places: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=5)
        self.page.mouse.up()

    def clicks(self, *places: tuple[float, float]) -> None:
        for place in places:
            self.page.mouse.click(*self.at(*place))

    def add_picture(self, path: Path) -> None:
        count = self.page.locator(".mm-leaf").count()
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Add a picture").click()
        chooser.value.set_files(str(path))
        self.page.wait_for_function(
            f"() => document.querySelectorAll('.mm-leaf').length === {max(2, count + 1)}"
            " && !document.querySelector('.mm-busy')"
        )

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name="Model").click()
        self.page.locator("#mm-model-name input").click()
        self.page.get_by_role("option", name=name).click()
        self.page.locator("#mm-model-open").click()
        self.page.wait_for_function(f"document.querySelector('#mm-head').innerText.includes('{name}')")

    def tools(self) -> list[str]:
        return [one.get_attribute("data-tool") for one in self.page.locator("[data-tool]").all()]

    def asked(self, text: str) -> Ask:
        """The question as it reached the desk."""
        count = self.page.locator(".mm-model").count() + 1
        self.ask(text)
        self.page.wait_for_function(f"() => document.querySelectorAll('.mm-model[data-state=done]').length === {count}")
        return self.served.desk.asked[-1]


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    visitor = Visit(browser, served)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []


def test_a_photograph_a_box_and_a_question_give_streamed_words_lit_phrases_places_and_heat(
    visit: Visit, photo: Path
) -> None:
    from gradio_client import Client, handle_file

    visit.load(photo)
    visit.drag(0.2, 0.25, 0.5, 0.75)
    assert visit.regions()[0] == pytest.approx([180, 150, 450, 450], abs=2)
    assert "@1" in visit.page.locator(".mm-regions").inner_text()

    visit.page.evaluate(WATCH)
    visit.ask("What do you see near @1?")
    whole = visit.answered()
    seen = visit.page.evaluate("window.seen")
    assert len({length for length, _, state in seen if state == "running"}) > 3
    assert any(phrases and state == "running" for _, phrases, state in seen)
    assert whole == f"In the street I see a red bus and also two people who wait there{QUIET}"

    told = Client(visit.served.address, verbose=False).predict(
        image=handle_file(str(photo)), text="What do you see near @1?", regions=[[180, 150, 450, 450]], api_name="/ask"
    )
    for span, phrase in enumerate(told["spans"]):
        shown = visit.page.locator(f'.mm-place[data-span="{span}"]').all()
        assert len(shown) == len(phrase["places"])
        for place, found in zip(phrase["places"], shown, strict=True):
            assert visit.on_picture(found) == pytest.approx(place["box"], abs=2)

    visit.page.locator(".mm-phrase").first.hover()
    visit.page.wait_for_selector('.mm-place.mm-lit[data-span="0"]')
    visit.page.get_by_role("button", name="Show", exact=True).click()
    visit.page.wait_for_selector(".mm-heat:not([hidden])", timeout=15_000)
    visit.page.wait_for_function("() => document.querySelector('.mm-heat').naturalWidth > 0")
    assert "contrast" in visit.page.locator("#mm-heat").inner_text()
    heat = visit.page.locator(".mm-heat").bounding_box()
    assert heat == pytest.approx(visit.picture(), abs=1)


def test_stop_ends_a_running_answer_and_the_talk_goes_on(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("a long story")
    visit.page.wait_for_function("() => (document.querySelector('.mm-body') || {}).innerText?.length > 40")
    visit.page.locator("#mm-stop").click()
    assert 30 < len(visit.answered("stopped")) < 3000
    given = visit.served.engine.tokens
    visit.page.wait_for_timeout(300)
    assert visit.served.engine.tokens == given
    visit.ask("What do you see?")
    assert "red bus" in visit.answered()


def test_a_second_question_while_one_is_answered_is_refused_and_nothing_is_asked_twice(
    visit: Visit, photo: Path
) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("a long story")
    visit.page.wait_for_selector('.mm-model[data-state="running"]')
    visit.ask("What do you see?")
    visit.page.wait_for_selector("#mm-right .mm-card")
    assert "still being written" in visit.page.locator("#mm-right .mm-card").inner_text()
    visit.page.locator("#mm-stop").click()
    visit.answered("stopped")
    visit.page.wait_for_timeout(700)
    assert visit.page.locator(".mm-model").count() == 1
    assert visit.page.locator('.mm-model[data-state="running"]').count() == 0


def test_another_picture_ends_the_running_answer(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("a long story")
    visit.page.wait_for_function("() => (document.querySelector('.mm-body') || {}).innerText?.length > 20")
    visit.page.get_by_role("button", name="Remove the picture").click()
    visit.page.wait_for_selector(".mm-welcome")
    visit.page.wait_for_timeout(700)
    assert visit.page.locator(".mm-welcome").count() == 1
    assert visit.page.locator(".mm-model").count() == 0


def test_a_box_is_exact_after_zooming_resizing_and_at_twice_the_pixels(
    browser: Any, served: Served, photo: Path
) -> None:
    visit = Visit(browser, served, device_scale_factor=2)
    visit.load(photo)
    visit.picture()
    visit.page.get_by_role("button", name="Larger").click()
    visit.drag(0.1, 0.1, 0.4, 0.5)
    assert visit.regions()[0] == pytest.approx([90, 60, 360, 300], abs=1.5)
    visit.page.set_viewport_size({"width": 700, "height": 900})
    visit.page.wait_for_timeout(200)
    assert visit.regions()[0] == pytest.approx([90, 60, 360, 300], abs=1.5)
    visit.context.close()


def test_regions_are_selected_moved_resized_deleted_and_brought_back(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.drag(0.2, 0.2, 0.4, 0.4)
    visit.drag(0.4, 0.4, 0.6, 0.5)  # by the corner: larger
    assert visit.regions()[0] == pytest.approx([180, 120, 540, 300], abs=2)
    visit.page.get_by_role("button", name="Select and move").click()
    visit.drag(0.3, 0.3, 0.5, 0.6)
    assert visit.regions()[0] == pytest.approx([360, 300, 720, 480], abs=2)
    visit.page.get_by_role("button", name="Place a point").click()
    at = visit.picture()
    visit.page.mouse.click(at["x"] + 0.1 * at["width"], at["y"] + 0.1 * at["height"])
    assert [text.split()[0] for text in visit.page.locator(".mm-chip").all_inner_texts()] == ["@1", "@2"]
    visit.page.keyboard.press("Delete")
    assert len(visit.regions()) == 1
    visit.page.keyboard.press("Control+z")
    assert len(visit.regions()) == 2
    visit.page.get_by_role("button", name="Delete region 1").click()
    assert visit.page.locator(".mm-region .mm-tag").all_inner_texts() == ["@2"]


def test_a_box_is_drawn_with_the_keyboard_alone(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.page.locator(".mm-stage").focus()
    for key in ["Enter", "Enter", *["ArrowRight"] * 20, *["ArrowDown"] * 10, "Enter"]:
        visit.page.keyboard.press(key)
    assert visit.regions()[0] == pytest.approx([450, 300, 630, 360], abs=2)
    visit.page.keyboard.press("ArrowLeft")
    assert visit.regions()[0] == pytest.approx([441, 300, 621, 360], abs=2)


def test_a_finger_draws_on_a_narrow_screen_that_does_not_scroll_sideways(
    browser: Any, served: Served, photo: Path
) -> None:
    visit = Visit(browser, served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visit.load(photo)
    at = visit.picture()
    touch = visit.context.new_cdp_session(visit.page)

    def finger(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": at["x"] + x * at["width"], "y": at["y"] + y * at["height"]} for x, y in places]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    finger("touchStart", (0.2, 0.2))
    for step in (0.3, 0.5, 0.7):
        finger("touchMove", (step, step))
    finger("touchEnd")
    visit.page.wait_for_selector(".mm-region")
    assert visit.regions()[0] == pytest.approx([180, 120, 630, 420], abs=4)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.errors == []
    visit.context.close()


def test_a_phrase_keeps_only_its_boxes_and_a_box_lights_its_phrase(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("What do you see?")
    visit.answered()
    visit.page.locator(".mm-phrase").nth(1).focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.locator(".mm-place.mm-dim").count() == 1
    assert visit.page.locator(".mm-phrase").nth(1).get_attribute("aria-pressed") == "true"
    visit.page.keyboard.press("Enter")
    assert visit.page.locator(".mm-place.mm-dim").count() == 0
    box = visit.page.locator('.mm-place[data-span="0"]').bounding_box()
    visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert visit.page.locator(".mm-phrase").first.get_attribute("aria-pressed") == "true"
    colours = visit.page.evaluate(
        """() => ['.mm-phrase', '.mm-place'].map(
            (name) => getComputedStyle(document.querySelector(name)).borderBottomColor)"""
    )
    assert colours[0] == colours[1]


def test_model_text_with_tags_is_shown_as_text(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("script")
    assert visit.answered() == "<script>document.title='broken'</script> the <b>bus</b>."
    assert visit.page.title() == "mmchat"


def test_a_file_that_is_no_picture_gives_a_card_and_the_page_goes_on(visit: Visit, photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:700])
    visit.load(broken)
    visit.page.wait_for_selector("#mm-left .mm-card")
    assert "damaged or cut off" in visit.page.locator("#mm-left .mm-card").inner_text()
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    visit.load(text)
    assert "not a picture" in visit.page.locator(".mm-complaint").inner_text()
    visit.load(photo)
    visit.picture()
    assert visit.page.locator("#mm-left .mm-card").count() == 0


def test_a_question_that_cannot_be_asked_gives_a_card_and_keeps_the_words(visit: Visit, photo: Path) -> None:
    visit.ask("What is there?")
    visit.page.wait_for_selector("#mm-right .mm-card")
    assert "no picture yet" in visit.page.locator("#mm-right .mm-card").inner_text()
    visit.load(photo)
    visit.picture()
    visit.ask("What is @7?")
    visit.page.wait_for_selector("#mm-right .mm-card")
    visit.page.wait_for_timeout(500)
    assert "no region @7" in visit.page.locator("#mm-right .mm-card").inner_text()
    assert visit.page.input_value("#mm-question textarea") == "What is @7?"


def test_an_example_a_pasted_picture_and_the_camera_bring_pictures(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Example: street").click()
    visit.picture()
    visit.page.get_by_role("button", name="Remove the picture").click()
    visit.page.wait_for_selector(".mm-empty")
    visit.page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement('canvas'), { width: 90, height: 60 });
            canvas.getContext('2d').fillRect(10, 10, 30, 30);
            const blob = await new Promise((done) => canvas.toBlob(done, 'image/png'));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([blob], 'pasted.png', { type: 'image/png' }));
            document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true }));
        }"""
    )
    visit.picture()
    assert "pasted.png" in visit.page.locator(".mm-picture").get_attribute("alt")
    visit.page.get_by_role("button", name="Camera").click()
    visit.page.wait_for_function("() => (document.querySelector('.mm-video') || {}).videoWidth > 0")
    visit.page.get_by_role("button", name="Take picture").click()
    visit.page.wait_for_selector('.mm-picture[alt*="camera.jpg"]')


def test_try_again_take_back_and_new_chat_change_the_talk(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.drag(0.2, 0.2, 0.4, 0.4)
    visit.ask("What do you see?")
    visit.answered()
    visit.page.locator("#mm-retry").click()
    visit.page.wait_for_selector('.mm-model[data-state="running"]')
    assert "red bus" in visit.answered()
    visit.page.locator("#mm-back").click()
    visit.page.wait_for_selector(".mm-welcome")
    assert visit.page.input_value("#mm-question textarea") == "What do you see?"
    assert visit.page.locator(".mm-place").count() == 0
    visit.page.locator("#mm-new").click()
    visit.page.wait_for_function("() => document.querySelectorAll('.mm-region').length === 0")


def test_a_lost_box_is_found_by_choosing_another_frame_from_the_strip(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("numbers please")
    visit.answered()
    assert visit.page.locator(".mm-place").count() == 0  # the recording's model writes 0 to 1
    visit.page.get_by_role("tab", name="Frames").click()
    visit.page.locator("#mm-frames-compare").click()
    visit.page.wait_for_selector("#mm-frames img", timeout=20_000)
    visit.page.locator("#mm-frames button:has-text('/999, squashed')").first.click()
    visit.page.wait_for_function("() => document.querySelector('#mm-frames-notice').innerText.includes('Read as')")
    visit.page.wait_for_selector(".mm-place")
    assert visit.on_picture(visit.page.locator(".mm-place").first) == pytest.approx([90, 180, 495, 480], abs=2)


def test_the_answer_is_saved_as_a_picture_and_as_json(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("What do you see?")
    visit.answered()
    visit.page.wait_for_selector("#mm-stop", state="detached")
    visit.page.get_by_role("tab", name="Save").click()
    with visit.page.expect_download(timeout=30_000) as download:
        visit.page.locator("#mm-save").click()
    assert download.value.suggested_filename == "street-mmchat.png"
    with Image.open(download.value.path()) as painted:
        assert painted.size == (WIDTH, HEIGHT)


def test_a_model_without_weights_gives_a_card_and_the_open_one_stays(visit: Visit) -> None:
    visit.page.get_by_role("tab", name="Model").click()
    visit.page.locator("#mm-model-name input").click()
    visit.page.get_by_role("option", name="large").click()
    visit.page.get_by_text("NF4", exact=False).first.click()
    visit.page.locator("#mm-model-open").click()
    visit.page.wait_for_selector("#mm-models .mm-card")
    assert "put them under weights/large" in visit.page.locator("#mm-models").inner_text()
    assert visit.served.opened[-1] == ("large", "nf4")
    assert visit.page.locator("#mm-model-name input").input_value() != "large"


def test_another_model_is_opened_with_progress_and_the_talk_goes_on(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("What do you see?")
    visit.answered()
    visit.page.get_by_role("tab", name="Model").click()
    visit.page.evaluate("""() => { window.shares = [];
        new MutationObserver(() => { const bar = document.querySelector('#mm-models progress');
            if (bar) window.shares.push(bar.value); })
            .observe(document.querySelector('#mm-models'), { childList: true, subtree: true, attributes: true }); }""")
    visit.page.locator("#mm-model-name input").click()
    visit.page.get_by_role("option", name="second").click()
    visit.page.locator("#mm-model-open").click()
    visit.page.wait_for_function("document.querySelector('#mm-head').innerText.includes('second')")
    shares = visit.page.evaluate("window.shares")
    assert shares == sorted(shares) and len({share for share in shares if 0 < share < 100}) >= 2
    visit.page.wait_for_function("location.search === '?model=second'")
    assert visit.page.locator(".mm-model").count() == 1
    visit.ask("And now?")
    visit.page.wait_for_function("document.querySelectorAll('.mm-model[data-state=done]').length === 2")


def test_the_address_chooses_the_model(visit: Visit) -> None:
    other = "second" if visit.served.opened[-1:] != [("second", "auto")] else "replay"
    visit.page.goto(f"{visit.served.address}?model={other}")
    # The head says a name only where it is not the family's own, as "replay" is.
    for _ in range(300):
        if visit.served.opened[-1:] == [(other, "auto")]:
            break
        visit.page.wait_for_timeout(100)
    assert visit.served.opened[-1] == (other, "auto")


def test_the_empty_talk_is_that_of_the_model_in_the_address(visit: Visit) -> None:
    welcome = visit.page.locator(".mm-welcome")
    for name, regions in (("wordy", 0), ("boxes", 1)):
        visit.page.goto(f"{visit.served.address}?model={name}")
        sync_api.expect(visit.page.locator("#mm-head")).to_contain_text(name)
        sync_api.expect(welcome).to_have_count(1)
        sync_api.expect(welcome.filter(has_text="call it @1.")).to_have_count(regions)


@pytest.mark.parametrize(
    ("name", "words"), [("large", "put them under weights/large"), ("nonsense", "There is no model")]
)
def test_an_address_with_a_model_that_cannot_be_opened_gives_a_card(visit: Visit, name: str, words: str) -> None:
    visit.page.goto(f"{visit.served.address}?model={name}")
    visit.page.wait_for_selector(".mm-notice .mm-card")
    assert words in visit.page.locator(".mm-notice .mm-card").inner_text()


def test_the_page_asks_no_other_host(visit: Visit, photo: Path) -> None:
    visit.load(photo)
    visit.picture()
    visit.ask("What do you see?")
    visit.answered()
    assert {host.split(":")[0] for host in visit.hosts if host} == {"127.0.0.1"}


# What the open model takes.


@pytest.fixture(scope="module")
def able(photo: Path) -> Iterator[Served]:
    running = Served(photo.parent, taking(MODELS["all"]))
    yield running
    running.page.close()


@pytest.fixture
def drawer(browser: Any, able: Served) -> Iterator[Visit]:
    able.desk.open(taking(MODELS["all"]))
    visitor = Visit(browser, able)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []


def pixels(region: Region) -> list[list[float]]:
    return [[point.x * WIDTH, point.y * HEIGHT] for point in region.points]


def test_a_line_reaches_the_desk_as_it_was_drawn(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    drawer.tool("Draw a line")
    drawer.stroke((0.2, 0.2), (0.4, 0.6), (0.6, 0.3))
    assert drawer.page.locator(".mm-line").count() == 1
    assert (
        "@1" in drawer.page.locator(".mm-regions").inner_text()
        and "line" in drawer.page.locator(".mm-regions").inner_text()
    )
    (region,) = drawer.asked("What is @1?").turns[-1].regions
    drawn = pixels(region)
    assert region.kind == "scribble" and len(drawn) > 5
    assert drawn[0] == pytest.approx([180, 120], abs=2) and drawn[-1] == pytest.approx([540, 180], abs=2)
    assert min(abs(x - 360) + abs(y - 360) for x, y in drawn) <= 3
    assert region.box.pixels((WIDTH, HEIGHT)) == pytest.approx((180, 120, 540, 360), abs=2)


def test_an_outline_closes_at_its_first_corner_by_a_double_click_or_by_enter(drawer: Visit, photo: Path) -> None:
    corners = [(0.2, 0.2), (0.4, 0.25), (0.3, 0.6)]
    drawer.load(photo)
    drawer.picture()
    drawer.tool("Draw an outline")
    drawer.clicks(*corners)
    assert drawer.page.locator(".mm-region").count() == 0 and drawer.page.locator(".mm-corner").count() == 3
    drawer.clicks(corners[0])
    drawer.clicks((0.6, 0.2), (0.8, 0.2))
    drawer.page.mouse.dblclick(*drawer.at(0.7, 0.5))
    drawer.clicks((0.6, 0.6), (0.95, 0.95), (0.8, 0.6), (0.7, 0.9))
    drawer.page.keyboard.press("Backspace")
    drawer.page.keyboard.press("Enter")
    assert drawer.page.locator(".mm-region").count() == 3 and drawer.page.locator(".mm-corner").count() == 0
    regions = drawer.asked("What is @1?").turns[-1].regions
    assert [(region.kind, len(region.points)) for region in regions] == [("polygon", 3)] * 3
    wanted = [[180, 120], [360, 150], [270, 360]]
    for found, place in zip(pixels(regions[0]), wanted, strict=True):
        assert found == pytest.approx(place, abs=2)


def test_an_outline_that_is_given_up_leaves_nothing(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    drawer.tool("Draw an outline")
    drawer.clicks((0.2, 0.2), (0.4, 0.25))
    drawer.page.keyboard.press("Control+z")
    assert drawer.page.locator(".mm-corner").count() == 1
    drawer.page.keyboard.press("Escape")
    drawer.clicks((0.5, 0.5))
    drawer.tool("Draw a box")
    assert drawer.page.locator(".mm-corner, .mm-region").count() == 0


def test_a_painted_shape_reaches_the_desk_cell_by_cell(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    drawer.tool("Paint a shape")
    drawer.page.locator(".mm-stage").focus()
    for _ in range(3):
        drawer.page.keyboard.press("]")
    assert drawer.page.input_value(".mm-brush input") == "8"
    drawer.stroke((0.2, 0.3), (0.5, 0.3))
    drawer.stroke((0.35, 0.3), (0.35, 0.6))  # goes on with the same shape
    assert drawer.page.locator(".mm-region.mm-mask").count() == 1
    (region,) = drawer.asked("What is @1?").turns[-1].regions
    assert region.kind == "mask" and region.mask is not None and region.mask.size == (256, 171)
    cells, cell, radius = region.mask.array(), WIDTH / 256, 0.04 * WIDTH
    box = (180 - radius, 180 - radius, 450 + radius, 360 + radius)
    assert region.box.pixels((WIDTH, HEIGHT)) == pytest.approx(box, abs=cell)
    for (x, y), inside in {(0.2, 0.3): 1, (0.35, 0.6): 1, (0.25, 0.3): 1, (0.25, 0.5): 0, (0.5, 0.5): 0}.items():
        assert cells[int(y * 171), int(x * 256)] == inside
    drawer.page.get_by_role("button", name="Wipe").click()
    drawer.stroke((0.35, 0.45), (0.35, 0.7))
    left = drawer.asked("What is @1 now?").turns[-1].regions[-1].mask
    assert left is not None
    for (x, y), inside in {(0.35, 0.37): 1, (0.35, 0.45): 0, (0.35, 0.6): 0, (0.2, 0.3): 1}.items():
        assert left.array()[int(y * 171), int(x * 256)] == inside
    drawer.page.get_by_role("button", name="Wipe").click()
    drawer.page.get_by_role("button", name="New shape").click()
    drawer.clicks((0.8, 0.8))
    assert drawer.page.locator(".mm-region.mm-mask").count() == 2
    drawer.page.locator(".mm-stage").focus()
    drawer.page.keyboard.press("Control+z")
    assert drawer.page.locator(".mm-region.mm-mask").count() == 1


def test_shapes_are_selected_moved_deleted_and_brought_back(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    drawer.tool("Draw a line")
    drawer.stroke((0.1, 0.1), (0.4, 0.4))
    drawer.tool("Draw an outline")
    drawer.clicks((0.6, 0.1), (0.9, 0.1), (0.75, 0.4), (0.6, 0.1))
    drawer.tool("Paint a shape")
    drawer.stroke((0.2, 0.8), (0.4, 0.8))
    drawer.tool("Select and move")
    drawer.stroke((0.25, 0.25), (0.35, 0.35))
    drawer.stroke((0.75, 0.2), (0.65, 0.3))
    drawer.stroke((0.3, 0.8), (0.5, 0.7))
    boxes = [[90 + 90, 60 + 60, 360 + 90, 240 + 60], [540 - 90, 60 + 60, 810 - 90, 240 + 60]]
    for found, wanted in zip(drawer.regions(), boxes, strict=False):
        assert found == pytest.approx(wanted, abs=2)
    brush = 0.025 * WIDTH
    assert drawer.regions()[2] == pytest.approx(
        [360 - brush, 420 - brush, 540 + brush, 420 + brush], abs=WIDTH / 256 + 1
    )
    drawer.clicks((0.05, 0.05))  # far from all
    assert drawer.page.locator(".mm-region.mm-on").count() == 0
    drawer.clicks((0.25, 0.28))  # in the box of the line, beside it
    assert (
        drawer.page.locator(".mm-region.mm-on").count() == 0 or drawer.page.locator(".mm-scribble.mm-on").count() == 1
    )
    drawer.clicks((0.5, 0.7))
    assert drawer.page.locator(".mm-region.mm-on .mm-tag").inner_text() == "@3"
    drawer.page.keyboard.press("Delete")
    assert len(drawer.regions()) == 2
    drawer.page.keyboard.press("Control+z")
    assert len(drawer.regions()) == 3


def test_shapes_are_drawn_with_the_keyboard_alone(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()

    def press(*keys: str) -> None:
        drawer.page.locator(".mm-stage").focus()
        for key in keys:
            drawer.page.keyboard.press(key)

    right, down = ["ArrowRight"] * 10, ["ArrowDown"] * 10
    drawer.tool("Draw a line")
    press("Enter", "Enter", *right, *down, "Enter", "Escape")
    drawer.tool("Draw an outline")
    press("Enter", "Enter", *right, "Enter", *down, "Enter", "Enter", "Escape")
    drawer.tool("Paint a shape")
    press("Enter", "Enter", *right, "Enter")
    regions = drawer.asked("What is @1?").turns[-1].regions
    assert [region.kind for region in regions] == ["scribble", "polygon", "mask"]
    middle = (450, 300, 540, 360)
    assert regions[0].box.pixels((WIDTH, HEIGHT)) == pytest.approx(middle, abs=2)
    assert pixels(regions[1]) == [pytest.approx(one, abs=2) for one in ([450, 300], [540, 300], [540, 360])]
    brush = 0.025 * WIDTH
    assert regions[2].box.pixels((WIDTH, HEIGHT)) == pytest.approx(
        (450 - brush, 300 - brush, 540 + brush, 300 + brush), abs=WIDTH / 256
    )


def test_the_tools_follow_the_open_model_and_a_drawn_shape_stays(drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    assert drawer.tools() == [*KINDS, "select"]
    drawer.tool("Draw an outline")
    drawer.clicks((0.2, 0.2), (0.6, 0.2), (0.4, 0.6), (0.2, 0.2))
    drawer.open("boxes")
    drawer.page.wait_for_function("document.querySelectorAll('[data-tool]').length === 3")
    assert drawer.tools() == ["box", "point", "select"] and drawer.page.locator(".mm-polygon").count() == 1
    assert drawer.page.get_by_role("button", name="Add a picture").count() == 0
    drawer.asked("What is @1?")
    assert "the box around it was taken" in drawer.page.locator(".mm-foot").last.inner_text()
    assert drawer.on_picture(drawer.page.locator(".mm-place").first) == pytest.approx([180, 120, 540, 360], abs=3)
    drawer.open("wordy")
    drawer.page.wait_for_selector(".mm-no-tools")
    assert drawer.tools() == [] and "Taker takes no regions" in drawer.page.locator(".mm-bar").inner_text()
    drawer.ask("What is @1?")
    drawer.page.wait_for_selector("#mm-right .mm-card")
    assert "takes no regions" in drawer.page.locator("#mm-right .mm-card").inner_text()
    assert drawer.page.input_value("#mm-question textarea") == "What is @1?"


def test_a_page_learns_that_somebody_else_opened_another_model(browser: Any, drawer: Visit, photo: Path) -> None:
    drawer.load(photo)
    drawer.picture()
    other = Visit(browser, drawer.served)
    other.open("boxes")
    other.context.close()
    assert "mask" in drawer.tools()
    drawer.asked("What do you see?")
    drawer.page.wait_for_function("document.querySelectorAll('[data-tool]').length === 3")
    assert "boxes" in drawer.page.locator("#mm-head").inner_text()


def test_settings_of_the_pictures_it_answers_with_are_offered_for_such_a_model_alone(
    drawer: Visit, photo: Path
) -> None:
    drawer.load(photo)
    drawer.picture()
    drawer.page.get_by_role("tab", name="Model").click()
    most = drawer.page.get_by_label("number input for Pictures at a time")
    assert not most.is_visible()
    drawer.open("finder")
    most.wait_for(state="visible")
    assert "No pictures of yours" in drawer.page.locator("#mm-indexed").inner_text()
    most.fill("5")
    most.press("Tab")
    limits = drawer.asked("What do you see?").limits
    assert (limits.pictures, limits.readiness) == (5, 1.0)
    drawer.open("boxes")
    most.wait_for(state="hidden")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("more") / "tall.png"
    Image.new("RGB", (300, 500), "teal").save(path)
    return path


def test_a_second_picture_has_regions_of_its_own_and_places_lie_on_the_right_one(
    drawer: Visit, photo: Path, second: Path
) -> None:
    drawer.load(photo)
    drawer.drag(0.2, 0.2, 0.4, 0.4)
    assert drawer.asked("What do you see?").turns[-1].images == (0,)
    drawer.add_picture(second)
    leaves = drawer.page.locator(".mm-leaf")
    assert [leaves.nth(one).get_attribute("aria-pressed") for one in range(2)] == ["false", "true"]
    strip, leaf = drawer.page.locator(".mm-sheets").bounding_box(), leaves.first.bounding_box()
    assert strip["y"] <= leaf["y"] and leaf["y"] + leaf["height"] <= strip["y"] + strip["height"]  # seen whole
    assert drawer.page.locator(".mm-region, .mm-place").count() == 0  # both belong to the first
    drawer.drag(0.5, 0.5, 0.9, 0.7)
    ask = drawer.asked("What is @2?")
    assert [image.size for image in ask.images] == [(WIDTH, HEIGHT), (300, 500)]
    assert [turn.images for turn in ask.turns if turn.role == "user"] == [(0,), (1,)]
    (region,) = ask.turns[-1].regions
    assert region.image == 1 and region.box.pixels((300, 500)) == pytest.approx((150, 250, 270, 350), abs=2)
    place = drawer.page.locator(".mm-place")
    drawer.page.wait_for_selector(".mm-place")
    at, box = drawer.picture(), place.first.bounding_box()
    assert drawer.page.locator(".mm-leaf.mm-has").count() == 1
    drawer.page.locator(".mm-phrase").first.click()  # of the first answer
    drawer.page.wait_for_function("document.querySelectorAll('.mm-leaf')[0].getAttribute('aria-pressed') === 'true'")
    assert (
        drawer.page.locator(".mm-place").count() > 0 and drawer.page.locator(".mm-region .mm-tag").inner_text() == "@1"
    )
    assert at["width"] > 0 and box["width"] > 0


def test_several_files_are_added_at_once_and_undo_goes_back_to_the_picture_that_it_changes(
    drawer: Visit, photo: Path, second: Path, tmp_path: Path
) -> None:
    third = tmp_path / "third.png"
    Image.new("RGB", (200, 200), "red").save(third)
    drawer.load(photo)
    drawer.drag(0.2, 0.2, 0.4, 0.4)
    with drawer.page.expect_file_chooser() as chooser:
        drawer.page.get_by_role("button", name="Add a picture").click()
    chooser.value.set_files([str(second), str(third)])
    drawer.page.wait_for_function(
        "() => document.querySelectorAll('.mm-leaf').length === 3 && !document.querySelector('.mm-busy')"
    )
    leaf = drawer.page.locator(".mm-leaf[aria-pressed=true]")
    assert "third.png" in leaf.get_attribute("aria-label")
    drawer.page.locator(".mm-stage").focus()
    drawer.page.keyboard.press("Control+z")
    assert "Picture 1" in leaf.get_attribute("aria-label") and drawer.page.locator(".mm-chip").count() == 0
    assert [image.size for image in drawer.asked("What do you see?").images][1:] == [(300, 500), (200, 200)]


def test_a_picture_is_removed_with_its_regions_and_ends_a_talk_that_knew_it(
    drawer: Visit, photo: Path, second: Path
) -> None:
    drawer.load(photo)
    drawer.drag(0.2, 0.2, 0.4, 0.4)
    drawer.asked("What do you see?")
    drawer.add_picture(second)
    drawer.drag(0.5, 0.5, 0.9, 0.7)
    drawer.page.get_by_role("button", name="Remove picture 2").click()
    drawer.page.wait_for_function("document.querySelectorAll('.mm-chip').length === 1")
    drawer.page.wait_for_timeout(500)
    assert drawer.page.locator(".mm-leaf").count() == 0 and drawer.page.locator(".mm-model").count() == 1
    drawer.add_picture(second)
    drawer.drag(0.5, 0.5, 0.9, 0.7)
    drawer.page.get_by_role("button", name="Remove picture 1").click()
    drawer.page.wait_for_selector(".mm-welcome")
    (region,) = drawer.asked("What is @3?").turns[-1].regions
    assert region.image == 0 and region.box.pixels((300, 500)) == pytest.approx((150, 250, 270, 350), abs=2)


def test_a_further_file_that_is_no_picture_gives_a_card_and_the_others_stay(
    drawer: Visit, photo: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:700])
    drawer.load(photo)
    drawer.drag(0.2, 0.2, 0.4, 0.4)
    with drawer.page.expect_file_chooser() as chooser:
        drawer.page.get_by_role("button", name="Add a picture").click()
    chooser.value.set_files(str(broken))
    drawer.page.wait_for_selector("#mm-left .mm-card")
    assert "damaged or cut off" in drawer.page.locator("#mm-left .mm-card").inner_text()
    drawer.page.wait_for_function("document.querySelectorAll('.mm-leaf').length === 0")
    assert len(drawer.regions()) == 1


def test_all_tools_and_pictures_fit_on_a_narrow_screen(browser: Any, able: Served, photo: Path, second: Path) -> None:
    able.desk.open(taking(MODELS["all"]))
    visit = Visit(browser, able, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visit.load(photo)
    at = visit.picture()
    visit.tool("Paint a shape")
    touch = visit.context.new_cdp_session(visit.page)
    for kind, place in (
        ("touchStart", (0.3, 0.3)),
        ("touchMove", (0.5, 0.5)),
        ("touchMove", (0.6, 0.6)),
        ("touchEnd", None),
    ):
        x, y = visit.at(*place) if place else (0, 0)
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}] if place else []})
    visit.page.wait_for_selector(".mm-region.mm-mask")
    brush = 0.025 * WIDTH
    wanted = [270 - brush, 180 - brush, 540 + brush, 360 + brush]
    assert visit.regions()[0] == pytest.approx(wanted, abs=WIDTH / 256 + 4)
    visit.add_picture(second)
    for button in visit.page.locator(".mm-bar button:visible, .mm-sheets button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390 and at["width"] > 300
    assert visit.errors == []
    visit.context.close()
