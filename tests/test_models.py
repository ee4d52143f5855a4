"""Opening, switching and checking models by name: the old one stays where a new one fails; a wrong one is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmchat import commands, models, selfcheck
from mmchat.desk import Answer, Ask, Desk, Limits, Turn
from mmchat.engines.replay import Recorded, ReplayEngine
from mmchat.geometry import Box
from mmchat.nets import plan
from mmchat.ui import panels, steps
from mmchat.ui.words import Exchange


@pytest.fixture
def two(dwarf_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two whole models, "one" and "two", and "lost" without a folder. Gives the folder they are copied to."""
    rows = ""
    for name, family in (("one", "llava"), ("two", "mmfuser")):
        shutil.copytree(dwarf_folder(family), tmp_path / name)
        rows += f'[[model]]\nname = "{name}"\nfamily = "{family}"\nfolder = "{name}"\nprecision = "fp32"\n'
    rows += '[[model]]\nname = "lost"\nfamily = "llava"\nfolder = "lost"\nhub = "ours/lost"\n'
    (tmp_path / "models.toml").write_text(rows)
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    return tmp_path


@pytest.fixture
def desk(two: Path) -> Iterator[Desk]:
    made = Desk(commands.engine("one", "auto"))
    yield made
    made.close()


def says(desk: Desk, picture: Image.Image) -> str:
    ask = Ask((picture,), (Turn("user", "What is it?", images=(0,)),), limits=Limits(new_tokens=6))
    return list(desk.answer(ask))[-1].raw


# models.toml


def test_an_entry_may_name_its_hub_and_revision(two: Path) -> None:
    assert (models.find("lost").hub, models.find("lost").revision) == ("ours/lost", "main")
    assert "python -m mmchat fetch lost" in models.missing(models.find("lost"))
    assert models.missing(models.find("two")) == ""


def test_a_number_where_text_belongs_is_refused(two: Path) -> None:
    (two / "models.toml").write_text('[[model]]\nname = "a"\nfamily = "llava"\nfolder = "a"\nrevision = 3\n')
    with pytest.raises(ValueError, match="revision must be text"):
        models.listed()


# Switching


def test_another_model_answers_after_a_switch_and_progress_was_told(desk: Desk, picture: Image.Image) -> None:
    told: list[tuple[int, int]] = []
    commands.switch(desk, "two", "auto", ("one", "auto"), lambda done, total: told.append((done, total)))
    assert desk.engine.family.name == "mmfuser" and says(desk, picture) is not None
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize("name", ["lost", "nothing"])
def test_the_open_model_stays_where_the_new_one_cannot_be_opened(desk: Desk, picture: Image.Image, name: str) -> None:
    before = says(desk, picture)
    with pytest.raises(ValueError, match="lost|nothing"):
        commands.switch(desk, name, "auto", ("one", "auto"))
    assert desk.engine.family.name == "llava" and says(desk, picture) == before


def test_damaged_weights_leave_the_open_model(desk: Desk, picture: Image.Image, two: Path) -> None:
    before = says(desk, picture)
    path = two / "two" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError):
        commands.switch(desk, "two", "auto", ("one", "auto"))
    assert says(desk, picture) == before


def tight(monkeypatch: pytest.MonkeyPatch, desk: Desk, share: float) -> None:
    """As if so much were free that the new model fits only in part beside the open one."""
    from mmchat import family
    from mmchat.nets import weights

    known = family.load("mmfuser")
    with weights.without_memory():
        need = plan.planned(known.build(known.dwarf), "fp32", "cpu", known.keep).total
    held = desk.engine.held
    # What is free grows by what the open model held once it is closed.
    monkeypatch.setattr(
        plan,
        "free_memory",
        lambda device="cpu": (int(need * share / plan.MARGIN) - held * hasattr(first, "model"), 1 << 40),
    )
    first = desk.engine


def test_where_there_is_room_for_one_the_open_model_is_closed_first(
    desk: Desk, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = desk.engine
    tight(monkeypatch, desk, 1.05)
    commands.switch(desk, "two", "auto", ("one", "auto"))
    assert desk.engine.family.name == "mmfuser" and not hasattr(first, "model") and says(desk, picture) is not None


def test_where_there_is_room_for_one_and_the_new_one_fails_the_old_is_opened_again(
    desk: Desk, picture: Image.Image, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, first = says(desk, picture), desk.engine
    tight(monkeypatch, desk, 1.05)
    path = two / "two" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError):
        commands.switch(desk, "two", "auto", ("one", "auto"))
    assert desk.engine is not first and says(desk, picture) == before


def test_where_it_fits_in_neither_way_nothing_is_closed(
    desk: Desk, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = desk.engine
    tight(monkeypatch, desk, 0.3)
    with pytest.raises(plan.NoRoom, match="free memory|choose"):
        commands.switch(desk, "two", "auto", ("one", "auto"))
    assert desk.engine is first and says(desk, picture) is not None


def test_a_talk_goes_on_with_another_family_in_clean_words() -> None:
    answer = Answer("a bus", "<p>a bus</p><c0>", done=True)
    talk = tuple(
        Exchange(Turn("user", text), text, "digest", model, "find", answer=answer)
        for text, model in (("one?", "groma"), ("two?", "llava"), ("three?", "llava"))
    )
    assert [turn.text for turn in steps.turns_of(talk)] == ["one?", "a bus", "two?", "<p>a bus</p><c0>", "three?"]
    assert [turn.task for turn in steps.turns_of(talk)[::2]] == [None, "find", None]


def test_opening_tells_its_progress_and_raises_what_was_raised() -> None:
    import time

    def slow(name: str, precision: str, progress: Any) -> None:
        for done in (1, 2, 3, 4):
            progress(done, 4)
            time.sleep(0.3)
        if name == "bad":
            raise ValueError("It is bad: take another.")

    shares = list(steps.opening(slow, "good", "auto"))
    assert shares == sorted(shares) and shares[-1] == 1 and any(0 < share < 1 for share in shares)
    with pytest.raises(ValueError, match="It is bad"):
        list(steps.opening(slow, "bad", "auto"))


# Self check


def test_a_whole_model_passes_its_self_check(desk: Desk, two: Path) -> None:
    assert selfcheck.faults(desk, two / "one") == ()
    assert panels.faults_html(desk) == ""


def test_a_special_token_that_is_split_or_has_no_row_is_told(desk: Desk) -> None:
    from tokenizers import AddedToken

    tokenizer = desk.engine.tokens.tokenizer
    rows = desk.engine.model.language.get_input_embeddings().weight.shape[0]
    tokenizer.add_special_tokens([AddedToken(f"<more_{number}>", normalized=False) for number in range(rows)])
    found = selfcheck.token_faults(desk.engine)
    assert found and "rows: take its own tokenizer" in found[0]


def test_the_head_shows_a_red_badge_with_the_reason(desk: Desk, two: Path) -> None:
    (two / "one" / selfcheck.FILE).write_text("{}")
    faults = commands.self_check(desk, "one")
    assert len(faults) == 1 and "cannot be read" in faults[0]
    assert "mm-fault" in panels.head_html(desk, "one") and "cannot be read" in panels.head_html(desk, "one")


def test_a_recorded_answer_is_asked_again(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "seen.png")
    right = Desk(ReplayEngine((Recorded(".", "<p>a bus</p><c0>", candidates=(Box(0.1, 0.3, 0.5, 0.7),)),)))
    wrong = Desk(ReplayEngine((Recorded(".", "<p>a bus</p><c0>", candidates=(Box(0.4, 0.3, 0.8, 0.7),)),)))
    selfcheck.record(right, tmp_path, "seen.png", "Where is the bus?")
    assert selfcheck.faults(right, tmp_path) == ()
    (fault,) = selfcheck.faults(wrong, tmp_path)
    assert "overlaps its recorded place by 0." in fault
    wrong.engine.precision = "nf4"  # few bits move boxes: not compared with what more bits gave
    assert selfcheck.faults(wrong, tmp_path) == ()
    Image.new("RGB", (80, 60)).save(tmp_path / "seen.png")
    assert "another one: record it again" in selfcheck.faults(right, tmp_path)[0]


def test_an_answer_without_boxes_is_not_recorded(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "seen.png")
    desk = Desk(ReplayEngine((Recorded(".", "nothing"),)))
    with pytest.raises(ValueError, match="no box"):
        selfcheck.record(desk, tmp_path, "seen.png", "What?")
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["seen.png"]'
