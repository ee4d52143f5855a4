"""Writes what lies beside it: a small tokenizer.model, and the ids that the originals' code gives with it.

Needs the sentencepiece library, which neither the program nor its tests do: python tests/tokenizers/record.py
`slow` follows the tokenizer class LlamaTokenizer of transformers 4.37, with and without `legacy`.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import sentencepiece

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENTRIES = 640
MARKS = {"<unk>": 0, "<s>": 1, "</s>": 2}
ADDED = {  # in the order in which each system adds them
    "ferret": ["<region_fea>"],
    "shikra": ["<im_patch>", "<im_start>", "<im_end>"],
    "groundinggpt": ["<im_patch>", "<im_start>", "<im_end>", "<vi_patch>", "<vi_start>", "<vi_end>", "<so_patch>",
                     "<so_start>", "<so_end>"],
    "llava_grounding": ["<g_s>", "<g_e>", "<seg>"],
    "groma": ["[PAD]", "<sep>", "<img>", "</img>", "<roi>", "</roi>", "<p>", "</p>", "<image>", "<region>",
              "<refer_box>", "<ground_box>", "<refer_feat>", "[grounding]", *(f"<r{index}>" for index in range(100))],
}  # fmt: skip
TEXTS = [
    "a", " a", "  two blanks", "trailing ", "\n", "\nUSER: hi", "\n\n", "tab\there", "1234567", "[0.12, 0.50, 1.00]",
    "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f600!", "\u2581 sign", "</s>", "yes</s>USER: more", "yes </s> USER: more",
    "<s>[INST] x [/INST]", "<s> <s>", "a<unk>b", "The dog</s></s>", " </s>a", "end</s>",
]  # fmt: skip


def train() -> None:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "mmchat" / "templates.py"]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(HERE / "tokenizer"), vocab_size=ENTRIES, model_type="bpe",
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", character_coverage=0.999, minloglevel=2,
    )  # fmt: skip
    (HERE / "tokenizer.vocab").unlink()


class Slow:
    """The slow class: added tokens split the text, the library does what is between them."""

    def __init__(self, legacy: bool, added: list[str]) -> None:
        self.legacy = legacy
        self.known = MARKS | {text: ENTRIES + index for index, text in enumerate(added)}
        self.library = sentencepiece.SentencePieceProcessor()
        data = (HERE / "tokenizer.model").read_bytes()
        if not legacy:  # the class turns the dummy blank off in the file's settings
            from sentencepiece import sentencepiece_model_pb2 as pb

            model = pb.ModelProto.FromString(data)
            model.normalizer_spec.add_dummy_prefix = False
            data = model.SerializeToString()
        self.library.LoadFromSerializedProto(data)

    def ids(self, text: str) -> list[int]:
        if not text:
            return []
        if not self.legacy:
            text = "\u2581" + text.replace("\u2581", " ")
        marks = "|".join(re.escape(mark) for mark in sorted(self.known, key=len, reverse=True))
        out: list[int | str] = []
        for part in re.split(f"({marks})", text):
            if part in self.known:
                out.append(part)
            elif part:
                out += self._between(part)
        if not self.legacy and len(out) > 1 and out[0] == self.library.piece_to_id("\u2581") and out[1] in self.known:
            out = out[1:]
        return [self.known[one] if isinstance(one, str) else one for one in out]

    def _between(self, part: str) -> list[int]:
        if self.legacy or not part.startswith(("\u2581", " ")):
            return self.library.encode(part)
        length = len(self.library.encode("<unk>"))
        return self.library.encode("<unk>" + part)[length:]


def spliced(tokens: Slow, prompt: str) -> list[int]:
    """LLaVA and its kin, MiniGPT-v2: cut at pictures, each text with its own <s>, which all but the first one lose."""
    first, *rest = ([1, *tokens.ids(part)] for part in prompt.split("<image>"))
    return [*first, *(one for part in rest for one in [-1, *part[1:]])]


def whole(tokens: Slow, prompt: str) -> list[int]:
    """Shikra: one text, in which a picture is a run of a token."""
    patch = tokens.known["<im_patch>"]
    ids = [1, *tokens.ids(prompt.replace("<image>", "<im_patch>"))]
    return [-1 if one == patch else one for one in ids]


def apart(tokens: Slow, prompt: str) -> list[int]:
    """Honeybee: roles, words and pictures each for themselves, the end behind every answer."""
    ids, before = [1], ""
    for part in re.split("(<image>|\nAI: |\nHuman: )", prompt):
        if part:
            ids += [-1] if part == "<image>" else tokens.ids(part)
            ids += [2] if before == "\nAI: " else []
            before = part
    return ids


def main() -> None:
    from mmchat.golden.llava import written
    from mmchat.prompt import Turn
    from mmchat.templates import TEMPLATES

    train()
    chance, words = random.Random(5), (ROOT / "README.md").read_text("utf-8").split()
    texts = [
        *TEXTS,
        *("".join(chance.choice([*words, " ", " ", "\n", "</s>", "7"]) for _ in range(9)) for _ in range(60)),
    ]
    out = {"texts": [], "added": [], "talks": []}
    for legacy in (True, False):
        tokens = Slow(legacy, [])
        out["texts"] += [{"legacy": legacy, "text": text, "ids": tokens.ids(text)} for text in texts]
        for system, marks in ADDED.items():
            tokens, text = Slow(legacy, marks), " ".join(marks) + "a" + "".join(marks) + " end"
            out["added"].append(
                {"legacy": legacy, "system": system, "marks": marks, "text": text, "ids": tokens.ids(text)}
            )
    turns = (
        Turn("user", "What is here?", images=(0,)),
        Turn("assistant", "A red bus."),
        Turn("user", "And [0.1, 0.2]?"),
    )
    rules = {"vicuna_v1": spliced, "ferret_v1": spliced, "lego": spliced, "llava_grounding": spliced,
             "minigpt_v2": spliced, "shikra": whole, "honeybee_polite": apart}  # fmt: skip
    for name, rule in rules.items():
        system = {"ferret_v1": "ferret", "lego": "groundinggpt"}.get(name, name)
        for legacy in (True, False):
            tokens = Slow(legacy, ADDED.get(system, []))
            prompt = written(TEMPLATES[name].render(turns, lambda number, region: ()))
            ids = rule(tokens, prompt)
            out["talks"].append(
                {"template": name, "legacy": legacy, "added": ADDED.get(system, []), "prompt": prompt, "ids": ids}
            )
    parts = [
        f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]" for key, entries in out.items()
    ]
    (HERE / "recorded.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(len(out["texts"]), "texts")


if __name__ == "__main__":
    main()
