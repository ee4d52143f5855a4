"""Kosmos-2's published layout, and its decoder against the library's own whole model."""

from __future__ import annotations

import dwarfs
import published
import pytest
import torch
from transformers import Kosmos2ForConditionalGeneration

from mmchat.dialect import Scene
from mmchat.engines.local import LocalEngine
from mmchat.families.kosmos2 import FAMILY, build, sizes
from mmchat.geometry import Box, Region
from mmchat.nets import weights
from mmchat.prompt import Turn

NAMES = (
    (r"^bridge\.", ""), (r"^vision\.", "vision_model.model."), (r"^language\.lm_head.*", ""),
    (r"^language\.", "text_model."),
)  # fmt: skip


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def folder(request, tmp_path_factory):
    """Two shards; the tied head is not stored, as in the published file."""
    state = dwarfs.build(FAMILY).state_dict()
    named = {name: tensor for name, tensor in published.named(state, NAMES).items() if name}
    return published.write(tmp_path_factory.mktemp("kosmos") / "kosmos-2", named, FAMILY.dwarf, request.param)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    assert published.answer(folder, FAMILY, picture, precision).done


def test_a_checkpoint_is_the_librarys_own_model(folder):
    """The same weights in transformers' whole model: the same logits behind the same picture."""
    engine = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    ours = engine.model
    theirs = Kosmos2ForConditionalGeneration(sizes(FAMILY.dwarf)).eval()
    state = published.named(ours.state_dict(), (*NAMES[:2], (r"^language\.", "text_model.")))
    missing, left = theirs.load_state_dict(state, strict=False)
    assert not left and all("position" in name for name in missing)
    pixels, slots = torch.randn(1, 3, 56, 56), FAMILY.dwarf["latent_query_num"]
    ids = torch.tensor([[0, 5, *range(10, 10 + slots), 7, 8, 9]])
    mask = torch.zeros_like(ids)
    mask[0, 2 : 2 + slots] = 1
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels, input_ids=ids, image_embeds_position_mask=mask).logits
        embeds = ours.embed(ids)
        embeds[mask.bool()] = ours.see(pixels).images[0]
        assert torch.allclose(ours.language(inputs_embeds=embeds).logits, wanted, atol=1e-5)


def test_the_published_sizes_are_those_of_the_card():
    config = {
        "model_type": "kosmos-2",
        "text_config": {"layers": 1}, "vision_config": {"num_hidden_layers": 1},
    }  # fmt: skip
    with weights.without_memory():
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    assert shapes["language.model.embed_tokens.weight"] == (65037, 2048)
    assert shapes["language.model.layers.0.ffn.fc1.weight"] == (8192, 2048)
    assert shapes["bridge.image_to_text_projection.latent_query"] == (64, 2048)
    assert shapes["bridge.image_to_text_projection.dense.weight"] == (2048, 1024)
    assert shapes["vision.embeddings.position_embedding.weight"] == (257, 1024)


def test_a_region_is_asked_about_with_its_cells():
    region = Region("box", Box(0.1, 0.2, 0.5, 0.75))

    def mention(number, region):
        return FAMILY.mention(number, region, FAMILY.dialect, Scene())

    pieces = FAMILY.template.render((Turn("user", "", (region,), images=(0,)),), mention, "region")
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    cells = "<object><patch_index_0195><patch_index_0751></object>"
    assert said == f"<image></image> <grounding><phrase> It</phrase>{cells} is"
