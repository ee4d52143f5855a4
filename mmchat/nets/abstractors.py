"""Honeybee's bridges: few vectors for a whole picture that still know where in it they come from.

Each takes the tower's levels, the last of which is [B, N, C] row by row over a square, and gives [B, M (+ end), width
of the language model]. Source: kakaobrain/honeybee (Cha et al. 2023, arXiv 2312.06742), parameter names as there; its
convolution blocks are RegNet's (Radosavovic et al. 2020) with the names that timm gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mmchat.nets.deform import MSDeformAttn, square


class Convolved(NamedTuple):
    """What the C-Abstractor computed, stage by stage; maps are [B, C, height, width]."""

    output: torch.Tensor  # [B, M (+ end), language width]
    before: tuple[torch.Tensor, ...]  # after each block before the pool
    pooled: torch.Tensor
    after: tuple[torch.Tensor, ...]  # after each block behind it


class Deformed(NamedTuple):
    """What the D-Abstractor computed."""

    output: torch.Tensor  # [B, M (+ end), language width]
    layers: tuple[torch.Tensor, ...]  # [B, M, C] after each layer
    own: tuple[torch.Tensor, ...]  # each layer's self attention before it is added
    cross: tuple[torch.Tensor, ...]  # each layer's look at the picture before it is added
    attended: tuple[Any, ...]  # the same, inside out


class ConvNorm(nn.Module):
    """A convolution without bias, LayerNorm over the channels of each place, SiLU (not behind a block's last one)."""

    def __init__(self, inside: int, outside: int, size: int = 1, groups: int = 1, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, padding=size // 2, groups=groups, bias=False)
        self.bn = nn.LayerNorm(outside, eps=1e-5)  # "bn" in every checkpoint, though no batch is looked at
        self.active = active

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.bn(self.conv(maps).movedim(1, -1)).movedim(-1, 1)
        return F.silu(maps) if self.active else maps


class Squeeze(nn.Module):
    """Channels weighed by what the whole map holds."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * self.fc2(F.silu(self.fc1(maps.mean((2, 3), keepdim=True)))).sigmoid()


class RegBlock(nn.Module):
    """RegNet's block as the C-Abstractor sets it: depthwise, squeezed to a quarter of what comes in, same grid."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inside, outside)
        self.conv2 = ConvNorm(outside, outside, 3, groups=outside)
        self.se = Squeeze(outside, round(inside * 0.25))
        self.conv3 = ConvNorm(outside, outside, active=False)
        self.downsample = ConvNorm(inside, outside, active=False) if inside != outside else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        straight = maps if self.downsample is None else self.downsample(maps)
        return F.silu(self.conv3(self.se(self.conv2(self.conv1(maps)))) + straight)


class RegStage(nn.Module):
    """Blocks one behind the other, named b1, b2 ... as in checkpoints; the first one may widen."""

    def __init__(self, count: int, inside: int, outside: int) -> None:
        super().__init__()
        for number in range(count):
            self.add_module(f"b{number + 1}", RegBlock(inside if number == 0 else outside, outside))

    def states(self, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The map after each block."""
        out: list[torch.Tensor] = []
        for block in self.children():
            out.append(block(out[-1] if out else maps))
        return tuple(out)


class _Placed(nn.Module):
    """What the projectors but the D-Abstractor share: norm in front, learned positions, end vectors behind."""

    def __init__(self, config: Mapping[str, Any], width: int, language_width: int, places: int) -> None:
        super().__init__()
        ends = config.get("num_eos_tokens") or 0
        self.prenorm = nn.LayerNorm(width, eps=1e-6) if config.get("prenorm") else None
        self.pos_emb = nn.Parameter(torch.zeros(1, places, width)) if config.get("pos_emb", True) else None
        self.eos_tokens = nn.Parameter(torch.zeros(1, ends, language_width)) if ends else None

    def placed(self, features: torch.Tensor) -> torch.Tensor:
        features = features if self.prenorm is None else self.prenorm(features)
        return features if self.pos_emb is None else features + self.pos_emb

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The vectors that the language model reads, from the last of the levels."""
        return ended(self.project(levels[-1]), self.eos_tokens)


class CAbstractor(_Placed):
    """Convolutions, a pool to the wanted grid, convolutions, a few layers to the language model's width."""

    def __init__(self, config: Mapping[str, Any], width: int, language_width: int, places: int) -> None:
        super().__init__(config, width, language_width, places)
        depth, inner = config.get("depth", 3), config.get("hidden_size", 1024)
        pool = nn.AdaptiveAvgPool2d(_grid(config["num_query_tokens"]))
        self.grid = square(places)
        self.net = nn.Sequential(RegStage(depth, width, inner), pool, RegStage(depth, inner, inner)) if depth else pool
        self.readout = _mlp(config.get("mlp_depth", 2), inner if depth else width, language_width)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return self.steps(features).output

    def steps(self, features: torch.Tensor) -> Convolved:
        """features [B, N, C], every stage kept; the end vectors are not there yet."""
        maps = self.placed(features).transpose(1, 2).unflatten(2, self.grid)
        if isinstance(self.net, nn.Sequential):
            first, pool, second = self.net
            before = first.states(maps)
            pooled = pool(before[-1])
            after = second.states(pooled)
        else:
            before, pooled, after = (), self.net(maps), ()
        last = (after or (pooled,))[-1]
        return Convolved(self.readout(last.flatten(2).transpose(1, 2)), before, pooled, after)


class MLPProjector(_Placed):
    """Each vector by itself through a few layers; as many come out as go in."""

    def __init__(self, config: Mapping[str, Any], width: int, language_width: int, places: int) -> None:
        super().__init__({"pos_emb": False, **config}, width, language_width, places)
        if config.get("num_query_tokens", places) != places:
            raise ValueError(
                f"num_query_tokens is {config['num_query_tokens']}, but an mlp projector keeps all {places} vectors of "
                "the tower: correct config.json"
            )
        self.net = _mlp(config.get("depth", 2), width, language_width)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return self.net(self.placed(features))


class SelfAttention(nn.Module):
    """Every query looks at every query; positions are added to queries and keys, not to values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        asked = hidden + position
        return self.out_proj(attention(self.q_proj(asked), self.k_proj(asked), self.v_proj(hidden), self.heads))


class DecoderLayer(nn.Module):
    """Queries among themselves, then at the picture, then each alone; a norm behind each."""

    def __init__(self, width: int, inner: int, heads: int, points: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = MSDeformAttn(width, 1, heads, points)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)


class DAbstractor(nn.Module):
    """A decoder of deformable attention: learned queries, each around its own learned place in the picture.

    It computes in float32 whatever the model's type, as the original does. Several levels are refused: the original
    asks for them in its settings and stops when it gets them.
    """

    def __init__(self, config: Mapping[str, Any], width: int, language_width: int, places: int) -> None:
        super().__init__()
        if config.get("num_feature_levels", 1) != 1:
            raise ValueError("A D-Abstractor over several feature levels runs nowhere: num_feature_levels must be 1.")
        if config.get("activation_function", "relu") != "relu":
            raise ValueError("A D-Abstractor's activation_function is relu: correct config.json.")
        self.pooled = config.get("pooled_v_target", "query")
        if self.pooled not in ("query", "tgt", "none"):
            raise ValueError(f"pooled_v_target is {self.pooled!r} in config.json: query, tgt and none are known.")
        inner, count, ends = config.get("d_model", 1024), _count(config), config.get("num_eos_tokens") or 0
        self.grid, self.wanted = square(places), _grid(count)
        self.input_proj = nn.Sequential(nn.Linear(width, inner)) if width != inner else nn.Identity()
        self.v_pos_emb = nn.Parameter(torch.zeros(1, places, inner)) if config.get("pos_emb", True) else None
        self.query_position_embeddings = nn.Embedding(count, inner * 2 if self.pooled == "none" else inner)
        self.reference_points = nn.Parameter(torch.zeros(1, count, 2))
        sizes = (config.get("decoder_ffn_dim", 1024), config.get("decoder_attention_heads", 8))
        points = config.get("decoder_n_points", 4)
        self.layers = nn.ModuleList(DecoderLayer(inner, *sizes, points) for _ in range(config.get("decoder_layers", 6)))
        self.eos_tokens = nn.Parameter(torch.zeros(1, ends, inner)) if ends else None
        self.output_proj = nn.Linear(inner, language_width) if inner != language_width else nn.Identity()
        if not self.reference_points.is_meta:
            self.reset()

    def reset(self) -> None:
        """Start values of the places: where the pooled grid's cells lie in the picture."""
        with torch.no_grad():
            self.reference_points.copy_(first_places(math.prod(self.grid), len(self.query_position_embeddings.weight)))

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The vectors that the language model reads, in the type of the levels."""
        return self.steps(levels[-1]).output

    def steps(self, features: torch.Tensor) -> Deformed:
        """features [B, N, C], every layer kept."""
        least = torch.promote_types(features.dtype, torch.float32)
        if all(parameter.dtype == least for parameter in self.parameters()):
            return self._steps(features.to(least), features.dtype)
        wide = {name: parameter.to(least) for name, parameter in self.named_parameters()}
        return functional_call(_Steps(self), {f"whole.{name}": one for name, one in wide.items()}, (features, least))

    def _steps(self, features: torch.Tensor, given: torch.dtype) -> Deformed:
        source = self.input_proj(features)
        if self.v_pos_emb is not None:
            source = source + self.v_pos_emb
        maps = source.transpose(1, 2).unflatten(2, self.grid)
        pooled = F.adaptive_avg_pool2d(maps, self.wanted).flatten(2).transpose(1, 2)
        stored = self.query_position_embeddings.weight
        if self.pooled == "none":
            position, hidden = stored.expand(len(source), -1, -1).chunk(2, -1)
        elif self.pooled == "query":
            position, hidden = pooled, stored.expand(len(source), -1, -1)
        else:
            position, hidden = stored.expand(len(source), -1, -1), pooled
        reference = self.reference_points[:, :, None]
        states, own, cross, attended = [], [], [], []
        for layer in self.layers:
            own.append(layer.self_attn(hidden, position))
            hidden = layer.self_attn_layer_norm(hidden + own[-1])
            attended.append(layer.encoder_attn.attend(hidden + position, reference, source, [self.grid]))
            cross.append(attended[-1].output)
            hidden = layer.encoder_attn_layer_norm(hidden + cross[-1])
            hidden = layer.final_layer_norm(hidden + layer.fc2(F.relu(layer.fc1(hidden))))
            states.append(hidden)
        output = self.output_proj(ended(hidden, self.eos_tokens)).to(given)
        return Deformed(output, tuple(states), tuple(own), tuple(cross), tuple(attended))


class _Steps(nn.Module):
    """`DAbstractor._steps` as a module, which is what torch can call with other parameters."""

    def __init__(self, whole: DAbstractor) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, features: torch.Tensor, dtype: torch.dtype) -> Deformed:
        return self.whole._steps(features.to(dtype), features.dtype)


def first_places(places: int, count: int) -> torch.Tensor:
    """Where the D-Abstractor's queries look at first [1, count, 2] (x, y): spread evenly over a square map of so many
    places, from the middle of its first cell to the middle of its last.
    """
    side, wanted = square(places)[0], _grid(count)
    one = torch.linspace(0.5, side - 0.5, wanted, dtype=torch.float32) / side
    rows, columns = torch.meshgrid(one, one, indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), -1)[None]


def _mlp(depth: int, width: int, language_width: int) -> nn.Sequential:
    """Linear layers with SiLU between."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise([width, *[language_width] * depth]):
        layers += [nn.SiLU(), nn.Linear(inside, outside)] if layers else [nn.Linear(inside, outside)]
    return nn.Sequential(*layers)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Plain attention over [B, T, C] shared out among heads."""
    split = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(-2)


def ended(vectors: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """Vectors [B, T, C] with the learned end vectors [1, n, C] behind them, where there are any."""
    return vectors if ends is None else torch.cat((vectors, ends.expand(len(vectors), -1, -1)), 1)


def _grid(count: int) -> int:
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"num_query_tokens is {count}, no square: these abstractors pool to a square grid.")
    return side


def _count(config: Mapping[str, Any]) -> int:
    count, queries = config["num_query_tokens"], config.get("num_queries")
    if queries is not None and queries != count:
        raise ValueError(f"num_query_tokens is {count} and num_queries {queries} in config.json: they must be one.")
    return count
