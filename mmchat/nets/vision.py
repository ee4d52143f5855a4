"""Vision towers: pictures become feature levels.

CLIP's (Radford et al. 2021; parameter names as in openai/clip-vit-large-patch14-336 on the hub), written out so that
layers behind the last wanted one are not run and any hidden state can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # mean and deviation of what is trained on -1 to 1
CLIP_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""Sizes of openai/clip-vit-large-patch14-336."""


class ClipEmbeddings(nn.Module):
    """Patches and the class token, with learned positions."""

    def __init__(self, width: int, side: int, patch: int) -> None:
        super().__init__()
        self.side = side
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"this tower sees {self.side} x {self.side} pixels, got {pictures.shape[-1]} x {pictures.shape[-2]}"
            )
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat((first, patches), 1) + self.position_embedding.weight


class ClipAttention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class ClipMlp(nn.Module):
    """Two layers with the activation between."""

    def __init__(self, width: int, inner: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(tokens)))


class ClipLayer(nn.Module):
    """One encoder layer: norm first, residuals around attention and MLP."""

    def __init__(
        self, width: int, inner: int, heads: int, epsilon: float, activation: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.self_attn = ClipAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = ClipMlp(width, inner, activation)
        self.layer_norm2 = nn.LayerNorm(width, eps=epsilon)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        return tokens + self.mlp(self.layer_norm2(tokens))


class ClipEncoder(nn.Module):
    """The layers, under the name they have in a checkpoint."""

    def __init__(self, layers: Sequence[ClipLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class ClipTower(nn.Module):
    """CLIP's vision transformer with chosen hidden states.

    config: the tower's own config.json (`vision_config` of it where there is one). `select`: one index or several into
    the hidden states
    (0 the embeddings after the first norm, i the output of layer i, negative from the end). `class_token` keeps token
    0.
    """

    def __init__(self, config: Mapping[str, Any], select: int | Sequence[int] = -2, class_token: bool = False) -> None:
        super().__init__()
        config = config.get("vision_config", config)
        width, epsilon = config["hidden_size"], config.get("layer_norm_eps", 1e-5)
        act = config.get("hidden_act", "quick_gelu")
        if act not in ACTIVATIONS:
            raise ValueError(f"no activation {act!r} for a CLIP tower: choose one of {', '.join(ACTIVATIONS)}")
        count = config["num_hidden_layers"]
        self.side, self.patch, self.width, self.class_token = (
            config["image_size"],
            config["patch_size"],
            width,
            class_token,
        )
        self.select = tuple(hidden_state(index, count) for index in ((select,) if isinstance(select, int) else select))
        self.embeddings = ClipEmbeddings(width, self.side, self.patch)
        self.pre_layrnorm = nn.LayerNorm(width, eps=epsilon)  # spelled so in every checkpoint
        heads, inner = config["num_attention_heads"], config["intermediate_size"]
        if width % heads:
            raise ValueError(f"the tower's config.json shares {width} channels among {heads} heads: download it again")
        self.encoder = ClipEncoder([ClipLayer(width, inner, heads, epsilon, ACTIVATIONS[act]) for _ in range(count)])
        self.post_layernorm = nn.LayerNorm(
            width, eps=epsilon
        )  # in every checkpoint; nobody here asks for what it gives

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.side // self.patch, self.side // self.patch

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """pictures [N, 3, side, side], normalised -> the chosen hidden states, each [N, tokens, width] (tokens row by
        row).
        """
        states = self.hidden_states(pictures, max(self.select))
        return tuple(states[index] if self.class_token else states[index][:, 1:] for index in self.select)

    def hidden_states(self, pictures: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Hidden states 0..last with the class token, all of them by default; layers behind `last` are not run."""
        states = [self.pre_layrnorm(self.embeddings(pictures.to(self.pre_layrnorm.weight.dtype)))]
        for layer in self.encoder.layers[: len(self.encoder.layers) if last is None else last]:
            states.append(layer(states[-1]))
        return states


def hidden_state(index: int, layers: int) -> int:
    """A hidden state's index from 0, given one that may count from the end; ValueError outside."""
    if not -layers - 1 <= index <= layers:
        raise ValueError(
            f"a tower of {layers} layers has hidden states 0..{layers} (or -{layers + 1}..-1), not {index}"
        )
    return index % (layers + 1)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), the approximation CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
