"""Writes groma.json: Groma's prompts as ids, by the tokenizer class that its training and its demo used.

Needs transformers 4.32.0 and sentencepiece, which neither the program nor its tests do; that version drops the blanks
beside added tokens. Run: python tests/tokenizers/record_groma.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import LlamaTokenizer

HERE = Path(__file__).resolve().parent
MARKS = [
    "[PAD]", "<sep>", "<img>", "</img>", "<roi>", "</roi>", "<p>", "</p>", "<image>", "<region>", "<refer_box>",
    "<ground_box>", "<refer_feat>", "[grounding]", *(f"<r{number}>" for number in range(100)),
]  # fmt: skip
HEAD = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: Here is an image with region crops from it. Image: <image>. "
    "Regions: <region>. ASSISTANT: Thank you for the image! How can I assist you with it?</s>"
)
DRAWN = "<roi><refer_box></roi><refer_feat>"
TALKS = {  # by the turns as a user and the model write them; @1 is a drawn region
    "What is here?": "What is here?",
    "[grounding]Describe it.": "[grounding]Describe it.",
    "Locate <p>the red cup</p> in the image.": "Locate <p>the red cup</p> in the image.",
    "Is @1 left of  @2 or not?": f"Is {DRAWN} left of  {DRAWN} or not?",
}
SAID = "<p>the man in white</p> <roi><r3></roi> with <p>two mugs</p><roi><r1><r2></roi> ."


def read(folder: str, legacy: bool) -> LlamaTokenizer:
    """The class as a checkpoint's folder gives it, without marks."""
    LlamaTokenizer(str(HERE / "tokenizer.model"), legacy=legacy).save_pretrained(folder)
    return LlamaTokenizer.from_pretrained(folder)


def main() -> None:
    out = []
    for legacy in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            trained = read(folder, legacy)
            trained.add_tokens(MARKS, special_tokens=True)
            trained.pad_token = MARKS[0]
            trained.save_pretrained(folder)
            published = LlamaTokenizer.from_pretrained(folder)
        prompts = {(asked,): f"{HEAD}USER: {prompt} ASSISTANT:" for asked, prompt in TALKS.items()}
        prompts["Who?", SAID, "And now?"] = f"{HEAD}USER: Who? ASSISTANT: {SAID}</s>USER: And now? ASSISTANT:"
        for talk, prompt in prompts.items():
            ids = trained(prompt).input_ids
            assert ids == published(prompt).input_ids
            out.append({"legacy": legacy, "talk": list(talk), "ids": ids})
    (HERE / "groma.json").write_text("[\n" + ",\n".join(json.dumps(entry) for entry in out) + "\n]\n")


if __name__ == "__main__":
    main()
