"""mmchat: a browser chat with pictures, for multimodal language models that ground what they say."""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

# A checkout runs without being installed: there the operator `msda` lies in kernels/, beside this package.
_kernels = Path(__file__).resolve().parents[1] / "kernels"
if importlib.util.find_spec("msda") is None and (_kernels / "msda").is_dir():
    sys.path.append(str(_kernels))
