"""LLaVA 1.6: a picture as a whole and in tiles, from the desk to the answer, against transformers' own LLaVA-NeXT."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import dwarfs
import independent
import keylists
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import decoders
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.dialect import Scene, home
from mmchat.engines.local import LocalEngine
from mmchat.families.llava import FAMILY, frame, speaks
from mmchat.geometry import Box, Region
from mmchat.nets import plan, tiles, weights
from mmchat.nets.anyres import Anyres
from mmchat.prompt import Slot

MARK = 319  # the id that stands for a picture's vectors in the other model
SIZES = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
ANYRES = {
    "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": SIZES,
    "max_position_embeddings": 2048,
}  # fmt: skip
FORMS = {
    "spatial_unpad": ANYRES,
    "text": ANYRES | {"image_grid_pinpoints": str(SIZES)},
    "spatial": ANYRES | {"mm_patch_merge_type": "spatial"},
    "flat": ANYRES | {"mm_patch_merge_type": "flat"},
    "max": ANYRES | {"image_aspect_ratio": "anyres_max_2", "image_grid_pinpoints": "(1x1),...,(4x4)"},
}
SHAPES = [(170, 60), (60, 170), (100, 100), (120, 75), (40, 30), (400, 300), (31, 90)]
LENGTH = 12
LAYERS = (
    ("model.vision_tower.vision_model.", "model.vision_tower.", "vision."),
    ("model.multi_modal_projector.linear_1.", "", "bridge.0."),
    ("model.multi_modal_projector.linear_2.", "", "bridge.2."),
    ("model.language_model.", "", "language.model."),
    ("model.image_newline", "", "image_newline"),
    ("lm_head.", "", "language.lm_head."),
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A desk for each form of checkpoint, from its folder, opened once."""
    desks: dict[str, Desk] = {}

    def open_(form: str = "spatial_unpad") -> Desk:
        if form not in desks:
            kin = replace(FAMILY, dwarf={**FAMILY.dwarf, **FORMS[form]})
            folder = dwarfs.write(kin, tmp_path_factory.mktemp(form) / "dwarf")
            tokenizer = dwarfs.byte_tokenizer()
            tokenizer.decoder = (
                decoders.Fuse()
            )  # each byte is written as a sign of its own: what is said tells every id
            tokenizer.save(str(folder / "tokenizer.json"))
            desks[form] = Desk(LocalEngine.open(folder, FAMILY, "fp32", "cpu"))
            with torch.no_grad():
                desks[form].engine.model.language.lm_head.weight[256:] = 0
        return desks[form]

    yield open_
    for desk in desks.values():
        desk.close()


@pytest.fixture(scope="module")
def theirs(opened) -> LlavaNextForConditionalGeneration:
    """The other model with our weights: every one of them, by name. Its sizes are (height, width)."""
    state = opened().engine.model.state_dict()
    points = [[height, width] for width, height in SIZES]
    kind, sizes = LlavaNextForConditionalGeneration, {**FAMILY.dwarf, **ANYRES}
    return independent.llava(kind, sizes, state, LAYERS, MARK, image_grid_pinpoints=points)


def processed(*images: Image.Image) -> dict[str, torch.Tensor]:
    """Pictures as the other system prepares them."""
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[height, width] for width, height in SIZES],
    )  # fmt: skip
    return dict(processor(images=list(images), return_tensors="pt"))


def views(canvas: np.ndarray, side: int = 56) -> torch.Tensor:
    """The squares of a canvas, the whole picture first."""
    below = canvas[:, side:-1, :-1]
    cut = [below[:, top : top + side, left : left + side]
           for top in range(0, below.shape[1], side) for left in range(0, below.shape[2], side)]  # fmt: skip
    return torch.from_numpy(np.stack([canvas[:, :side, :side], *cut]))


def prepared(*images: Image.Image) -> dict[str, torch.Tensor]:
    """Pictures as our frame lays them out, in the other system's form."""
    each = [views(frame({**FAMILY.dwarf, **ANYRES}).fit(image)[0]) for image in images]
    most = max(map(len, each))
    stacked = torch.stack([torch.cat((one, one.new_zeros(most - len(one), *one.shape[1:]))) for one in each])
    return {"pixel_values": stacked, "image_sizes": torch.tensor([image.size[::-1] for image in images])}


def asked(desk: Desk, *images: Image.Image, text: str = "What?") -> tuple[Ask, list[int], torch.Tensor]:
    """A question, its prompt as the other model's ids, and as our vectors."""
    ask = Ask(images, (Turn("user", text),), limits=Limits(new_tokens=LENGTH))
    ready, engine = desk._prepare(ask), desk.engine
    ids = [256]  # the tokenizer's start
    for piece in ready.prompt:
        if isinstance(piece, Slot):
            ids += [MARK] * len(ready.sight.content.images[piece.index])
        else:
            ids += dwarfs.byte_tokenizer().encode(piece).ids
    _, parts = engine._laid_out(ready.prompt, ready.sight.content)
    with torch.inference_mode():
        return ask, ids, engine.inputs(parts)


@pytest.mark.parametrize("size", SHAPES)
def test_the_tiles_are_those_of_the_other_system(size):
    ours, expected = prepared(noise(*size)), processed(noise(*size))
    assert torch.equal(ours["image_sizes"], expected["image_sizes"])
    pairs = ours["pixel_values"][0], expected["pixel_values"][0]
    # The whole of a tall picture was brought to its height first when the authors' numbers were recorded, not here.
    first = int(size[0] < size[1] and size[1] > 56)
    assert torch.equal(pairs[0][first:], pairs[1][first:])


@pytest.mark.parametrize(
    "images", [(noise(*size),) for size in SHAPES] + [(noise(170, 60), noise(60, 170))], ids=str
)  # fmt: skip
def test_logits_and_text_are_equal(opened, theirs, images):
    desk = opened()
    ask, ids, inputs = asked(desk, *images)
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    wide = all(image.width >= image.height for image in images)
    pictures = processed(*images) if wide else prepared(*images)
    with torch.inference_mode():
        expected = theirs(**given, **pictures).logits
        logits = desk.engine.model.language(inputs_embeds=inputs).logits
        said = theirs.generate(
            **given, **pictures, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0, eos_token_id=257
        )[0, len(ids) :]
    assert (logits - expected).abs().max() <= 1e-5 and expected.std() > 0.05
    assert list(desk.answer(ask))[-1].raw == "".join(dwarfs.BYTES[index] for index in said.tolist())


def test_two_pictures_of_different_shapes_are_each_seen_as_alone(opened):
    for form in FORMS:
        pictures = noise(170, 60), noise(60, 170), noise(100, 100)
        both = opened(form)._prepare(asked(opened(form), *pictures)[0]).sight.content
        for number, picture in enumerate(pictures):
            alone = opened(form)._prepare(asked(opened(form), picture)[0]).sight.content
            assert torch.allclose(both.images[number], alone.images[0], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [*SHAPES, (3, 300), (300, 3), (1, 1)])
def test_the_canvas_gives_what_views_and_size_give(opened, form, size):
    """`tiled` is held to the authors' recorded vectors; here it says what the chat's road must give."""
    model = opened(form).engine.model
    image, config = noise(*size), {**FAMILY.dwarf, **FORMS[form]}
    canvas, _ = frame(config).fit(image)
    with torch.inference_mode():
        expected = model.tiled(views(canvas), size)
        encoded = model.encode(torch.from_numpy(canvas)[None])
        halved = deepcopy(model).to(torch.bfloat16).encode(torch.from_numpy(canvas)[None].bfloat16())
    assert torch.allclose(encoded.vectors[0], expected, atol=1e-6)
    assert halved.kept == encoded.kept and len(expected) <= model.picture_tokens
    for level in encoded.levels.values():
        assert level[0].shape[1] == level[0].shape[2] == max(1, *encoded.kept[0].cells)


def test_the_most_is_reached_by_a_picture_that_fills_its_tiles(opened):
    for form in ("spatial_unpad", "spatial", "flat"):
        model, config = opened(form).engine.model, {**FAMILY.dwarf, **FORMS[form]}
        with torch.inference_mode():
            lengths = [len(model.encode(torch.from_numpy(frame(config).fit(noise(*size))[0])[None]).vectors[0])
                       for size in map(tuple, SIZES)]  # fmt: skip
        assert max(lengths) == model.picture_tokens
    assert opened("spatial_unpad").engine.model.picture_tokens == 16 + 8 * 9


def test_too_many_cells_are_made_fewer(opened):
    model = opened("max").engine.model
    (left, _), unit = opened("max")._prepare(asked(opened("max"), noise(220, 220))[0]).sight.content.kept[0].cells, 4
    assert (left, unit) == (5, 4)  # 16 rows, 8 times the 2 tiles allowed: 16 // 2.83
    grown = torch.arange(256.0).reshape(1, 16, 16)
    expected = torch.nn.functional.interpolate(grown[None], (5, 5), mode="bilinear")[0]
    assert torch.equal(tiles.shrunk(grown, model.most), expected) and model.most == 32
    barely = torch.zeros(1, 6, 6)  # 1.06 times on each side: left alone
    assert tiles.shrunk(barely, 32) is barely


def test_a_second_question_sees_nothing_again_and_says_the_same_without_the_cache(opened):
    desk = opened()
    first, _, _ = asked(desk, noise(170, 60))
    one = list(desk.answer(first))[-1]
    turns = (*first.turns, Turn("assistant", one.raw), Turn("user", "And?"))
    two, whole = (
        list(desk.answer(Ask(first.images, turns, limits=Limits(new_tokens=6, cache=cache))))[-1]
        for cache in (True, False)
    )
    assert dict(two.notes)["encoder_runs"] == 0 and two.raw == whole.raw
    assert dict(two.notes)["prefilled_tokens"] < dict(whole.notes)["prefilled_tokens"]


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (500, 500), (640, 480)])
def test_a_box_comes_back_within_a_step_of_the_padded_square(size):
    placement = frame({**FAMILY.dwarf, **ANYRES}).place(size)
    assert placement == frame(FAMILY.dwarf).place(size)  # as in 1.5
    drawn, scene = Box(0.21, 0.13, 0.66, 0.91), Scene((), placement.fitted)
    (words,) = FAMILY.mention(1, Region("box", placement.into(drawn)), FAMILY.dialect, scene)
    (span,) = home(FAMILY.dialect.read(words, scene), placement).spans
    found, step = span.places[0], 0.005 * max(size)
    assert max(abs(found.x0 - drawn.x0), abs(found.x1 - drawn.x1)) <= step / size[0] + 1e-9
    assert max(abs(found.y0 - drawn.y0), abs(found.y1 - drawn.y1)) <= step / size[1] + 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FAMILY.heats)
def test_every_heat_map_lies_over_the_square(opened, form, kind):
    for size in ((170, 60), (60, 170), (3, 300)):
        box = Region("box", Box(0.1, 0.1, 0.6, 0.9))
        ask = Ask((noise(*size),), (Turn("user", "What is @1?", (box,)),), limits=Limits(new_tokens=2))
        answer = list(opened(form).answer(ask))[-1]
        trace, placement, _ = opened(form).trace(ask, replace(answer, raw="ab"), kind, box)
        assert trace.map.shape[0] == trace.map.shape[1] and placement.fitted == (56, 56)
        assert len(np.unique(trace.map)) > 3


@pytest.mark.parametrize("form", ["spatial_unpad", "spatial", "flat"])
def test_attention_lies_where_its_vectors_do(opened, form):
    model = opened(form).engine.model
    seen = opened(form)._prepare(asked(opened(form), noise(170, 60))[0]).sight.content
    laid = seen.kept[0]
    assert laid.tiling == (3, 1) and laid.cells == (4, 12) and laid.cut == (0, 0)
    values = torch.zeros(len(seen.images[0]))
    # Row 2, column 9 of the tiles' map: in the second row, behind two newlines; in the third tile of four by four.
    values[16 + {"spatial_unpad": 2 * 13 + 9, "spatial": 2 * 12 + 9, "flat": 2 * 16 + 2 * 4 + 1}[form]] = 1.0
    assert model.spread(values, seen, 0).nonzero().tolist() == [[6, 9]]  # four rows of padding above
    whole = torch.zeros_like(values)
    whole[2 * 4 + 3] = 1.0  # the whole picture's, squashed: row 2 of 4, the last of four columns
    found = model.spread(whole, seen, 0)
    assert divmod(int(found.argmax()), 12)[0] == 6 and int(found.argmax()) % 12 >= 9


def test_padding_is_not_taken_for_the_picture(opened):
    """What black padding would say is not in the maps: a picture that changes only there cannot be drawn, so the cells
    left are compared with those of the tiles."""
    model = opened().engine.model
    canvas, _ = frame({**FAMILY.dwarf, **ANYRES}).fit(noise(120, 75))
    assert canvas.shape == (3, 56 + 112 + 1, 112 + 1)
    assert canvas[0, 56:-1, -1].mean() == pytest.approx(6 / 8) and canvas[0, -1, :-1].all()
    with torch.inference_mode():
        encoded = model.encode(torch.from_numpy(canvas)[None])
        _, vectors = model.looked(views(canvas))
    assert encoded.kept[0].cells == (6, 8) and encoded.kept[0].cut == (1, 0)
    inner = tiles.joined(vectors[1:], (2, 2))[:, 1:7]
    assert torch.allclose(encoded.levels["bridge"][0][:, 1:7], inner, atol=1e-6)
    assert torch.allclose(encoded.levels["bridge"][0][:, 0], inner[:, 0], atol=1e-6)  # the edge once more


def test_room_is_planned_for_the_longest_picture(opened):
    model = opened().engine.model
    assert plan.planned(model).tokens == min(2048, plan.TALK)
    wide = FAMILY.build({**FAMILY.dwarf, **ANYRES, "max_position_embeddings": 8192})
    long = Anyres(wide.language, wide.vision, wide.bridge, 64, [(56 * 20, 56 * 20)], "spatial")
    assert long.picture_tokens == 16 + 400 * 16
    assert plan.planned(long).tokens == plan.TALK - 576 + long.picture_tokens


def test_the_published_sizes_have_one_parameter_more_and_2928_vectors_at_most():
    real = keylists.language(keylists.VICUNA_7B, 32) | {"mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu"}
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    with weights.without_memory():
        before = FAMILY.build(real | {"image_aspect_ratio": "pad"})
        model = FAMILY.build({**real, **ANYRES, "image_grid_pinpoints": pinpoints, "max_position_embeddings": 4096})
    more = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in before.state_dict()}
    assert more == {weights.renamed("model.image_newline", FAMILY.keys): (4096,)}
    assert model.picture_tokens == 576 + 48 * 49 and plan.planned(model).tokens == 4096
    assert before.picture_tokens == 576 and plan.planned(before).tokens == 2048


@pytest.mark.parametrize(("precision", "device"), [("fp32", "disk"), ("bf16", "cpu"), ("nf4", "cpu")])
def test_every_precision_and_place_answers(opened, tmp_path, precision, device):
    folder = dwarfs.write(replace(FAMILY, dwarf={**FAMILY.dwarf, **ANYRES}), tmp_path / "dwarf")
    desk = Desk(LocalEngine.open(folder, FAMILY, precision, device))
    pictures = noise(170, 60), noise(60, 170)
    content = desk._prepare(asked(desk, *pictures)[0]).sight.content
    exact = opened()._prepare(asked(opened(), *pictures)[0]).sight.content
    for one, other in zip(content.images, exact.images, strict=True):  # quantised or not, the eyes are whole
        assert (one.float() - other).abs().max() <= (0 if precision == "fp32" else 0.05) * other.abs().max() + 1e-6
    assert list(desk.answer(Ask(pictures, (Turn("user", "So?"),), limits=Limits(new_tokens=3))))[-1].done
    desk.close()


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        ({}, "A chat between a curious user"),
        ({"vocab_size": None}, "A chat between a curious user"),
        ({"model_type": "llava_mistral"}, "[INST] "),
        ({"vocab_size": 64000}, "<|im_start|>system\nAnswer the questions.<|im_end|>"),
        (
            {"vocab_size": 128256},
            "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision ",
        ),
    ],
)
def test_each_relative_is_spoken_to_in_its_own_form(config, starts):
    template = speaks({**FAMILY.dwarf, **ANYRES, **config})
    pieces = template.render((Turn("user", "Who?", images=(0,)),), lambda number, drawn: ())
    assert pieces[0].startswith(starts) and template.tasks == FAMILY.template.tasks


def test_a_picture_stands_between_its_marks_where_the_config_says_so():
    template = speaks({**FAMILY.dwarf, "mm_use_im_start_end": True})
    before, _, behind = template.render((Turn("user", "Who?", images=(0,)),), lambda number, drawn: ())
    assert before.endswith("USER: <im_start>") and behind == "<im_end>\nWho? ASSISTANT:"


def test_what_llama_3_is_asked_is_laid_out_in_its_headers():
    template = speaks({**FAMILY.dwarf, "vocab_size": 128256})
    turns = (Turn("user", "Who?", images=(0,)), Turn("assistant", "He."), Turn("user", "Why?"))
    assert template.render(turns, lambda number, drawn: ())[1:] == (
        Slot("image", 0),
        "\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHe.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ) and template.stop == ("<|eot_id|>",)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="multiples of 56 pixels"):
        frame({**FAMILY.dwarf, **ANYRES, "image_grid_pinpoints": [[60, 112]]})
    with pytest.raises(ValueError, match="multiples of 56 pixels"):
        FAMILY.build({**FAMILY.dwarf, **ANYRES, "image_grid_pinpoints": None})
    with pytest.raises(ValueError, match="flat, spatial, spatial_unpad are known"):
        FAMILY.build({**FAMILY.dwarf, **ANYRES, "mm_patch_merge_type": "spatial_maxpool2x2"})
    with pytest.raises(ValueError, match="mm_vision_select_feature must be patch"):
        FAMILY.build({**FAMILY.dwarf, **ANYRES, "mm_vision_select_feature": "cls_patch"})
