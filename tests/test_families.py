"""What every family must do, run on each by itself: its record is whole, its dwarf sees, speaks and is traced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmchat import family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Index, Scene
from mmchat.engines.local import LocalEngine
from mmchat.family import Family
from mmchat.geometry import Box, Point, Region
from mmchat.nets import weights
from mmchat.prompt import opened

NAMES = family.names()
PLACED = [name for name in NAMES if family.load(name).takes - {"several pictures"}]  # the others know no places
GOLDEN = Path(__file__).resolve().parent / "golden"
SHORT = Limits(new_tokens=6)
TAKEN = {"box", "point", "scribble", "mask", "polygon", "several pictures", "video", "sound"}
BOX = Region("box", Box(0.2, 0.1, 0.7, 0.8))
SHAPES = [
    (640, 480), (480, 640), (500, 500), (1, 1), (1, 40), (40, 1), (1999, 100), (333, 777), (4000, 3000), (17, 5),
    (336, 336), (1024, 1023),
]  # fmt: skip


@pytest.fixture(scope="module")
def desk(dwarf_folder):
    """A desk with a family's dwarf; opened once for each."""
    desks: dict[str, Desk] = {}

    def open_(name: str) -> Desk:
        if name not in desks:
            desks[name] = Desk(LocalEngine.open(dwarf_folder(name), family.load(name), "fp32", "cpu"))
        return desks[name]

    return open_


def test_there_are_families():
    assert {"llava", "mmfuser"} <= set(NAMES)


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match="no family 'nobody': choose one of .*llava"):
        family.load("nobody")


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_whole(name):
    record = family.load(name)
    assert isinstance(record, Family) and record.name == name
    assert record.title and record.about.endswith(".") and record.licence and record.heats and record.dwarf
    assert record.template.tasks and record.takes <= TAKEN
    assert "{text}" in record.template.user and callable(record.build) and callable(record.mention)


@pytest.mark.parametrize("name", NAMES)
def test_the_dwarf_is_built_without_memory(name):
    record = family.load(name)
    with weights.without_memory():
        model = record.build(record.dwarf)
    assert any(parameter.is_meta for parameter in model.language.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_never_quantised_exists(name):
    record = family.load(name)
    with weights.without_memory():
        paths = {path for path, _ in record.build(record.dwarf).named_modules()}
    assert set(record.keep) <= paths


@pytest.mark.parametrize("name", PLACED)
def test_the_dwarf_answers_about_a_drawn_region(name, desk, picture):
    record = family.load(name)
    ask = Ask((picture,), (Turn("user", "What is @1?", (BOX,)),), limits=SHORT)
    answer = list(desk(name).answer(ask))[-1]
    notes = dict(answer.notes)
    assert answer.done and notes["new_tokens"] <= 6 and notes["prefilled_tokens"] > 0
    assert record.name == desk(name).engine.family.name


@pytest.mark.parametrize("name", NAMES)
def test_a_second_question_runs_no_encoder_and_says_the_same_without_the_cache(name, desk, picture):
    first = Ask((picture,), (Turn("user", "What is here?"),), limits=SHORT)
    one = list(desk(name).answer(first))[-1]
    turns = (*first.turns, Turn("assistant", one.raw), Turn("user", "And where?"))
    two, whole = (
        list(desk(name).answer(Ask((picture,), turns, limits=replace(SHORT, cache=cache))))[-1]
        for cache in (True, False)
    )
    assert dict(two.notes)["encoder_runs"] == 0 and two.raw == whole.raw
    if family.load(name).template.assistant is not None:  # else it stands alone, and its beginning may be read anew
        assert dict(two.notes)["prefilled_tokens"] < dict(whole.notes)["prefilled_tokens"]


@pytest.mark.parametrize("name", [name for name in NAMES if family.load(name).template.leaning is None])
def test_an_earlier_question_stands_as_it_was_asked(name):
    """In its task's words, as the originals feed it back: what was read of the talk is its beginning."""
    record = family.load(name)
    if record.template.assistant is None:
        return  # such a form holds one question: see test_prompt

    def written(pieces):
        return "".join(piece if isinstance(piece, str) else f"<{piece}>" for piece in pieces)

    def mention(number, region):
        return record.mention(number, region, record.dialect, Scene((BOX.box,), (100, 100)))

    for task in record.template.tasks:
        turn = Turn("user", "" if task.needs == "" else "the cup", (BOX,) if task.needs == "region" else (), (0,))
        asked, lead = opened(record.template.render((turn,), mention, task.name))
        said = Turn("assistant", f"{lead} so" if lead else "so")
        talk = (replace(turn, task=task.name), said, Turn("user", "Why?"))
        later = written(opened(record.template.render(talk, mention, record.template.tasks[0].name))[0])
        assert later.startswith(written(asked).rstrip()) and "Why?" in later


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in NAMES for kind in family.load(name).heats])
def test_every_heat_map_is_given(name, kind, desk, picture):
    ask = Ask((picture,), (Turn("user", "What is here?"),), limits=SHORT)
    answer = list(desk(name).answer(ask))[-1]
    if kind == "attention" and not answer.raw.strip():
        pytest.skip("the dwarf's random answer has no text to look at")
    trace, _, _ = desk(name).trace(ask, answer, kind, BOX if kind == "likeness" else None)
    assert trace.map.dtype == np.float32 and max(trace.map.shape[:2]) <= 112 and trace.note.endswith(".")
    assert 0 <= trace.map.min() and trace.map.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["first", "region", "phrase"])
def test_every_task_can_be_asked(name, task, desk, picture):
    tasks = family.load(name).template.tasks
    kinds = {
        "first": tasks[:1],
        "region": [t for t in tasks if t.needs == "region"],
        "phrase": [t for t in tasks if t.needs == "phrase"],
    }
    for one in kinds[task]:
        ask = Ask((picture,), (Turn("user", "the thing", (BOX,)),), one.name, Limits(new_tokens=1))
        assert list(desk(name).answer(ask))[-1].done


def unnumbered(record: Family) -> bool:
    """Whether the marks of a family's dialect say nothing of where a place is: not even which candidate it is."""
    forms = getattr(record.dialect, "forms", ())
    return bool(forms) and all(isinstance(form.code, Index) and not form.place for form in forms)


def pointing(record: Family) -> bool:
    """Whether a family's dialect can only point at candidates."""
    forms = getattr(record.dialect, "forms", ())
    return bool(forms) and all(isinstance(form.code, Index) for form in forms)


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("size", SHAPES)
def test_a_box_comes_back_within_a_step_of_its_rounding(name, size):
    record = family.load(name)
    frame = record.frame(record.dwarf)
    placement = frame.place(size)
    drawn = Box(0.25, 0.4, 0.6, 0.9)
    placed = placement.into(drawn)
    # Marks stand for candidates: by number, or for what the model's head found, in order.
    scene = Scene((placed,) if pointing(record) else (), placement.fitted)
    span = record.dialect.read(record.dialect.write((placed,), "it", scene), scene).spans[0]
    found = placement.back(span.places[0])
    step = 1 / 32 if name == "kosmos2" else 0.0101  # cells; the coarsest numbers have two decimals
    for ours, theirs, scale in zip(
        (found.x0, found.y0, found.x1, found.y1),
        (drawn.x0, drawn.y0, drawn.x1, drawn.y1),
        placement.scale * 2,
        strict=True,
    ):
        inside = 0 <= min(placed.x0, placed.y0) and max(placed.x1, placed.y1) <= 1
        assert not inside or abs(ours - theirs) <= step / scale


@pytest.mark.parametrize("name", PLACED)
def test_a_candidate_is_read_as_the_box_it_is(name):
    record = family.load(name)
    boxes = (Box(0.1, 0.2, 0.5, 0.6), Box(0.3, 0.3, 0.9, 0.8))
    scene = Scene(boxes, (336, 336), ((1,),) if unnumbered(record) else ())
    span = record.dialect.read(record.dialect.write(boxes[1:], "it", scene), scene).spans[0]
    assert span.places[0].iou(boxes[1]) > 0.95


@pytest.mark.parametrize("name", PLACED)
def test_no_prefix_of_an_answer_shows_half_a_mark(name):
    record = family.load(name)
    scene = Scene((Box(0.1, 0.2, 0.5, 0.6),), (336, 336))
    text = "There is " + record.dialect.write((Box(0.1, 0.2, 0.5, 0.6),), "a bus", scene) + " here."
    whole = record.dialect.read(text, scene).text
    for end in range(len(text)):
        assert whole.startswith(record.dialect.read(text[:end], scene, final=False).text)


@pytest.mark.parametrize("name", NAMES)
def test_regions_of_every_kind_it_takes_are_mentioned(name):
    record = family.load(name)
    kinds = {
        "box": BOX,
        "point": Region("point", Box(0.3, 0.4, 0.3, 0.4), (Point(0.3, 0.4),)),
        "scribble": Region("scribble", Box(0.1, 0.1, 0.4, 0.5), (Point(0.1, 0.1), Point(0.4, 0.5))),
    }
    for kind, region in kinds.items():
        if kind in record.takes:
            assert record.mention(1, region, record.dialect, Scene((region.box,), (336, 336)))


@pytest.mark.parametrize("name", NAMES)
def test_every_published_name_lands_in_one_parameter_and_none_stays_empty(name):
    folders = {folder.name.replace("-", ""): folder for folder in GOLDEN.iterdir()}
    recorded = folders.get(name.replace("_", ""), GOLDEN / name) / "keys.txt"
    if not recorded.is_file():
        pytest.skip(f"no published names are recorded for {name}: it is trained here and has no others")
    record = family.load(name)
    with weights.without_memory():
        wanted = set(record.build(record.dwarf).state_dict())
    published = recorded.read_text().split()
    kept = [key for key in published if not weights.dropped(record.drop, key, weights.renamed(key, record.keys))]
    landed = [weights.renamed(key, record.keys) for key in kept]
    joined = record.fold.takes if isinstance(record.fold, weights.Fold) else ()  # becomes a part of another parameter
    landed = [name for name in landed if name in wanted or not weights.dropped(joined, name)]
    assert len(landed) == len(set(landed)) and set(landed) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_gives_what_the_encoder_takes(name, desk):
    record = family.load(name)
    pixels, placement = record.frame(record.dwarf).fit(Image.new("RGB", (31, 17), (200, 30, 30)))
    model = desk(name).engine.model
    with torch.inference_mode():
        seen = model.see(torch.from_numpy(pixels)[None])
    assert len(seen.images) == 1 and seen.images[0].ndim == 2
    assert seen.images[0].shape[1] == model.language.config.hidden_size
