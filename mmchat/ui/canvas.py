"""The drawing surface: a picture, the regions a user drew on it, and what they are in Python.

The browser's half is in assets/: picture.js brings a picture in, pointing.js listens to mouse, finger and keys,
canvas.js draws. What comes from there is a client's word: `regions_of` checks types, numbers, count and bounds again.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from mmchat.geometry import Region, open_image, region

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MOST_REGIONS = 32
SCRIPTS = ("parts.js", "picture.js", "pointing.js", "canvas.js")  # one scope, in this order
VIEW_SIDE = 2048  # pixels of the longer side of the copy that the browser shows
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Surface(GradioModel):
    """What travels: the picture as given, an upright copy to show, the upright size, regions in its unit square."""

    image: FileData | None = None
    view: FileData | None = None
    size: list[int] | None = None
    regions: list[dict[str, Any]] = []
    selected: int | None = None


def typed_html(model: type[GradioModel], scripts: tuple[str, ...], **kwargs: Any) -> gr.HTML:
    """A custom HTML component whose value is a `model`: Gradio copies its files to the cache and refuses foreign paths.

    The attributes are set on the object, because Gradio writes a stub file beside the source of every subclass that is
    imported; a page must not write into its own program.
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
    return typed_html(Surface, SCRIPTS, html_template='<div class="mm-canvas"></div>', most=MOST_REGIONS, **kwargs)


def surface_of(path: str | Path, cache: str, name: str | None = None) -> Surface:
    """A picture file laid on an empty surface: opened (ValueError with cause and remedy), and copied for the browser.

    The copy is upright, 8-bit RGB without EXIF, at most VIEW_SIDE pixels long: the browser shows what the model sees.
    """
    image = open_image(str(path))
    return Surface(
        image=FileData(path=str(path), orig_name=name or Path(path).name),
        view=shown_copy(image, cache),
        size=list(image.size),
    )


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
    return dict(_region(item) for item in surface.regions)


def _region(item: dict[str, Any]) -> tuple[int, Region]:
    number, kind = item.get("id"), item.get("kind")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 999:
        raise ValueError("A region has no number: delete it and draw it again.")
    corners = item.get("box")
    if kind == "point" and isinstance(corners, list):
        return number, region({"kind": "point", "points": [corners[:2]]}, number)
    if kind != "box":
        raise ValueError(f"Region {number} is neither box nor point: delete it and draw it again.")
    return number, region({"kind": "box", "box": corners}, number)


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
