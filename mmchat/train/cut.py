"""Cut SmolLM2 down: fewer layers, a prefix of its vocabulary, a few tokens of our own. The result is an ordinary Llama
checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

REGIONS = 64
NEW_TOKENS = ("<p>", "</p>", *(f"<r{index}>" for index in range(REGIONS)))


def shorten(tokenizer: Mapping[str, Any], kept: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json cut to its first `kept` ids: merges that make later tokens go, our tokens are
    added behind.

    A prefix of the merges is a tokenizer in its own right, as no earlier merge needs a later one.
    """
    cut = json.loads(json.dumps(tokenizer))
    model = cut["model"]
    model["vocab"] = {piece: number for piece, number in model["vocab"].items() if number < kept}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if pair[0] + pair[1] in model["vocab"]]
    known = {entry["content"] for entry in cut["added_tokens"]}
    for offset, content in enumerate(token for token in NEW_TOKENS if token not in known):
        entry = {
            "id": kept + offset,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        cut["added_tokens"].append(entry)
    # A space in front of a text is the text's own: the template says how pieces are joined.
    cut["pre_tokenizer"]["add_prefix_space"] = False
    cut["decoder"]["add_prefix_space"] = False
    return cut


def cut_down(
    state: Mapping[str, torch.Tensor], layers: Sequence[int], kept: int, chance: torch.Generator
) -> dict[str, torch.Tensor]:
    """A Llama state dict (`model.` names) with only these layers, in this order, and `kept` + our tokens' embeddings;
    head tied, so left out."""
    table = state["model.embed_tokens.weight"][:kept].float()
    # New tokens begin near the middle of the old ones, apart from each other by about as much as words are.
    fresh = table.mean(0) + 0.7 * table.std(0) * torch.randn(len(NEW_TOKENS), table.shape[1], generator=chance)
    out = {
        "model.embed_tokens.weight": torch.cat([table, fresh]),
        "model.norm.weight": state["model.norm.weight"].float(),
    }
    for new, old in enumerate(layers):
        start = f"model.layers.{old}."
        for name, tensor in state.items():
            if name.startswith(start):
                out[f"model.layers.{new}.{name.removeprefix(start)}"] = tensor.float()
    return out


def smollm2(folder: Path, file: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Config, state dict (fp16) and tokenizer.json of a GGUF checkpoint, dequantised once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # heavy, and only this step needs them

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config = json.loads(json.dumps(config, default=str))  # plain data, so that it can be kept and read safely
    return (
        config,
        {name: tensor.half() for name, tensor in model.state_dict().items()},
        json.loads(tokenizer.backend_tokenizer.to_str()),
    )


def config_of(full: Mapping[str, Any], layers: int, vocabulary: int) -> dict[str, Any]:
    """config.json of the cut model."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "rms_norm_eps",
        "attention_bias",
        "mlp_bias",
        "rope_parameters",
        "rope_theta",
        "max_position_embeddings",
        "initializer_range",
    )
    config = {key: full[key] for key in keys if key in full}
    # Both spellings: newer libraries read rope_parameters, older ones and our own reader rope_theta.
    config.setdefault("rope_theta", full.get("rope_parameters", {}).get("rope_theta", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        "max_position_embeddings": 2048,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float16",
    }
