"""Texts become the ids that the originals' own tokenizers give, piece by piece: SentencePiece, Llama 3."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dwarfs
import pytest
import regex
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mmchat import family
from mmchat.engines.local import LocalEngine
from mmchat.engines.tokens import Growing, Tokens
from mmchat.golden.llava import pieces as slots_of
from mmchat.prompt import Slot, Template, Turn
from mmchat.templates import TEMPLATES

BESIDE = Path(__file__).resolve().parent / "tokenizers"
RECORDED = json.loads((BESIDE / "recorded.json").read_text("utf-8"))
TURNS = (Turn("user", "What is here?", images=(0,)), Turn("assistant", "A red bus."), Turn("user", "And [0.1, 0.2]?"))

FAMILIES = {  # of those that ship, the ones whose checkpoints have Llama's slow tokenizer: the recorded talk's template
    "llava": "vicuna_v1", "mmfuser": "vicuna_v1", "convllava": "vicuna_v1", "shikra": "shikra",
    "minigpt_v2": "minigpt_v2", "honeybee": "honeybee_polite",
}  # fmt: skip


@pytest.fixture
def slow(tmp_path) -> Callable[..., Tokens]:
    """The tokenizer of a folder as old checkpoints have it: tokenizer.model, two small files of settings beside it."""

    def read(legacy: bool | None, added: list[str] = (), config: dict | None = None, **settings: object) -> Tokens:
        write(tmp_path, legacy, added, **settings)
        return Tokens.read(tmp_path, config or {})

    return read


def write(folder: Path, legacy: bool | None, added: list[str] = (), **settings: object) -> None:
    shutil.copy(BESIDE / "tokenizer.model", folder)
    about = {"tokenizer_class": "LlamaTokenizer", **settings} | ({} if legacy is None else {"legacy": legacy})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if added:
        ids = {text: 640 + index for index, text in enumerate(added)}
        shuffled = dict(sorted(ids.items(), key=lambda item: item[0]))  # a file's order says nothing
        (folder / "added_tokens.json").write_text(json.dumps(shuffled))


def laid_out(tokens: Tokens, template: Template, prompt: list[str | Slot]) -> list[int]:
    """The ids as the engine lays them out (test_the_engine_lays_out_what_was_recorded); -1 for a picture."""
    ids = list(tokens.start)
    for number, piece in enumerate(prompt):
        if isinstance(piece, Slot):
            ids.append(-1)
            continue
        for part in template.cut(piece):
            ids += tokens.ids(part, template.dummy_space or number == 0)
    return ids


def told(entry: dict) -> str:
    return f"{entry.get('template', '')}{'legacy' if entry['legacy'] else 'new'} {entry.get('text', '')[:30]!r}"


# SentencePiece


@pytest.mark.parametrize("legacy", [True, False])
def test_texts_give_the_ids_that_the_library_gives(legacy, slow):
    tokens = slow(legacy)
    entries = [entry for entry in RECORDED["texts"] if entry["legacy"] == legacy]
    wrong = [entry["text"] for entry in entries if tokens.ids(entry["text"]) != entry["ids"]]
    assert len(entries) > 80 and not wrong


def test_files_that_say_nothing_of_it_are_legacy(slow):
    entries = [entry for entry in RECORDED["texts"] if entry["legacy"]]
    tokens = slow(None)
    assert [tokens.ids(entry["text"]) for entry in entries] == [entry["ids"] for entry in entries]
    others = [entry["ids"] for entry in RECORDED["texts"] if not entry["legacy"]]
    assert [entry["ids"] for entry in entries] != others


@pytest.mark.parametrize("entry", RECORDED["added"], ids=lambda entry: f"{entry['system']}-{entry['legacy']}")
def test_added_tokens_are_one_id_each_in_their_order(entry, slow):
    marks = entry["marks"]
    tokens = slow(entry["legacy"], marks)
    assert tokens.ids(entry["text"]) == entry["ids"]
    for index, mark in enumerate(marks):
        assert tokens.token(mark) == 640 + index and tokens.ids(mark, dummy_space=False) == [640 + index]
        assert tokens.ids(mark) == [640 + index] and tokens.text([640 + index]) == mark


def test_marks_in_the_settings_count_as_those_in_the_list(slow, tmp_path):
    decoder = {str(640 + index): {"content": mark, "special": True} for index, mark in enumerate(["<x>", "<y>"])}
    tokens = slow(False, [], added_tokens_decoder=decoder)
    assert tokens.ids("<x> a<y>")[0] == 640 and tokens.ids("<x> a<y>")[-1] == 641


def test_a_gap_in_the_added_tokens_is_told(slow, tmp_path):
    write(tmp_path, True)
    (tmp_path / "added_tokens.json").write_text('{"<b>": 642, "<a>": 640}')
    with pytest.raises(ValueError, match="<b> has the id 642, but it would be 641.*download added_tokens.json"):
        Tokens.read(tmp_path, {})


@pytest.mark.parametrize("cut", [5, 100, 4000, 9000])
def test_a_tokenizer_that_is_cut_off_is_told(cut, slow, tmp_path):
    write(tmp_path, True)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="tokenizer.model"):
        Tokens.read(tmp_path, {})


def test_the_start_and_the_end_are_the_files_own(slow):
    tokens = slow(False)
    assert tokens.start == (1,) and tokens.ends == {2}
    assert slow(False, add_bos_token=False).start == ()


def test_words_of_a_user_hold_no_marks(slow):
    for legacy in (True, False):
        ids = slow(legacy).letters("yes</s>")
        assert 2 not in ids and slow(legacy).text(ids) == "yes</s>"


@pytest.mark.parametrize("legacy", [True, False])
def test_an_answers_ids_become_its_text_letter_by_letter(legacy, slow):
    tokens, text = slow(legacy), "A red bus, \u4e16\u754c \U0001f600 at [0.10, 0.20]."
    growing = Growing(tokens)
    for index in tokens.ids(text):
        growing.add(index, 1.0)
    assert growing.text.removeprefix(" ") == text


# the families' rules


@pytest.mark.parametrize("entry", RECORDED["talks"], ids=told)
def test_a_talk_is_tokenized_as_the_original_does(entry, slow):
    tokens = slow(entry["legacy"], entry["added"])
    template = TEMPLATES[entry["template"]]
    if entry["template"] == "honeybee_polite":
        template = family.load("honeybee").template
    ids = laid_out(tokens, template, template.render(TURNS, lambda number, region: ()))
    assert ids == entry["ids"] and ids.count(-1) == 1
    if entry["template"] == "minigpt_v2":
        assert ids[:2] == [1, 1]


def test_the_whole_string_at_once_would_give_other_ids(slow):
    """What the rules are for."""
    entry = next(one for one in RECORDED["talks"] if one["template"] == "honeybee_polite" and not one["legacy"])
    plain = slots_of(entry["prompt"])
    assert laid_out(slow(False), TEMPLATES["vicuna_v1"], plain) != entry["ids"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("legacy", [True, False])
def test_the_engine_lays_out_what_was_recorded(name, legacy, tmp_path):
    record = family.load(name)
    (entry,) = (one for one in RECORDED["talks"] if one["template"] == FAMILIES[name] and one["legacy"] == legacy)
    config = dict(record.dwarf)
    sizes = {"vocab_size": 760, "max_position_embeddings": 1024}
    config |= {"text_config": dict(config["text_config"]) | sizes} if "text_config" in config else sizes
    folder = dwarfs.write(replace(record, dwarf=config), tmp_path / "dwarf")
    (folder / "tokenizer.json").unlink()
    write(folder, legacy, entry["added"])
    engine = LocalEngine.open(folder, record, "fp32", "cpu")
    side = record.frame(config).side
    seen = engine.model.see(torch.zeros(1, 3, side, side))
    _, parts = engine._laid_out(record.template.render(TURNS, lambda number, region: ()), seen)
    assert [part if isinstance(part, int) else -1 for part in parts] == entry["ids"]


# Llama 3's

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HEADS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory) -> tuple[Tokens, dict[bytes, int]]:
    """A tokenizer.json of Llama 3's kind, trained on the spot, and its ranks: the bytes of each token."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [entry["prompt"] for entry in RECORDED["talks"]] + [entry["text"] for entry in RECORDED["texts"]]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    ranks = {letters(text): index for text, index in made.get_vocab().items()}
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in HEADS])
    start = HEADS[0]
    single = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))])
    made.post_processor = single
    folder = tmp_path_factory.mktemp("llama3")
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert len(ranks) == 500
    return Tokens.read(folder, {}), ranks


def letters(spelled: str) -> bytes:
    """The bytes that a token's letters stand for in a byte-level file."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}
    return bytes(table[one] for one in spelled)


def tiktoken(text: str, ranks: dict[bytes, int]) -> list[int]:
    """What tiktoken does: words by the pattern, in each the neighbours of the lowest rank joined first."""
    ids = []
    for word in regex.findall(LLAMA_3, text):
        whole = word.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while True:
            pairs = [(ranks.get(one + other, 1 << 30), at) for at, (one, other) in enumerate(pairwise(parts))]
            if not pairs or min(pairs)[0] == 1 << 30:
                break
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_llama_3s_words_are_cut_and_joined_as_tiktoken_does(llama_3):
    tokens, ranks = llama_3
    texts = [entry["text"] for entry in RECORDED["texts"]] + ["I'll don't 12345 x\r\n\r\n  y", "  lead"]
    assert [tokens.ids(text) for text in texts] == [tiktoken(text, ranks) for text in texts]
    assert [tokens.ids(text, dummy_space=False) for text in texts] == [tokens.ids(text) for text in texts]


def test_a_llama_3_prompt_begins_with_two_starts_as_in_training(llama_3):
    tokens, ranks = llama_3
    template = TEMPLATES["llama3"]
    prompt = template.render(TURNS, lambda number, region: ())
    ids = laid_out(tokens, template, prompt)
    heads = {mark: tokens.token(mark) for mark in HEADS}
    assert list(heads.values()) == list(range(500, 506)) and tokens.start == (500,) and 504 in tokens.ends
    assert ids[:3] == [500, 500, 502]
    expected = [500]
    for piece in prompt:
        if isinstance(piece, Slot):
            expected.append(-1)
            continue
        for part in re.split("(" + "|".join(map(re.escape, HEADS)) + ")", piece):
            expected += [heads[part]] if part in heads else tiktoken(part, ranks)
    assert ids == expected and ids.count(-1) == 1
    assert all(tokens.ids(mark) == [heads[mark]] for mark in HEADS)


def test_the_engine_lays_out_llama_3s_talk_so(llama_3, tmp_path):
    tokens, _ = llama_3
    record = family.load("inf_llava")
    folder = dwarfs.write(replace(record, dwarf=dict(record.dwarf) | {"vocab_size": 506}), tmp_path / "dwarf")
    tokens.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": HEADS[0], "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    engine = LocalEngine.open(folder, record, "fp32", "cpu")
    side = record.frame(record.dwarf).side
    prompt = record.template.render(TURNS, lambda number, region: ())
    _, parts = engine._laid_out(prompt, engine.model.see(torch.zeros(1, 3, side, side)))
    ids = [part if isinstance(part, int) else -1 for part in parts]
    assert ids == laid_out(tokens, TEMPLATES["llama3"], TEMPLATES["llama3"].render(TURNS, lambda number, region: ()))
    assert 504 in engine._ends
