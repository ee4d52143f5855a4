"""Pocket's eyes on dwarfs and drawn pictures: nets, words, colours, questions, choices. No weights, no network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmchat.families.pocket import FAMILY
from mmchat.nets import chooser, colours, evidence
from mmchat.nets.clue import Clue, write_clue
from mmchat.nets.efficientnet import EfficientNetLite
from mmchat.nets.nanodet import NanoDet
from mmchat.nets.phrases import CLASSES, THINGS, Lexicon, lines
from mmchat.nets.question import read_question, several

SIDE = FAMILY.dwarf["eyes"]["picture_side"]


def letterbox(seed: int = 0, side: int = SIDE) -> torch.Tensor:
    """Noise over the whole width and the middle half of the height, grey above and below: [1, 3, side, side]."""
    pixels = torch.full((1, 3, side, side), evidence.GREY)
    noise = torch.rand(3, side // 2, side, generator=torch.Generator().manual_seed(seed)) * 255
    pixels[0, :, side // 4 : side - side // 4] = noise
    return pixels


def spelled(texts: list[str], length: int) -> torch.Tensor:
    raw = "\n".join(texts).encode()
    return torch.tensor(list(raw.ljust(length, b"\0")), dtype=torch.uint8)


@pytest.fixture(scope="module")
def eyes() -> evidence.Eyes:
    torch.manual_seed(0)
    return evidence.Eyes(FAMILY.dwarf["eyes"]).eval()


@pytest.fixture(scope="module")
def viewed(eyes: evidence.Eyes) -> evidence.Viewed:
    return eyes.gather(eyes.encode(letterbox()), torch.tensor([[0.1, 0.3, 0.5, 0.6]]))


# nets


def test_the_encoder_has_as_many_parameters_as_the_published_one():
    assert sum(parameter.numel() for parameter in EfficientNetLite().parameters()) == 6_092_072


def test_the_encoders_levels_halve_four_times():
    with torch.no_grad():
        levels = EfficientNetLite().eval().levels(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (24, 16, 16), (48, 8, 8), (120, 4, 4), (352, 2, 2), (1280, 2, 2),
    ]  # fmt: skip


def test_the_detector_looks_at_three_maps_and_keeps_boxes_inside():
    torch.manual_seed(0)
    detector = NanoDet(8, 8).eval()
    with torch.no_grad():
        boxes, scores = detector.places(torch.rand(1, 3, 64, 64) * 255)
        found = detector(torch.rand(1, 3, 64, 64) * 255, threshold=0.0)[0]
    assert boxes.shape == (1, 64 + 16 + 4, 4) and scores.shape == (1, 84, THINGS)
    assert 0 < len(found.boxes) <= 32 and float(found.boxes.min()) >= 0 and float(found.boxes.max()) <= 1
    best = found.scores.amax(-1)
    assert bool((best[:-1] >= best[1:]).all())


# the picture


def test_the_letterboxs_border_is_found():
    assert evidence.area_of(letterbox()[0]).tolist() == pytest.approx([0, 0.25, 1, 0.75])


def test_a_picture_of_nothing_but_the_border_counts_as_whole():
    assert evidence.area_of(torch.full((3, 8, 8), evidence.GREY)).tolist() == [0, 0, 1, 1]


def test_a_box_in_the_letterbox_comes_back_to_the_picture():
    box = evidence.outside_in(torch.tensor([[0.5, 0.25, 1.0, 0.5]]), torch.tensor([0.0, 0.25, 1.0, 0.75]))
    assert box.tolist() == [[0.5, 0.0, 1.0, 0.5]]


def test_a_crop_shows_its_own_part_of_the_picture():
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, 0, :32], pixels[0, 2, 32:] = 200.0, 200.0
    top, bottom = evidence.crops(pixels, torch.tensor([[0.0, 0.0, 1.0, 0.4], [0.0, 0.6, 1.0, 1.0]]), size=16)
    assert float(top[0].mean()) == pytest.approx(200, abs=1) and float(top[2].mean()) == pytest.approx(0, abs=1)
    assert float(bottom[2].mean()) == pytest.approx(200, abs=1)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 30), "red"), ((30, 160, 50), "green"), ((40, 80, 200), "blue"), ((240, 220, 40), "yellow"),
        ((250, 140, 20), "orange"), ((250, 250, 250), "white"), ((10, 10, 12), "black"), ((128, 128, 128), "grey"),
        ((110, 70, 30), "brown"), ((130, 40, 200), "purple"), ((250, 170, 190), "pink"),
    ],
)  # fmt: skip
def test_a_plain_colour_has_its_word(rgb, name):
    assert colours.NAMES[int(colours.named(torch.tensor(rgb)))] == name


def test_the_shares_of_a_boxs_colours_sum_to_one():
    shares = colours.shares(letterbox()[0], torch.tensor([[0.0, 0.3, 1.0, 0.7], [0.2, 0.3, 0.2, 0.3]]))
    assert shares.sum(-1).tolist() == pytest.approx([1, 1])


# words


def test_texts_travel_as_bytes():
    assert lines(spelled(["ein Käse", "cup"], 40)) == ["ein Käse", "cup"]


def test_a_class_is_as_near_as_its_best_name():
    lexicon = Lexicon(3, 3, 16, width=2)
    lexicon.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    lexicon.owners.copy_(torch.tensor([4, 4, 90]))
    lexicon.names.copy_(torch.tensor([0, 1, 2]))
    lexicon.weights.copy_(torch.tensor([1.0, 0.5, 1.0]))
    near = lexicon.likeness(torch.tensor([[0.0, 1.0]]))[0]
    assert near[[4, 90, 5]].tolist() == pytest.approx([0.5, 0.8, -1.0])


def test_an_unsure_region_has_a_short_vector():
    lexicon = Lexicon(1, 1, 16, width=4)
    lexicon.vectors.fill_(0.5)
    things, classes = torch.zeros(2, THINGS), torch.zeros(2, CLASSES)
    things[0, 3], things[1, 3] = 0.9, 0.1
    long, short = lexicon.meaning(things, classes).norm(dim=-1).tolist()
    assert (long, short) == pytest.approx((0.9, 0.1))


# candidates and choices


def test_the_users_regions_come_first_and_the_whole_picture_last(viewed):
    assert viewed.drawn == 1 and viewed.boxes[0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.6])
    assert viewed.boxes[-1].tolist() == pytest.approx([0, 0.25, 1, 0.75])
    assert viewed.facts.boxes[-1].tolist() == pytest.approx([0, 0, 1, 1])


def test_every_candidate_has_features_words_and_facts(viewed):
    count, sizes = len(viewed.boxes), FAMILY.dwarf["eyes"]
    assert viewed.regions.shape == (count, sizes["width"])
    assert viewed.words.shape == (count, sizes["text"]["hidden_size"])
    assert viewed.facts.classes.shape == (count, CLASSES) and viewed.facts.colours.shape == (count, 11)


def test_more_drawn_regions_than_marks_leave_no_candidate_without_one(eyes):
    drawn = torch.tensor([[0.1, 0.3, 0.5, 0.6]]).repeat(50, 1)
    assert len(eyes.gather(eyes.encode(letterbox()), drawn).boxes) <= evidence.MOST


def test_a_phrase_never_means_a_drawn_region(eyes, viewed):
    choice = eyes.choose(viewed, "the red cup left of the plate")
    assert choice.best >= viewed.drawn and len(choice.logits) == len(viewed.boxes) and 0 <= choice.present <= 1


@pytest.mark.parametrize(("name", "question", "colour"), [
    ("person", "What do you see?", ""), ("person", "What is @1?", ""), ("cup", "What is @1?", "red"),
    ("person", "What colour is @1?", "red"), ("man", "What colour is the man?", "red"),
])  # fmt: skip
def test_a_person_is_called_by_a_colour_only_when_one_asks_for_it(eyes, viewed, monkeypatch, name, question, colour):
    monkeypatch.setattr(eyes, "names", lambda viewed, index, most=5: ((name, 1.0),))
    monkeypatch.setattr(eyes, "colour", lambda viewed, index: "red")
    monkeypatch.setattr(eyes, "choose", lambda viewed, text: evidence.Choice(torch.zeros(2), 1.0, 1, torch.zeros(2)))
    clue = eyes.clue(viewed, question)
    assert {seen.colour for seen in (*clue.about, *clue.seen, *clue.found)} == {colour}


def test_eyes_in_bfloat16_give_numbers():
    torch.manual_seed(0)
    halved = evidence.Eyes(FAMILY.dwarf["eyes"]).eval().bfloat16()
    for seed in range(8):
        looked = halved.encode(letterbox(seed).bfloat16())
        assert bool(looked.classes.isfinite().all()) and bool(looked.boxes.isfinite().all())


def test_a_thing_without_a_seat_among_the_candidates_is_found_by_its_numbers(eyes, viewed, monkeypatch):
    place = 3
    looked = viewed.looked
    scores, places = torch.zeros_like(looked.scores), looked.places.clone()
    scores[place, 7], places[place] = 0.9, torch.tensor([0.6, 0.5, 0.7, 0.6])
    facts = replace(viewed.facts, things=torch.zeros_like(viewed.facts.things))
    crowded = replace(viewed, looked=replace(looked, scores=scores, places=places), facts=facts)
    near = torch.zeros(THINGS + CLASSES).index_fill(0, torch.tensor([7]), 1.0)
    monkeypatch.setattr(eyes, "likeness", lambda texts: near.expand(len(texts), -1))
    monkeypatch.setattr(eyes, "names", lambda viewed, index, most=5: (("keyboard", 1.0),))
    choice = eyes.choose(crowded, "the keyboard")
    assert choice.late is not None and choice.late.boxes[-1].tolist() == pytest.approx([0.6, 0.5, 0.7, 0.6])
    assert len(choice.logits) == len(viewed.boxes)
    (found,) = eyes.clue(crowded, "Where is the keyboard?").found
    assert found.index is None and "[0.60,0.50,0.70,0.60] keyboard" in write_clue(Clue("keyboard", True, (found,)))


def test_the_untrained_score_prefers_what_detector_and_phrase_agree_on():
    things = torch.tensor([[0.9, 0.0], [0.0, 0.8], [0.0, 0.0]])
    facts = chooser.Facts(
        torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]]),
        torch.cat((things, torch.zeros(3, THINGS - 2)), -1),
        torch.full((3, CLASSES), 1e-3),
        torch.zeros(3, 11),
    )
    near = torch.zeros(THINGS + CLASSES)
    near[1] = 1.0
    _, prior = chooser.features(facts, chooser.take_apart("the cup"), chooser.Likeness(near, near, near, None))
    assert int(prior.argmax()) == 1


def test_a_phrase_is_taken_apart():
    phrase = chooser.take_apart("the small red kite left of the tree")
    assert (phrase.noun, phrase.colours, phrase.sides) == ("kite", ("red",), ("small",))
    assert (phrase.relation, phrase.anchor) == ("left", "tree")


def test_two_looks_at_one_thing_are_one_thing():
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]])
    assert evidence.apart(boxes, [0, 1, 2], torch.tensor([0.9, 0.8, 0.7])) == [0, 2]


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("people", "person"), ("red cups", "red cup"), ("cities", "city"), ("bus", "bus"), ("boxes", "box"),
        ("glass", "glass"),
    ],
)  # fmt: skip
def test_a_plural_finds_its_singular(many, one):
    assert evidence.singular(many) == one


# clues


def test_a_question_about_a_region_is_answered_about_that_region(eyes, viewed):
    clue = eyes.clue(viewed, "What is <r0>?")
    assert [seen.index for seen in clue.about] == [0] and not clue.sought


def test_a_region_that_does_not_exist_is_left_out(eyes, viewed):
    assert eyes.clue(viewed, "What is <r62>?").about == ()


def test_what_is_not_there_is_sought_and_not_found(eyes, viewed):
    start = eyes.calibration.clone()
    try:
        eyes.calibration[0] = 1e4
        clue = eyes.clue(viewed, "Where is the giraffe?")
    finally:
        eyes.calibration.copy_(start)
    assert clue.sought and clue.asked == "giraffe" and clue.found == ()


def test_a_description_names_what_is_seen(eyes, viewed):
    assert eyes.clue(viewed, "Describe the picture.").seen


@pytest.mark.parametrize(
    ("text", "kind", "phrase"),
    [
        ("Where is the bus?", "find", "bus"),
        ("the small red kite on the left", "find", "small red kite on the left"),
        ("Can you find a dog", "find", "dog"),
        ("Show me the cat in the picture.", "find", "cat"),
        ("Find all cups.", "all", "cups"),
        ("Where are the cups?", "all", "cups"),
        ("How many cups are there? Answer in one word.", "count", "cups"),
        ("How many people are walking?", "count", "people"),
        ("What colour is the car?", "colour", "car"),
        ("What color are the chairs? One word only.", "colour", "chairs"),
        ("Is there a dog?", "there", "dog"),
        ("Is the man smiling?", "is", "man"),
        ("What animal is this?", "which", "animal"),
        ("What is on the left?", "place", "thing on the left"),
        ("What is the white animal doing?", "beyond", "white animal"),
        ("Which room is this?", "scene", ""),
        ("Is there a lake or a desert behind the building?", "scene", ""),
        ("Describe the picture with places.", "describe", ""),
        ("What do you see?", "describe", ""),
        ("hello", "talk", ""),
        ("What colour is it?", "free", ""),
        ("", "talk", ""),
    ],
)
def test_a_question_is_read_as_what_it_looks_for(text, kind, phrase):
    question = read_question(text)
    assert (question.kind, question.phrase, question.regions) == (kind, phrase, ())


@pytest.mark.parametrize("text", ["What is @1? Answer in one word.", "What is <r0>?"])
def test_a_region_is_known_by_its_number_and_by_its_mark(text):
    assert read_question(text).regions == (0,)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("red cups", True), ("people", True), ("bus", False), ("scissors", False), ("cups on the table", False)],
)
def test_only_a_bare_plural_asks_for_several(phrase, expected):
    assert several(phrase) is expected


# how the eyes are made


def test_a_line_of_the_class_table_is_read():
    from mmchat.train.convert import Named, read_named

    named = read_named("bus ~ coach, minibus | vehicle")
    assert named == Named("bus", ("coach", "minibus"), ("vehicle",))


def test_every_class_has_a_plain_name():
    from mmchat.train.convert import HERE, read_table

    published = [f"thing {index}" for index in range(CLASSES)]
    things, classes = ((HERE / file).read_text("utf-8") for file in ("coco.txt", "imagenet.txt"))
    table = read_table(things, classes, published)
    assert len(table) == THINGS + CLASSES and table[0][0] == "person" and table[THINGS + 281][0] == "cat"
    assert table[THINGS + 335][0] == "squirrel" and all(plain for plain, _ in table)


def test_the_detectors_names_are_those_of_its_parameters():
    from mmchat.train.convert import detector_names

    with torch.device("meta"):
        model = NanoDet()
    assert {f"{name}.weight" for name in detector_names(model)} <= set(model.state_dict())
    assert len(detector_names(model)) * 2 == len(model.state_dict())


def test_a_judge_learns_to_point_at_the_right_candidate():
    from mmchat.train.chooser import Lesson, measured, train

    known = []
    for index in range(9):
        rows, right = torch.zeros(3, chooser.FEATURES), torch.zeros(3, dtype=torch.bool)
        rows[index % 3, 5], right[index % 3] = 1.0, True
        known.append(Lesson(rows.half(), torch.zeros(3).half(), right, False))
    panel = chooser.Chooser(1)
    before = measured(panel.eval(), known, start=-1e9)["right"]
    panel.judges[0] = train(known, seed=0, steps=120, peak=5e-3)
    assert before < 0.5 and measured(panel.eval(), known, start=-1e9)["right"] == 1.0
