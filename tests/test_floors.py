"""Imports point down: every file's imports are read, and each rule of who may import whom is one line here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room and what it may import beside itself. A room is a file or a folder of mmchat, "msda", or "app".
FLOORS = {
    "app": {"ui", "desk", "engines", "commands", "doctor", "translate"},
    "cli": {"commands"},
    "bench": {"family", "desk", "engines", "nets", "prompt", "dialect", "geometry"},
    "fetch": {"family", "models", "nets"},
    "selfcheck": {"desk", "geometry"},
    "commands": {"desk", "evaluate", "doctor", "export", "engines", "fetch", "golden", "models", "paint", "translate",
                 "catalogue", "detectors", "dialect",
                 "clip", "geometry", "family", "nets", "selfcheck", "versus"},
    "ui": {"desk", "paint", "export", "clip", "geometry"},
    "evaluate": {"desk", "geometry"},
    "golden": {"engines", "family", "families", "nets", "msda", "prompt", "dialect", "geometry", "layout", "templates"},
    "catalogue": {"family", "models", "nets", "dialect", "geometry"},
    "doctor": {"detectors", "family", "models", "nets", "msda"},
    "asking": {"family", "prompt", "clip", "geometry"},
    "desk": {"asking", "family", "prompt", "dialect", "clip", "geometry", "paint"},
    "engines": {"family", "models", "prompt", "nets", "dialect", "geometry"},
    "families": {"family", "nets", "dialect", "prompt", "clip", "geometry", "layout", "templates", "tiled"},
    "detectors": {"models", "nets", "msda", "geometry"},
    "layout": {"family", "nets", "dialect", "prompt", "geometry"},
    "translate": {"dialect", "export", "geometry"},
    "versus": {"dialect", "geometry"},
    "family": {"dialect", "prompt", "clip", "geometry"},
    "models": {"nets"},
    "export": {"dialect", "geometry"},
    "templates": {"prompt"},
    "nets": {"msda", "picture"},
    "dialect": {"geometry"},
    "prompt": {"geometry"},
    "paint": {"geometry"},
    "geometry": {"picture"},
    "tiled": {"geometry"},
    "clip": {"picture"},
    "picture": set(),
    "msda": set(),
}  # fmt: skip


def files() -> dict[str, Path]:
    """Module name -> file, of the program, the operator and app.py."""
    found = {"app": ROOT / "app.py"}
    for base in (ROOT / "mmchat", ROOT / "kernels" / "msda"):
        for path in sorted(base.rglob("*.py")):
            name = ".".join(path.relative_to(base.parent).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


def imports(name: str, path: Path, everything: bool = True) -> set[str]:
    """Full names of the modules a file imports, functions' own imports and types included.

    everything False: only what is imported when the file is, without `if TYPE_CHECKING` and without functions.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            inside = {f"{module}.{alias.name}" for alias in node.names}
            found |= {one for one in inside if one in MODULES} or {module}
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if everything or not (lazy or typing):
            waiting += ast.iter_child_nodes(node)
        elif typing:
            waiting += node.orelse
    return found


def room(module: str) -> str | None:
    """The room a module belongs to; None outside of the house."""
    parts = module.split(".")
    if parts[0] == "mmchat":
        return parts[1] if len(parts) > 1 else "mmchat"
    return parts[0] if parts[0] in ("msda", "app") else None


MODULES = files()
IMPORTS = {name: imports(name, path) for name, path in MODULES.items()}
LAID = {name for name in MODULES if room(name) not in ("mmchat", "train", "__main__")}


def chain(start: str, wanted: str) -> list[str]:
    """The imports that lead from a module to the outside package `wanted` as soon as it is imported; [] if none do."""
    waiting, seen = [[start]], {start}
    while waiting:
        path = waiting.pop()
        for target in sorted(imports(path[-1], MODULES[path[-1]], everything=False)):
            if target.split(".")[0] == wanted:
                return [*path, target]
            for name in {target, target.rpartition(".")[0]} & MODULES.keys():
                if name not in seen:
                    seen.add(name)
                    waiting.append([*path, name])
    return []


@pytest.mark.parametrize("name", sorted(LAID))
def test_a_file_imports_only_from_the_floors_below(name: str) -> None:
    own = room(name)
    assert own in FLOORS, f"{name} has no floor yet: give it one in FLOORS"
    above = {other for other in map(room, IMPORTS[name]) if other not in (None, own, "mmchat")} - FLOORS[own]
    assert not above, f"{name} must not import {', '.join(sorted(above))}"


def test_the_floors_have_no_circle() -> None:
    left = {name: set(below) for name, below in FLOORS.items()}
    while left:
        ground = {name for name, below in left.items() if not below & left.keys()}
        assert ground, f"a circle among {', '.join(sorted(left))}"
        left = {name: below for name, below in left.items() if name not in ground}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_page_imports_gradio(name: str) -> None:
    outside = {target.split(".")[0] for target in IMPORTS[name]}
    assert room(name) == "ui" or not outside & {"gradio", "gradio_client"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) == "ui"))
def test_the_page_knows_no_torch_engine_family_or_net(name: str) -> None:
    assert "torch" not in {target.split(".")[0] for target in IMPORTS[name]}
    assert not {room(target) for target in IMPORTS[name]} & {"engines", "family", "families", "nets", "msda"}


LIGHT = ("geometry", "picture", "clip", "dialect", "prompt", "paint", "export", "asking", "desk", "family", "translate",
         "ui")  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) in LIGHT))
def test_places_words_and_drawing_import_no_torch(name: str) -> None:
    assert "torch" not in {target.split(".")[0] for target in IMPORTS[name]}
    assert chain(name, "torch") == []


@pytest.mark.parametrize("wanted", ["torch", "transformers", "gradio", "numpy", "PIL", "cv2", "supervision"])
def test_the_command_line_starts_without_heavy_libraries(wanted: str) -> None:
    assert chain("mmchat.cli", wanted) == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) == "families"))
def test_no_family_imports_another(name: str) -> None:
    assert not {target for target in IMPORTS[name] if room(target) == "families"} - {name, "mmchat.families"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) == "nets"))
def test_nets_import_neither_prompt_nor_dialect_nor_a_family(name: str) -> None:
    assert not {room(target) for target in IMPORTS[name]} & {"prompt", "dialect", "family", "families"}


@pytest.mark.parametrize("name", ["mmchat.desk"])
def test_the_desk_imports_no_engine(name: str) -> None:
    assert not {room(target) for target in IMPORTS[name]} & {"engines", "families", "nets"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) == "msda"))
def test_the_operator_imports_nothing_of_mmchat(name: str) -> None:
    assert not {target for target in IMPORTS[name] if target.split(".")[0] == "mmchat"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nobody_imports_the_app(name: str) -> None:
    assert not {target for target in IMPORTS[name] if target.split(".")[0] == "app"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) != "train"))
def test_nobody_imports_how_the_pocket_model_is_made(name: str) -> None:
    assert "train" not in {room(target) for target in IMPORTS[name]}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nobody_needs_flash_attn_or_torchvision(name: str) -> None:
    assert not {target.split(".")[0] for target in IMPORTS[name]} & {"flash_attn", "torchvision"}


def test_every_family_is_a_file_without_a_list_of_names() -> None:
    for name, path in MODULES.items():
        if room(name) in ("families", "golden", "train"):
            continue
        imported = {target for target in IMPORTS[name] if target.startswith("mmchat.families.")}
        assert not imported, f"{path} names a family: {imported}"
