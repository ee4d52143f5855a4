"""Published names and shapes at real size, key for key: the loader's own road from `keys_real.txt` to the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keylists
import pytest
import torch
from keylists import LLAMA_3_8B, VICUNA_7B, VICUNA_13B, language

from mmchat import family
from mmchat.nets import weights
from mmchat.nets.files import Stored
from mmchat.nets.parts import TOWER, Part, Source, items

CLIP = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
# The towers' own config.json, as the loader puts it into the checkpoint's.
CLIP_224 = {"model_type": "clip", "vision_config": {**CLIP, "image_size": 224}}
CLIP_336 = {"model_type": "clip", "vision_config": {**CLIP, "image_size": 336}}
LLAVA = {
    "model_type": "llava", "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
}  # fmt: skip
SMALL_PROJECTOR = {"mm_hidden_size": 1024, "mm_vision_select_layer": -2}
KOSMOS_2 = {
    "model_type": "kosmos-2", "latent_query_num": 64, "vision_config": CLIP_224["vision_config"],
    "text_config": {
        "vocab_size": 65037, "max_position_embeddings": 2048, "embed_dim": 2048, "layers": 24, "ffn_dim": 8192,
        "attention_heads": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "no_repeat_ngram_size": 3,
    },
}  # fmt: skip
GROMA = {
    "model_type": "groma", "num_new_token": 114, "nms_thres": 0.6, "box_score_thres": 0.15, "max_region_num": 100,
    "llm_cfg": language(VICUNA_7B, 32),
    "perceiver_cfg": {
        "vis_output_layer": -1,
        "vis_encoder_cfg": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                            "image_size": 518, "patch_size": 14, "mlp_ratio": 4},
        "ddetr_cfg": {"d_model": 256, "num_queries": 300, "num_feature_levels": 1, "two_stage": True,
                      "two_stage_num_proposals": 300, "with_box_refine": True},
    },
}  # fmt: skip
GROUNDING_GPT = language({**VICUNA_7B, "VOCAB": 32009}, 32) | {
    "model_type": "LEGO", "mm_vision_hidden_size": 1024, "mm_vision_select_layer": -2, "max_frame": 64,
    "mm_vision_select_feature": "patch", "num_query_token": 32, "video_token_len": 64, "sound_token_len": 8,
    "image_token_len": 576, "vision_config": CLIP_336,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 50272, "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "word_embed_proj_dim": 4096,
    "do_layer_norm_before": True, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
CONVLLAVA = {
    "mm_hidden_size": 3072, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -1,
    "image_aspect_ratio": "pad", "mm_vision_tower": "ConvLLaVA/ConvLLaVA-ConvNeXt-768",
}  # fmt: skip


def fromage(count: int) -> dict[str, Any]:
    return {
        "opt_version": "facebook/opt-6.7b", "visual_encoder": "openai/clip-vit-large-patch14", "shared_emb_dim": 256,
        "n_visual_tokens": count, "text_emb_layers": [-1], "retrieval_token_idx": 50266, "llm_config": OPT,
        "vision_config": CLIP_224,
    }  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A checkpoint: its family and list, what its config.json says, and which sections are folders of which part (by
    the entry of config.json that names it).
    """

    family: str
    system: str
    config: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=lambda: VICUNA_7B)
    parts: Mapping[str, str] = field(default_factory=dict)
    section: str = "checkpoint"

    def sources(self, root: Path) -> list[tuple[Source, list[keylists.Listed]]]:
        known: dict[str, Part] = {part.key: part for part in (TOWER, *family.load(self.family).parts)}
        made = [(self.section, None), *((section, known[key]) for section, key in self.parts.items())]
        return [
            (Source(root / section, part), list(keylists.listed(self.system, self.sizes, section)))
            for section, part in made
        ]


GROWN_7B, GROWN_13B = ({**sizes, "VOCAB": 32001} for sizes in (VICUNA_7B, VICUNA_13B))
GROUNDED = {**VICUNA_7B, "VOCAB": 32003}
TOWER_BESIDE = {"clip": "mm_vision_tower"}
CASES = {
    "llava 7b": Published("llava", "llava", {**language(VICUNA_7B, 32), **LLAVA, "vision_config": CLIP_336},
                          {**VICUNA_7B, "PLACES": 577}, TOWER_BESIDE),
    "llava 13b": Published("llava", "llava", {**language(VICUNA_13B, 40), **LLAVA, "vision_config": CLIP_336},
                           {**VICUNA_13B, "PLACES": 577}, TOWER_BESIDE),
    "llava 7b, tower inside": Published("llava", "llava", language(VICUNA_7B, 32) | LLAVA,
                                        {**VICUNA_7B, "PLACES": 577}, section="inside"),
    "llava 13b, tower inside and beside": Published(
        "llava", "llava", {**language(VICUNA_13B, 40), **LLAVA, "vision_config": CLIP_336},
        {**VICUNA_13B, "PLACES": 577}, TOWER_BESIDE, "inside"),
    "mmfuser 7b": Published(
        "mmfuser", "mmfuser", language(VICUNA_7B, 32) | LLAVA | {"mm_vision_select_layer": [-22, -17, -12, -7, -2]},
        {**VICUNA_7B, "PLACES": 577}),
    "mmfuser 13b": Published(
        "mmfuser", "mmfuser", language(VICUNA_13B, 40) | LLAVA | {"mm_vision_select_layer": "list-22/-17/-12/-7/-2"},
        {**VICUNA_13B, "PLACES": 577}),
    "convllava 7b": Published("convllava", "convllava", language(VICUNA_7B, 32) | CONVLLAVA),
    "convllava 13b": Published("convllava", "convllava", language(VICUNA_13B, 40) | CONVLLAVA, VICUNA_13B),
    "inf-llava": Published("inf_llava", "inf-llava", language(LLAMA_3_8B, 32) | LLAVA, LLAMA_3_8B),
    "llava-grounding": Published("llava_grounding", "llava-grounding", language(GROUNDED, 32) | SMALL_PROJECTOR,
                                 GROUNDED),
    "ferret 7b": Published("ferret", "ferret", language(GROWN_7B, 32) | SMALL_PROJECTOR, VICUNA_7B,
                           {"base": "base_model", **TOWER_BESIDE}),
    "ferret 13b": Published("ferret", "ferret", language(GROWN_13B, 40) | SMALL_PROJECTOR, VICUNA_13B,
                            {"base": "base_model", **TOWER_BESIDE}),
    "shikra": Published(
        "shikra", "shikra", language(GROUNDED, 32) | SMALL_PROJECTOR | {"vision_config": CLIP_224}, VICUNA_7B,
        {"base": "base_model", **TOWER_BESIDE}),
    "minigpt-v2": Published("minigpt_v2", "minigpt-v2", {"llm_config": language(VICUNA_7B, 32)},
                            parts={"base": "llama_model", "eva": "vit_model"}),
    "minigpt-v2, newer names": Published("minigpt_v2", "minigpt-v2", {"llm_config": language(VICUNA_7B, 32)},
                                         parts={"base": "llama_model", "eva": "vit_model"}, section="newer"),
    "kosmos-2": Published("kosmos2", "kosmos-2", KOSMOS_2),
    "groma": Published("groma", "groma", GROMA),
    "groundinggpt": Published("groundinggpt", "groundinggpt", GROUNDING_GPT, {**VICUNA_7B, "PLACES": 577},
                              TOWER_BESIDE),
    "fromage": Published("fromage", "fromage", fromage(1), {"VECTORS": 4096},
                         {"opt": "opt_version", "clip": "visual_encoder"}),
    "fromage, four vectors": Published("fromage", "fromage", fromage(4), {"VECTORS": 4 * 4096},
                                       {"opt-with-head": "opt_version", "clip": "visual_encoder"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_published_parameter_has_its_place_and_no_place_is_left(case, tmp_path, monkeypatch):
    known = family.load(case.family)
    sources = case.sources(tmp_path)
    for source, names in sources:
        prefix = source.part.prefix if source.part else ""
        plain = [(prefix + one.name, one.used) for one in names if ".lora_" not in one.name]
        unused = {name for name, _ in plain if weights.dropped(known.drop, name, weights.renamed(name, known.keys))}
        assert unused == {name for name, used in plain if not used}
        ours = [weights.renamed(name, known.keys) for name, used in plain if used]
        assert len(ours) == len(set(ours)), source.path.name

    files = {source.path: [on_meta(one, source.path) for one in names] for source, names in sources}
    monkeypatch.setattr("mmchat.nets.parts.inventory", lambda path: files[path])
    with weights.without_memory():
        model = known.build(case.config)
    tensors = model.state_dict(keep_vars=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    state = {item.name: item.read() for item in items([one for one, _ in sources], known.keys, known.drop, known.parts)}
    if known.fold is not None:
        taken = {name: state.pop(name) for name in list(state) if weights.dropped(known.fold.takes, name)}
        state |= known.fold(taken, wanted)
    landed = {name: tuple(tensor.shape) for name, tensor in state.items()}
    filled = {id(tensors[name]) for name in landed if name in tensors}
    tied = {name: wanted[name] for name, tensor in tensors.items() if name not in landed and id(tensor) in filled}
    assert landed | tied == wanted


def on_meta(one: keylists.Listed, path: Path) -> Stored:
    return Stored(one.name, one.shape, torch.float16, path, lambda: torch.empty(one.shape, device="meta"))


@pytest.mark.parametrize(
    ("case", "part", "count"),
    [
        ("llava 7b", "mm_projector", 20_979_712),
        ("mmfuser 7b", "mm_projector", 26_170_304),
        ("inf-llava", "spatial_embed", 4_400_256),
        ("ferret 7b", "region_geo_sampler", 44_069_900),
        ("minigpt-v2", ".lora_", 33_554_432),
        ("minigpt-v2", "llama_proj", 23_072_768),
        ("fromage", "", 5_513_729),
    ],
)
def test_the_lists_count_as_many_numbers_as_the_cards(case, part, count, tmp_path):
    (_, names), *_ = CASES[case].sources(tmp_path)
    assert sum(math.prod(one.shape) for one in names if part in one.name) == count


# what is added to what, in numbers small enough to be added by hand


def joined(name: str, monkeypatch: pytest.MonkeyPatch, root: Path, **folders: Mapping[str, list]) -> dict[str, list]:
    """Every parameter by our names that a family makes of its checkpoint ("own") and its parts' folders."""
    known = family.load(name)
    parts = {part.key: part for part in (TOWER, *known.parts)}
    sources = [Source(root / key, parts.get(key)) for key in folders]
    files = {root / key: [given(*one, root) for one in held.items()] for key, held in folders.items()}
    monkeypatch.setattr("mmchat.nets.parts.inventory", lambda path: files[path])
    state = {item.name: item.read() for item in items(sources, known.keys, known.drop, known.parts)}
    if known.fold is not None:
        taken = {name: state.pop(name) for name in list(state) if weights.dropped(known.fold.takes, name)}
        state |= known.fold(taken, {"language.model.decoder.embed_tokens.weight": (4, 2)})
    return {name: tensor.tolist() for name, tensor in state.items()}


def given(name: str, values: list, root: Path) -> Stored:
    tensor = torch.tensor(values, dtype=torch.float16)
    return Stored(name, tuple(tensor.shape), tensor.dtype, root, tensor.clone)


@pytest.mark.parametrize("name", ["shikra", "ferret"])
def test_a_difference_is_added_to_its_base_where_the_cards_say(name, tmp_path, monkeypatch):
    """Target = base + delta; rows of new tokens, what the base never had, and the tower are as they are stored."""
    own = {
        "model.embed_tokens.weight": [[1, 2], [3, 4], [5, 6]], "lm_head.weight": [[1, 1], [2, 2], [3, 3]],
        "model.layers.0.self_attn.q_proj.weight": [[0.5, -1], [2, 0]], "model.norm.weight": [0.25, 0],
        "model.layers.0.self_attn.rotary_emb.inv_freq": [9], "model.mm_projector.weight": [[7, 8]],
    }  # fmt: skip
    base = {
        "model.embed_tokens.weight": [[10, 10], [20, 20]], "lm_head.weight": [[-1, 0], [0, -1]],
        "model.layers.0.self_attn.q_proj.weight": [[1, 1], [1, -4]], "model.norm.weight": [1, 1],
        "model.layers.0.self_attn.rotary_emb.inv_freq": [1],
    }  # fmt: skip
    tower = {"vision_model.pre_layrnorm.weight": [3, 4]}
    found = joined(name, monkeypatch, tmp_path, own=own, base_model=base, mm_vision_tower=tower)
    assert found == {
        "language.model.embed_tokens.weight": [[11, 12], [23, 24], [5, 6]],
        "language.lm_head.weight": [[0, 1], [2, 1], [3, 3]],
        "language.model.layers.0.self_attn.q_proj.weight": [[1.5, 0], [3, -4]],
        "language.model.norm.weight": [1.25, 1], "bridge.0.weight": [[7, 8]], "vision.pre_layrnorm.weight": [3, 4],
    }  # fmt: skip


@pytest.mark.parametrize("wording", ["", ".default"])
def test_minigpt_v2s_pairs_are_a_quarter_of_their_product(wording, tmp_path, monkeypatch):
    """W + 16 / 64 * B @ A, B [3, 1] by A [1, 2] here; k_proj has no pair."""
    stem = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_"
    own = {
        "llama_proj.weight": [[1] * 8],
        f"{stem}A{wording}.weight": [[4, 8]],
        f"{stem}B{wording}.weight": [[1], [2], [-1]],
    }
    llama = {
        "model.layers.0.self_attn.q_proj.weight": [[0, 0], [1, 1], [5, 5]],
        "model.layers.0.self_attn.k_proj.weight": [[2, 2]],
    }
    tower = {"norm.weight": [1], "blocks.39.norm1.weight": [1], "blocks.38.norm1.weight": [2]}
    assert joined("minigpt_v2", monkeypatch, tmp_path, own=own, llama_model=llama, vit_model=tower) == {
        "language.model.layers.0.self_attn.q_proj.weight": [[1, 2], [3, 5], [4, 3]],
        "language.model.layers.0.self_attn.k_proj.weight": [[2, 2]], "vision.blocks.38.norm1.weight": [2],
        "bridge.llama_proj.weight": [[1] * 8], "bridge.ln_vision.weight": [1, 1], "bridge.ln_vision.bias": [0, 0],
    }  # fmt: skip


def test_fromages_row_is_written_over_the_last_one_of_a_table_that_is_cut(tmp_path, monkeypatch):
    own = {"ret_input_embeddings.weight": [[7, 8]], "model.logit_scale": 2}
    opt = {"decoder.embed_tokens.weight": [[0, 1], [2, 3], [4, 5], [6, 6], [9, 9], [9, 9]]}
    assert joined("fromage", monkeypatch, tmp_path, own=own, opt_version=opt) == {
        "language.model.decoder.embed_tokens.weight": [[0, 1], [2, 3], [4, 5], [7, 8]], "head.logit_scale": 2,
    }  # fmt: skip


def test_gromas_marks_stand_behind_vicunas_words(tmp_path, monkeypatch):
    own = {
        "llm.model.embed_tokens.weight": [[0, 1], [2, 3]], "new_input_embs.weight": [[4, 5]],
        "llm.lm_head.weight": [[1, 0], [3, 2]], "extra_lm_head.weight": [[5, 4]],
    }  # fmt: skip
    assert joined("groma", monkeypatch, tmp_path, own=own) == {
        "language.model.embed_tokens.weight": [[0, 1], [2, 3], [4, 5]],
        "language.lm_head.weight": [[1, 0], [3, 2], [5, 4]],
    }
