"""The drawing surface: pictures, the regions a user drew on them, and what they are in Python.

The browser's half is in assets/: picture.js brings pictures in, shapes.js knows what can be drawn, pointing.js listens
to mouse, finger and keys, drawing.js draws, canvas.js joins them. What comes from there is a client's word: `sheets_of`
and `regions_of` check types, numbers, counts and bounds again.
"""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from mmchat.geometry import KINDS, Region, open_image, region

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MOST_REGIONS = 32
MOST_PICTURES = 8
MOST_CELLS = 1 << 20  # of a painted region; the page paints on 256 cells along the longer side
SCRIPTS = ("parts.js", "picture.js", "shapes.js", "pointing.js", "drawing.js", "canvas.js")  # one scope, in this order
VIEW_SIDE = 2048  # pixels of the longer side of the copy that the browser shows
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Sheet(GradioModel):
    """A picture as given, an upright copy to show, the upright size, and a digest that tells it from others."""

    image: FileData | None = None
    view: FileData | None = None
    size: list[int] | None = None
    key: str = ""


class Surface(Sheet):
    """What travels: the first picture, `more` of them, which one is shown (from 0), the regions in the unit square of
    the picture that their "image" counts, and the selected region's number.
    """

    more: list[Sheet] = []
    shown: int = 0
    regions: list[dict[str, Any]] = []
    selected: int | None = None


class Abilities(GradioModel):
    """What the open model takes, for the tools: kinds of regions, "several pictures"; and its name."""

    takes: list[str] = []
    title: str = ""


def typed_html(model: type[GradioModel], scripts: tuple[str, ...], **kwargs: Any) -> gr.HTML:
    """A custom HTML component whose value is a `model`: Gradio copies its files to the cache and refuses foreign paths.

    The attributes are set on the object, because Gradio writes a stub file beside the source of every subclass that is
    imported; a page must not write into its own program. So an event that reads it must not have it as an output that
    it leaves out: Gradio then makes it anew for that visitor, without them.
    """
    made = gr.HTML(
        js_on_load="\n".join((ASSETS / name).read_text("utf-8") for name in scripts), apply_default_css=False, **kwargs
    )
    given: dict[str, Any] = {
        "data_model": model,
        "preprocess": lambda payload: payload,
        "postprocess": lambda value: value,
        "api_info": model.model_json_schema,
        "example_payload": lambda: None,
        "example_value": lambda: None,
    }
    for name, attribute in given.items():
        setattr(made, name, attribute)
    return made


def picture_canvas(**kwargs: Any) -> gr.HTML:
    """The drawing surface. Its value is a `Surface` or None; nothing in it is checked yet but its files' origin."""
    limits = {"most": MOST_REGIONS, "most_pictures": MOST_PICTURES}
    return typed_html(Surface, SCRIPTS, html_template='<div class="mm-canvas"></div>', **limits, **kwargs)


def abilities_holder(value: Abilities, **kwargs: Any) -> gr.HTML:
    """Carries `Abilities` to the drawing surface, which offers the tools for them; nothing to see."""
    return typed_html(Abilities, ("abilities.js",), value=value, html_template="", **kwargs)


def surface_of(path: str | Path, cache: str, name: str | None = None) -> Surface:
    """A picture file laid on an empty surface, as `sheet_of` says."""
    return Surface(**dict(sheet_of(path, cache, name)))


def sheet_of(path: str | Path, cache: str, name: str | None = None) -> Sheet:
    """A picture file opened (ValueError with cause and remedy) and copied for the browser.

    The copy is upright, 8-bit RGB without EXIF, at most VIEW_SIDE pixels long: the browser shows what the model sees.
    """
    image = open_image(str(path))
    return Sheet(
        image=FileData(path=str(path), orig_name=name or Path(path).name),
        view=shown_copy(image, cache),
        size=list(image.size),
        key=digest_of(path),
    )


def digest_of(path: str | Path) -> str:
    """What tells this picture from another: a digest of its file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sheets_of(surface: Surface | None) -> list[Sheet]:
    """The pictures that lie on the surface, with digests of our own. ValueError where there is none or too many."""
    if surface is None or surface.image is None:
        raise ValueError("There is no picture yet: drop one on the page, choose a file, or take an example.")
    if len(surface.more) >= MOST_PICTURES:
        raise ValueError(
            f"There are {len(surface.more) + 1} pictures, at most {MOST_PICTURES} can be used: remove some."
        )
    found = []
    for sheet in (Sheet(image=surface.image, view=surface.view, size=surface.size), *surface.more):
        if sheet.image is None:
            raise ValueError("One of the pictures is not there: remove it and add it again.")
        found.append(sheet.model_copy(update={"key": digest_of(sheet.image.path)}))
    return found


def shown_on(surface: Surface) -> int:
    """Which of the pictures is shown."""
    return max(0, min(surface.shown, len(surface.more)))


def shown_copy(image: Image.Image, cache: str) -> FileData:
    """A picture as a file for the browser, at most VIEW_SIDE pixels long; lossless where it is small."""
    scale = min(1.0, VIEW_SIDE / max(image.size))
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    small = image.width * image.height <= 256 * 256
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if small else image.save(buffer, "JPEG", quality=92)
    return FileData(path=save_bytes_to_cache(buffer.getvalue(), "view.png" if small else "view.jpg", cache))


def regions_of(surface: Surface) -> dict[int, Region]:
    """The drawn regions by the number on their badge, checked. ValueError for what no hand can draw."""
    if len(surface.regions) > MOST_REGIONS:
        raise ValueError(f"There are {len(surface.regions)} regions, at most {MOST_REGIONS} can be used: delete some.")
    found = dict(_region(item) for item in surface.regions)
    for number, drawn in found.items():
        if drawn.image > len(surface.more):
            raise ValueError(f"Region {number} is on a picture that is not there: delete it and draw it again.")
    return found


def _region(item: dict[str, Any]) -> tuple[int, Region]:
    number, kind = item.get("id"), item.get("kind")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 999:
        raise ValueError("A region has no number: delete it and draw it again.")
    if kind not in KINDS:
        raise ValueError(f"Region {number} is nothing that can be drawn: delete it and draw it again.")
    given = {name: item[name] for name in ("kind", "box", "points", "mask", "image") if name in item}
    corners = item.get("box")
    if kind == "point" and isinstance(corners, list):
        given["points"] = [corners[:2]]
    size = item["mask"].get("size") if kind == "mask" and isinstance(item.get("mask"), dict) else None
    if isinstance(size, list) and any(not isinstance(side, int) or not 0 < side <= MOST_CELLS for side in size):
        raise ValueError(f"Region {number} is painted on cells that no page has: delete it and draw it again.")
    if isinstance(size, list) and len(size) == 2 and size[0] * size[1] > MOST_CELLS:
        raise ValueError(f"Region {number} has more than {MOST_CELLS} cells: delete it and draw it again.")
    return number, region(given, number)


def examples_in(folder: Path | None) -> list[Path]:
    """The example pictures of a folder by name; none where there is no folder."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def thumbnails(paths: list[Path], height: int = 96) -> list[dict[str, str]]:
    """Small copies of example pictures as data addresses, with names to read aloud."""
    out = []
    for path in paths:
        image = open_image(str(path))
        image.thumbnail((height * 3, height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        out.append({"name": path.stem.replace("_", " ").replace("-", " "), "source": source})
    return out
