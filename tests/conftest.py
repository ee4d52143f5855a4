"""What many tests need: dwarfs of the families, a small picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dwarfs
import numpy as np
import pytest
from PIL import Image

from mmchat import family


@pytest.fixture(scope="session")
def dwarf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's dwarf as a checkpoint on disk, written once: tests must not change it."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = dwarfs.write(family.load(name), tmp_path_factory.mktemp(name))
        return written[name]

    return folder


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """80 x 60 pixels of noise: no part is like another."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
