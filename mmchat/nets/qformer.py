"""A Q-Former's query branch: learned queries attend to one another and, in every n-th layer, to what was seen.

Li et al. 2023 (BLIP-2), arXiv 2301.12597; parameter names of LAVIS' BertLMHeadModel without its words: no word and
position embeddings, no head, no text branch (`intermediate`, `output`). Axes: N samples, Q queries, T seen vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-12


class SelfAttention(nn.Module):
    """`query`, `key`, `value` as BERT names them; keys and values may come from vectors of another width."""

    def __init__(self, width: int, seen: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(seen, width), nn.Linear(seen, width)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        parts = (self.query(queries), self.key(seen), self.value(seen))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """One layer, the input added, then the norm."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, EPSILON)

    def forward(self, made: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(made) + before)


class Attention(nn.Module):
    """Attention with its residual; `self` and `output` are the checkpoint's names."""

    def __init__(self, width: int, seen: int, heads: int) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(width, seen, heads), Residual(width, width)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(queries, seen), queries)


class Widening(nn.Module):
    """One layer and the exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.dense(queries))


class Layer(nn.Module):
    """Among the queries, then (where `seen` is a width) to what was seen, then each for itself."""

    def __init__(self, width: int, inner: int, heads: int, seen: int | None) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads)
        self.crossattention = None if seen is None else Attention(width, seen, heads)
        self.intermediate_query, self.output_query = Widening(width, inner), Residual(inner, width)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        queries = self.attention(queries, queries)
        if self.crossattention is not None:
            queries = self.crossattention(queries, seen)
        return self.output_query(self.intermediate_query(queries), queries)


class Embeddings(nn.Module):
    """The norm in front, all that is left of BERT's embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width, EPSILON)


class Encoder(nn.Module):
    """The layers, under their name in a checkpoint."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Bert(nn.Module):
    """Embeddings and encoder."""

    def __init__(self, width: int, inner: int, heads: int, layers: int, seen: int, every: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(width)
        self.encoder = Encoder(
            [Layer(width, inner, heads, seen if number % every == 0 else None) for number in range(layers)]
        )


class QFormer(nn.Module):
    """`seen`: width of what is looked at; every `every`-th layer looks, the first one always."""

    def __init__(
        self, seen: int, width: int = 768, inner: int = 3072, heads: int = 12, layers: int = 12, every: int = 2
    ) -> None:
        super().__init__()
        self.bert = Bert(width, inner, heads, layers, seen, every)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """queries [1 or N, Q, C], seen [N, T, c] -> [N, Q, C]."""
        out = self.bert.embeddings.LayerNorm(queries.expand(len(seen), -1, -1))
        for layer in self.bert.encoder.layer:
            out = layer(out, seen)
        return out
