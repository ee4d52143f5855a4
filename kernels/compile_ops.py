"""Compiles what this machine can of msda: `python kernels/compile_ops.py [folder]`, by default in place.

The CPU library needs a C++ compiler and nothing else: no headers of torch or Python are used, so one build serves every
version of both and takes seconds. Variables: CXX the compiler, MSDA_CXXFLAGS more flags (a sanitizer), MSDA_BUILD what
to build: "auto" (what can be, the CUDA part only where torch speaks CUDA), "cpp", "cuda", "none".
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parent / "msda" / "csrc"
LIBRARY = "libmsda_cpu.so"
GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)")
OLDEST = (2, 17)  # the oldest that wheels of today are named for
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


def compile_cpu(folder: Path) -> Path:
    """The library of the CPU back end in `folder`; CalledProcessError where the compiler refuses."""
    cxx = compiler() or "g++"
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
    if asked not in ("auto", "cpp", "cuda", "none"):
        raise SystemExit(f"MSDA_BUILD={asked}: choose auto, cpp, cuda or none")
    built = []
    for name, wanted, make in (("cpp", can_compile(), compile_cpu), ("cuda", can_cuda(), build_cuda().build)):
        if asked != name and (asked != "auto" or not wanted):
            print(f"msda: {name} is not built here (MSDA_BUILD={asked}); other back ends do its work", file=sys.stderr)
            continue
        try:
            built.append(make(folder))
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            if asked == name:
                raise SystemExit(f"msda: {name} could not be built: {error}") from error
            print(f"msda: {name} could not be built ({error}); other back ends do its work", file=sys.stderr)
    return built


def can_compile() -> bool:
    return compiler() is not None and sys.platform != "win32"


def can_cuda() -> bool:
    """Whether a GPU's code is of use: nvcc is here, and a torch that speaks CUDA."""
    if build_cuda().compiler() is None:
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None


def build_cuda() -> ModuleType:
    """msda/build_cuda.py, read by its path: the package itself needs torch, which may not be here."""
    spec = importlib.util.spec_from_file_location("build_cuda", SOURCES.parent / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manylinux(libraries: list[Path], tag: str) -> str:
    """The platform's tag, on Linux by the newest glibc that the libraries ask for: manylinux_2_17_x86_64."""
    if not tag.startswith("linux_"):
        return tag
    asked = {tuple(map(int, found)) for one in libraries for found in GLIBC.findall(one.read_bytes())}
    major, minor = max(asked | {OLDEST})
    return f"manylinux_{major}_{minor}_{tag.removeprefix('linux_')}"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES.parent
    for path in build(target):
        print(f"msda: built {path}")
