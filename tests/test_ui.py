"""The page without a browser: it builds on a replay desk, its endpoints answer, its steps keep their promises."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmchat.desk import Answer, Desk, Limits
from mmchat.dialect import Moment, Span
from mmchat.engines.replay import Recorded, ReplayEngine
from mmchat.geometry import Box, Point

gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements.txt")

from gradio.data_classes import FileData  # noqa: E402  (after the check above)

from mmchat.paint import PALETTE  # noqa: E402
from mmchat.ui import api, files, layout, panels, steps, words  # noqa: E402
from mmchat.ui.canvas import MOST_REGIONS, Sheet, Surface, examples_in, regions_of, surface_of  # noqa: E402
from mmchat.ui.page import build, launch_options  # noqa: E402

BUS, PEOPLE = Box(0.1, 0.3, 0.55, 0.8), (Box(0.6, 0.4, 0.72, 0.82), Box(0.74, 0.42, 0.86, 0.84))
ANSWERS = (
    Recorded("long", "word " * 200 + "<p>a bus</p><c0>.", candidates=(BUS,)),
    Recorded("script", "<script>alert(1)</script> <p>the <b>bus</b></p><c0>.", candidates=(BUS,)),
    Recorded("numbers", "It is <p>a bus</p>[100,300,550,800].", candidates=(BUS,)),
    Recorded("what is (<r|\\[)", "<p>This</p><u0> is a wheel.", candidates=(BUS,)),
    Recorded(".", "I see <p>a bus</p><c0> and <p>two people</p><c1><c2>.", candidates=(BUS, *PEOPLE)),
)


@pytest.fixture
def desk() -> Desk:
    return Desk(ReplayEngine(ANSWERS))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2)
    path = tmp_path / "street.jpg"
    Image.fromarray(ramp).save(path)
    return path


def surface(path: Path, *regions: dict[str, object], selected: int | None = None) -> Surface:
    return Surface(image=FileData(path=str(path)), size=[640, 480], regions=list(regions), selected=selected)


def drawn(number: int, *corners: float) -> dict[str, object]:
    return {"id": number, "kind": "box", "box": list(corners)}


def said(desk: Desk, laid: Surface, text: str, talk: words.Talk = (), task: str | None = None) -> words.Talk:
    return list(steps.speak(desk, laid, steps.begin(desk, laid, talk, text, task)))[-1]


# The page and its endpoints.


def test_the_page_builds_without_examples_and_offers_three_endpoints(desk: Desk, tmp_path: Path) -> None:
    page = build(desk, examples=tmp_path / "none", read=lambda *values: {})
    named = page.get_api_info()["named_endpoints"]
    assert set(named) == {"/ask", "/models", "/read"}


@pytest.fixture(scope="module")
def client():
    gradio_client = pytest.importorskip("gradio_client", reason="gradio_client comes with gradio")

    def read(dialect: str, text: str, size: list[int], fit: object, candidates: object) -> dict[str, object]:
        if dialect != "groma":
            raise ValueError(f"There is no dialect {dialect!r}: choose groma.")
        return {"text": text, "spans": [], "dropped": [], "size": size}

    rows = [{"name": "replay", "missing": []}]
    page = build(Desk(ReplayEngine(ANSWERS)), model="recorded", models=lambda: rows, read=read, examples=None)
    options = {**launch_options(), "server_name": "127.0.0.1", "quiet": True, "prevent_thread_lock": True}
    _, address, _ = page.launch(**options)
    yield gradio_client.Client(address, verbose=False)
    page.close()


def test_a_client_on_loopback_asks_and_gets_words_and_places_in_pixels(client, photo: Path) -> None:
    from gradio_client import handle_file

    told = client.predict(image=handle_file(str(photo)), text="What do you see?", api_name="/ask")
    assert told["text"] == "I see a bus and two people." and told["model"] == "recorded"
    phrases = [(span["phrase"], len(span["places"])) for span in told["spans"]]
    assert phrases == [("a bus", 1), ("two people", 2)]
    # The recording's frame is a square with bars of an eighth above and below the 4:3 picture.
    wanted = [0.1 * 640, (0.3 - 0.125) / 0.75 * 480, 0.55 * 640, (0.8 - 0.125) / 0.75 * 480]
    assert told["spans"][0]["places"][0]["box"] == pytest.approx(wanted, abs=1)


def test_a_client_hands_regions_over_in_pixels(client, photo: Path) -> None:
    from gradio_client import handle_file

    told = client.predict(
        image=handle_file(str(photo)), text="What is @1?", regions=[[64, 48, 320, 240]], api_name="/ask"
    )
    assert told["spans"][0]["phrase"] == "This"
    assert told["spans"][0]["places"][0]["box"] == pytest.approx([64, 48, 320, 240], abs=1)


def test_what_a_client_did_wrong_comes_back_as_one_sentence(client, photo: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    (tmp_path / "no.jpg").write_text("no picture")
    with pytest.raises(Exception, match="not a picture that can be read: choose"):
        client.predict(image=handle_file(str(tmp_path / "no.jpg")), text="What?", api_name="/ask")
    with pytest.raises(Exception, match="Region 1 has no area"):
        client.predict(image=handle_file(str(photo)), text="What?", regions=[[5, 5, 5, 9]], api_name="/ask")


def test_models_and_read_give_the_json_of_the_commands(client) -> None:
    assert client.predict(api_name="/models") == [{"name": "replay", "missing": []}]
    told = client.predict(dialect="groma", text="a", size=[10, 20], api_name="/read")
    assert told == {"text": "a", "spans": [], "dropped": [], "size": [10, 20]}
    with pytest.raises(Exception, match="There is no dialect"):
        client.predict(dialect="x", text="a", size=[10, 20], api_name="/read")


def test_a_file_that_was_not_uploaded_is_refused(client, tmp_path: Path) -> None:
    import httpx

    body = {"data": [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, "What?", None, None, 0]}
    started = httpx.post(f"{client.src}gradio_api/call/ask", json=body)
    ended = httpx.get(f"{client.src}gradio_api/call/ask/{started.json()['event_id']}", timeout=20)
    assert "event: error" in ended.text and "event: complete" not in ended.text


# Words.


def test_model_text_is_escaped_wherever_it_is_shown(desk: Desk, photo: Path) -> None:
    talk = said(desk, surface(photo), "script <img src=x onerror=alert(2)>")
    html = words.talk_html(talk) + panels.details_html(talk[-1].answer, (640, 480))
    assert "<script" not in html and "<b>" not in html and "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_a_phrase_cannot_break_out_of_its_attributes() -> None:
    text = "a \"quoted' <phrase>"
    html = words.answer_html(Answer(text, text, (Span(0, len(text), (BUS,)),)), 0)
    assert re.findall(r'data-text="([^"]*)"', html) == ["a &quot;quoted&#x27; &lt;phrase&gt;"]


def test_phrases_carry_their_places_and_the_colours_of_the_painted_picture() -> None:
    text = "a bus and people"
    answer = Answer(text, text, (Span(0, 5, (BUS,)), Span(10, 16, PEOPLE)), ((0.9,), (0.5, None)))
    first, second = words.phrases(answer)
    assert (first["text"], first["colour"], second["colour"]) == ("a bus", PALETTE[0], PALETTE[1])
    assert second["places"] == [
        {"kind": "box", "box": [0.6, 0.4, 0.72, 0.82], "score": 0.5},
        {"kind": "box", "box": [0.74, 0.42, 0.86, 0.84], "score": None},
    ]
    found = re.search(r'data-places="([^"]*)"', words.answer_html(answer, 0))
    assert found and json.loads(found[1].replace("&quot;", '"')) == first["places"]


def test_overlapping_and_empty_spans_keep_every_letter_once() -> None:
    text = "the red bus here"
    spans = (Span(0, 11, (BUS,)), Span(8, 11, (BUS,)), Span(16, 16, (Point(0.5, 0.5),)))
    html = words.answer_html(Answer(text, text, spans), 0)
    shown = re.sub(r"<[^>]+>", "", re.sub(r'<span class="mm-spot".*?</span>', "", html))
    assert shown == text and html.count('class="mm-phrase"') == 3


def test_a_failure_becomes_a_card_with_its_sentence_and_an_unexpected_one_hides_its_text() -> None:
    assert "<p>It is &lt;b&gt;: mend it.</p>" in words.card(ValueError("it is <b>: mend it."))
    assert "secret" not in words.card(RuntimeError("secret /path")) and "RuntimeError" in words.card(RuntimeError("x"))


# What the browser sends.


@pytest.mark.parametrize(
    "bad",
    [
        drawn(1, 0.1, 0.1, float("nan"), 0.5),
        drawn(1, 0.1, 0.1, float("inf"), 0.5),
        drawn(1, 0.1, 0.1, "0.4", 0.5),  # type: ignore[arg-type]
        drawn(1, 0.1, 0.1, 0.5),
        drawn(1, 0.2, 0.2, 0.2, 0.8),
        drawn(1, 1.2, 1.2, 1.4, 1.4),
        drawn(0, 0.1, 0.1, 0.5, 0.5),
        {"id": True, "kind": "box", "box": [0.1, 0.1, 0.5, 0.5]},
        {"id": 1, "kind": "blob", "box": [0.1, 0.1, 0.5, 0.5]},
        {"id": 1, "kind": "point"},
        {"id": 1, "kind": ["box"], "box": [0.1, 0.1, 0.5, 0.5]},
        {"id": 1, "kind": "scribble", "box": [0.1, 0.1, 0.5, 0.5]},
        {"id": 1, "kind": "scribble", "points": [[0.1, float("nan")]]},
        {"id": 1, "kind": "scribble", "points": [[0.1, 0.1]] * 2001},
        {"id": 1, "kind": "polygon", "points": [[0.1, 0.1], [0.5, 0.5]]},
        {"id": 1, "kind": "mask", "mask": {"size": [2, 2], "runs": [4]}},
        {"id": 1, "kind": "mask", "mask": {"size": [10_000, 10_000], "runs": [0, 100_000_000]}},
        {"id": 1, "kind": "mask", "mask": {"size": [2, "2"], "runs": [0, 4]}},
        {"id": 1, "kind": "mask", "mask": [[1]]},
        {"id": 1, "kind": "box", "box": [0.1, 0.1, 0.5, 0.5], "image": 1},
        {"id": 1, "kind": "box", "box": [0.1, 0.1, 0.5, 0.5], "image": -1},
        {},
    ],
)
def test_a_region_that_no_hand_can_draw_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"[Rr]egion"):
        regions_of(Surface(regions=[bad]))


def test_every_shape_that_a_hand_can_draw_is_understood() -> None:
    line = [[0.2, 0.2], [0.4, 0.6], [0.3, 0.7]]
    shapes = [
        {"id": 1, "kind": "point", "box": [0.2, 0.3, 0.2, 0.3]},
        {"id": 2, "kind": "scribble", "points": line, "box": [0, 0, 1, 1]},
        {"id": 3, "kind": "polygon", "points": line},
        {"id": 4, "kind": "mask", "mask": {"size": [4, 2], "runs": [5, 2, 1]}, "image": 1},
    ]
    found = regions_of(Surface(regions=shapes, more=[Sheet()]))
    assert [found[number].kind for number in found] == ["point", "scribble", "polygon", "mask"]
    assert found[1].points == (Point(0.2, 0.3),)
    assert found[2].box == found[3].box == Box(0.2, 0.2, 0.4, 0.7)
    assert found[4].box == Box(0.25, 0.5, 0.75, 1) and found[4].image == 1


def test_too_many_regions_are_refused() -> None:
    many = [drawn(number, 0.1, 0.1, 0.5, 0.5) for number in range(1, MOST_REGIONS + 2)]
    with pytest.raises(ValueError, match="at most"):
        regions_of(Surface(regions=many))


def test_a_rotated_picture_is_shown_upright_and_without_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where I live"
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (400, 300), "teal").save(path, exif=exif)
    laid = surface_of(path, str(tmp_path / "cache"))
    assert laid.size == [300, 400] and laid.view is not None
    with Image.open(laid.view.path) as view:
        assert view.size == (300, 400) and not dict(view.getexif())


def test_an_examples_folder_may_be_missing_or_hold_other_files(tmp_path: Path) -> None:
    assert examples_in(tmp_path / "none") == [] and examples_in(None) == []
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "a_bus.png")
    assert [path.name for path in examples_in(tmp_path)] == ["a_bus.png"]


# Steps.


def test_numbers_of_the_surface_become_numbers_of_the_talk(desk: Desk, photo: Path) -> None:
    first = surface(photo, drawn(2, 0.1, 0.1, 0.3, 0.3))
    talk = said(desk, first, "What is @2?")
    assert talk[-1].question.text == "What is @1?" and talk[-1].shown == "What is @2?"
    second = surface(photo, drawn(2, 0.1, 0.1, 0.3, 0.3), drawn(5, 0.5, 0.5, 0.9, 0.9))
    talk = steps.begin(desk, second, talk, "Is @5 like @2?", None)
    assert talk[-1].question.text == "Is @2 like @1?" and len(talk[-1].question.regions) == 1


def test_a_number_without_a_region_is_refused(desk: Desk, photo: Path) -> None:
    with pytest.raises(ValueError, match=r"no region @3 .*drawn: @1"):
        steps.begin(desk, surface(photo, drawn(1, 0.1, 0.1, 0.3, 0.3)), (), "What is @3?", None)


@pytest.mark.parametrize(
    ("text", "task", "why"),
    [("", None, "empty"), ("  ", "find", "empty"), ("", "region", "none is drawn"), ("a" * 10_000, None, "10000 char")],
)
def test_a_question_that_cannot_be_asked_is_refused(
    desk: Desk, photo: Path, text: str, task: str | None, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        steps.begin(desk, surface(photo), (), text, task)


def test_a_task_that_needs_no_words_is_asked_without_any(desk: Desk, photo: Path) -> None:
    assert said(desk, surface(photo), "", task="describe")[-1].answer.done


def test_words_are_never_lost_in_a_task_that_has_no_place_for_them(desk: Desk, photo: Path) -> None:
    begun = steps.begin(desk, surface(photo), (), "Where is the bus?", "describe")[-1]
    assert (begun.task, begun.question.text) == (None, "Where is the bus?")


def test_the_region_task_takes_the_selected_region(desk: Desk, photo: Path) -> None:
    laid = surface(photo, drawn(1, 0.1, 0.1, 0.3, 0.3), drawn(2, 0.5, 0.5, 0.9, 0.9), selected=2)
    assert steps.begin(desk, laid, (), "", "region")[-1].shown == "@2"


def test_another_picture_begins_a_new_talk(desk: Desk, photo: Path, tmp_path: Path) -> None:
    talk = said(desk, surface(photo), "What do you see?")
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "red").save(other)
    assert len(steps.begin(desk, surface(other), talk, "And here?", None)) == 1
    assert len(steps.begin(desk, surface(photo), talk, "And here?", None)) == 2


def test_the_model_reads_its_own_raw_answer_in_the_next_turn(desk: Desk, photo: Path) -> None:
    talk = said(desk, surface(photo), "What do you see?")
    turns = steps.turns_of(steps.begin(desk, surface(photo), talk, "Where?", None))
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[1].text.startswith("I see <p>a bus</p><r0>")


def test_closing_a_running_answer_stops_the_model_within_a_token(photo: Path) -> None:
    engine = ReplayEngine(ANSWERS, delay=0.002)
    desk = Desk(engine)
    growing = steps.speak(desk, surface(photo), steps.begin(desk, surface(photo), (), "long", None))
    next(growing)
    growing.close()
    given = engine.tokens
    time.sleep(0.05)
    assert engine.tokens == given < 100


def test_a_long_answer_updates_the_page_at_most_every_pause(photo: Path) -> None:
    desk = Desk(ReplayEngine(ANSWERS, delay=0.002))
    begun = time.monotonic()
    updates = list(steps.speak(desk, surface(photo), steps.begin(desk, surface(photo), (), "long", None)))
    assert len(updates) <= (time.monotonic() - begun) / steps.PAUSE + 2
    assert updates[-1][-1].answer.done and not updates[0][-1].answer.done


def test_a_second_try_is_livelier_and_has_another_seed(photo: Path) -> None:
    asked: list[Limits] = []
    talk = said(Desk(ReplayEngine(ANSWERS)), surface(photo), "What do you see?")
    desk = SimpleNamespace(answer=lambda ask: asked.append(ask.limits) or iter(()))
    list(steps.speak(desk, surface(photo), steps.again(talk), Limits(seed=7)))  # type: ignore[arg-type]
    assert asked[0].temperature > 0 and asked[0].seed == 8


def test_a_stopped_answer_keeps_its_words_and_says_so(desk: Desk, photo: Path) -> None:
    growing = steps.speak(desk, surface(photo), steps.begin(desk, surface(photo), (), "long", None))
    talk = steps.settled(next(growing))
    growing.close()
    html = words.talk_html(talk)
    assert 'data-state="stopped"' in html and "word" in html and "stopped" in html


def test_a_heat_map_covers_the_picture_and_says_what_it_shows(desk: Desk, photo: Path, tmp_path: Path) -> None:
    kind = desk.engine.family.heats[0]
    painted = steps.heat(desk, surface(photo), (), kind, "")
    told = panels.heat_map(painted, kind, "", str(tmp_path))
    assert painted.size == (640, 480) and "contrast" in told.note and told.image is not None
    with pytest.raises(ValueError, match="no region @4"):
        steps.heat(desk, surface(photo), (), "likeness", "@4")
    laid = surface(photo, drawn(4, 0.1, 0.1, 0.3, 0.3))
    assert steps.heat(desk, laid, (), "likeness", "@4").size == (640, 480)


@pytest.mark.parametrize("ending", files.FORMS.values())
def test_every_offered_file_holds_the_answer(ending: str, desk: Desk, photo: Path) -> None:
    answer = said(desk, surface(photo), "What do you see?")[-1].answer
    data = files.content(Image.open(photo), answer, ending, "street.jpg", ("replay", "recording"))
    if ending == "png":
        painted = Image.open(io.BytesIO(data))
        assert painted.size == (640, 480) and painted.getcolors(1 << 20) != Image.open(photo).getcolors(1 << 20)
    elif ending.endswith("zip"):
        assert data[:2] == b"PK"
    else:
        assert "two people" in data.decode()


def test_points_and_wrong_numbers_of_a_client_are_told_apart() -> None:
    assert api.region_of([32, 24], 1, [(64, 48)]).points == (Point(0.5, 0.5),)
    for bad in ([1, 2, 3], "1,2,3,4", [1, 2, 3, "4"], [True, 1, 2, 3], None):
        with pytest.raises(ValueError, match="Region 2"):
            api.region_of(bad, 2, [(64, 48)])


def test_the_endpoint_takes_several_pictures_where_the_model_does(desk: Desk, photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (100, 50), "red").save(other)
    asked = (
        desk,
        "replay",
        str(photo),
        "What is @1?",
        [{"kind": "box", "box": [10, 10, 50, 40], "image": 1}],
        None,
        None,
    )
    with pytest.raises(ValueError, match="takes one picture at a time"):
        api.answered(*asked, [str(other)])
    with pytest.raises(ValueError, match='Region 1 names no picture with "image"'):
        api.answered(*asked)
    desk.engine.family = replace(desk.engine.family, takes=desk.engine.family.takes | {"several pictures"})
    told = api.answered(*asked, [str(other)])
    assert told["image"] == 1 and told["spans"][0]["places"][0]["box"] == [10, 10, 50, 40]
    with pytest.raises(ValueError, match="There are 9 pictures, at most 8"):
        api.answered(*asked, [str(other)] * 8)


def test_a_long_list_of_models_is_folded_and_begins_with_what_can_be_opened() -> None:
    rows = [{"name": f"m{number}", "about": "Talks.", "missing": f"no folder {number}"} for number in range(30)]
    rows += [{"name": "here", "about": "Here.", "missing": ""}]
    html = panels.models_html(rows, "m3")
    shown, folded = html.split("<details")
    assert "m3" in shown and "here" in shown and shown.count("<tr>") == 3 and "29 others" in folded
    assert "no folder 7" in folded and "no folder 3<" not in html
    choices = panels.model_choices(rows, "m3")
    assert choices[:3] == [("m3", "m3"), ("here", "here"), ("m0 (not here)", "m0")]
    assert "<details" not in panels.models_html(rows[-1:], "here")


def test_the_empty_talk_offers_what_the_open_model_can_do(desk: Desk) -> None:
    family = desk.engine.family
    assert "Answers come with places" in layout.chat_html(desk, ()) and "mm-starter" in layout.chat_html(desk, ())
    fixed = tuple(
        replace(task, name=f"t{number}", pattern="Do it.") for number, task in enumerate(family.template.tasks)
    )
    wordless = SimpleNamespace(forms=False)
    desk.engine.family = replace(
        family, takes=frozenset(), dialect=wordless, dialects={}, template=replace(family.template, tasks=fixed)
    )
    told = layout.chat_html(desk, ())
    assert "places" not in told and "@1" not in told and "choose one below" in told and "data-text" not in told


def test_eight_users_at_once_get_their_own_answers(photo: Path) -> None:
    desk = Desk(ReplayEngine(ANSWERS, delay=0.001))
    found: dict[int, str] = {}

    def user(number: int) -> None:
        laid = surface(photo, drawn(1, 0.1 * number, 0.1, 0.1 * number + 0.1, 0.3))
        answer = said(desk, laid, "What is @1?")[-1].answer
        found[number] = f"{answer.spans[0].places[0].x0:.2f}"

    threads = [threading.Thread(target=user, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: f"{0.1 * number:.2f}" for number in range(8)}


@pytest.mark.parametrize("field", ["image", "view", "more"])
@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_a_forged_path_on_the_surface_is_refused(client, tmp_path: Path, field: str, meta: dict[str, object]) -> None:
    import httpx

    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    file = {"path": str(secret), **meta}
    forged = {"image": None, "view": None, "size": [8, 8], "regions": [], field: file}
    if field == "more":
        forged["more"] = [{"image": file, "view": None, "size": None}]
    config = httpx.get(f"{client.src}config").json()
    event = "added" if field == "more" else "picture"
    wanted = [one for one in config["dependencies"] if one["targets"] and one["targets"][0][1] == event]
    session = {"session_hash": f"forger{field}{len(meta)}", "fn_index": wanted[0]["id"]}
    httpx.post(f"{client.src}gradio_api/queue/join", json={"data": [forged], **session}).raise_for_status()
    with httpx.stream("GET", f"{client.src}gradio_api/queue/data", params=session, timeout=20) as stream:
        ended = next(json.loads(line[6:]) for line in stream.iter_lines() if "process_completed" in line)
    assert ended["success"] is False
    assert str(secret) not in json.dumps(ended.get("output", {}).get("data", ""))


# Several pictures, and models that take other things.


def several(*paths: Path, shown: int = 0, regions: tuple[dict[str, object], ...] = ()) -> Surface:
    first, *more = (Sheet(image=FileData(path=str(path)), size=[64, 48]) for path in paths)
    return Surface(**dict(first), more=more, shown=shown, regions=list(regions))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "one.png", tmp_path / "two.png")
    for path, colour in zip(paths, ("red", "teal"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return paths


def taking(*kinds: str) -> Desk:
    engine = ReplayEngine(ANSWERS)
    engine.family = replace(engine.family, takes=frozenset(kinds))
    return Desk(engine)


def test_a_picture_that_is_added_comes_with_the_next_question(two: tuple[Path, Path]) -> None:
    desk = taking("box", "several pictures")
    talk = said(desk, several(two[0]), "What do you see?")
    laid = several(*two, shown=1, regions=({**drawn(3, 0.1, 0.1, 0.5, 0.5), "image": 1},))
    talk = said(desk, laid, "What is @3?", talk)
    assert [exchange.question.images for exchange in talk] == [(0,), (1,)]
    assert talk[1].question.regions[0].image == 1 and talk[1].answer.shown == 1
    assert talk[1].picture == talk[1].pictures[1] != talk[0].picture
    again = said(desk, laid, "And now?", talk)
    assert len(again) == 3 and again[2].question.images == ()
    assert f'data-picture="{talk[0].picture}"' in words.talk_html(talk)
    assert steps.sheet_of_answer(laid, talk).image.path == str(two[1])


def test_without_a_picture_of_the_talk_a_new_one_begins(two: tuple[Path, Path]) -> None:
    desk = taking("several pictures")
    talk = said(desk, several(*two), "What do you see?")
    assert talk[0].question.images == (0, 1)
    assert len(steps.begin(desk, several(two[1]), talk, "And here?", None)) == 1
    assert len(steps.begin(desk, several(two[1], two[0]), talk, "And here?", None)) == 1
    with pytest.raises(ValueError, match="no longer here"):
        list(steps.speak(desk, several(two[1]), steps.begin(desk, several(*two), talk, "And here?", None)))


def test_a_model_of_one_picture_is_asked_about_the_one_that_is_shown(two: tuple[Path, Path]) -> None:
    desk = taking("box")
    regions = (drawn(1, 0.1, 0.1, 0.5, 0.5), {**drawn(2, 0.2, 0.2, 0.6, 0.6), "image": 1})
    laid = several(*two, shown=1, regions=regions)
    talk = said(desk, laid, "What is @2?")
    assert len(talk[0].pictures) == 1 and steps.sheet_of_answer(laid, talk).image.path == str(two[1])
    assert [region.image for region in talk[0].question.regions] == [0]
    with pytest.raises(ValueError, match=r"no region @1 on the picture \(drawn: @2\)"):
        steps.begin(desk, laid, talk, "What is @1?", None)


def test_a_heat_map_is_of_the_picture_that_is_shown_or_of_the_regions(two: tuple[Path, Path]) -> None:
    desk = taking("box", "several pictures")
    regions = (drawn(1, 0.1, 0.1, 0.5, 0.5), {**drawn(2, 0.2, 0.2, 0.6, 0.6), "image": 1})
    laid = several(*two, regions=regions)
    talk = said(desk, laid, "What do you see?")
    first, last = talk[0].pictures
    assert steps.heat(desk, laid, talk, "feature norm", "").info["picture"] == first
    assert steps.heat(desk, laid, talk, "likeness", "@2").info["picture"] == last
    assert steps.heat(desk, several(*two, shown=1), talk, "feature norm", "").info["picture"] == last


def test_too_many_pictures_are_refused(two: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="9 pictures, at most 8"):
        steps.begin(taking("several pictures"), several(*[two[0]] * 9), (), "What?", None)


def test_the_page_says_what_each_family_can_take_and_asks_for_what_its_tasks_need(desk: Desk) -> None:
    from mmchat import family
    from mmchat.geometry import KINDS

    for name in family.names():
        record = family.load(name)
        opened = SimpleNamespace(engine=SimpleNamespace(family=record))
        assert set(layout.abilities(opened).takes) == record.takes
        assert ("@1" in layout.chat_html(opened, ())) == bool(record.takes & set(KINDS))
        for task in record.template.tasks:
            told = layout.hint(opened, task.name)
            needs = {"": "no words are needed", "phrase": "in your words", "region": "draw a region"}[task.needs]
            assert (
                (told == "Ask about the picture")
                if task.pattern == "{text}"
                else (task.label in told and needs in told)
            )
            assert task.needs != "region" or record.takes & set(KINDS), name
        names = [value for _, value in layout.task_choice(opened)["choices"]]
        assert names == [task.name for task in record.template.tasks] and layout.task_choice(opened)["value"] in names


@pytest.mark.parametrize(
    ("name", "kinds", "pictures"),
    [("ferret", 5, 1), ("groma", 1, 1), ("qwen3_vl", 2, 2), ("fromage", 0, 2)],
)
def test_a_family_is_asked_about_every_shape_and_about_several_pictures_as_it_takes_them(
    name: str, kinds: int, pictures: int, dwarf_folder, two: tuple[Path, Path]
) -> None:
    from mmchat import family
    from mmchat.engines.local import LocalEngine

    desk = Desk(LocalEngine.open(dwarf_folder(name), family.load(name), "fp32", "cpu"))
    line = [[0.2, 0.2], [0.4, 0.6], [0.3, 0.7]]
    shapes: list[dict[str, object]] = [
        {"kind": "box", "box": [0.1, 0.1, 0.5, 0.6]}, {"kind": "point", "points": [[0.3, 0.4]]},
        {"kind": "scribble", "points": line}, {"kind": "polygon", "points": line},
        {"kind": "mask", "mask": {"size": [8, 6], "runs": [10, 3, 5, 3, 27]}},
    ]  # fmt: skip
    few, own = Limits(new_tokens=2), 0
    for shape in shapes:
        laid = several(*two, regions=({"id": 1, "image": 0, **shape},))
        if not kinds:
            with pytest.raises(ValueError, match="takes no regions"):
                steps.begin(desk, laid, (), "What is @1?", None)
        talk = steps.begin(desk, laid, (), "What is @1?" if kinds else "What is it?", None)
        assert len(talk[0].pictures) == pictures
        answer = list(steps.speak(desk, laid, talk, few))[-1][0].answer
        own += not any("the box around it" in str(value) for _, value in answer.notes)
        assert answer.done and answer.shown == (0 if kinds else 1)  # of @1, else the last
    assert own == (kinds or len(shapes))
    desk.close()


# Frames.


def test_an_answer_with_numbers_is_read_in_other_frames_and_the_chosen_one_is_shown(desk: Desk, photo: Path) -> None:
    laid = surface(photo)
    talk = said(desk, laid, "numbers please")
    shown = steps.strip(desk, laid, talk)
    assert len(shown) > 3 and shown[0][1] == "as this model writes"
    names = [name for _, name in shown]
    assert len(set(names)) == len(names) and max(shown[0][0].size) <= 360
    squashed = names.index("/999, squashed")
    read, name = steps.read_as(desk, laid, talk, squashed)
    assert name == "/999, squashed"
    assert read[-1].answer.spans[0].places[0].pixels((640, 480)) == pytest.approx((64, 144, 352, 384), abs=1)
    assert read[-1].answer.raw == talk[-1].answer.raw
    # The list stays what it was, and the first of it brings the family's own reading back.
    assert [name for _, name in steps.strip(desk, laid, read)] == names
    back, _ = steps.read_as(desk, laid, read, 0)
    assert back[-1].answer.spans == talk[-1].answer.spans and back[-1].own is None


def test_an_answer_without_numbers_or_without_an_answer_cannot_be_compared(desk: Desk, photo: Path) -> None:
    laid = surface(photo)
    with pytest.raises(ValueError, match="no finished answer"):
        steps.strip(desk, laid, ())
    with pytest.raises(ValueError, match="no numbers"):
        steps.strip(desk, laid, said(desk, laid, "What do you see?"))
    talk = said(desk, laid, "numbers please")
    with pytest.raises(ValueError, match="no longer there"):
        steps.read_as(desk, laid, talk, 99)


def test_a_stretch_of_time_stands_behind_the_words():
    html = words.answer_html(Answer("<a> dog", "", moments=(Moment(0, 7, 0.125, 0.5),)), 0)
    assert html.startswith("&lt;a&gt; dog ") and "0.125 to 0.5" in html and "<a>" not in html
