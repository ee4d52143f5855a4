"""ImageBind's ears against torch's own attention, transformers' spectrogram, a sine, and the published layout."""

from __future__ import annotations

import math

import keylists
import numpy as np
import pytest
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmchat.nets import imagebind, weights
from mmchat.nets.imagebind import BINS, FRAMES, HUGE, MEAN, RATE, STD, Ears, filter_bank, pictures, resampled

SMALL = {"width": 24, "depth": 2, "heads": 3, "patch": 16, "stride": 10, "out": 8}


def noise(seconds: float, rate: int = RATE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(round(seconds * rate), generator=generator) * 0.1


def ears() -> Ears:
    torch.manual_seed(0)
    made = Ears(SMALL).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_a_picture_of_sound_is_kaldis():
    heard = noise(2)
    mel = mel_filter_bank(257, BINS, 20, 8000, RATE, None, "kaldi", triangularize_in_mel_space=True)
    theirs = spectrogram(
        (heard - heard.mean()).numpy(), window_function(400, "hann", periodic=False), 400, 160, 512, power=2.0,
        center=False, preemphasis=0.97, mel_filters=mel, log_mel="log", mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    )  # fmt: skip
    ours = filter_bank(heard)
    assert ours.shape == (BINS, FRAMES) and theirs.shape == (BINS, 198)
    assert np.abs(ours[:, :198].numpy() - theirs).max() < 2e-3
    assert not ours[:, 198:].any()


def test_a_high_tone_stands_in_a_higher_row_than_a_low_one():
    times = torch.arange(2 * RATE) / RATE
    rows = [int(filter_bank((2 * math.pi * pitch * times).sin())[:, 50].argmax()) for pitch in (200, 800, 4000)]
    assert rows == sorted(rows) and len(set(rows)) == 3


def test_silence_is_the_floor_and_not_infinite():
    assert filter_bank(torch.zeros(2 * RATE))[:, :198].unique().tolist() == pytest.approx([math.log(2**-23)])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_stays_a_tone_at_another_rate(rate):
    wave = [torch.sin(2 * math.pi * 440 * torch.arange(per, dtype=torch.float64) / per) for per in (rate, RATE)]
    made = resampled(wave[0].float(), rate, 0, RATE)
    assert len(made) == RATE and (made - wave[1]).abs()[400:-400].max() < 2e-3


def test_what_is_too_high_for_the_new_rate_is_gone():
    wave = torch.sin(2 * math.pi * 12000 * torch.arange(48000, dtype=torch.float64) / 48000)
    assert resampled(wave.float(), 48000, 0, RATE)[400:-400].abs().max() < 0.01


@pytest.mark.parametrize("rate", [8000, 22050, 44099, 48000])
def test_a_part_is_resampled_as_in_the_whole(rate):
    wave = noise(1.5, rate)
    whole = resampled(wave, rate, 0, RATE)
    assert torch.equal(resampled(wave, rate, 3001, 7777), whole[3001:7777])


def test_resampling_is_the_published_filter():
    """The filter bank that torchaudio documents: one row of weights for each of 160 phases of 441 samples."""
    wave, old, new = noise(0.4, 44100), 441, 160
    cut = 0.99 * new
    width = math.ceil(6 * old / cut)
    times = torch.arange(0, -new, -1, dtype=torch.float64)[:, None] / new
    times = ((times + torch.arange(-width, width + old, dtype=torch.float64) / old) * cut).clamp(-6, 6)
    weights = torch.where(times == 0, 1.0, (times * math.pi).sin() / (times * math.pi)) * (cut / old)
    weights = weights * torch.cos(times * math.pi / 6 / 2) ** 2
    padded = nn.functional.pad(wave.double()[None, None], (width, width + old))
    theirs = nn.functional.conv1d(padded, weights[:, None], stride=old)[0].T.flatten()[
        : math.ceil(new * len(wave) / old)
    ]
    ours = resampled(wave, 44100, 0, len(theirs))
    assert len(theirs) == 6400 and torch.allclose(ours, theirs.float(), atol=1e-6)


def test_clips_lie_at_the_start_the_middle_and_the_end():
    heard = noise(7)
    made = pictures(heard, RATE)
    for clip, start in zip(made, (0, 2.5, 5), strict=True):
        own = (filter_bank(heard[int(start * RATE) : int((start + 2) * RATE)]) - MEAN) / STD
        assert torch.equal(clip[0], own)


@pytest.mark.parametrize("seconds", [0.1, 1.3, 2])
def test_a_short_sound_is_three_times_the_same_clip(seconds):
    made = pictures(noise(seconds, 22050), 22050)
    assert made.shape == (3, 1, BINS, FRAMES) and torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert made[0, 0, :, -1].tolist() == pytest.approx([-MEAN / STD] * BINS)


@torch.inference_mode()
def test_the_tower_is_the_one_of_torchs_own_parts():
    ours, heard = ears(), torch.randn(3, 1, BINS, FRAMES)
    stem = ours.tokens
    tokens = nn.functional.conv2d(heard, stem.rgbt_stem.proj.weight, stride=10).flatten(2).mT
    tokens = nn.functional.layer_norm(tokens, (24,), stem.rgbt_stem.norm_layer.weight, stem.rgbt_stem.norm_layer.bias)
    tokens = torch.cat((stem.cls_token.expand(3, 1, 24), tokens), 1) + stem.pos_embedding_helper["pos_embed"]
    for block in ours.blocks:
        attention = nn.MultiheadAttention(24, 3, bias=True, add_bias_kv=True, batch_first=True)
        attention.load_state_dict(block.attn.state_dict())
        normed = block.norm_1(tokens)
        tokens = tokens + attention.eval()(normed, normed, normed, need_weights=True)[0]
        normed = block.norm_2(tokens)
        inner = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        tokens = tokens + nn.GELU()(inner) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    last = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    out = (last * ours.norm.weight + ours.norm.bias)[:, 0] @ ours.head.weight.T
    wanted = out / out.norm(dim=-1, keepdim=True) * ours.log_logit_scale.exp()
    assert torch.allclose(ours(heard), wanted, atol=1e-5)


@torch.inference_mode()
def test_a_direction_has_the_length_that_was_learned():
    made = ears()
    for scale, length in ((math.log(20), 20), (math.log(300), 100)):
        made.log_logit_scale.fill_(scale)
        assert made(torch.randn(2, 1, BINS, FRAMES)).norm(dim=-1).tolist() == pytest.approx([length] * 2, rel=1e-4)


def test_the_published_names_and_shapes_land_key_for_key():
    with weights.without_memory():
        ours = {name: tuple(tensor.shape) for name, tensor in Ears(HUGE).state_dict().items()}
    listed = list(keylists.listed("groundinggpt", {}, "ears"))
    assert {weights.renamed(one.name, Ears.KEYS): one.shape for one in listed} == ours
    assert not any(weights.dropped(Ears.DROP, one.name, weights.renamed(one.name, Ears.KEYS)) for one in listed)
    assert weights.dropped(Ears.DROP, "modality_trunks.vision.blocks.0.norm_1.weight", "")


def test_the_windows_of_a_clip_fit_its_picture():
    assert 1 + (imagebind.SECONDS * RATE - imagebind.WINDOW) // imagebind.STEP <= FRAMES
