"""Words to token ids and back: a checkpoint's tokenizer, and text that grows without ever showing half a character."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mmchat.engines import sentencepiece
from mmchat.engines.sentencepiece import BLANK

HALF = "\ufffd"  # what a decoder writes for bytes that are not yet a character
PAIRS = ("vocab.json", "merges.txt")  # GPT-2's kind of tokenizer, where there is no other file
SIGNS = frozenset("<[|")  # one of them is in every mark that a model was given
LONGEST = 8  # ids held back at most: a character takes four bytes, more are no character
LOOK_BACK = 6  # tokens decoded again with each new one: decoders treat the first token of a text differently


class Tokens:
    """A tokenizer. `start`: ids in front of every prompt; `ends`: ids that end an answer.

    `blank`: the tokenizer leaves it to us to put SentencePiece's blank in front of a text, and only there.
    """

    def __init__(
        self, tokenizer: Tokenizer, start: Sequence[int] = (), ends: Sequence[int] = (), blank: bool = False
    ) -> None:
        self.tokenizer, self.start, self.ends, self.blank = tokenizer, tuple(start), frozenset(ends), blank
        first = self.tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        self._plain: Tokenizer | None = None  # the same without marks, made when first needed
        self.dummy = bool(first) and first[0].startswith(BLANK)  # puts a blank in front of every text

    def ids(self, text: str, dummy_space: bool = True) -> list[int]:
        """Ids of a text, nothing in front. dummy_space: as where a text starts, where SentencePiece adds a blank."""
        if not text:
            return []
        if self.blank and dummy_space:
            coded = self.tokenizer.encode(BLANK + text, add_special_tokens=False)
            # In front of a mark the blank is taken back, as the original does.
            bare = len(coded.ids) > 1 and coded.tokens[0] == BLANK and coded.tokens[1] in self._marks
            return coded.ids[1:] if bare else coded.ids
        if dummy_space or not self.dummy:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        # Only the start of a text gets the blank: tokenize behind something, then take that away.
        anchor = "\n" if not text.startswith("\n") else "."
        before = self.tokenizer.encode(anchor, add_special_tokens=False).ids
        both = self.tokenizer.encode(anchor + text, add_special_tokens=False).ids
        return both[len(before) :] if both[: len(before)] == before else both

    def letters(self, text: str) -> list[int]:
        """Ids of a text in which no mark is read as one: `</s>` gives the ids of four letters."""
        if self._plain is None:
            spelled = json.loads(self.tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}
            self._plain = Tokenizer.from_str(json.dumps(spelled))
        return self._plain.encode(BLANK * self.blank + text, add_special_tokens=False).ids if text else []

    @cached_property
    def _marks(self) -> frozenset[str]:
        return frozenset(token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def reserved(self) -> frozenset[str]:
        """Texts that are one added token and look like a mark: no user may write them. Blanks and words are none."""
        added = (token.content for token in self.tokenizer.get_added_tokens_decoder().values())
        return frozenset(text for text in added if len(text) > 1 and not SIGNS.isdisjoint(text))

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, marks included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def token(self, mark: str) -> int | None:
        """The id of a mark that is one token."""
        return self.tokenizer.token_to_id(mark)

    @staticmethod
    def read(folder: Path, config: Mapping[str, Any], marks: Sequence[str] = ()) -> Tokens:
        """The tokenizer of a checkpoint's folder, `marks` as tokens behind its own. ValueError where there is none."""
        folder = Path(folder)
        names = {name: _json(folder / name) for name in ("tokenizer_config.json", "generation_config.json")}
        settings, blank = names["tokenizer_config.json"], False
        pieces = (folder / "tokenizer.model").is_file()
        fast = (folder / "tokenizer.json").is_file()
        if pieces and (not fast or settings.get("tokenizer_class") == "LlamaTokenizer"):
            # The slow class, which reads this file and no other, is the one that the original asks for.
            tokenizer, blank = sentencepiece.tokenizer(folder, settings)
            settings = {"bos_token": "<s>", "eos_token": "</s>"} | settings
        elif fast:
            try:
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
                raise ValueError(f"{folder / 'tokenizer.json'} is damaged ({error}): download it again.") from None
        elif all((folder / name).is_file() for name in PAIRS):
            settings = _json(folder / "special_tokens_map.json") | settings
            tokenizer = byte_pairs(*(folder / name for name in PAIRS), settings)
        else:
            raise ValueError(
                f"There is no tokenizer.json or tokenizer.model in {folder}: complete the download, or copy the "
                "tokenizer of its language model there."
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
        bos = _id(tokenizer, settings.get("bos_token"), config.get("bos_token_id"))
        start = [bos] if bos is not None else []
        if "add_bos_token" not in settings:
            first = tokenizer.encode("", add_special_tokens=True).ids  # Llama 3's says so in tokenizer.json alone
            start = start if first or settings.get("tokenizer_class", "Llama").startswith("Llama") else []
        elif not settings["add_bos_token"]:
            start = []
        eos = names["generation_config.json"].get("eos_token_id", config.get("eos_token_id"))
        ends = {_id(tokenizer, settings.get("eos_token"), None), *(eos if isinstance(eos, list) else [eos])}
        return Tokens(tokenizer, start, [one for one in ends if one is not None], blank)


class Growing:
    """The text of ids that come one by one; each id knows which part of the text it wrote."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.ids: list[int] = []
        self.pieces: list[tuple[int, int, float]] = []  # (start, end, probability) of each id, as far as text is there
        self.text = ""
        self.shown = 0  # ids whose text is there
        self._held: list[float] = []

    def add(self, index: int, probability: float) -> str:
        """The text after one more id. Bytes that are no character yet are held back, with the ids that brought them."""
        self.ids.append(index)
        self._held.append(probability)
        from_ = max(0, self.shown - LOOK_BACK)
        before, now = self.tokens.text(self.ids[from_ : self.shown]), self.tokens.text(self.ids[from_:])
        half = now.endswith(HALF) or not now.startswith(before)
        if half and len(self._held) < LONGEST:
            return self.text
        start = len(self.text)
        self.text += now[len(before) :]
        # Ids that make a character together share it.
        self.pieces += [(start, len(self.text), one) for one in self._held]
        self._held.clear()
        self.shown = len(self.ids)
        return self.text


def tokenizer_folder(*folders: Path) -> Path:
    """The first of the folders that holds a tokenizer, else the first."""
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return folder
    return folders[0]


def byte_pairs(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """GPT-2's kind of tokenizer from its two files; the marks that `settings` name are tokens whatever stands there."""
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
        raise ValueError(f"{vocabulary} or {merges} is damaged ({error}): download them again.") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    named = (settings.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token"))
    texts = [one.get("content") if isinstance(one, Mapping) else one for one in named]
    marks = dict.fromkeys(text for text in texts if isinstance(text, str))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def _id(tokenizer: Tokenizer, named: Any, otherwise: int | None) -> int | None:
    named = named.get("content") if isinstance(named, Mapping) else named
    found = tokenizer.token_to_id(named) if isinstance(named, str) else None
    return otherwise if found is None else found


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
