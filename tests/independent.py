"""Other people's code of a model, given our weights, for the tests that compare the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel

TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


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
    made, left, given = kind(config).eval(), dict(state), {}
    for name in made.state_dict():
        for *starts, put in layers:
            start = next((one for one in starts if one and name.startswith(one)), None)
            if start is not None:
                given[name] = left.pop(put + name.removeprefix(start))
                break
    assert not left
    made.load_state_dict(given)
    return made
