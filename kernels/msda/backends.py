"""Which back end runs, and why: each is a module with a `state`, looked for only when somebody asks."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

MODULES = {
    "cuda": "msda.cuda",
    "cpu": "msda.cpu",
    "triton": "msda.triton_kernel",
    "reference": "msda.reference",
}
"""Best first: where several are ready, the first one runs. A module has `state(device, dtype)` ("" when it can run,
else why not), `forward`, `backward`, `forward_fused` and `backward_fused`, as in reference.py."""

BACKENDS = tuple(MODULES)
VARIABLE = "MSDA_BACKEND"


@dataclass(frozen=True)
class State:
    """Whether a back end can run here, and in one sentence why or what is missing."""

    name: str
    ready: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """The back end that will run, and why it is this one."""

    name: str
    why: str


@cache
def module(name: str) -> ModuleType:
    """The back end's module; ImportError where what it stands on is not installed."""
    return importlib.import_module(MODULES[name])


@cache
def state(name: str, device: str, dtype: torch.dtype) -> State:
    """Whether one back end can run."""
    try:
        lacks = module(name).state(device, dtype)
    except ImportError as error:
        lacks = f"it is not installed ({error})"
    return State(name, not lacks, lacks or f"it runs on {device} with {str(dtype).removeprefix('torch.')}")


def states(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[State, ...]:
    """Every back end, best first, for tensors on that device and of that type."""
    return tuple(state(name, device, dtype) for name in BACKENDS)


def choose(device: str = "cpu", dtype: torch.dtype = torch.float32, backend: str | None = None) -> Choice:
    """Which back end runs: the argument, else the variable MSDA_BACKEND, else the first that is ready. ValueError for
    one that cannot run.
    """
    return _chosen(device, dtype, backend, os.environ.get(VARIABLE) or None)


@cache
def _chosen(device: str, dtype: torch.dtype, backend: str | None, variable: str | None) -> Choice:
    forced, by = (backend, "the caller") if backend is not None else (variable, f"the variable {VARIABLE}")
    if forced is None:
        first = next(state for state in states(device, dtype) if state.ready)
        return Choice(first.name, f"the fastest that is ready: {first.why}")
    if forced not in MODULES:
        raise ValueError(f"no back end {forced!r} (asked for by {by}): choose one of {', '.join(BACKENDS)}")
    found = state(forced, device, dtype)
    if not found.ready:
        raise ValueError(f"the back end {forced!r}, asked for by {by}, cannot run here: {found.why}")
    return Choice(forced, f"asked for by {by}")
