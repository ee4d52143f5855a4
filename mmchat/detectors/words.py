"""Words of phrases as ids: BERT's word pieces and CLIP's byte pairs, from the tokenizer's files in a folder.

Phrases are words and nothing else: marks such as [SEP] are spelled out like any other letters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mmchat.nets.files import read_json

FAST = "tokenizer.json"
PIECES, PAIRS = ("vocab.txt",), ("vocab.json", "merges.txt")
# CLIP's words: endings such as 's, then letters, single digits, other signs.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def word_pieces(folder: Path, room: int) -> Tokenizer:
    """BERT's tokenizer. room: words that the model knows; ValueError where the tokenizer has more, or there is none."""
    made = _fast(folder, models.WordPiece)
    if made is None:
        _there(folder, PIECES)
        given = _settings(folder)
        try:
            vocabulary = models.WordPiece.read_file(str(folder / PIECES[0]))
            made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
            raise _damaged(folder / PIECES[0], error) from None
        made.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=bool(given.get("tokenize_chinese_chars", True)),
            strip_accents=given.get("strip_accents"),
            lowercase=bool(given.get("do_lower_case", True)),
        )
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece(prefix="##")
    return _checked(made, folder, room)


def byte_pairs(folder: Path, room: int) -> Tokenizer:
    """CLIP's tokenizer; room and errors as in `word_pieces`."""
    made = _fast(folder, models.BPE)
    if made is None:
        _there(folder, PAIRS)
        try:
            vocabulary, merges = models.BPE.read_file(*(str(folder / name) for name in PAIRS))
            made = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
        except Exception as error:  # noqa: BLE001 -- as above
            raise _damaged(folder / PAIRS[0], error) from None
        made.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
    return _checked(made, folder, room)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, nothing around it."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def mark(tokenizer: Tokenizer, name: str) -> int:
    """The id of a mark; ValueError where the tokenizer has none such."""
    found = tokenizer.token_to_id(name)
    if found is None:
        raise ValueError(f"The tokenizer has no {name}, so it is not the one of this model: download it again.")
    return found


def _fast(folder: Path, kind: type) -> Tokenizer | None:
    """The tokenizer of a tokenizer.json, without its marks; None where there is no such file."""
    path = folder / FAST
    if not path.is_file():
        return None
    try:
        made = Tokenizer.from_file(str(path))
        spelled = json.loads(made.to_str()) | {"added_tokens": [], "post_processor": None}
        made = Tokenizer.from_str(json.dumps(spelled))
    except Exception as error:  # noqa: BLE001 -- as above
        raise _damaged(path, error) from None
    if not isinstance(made.model, kind):
        raise ValueError(f"{path} is a tokenizer of another kind than {kind.__name__}: download this model's own.")
    return made


def _there(folder: Path, names: tuple[str, ...]) -> None:
    if not all((folder / name).is_file() for name in names):
        raise ValueError(f"There is no {FAST} or {' and '.join(names)} in {folder}: complete the download.")


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): download it again.")


def _checked(made: Tokenizer, folder: Path, room: int) -> Tokenizer:
    made.no_padding()
    made.no_truncation()
    most = max(made.get_vocab().values(), default=0)
    if most >= room:
        raise ValueError(
            f"The tokenizer in {folder} has words up to number {most}, the model knows {room}: download it again."
        )
    return made
