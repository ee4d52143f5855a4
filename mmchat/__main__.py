"""python -m mmchat COMMAND: see `cli`."""

import sys

from mmchat.cli import main

sys.exit(main())
