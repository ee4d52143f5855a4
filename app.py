"""Starts the page: flags become an engine, a desk and a page. `python app.py --help` lists the flags; no logic here."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable

STARTED = time.monotonic()
# Importing makes a million lasting objects that the collector would visit again and again: a second of eight.
gc.disable()
# Before gradio and transformers are imported: they read these then. Nothing is sent and nothing is fetched.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def flags() -> argparse.ArgumentParser:
    reader = argparse.ArgumentParser(description="mmchat: chat about pictures with models that say where things are.")
    # A Space is reached from outside; the Dockerfile says the same by the second variable.
    host = os.environ.get("MMCHAT_HOST") or ("0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")
    reader.add_argument("--model", metavar="NAME", help="a name of models.toml; the first one where none is given")
    reader.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16", "int8", "nf4"])
    reader.add_argument("--device", metavar="cpu|cuda|auto|disk", help="where the weights are kept")
    reader.add_argument("--context", metavar="N", type=int, help="tokens that a talk may have, where memory is short")
    reader.add_argument("--host", metavar="H", default=host)
    reader.add_argument("--port", metavar="N", type=int, default=7860)
    reader.add_argument("--engine", default="local", choices=["local", "replay", "remote"], help="what answers")
    return reader


def main() -> int:
    options = flags().parse_args()
    try:
        return serve(options)
    except ValueError as error:
        print(f"mmchat: {error}", file=sys.stderr)
        return 2


def serve(options: argparse.Namespace) -> int:
    if options.engine == "remote":
        raise ValueError("There is no remote engine in this version: choose --engine local or replay.")
    from mmchat import commands

    name = commands.REPLAY if options.engine == "replay" else options.model
    with commands.opened(name, options.precision, options.device, options.context) as (desk, name):
        # Here and not above, so that --help and a wrong name are answered at once: these take seconds to import.
        from mmchat import doctor, translate
        from mmchat.ui import page

        now = [name, options.precision]

        def open_model(name: str, precision: str, progress: Callable[[int, int], None]) -> None:
            commands.switch(desk, name, precision, (now[0], now[1]), progress)
            now[:] = name, precision
            commands.self_check(desk, name)

        local = options.engine == "local"
        built = page.build(
            desk,
            model=name,
            models=doctor.models if local else (),
            open_model=open_model if local else None,
            read=translate.read_json,
        )
        address = launched(built, options.host, options.port, page.launch_options())
        gc.enable()
        gc.freeze()
        if local:
            # Behind the launch: the page is there meanwhile, and a question waits its turn in the desk's line.
            threading.Thread(target=commands.self_check, args=(desk, name), daemon=True).start()
        print(f"mmchat: {address} is ready after {time.monotonic() - STARTED:.1f} s (Ctrl+C ends it)", flush=True)
        built.block_thread()
    return 0


def launched(built: object, host: str, port: int, looks: dict[str, object]) -> str:
    """The page's address once it answers. ValueError where the port is taken or the host is not this machine's."""
    try:
        _, address, _ = built.launch(  # type: ignore[attr-defined]
            **{**looks, "server_name": host, "server_port": port, "quiet": True, "prevent_thread_lock": True}
        )
    except OSError as error:
        raise ValueError(f"The page cannot listen at {host}:{port} ({error}): choose another --port.") from None
    return address


if __name__ == "__main__":
    sys.exit(main())
