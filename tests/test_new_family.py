"""A family is one file: put into the folder of families it is listed, opened and asked, and nothing else is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import dwarfs
import pytest

from mmchat import families, family
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.geometry import Box, Region


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """LLaVA's own file under another name, in a folder of its own."""
    text = (family.FOLDER / "llava.py").read_text("utf-8")
    assert text.count('name="llava"') == 1
    (tmp_path / "newcomer.py").write_text(text.replace('name="llava"', 'name="newcomer"'), "utf-8")
    monkeypatch.setattr(family, "FOLDER", tmp_path)
    monkeypatch.setattr(families, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mmchat.families.newcomer", raising=False)
    yield "newcomer"
    sys.modules.pop("mmchat.families.newcomer", None)
    if hasattr(families, "newcomer"):
        del families.newcomer


def test_a_file_alone_makes_a_family(newcomer, tmp_path, picture):
    assert family.names() == (newcomer,)
    record = family.load(newcomer)
    assert record.name == newcomer
    folder = dwarfs.write(record, tmp_path / "dwarf")
    listed = tmp_path / "models.toml"
    listed.write_text(f'[[model]]\nname = "new"\nfamily = "{newcomer}"\nfolder = "{folder}"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODELS", str(listed))
        desk = Desk(LocalEngine.named("new", "fp32", "cpu"))
    turn = Turn("user", "What is @1?", (Region("box", Box(0.2, 0.1, 0.7, 0.8)),))
    answer = list(desk.answer(Ask((picture,), (turn,), limits=Limits(new_tokens=4))))[-1]
    assert answer.done and dict(answer.notes)["encoder_runs"] == 1 and desk.engine.family.name == newcomer
    desk.close()
