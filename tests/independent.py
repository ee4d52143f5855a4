"""Other people's code of a model, given our weights, for the tests that compare the two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel

TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


def made(kind: type[PreTrainedModel], config: Mapping[str, Any]) -> Any:
    """transformers' model of a published config.json."""
    return kind(kind.config_class(**{key: value for key, value in config.items() if key != "model_type"}))


def save(model: Any, folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any], **more: Any) -> None:
    """The checkpoint as transformers writes it, with a tokenizer and its settings."""
    model.save_pretrained(folder, **more)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def llava(
    kind: type[PreTrainedModel],
    sizes: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    layers: Sequence[tuple[str, ...]],
    mark: int,
    **more: Any,
) -> Any:
    """transformers' LLaVA of a `kind`, sized as our config, with our parameters: every one of them, by name.

    layers: (starts of its names, of which an empty one is none, ours instead); mark: the id of a picture.
    """
    config = kind.config_class(
        vision_config=CLIPVisionConfig(**sizes["vision_config"]),
        text_config=LlamaConfig(**{key: sizes[key] for key in TEXT}),
        image_token_index=mark,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        **more,
    )
    theirs, left, given = kind(config).eval(), dict(state), {}
    for name in theirs.state_dict():
        for *starts, put in layers:
            start = next((one for one in starts if one and name.startswith(one)), None)
            if start is not None:
                given[name] = left.pop(put + name.removeprefix(start))
                break
    assert not left
    theirs.load_state_dict(given)
    return theirs
