"""Words as vectors: a small sentence encoder with its vocabulary inside, and what all classes are called.

Source of the encoder's weights: all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv 1908.10084; nreimers/MiniLM). Texts
travel with the
parameters as bytes, so that a checkpoint needs no file beside its shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

THINGS, CLASSES = 80, 1000  # the detector's nouns and the classifier's
REMEMBERED = 512  # texts whose vectors are kept
LONGEST = 48  # tokens of a text that are read


class PhraseEncoder(nn.Module):
    """Texts -> vectors of length one. `spelling`: the WordPiece vocabulary as UTF-8 bytes, one piece a line."""

    def __init__(self, sizes: Mapping[str, Any], letters: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(**sizes, attn_implementation="sdpa"), add_pooling_layer=False)
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))
        self._tokenizer: Any = None
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors [n, width] of `texts`: the mean of the last layer over all tokens, scaled to length one."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            for text, vector in zip(part, self._encode(part), strict=True):
                self._known[text] = vector
        out = torch.stack([self._known[text] for text in texts])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return out

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [self._ids(text) for text in texts]
        device = self.spelling.device
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        kept = mask[..., None].float()
        return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)

    def _ids(self, text: str) -> list[int]:
        if self._tokenizer is None:
            pieces = {piece: index for index, piece in enumerate(lines(self.spelling))}
            if "[UNK]" not in pieces:  # a dwarf without a vocabulary
                return [0]
            from tokenizers.implementations import BertWordPieceTokenizer

            self._tokenizer = BertWordPieceTokenizer(vocab=pieces, lowercase=True)
        return self._tokenizer.encode(text).ids[:LONGEST] or [0]


class Lexicon(nn.Module):
    """The names of all classes: each (0..79 things, then 1000 classes) has a plain name, synonyms and wider words.

    `vectors` [n, width] of the names, `spelling` their text; `owners`, `names`, `weights` [m]: this name belongs to
    this class and counts so
    much for it (1 its own, less for wider words); `plain` [1080]: each class's plain name.
    """

    def __init__(self, names: int, entries: int, letters: int, width: int = 384) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(names, width))
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))
        self.register_buffer("owners", torch.zeros(entries, dtype=torch.long))
        self.register_buffer("names", torch.zeros(entries, dtype=torch.long))
        self.register_buffer("weights", torch.zeros(entries))
        self.register_buffer("plain", torch.zeros(THINGS + CLASSES, dtype=torch.long))
        self._nouns: tuple[tuple[str, ...], torch.Tensor] | None = None

    def likeness(self, vectors: torch.Tensor) -> torch.Tensor:
        """How near texts [t, width] come to the best name of each class: weighted cosines [t, 1080]."""
        near = (vectors.float() @ self.vectors.float().T)[:, self.names] * self.weights.float()
        out = near.new_full((len(vectors), THINGS + CLASSES), -1.0)
        return out.scatter_reduce(1, self.owners.expand(len(vectors), -1), near, "amax")

    def nouns(self) -> tuple[tuple[str, ...], torch.Tensor]:
        """All plain names without repetition, and their likeness [k, 1080] to each class."""
        if self._nouns is None:
            texts = lines(self.spelling)
            rows = self.plain.unique()
            spelled = tuple(texts[row] if row < len(texts) and texts[row] else "thing" for row in rows.tolist())
            self._nouns = spelled, self.likeness(self.vectors[rows])
        return self._nouns

    def meaning(self, things: torch.Tensor, classes: torch.Tensor, most: int = 10) -> torch.Tensor:
        """Scores [R, 80], probabilities [R, 1000] -> [R, width]: plain names' vectors weighed by them.

        Of the classes only the `most` best count. Not scaled: an unsure region has a short vector.
        """
        own = self.vectors[self.plain].float()
        best = classes.topk(most, dim=-1)
        return things @ own[:THINGS] + (best.values[..., None] * own[THINGS:][best.indices]).sum(1)


def lines(spelling: torch.Tensor) -> list[str]:
    """The lines of a text kept as bytes."""
    return bytes(spelling.cpu().tolist()).rstrip(b"\0").decode("utf-8", "replace").split("\n")
