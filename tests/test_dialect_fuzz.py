"""Ten thousand broken answers over all dialects: no exception, safe streaming, no mark that could still be read."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.dialect import DIALECTS, Grounded, Json, Scene
from mmchat.geometry import Box, outline

SCENE = Scene(tuple(Box(0.04 * n, 0.1, 0.04 * n + 0.2, 0.6) for n in range(20)), (640, 480))
EACH = 10_000 // len(DIALECTS) + 1
PIECES = [
    "[", "]", "[[", "]]", "{", "}", "<", ">", "(", ")", '"', "'", "\\", ",", ";", ":", ".", " ", "\n",
    "```json\n", "```",
    "nan", "NaN", "inf", "-1", "1e999", "9" * 400, "0.5", "1000", "0.1,0.2,0.3,0.4", "a dog", "Two cats", " and ",
    "\N{CJK UNIFIED IDEOGRAPH-732B}", "\u202e", "\x00", "\ud800", "\N{ARABIC-INDIC DIGIT THREE}", "\u00a0",
    "<p>", "</p>",
    "<think>", "</think>", "<|", "|>", "<s>", "=",
]  # fmt: skip


def answer(name: str, seed: int) -> str:
    """A good answer, once or twice, in which stretches are cut out, doubled, nested or replaced; perhaps cut off."""
    source, good = random.Random(seed), DIALECTS[name].example
    text = source.choice([good, f"A cup. {good} and {good}.", f"{good}\n{good}", ""])
    for _ in range(source.randrange(7)):
        start = source.randrange(len(text) + 1)
        part = text[start : start + source.randrange(13)]
        text = text[:start] + source.choice(["", part * 2, good, source.choice(PIECES)]) + text[start + len(part) :]
    return text[: source.randrange(len(text) + 1)] if source.random() < 0.5 else text


def cuts(text: str) -> list[int]:
    """Where the text is looked at while it grows: about ten places, the last few characters one by one."""
    return sorted({*range(0, len(text), max(1, len(text) // 8)), *range(max(0, len(text) - 4), len(text) + 1)})


def marks(name: str, text: str) -> list[str]:
    """Every whole mark in a text that would be read as a place; of dialects of lists the objects that are JSON."""
    dialect = DIALECTS[name]
    if isinstance(dialect, Json):
        found = [part for part in re.findall(r"\{[^{}]*\}", text) if is_json(part)]
    else:
        found = [match.group() for match in dialect.whole.finditer(text) if (match.lastgroup or "").startswith("f")]
    return [mark for mark in found if dialect.read(mark, SCENE).spans]


def is_json(text: str) -> bool:
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def check(name: str, text: str) -> None:
    dialect, last = DIALECTS[name], Grounded("")
    views = [dialect.read(text[:end], SCENE, final=False) for end in cuts(text)]
    whole = dialect.read(text, SCENE)
    for view in [*views, whole]:
        assert view.text.startswith(last.text), (last.text, view.text)
        assert len(view.spans) >= len(last.spans)
        for old, new in zip(last.spans, view.spans, strict=False):
            assert (old.start, old.end, old.places) == (new.start, new.end, new.places[: len(old.places)])
        assert view.dropped[: len(last.dropped)] == last.dropped
        last = view
    # Words may close up to a mark where one was taken out of them; but no mark that the answer held is left in its
    # words: wherever it stands in the answer, it was read or reported.
    taken = [where for span in whole.spans for where in span.source] + [(it.start, it.end) for it in whole.dropped]
    for mark in marks(name, whole.text) if whole.text else ():
        for at in (found.start() for found in re.finditer(re.escape(mark), text)):
            assert any(start < at + len(mark) and end > at for start, end in taken), (mark, whole.text)
    for span in whole.spans:
        assert 0 <= span.start <= span.end <= len(whole.text)
        for place, (start, end) in zip(span.places, span.source, strict=True):
            box = outline(place)
            assert 0 <= box.x0 <= box.x1 <= 1 and 0 <= box.y0 <= box.y1 <= 1
            assert 0 <= start < end <= len(text)


@pytest.mark.parametrize("name", DIALECTS)
def test_no_broken_answer_breaks_a_reader_or_its_stream(name: str) -> None:
    @settings(max_examples=EACH, deadline=None, database=None)
    @given(st.integers(0, 2**32), st.text(max_size=8))
    def broken(seed: int, tail: str) -> None:
        check(name, answer(name, seed) + tail)

    broken()


@pytest.mark.parametrize("name", DIALECTS)
def test_a_megabyte_is_read_in_time_that_doubles_with_its_length(name: str) -> None:
    """Twice as long takes at most 2.3 times as long: the least of several runs, against the machine's noise."""
    unit = f"{DIALECTS[name].example} and so on, "

    def seconds(count: int) -> float:
        started = time.process_time()
        DIALECTS[name].read(unit * count, SCENE)
        return time.process_time() - started

    count = 20_000 // len(unit)
    ratios = []
    for _ in range(6):
        ratios.append(min(seconds(2 * count) for _ in range(2)) / min(seconds(count) for _ in range(2)))
        if min(ratios) <= 2.3:
            return
    raise AssertionError(f"{name}: {ratios}")


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("piece", ["9", "[", "<"])
def test_a_megabyte_of_one_character_is_no_burden(name: str, piece: str) -> None:
    started = time.process_time()
    DIALECTS[name].read(piece * 1_000_000, SCENE)
    assert time.process_time() - started < 10
