"""Looking inside: feature levels, attention and hidden states become small heat maps, float32 in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

Box = tuple[float, float, float, float]


def norm(level: torch.Tensor) -> np.ndarray:
    """How long the feature vector of each cell is: level [c, h, w] -> [h, w], least 0, largest 1."""
    return unit(level.float().norm(dim=0))


def components(level: torch.Tensor) -> np.ndarray:
    """The first three principal components of the cells as red, green and blue: level [c, h, w] -> [h, w, 3].

    Signs are settled so that the same features give the same colours: the largest entry of a direction is positive.
    """
    c, h, w = level.shape
    cells = level.float().flatten(1).T
    cells = cells - cells.mean(0)
    _, _, directions = torch.linalg.svd(cells, full_matrices=False)
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    projected = cells @ (directions * largest.sign()).T
    out = np.zeros((h, w, 3), np.float32)
    for index in range(projected.shape[1]):
        values = projected[:, index]
        low, high = values.quantile(0.02), values.quantile(0.98)  # one odd cell must not take all the contrast
        out[..., index] = unit(values.clamp(low, high).reshape(h, w))
    return out


def likeness(level: torch.Tensor, box: Box) -> np.ndarray:
    """Cosine of each cell to the mean feature of a box (unit square): level [c, h, w] -> [h, w].

    0 for opposite, 1 for alike. Cells count by how much of them the box covers, so a box smaller than a cell has a
    feature too.
    """
    c, h, w = level.shape
    across, down = covered(box[0], box[2], w), covered(box[1], box[3], h)
    weights = torch.as_tensor(np.outer(down, across), dtype=torch.float32, device=level.device)
    mean = (level.float() * weights).sum((1, 2)) / weights.sum()
    cosine = torch.nn.functional.cosine_similarity(level.float(), mean[:, None, None], dim=0)
    return ((cosine + 1) / 2).clamp(0, 1).cpu().numpy().astype(np.float32)


def covered(low: float, high: float, cells: int) -> np.ndarray:
    """How much of each of `cells` equal parts of 0..1 lies between low and high; the nearest one where none does."""
    edges = np.arange(cells + 1) / cells
    share = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells
    if share.sum() <= 1e-6:
        share[min(cells - 1, max(0, int((low + high) / 2 * cells)))] = 1.0
    return share


def laid(values: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """[T] values of a picture's vectors, row by row over a grid (rows, columns), by default a square, as a map [h, w];
    ValueError otherwise.
    """
    side = math.isqrt(len(values))
    rows, columns = grid or (side, side)
    if rows * columns != len(values):
        raise ValueError("This model's picture vectors are no square map: choose another heat map.")
    return values.float().reshape(rows, columns)


def unit(values: torch.Tensor) -> np.ndarray:
    """Moved and scaled to 0..1, float32; all 0 where every value is the same."""
    array = torch.nan_to_num(values.detach().float()).cpu().numpy()
    low, high = float(array.min()), float(array.max())
    return ((array - low) / (high - low) if high > low else np.zeros_like(array)).astype(np.float32)


@torch.inference_mode()
def attention(language: nn.Module, inputs: torch.Tensor, rows: Sequence[int], columns: slice) -> torch.Tensor:
    """How much the positions `rows` of inputs [1, T, C] attend to the positions `columns`: [len(columns)].

    A mean over rows, heads and the upper half of the layers (the lower ones look at neighbours).
    """
    looking = [layer.self_attn for layer in _layers(language)]
    return attended(
        language, looking, lambda: language(inputs_embeds=inputs, use_cache=False, logits_to_keep=1), rows, columns
    )


@torch.inference_mode()
def attended(
    language: nn.Module,
    looking: Sequence[nn.Module],
    run: Callable[[], object],
    rows: Sequence[int],
    columns: slice,
) -> torch.Tensor:
    """`attention`, told by the modules `looking`, one a layer, whose second result are weights [1, heads, T, S]."""
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, made: Any) -> None:
        kept.append(made[1][0, :, list(rows), columns].float().mean((0, 1)))

    with eager(language):
        hooks = [layer.register_forward_hook(keep) for layer in looking[len(looking) // 2 :]]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(kept).mean(0)


@torch.inference_mode()
def lens(language: nn.Module, inputs: torch.Tensor, ids: Sequence[int], columns: slice) -> torch.Tensor:
    """Logit lens: how probable positions `columns` of inputs [1, T, C] make one of the tokens `ids`: [len(columns)].

    The largest over tokens and layers (nostalgebraist 2020; for pictures Neo et al. 2024, arXiv 2410.07149).
    """
    states = language(inputs_embeds=inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states
    norm_, head = language.model.norm, language.get_output_embeddings()
    best: torch.Tensor | None = None
    # The library has normed the last state already; the first holds the pictures' vectors as they came in.
    for index, state in enumerate(states[1:], 1):
        seen = state[0, columns]
        logits = head(seen if index == len(states) - 1 else norm_(seen)).float()
        found = logits.softmax(-1)[:, list(ids)].amax(-1)
        best = found if best is None else torch.maximum(best, found)
    assert best is not None, "a language model has layers"
    return best


@contextmanager
def eager(language: nn.Module) -> Iterator[None]:
    """The language model with attention that gives its weights; back to what it had afterwards."""
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)


def _layers(language: nn.Module) -> Sequence[nn.Module]:
    layers = getattr(getattr(language, "model", None), "layers", None)
    if layers is None:
        raise ValueError("This language model is not laid out as a Llama: its attention cannot be shown.")
    return layers
