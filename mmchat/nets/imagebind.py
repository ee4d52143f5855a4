"""ImageBind's ears: a sound becomes log-mel pictures of two seconds each, a vision transformer gives each a direction.

Girdhar et al. 2023, arXiv 2305.05665; sizes and parameter names of `imagebind_huge.pth`, the audio part alone. Pictures
of sound are Kaldi's filter banks as torchaudio computes them. No numbers of the original are recorded: the parts are
held to independent ones (torch's own attention, transformers' spectrogram) and to the published formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

RATE = 16000  # samples a second
SECONDS, CLIPS = 2, 3  # of a clip, and clips of a sound
BINS, FRAMES = 128, 204  # rows (low to high) and columns of a picture of sound
WINDOW, STEP, FOURIER = 400, 160, 512  # samples: 25 ms, 10 ms, and the transform's length
LOWEST = 20.0  # Hz
MEAN, STD = -4.268, 9.138
HUGE = {"width": 768, "depth": 12, "heads": 12, "patch": 16, "stride": 10, "out": 1024}
"""Sizes of `imagebind_huge`."""
EPSILON = 1e-6


# Sound -> pictures


def pictures(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Samples [N] in -1..1 -> [CLIPS, 1, BINS, FRAMES], normalised: clips evenly laid over the sound, a shorter sound
    again and again.
    """
    samples, length = samples.float(), -(-len(samples) * RATE // rate)
    latest = Fraction(max(length / RATE - SECONDS, 0))
    starts = [latest * number / (CLIPS - 1) for number in range(CLIPS)]
    ends = [min(int((start + SECONDS) * RATE), length) for start in starts]
    clips = [resampled(samples, rate, int(start * RATE), end) for start, end in zip(starts, ends, strict=True)]
    made = torch.stack([filter_bank(clip) for clip in clips])[:, None]
    return (made - MEAN) / STD


def filter_bank(samples: torch.Tensor) -> torch.Tensor:
    """Samples [N] of RATE -> logarithms of energies [BINS, FRAMES]; behind the sound's end zeros, as the original has.

    Of every window: its mean taken away, 0.97 of the sample before, Hann's window, powers of the transform.
    """
    heard = torch.zeros(BINS, FRAMES)
    if len(samples) < WINDOW:
        return heard
    windows = (samples - samples.mean()).unfold(0, WINDOW, STEP)[:FRAMES]
    windows = windows - windows.mean(1, keepdim=True)
    windows = windows - 0.97 * torch.cat((windows[:, :1], windows[:, :-1]), 1)
    windows = windows * torch.hann_window(WINDOW, periodic=False)
    powers = torch.fft.rfft(windows, FOURIER).abs().square()
    energies = powers @ triangles().T
    heard[:, : len(energies)] = energies.clamp(min=torch.finfo(torch.float32).eps).log().T
    return heard


@cache
def triangles() -> torch.Tensor:
    """Weights [BINS, FOURIER / 2 + 1]: triangles of equal width in mel (1127 ln(1 + Hz / 700)), each from the middle of
    the one before to that of the one behind; none reaches the last frequency.
    """
    lowest, highest = (1127 * math.log(1 + pitch / 700) for pitch in (LOWEST, RATE / 2))
    edges = lowest + torch.arange(BINS + 2, dtype=torch.float64) * (highest - lowest) / (BINS + 1)
    pitches = torch.arange(FOURIER // 2, dtype=torch.float64) * RATE / FOURIER
    mel = 1127 * (1 + pitches / 700).log()
    left, middle, right = (edges[k : k + BINS, None] for k in range(3))
    weights = torch.minimum((mel - left) / (middle - left), (right - mel) / (right - middle)).clamp(min=0)
    return F.pad(weights, (0, 1)).float()


def resampled(samples: torch.Tensor, rate: int, first: int, last: int) -> torch.Tensor:
    """What samples [N] would be at RATE, from `first` to before `last`: a sinc under Hann's window, six crossings to a
    side, cut off at 99 % of the lower rate's highest pitch, as torchaudio does. Silence lies around the samples.
    """
    if rate == RATE:
        return samples[first:last]
    step, cut = rate / RATE, 0.99 * min(rate, RATE) / rate  # samples a new sample; crossings a sample
    reach = math.ceil(6 / cut)
    made = []
    for few in torch.arange(first, last, dtype=torch.float64).split(2048):
        places = few * step
        near = places.floor().long()[:, None] + torch.arange(-reach, reach + 2)
        times = ((near - places[:, None]) * cut).clamp(-6, 6)
        weights = torch.sinc(times) * torch.cos(times * math.pi / 12).square() * cut
        inside = (near >= 0) & (near < len(samples))
        made.append((weights * samples[near.clamp(0, len(samples) - 1)] * inside).sum(1))
    return torch.cat(made).float()


# Pictures -> directions


class Attention(nn.Module):
    """torch's MultiheadAttention by its parameters' names, with one learned key and value behind all others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.bias_k, self.bias_v = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, 1, width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = F.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        more = (len(tokens), 1, -1)
        key, value = torch.cat((key, self.bias_k.expand(more)), 1), torch.cat((value, self.bias_v.expand(more)), 1)
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return self.out_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with the exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Norm first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm_1(tokens))
        return tokens + self.mlp(self.norm_2(tokens))


class Stem(nn.Module):
    """Overlapping patches of a picture of sound as tokens, row by row."""

    def __init__(self, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, stride, bias=False)
        self.norm_layer = nn.LayerNorm(width)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        return self.norm_layer(self.proj(heard).flatten(2).transpose(1, 2))


class Tokens(nn.Module):
    """The class token and the patches, placed."""

    def __init__(self, width: int, patch: int, stride: int) -> None:
        super().__init__()
        places = ((BINS - patch) // stride + 1) * ((FRAMES - patch) // stride + 1)
        self.rgbt_stem = Stem(width, patch, stride)  # the name that pictures' patches have
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": torch.empty(1, places + 1, width)})

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat((self.cls_token.expand(len(heard), -1, -1), self.rgbt_stem(heard)), 1)
        return tokens + self.pos_embedding_helper["pos_embed"]


class Ears(nn.Module):
    """The audio part of ImageBind. sizes: those of `HUGE`."""

    KEYS = (
        (r"^modality_preprocessors\.audio\.", "tokens."),
        (r"^modality_trunks\.audio\.", ""),
        (r"^modality_heads\.audio\.0\.", "norm."),
        (r"^modality_heads\.audio\.2\.", "head."),
        (r"^modality_postprocessors\.audio\.1\.", ""),
    )
    DROP = (r"modality_\w+\.(?:vision|text|depth|thermal|imu)\.",)

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.tokens = Tokens(width, sizes["patch"], sizes["stride"])
        self.blocks = nn.ModuleList(Block(width, sizes["heads"]) for _ in range(sizes["depth"]))
        self.norm, self.head = nn.LayerNorm(width, EPSILON), nn.Linear(width, sizes["out"], bias=False)
        self.log_logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        """heard [N, 1, BINS, FRAMES] -> [N, out], all of one length (20 as published, 100 at most)."""
        tokens = self.tokens(heard)
        for block in self.blocks:
            tokens = block(tokens)
        direction = F.normalize(self.head(self.norm(tokens[:, 0])), dim=-1)
        return self.log_logit_scale.exp().clamp(max=100) * direction
