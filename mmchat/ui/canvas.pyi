"""The drawing surface: a picture, the regions a user drew on it, and what they are in Python.

The browser's half is assets/picture.js (bringing a picture in) and assets/canvas.js (drawing). What comes from there is a client's
word: `regions_of` checks types, numbers, count and bounds again.
"""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioModel
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from mmchat.geometry import Box, Point, Region, open_image

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MOST_REGIONS = 32
VIEW_SIDE = 2048  # pixels of the longer side of the copy that the browser shows
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Surface(GradioModel):
    """What travels: the picture as the user gave it, an upright copy to show, its upright size, regions in its unit square."""

    image: FileData | None = None
    view: FileData | None = None
    size: list[int] | None = None
    regions: list[dict[str, Any]] = []
    selected: int | None = None

from gradio.events import Dependency

class PictureCanvas(gr.HTML):
    """The component. Its value is a `Surface`; Gradio copies its files into the cache and refuses foreign paths."""

    data_model = Surface

    def __init__(self, **kwargs: Any) -> None:
        script = "\n".join((ASSETS / name).read_text("utf-8") for name in ("picture.js", "canvas.js"))
        super().__init__(
            html_template='<div class="mm-canvas"></div>', js_on_load=script, apply_default_css=False, most=MOST_REGIONS, **kwargs
        )

    def preprocess(self, payload: Surface | None) -> Surface | None:
        """The surface as the browser has it, or None without a picture. Nothing in it is checked but the files' origin."""
        return payload if payload is not None and payload.image is not None else None

    def postprocess(self, value: Surface | None) -> Surface | None:
        return value

    def api_info(self) -> dict[str, Any]:
        return self.data_model.model_json_schema()

    def example_payload(self) -> Any:
        return None

    def example_value(self) -> Any:
        return None
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def surface_of(path: str | Path, cache: str, name: str | None = None) -> Surface:
    """A picture file laid on an empty surface: opened (ValueError with cause and remedy), and copied for the browser.

    The copy is upright, 8-bit RGB without EXIF, at most VIEW_SIDE pixels long, so the browser shows what the model sees.
    """
    image = open_image(str(path))
    return Surface(
        image=FileData(path=str(path), orig_name=name or Path(path).name), view=shown_copy(image, cache), size=list(image.size)
    )


def shown_copy(image: Image.Image, cache: str) -> FileData:
    """A picture as a file for the browser, at most VIEW_SIDE pixels long; lossless where small, so that few pixels stay what they are."""
    scale = min(1.0, VIEW_SIDE / max(image.size))
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    small = image.width * image.height <= 256 * 256
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if small else image.save(buffer, "JPEG", quality=92)
    return FileData(path=save_bytes_to_cache(buffer.getvalue(), "view.png" if small else "view.jpg", cache))


def regions_of(surface: Surface) -> dict[int, Region]:
    """The drawn regions by the number on their badge, checked. ValueError with cause and remedy for what no hand can draw."""
    if len(surface.regions) > MOST_REGIONS:
        raise ValueError(f"There are {len(surface.regions)} regions, at most {MOST_REGIONS} can be used: delete some.")
    return dict(_region(item) for item in surface.regions)


def _region(item: dict[str, Any]) -> tuple[int, Region]:
    number, kind, values = item.get("id"), item.get("kind"), item.get("box")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 999:
        raise ValueError("A region has no number: delete it and draw it again.")
    if kind not in ("box", "point"):
        raise ValueError(f"Region @{number} is neither box nor point: delete it and draw it again.")
    if not isinstance(values, list) or len(values) != 4 or not all(_finite(value) for value in values):
        raise ValueError(f"Region @{number} has no usable corners: delete it and draw it again.")
    x0, y0, x1, y1 = map(float, values)
    if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
        raise ValueError(f"Region @{number} lies outside the picture: delete it and draw it inside.")
    if kind == "point":
        return number, Region("point", Box(x0, y0, x0, y0), (Point(x0, y0),))
    if x0 == x1 or y0 == y1:
        raise ValueError(f"Region @{number} has no area: drag a larger box or place a point.")
    return number, Region("box", Box(x0, y0, x1, y1))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def examples_in(folder: Path | None) -> list[Path]:
    """The example pictures of a folder by name; none where there is no folder."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def thumbnails(paths: list[Path], height: int = 96) -> list[dict[str, str]]:
    """Small copies of example pictures as data addresses, with names to read aloud; so nothing but the page itself is fetched."""
    out = []
    for path in paths:
        image = open_image(str(path))
        image.thumbnail((height * 3, height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        out.append({"name": path.stem.replace("_", " ").replace("-", " "), "source": source})
    return out