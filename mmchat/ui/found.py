"""Pictures of the user's that a model answers with, as small pictures inside the talk.

They are handed over inside the page's own HTML: no file is served, so nobody can ask the page for other files.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from html import escape
from pathlib import Path

from mmchat.desk import Answer
from mmchat.geometry import open_image

LARGEST = (320, 200)  # pixels of a small picture


def pictures_html(answer: Answer) -> str:
    """The pictures of an answer with their names, in its order; "" where it has none."""
    if not answer.pictures:
        return ""
    shown = "".join(_figure(picture.path) for picture in answer.pictures)
    return f'<div class="mm-found" role="group" aria-label="Pictures of yours">{shown}</div>'


def _figure(path: str) -> str:
    name = escape(Path(path).name)
    try:
        about = Path(path).stat()
        source = _small(path, about.st_mtime_ns, about.st_size)
    except (OSError, ValueError):  # gone since it was found
        return f'<figure class="mm-quiet"><figcaption>{name} cannot be opened any more</figcaption></figure>'
    return f'<figure><img src="{source}" alt="{name}" title="{name}"><figcaption>{name}</figcaption></figure>'


@lru_cache(maxsize=128)
def _small(path: str, changed: int, size: int) -> str:
    """A small JPEG as an address; kept, because each step of a growing answer shows the whole talk again."""
    image = open_image(path)
    image.thumbnail(LARGEST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
