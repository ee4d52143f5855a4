"""Compiles the CUDA core ahead of time: `python -m msda.build_cuda [folder]`, by default beside this file.

It needs nvcc and nothing else: no headers of torch or Python, and CUDA's runtime is linked in, so one build serves
every version of torch. Machine code is made for every architecture from 7.5 on that this nvcc knows, and portable code
for those to come. Variables: NVCC the compiler; MSDA_CUDA_ARCHS fewer architectures, as in "80 90".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "csrc" / "msda_cuda.cu"
LIBRARY = "libmsda_cuda.so"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Those with machine code of their own where nvcc knows them; 87, 103 and 121 run their elder's."""
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Werror"]


def compiler() -> str | None:
    """Path of nvcc: the variable NVCC, else the first on the path, else where CUDA puts it."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return os.environ.get("NVCC") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def architectures(nvcc: str) -> list[int]:
    """What this nvcc can make code for, of those we want (MSDA_CUDA_ARCHS, else all); ValueError where that is none."""
    said = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = {line.removeprefix("compute_") for line in said.split()}
    wanted = os.environ.get("MSDA_CUDA_ARCHS", "").split() or [str(number) for number in ARCHITECTURES]
    found = sorted(int(number) for number in wanted if number in known)
    if not found:
        raise ValueError(f"{nvcc} makes code for none of {' '.join(wanted)}: set MSDA_CUDA_ARCHS to some it lists")
    return found


def build(target: Path) -> Path:
    """The library, made in the folder `target`. ValueError without nvcc, CalledProcessError where it refuses."""
    nvcc = compiler()
    if nvcc is None:
        raise ValueError("there is no nvcc: install the CUDA toolkit, or set NVCC to the compiler's path")
    numbers = architectures(nvcc)
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    codes.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    # Written beside and moved: a process that has the old one open keeps it whole.
    made = target / f"{LIBRARY}.new"
    threads = str(os.cpu_count() or 1)
    subprocess.run([nvcc, "-shared", *FLAGS, *codes, "--threads", threads, str(SOURCE), "-o", str(made)], check=True)
    made.replace(target / LIBRARY)
    return target / LIBRARY


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.parent.parent))
