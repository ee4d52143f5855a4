"""How pocket is made: scenes, phrases, questions, the cut language model, packing. Drawn shapes and dwarfs, nothing
downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from PIL import Image, ImageDraw  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from mmchat.dialect import DIALECTS  # noqa: E402
from mmchat.dialect.spans import Scene as Places  # noqa: E402
from mmchat.geometry import Box  # noqa: E402
from mmchat.nets.clue import Clue, Seen, write_clue  # noqa: E402
from mmchat.train import cut, language, pack  # noqa: E402
from mmchat.train.compose import CutOut, colour_word, compose, line, load_cutouts, write  # noqa: E402
from mmchat.train.phrases import Thing, above, fits, left_of, phrases, related  # noqa: E402
from mmchat.train.questions import article, ask, follow, invented  # noqa: E402
from mmchat.train.words import COLOURS, Noun, catalogue, plural_of, read, with_article  # noqa: E402

CUP = Noun("cup", ("mug",), ("dish",), False, ("t:cup",))
DOG = Noun("dog", ("hound",), ("animal",), False, ("t:dog",))
CAT = Noun("cat", ("kitty",), ("animal",), False, ("t:cat",))
HAT = Noun("hat", (), ("clothing",), False, ("t:hat",))
NOUNS = (CUP, DOG, CAT, HAT)


def shape(noun: Noun, colour: str, round_: bool = True) -> CutOut:
    """A drawn thing on nothing."""
    image = Image.new("RGBA", (60, 50))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if round_ else draw.rectangle)((1, 1, 58, 48), fill=colour)
    return CutOut(noun, image, colour if colour in COLOURS else None)


SHAPES = (shape(CUP, "red"), shape(DOG, "black"), shape(CAT, "blue", False), shape(HAT, "green"))


# --- words ---------------------------------------------------------------------------------------------------------


def test_the_catalogue_reads_and_no_name_stands_twice() -> None:
    names = [noun.name for noun in catalogue()]
    assert len(names) > 500
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert all(noun.hypernyms and noun.sources for noun in catalogue())


def test_a_line_that_does_not_parse_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        read("[animal]\n~ = +\n")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("apple", "an apple"),
        ("cup", "a cup"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("UFO", "a UFO"),
    ],
)
def test_articles_follow_the_sound(word: str, said: str) -> None:
    assert with_article(word) == said


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("berry", "berries"),
        ("mouse", "mice"),
        ("cup of coffee", "cups of coffee"),
        ("police car", "police cars"),
        ("fireman", "firemen"),
        ("polar bear", "polar bears"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural_of(one) == many


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("dog", "a dog"),
        ("dogs", "dogs"),
        ("octopus", "an octopus"),
        ("the dog", "the dog"),
        ("scissors", "scissors"),
        ("apple on the left", "an apple on the left"),
        ("man wearing glasses", "a man wearing glasses"),
    ],
)
def test_a_phrase_gets_the_article_of_its_head(phrase: str, said: str) -> None:
    assert article(phrase) == said


# --- scenes --------------------------------------------------------------------------------------------------------


def test_a_scene_follows_from_its_seed() -> None:
    one, two, other = compose(7, SHAPES, ()), compose(7, SHAPES, ()), compose(8, SHAPES, ())
    assert one.image.tobytes() == two.image.tobytes()
    assert (one.things, one.phrases) == (two.things, two.phrases)
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_tight_and_inside(seed: int) -> None:
    scene = compose(seed, SHAPES, ())
    assert scene.things
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        assert 0 <= x0 < x1 <= scene.image.width and 0 <= y0 < y1 <= scene.image.height


@pytest.mark.parametrize("seed", range(12))
def test_every_phrase_fits_one_thing_or_nothing(seed: int) -> None:
    scene = compose(seed, SHAPES, ())
    texts = [
        phrase.text.lower().removeprefix("the ").removeprefix("an ").removeprefix("a ") for phrase in scene.phrases
    ]
    assert len(texts) == len(set(texts))
    for phrase in scene.phrases:
        absent = phrase.level.startswith("absent")
        assert (phrase.target is None) == absent
        if phrase.level in ("noun", "synonym", "hypernym"):
            assert [index for index, thing in enumerate(scene.things) if fits(phrase.head, thing)] == [phrase.target]
        if phrase.level == "absent":
            assert not any(fits(phrase.head, thing) for thing in scene.things)


def test_sides_and_relations_are_told_as_they_are() -> None:
    left, right = Thing(DOG, (10, 40, 40, 60), "black"), Thing(CUP, (70, 10, 90, 30), "red")
    assert left_of(left, right) and not left_of(right, left)
    assert above(right, left) and not above(left, right)
    assert related("right", right, left) and not related("front", right, left)
    said = {
        phrase.text.split(" ", 1)[-1]: phrase.target
        for seed in range(20)
        for phrase in phrases((left, right), (100, 80), NOUNS, random.Random(seed))
        if phrase.level == "position"
    }
    assert any("left" in text and target == 0 for text, target in said.items())
    assert not any("left" in text and target == 1 for text, target in said.items())


def test_present_and_absent_phrases_begin_alike() -> None:
    starts: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(20):
        for phrase in compose(seed, SHAPES, ()).phrases:
            starts[phrase.target is None].append(phrase.text.startswith("the "))
    shares = [sum(found) / len(found) for found in starts.values()]
    assert abs(shares[0] - shares[1]) < 0.15  # a drawn share of 0.45 each, over some hundred phrases


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((250, 20, 20), "red"),
        ((30, 60, 220), "blue"),
        ((250, 250, 250), "white"),
        ((10, 10, 10), "black"),
        ((120, 70, 30), "brown"),
        ((40, 160, 50), "green"),
    ],
)
def test_plain_colours_get_their_word(rgb: tuple[int, int, int], word: str) -> None:
    assert colour_word(torch.tensor([rgb] * 9, dtype=torch.uint8).numpy()) == word


def test_colours_in_equal_parts_have_no_word() -> None:
    pixels = torch.tensor([(250, 20, 20), (30, 60, 220), (40, 160, 50)] * 5, dtype=torch.uint8).numpy()
    assert colour_word(pixels) is None


def test_writing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stamps = tmp_path / "assets" / "tux"
    stamps.mkdir(parents=True)
    shape(CUP, "red").image.save(stamps / "dog.png")
    assert [cutout.noun.name for cutout in load_cutouts(tmp_path / "assets")] == ["dog"]
    write(tmp_path / "out", 2, 1, tmp_path / "assets", quiet=True)
    first = (tmp_path / "out" / "scenes.jsonl").read_text()
    write(tmp_path / "out", 3, 1, tmp_path / "assets", quiet=True)
    after = (tmp_path / "out" / "scenes.jsonl").read_text()
    assert after.startswith(first) and len(after.splitlines()) == 3
    assert (tmp_path / "out" / json.loads(after.splitlines()[2])["file"]).exists()


def test_a_folder_without_cutouts_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unpack the packages"):
        load_cutouts(tmp_path)


def test_a_scene_as_json_holds_boxes_and_targets() -> None:
    data = json.loads(json.dumps(line(compose(3, SHAPES, ()), "x.jpg")))
    assert data["file"] == "x.jpg" and len(data["objects"][0]["box"]) == 4
    assert all(phrase["object"] is None or phrase["object"] < len(data["objects"]) for phrase in data["phrases"])


# --- questions -----------------------------------------------------------------------------------------------------


def test_the_clue_says_what_was_found() -> None:
    bus = Seen(3, ("bus", "coach"), "red", "left")
    assert write_clue(Clue()) == ""
    assert write_clue(Clue("giraffe", True)) == "\nclue: none of giraffe"
    assert write_clue(Clue("bus", True, (bus,))) == "\nclue: found <r3> bus or coach, red, left"
    assert write_clue(Clue("bus", True, (bus, bus))).startswith("\nclue: found 2 <r3>")
    assert "[0.10,0.20,0.30,0.40] cup" in write_clue(Clue(about=(Seen(None, ("cup",), box=(0.1, 0.2, 0.3, 0.4)),)))


NAMES = [((noun.name, *noun.synonyms), noun.hypernyms, noun.plural) for noun in catalogue()]


@pytest.mark.parametrize("seed", range(40))
def test_every_answer_reads_back_to_the_places_of_its_clue(seed: int) -> None:
    chance = random.Random(seed)
    scene = Places(tuple(Box(0.01 * index, 0.01 * index, 0.5, 0.5) for index in range(28)), (416, 416))
    for _ in range(5):
        one_answer(scene, chance)


def one_answer(scene: Places, chance: random.Random) -> None:
    picture = invented(chance, NAMES)
    said = ask(picture, chance)
    grounded = DIALECTS["pocket"].read(said.answer, scene)
    assert not grounded.dropped
    told = [*said.clue.found, *said.clue.about, *said.clue.seen]
    numbers = {index for span in grounded.spans for index in span.regions}
    assert numbers <= {seen.index for seen in told}
    if said.kind in ("absent", "not there", "count none", "colour absent"):
        assert not grounded.spans and not said.clue.found


def test_a_second_turn_leans_on_the_first() -> None:
    chance = random.Random(1)
    seconds = []
    for _ in range(300):
        picture = invented(chance, NAMES)
        first = ask(picture, chance)
        second = follow(first, picture, chance)
        if second is not None:
            seconds.append((first, second))
    bare = [(first, second) for first, second in seconds if second.clue == Clue() and "It is" in second.answer]
    assert bare, "some second turns must be answerable from the first alone"
    for first, second in bare:
        seen = first.clue.found[0]
        assert any(word in second.answer for word in (seen.colour or "-", seen.words[0]))


# --- the language model --------------------------------------------------------------------------------------------


def spelling() -> dict:
    """tokenizer.json of a byte-level BPE tokenizer learned from the questions themselves."""
    chance = random.Random(0)
    texts = [ask(invented(chance, NAMES), chance).answer for _ in range(300)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="module")
def short() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(cut.shorten(spelling(), 420)))


def dwarf(tokenizer: Tokenizer) -> tuple[dict, dict]:
    """Config and state of a whole Llama of three thin layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 3,
        "vocab_size": 600,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    return sizes, LlamaForCausalLM(LlamaConfig(**sizes)).state_dict()


def test_a_shortened_tokenizer_still_spells_everything(short: Tokenizer) -> None:
    text = "I see <p>the Käfer №5</p><r3><r60> 🐄 zzzq[0.12,0.30]"
    encoded = short.encode(text, add_special_tokens=False)
    assert short.decode(encoded.ids, skip_special_tokens=False) == text
    assert {"<p>", "</p>", "<r3>", "<r60>"} <= set(encoded.tokens)
    assert short.get_vocab_size(with_added_tokens=True) == 420 + len(cut.NEW_TOKENS)
    assert max(encoded.ids) < 420 + len(cut.NEW_TOKENS)


def test_cutting_keeps_the_chosen_layers_in_order(short: Tokenizer) -> None:
    _, state = dwarf(short)
    less = cut.cut_down(state, [2, 0], 420, torch.Generator().manual_seed(0))
    name = "self_attn.q_proj.weight"
    assert torch.equal(less[f"model.layers.0.{name}"], state[f"model.layers.2.{name}"])
    assert torch.equal(less[f"model.layers.1.{name}"], state[f"model.layers.0.{name}"])
    assert not any(".layers.2." in key for key in less)
    assert torch.equal(less["model.embed_tokens.weight"][:420], state["model.embed_tokens.weight"][:420])


def speaker(tokenizer: Tokenizer) -> tuple[language.Speaker, dict]:
    full, state = dwarf(tokenizer)
    less = cut.cut_down(state, [0, 2], 420, torch.Generator().manual_seed(0))
    config = cut.config_of(full, 2, less["model.embed_tokens.weight"].shape[0])
    model = language.Speaker(config)
    model.language.load_state_dict(less, strict=False)
    return model, config


def test_a_question_does_not_see_its_neighbours(short: Tokenizer) -> None:
    model, _ = speaker(short)
    model.eval()
    lessons = language.Lessons(short, 160, NAMES, seed=2)
    ids, positions, segments, targets, _ = lessons.sequence()
    assert max(segments) >= 2

    def loss_of(chosen: set[int]) -> float:
        kept = [index for index, segment in enumerate(segments) if segment in chosen]
        rows = [torch.tensor([[part[index] for index in kept]]) for part in (ids, positions, segments)]
        learned = torch.tensor([[targets[index] if segments[index] == 2 else -100 for index in kept]])
        packed = language.Packed(*rows, learned, None, None, [len(kept)])
        with torch.no_grad():
            return float(model(packed, lessons.first_region, len(lessons.head)))

    assert loss_of({0, 2}) == pytest.approx(loss_of({0, 1, 2}), abs=1e-5)


def test_only_answers_are_learned(short: Tokenizer) -> None:
    lessons = language.Lessons(short, 160, NAMES, seed=3)
    said = ask(invented(lessons.chance, NAMES), lessons.chance)
    ids, targets = lessons.turn(said)
    answer = [target for target in targets if target != -100]
    assert short.decode(answer, skip_special_tokens=False) == said.answer + "<|im_end|>"
    assert ids[-len(answer) :] == answer


def test_training_goes_on_from_its_checkpoint(short: Tokenizer, tmp_path: Path) -> None:
    model, config = speaker(short)
    losses = [loss for _, loss in language.train(model, language.Lessons(short, 128, NAMES), 24, 2, 1e-2, tmp_path)]
    assert sum(losses[-4:]) < sum(losses[:4])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 24
    again, _ = speaker(short)
    again.load_state_dict(state["model"])
    lessons = language.Lessons(short, 128, NAMES)
    more = list(language.train(again, lessons, 26, 2, 1e-2, tmp_path, 24, state["optimizer"]))
    assert [step for step, _ in more] == [24, 25]
    language.export(again.state_dict(), config, short, tmp_path / "out")
    pack.main(["--language", str(tmp_path / "out"), "--out", str(tmp_path / "pocket")])
    index = json.loads((tmp_path / "pocket" / "model.safetensors.index.json").read_text())
    assert {"language.model.embed_tokens.weight", "projector.0.weight", "region_projector.2.bias"} <= set(
        index["weight_map"]
    )


def test_the_exported_model_loads_as_a_llama(short: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, config = speaker(short)
    language.export(model.state_dict(), config, short, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model.language(ids).logits, atol=1e-3)  # fp16 storage


# --- packing -------------------------------------------------------------------------------------------------------


def test_shards_hold_everything_once_and_none_is_too_large(tmp_path: Path) -> None:
    state = {f"part.{index}": torch.randn(50, 10) for index in range(9)}
    where = pack.write(state, tmp_path, most=5000)
    assert set(where) == set(state) and len(set(where.values())) == 5
    assert all(path.stat().st_size < 6000 for path in tmp_path.glob("*.safetensors"))


def test_too_much_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave something out"):
        pack.write({"a": torch.zeros(1000)}, tmp_path, whole=100)
