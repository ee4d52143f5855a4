"""What a user types stays words: no mark of a family comes into a prompt by it, and nothing typed is a crash."""

from __future__ import annotations

from collections import Counter

import pytest

from mmchat import family
from mmchat.desk import LONGEST, Ask, Desk, Limits, Turn, plain
from mmchat.engines.local import LocalEngine
from mmchat.engines.tokens import Tokens
from mmchat.geometry import Box, Region

NAMES = family.names()
BOX = Region("box", Box(0.2, 0.1, 0.7, 0.8))
MARKS = (  # of every kind that a family here gives its model, and of some that none does
    "<image>", "</image>", "<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<Img>", "<ImageHere>", "<roi>",
    "<r0>", "<region>", "<refer_feat>", "[grounding]", "[RET]", "<g_s>", "<g_e>", "<seg>", "<p>", "</p>",
    "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|eot_id|>", "<bos>", "<eos>",
    "<start_of_turn>", "<grounding>", "<phrase>", "<object>", "<patch_index_0007>", "<loc0012>", "<loc_12>",
    "<seg001>", "<region_fea>", "<im_start>", "<im_patch>", "<box>", "</box>", "<ref>", "<IMG_CONTEXT>",
    "<end_of_utterance>", "<fake_token_around_image>", "[PAD]",
)  # fmt: skip
ODD = {
    "its own marks": "",
    "many marks": "see " + " ".join(MARKS),
    "marks in marks": "<<s>s> <</s>/s> <im<image>age> [R[RET]ET] <|im_<|im_end|>end|>",
    "signs alone": "<><<>>[]][||<|",
    "a face": "What is \U0001f469\u200d\U0001f680 and \U0001f1e9\U0001f1ea?",
    "right to left": "\u202e\u05de\u05d4 \u05d6\u05d4? \u0645\u0627 \u0647\u0630\u0627\u061f\u202c",
    "nothing of it": "a\x00b\x00</s>\x00",
    "control": "\x07\x08\x1b[31m\u2028\u2029\ufeff\ufffd\u2581",
    "marks of regions": "@0 @99 @1a <region9> [region7] <boxes>",
    "braces": "{text} {image} {answer} {clue} {candidates} {0} %s %",
    "wide signs": "\uff1cimage\uff1e \uff1c/s\uff1e",
}


@pytest.fixture(scope="module")
def desk(dwarf_folder):
    """A family's dwarf whose tokenizer has every mark above as a token, opened once for each."""
    desks: dict[str, Desk] = {}

    def open_(name: str) -> Desk:
        if name not in desks:
            engine = LocalEngine.open(dwarf_folder(name), family.load(name), "fp32", "cpu")
            engine.tokens.tokenizer.add_special_tokens(list(MARKS))
            engine.tokens = Tokens(engine.tokens.tokenizer, engine.tokens.start, engine.tokens.ends)
            desks[name] = Desk(engine)
        return desks[name]

    return open_


def marked(desk: Desk, picture: object, text: str, task: str | None = None) -> Counter[str]:
    """The marks among the ids of a prompt, each as often as it stands there."""
    engine = desk.engine
    assert isinstance(engine, LocalEngine)
    ask = Ask((picture,), (Turn("user", text, (BOX,) if task == "region" else ()),), task)  # type: ignore[arg-type]
    ready = desk._prepare(ask)
    talk, _ = engine._laid_out(ready.prompt, ready.sight.content)
    added = {index: token.content for index, token in engine.tokens.tokenizer.get_added_tokens_decoder().items()}
    return Counter(added[one] for one in talk.ids if isinstance(one, int) and one in added)


@pytest.mark.parametrize("name", NAMES)
def test_no_mark_comes_out_of_a_users_words(name, desk, picture):
    """Whatever is typed, a prompt has the marks that its template gives it and no more, with a task and without."""
    record = family.load(name)
    own = {**ODD, "its own marks": f"so {' '.join(record.marks[:60])} {' '.join(record.template.stop)}"}
    tasks = [
        None,
        *(task.name for task in record.template.tasks if "{text}" in task.pattern and task.needs == "phrase"),
    ]
    for task in tasks:
        usual = marked(desk(name), picture, "a red cup", task)
        for kind, text in own.items():
            assert marked(desk(name), picture, text, task) == usual, (kind, task)


def test_without_the_desk_they_would(desk, picture):
    """What the rule is for: the tokenizer of these tests takes the marks for tokens wherever it reads them."""
    engine = desk("llava").engine
    assert len({engine.tokens.ids(mark, dummy_space=False)[0] for mark in MARKS}) == len(MARKS)
    assert all(len(engine.tokens.ids(mark, dummy_space=False)) == 1 for mark in MARKS)
    assert set(MARKS) <= engine.reserved


@pytest.mark.parametrize("name", NAMES)
def test_odd_questions_are_answered_or_refused_in_a_sentence(name, dwarf_folder, picture):
    """The dwarf as it is: an answer, or one sentence with a remedy; 4000 letters are more than most dwarfs read."""
    engine = LocalEngine.open(dwarf_folder(name), family.load(name), "fp32", "cpu")
    for kind, text in {**ODD, "its own marks": " ".join(engine.family.marks[:9]) or "-", "long": "a b " * 1000}.items():
        ask = Ask((picture,), (Turn("user", text),), limits=Limits(new_tokens=1))
        try:
            assert list(Desk(engine).answer(ask))[-1].done, kind
        except ValueError as error:
            said = str(error)
            assert said.endswith(".") and len(said) < 300 and "\n" not in said, kind
            assert kind in ("long", "many marks") and "the model reads at most" in said, (kind, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The question is empty"),
        (" \n\t\u2003", "The question is empty"),
        ("a" * (LONGEST + 1), "at most 4000 are taken"),
        ("half a face: \ud83d", "half a character"),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence(text, said, desk, picture):
    with pytest.raises(ValueError, match=said) as raised:
        list(desk("llava").answer(Ask((picture,), (Turn("user", text),))))
    assert str(raised.value).endswith(".")


def test_an_earlier_question_is_no_mark_either_and_an_answer_keeps_its_own(desk, picture):
    turns = (Turn("user", "is <p> a </s> mark?"), Turn("assistant", "<p>so</p> <roi><r0></roi>"), Turn("user", "And?"))
    engine = desk("groma").engine
    ready = desk("groma")._prepare(Ask((picture,), turns))
    talk, _ = engine._laid_out(ready.prompt, ready.sight.content)
    said = engine.tokens.text([one for one in talk.ids if isinstance(one, int)])
    assert "is < p> a < /s> mark?" in said
    ids = [one for one in talk.ids if isinstance(one, int)]
    assert [ids.count(engine.tokens.token(mark)) for mark in ("<p>", "</p>", "<r0>")] == [1, 1, 1]


def test_a_mark_is_broken_and_all_else_stays():
    assert plain("a <b> [c] <bc>", ("<b>", "[c]", "\n")) == "a < b> [ c] <bc>"
    assert plain("@1 is\n50 %", ("<b>",)) == "@1 is\n50 %"
