"""Talks become words and slots; what a user types stays text."""

from __future__ import annotations

import pytest

from mmchat.geometry import Box, Region
from mmchat.prompt import Piece, Slot, Task, Template, Turn, encode, opened
from mmchat.templates import TEMPLATES

REGION = Region("box", Box(0.1, 0.2, 0.3, 0.4))
OTHER = Region("box", Box(0.5, 0.5, 0.6, 0.7))
PLAIN = Template("S ", "U: {text} ", "A: {text}</s>", tasks=(
    Task("free", "Ask"),
    Task("find", "Find", "Where is {text}?"),
    Task("region", "Region", "What is {text}?", needs="region"),
    Task("describe", "Describe", "Describe.", needs=""),
))  # fmt: skip


def mention(number: int, region: Region) -> tuple[str | Slot, ...]:
    return (f"[{region.box.x0:g}]", Slot("region", number - 1))


def test_a_user_who_types_a_mark_types_letters() -> None:
    prompt = PLAIN.render((Turn("user", "what is <image> {image} {text}", images=(0,)),), mention)
    assert prompt == ("S U: ", Slot("image", 0), "\nwhat is <image> {image} {text} A:")


def test_pictures_stand_where_the_turn_shows_them() -> None:
    turns = (Turn("user", "one", images=(0,)), Turn("assistant", "yes"), Turn("user", "two", images=(1, 2)))
    prompt = PLAIN.render(turns, mention)
    assert [piece for piece in prompt if isinstance(piece, Slot)] == [Slot("image", index) for index in range(3)]
    assert prompt[2] == "\none A: yes</s>U: "


def test_mentions_are_counted_over_the_whole_talk() -> None:
    turns = (Turn("user", "@1?", (REGION,)), Turn("assistant", "@2 is mine"), Turn("user", "and @2, not @1", (OTHER,)))
    prompt = PLAIN.render(turns, mention)
    assert [piece.index for piece in prompt if isinstance(piece, Slot)] == [0, 1, 0]
    assert any(isinstance(piece, str) and "A: @2 is mine</s>" in piece for piece in prompt)


@pytest.mark.parametrize("text", ["@3", "a@1.org", "@1st", "@@1", "@0"])
def test_what_names_no_region_stays_text(text: str) -> None:
    assert PLAIN.render((Turn("user", text, (REGION,)),), mention) == (f"S U: {text} A:",)


def test_a_task_wraps_the_last_user_turn_only() -> None:
    turns = (Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", " the bus "))
    assert PLAIN.render(turns, mention, "find") == ("S U: hello A: hi</s>U: Where is the bus? A:",)


def test_a_region_task_takes_the_drawn_region_when_none_is_named() -> None:
    turns = (Turn("user", "x @1", (REGION,)), Turn("assistant", "a"), Turn("user", "", (OTHER,)))
    assert PLAIN.render(turns, mention, "region")[-1] == "? A:"
    assert Slot("region", 1) in PLAIN.render(turns, mention, "region")


@pytest.mark.parametrize(("task", "said"), [("region", "draw one"), ("find", "needs some words"), ("sing", "no task")])
def test_a_task_that_lacks_something_says_what(task: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PLAIN.render((Turn("user", ""),), mention, task)


def test_a_task_without_needs_takes_an_empty_question() -> None:
    assert PLAIN.render((Turn("user", ""),), mention, "describe") == ("S U: Describe. A:",)


def test_a_closed_talk_does_not_invite_an_answer() -> None:
    assert PLAIN.render((Turn("user", "q"), Turn("assistant", "a")), mention) == ("S U: q A: a</s>",)


def test_a_template_for_one_question_refuses_an_answer() -> None:
    with pytest.raises(ValueError, match="no answer"):
        TEMPLATES["plain"].render((Turn("user", "q"), Turn("assistant", "a")), mention)


def test_clue_and_candidates_become_slots() -> None:
    template = Template("", "{text}{clue}", image="{image}{candidates}{text}")
    prompt = template.render((Turn("user", "the bus", images=(0,)),), mention)
    assert prompt == (Slot("image", 0), Slot("region", -1), "the bus", Slot("clue", 0, "the bus"))


def test_an_unknown_field_in_a_place_is_named() -> None:
    with pytest.raises(ValueError, match="image"):
        Template("", "{image}{text}").render((Turn("user", "q"),), mention)


def test_every_piece_is_tokenized_for_itself() -> None:
    ids = encode(("ab", Slot("image", 1), "c"), lambda text: [len(text)], start=[1])
    assert ids == [1, 2, Slot("image", 1), 1]


@pytest.mark.parametrize("name", sorted(name for name, form in TEMPLATES.items() if form.assistant is not None))
def test_a_talk_goes_on_with_what_stood_before(name: str) -> None:
    """The prompt of a later turn begins with the earlier prompt and its answer: so the words read once are kept."""
    template = TEMPLATES[name]
    first = template.render((Turn("user", "one", images=(0,)),), mention)
    turns = (Turn("user", "one", images=(0,)), Turn("assistant", "yes"), Turn("user", "two"))
    later = template.render(turns, mention)
    assert later[: len(first) - 1] == first[:-1] and later[len(first) - 1].startswith(first[-1])


def test_an_answer_not_yet_said_leaves_its_cue() -> None:
    turns = (Turn("user", "one"), Turn("assistant", ""), Turn("user", "two"))
    assert PLAIN.render(turns, mention) == ("S U: one A:U: two A:",)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("What is <region1>?", "What is one?"),
        ("What is [region0]?", "What is one?"),
        ("Compare <boxes>.", "Compare one two."),
        ("What is <region3>?", "What is <region3>?"),
        ("What is [region2]?", "What is [region2]?"),
    ],
)
def test_regions_may_be_named_as_users_of_other_systems_do(text: str, written: str) -> None:
    turns = (Turn("user", text, (REGION, OTHER)),)
    prompt = Template().render(turns, lambda number, region: (("one", "two")[number - 1],))
    assert prompt == (written,)


def test_boxes_without_a_region_stay_words() -> None:
    assert Template().render((Turn("user", "two <boxes>"),), lambda number, region: ("never",)) == ("two <boxes>",)


# tasks whose answer begins with words of the prompt

GOES_ON = Template(
    "", "{text}", " {text}",
    tasks=(
        Task("free", "Ask"), Task("tell", "Tell", "<g>{answer} An image of", ""),
        Task("find", "Find", "<g>{answer}<p> {text}</p>"), Task("region", "Region", "{answer}It {text} is", "region"),
    ),
)  # fmt: skip


def test_a_lead_stands_at_the_end_of_a_prompt_and_begins_the_answer() -> None:
    prompt = GOES_ON.render((Turn("user", "the bus", images=(0,)),), mention, "find")
    assert prompt[-1] == Slot("lead", 0, "<p> the bus</p>")
    assert opened(prompt) == ((Slot("image", 0), "\n<g><p> the bus</p>"), "<p> the bus</p>")
    assert opened(GOES_ON.render((Turn("user", ""),), mention, "tell")) == (("<g> An image of",), "An image of")
    assert opened(GOES_ON.render((Turn("user", "what?"),), mention)) == (("what?",), "")
    assert opened(()) == ((), "")


def test_a_user_who_writes_the_field_writes_words() -> None:
    prompt, lead = opened(GOES_ON.render((Turn("user", "{answer} {text}"),), mention, "find"))
    assert prompt == ("<g><p> {answer} {text}</p>",) and lead == "<p> {answer} {text}</p>"


def test_an_answer_cannot_begin_with_vectors() -> None:
    with pytest.raises(ValueError, match="cannot begin with a region's vector"):
        GOES_ON.render((Turn("user", "", (REGION,)),), lambda number, region: (Slot("region", 0),), "region")


@pytest.mark.parametrize(
    ("task", "asked", "said", "told"),
    [
        ("tell", "", "An image of a bus.", "<g> An image of a bus. Next"),
        ("find", "the bus", "<p> the bus</p> here", "<g> <p> the bus</p> here Next"),
        ("find", "the bus", "", "<g><p> the bus</p> Next"),  # stopped before its first word
        (None, "What is it?", "An image of a bus.", "What is it? An image of a bus. Next"),
        ("free", "What is it?", "An image of a bus.", "What is it? An image of a bus. Next"),
        ("unknown", "What is it?", "A bus.", "What is it? A bus. Next"),
    ],
)
def test_what_an_answer_begins_with_is_told_once(task: str | None, asked: str, said: str, told: str) -> None:
    turns = (Turn("user", asked, task=task), Turn("assistant", said), Turn("user", " Next"))
    assert GOES_ON.render(turns, mention) == (told,)


def test_an_earlier_turn_stands_as_it_was_asked() -> None:
    """In its task's words, about the regions that there were then, its picture where the task puts it."""
    tasks = (
        Task("find", "Find", "Where is {text}?"), Task("region", "Region", "What is {text}?", "region"),
        Task("look", "Look", "In {image} find {text}."),
    )  # fmt: skip
    template = Template("", "U: {text}\n", "A: {text}\n", tasks=tasks)

    def asked(*turns: Turn, task: str | None = None) -> tuple[Piece, ...]:
        return template.render((*turns, Turn("user", "Why?", (REGION,))), mention, task)

    said = Turn("assistant", "there")
    assert asked(Turn("user", "a cup", task="find"), said) == ("U: Where is a cup?\nA: there\nU: Why?\nA:",)
    first = asked(Turn("user", "", (REGION,), task="region"), said)
    assert first == ("U: What is [0.1]", Slot("region", 0), "?\nA: there\nU: Why?\nA:")
    picture = asked(Turn("user", "a cup", images=(0,), task="look"), said)
    assert picture == ("U: In ", Slot("image", 0), " find a cup.\nA: there\nU: Why?\nA:")


def test_a_form_of_one_question_shows_the_last_one_alone() -> None:
    """A second question about a picture is asked as the first one was: without what was said before."""
    template = Template("", "{text}</s>", None, image="{image}{text}", tasks=(Task("find", "Find", "find {text}"),))
    before = (Turn("user", "a cup", (REGION,), images=(0,), task="find"), Turn("assistant", "there"))
    asked = template.render((*before, Turn("user", "the dog")), mention, "find")
    assert asked == (Slot("image", 0), "find the dog</s>")
    about = template.render((*before, Turn("user", "@1", (OTHER,))), mention, "find")
    assert about == (Slot("image", 0), "find [0.1]", Slot("region", 0), "</s>")
