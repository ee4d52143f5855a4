"""The grounding language: reading, writing, streaming."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmchat.dialect import (
    DIALECTS,
    Cells,
    Dropped,
    Grounded,
    Json,
    Marks,
    Scaled,
    Scene,
    Span,
    confidence,
    evaluated_boxes,
    home,
)
from mmchat.dialect.comparison import table
from mmchat.dialect.evaluation import double_brackets
from mmchat.geometry import Box, Frame, Place, Point, outline

GOLDEN = Path(__file__).parent / "golden"
SCENE = Scene((Box(0.1, 0.1, 0.5, 0.5), Box(0.5, 0.5, 0.9, 0.9), Box(0, 0, 1, 1)), (640, 480))
A, B, C = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8), (0.12, 0.3, 0.55, 0.8)

# dialect, raw text, clean text, [(phrase, boxes or candidates)], reasons of what was dropped
READ = [
    ("llava", "[0.10, 0.20, 0.30, 0.40]", "", [("", [A])], []),
    ("llava", "The dog is at [0.10,0.20,0.30,0.40].", "The dog is at.", [("The dog", [A])], []),
    ("llava", "The dog is at [[0.1, 0.2, 0.3, 0.4]] now", "The dog is at now", [("The dog", [A])], []),
    ("llava", "a [0.1, 0.2, 0.300, 0.400] b", "a b", [("a", [A])], []),
    ("llava", "two kites [0.1,0.2,0.3,0.4], [0.5,0.6,0.7,0.8] fly", "two kites fly", [("two kites", [A, B])], []),
    ("llava", "a cup [0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8]", "a cup", [("a cup", [A, B])], []),
    ("llava", "A [0.1,0.2,0.3,0.4] by a cat [0.5,0.6,0.7,0.8]", "A by a cat", [("A", [A]), ("a cat", [B])], []),
    ("llava", "a top of the hill [0.1,0.2,0.3,0.4]", "a top of the hill", [("a top of the hill", [A])], []),
    ("llava", "cat [0.3,0.4,0.1,0.2]", "cat", [("cat", [A])], ["swapped"]),
    ("llava", "cat [0.1,0.2,1.4,0.4]", "cat", [("cat", [(0.1, 0.2, 1.0, 0.4)])], ["clipped"]),
    ("llava", "cat [2,2,3,3]", "cat", [], ["outside"]),
    ("llava", "cat [0.1,0.2,0.1,0.4]", "cat", [], ["no area"]),
    ("llava", "cat [0.1, 0.2, 0.3]", "cat", [], ["wrong count"]),
    ("llava", "cat [0.1,0.2,0.3,0.4,0.5]", "cat", [], ["wrong count"]),
    ("llava", "cat [0.1, 0.2", "cat", [], ["cut off"]),
    ("llava", "cat [1e999,0,0,0]", "cat", [], ["finite"]),
    ("llava", "in [2019] or [1, 2] see [a]", "in [2019] or [1, 2] see [a]", [], []),
    ("llava", "2 < 3 and [", "2 < 3 and [", [], []),
    ("llava", "", "", [], []),
    ("mmfuser", "cat [[100, 200, 300, 400]]", "cat", [("cat", [tuple(n / 999 for n in (100, 200, 300, 400))])], []),
    ("mmfuser", "[[0,0,999,999]]", "", [("", [(0, 0, 1, 1)])], []),
    ("pocket", "I see <p>the bus</p><r1>.", "I see the bus.", [("the bus", [1])], []),
    ("minigpt_v2", "<p>a man</p> on {<10><20><30><40>} sits", "a man on sits", [("a man", [A])], []),
    ("minigpt_v2", "<p>x</p> or <p>a cup</p> here {<10><20><30><40>}", "x or a cup here", [("a cup", [A])], []),
    ("minigpt_v2", "<p>a</p> {<10><20><30><40>} the cup {<50><60><70><80>}", "a the cup",
     [("a", [A]), ("the cup", [B])], []),
    ("pocket", "<p>two</p><r0><r2>, <p>a dog</p><r1>", "two, a dog", [("two", [0, 2]), ("a dog", [1])], []),
    ("pocket", "<p>a bird</p>[0.12,0.30,0.55,0.80] flies", "a bird flies", [("a bird", [C])], []),
    ("pocket", "<p>a bird</p> [0.12,0.30,0.55,0.80]<r1> flies", "a bird flies", [("a bird", [C, 1])], []),
    ("pocket", "<p>a dog</p><r7> runs", "a dog runs", [], ["unknown index 7"]),
    ("pocket", "<p>a dog<r1> runs</p> off", "a dog runs off", [("a dog", [1])], []),
    ("pocket", "<p>a dog</p> runs", "a dog runs", [], []),
    ("pocket", "a dog</p> runs <p>", "a dog runs", [], []),
    ("pocket", "<r1>", "", [("", [1])], []),
    ("pocket", "I do not see a giraffe.", "I do not see a giraffe.", [], []),
    ("pocket", "a bus <r", "a bus", [], ["cut off"]),
    ("pocket", "a bus <p>the b", "a bus the b", [], []),
    ("pocket", "<r99999999999999999999>", "", [], ["finite"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "text", "phrases", "reasons"), READ)
def test_reading(name: str, raw: str, text: str, phrases: list, reasons: list[str]) -> None:
    read = DIALECTS[name].read(raw, SCENE)
    assert read.text == text
    assert [read.text[span.start : span.end] for span in read.spans] == [phrase for phrase, _ in phrases]
    for span, (_, places) in zip(read.spans, phrases, strict=True):
        wanted = [SCENE.candidates[place] if isinstance(place, int) else Box(*place) for place in places]
        assert [corners(place) for place in span.places] == [pytest.approx(corners(box)) for box in wanted]
        assert span.regions == tuple(place if isinstance(place, int) else None for place in places)
    assert len(read.dropped) == len(reasons)
    assert all(reason in item.reason for item, reason in zip(read.dropped, reasons, strict=True))


@pytest.mark.parametrize(("name", "raw"), [row[:2] for row in READ])
def test_the_source_of_a_place_is_where_its_numbers_stood(name: str, raw: str) -> None:
    for span in DIALECTS[name].read(raw, SCENE).spans:
        assert len(span.source) == len(span.places) == len(span.regions)
        for start, end in span.source:
            assert any(character.isdigit() for character in raw[start:end]) and not raw[start:end].strip(
                "<r>[];-+.,e 0123456789"
            )


def test_every_recorded_answer_of_the_mmfuser_evaluation_reads_as_recorded() -> None:
    for text, size, scale, padded, boxes, understood in json.loads(
        (Path(__file__).parent / "tables" / "mmfuser_evaluation.json").read_text()
    ):
        found = evaluated_boxes(text, tuple(size), scale, padded)
        assert len(found) == len(boxes), text
        assert all(box == pytest.approx(wanted, abs=1e-3) for box, wanted in zip(found, boxes, strict=True)), text
        assert double_brackets(text)[1] == understood, text


# streaming


def views(name: str, raw: str) -> list[Grounded]:
    return [DIALECTS[name].read(raw[:end], SCENE, final=False) for end in range(len(raw) + 1)]


def assert_prefix_safe(name: str, raw: str) -> None:
    whole = DIALECTS[name].read(raw, SCENE)
    last = Grounded("")
    for view in [*views(name, raw), whole]:
        assert view.text.startswith(last.text), (raw, last.text, view.text)
        assert len(view.spans) >= len(last.spans), raw
        for old, new in zip(last.spans, view.spans, strict=False):
            assert (old.start, old.end, old.places) == (new.start, new.end, new.places[: len(old.places)]), raw
        assert view.dropped[: len(last.dropped)] == last.dropped, raw
        last = view


@pytest.mark.parametrize(("name", "raw"), [row[:2] for row in READ])
def test_a_prefix_never_shows_half_a_mark(name: str, raw: str) -> None:
    assert_prefix_safe(name, raw)


PARTS = [
    "[", "]", "[[", "]]", "[0.1,", "0.2,0.3,0.4]", "[0.1, 0.2, 0.3, 0.4]", "<p>", "</p>", "<r", "1>", "<r0>", "<r9>",
    " ", "\n", ", ", ";", "a dog", "The cat", " and ", ".", "<", ">", "nan", "1e400", "-", "猫", "\u202e", "\x00",
    "[[1,2],[3]]", "{", "}", "<loc_1>", "[1,2,3,4]",
]  # fmt: skip


def fuzzed(seed: int, most: int = 25) -> str:
    source = random.Random(seed)
    return "".join(source.choice(PARTS) for _ in range(source.randrange(most)))


def mutated(example: str, seed: int) -> str:
    """Two copies of an example with a few pieces cut out, doubled, or replaced."""
    source, text = random.Random(seed), f"A cup. {example} and {example}."
    for _ in range(source.randrange(1, 6)):
        start = source.randrange(len(text) + 1)
        end = min(len(text), start + source.randrange(8))
        text = text[:start] + source.choice(["", text[start:end] * 2, source.choice(PARTS), '"', "'"]) + text[end:]
    return text


@pytest.mark.parametrize("name", DIALECTS)
def test_fuzzed_answers_never_raise_and_stream_safely(name: str) -> None:
    for seed in range(8):
        assert_prefix_safe(name, fuzzed(seed))
        assert_prefix_safe(name, mutated(DIALECTS[name].example, seed))


@pytest.mark.parametrize("name", DIALECTS)
def test_the_clean_text_holds_no_mark_that_could_be_read(name: str) -> None:
    for seed in range(60):
        text = fuzzed(seed) if seed % 2 else mutated(DIALECTS[name].example, seed)
        read = DIALECTS[name].read(text, SCENE)
        for span in read.spans:
            assert 0 <= span.start <= span.end <= len(read.text)
            assert all(0 <= number <= 1 for place in span.places for number in corners(place))
    for raw in (row[1] for row in READ if row[0] == name):
        again = DIALECTS[name].read(DIALECTS[name].read(raw, SCENE).text, SCENE)
        assert not again.spans and not again.dropped


# Texts that grow with n and tempt a pattern to look again and again.
GROWING = [
    "a dog [0.1,0.2,0.3,0.4] and ", "[0.1,0.2,0.3,0.4] ", "[", "[[", "<p>", "</p>", "<r1>", "<r", "[1,", "1,", " ",
    "a [1,2,3", ",;", "<p>a</p><r1> ",
    "{", '{"', "[{", "```", "[1]", '"', "{'a': [", "<loc_1>", "<point ",
]  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("piece", ["", *GROWING])
def test_reading_takes_time_linear_in_the_text(name: str, piece: str) -> None:
    dialect = DIALECTS[name]
    piece = piece or f"{dialect.example} and "

    def seconds(count: int) -> float:
        start = time.process_time()
        dialect.read(piece * count, SCENE)
        return time.process_time() - start

    # Eight times the text: a quadratic reader takes 64 times as long, the noise of a busy machine does not.
    assert any(seconds(320) < 24 * max(seconds(40), 1e-4) for _ in range(3))


# writing


def step(dialect: Marks | Json, size: tuple[int, int]) -> float:
    """The coarsest distance between two numbers that a dialect can write, in the unit square."""
    codes = [dialect.code] if isinstance(dialect, Json) else [form.code for form in dialect.forms]
    return max(
        1 / code.side
        if isinstance(code, Cells)
        else 10**-code.decimals / (code.scale or min(size))
        if isinstance(code, Scaled)
        else 1e-9
        for code in codes
    )


@pytest.mark.parametrize("way", ["squash", "pad", "pad_end"])
@pytest.mark.parametrize(
    "name", [name for name, dialect in DIALECTS.items() if isinstance(dialect, Json) or dialect.forms]
)
def test_draw_write_read_draw_is_the_same_within_one_step(name: str, way: str) -> None:
    source = random.Random(7)
    for shape in [(12, 1), (4, 3), (1, 1), (2, 3), (1, 12)]:
        placement = Frame(448, way).place((shape[0] * 50, shape[1] * 50))
        for _ in range(20):
            x0, x1 = sorted(source.uniform(0, 1) for _ in range(2))
            y0, y1 = sorted(source.uniform(0, 1) for _ in range(2))
            fitted = outline(placement.into(Box(x0, y0, min(1, x1 + 0.1), min(1, y1 + 0.1))))
            if min(fitted.width, fitted.height) < 0.05:
                continue
            scene = Scene((fitted,) if name in ("groma", "llava_grounding", "glamm", "lisa") else (), placement.fitted)
            read = DIALECTS[name].read(DIALECTS[name].write((fitted,), "the thing", scene), scene)
            named = "" if name == "moondream" else "the thing"  # its functions return places alone
            assert read.text == named and len(read.spans) == 1 and not read.dropped
            (place,) = read.spans[0].places
            wanted = corners(fitted.centre) if isinstance(place, Point) else corners(fitted)
            assert corners(place) == pytest.approx(wanted, abs=1.001 * step(DIALECTS[name], placement.fitted))


@pytest.mark.parametrize("name", DIALECTS)
def test_the_example_of_a_dialect_reads_whole(name: str) -> None:
    scene = Scene(tuple(Box(0.01 * n, 0.1, 0.01 * n + 0.5, 0.6) for n in range(20)), (640, 480))
    read = DIALECTS[name].read(DIALECTS[name].example, scene)
    assert not read.dropped and (read.spans or name == "fromage")
    assert not any(mark in read.text for mark in "<>[]{}|")


@pytest.mark.parametrize("name", DIALECTS)
def test_the_example_of_a_dialect_streams_safely(name: str) -> None:
    assert_prefix_safe(name, DIALECTS[name].example + " and so on")


def test_pocket_points_at_a_candidate_where_there_is_one() -> None:
    write = DIALECTS["pocket"].write
    assert write((SCENE.candidates[1],), "the bus", SCENE) == "<p>the bus</p><r1>"
    assert write((SCENE.candidates[0], SCENE.candidates[1]), "two", SCENE) == "<p>two</p><r0><r1>"
    assert write((Box(*C),), "a bird", SCENE) == "<p>a bird</p>[0.12,0.30,0.55,0.80]"
    assert write((Box(*C), SCENE.candidates[1]), "both", SCENE) == "<p>both</p>[0.12,0.30,0.55,0.80]<r1>"
    assert write((), "nothing") == "<p>nothing</p>"


def test_llava_and_mmfuser_write_their_brackets() -> None:
    assert DIALECTS["llava"].write((Box(0.28, 0.34, 0.4, 0.71),)) == "[0.28, 0.34, 0.40, 0.71]"
    assert DIALECTS["mmfuser"].write((Box(0, 0.5, 1, 1),)) == "[[0, 500, 999, 999]]"


# what comes after reading


@pytest.mark.parametrize(
    ("size", "corners"),
    [((400, 300), (54, 229, 211, 297)), ((640, 480), (324, 45, 360, 88)), ((800, 200), (202, 1, 572, 194))],
)
def test_a_half_is_rounded_as_the_original_rounds_it(size: tuple[int, int], corners: tuple[int, ...]) -> None:
    """Shikra divides pixels of the padded square by its side: 347 of 400 is 0.8675 and not a hair less."""
    side = max(size)
    shift = [(side - length) // 2 for length in size] * 2
    wanted = ",".join(
        f"{round((corner + offset) / side, 3):.3f}" for corner, offset in zip(corners, shift, strict=True)
    )
    placed = Frame(1, "pad").place(size).into(Box.from_pixels(corners, size))
    assert DIALECTS["shikra"].write([placed]) == f"[{wanted}]"


def test_confidence_is_the_geometric_mean_of_the_tokens_that_wrote_the_place() -> None:
    span = Span(0, 1, (Box(*A), Box(*B)), ((4, 8), (20, 24)), (None, None))
    pieces = ((0, 4, 0.001), (4, 6, 0.9), (6, 9, 0.4), (9, 12, 0.001))
    assert confidence(span, pieces) == (pytest.approx(0.6), None)
    assert confidence(span, ((4, 8, 0.0),))[0] == pytest.approx(0, abs=1e-9)


def test_home_un_pads_clips_and_drops_what_lies_in_the_padding() -> None:
    placement = Frame(336, "pad").place((640, 480))
    inside, crossing, padding = Box(0.25, 0.25, 0.5, 0.5), Box(0.1, 0.0, 0.5, 0.5), Box(0.1, 0.01, 0.5, 0.1)
    read = Grounded(
        "x", (Span(0, 1, (inside, crossing), ((0, 1), (1, 2)), (None, 4)), Span(0, 1, (padding,), ((2, 3),), (None,)))
    )
    came = home(read, placement)
    assert corners(came.spans[0].places[0]) == pytest.approx((0.25, 1 / 6, 0.5, 0.5))
    assert corners(came.spans[0].places[1]) == pytest.approx((0.1, 0, 0.5, 0.5))
    assert came.spans[0].regions == (None, 4) and len(came.spans) == 1
    assert came.dropped == (Dropped(2, 3, "outside the picture: in the padding"),)


def test_a_box_of_four_pixels_survives_the_whole_way() -> None:
    placement = Frame(336, "pad").place((640, 480))
    written = DIALECTS["llava"].write((placement.into(Box.from_pixels((100, 120, 300, 360), (640, 480))),))
    read = home(DIALECTS["llava"].read(written), placement)
    assert outline(read.spans[0].places[0]).pixels((640, 480)) == pytest.approx((100, 120, 300, 360), abs=3.3)


def test_importing_the_dialects_needs_neither_torch_nor_gradio_nor_numpy() -> None:
    code = "import sys, mmchat.dialect; print([n for n in ('torch', 'gradio', 'numpy', 'PIL') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def corners(place: Place) -> tuple[float, ...]:
    if isinstance(place, Point):
        return (place.x, place.y)
    box = outline(place)
    return (box.x0, box.y0, box.x1, box.y1)


# time, salvage, the table


def test_a_stretch_of_time_is_a_moment_and_no_place() -> None:
    read = DIALECTS["groundinggpt"].read("The dog barks {0.35, 0.10} near a kite [0.312, 0.055, 0.471, 0.208].")
    (moment,) = read.moments
    assert read.text == "The dog barks near a kite." and len(read.spans) == 1
    assert (read.text[moment.start : moment.end], moment.first, moment.last, moment.kind) == (
        "The dog barks",
        0.1,
        0.35,
        "span",
    )
    assert [dropped.reason for dropped in read.dropped] == ["swapped ends: put in order"]


@pytest.mark.parametrize(
    ("name", "raw", "count", "reason"),
    [
        ("internvl", "<ref>dog</ref><box>[[120, 33, 400, 500]", 1, "cut off: the whole places were kept"),
        ("internvl", "<ref>dog</ref><box>[[120, 33, 400, 50", 0, "cut off"),
        ("rex_omni", "<|box_start|><1><2><300><400>,<5><6", 1, "cut off: the whole places were kept"),
        (
            "deepseek_vl2",
            "<|det|>[[12, 33, 400, 500, 6]]<|/det|>",
            1,
            "wrong count: 5 numbers, the first four were kept",
        ),
        ("deepseek_vl2", "<|det|>[[10+2, 33, 400, 500]]<|/det|>", 0, "wrong count: 5 numbers"),
        ("paligemma", "<loc0010><loc0010><loc0500><loc0500>" + "<seg001>" * 16 + " cat", 1, "a mask that only"),
        ("moondream", '{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.4}]}', 0, "wrong count: 3 of 4"),
    ],
)
def test_what_stands_whole_is_kept_and_the_rest_reported(name: str, raw: str, count: int, reason: str) -> None:
    read = DIALECTS[name].read(raw)
    assert sum(len(span.places) for span in read.spans) == count
    assert any(dropped.reason.startswith(reason) for dropped in read.dropped)


def test_the_table_has_a_row_for_every_dialect() -> None:
    lines = table().splitlines()
    assert lines[0].split()[:6] == ["dialect", "frame", "order", "scale", "rounding", "marks"]
    assert [line.split()[0] for line in lines[1::2]] == list(DIALECTS)
