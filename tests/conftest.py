"""What many tests need: dwarfs of the families, a small picture, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Libraries read these when they are imported: gradio's own client, too, asks a hub for things unless told not to.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False")

import dwarfs  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from mmchat import family  # noqa: E402


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


def here(host: object) -> bool:
    """Whether an address is this machine's own."""
    return host in (None, "", "localhost", "::1", "0.0.0.0", b"localhost") or str(host).startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Only this machine can be reached. Who tries more fails, even where the attempt's own error is swallowed."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo
    tried: list[str] = []

    def refuse(host: object) -> None:
        tried.append(f"{host} in {os.environ.get('PYTEST_CURRENT_TEST', 'between tests')}")
        raise OSError(f"tests reach no network, and this one asked for {host}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not here(address[0]):
            refuse(address[0])
        connect(self, address)

    def guarded_look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if not here(host):
            refuse(host)
        return look_up(host, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield
    assert not tried, f"the network was asked for: {tried}"
