"""Every system of the literature as it is published, through all its roads: load, page, ask, places, stop, unload."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import dwarfs
import numpy as np
import published
import pytest
import torch
from PIL import Image
from test_convllava import OURS as CONVLLAVA
from test_ferret import layout as ferret
from test_fromage import layout as fromage
from test_groma import layout as groma
from test_groundinggpt import layout as groundinggpt
from test_inf_llava import OURS as INF_LLAVA
from test_kosmos2 import layout as kosmos2
from test_llava_grounding import layout as llava_grounding
from test_minigpt_v2 import layout as minigpt_v2
from test_shikra import layout as shikra

from mmchat import cli, family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Index, Scene
from mmchat.engines.local import LocalEngine
from mmchat.geometry import Box, Region, outline
from mmchat.nets.model import Located

LLAVA = (
    (r"^vision\.", "model.vision_tower.vision_tower.vision_model."), (r"^bridge\.", "model.mm_projector."),
    (r"^language\.", ""),
)  # fmt: skip
HONEYBEE = (
    (r"^vision\.", "vision_model.vision_model."), (r"^bridge\.", "abstractor."), (r"^language\.", "language_model."),
)  # fmt: skip


def kin(name: str, names: tuple[tuple[str, str], ...]) -> Callable[[Path], Path]:
    """LLaVA and its relatives: the whole dwarf under the authors' names in two shards."""

    def layout(root: Path) -> Path:
        record = family.load(name)
        state = published.named(dwarfs.build(record).state_dict(), names)
        return published.write(root / name, state, record.dwarf, "bin")

    return layout


SYSTEMS: dict[str, Callable[[Path], Path]] = {
    "shikra": shikra, "minigpt_v2": lambda root: minigpt_v2(root, ""), "kosmos2": kosmos2, "ferret": ferret,
    "groma": groma, "groundinggpt": groundinggpt, "llava_grounding": lambda root: llava_grounding(root / "gd_vp"),
    "fromage": fromage, "llava": kin("llava", LLAVA), "mmfuser": kin("mmfuser", LLAVA),
    "convllava": kin("convllava", CONVLLAVA), "inf_llava": kin("inf_llava", INF_LLAVA),
    "honeybee": kin("honeybee", HONEYBEE),
}  # fmt: skip
BOX = Region("box", Box(0.2873, 0.2119, 0.7031, 0.8067))  # on no line of any grid
TWO = dict.fromkeys(("llava", "mmfuser", "convllava", "inf_llava", "minigpt_v2"), 0.01)  # decimals or hundredths
STEPS = TWO | {"kosmos2": 1 / 32}  # cells
FINE = 0.001  # three decimals
SHORT = Limits(new_tokens=6)


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request, tmp_path_factory) -> tuple[str, Path]:
    """A system's name, and a models.toml that names its checkpoint."""
    root = tmp_path_factory.mktemp(request.param)
    folder = SYSTEMS[request.param](root)
    listed = root / "models.toml"
    row = {"name": request.param, "family": request.param, "folder": str(folder)}
    listed.write_text("[[model]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items()))
    return request.param, listed


@pytest.fixture
def named(system, monkeypatch) -> str:
    monkeypatch.setenv("MMCHAT_MODELS", str(system[1]))
    return system[0]


@pytest.fixture(scope="module")
def desk(system) -> Iterator[Desk]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODELS", str(system[1]))
        made = Desk(LocalEngine.named(system[0], "fp32", "cpu"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def wide() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (100, 300, 3), dtype=np.uint8))


def scripted(desk: Desk, patch: pytest.MonkeyPatch, text: str) -> None:
    """Makes the model write a text, letter by letter, and end."""
    script = iter([*desk.engine.tokens.ids(text), *desk.engine.tokens.ends])
    patch.setattr("mmchat.engines.local.chooser", lambda limits: lambda logits: (next(script), 0.5))


def test_in_four_bits_it_loads_and_answers(named, picture):
    engine = LocalEngine.named(named, "nf4", "cpu")
    packed = [part for part in engine.model.modules() if type(part).__name__ == "Linear4bit"]
    desk = Desk(engine)
    assert packed and list(desk.answer(Ask((picture,), (Turn("user", "What is here?"),), limits=SHORT)))[-1].done
    desk.close()


def test_the_page_writes_its_answer_as_it_grows(desk, named, picture, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements.txt")
    from mmchat.ui import steps
    from mmchat.ui.canvas import Surface

    assert gradio
    picture.save(tmp_path / "it.png")
    from gradio.data_classes import FileData

    laid = Surface(image=FileData(path=str(tmp_path / "it.png")), size=[80, 60], key="it")
    scripted(desk, monkeypatch, "a small red house")
    monkeypatch.setattr(steps, "PAUSE", 0.0)
    talks = list(steps.speak(desk, laid, steps.begin(desk, laid, (), "What is here?", None)))
    texts = [talk[-1].answer.text for talk in talks]
    assert len(set(texts)) > 5 and texts[-1].strip() == "a small red house" and talks[-1][-1].answer.done
    assert all(texts[-1].startswith(text) for text in texts)


def test_the_command_answers(named, picture, tmp_path, capsys):
    picture.save(tmp_path / "it.png")
    asked = ["ask", str(tmp_path / "it.png"), "What is here?", "--model", named, "--json"]
    assert cli.main([*asked, "--precision", "fp32", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == named and told["precision"] == "fp32"


def test_a_box_that_it_writes_lies_where_it_says_on_a_wide_picture(desk, named, wide, monkeypatch):
    record = desk.engine.family
    if not record.takes - {"several pictures"}:
        assert named == "fromage"  # it answers with pictures and knows no places
        return
    placement = record.frame(desk.engine.config).among(1).place(wide.size)
    placed = placement.into(BOX.box)
    forms = getattr(record.dialect, "forms", ())
    points = bool(forms) and all(isinstance(form.code, Index) for form in forms)
    scene = Scene((placed,) if points else (), placement.fitted)
    written = record.dialect.write((placed,), "it", scene)
    if desk.engine.model.head_marks:  # its head, not its words, says where

        def found(asked: torch.Tensor, *rest: object) -> Located:
            corners = torch.tensor([[placed.x0, placed.y0, placed.x1, placed.y1]])
            return Located(corners, torch.zeros(1, dtype=torch.long))

        monkeypatch.setattr(desk.engine.model, "locate", found)
    scripted(desk, monkeypatch, written)
    regions = (BOX,) if points else ()
    ask = Ask((wide,), (Turn("user", "What is @1?" if points else "Where is it?", regions),), limits=Limits(400))
    answers = list(desk.answer(ask))
    (span,) = answers[-1].spans
    box = outline(span.places[0])
    for ours, theirs, scale in zip(
        (box.x0, box.y0, box.x1, box.y1),
        (BOX.box.x0, BOX.box.y0, BOX.box.x1, BOX.box.y1),
        placement.scale * 2,
        strict=True,
    ):
        assert abs(ours - theirs) <= STEPS.get(named, FINE) / scale + 1e-9


def test_a_second_question_sees_nothing_anew(desk, named, picture):
    first = Ask((picture,), (Turn("user", "What is here?"),), limits=SHORT)
    said = list(desk.answer(first))[-1]
    turns = (*first.turns, Turn("assistant", said.raw), Turn("user", "And where?"))
    if desk.engine.family.template.assistant is None:
        turns = (Turn("user", "And where?"),)
    assert dict(list(desk.answer(Ask((picture,), turns, limits=SHORT)))[-1].notes)["encoder_runs"] == 0


def test_stop_ends_at_the_next_token_and_the_next_question_works(desk, named, picture, monkeypatch):
    steps: list[int] = []
    step = desk.engine._step
    with pytest.MonkeyPatch.context() as patch:
        scripted(desk, patch, "words without an end " * 9)
        patch.setattr(desk.engine, "_step", lambda talk, index: steps.append(index) or step(talk, index))
        going = desk.answer(Ask((picture,), (Turn("user", "What is here?"),), limits=Limits(new_tokens=200)))
        for _ in range(3):
            next(going)
        going.close()
    assert len(steps) == 2
    assert list(desk.answer(Ask((picture,), (Turn("user", "And now?"),), limits=SHORT)))[-1].done


def test_each_heat_map_has_the_size_of_the_picture(desk, named, wide, monkeypatch):
    scripted(desk, monkeypatch, "a house")
    ask = Ask((wide,), (Turn("user", "What is here?"),), limits=Limits(new_tokens=20))
    answer = list(desk.answer(ask))[-1]
    assert desk.engine.family.heats
    for kind in desk.engine.family.heats:
        painted = desk.heat(ask, answer, kind, BOX if kind == "likeness" else None)
        assert painted.size == wide.size and painted.info["note"].endswith("."), kind


def test_nothing_of_a_closed_model_stays(named, picture):
    desk = Desk(LocalEngine.named(named, "fp32", "cpu"))
    list(desk.answer(Ask((picture,), (Turn("user", "What is here?"),), limits=SHORT)))
    model = weakref.ref(desk.engine.model)
    weights = [weakref.ref(parameter) for parameter in desk.engine.model.parameters()]
    assert desk.engine.held > 0
    desk.close()
    gc.collect()
    assert model() is None and not any(one() is not None for one in weights)
