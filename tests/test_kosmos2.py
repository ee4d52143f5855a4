"""Kosmos-2's published layout, and its decoder against the library's own whole model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import dwarfs
import published
import pytest
import torch
from transformers import Kosmos2ForConditionalGeneration, Kosmos2Processor

from mmchat.desk import Ask, Desk, Limits
from mmchat.dialect import Grounded, Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.kosmos2 import FAMILY, build, sizes
from mmchat.geometry import Box, Region
from mmchat.golden.kosmos_2 import with_boxes
from mmchat.nets import weights
from mmchat.prompt import Turn, opened

NAMES = (
    (r"^bridge\.", ""), (r"^vision\.", "vision_model.model."), (r"^language\.lm_head.*", ""),
    (r"^language\.", "text_model."),
)  # fmt: skip


def layout(root: Path, kind: str = "safetensors") -> Path:
    """Two shards; the tied head is not stored, as in the published file."""
    state = dwarfs.build(FAMILY).state_dict()
    named = {name: tensor for name, tensor in published.named(state, NAMES).items() if name}
    return published.write(root / "kosmos-2", named, FAMILY.dwarf, kind)


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def folder(request, tmp_path_factory) -> Path:
    return layout(tmp_path_factory.mktemp("kosmos"), request.param)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    assert published.answer(folder, FAMILY, picture, precision).done


def test_a_checkpoint_is_the_librarys_own_model(folder):
    """The same weights in transformers' whole model: the same logits behind the same picture."""
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    ours = engine.model
    theirs = Kosmos2ForConditionalGeneration(sizes(FAMILY.dwarf)).eval()
    state = published.named(ours.state_dict(), (*NAMES[:2], (r"^language\.", "text_model.")))
    missing, left = theirs.load_state_dict(state, strict=False)
    assert not left and all("position" in name for name in missing)
    pixels, slots = torch.randn(1, 3, 56, 56), FAMILY.dwarf["latent_query_num"]
    ids = torch.tensor([[0, 5, *range(10, 10 + slots), 7, 8, 9]])
    mask = torch.zeros_like(ids)
    mask[0, 2 : 2 + slots] = 1
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels, input_ids=ids, image_embeds_position_mask=mask).logits
        embeds = ours.embed(ids)
        embeds[mask.bool()] = ours.see(pixels).images[0]
        assert torch.allclose(ours.language(inputs_embeds=embeds).logits, wanted, atol=1e-5)


def test_what_it_writes_is_what_the_library_generates(folder, picture):
    """Greedy, with the published rule that no three tokens come twice in a row, the prompt's and the picture's too."""
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    theirs = Kosmos2ForConditionalGeneration(sizes(FAMILY.dwarf)).eval()
    named = published.named(engine.model.state_dict(), (*NAMES[:2], (r"^language\.", "text_model.")))
    theirs.load_state_dict(named, strict=False)
    text = "the same words, the same words"
    ask = Ask((picture,), (Turn("user", text),), "continue", Limits(new_tokens=24))
    ready = Desk(engine)._prepare(ask)
    talk, parts = engine._laid_out(ready.prompt, ready.sight.content)
    slots, ids, mask = FAMILY.dwarf["latent_query_num"], [], []
    for part in talk.ids:
        ids += [part] if isinstance(part, int) else range(4, 4 + slots)
        mask += [0] if isinstance(part, int) else [1] * slots
    pixels = torch.from_numpy(FAMILY.frame(FAMILY.dwarf).fit(picture)[0])[None]
    for unique in (3, 0):
        engine.model.unique = unique
        list(engine.speak(ready.prompt, ready.sight, replace(ask.limits, cache=False)))
        said = engine._talks[-1].answer
        wanted = theirs.generate(
            pixel_values=pixels, input_ids=torch.tensor([ids]), image_embeds_position_mask=torch.tensor([mask]),
            max_new_tokens=24, do_sample=False, no_repeat_ngram_size=unique, eos_token_id=sorted(engine.tokens.ends),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        )[0, len(ids) :].tolist()  # fmt: skip
        assert [one for one in wanted if one not in engine.tokens.ends] == said and len(said) > 3
        rows = [tuple((ids + said)[at : at + 3]) for at in range(len(ids + said) - 2)]
        assert any(rows.index(row) < at for at, row in enumerate(rows) if at > len(ids) - 3) == (unique == 0)


def test_the_rule_against_repetitions_is_the_published_files():
    with weights.without_memory():
        told = [build(FAMILY.dwarf | more).unique for more in (
            {}, {"text_config": {**FAMILY.dwarf["text_config"], "no_repeat_ngram_size": 2}},
            {"generation_config": {"no_repeat_ngram_size": 5}}, {"generation_config": {"no_repeat_ngram_size": 0}},
        )]  # fmt: skip
    assert told == [3, 2, 5, 0]


def test_the_published_sizes_are_those_of_the_card():
    config = {
        "model_type": "kosmos-2",
        "text_config": {"layers": 1}, "vision_config": {"num_hidden_layers": 1},
    }  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    assert shapes["language.model.embed_tokens.weight"] == (65037, 2048)
    assert shapes["language.model.layers.0.ffn.fc1.weight"] == (8192, 2048)
    assert shapes["bridge.image_to_text_projection.latent_query"] == (64, 2048)
    assert shapes["bridge.image_to_text_projection.dense.weight"] == (2048, 1024)
    assert shapes["vision.embeddings.position_embedding.weight"] == (257, 1024)


def test_a_region_is_asked_about_with_its_cells():
    region = Region("box", Box(0.1, 0.2, 0.5, 0.75))

    def mention(number, region):
        return FAMILY.mention(number, region, FAMILY.dialect, Scene())

    pieces = FAMILY.template.render((Turn("user", "", (region,), images=(0,)),), mention, "region")
    prompt, lead = opened(pieces)
    said = "".join(piece for piece in prompt if isinstance(piece, str))
    cells = "<object><patch_index_0195><patch_index_0751></object>"
    assert said == f"<image></image> <grounding><phrase> It</phrase>{cells} is"
    assert lead == f"<phrase> It</phrase>{cells} is"


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<phrase> a cup</phrase>", [(0.1, 0.2, 0.3)]), ("<phrase> a cup</phrase>", [(0.1, 0.2)]),
        ("a cup</phrase>", [(1, 34)]), ("<phrase></phrase>", [(1, 34)]),
    ],
)  # fmt: skip
def test_boxes_that_fit_no_phrase_are_refused_as_the_library_does(text, boxes):
    processor = Kosmos2Processor.__new__(Kosmos2Processor)  # without its tokenizer
    processor.boi_token, processor.eoi_token, processor.num_patches_per_side = "<image>", "</image>", 32
    good = with_boxes("<phrase> a cup</phrase>", [(1, 34)])
    theirs = processor.preprocess_examples("<phrase> a cup</phrase>", None, [(1, 34)])
    assert good == theirs.replace(" <patch", "<patch").replace(" </obj", "</obj")
    for put in (with_boxes, lambda *given: processor.preprocess_examples(given[0], None, given[1])):
        with pytest.raises(ValueError):
            put(text, boxes)


def test_a_box_in_a_question_belongs_to_a_phrase():
    """As the library's processor writes boxes: behind a phrase, several of one phrase between one pair of marks."""
    regions = (Region("box", Box(0.1, 0.2, 0.5, 0.75)), Region("box", Box(0.5, 0.5, 1.0, 1.0)))

    def asked(text, task, regions):
        pieces = FAMILY.template.render(
            (Turn("user", text, regions),),
            lambda number, region: FAMILY.mention(number, region, FAMILY.dialect, Scene()), task,
        )  # fmt: skip
        return opened(pieces)

    one, other = "<patch_index_0195><patch_index_0751>", "<patch_index_0528><patch_index_1023>"
    (question,), _ = asked("What is @1 on?", "free", regions)
    assert question == f"<grounding> Question: What is<phrase> it</phrase><object>{one}</object> on? Answer:"
    (both,), lead = asked("", "region", regions)
    assert lead == f"<phrase> It</phrase><object>{one}</delimiter_of_multi_objects/>{other}</object> is"
    assert both == f"<grounding>{lead}"
    (apart,), _ = asked("Is @1 near @2?", "free", regions)
    assert apart.count("<phrase> it</phrase><object>") == 2 and "Is<phrase>" in apart and " near<phrase>" in apart


# The model goes on with the prompt's last words, which are the beginning of its answer.

SNOWMAN, FIRE = (
    "<object><patch_index_0044><patch_index_0863></object>",
    "<object><patch_index_0005><patch_index_0911></object>",
)
HELD = Box(0.390625, 0.046875, 0.984375, 0.828125)  # both as the library reads them
WARM = Box(0.171875, 0.015625, 0.484375, 0.890625)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(LocalEngine.open(dwarfs.write(FAMILY, tmp_path_factory.mktemp("dwarf")), FAMILY, "fp32", "cpu"))


@pytest.fixture
def scripted(desk, monkeypatch, picture):
    """Answers of a dwarf that writes what a test says, surer of places than of words."""

    def ask(written: str, text: str = "", task: str | None = None, before: tuple[Turn, ...] = (), regions=()) -> list:
        sure = {at for match in re.finditer(r"<object>.*?</object>", written) for at in range(*match.span())}
        script = iter([*desk.engine.tokens.ids(written), *desk.engine.tokens.ends])  # a letter is a token
        chances = (0.9 if at in sure else 0.1 for at in range(1000))
        monkeypatch.setattr("mmchat.engines.local.chooser", lambda limits: lambda logits: (next(script), next(chances)))
        turns = (*before, Turn("user", text, regions))
        return list(desk.answer(Ask((picture,), turns, task, Limits(new_tokens=400))))

    return ask


def test_a_described_picture_is_a_whole_sentence(scripted):
    written = f"<phrase> a snowman</phrase>{SNOWMAN} warming himself by<phrase> a fire</phrase>{FIRE}."
    said = scripted(written, task="describe")
    answer = said[-1]
    assert answer.text == "An image of a snowman warming himself by a fire."
    assert answer.raw == f"An image of{written}"
    assert [(span.start, span.end, span.places) for span in answer.spans] == [(12, 21, (HELD,)), (41, 47, (WARM,))]
    assert answer.scores == (pytest.approx((0.9,)), pytest.approx((0.9,)))
    assert all("An image of a snowman warming".startswith(one.text[:29]) for one in said)


def test_words_that_follow_a_beginning_keep_their_blank(scripted):
    assert scripted(" a cat.", task="describe")[-1].text == "An image of a cat."
    assert (
        scripted("s of cats.", task="describe")[-1].text == "An image ofs of cats."
    )  # what it wrote, not what it ought
    assert scripted(" left.", "The man is", "continue")[-1].text == "The man is left."
    assert scripted(" a cat.", "What?", "free")[-1].raw == "a cat."  # an answer of its own


def test_a_phrase_that_was_looked_for_is_lit_with_its_boxes(scripted, desk):
    answer = scripted(SNOWMAN, "a snowman", "find")[-1]
    assert (answer.text, answer.raw) == ("a snowman", f"<phrase> a snowman</phrase>{SNOWMAN}")
    assert [(span.start, span.end, span.places) for span in answer.spans] == [(0, 9, (HELD,))]
    assert FAMILY.dialect.read(answer.raw) == Grounded(answer.text, answer.spans, answer.dropped)


def test_a_described_region_is_its_subject(scripted):
    region = Region("box", Box(0.1, 0.2, 0.5, 0.75))
    answer = scripted(" a cat.", task="region", regions=(region,))[-1]
    assert answer.text == "It is a cat."
    (span,) = answer.spans
    assert (span.start, span.end, span.places) == (0, 2, (Box(0.109375, 0.203125, 0.484375, 0.734375),))


def test_the_next_turn_says_the_beginning_once(scripted, desk, picture, monkeypatch):
    """An earlier answer stands behind what was asked, not behind the words that it begins with."""
    for text, task, lead in (
        ("", "describe", " An image of"),
        ("the cup", "find", "<phrase> the cup</phrase>"),
        ("The man", "continue", " The man"),
    ):
        answer = scripted(" so.", text, task)[-1]
        before = (Turn("user", text, task=task), Turn("assistant", answer.raw))
        prompt = desk._prepare(Ask((picture,), (*before, Turn("user", "Why?")), "free")).prompt
        said = "".join(piece for piece in prompt if isinstance(piece, str))
        assert said == f"<image></image> <grounding>{lead} so. Question: Why? Answer:"
        assert opened(prompt) == (prompt, "")
    before = (Turn("user", "Who is it?"), Turn("assistant", "A man."))
    prompt = desk._prepare(Ask((picture,), (*before, Turn("user", "the man")), "find")).prompt
    assert opened(prompt)[0][-1] == "</image> Who is it? A man.<grounding><phrase> the man</phrase>"


def test_a_talk_is_one_text(desk, picture):
    """As recorded: questions and answers in a row, boxes switched on once."""
    said = (("where is the man?", "on the street."), ("and the dog?", "near the man."))
    turns = tuple(
        turn for text, answer in said for turn in (Turn("user", text, task="free"), Turn("assistant", answer))
    )
    prompt = desk._prepare(Ask((picture,), (*turns, Turn("user", "red or blue?")), "free")).prompt
    assert prompt[-1] == (
        "</image> <grounding> Question: where is the man? Answer: on the street. Question: and the dog? "
        "Answer: near the man. Question: red or blue? Answer:"
    )


def test_a_talk_goes_on_from_what_was_kept(scripted, desk, picture):
    """The ids of a completed sentence are used again, and a talk read anew says the same."""
    answer = scripted(" a cat.", task="describe")[-1]
    turns = (Turn("user", "", task="describe"), Turn("assistant", answer.raw), Turn("user", "Why?"))
    prompt = desk._prepare(Ask((picture,), turns, "free"))
    talk, _ = desk.engine._laid_out(prompt.prompt, prompt.sight.content)
    texts = [part for part in talk.ids if isinstance(part, int)]
    wanted = "<image></image> <grounding> An image of a cat. Question: Why? Answer:"
    assert desk.engine.tokens.text(texts) == "<s>" + wanted


def test_heat_is_about_what_the_model_wrote(scripted, desk, picture, monkeypatch):
    answer = scripted(" a cat.", task="describe")[-1]
    asked = []
    monkeypatch.setattr(desk.engine, "trace", lambda prompt, text, *rest: asked.append((prompt, text)))
    desk.trace(Ask((picture,), (Turn("user", ""),), "describe"), answer, FAMILY.heats[0])
    ((prompt, text),) = asked
    assert text == " a cat." and opened(prompt)[1] == "An image of"
