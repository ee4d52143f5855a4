"""Language models from a checkpoint's own config.json: transformers' classes, their parameters left to the loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

# With every language model the library imports its detectors' losses, and with them a second and a half of scipy.
with patch("transformers.utils.is_scipy_available", lambda: False):
    from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import GemmaForCausalLM

_KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "head_dim",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def llama(config: Mapping[str, Any], attention: str = "sdpa") -> LlamaForCausalLM:
    """A Llama of the sizes in `config`, which may hold much else (a LLaVA config.json does)."""
    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))} | dict(
        config.get("rope_scaling") or {}
    )
    if "type" in rope:  # the old spelling
        rope["rope_type"] = rope.pop("type")
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    sizes = LlamaConfig(**kept, rope_parameters=rope)
    sizes._attn_implementation = attention
    return LlamaForCausalLM(sizes)


def gemma(config: Mapping[str, Any], attention: str = "sdpa") -> GemmaForCausalLM:
    """A Gemma (the first) of the sizes in `config`.

    Its table of words multiplies by the root of the width; vectors that do not come from it must be multiplied too, as
    the library did itself when such models were trained.
    """
    from transformers import GemmaConfig, GemmaForCausalLM

    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    sizes = GemmaConfig(**kept, rope_parameters=rope)
    sizes._attn_implementation = attention
    return GemmaForCausalLM(sizes)
