"""python -m mmchat.train STEP: compose | convert | features | fuser | chooser | language | pack. Each step is one
module; this only hands over."""

from __future__ import annotations

import importlib
import sys

STEPS = {
    "compose": "scenes from cut-outs over backgrounds",
    "convert": "the pretrained vision weights into our layout",
    "features": "what the frozen eyes see of each scene, cached",
    "fuser": "train the block that fuses the levels",
    "chooser": "train the one that points",
    "language": "cut the language model down and train it",
    "pack": "everything into assets/pocket",
}


def main(arguments: list[str]) -> int:
    """Runs one step's `main(arguments)`; 2 with one sentence for what a user can mend."""
    if not arguments or arguments[0] not in STEPS:
        print(
            "usage: python -m mmchat.train STEP ...\n"
            + "\n".join(f"  {step:9} {about}" for step, about in STEPS.items()),
            file=sys.stderr,
        )
        return 2
    module = importlib.import_module(f"mmchat.train.{arguments[0]}")
    try:
        module.main(arguments[1:])
    except ValueError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
