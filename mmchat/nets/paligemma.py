"""PaliGemma's decoder of masks: sixteen numbers of a codebook become a picture of 64 x 64.

After google-research/big_vision (evaluators/proj/paligemma/transfers/segmentation.py, Ning et al. 2023, arXiv
2301.02229); parameter names of the published `vae-oid.npz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

SIDE = 4  # of the square of codes


class Residual(nn.Module):
    """Two convolutions of 3 x 3 and one of 1 x 1, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.net(maps)


class Codebook(nn.Module):
    """A row for each code."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self._embedding = nn.Parameter(torch.empty(codes, width))


class MaskDecoder(nn.Module):
    """Codes [N, 16], row by row -> [N, 64, 64]; what is above 0 belongs to the mask."""

    def __init__(self, codes: int = 128, width: int = 512, inner: int = 128) -> None:
        super().__init__()
        self._vq_vae = Codebook(codes, width)
        layers: list[nn.Module] = [nn.Conv2d(width, inner, 1), nn.ReLU(), Residual(inner), Residual(inner)]
        sizes = [inner, inner, inner // 2, inner // 4, inner // 8]
        for coarse, fine in zip(sizes, sizes[1:], strict=False):
            layers += [nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 1))

    def quantised(self, codes: torch.Tensor) -> torch.Tensor:
        """[N, 4, 4, width]."""
        return self._vq_vae._embedding[codes].unflatten(1, (SIDE, SIDE))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.quantised(codes).permute(0, 3, 1, 2))[:, 0]

    @torch.inference_mode()
    def draw(self, codes: Sequence[int]) -> list[list[float]]:
        """Rows of one mask: what a `Scene` of the dialect asks for. ValueError where there are not sixteen codes."""
        if len(codes) != SIDE * SIDE:
            raise ValueError(f"A mask needs {SIDE * SIDE} codes, not {len(codes)}.")
        return self(torch.tensor([list(codes)]))[0].tolist()


def load(path: Path) -> MaskDecoder:
    """The published decoder, from its npz. ValueError where the file is none."""
    import numpy as np  # only this file needs it

    try:
        with np.load(path, allow_pickle=False) as stored:
            state = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
        codes, width = state["_vq_vae._embedding"].shape
        decoder = MaskDecoder(codes, width, len(state["decoder.0.bias"]))
        decoder.load_state_dict({name: value for name, value in state.items() if name in decoder.state_dict()})
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no decoder of PaliGemma's masks: give the published vae-oid.npz.") from error
    return decoder.eval()
