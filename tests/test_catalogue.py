"""The document of the families is what their records say."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmchat import catalogue, family
from mmchat.cli import main
from mmchat.ui import panels

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "families.md"


def test_the_document_is_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--markdown"]) == 0
    told = capsys.readouterr().out
    assert DOCUMENT.read_text("utf-8") == told, (
        "docs/families.md is old: run `python -m mmchat models --markdown > docs/families.md`"
    )
    assert all(f"\n| {name} | " in told for name in family.names())


def test_every_row_fills_every_column() -> None:
    for line in catalogue.markdown().splitlines():
        if line.startswith("| "):
            cells = line.replace("\\|", "").strip("|").split("|")
            assert len(cells) == len(catalogue.HEAD) and all(cell.strip() for cell in cells), line


@pytest.mark.parametrize("name", family.names())
def test_what_is_not_verified_is_said_wherever_a_model_is_described(name: str) -> None:
    """In the document, in the list of models and on the page: one sentence, and none for what is made here."""
    said = family.load(name).unverified
    assert (said == "") if name == "pocket" else (said.endswith(".") and ". " not in said and len(said) < 160)
    (line,) = [line for line in catalogue.markdown().splitlines() if line.startswith(f"| {name} |")]
    assert line.rstrip("| ").endswith(f"| {said or 'nothing'}".rstrip())
    row = {"name": name, "about": family.load(name).about, "unverified": said}
    assert ("Not verified" in panels.models_html([row], name)) == bool(said)
    assert escape(said) in panels.models_html([row], name)
    desk = SimpleNamespace(engine=SimpleNamespace(family=family.load(name), precision="fp32"))
    head = panels.head_html(desk, name)  # type: ignore[arg-type]
    assert escape(said) in head and ("Not verified" in head) == bool(said)


def test_the_list_of_models_says_what_is_not_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    chosen = [row for row in rows.values() if row["family"] == "shikra"]
    assert chosen and all(row["unverified"] == family.load("shikra").unverified for row in chosen)
    assert main(["models"]) == 0
    assert f"Not verified: {family.load('shikra').unverified}" in capsys.readouterr().out


def test_what_is_counted_as_verified_lies_there() -> None:
    cases = [path for path in (catalogue.GOLDEN / "kosmos-2").glob("*.safetensors")]
    whole = sum(path.name.startswith("whole") for path in cases)
    said = catalogue.verified("kosmos2")
    assert f"{whole} of the whole model" in said and f"{len(cases) - whole} of parts" in said
    assert "published names" in said and catalogue.verified("pocket").startswith("no original")


@pytest.mark.parametrize(("name", "in_", "out"), [("qwen3_vl", "250, 400", "bbox_2d"), ("shikra", "[0.250,", "it [")])
def test_the_roads_are_the_familys_own(name: str, in_: str, out: str) -> None:
    record = family.load(name)
    told = catalogue.roads(record, record.frame(record.dwarf))
    assert in_ in told[0] and out in told[1]
