"""Compiles what this machine can of msda: `python kernels/compile_ops.py [folder]`, by default in place.

The CPU library needs a C++ compiler and nothing else: no headers of torch or Python are used, so one build serves every
version of both and takes seconds. Variables: CXX the compiler, MSDA_CXXFLAGS more flags (a sanitizer), MSDA_BUILD what
to build: "auto" (what can be), "cpp", "none".
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "msda" / "csrc"
LIBRARY = "libmsda_cpu.so"
COMMON = ["-O3", "-fPIC", "-fno-math-errno", "-fvisibility=hidden", "-Wall"]
CXX = ["-std=c++17", "-fno-exceptions", "-fno-rtti"]
SETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}


def compiler() -> str | None:
    """The C++ compiler: CXX, else the first that is found."""
    return os.environ.get("CXX") or next((one for one in ("g++", "c++", "clang++") if shutil.which(one)), None)


def compile_cpu(folder: Path, cxx: str) -> Path:
    """The library of the CPU back end in `folder`; CalledProcessError where the compiler refuses."""
    intel = platform.machine().lower() in ("x86_64", "amd64")
    sets = SETS if intel else {"portable": []}
    more = os.environ.get("MSDA_CXXFLAGS", "").split()
    with tempfile.TemporaryDirectory() as scratch:
        jobs, objects = [], []
        for name, flags in sets.items():
            objects.append(str(Path(scratch) / f"{name}.o"))
            jobs.append([cxx, *COMMON, *CXX, *flags, *more, "-c", str(SOURCES / "msda_cpu.cpp"), "-o", objects[-1]])
        objects.append(str(Path(scratch) / "dispatch.o"))
        jobs.append([cxx, "-x", "c", *COMMON, *more, "-c", str(SOURCES / "msda_dispatch.c"), "-o", objects[-1]])
        for job in jobs:
            subprocess.run(job, check=True)
        # Written beside and moved: a process that has the old one open keeps it whole.
        made = folder / f"{LIBRARY}.new"
        subprocess.run([cxx, "-shared", *more, *objects, "-lm", "-o", str(made)], check=True)
        made.replace(folder / LIBRARY)
    return folder / LIBRARY


def build(folder: Path) -> list[Path]:
    """What MSDA_BUILD asks for, into `folder`. With "auto" what cannot be built is said and left out."""
    asked = os.environ.get("MSDA_BUILD", "auto")
    if asked not in ("auto", "cpp", "none"):
        raise SystemExit(f"MSDA_BUILD={asked}: choose auto, cpp or none")
    cxx = compiler()
    if asked == "none" or (asked == "auto" and (cxx is None or sys.platform == "win32")):
        print(f"msda: the CPU back end is not built ({'no C++ compiler' if cxx is None else 'as asked'}); plain torch")
        return []
    try:
        return [compile_cpu(folder, cxx or "g++")]
    except (OSError, subprocess.CalledProcessError) as error:
        if asked == "cpp":
            raise SystemExit(f"msda: the CPU back end could not be built: {error}") from error
        print(f"msda: the CPU back end could not be built ({error}); plain torch will run", file=sys.stderr)
        return []


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES.parent
    for path in build(target):
        print(f"msda: built {path}")
