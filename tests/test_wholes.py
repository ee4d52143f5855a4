"""Recorded whole models from checkpoint folders as they are published: two shards with an index, of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmchat.golden import Case, handlers, run
from mmchat.golden.loading import layout

GOLDEN = Path(__file__).parent / "golden"
WHOLES = sorted(GOLDEN.glob("*/whole*.json"))
LLAVA_KIN = [path for path in WHOLES if path.parent.name in ("llava", "mmfuser", "convllava", "inf-llava")]
BF16 = 0.05  # of the largest logit: 8 bits of each weight and of what each layer gives


def told(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.fixture(params=["shards", "bin"])
def lying(request: pytest.FixtureRequest) -> Iterator[str]:
    before = layout.set(request.param)
    yield request.param
    layout.reset(before)


@pytest.mark.parametrize("path", WHOLES, ids=told)
def test_a_recorded_model_says_the_same_from_shards(path: Path, lying: str) -> None:
    (row,) = run(path)
    assert row.status == "ok", row.why


@pytest.mark.parametrize("path", LLAVA_KIN, ids=told)
def test_in_bf16_a_recorded_model_stays_near(path: Path, lying: str) -> None:
    case = Case(path)
    known = handlers(case)
    assert known is not None
    ours = known[case.object](case, torch.bfloat16)["logits"]  # type: ignore[call-overload,index]
    theirs = case.tensors["out.logits"]
    assert ours.dtype == torch.bfloat16
    if "out.attention_mask" in case.tensors:  # what stands at padding means nothing
        real = case.tensors["out.attention_mask"].bool()
        ours, theirs = ours[real], theirs[real]
    assert 1e-4 < float((ours.float() - theirs).abs().max() / theirs.abs().max()) <= BF16
