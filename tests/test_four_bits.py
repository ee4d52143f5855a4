"""LLaVA's descendants in 4 bits against transformers' own 4 bits of the same weights, from a checkpoint to the text."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import dwarfs
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mmchat import family
from mmchat.engines import talks
from mmchat.engines.local import LocalEngine
from mmchat.engines.tokens import Growing
from mmchat.family import Limits
from mmchat.nets import quantise
from mmchat.prompt import Slot

PROMPT = ("USER: ", Slot("image", 0), "\nWhat is here? ASSISTANT:")
TOKENS = 16


@pytest.mark.parametrize("name", ["llava", "mmfuser", "convllava", "inf_llava"])
def test_a_model_in_four_bits_says_what_transformers_own_four_bits_say(name, tmp_path):
    known = family.load(name)
    known = replace(known, dwarf={**known.dwarf, "intermediate_size": 128})  # rows of whole blocks of 64: all quantised
    folder = dwarfs.write(known, tmp_path / "dwarf")
    ours, plain = (LocalEngine.open(folder, known, precision, "cpu") for precision in ("nf4", "fp32"))
    packed = quantise.packed_layers(ours.model)
    assert len(packed) == 14 and all(path.startswith("language.model.layers.") for path in packed)

    plain.model.language.save_pretrained(tmp_path / "language")
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=ours.model.dtype, llm_int8_skip_modules=["lm_head"],
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "language", quantization_config=how, dtype=ours.model.dtype, device_map="cpu"
    )
    side = known.frame(known.dwarf).side
    picture = np.random.default_rng(3).standard_normal((3, side, side), np.float32)
    sight = ours.see((picture,), ())
    ids = [ours.tokens.ids(piece, number == 0) for number, piece in enumerate(PROMPT) if isinstance(piece, str)]
    with torch.inference_mode():
        before, after = ours.model.embed([*ours.tokens.start, *ids[0]]), ours.model.embed(ids[1])
        embeds = torch.cat((before, sight.content.images[0], after))[None]
        generated = theirs.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.bool), do_sample=False,
            max_new_tokens=TOKENS, eos_token_id=sorted(ours.tokens.ends), pad_token_id=0,
        )[0]  # fmt: skip
        logits = [one(inputs_embeds=embeds.to(dtype)).logits.float() for one, dtype in (
            (ours.model.language, ours.model.dtype), (theirs, ours.model.dtype), (plain.model.language, torch.float32),
        )]  # fmt: skip
    growing = Growing(ours.tokens)
    for token in generated.tolist():
        if token not in ours.tokens.ends:
            growing.add(token, 1.0)
    text, pieces, _ = talks.said(growing, (), True)
    told = list(ours.speak(PROMPT, sight, Limits(new_tokens=TOKENS)))[-1]
    assert told.text == text and len(pieces) > 3
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)  # four bits are seen at all


def test_nothing_is_fetched_to_compute_in_four_bits():
    """On some processors the library asks a hub for compiled code while it is imported."""
    code = (
        "import sys, types\n"
        "found = types.ModuleType('kernels')\n"
        "found.get_kernel = lambda *a, **k: print('fetched')\n"
        "sys.modules['kernels'] = found\n"
        "from mmchat.nets import quantise\n"
        "quantise._bitsandbytes()\n"
        "assert sys.modules['kernels'] is found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
