"""SentencePiece: the tokenizer.model of a Llama checkpoint as a Tokenizer, read without the library that wrote it.

Many checkpoints have no other tokenizer. The file is a protocol buffer of pieces with scores (google/sentencepiece,
sentencepiece_model.proto): of all neighbours the pair is joined first whose piece has the highest score.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

BLANK = "\u2581"
BPE = 2
UNKNOWN, CONTROL, TYPED, UNUSED, BYTE = 2, 3, 4, 5, 6  # kinds of pieces; all others are plain
REMEDY = "add the checkpoint's tokenizer.json"


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer.model holds: pieces in the order of their ids, each (text, score, kind)."""

    pieces: tuple[tuple[str, float, int], ...]
    kind: int
    dummy: bool  # whether a blank is put in front of a text
    as_typed: bool  # whether letters and blanks are left as they are

    def first(self, kind: int) -> str | None:
        """The first piece of a kind."""
        return next((text for text, _, one in self.pieces if one == kind), None)


def read(path: Path) -> Pieces:
    """A tokenizer.model. ValueError where it is damaged."""
    try:
        found, kind, dummy, squeezed, table = [], 1, True, True, b""
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                inner = dict(_fields(value))
                score = struct.unpack("<f", inner[2])[0] if 2 in inner else 0.0
                found.append((inner[1].decode("utf-8"), score, inner.get(3, 1)))
            elif number == 2:
                kind = dict(_fields(value)).get(3, kind)
            elif number == 3:
                inner = dict(_fields(value))
                dummy, squeezed, table = bool(inner.get(3, 1)), bool(inner.get(4, 1)), inner.get(2, b"")
        if not found:
            raise ValueError("no pieces")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise ValueError(f"{path} is cut off or damaged: download it again.") from None
    return Pieces(tuple(found), kind, dummy, not squeezed and not table)


def tokenizer(folder: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    """The Tokenizer of a folder with a tokenizer.model, with the tokens that were added later, in order; and whether it
    leaves it to the caller to put the dummy blank in front of a text.

    settings: tokenizer_config.json. A tokenizer that is not `legacy` has that blank in front of a text alone and not
    behind the marks in it, which no normalizer of a Tokenizer does. Files without the entry are from before there was a
    choice. ValueError where the file is damaged, of another kind than Llama's, or the added tokens have gaps.
    """
    path = folder / "tokenizer.model"
    known = read(path)
    if known.kind != BPE or not known.as_typed:
        raise ValueError(f"{path} is not of Llama's kind (byte pairs, letters as they are): {REMEDY}.")
    ids = {text: index for index, (text, _, kind) in enumerate(known.pieces) if kind != UNUSED}
    unknown = known.first(UNKNOWN) or "<unk>"
    falls_back = any(kind == BYTE for _, _, kind in known.pieces)
    made = Tokenizer(models.BPE(ids, _merges(known, ids), unk_token=unknown, fuse_unk=True, byte_fallback=falls_back))
    blanks = normalizers.Replace(" ", BLANK)
    legacy = settings.get("legacy", True) is not False
    made.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), blanks]) if known.dummy and legacy else blanks
    made.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = [text for text, _, kind in known.pieces if kind in (UNKNOWN, CONTROL)]
    typed = [text for text, _, kind in known.pieces if kind == TYPED]
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in marks])
    made.add_tokens([AddedToken(text, normalized=False) for text in typed])
    for text, index, more in _added(folder, settings):
        mark = AddedToken(text, normalized=False, **more)
        (made.add_special_tokens if more.get("special", True) else made.add_tokens)([mark])
        if made.token_to_id(text) != index:
            raise ValueError(
                f"{folder} says that {text} has the id {index}, but it would be {made.token_to_id(text)}: "
                "its added tokens are not complete, download added_tokens.json and tokenizer_config.json again."
            )
    return made, known.dummy and not legacy


def _added(folder: Path, settings: Mapping[str, Any]) -> list[tuple[str, int, dict[str, bool]]]:
    """(text, id, how it is matched) of the added tokens, in the order of their ids."""
    path = folder / "added_tokens.json"
    out = {
        int(index): (text, {})
        for text, index in (json.loads(path.read_text("utf-8")) if path.is_file() else {}).items()
    }
    for index, about in (settings.get("added_tokens_decoder") or {}).items():
        how = {key: bool(about[key]) for key in ("lstrip", "rstrip", "single_word", "special") if key in about}
        out[int(index)] = (about["content"], how)
    return [(text, index, how) for index, (text, how) in sorted(out.items())]


def _merges(known: Pieces, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the highest score first."""
    pairs = []
    for text, score, kind in known.pieces:
        if kind in (UNKNOWN, CONTROL, UNUSED, BYTE):
            continue
        ways = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        ways = [(one, other) for one, other in ways if one in ids and other in ids]
        pairs += [(-score, ids[one], ids[other], one, other) for one, other in ways]
    return [(one, other) for _, _, _, one, other in sorted(pairs)]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: integers for varints, bytes for all else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("cut off")
        else:
            raise ValueError("no such field")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("no number")
