"""The local engine on a dwarf: seen once, prefix kept, streamed, stopped, counted."""

from __future__ import annotations

from dataclasses import replace

import dwarfs
import numpy as np
import pytest
import torch

from mmchat import family
from mmchat.engines.local import LocalEngine, chooser
from mmchat.engines.talks import said
from mmchat.engines.tokens import Growing, Tokens
from mmchat.family import Limits
from mmchat.geometry import Box, Region
from mmchat.prompt import Slot, Turn

FAMILY = family.load("llava")
SHORT = Limits(new_tokens=10)


@pytest.fixture
def engine(dwarf_folder):
    return LocalEngine.open(dwarf_folder("llava"), FAMILY, "fp32", "cpu")


@pytest.fixture(scope="module")
def pixels(picture):
    fitted, _ = FAMILY.frame(FAMILY.dwarf).fit(picture)
    return (fitted,)


def asked(*texts: str):
    """A prompt of questions and answers in turn, the picture in front."""
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], text, images=(0,) if i == 0 else ()) for i, text in enumerate(texts)]
    return FAMILY.template.render(turns, lambda number, region: (f"@{number}",))


def last(generator):
    return list(generator)[-1]


def test_the_same_picture_is_encoded_once(engine, pixels):
    assert [engine.see(pixels, ()).encoder_runs for _ in range(3)] == [1, 0, 0]


def test_a_new_region_costs_no_encoder_pass(engine, pixels):
    engine.see(pixels, ())
    sight = engine.see(pixels, (Region("box", Box(0.1, 0.1, 0.5, 0.5)),))
    assert sight.encoder_runs == 0 and sight.regions == 1 and engine.encoder_runs == 1


def test_another_picture_is_another_sight(engine, pixels):
    other = (np.ascontiguousarray(pixels[0][:, ::-1]),)
    first, second = engine.see(pixels, ()), engine.see(other, ())
    assert first.key != second.key
    assert not torch.equal(first.content.images[0], second.content.images[0])


def test_what_is_said_is_the_librarys_own_greedy_output(engine, pixels):
    sight = engine.see(pixels, ())
    prompt = asked("What is this?")
    ours = last(engine.speak(prompt, sight, SHORT))
    talk, parts = engine._laid_out(prompt, sight.content)
    with torch.inference_mode():
        theirs = engine.model.language.generate(
            inputs_embeds=engine.inputs(parts), max_new_tokens=10, do_sample=False, pad_token_id=0,
            eos_token_id=sorted(engine._ends),
        )[0].tolist()  # fmt: skip
    growing = Growing(engine.tokens)
    for index in theirs:
        if index not in engine._ends:
            growing.add(index, 1.0)
    assert ours.text == said(growing, engine._stops, True)[0]


def test_the_picture_stands_where_its_slot_is(engine, pixels):
    sight = engine.see(pixels, ())
    talk, parts = engine._laid_out(("ab", Slot("image", 0), "c"), sight.content)
    inputs = engine.inputs(parts)[0]
    before = len(engine.tokens.start) + 2
    image = sight.content.images[0]
    assert torch.equal(inputs[before : before + len(image)], image)
    assert len(inputs) == before + len(image) + 1


def test_a_second_turn_reads_only_what_is_new(engine, pixels):
    sight = engine.see(pixels, ())
    first = last(engine.speak(asked("What is this?"), sight, SHORT))
    second = last(engine.speak(asked("What is this?", first.text, "And now?"), sight, SHORT))
    whole = last(engine.speak(asked("What is this?", first.text, "And now?"), sight, replace(SHORT, cache=False)))
    new = len("</s>USER: And now? ASSISTANT:") - len("</s>") + 1  # bytes are tokens, the mark is one
    # The answer's last token was written, but not yet read.
    assert new <= second.counters["prefilled_tokens"] <= new + 1
    assert whole.counters["prefilled_tokens"] > second.counters["prefilled_tokens"] + 100


@pytest.mark.parametrize("questions", [("What is this?", "And now?", "Why?"), ("é", "漢字?", "🙂")])
def test_the_cache_changes_no_text(dwarf_folder, pixels, questions):
    texts = []
    for cache in (True, False):
        engine = LocalEngine.open(dwarf_folder("llava"), FAMILY, "fp32", "cpu")
        talk: list[str] = []
        for question in questions:
            talk.append(question)
            said_ = last(engine.speak(asked(*talk), engine.see(pixels, ()), Limits(new_tokens=8, cache=cache)))
            talk.append(said_.text)
        texts.append(talk)
    assert texts[0] == texts[1]


def test_two_talks_about_one_picture_do_not_mix(engine, pixels):
    sight = engine.see(pixels, ())
    alone = {}
    for question in ("What is this?", "Where is it?"):
        fresh = replace(SHORT, cache=False)
        first = last(engine.speak(asked(question), sight, fresh)).text
        alone[question] = (first, last(engine.speak(asked(question, first, "More?"), sight, fresh)).text)
    firsts = {question: last(engine.speak(asked(question), sight, SHORT)).text for question in alone}
    for question, first in firsts.items():
        second = last(engine.speak(asked(question, first, "More?"), sight, SHORT)).text
        assert (first, second) == alone[question]


def test_asking_again_reads_one_position(engine, pixels):
    sight = engine.see(pixels, ())
    one = last(engine.speak(asked("What is this?"), sight, SHORT))
    two = last(engine.speak(asked("What is this?"), sight, SHORT))
    assert two.text == one.text and two.counters["prefilled_tokens"] == 1


def test_a_picture_seen_anew_is_not_taken_from_the_kept_prefix(engine, pixels):
    one = engine.see(pixels, ())
    last(engine.speak(asked("What is this?"), one, SHORT))
    other = engine.see((np.ascontiguousarray(pixels[0][:, ::-1]),), ())
    cached = last(engine.speak(asked("What is this?"), other, SHORT))
    whole = last(engine.speak(asked("What is this?"), other, replace(SHORT, cache=False)))
    assert cached.text == whole.text
    assert cached.counters["prefilled_tokens"] >= len(other.content.images[0])


def test_text_only_grows(engine, pixels):
    texts = [one.text for one in engine.speak(asked("Say something."), engine.see(pixels, ()), Limits(new_tokens=60))]
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))


def test_half_a_character_is_held_back():
    growing = Growing(Tokens(dwarfs.byte_tokenizer()))
    ids = growing.tokens.ids("a漢b")
    assert [growing.add(index, 0.5) for index in ids] == ["a", "a", "a", "a漢", "a漢b"]
    assert growing.pieces == [(0, 1, 0.5), (1, 2, 0.5), (1, 2, 0.5), (1, 2, 0.5), (2, 3, 0.5)]


def test_bytes_that_are_no_character_do_not_hold_the_text_for_ever():
    growing = Growing(Tokens(dwarfs.byte_tokenizer()))
    byte = growing.tokens.ids("漢")[1]  # never the first of a character
    for index in [byte] * 40 + growing.tokens.ids("ab"):
        growing.add(index, 0.5)
    assert growing.text.endswith("ab") and growing.shown == 42


def test_pieces_cover_the_text_in_order(engine, pixels):
    answer = last(engine.speak(asked("Say something."), engine.see(pixels, ()), Limits(new_tokens=60)))
    ends = [0]
    for start, end, probability in answer.pieces:
        assert start <= ends[-1] <= end and 0 <= probability <= 1
        ends.append(end)
    assert ends[-1] == len(answer.text)


def test_closing_stops_at_the_next_token(engine, pixels):
    steps = []
    step = engine._step
    engine._step = lambda talk, index: steps.append(index) or step(talk, index)
    speaking = engine.speak(asked("Go on."), engine.see(pixels, ()), Limits(new_tokens=200))
    for _ in range(3):
        next(speaking)
    speaking.close()
    assert len(steps) == 2


def test_a_stopped_answer_can_be_gone_on_from(engine, pixels):
    sight = engine.see(pixels, ())
    speaking = engine.speak(asked("Go on."), sight, Limits(new_tokens=30))
    texts = [next(speaking).text for _ in range(12)]
    speaking.close()
    prompt = asked("Go on.", texts[6] or "x", "Why?")  # the page had not yet shown all that was made
    cached = last(engine.speak(prompt, sight, SHORT))
    whole = last(engine.speak(prompt, sight, replace(SHORT, cache=False)))
    assert cached.text == whole.text


@pytest.mark.parametrize(("text", "shown", "stopped"), [("\na cat", "a cat", False), ("\na cat\nb", "a cat", True)])
def test_a_lines_end_ends_an_answer_only_behind_its_first_word(text, shown, stopped):
    growing = Growing(Tokens(dwarfs.byte_tokenizer()))
    for index in growing.tokens.ids(text):
        growing.add(index, 1.0)
    found, _, ended = said(growing, ("\n",), True)
    assert (found, ended) == (shown, stopped)


@pytest.mark.parametrize(
    ("text", "done", "shown", "stopped"),
    [
        ("ab##", False, "ab", False),
        ("ab##", True, "ab##", False),
        ("ab###cd", False, "ab", True),
        (" ab", False, "ab", False),
    ],
)
def test_a_stop_mark_ends_the_text_and_its_beginning_is_held(text, done, shown, stopped):
    growing = Growing(Tokens(dwarfs.byte_tokenizer()))
    for index in growing.tokens.ids(text):
        growing.add(index, 1.0)
    found, pieces, ended = said(growing, ("###",), done)
    assert (found, ended) == (shown, stopped)
    assert all(end <= len(found) for _, end, _ in pieces)


def test_a_prompt_beyond_the_context_is_one_clear_sentence(engine, pixels):
    with pytest.raises(ValueError, match="reads at most 512: shorten"):
        next(engine.speak(asked("x" * 600), engine.see(pixels, ()), SHORT))


def test_greedy_takes_the_likeliest_and_tells_its_probability():
    index, probability = chooser(Limits())(torch.tensor([0.0, 2.0, 1.0]))
    assert index == 1 and probability == pytest.approx(0.66524, abs=1e-4)


def test_a_small_top_p_is_greedy_at_any_temperature():
    choose = chooser(Limits(temperature=5.0, top_p=0.01, seed=3))
    assert {choose(torch.tensor([0.0, 2.0, 1.0]))[0] for _ in range(50)} == {1}


def test_a_seed_gives_the_same_choices():
    logits = torch.zeros(50)
    draws = [[chooser(Limits(temperature=1.0, seed=seed))(logits)[0] for _ in range(1)] for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1] and len({draw[0] for draw in draws}) > 1


@pytest.mark.parametrize("kind", FAMILY.heats)
def test_every_heat_map_is_small_and_in_0_to_1(engine, pixels, kind):
    sight = engine.see(pixels, ())
    prompt = asked("What is this?")
    answer = last(engine.speak(prompt, sight, SHORT))
    about = Region("box", Box(0.2, 0.2, 0.6, 0.6)) if kind == "likeness" else None
    trace = engine.trace(prompt, answer.text, sight, kind, about)
    assert trace.map.dtype == np.float32 and trace.map.shape[:2] == (4, 4)
    assert 0 <= trace.map.min() <= trace.map.max() <= 1 and trace.note


def test_likeness_without_a_region_says_what_to_do(engine, pixels):
    with pytest.raises(ValueError, match="draw one"):
        engine.trace(asked("?"), "", engine.see(pixels, ()), "likeness")


def test_looking_inside_changes_nothing(engine, pixels):
    sight = engine.see(pixels, ())
    before = last(engine.speak(asked("What is this?"), sight, SHORT))
    engine.trace(asked("What is this?"), before.text, sight, "attention")
    after = last(engine.speak(asked("What is this?"), sight, replace(SHORT, cache=False)))
    assert after.text == before.text and engine.model.language.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_four_and_eight_bits_answer(dwarf_folder, pixels, precision):
    engine = LocalEngine.open(dwarf_folder("llava"), FAMILY, precision, "cpu")
    answer = last(engine.speak(asked("What is this?"), engine.see(pixels, ()), SHORT))
    assert answer.done and engine.precision == precision
