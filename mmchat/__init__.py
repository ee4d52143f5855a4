"""mmchat: a browser chat with pictures, for multimodal language models that ground what they say."""

import sys
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

# The operator's package lies in kernels/, where Python does not look in a bare clone. One that is installed, and may
# be compiled, wins.
if find_spec("msda") is None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))
