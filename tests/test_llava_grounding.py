"""LLaVA-Grounding's two frames, its marks and the head behind them, drawn places, and its published layout."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import dwarfs
import keylists
import numpy as np
import published
import pytest
import torch
from PIL import Image
from transformers import SwinBackbone, SwinConfig

from mmchat import export, paint
from mmchat.desk import Answer, Ask, Desk, Limits, Turn
from mmchat.dialect import Span
from mmchat.engines import local
from mmchat.engines.local import LocalEngine
from mmchat.engines.tokens import Tokens
from mmchat.families.llava_grounding import FAMILY, TwoFrames, build, frame
from mmchat.family import Sight
from mmchat.geometry import Box, Mask, Point, Region
from mmchat.nets import weights
from mmchat.nets.model import Located
from mmchat.nets.openseed import matched
from mmchat.nets.swin import Swin
from mmchat.prompt import Slot
from mmchat.ui.words import phrases

SIZES = keylists.VICUNA_7B | {"VOCAB": 32003}
VICUNA_7B = {**keylists.language(SIZES, 32), "mm_hidden_size": 1024, "mm_vision_select_layer": -2}
NAMES = (
    (r"^vision\.", "model.vision_tower.vision_tower.vision_model."),
    (r"^bridge\.0\.", "model.mm_projector."),
    (r"^language\.", ""),
    (r"^head\.backbone\.", "seg_model.model.backbone."),
    (r"^head\.", "seg_model.model.sem_seg_head."),
    (r"^regions\.(backbone|obj_projector)\.", r"interactive_model.model.\1."),
    (r"^regions\.", "interactive_model.model.sem_seg_head."),
)
SAID = "<g_s> a kite <g_e> <seg> over <g_s> a hill <g_e> <seg> ."
BOX = Region("box", Box(0.2, 0.1, 0.7, 0.8))


def layout(folder: Path) -> Path:
    """The dwarf as the authors publish theirs: two .bin shards, every tensor of training in them."""
    state = dwarfs.build(FAMILY).state_dict()
    names = published.named(state, NAMES)
    for part in ("seg_model", "interactive_model"):
        head = f"{part}.model.sem_seg_head.predictor"
        for layer in range(3):
            for name in ("layers.0.weight", "layers.2.bias"):
                names[f"{head}.bbox_embed.{layer}.{name}"] = names[f"{head}._bbox_embed.{name}"]
                names[f"{head}.decoder.bbox_embed.{layer}.{name}"] = names[f"{head}._bbox_embed.{name}"]
        names[f"{head}.decoder.norm.weight"] = names[f"{head}.decoder_norm.weight"]
        names[f"{head}.lang_mapper"] = torch.zeros(64, 32)
        names[f"{part}.model.criterion.empty_weight"] = torch.zeros(2)
        names[f"{part}.model.backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    own = "interactive_model.model.sem_seg_head"
    names["interactive_model.model.logit_scale"] = torch.ones([])
    names[f"{own}.predictor.class_embed_part"] = torch.zeros(32, 64)
    names[f"{own}.pixel_decoder.mask_features.bias"] = torch.zeros(16)
    return published.write(folder, names, {**FAMILY.dwarf, "model_type": "llava"}, "bin")


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_the_published_layout_loads_and_answers_about_a_drawn_box(tmp_path, picture, precision):
    assert published.answer(layout(tmp_path / "llava_grounding_gd_vp"), FAMILY, picture, precision).done


def test_the_published_layout_is_the_dwarf(tmp_path):
    engine = LocalEngine.open(layout(tmp_path / "llava_grounding_gd_vp"), FAMILY, "fp32", "cpu")
    for name, tensor in dwarfs.build(FAMILY).state_dict().items():
        assert torch.equal(engine.model.state_dict()[name], tensor), name


def test_a_head_that_lacks_a_tensor_does_not_load(tmp_path):
    folder = layout(tmp_path / "llava_grounding_gd_vp")
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
    lost = "seg_model.model.sem_seg_head.predictor.class_embed"
    part = torch.load(folder / index[lost], weights_only=True)
    torch.save({name: tensor for name, tensor in part.items() if name != lost}, folder / index[lost])
    with pytest.raises(ValueError, match="class_embed"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


def test_the_published_sizes_are_swins_and_clips():
    with weights.without_memory():
        model = build(VICUNA_7B)
    swin_tiny = 28_288_354 - 769_000 + 2 * (96 + 192 + 384)  # without its classes, with a norm for each map
    assert sum(parameter.numel() for parameter in model.head.backbone.parameters()) == swin_tiny
    assert model.vision.side == 224
    made = frame(VICUNA_7B)
    assert (made.side, made.eye, made.way) == (1024, 224, "pad_end")


# the two frames


def test_the_places_frame_holds_the_whole_picture_and_the_eyes_frame_its_middle():
    image = Image.new("RGB", (300, 100), (0, 0, 255))
    image.paste((255, 0, 0), (100, 0, 200, 100))
    pixels, placement = TwoFrames(96, "pad_end", (128, 128, 128), eye=24).fit(image)
    assert pixels.shape == (3, 120, 96) and placement.fitted == (96, 96)
    assert pixels[0, :32, 34:62].min() == 1 and pixels[2, :32, :30].min() == 1
    assert np.allclose(pixels[:, 33:96], 128 / 255)
    small = frame({"vision_config": {"image_size": 24}}).small
    assert np.allclose(pixels[:, 96:, :24], small.fit(image)[0]) and not pixels[:, 96:, 24:].any()
    # Only the red middle is seen: as red as can be, as blue as nothing.
    assert small.fit(image)[0][0, 5, 5] > 1.9 and small.fit(image)[0][2, 5, 5] < -1.4


def test_the_thinnest_picture_keeps_a_row():
    pixels, _ = TwoFrames(64, "pad_end", eye=16).fit(Image.new("RGB", (4000, 1), (255, 255, 255)))
    assert pixels[:, 0].min() == 1


# the tower


def test_the_tower_is_the_librarys_swin():
    """transformers' own Swin, an independent writing of it, with the same parameters."""
    torch.manual_seed(1)
    names = ["stage1", "stage2"]
    theirs = SwinBackbone(
        SwinConfig(image_size=40, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=3,
                   mlp_ratio=2.0, drop_path_rate=0.0, out_features=names)
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = theirs.state_dict()
    ours = Swin({"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 3, "mlp_ratio": 2.0}).eval()

    def taken(name: str) -> torch.Tensor:
        """The library's tensor for one of ours: it keeps query, key and value apart."""
        if name.startswith("norm"):
            return given[f"hidden_states_norms.stage{int(name[4]) + 1}.{name.rpartition('.')[2]}"]
        for mine, its in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("patch_embed.norm", "embeddings.norm"),
            ("layers", "encoder.layers"), ("attn.proj", "attention.o_proj"),
            ("attn.relative", "attention.relative_position_bias.relative"), ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
        ):  # fmt: skip
            name = name.replace(mine, its)
        if "attn.qkv" in name:
            return torch.cat([given["swin." + name.replace("attn.qkv", f"attention.{n}_proj")] for n in "qkv"])
        return given[f"swin.{name}"]

    ours.load_state_dict({name: taken(name) for name in ours.state_dict()})
    pixels = torch.randn(2, 3, 44, 52)
    with torch.no_grad():
        maps, expected = ours(pixels), theirs(pixels).feature_maps
    for made, recorded in zip(maps, expected, strict=True):
        assert made.shape == recorded.shape and torch.allclose(made, recorded, atol=1e-4)


# marks and the head behind them


@pytest.fixture
def engine(monkeypatch) -> LocalEngine:
    """The dwarf with a tokenizer that knows the marks, and a model that says `SAID` whatever it is asked."""
    tokenizer = dwarfs.byte_tokenizer(("<s>", "</s>", "<unk>", "<g_s>", "<g_e>", "<seg>"))
    tokens = Tokens(tokenizer, [tokenizer.token_to_id("<s>")], [tokenizer.token_to_id("</s>")])
    script = [*tokens.ids(SAID), tokenizer.token_to_id("</s>")]

    def scripted(limits):
        left = iter(script)
        return lambda logits: (next(left), 0.9)

    monkeypatch.setattr(local, "chooser", scripted)
    return LocalEngine(FAMILY, FAMILY.dwarf, dwarfs.build(FAMILY), tokens)


def asked(engine: LocalEngine, image: Image.Image, text: str = "What is here?", *regions: Region) -> list:
    return list(Desk(engine).answer(Ask((image,), (Turn("user", text, regions),), limits=Limits(new_tokens=90))))


def test_known_boxes_land_on_a_wide_picture(engine, monkeypatch):
    boxes = torch.tensor([[0.1, 0.05, 0.3, 0.25], [0.5, 0.1, 0.9, 0.3], [0.2, 0.0, 0.4, 0.2]])
    masks = torch.zeros(3, 48, 48, dtype=torch.bool)
    masks[1, 5:14, 24:43] = True
    monkeypatch.setattr(type(engine.model), "locate", lambda *_: Located(boxes, torch.tensor([0, 1, 1]), masks))
    *growing, last = asked(engine, Image.new("RGB", (300, 100), (90, 90, 90)))
    assert last.text == "a kite over a hill." and last.done
    assert not any(answer.spans for answer in growing)  # boxes come when the answer has ended
    kite, hill = last.spans
    assert (last.text[kite.start : kite.end], last.text[hill.start : hill.end]) == ("a kite", "a hill")
    # 3 : 1 at the top left of a square: a height of the square is three of the picture.
    expected = [(0.1, 0.15, 0.3, 0.75), (0.5, 0.3, 0.9, 0.9), (0.2, 0.0, 0.4, 0.6)]
    found = [place for span in last.spans for place in span.places if isinstance(place, Box)]
    assert [pytest.approx((box.x0, box.y0, box.x1, box.y1), abs=1e-6) for box in found] == expected
    (mask,) = [place for place in hill.places if isinstance(place, Mask)]
    assert mask.size == (300, 100) and hill.places.index(mask) == 1
    assert mask.box.iou(Box(0.5, 0.3125, 43 / 48, 0.875)) > 0.97


def test_a_mask_goes_out_in_the_pictures_own_frame(engine, monkeypatch, tmp_path):
    """Through the JSON of `ask`, COCO and paint: a wide picture's mask is cut out of the upper third of the square."""
    cells = torch.zeros(1, 48, 48, dtype=torch.bool)
    cells[0, 4:12, 24:36] = True  # in the picture: x from 1/2 to 3/4, y from 1/4 to 3/4
    box = torch.tensor([[0.5, 1 / 12, 0.75, 0.25]])
    monkeypatch.setattr(type(engine.model), "locate", lambda *_: Located(box, torch.tensor([1]), cells))
    image = Image.new("RGB", (300, 100), (90, 90, 90))
    answer = asked(engine, image)[-1]
    (span,) = answer.spans
    assert answer.text[span.start : span.end] == "a hill"
    (listed,) = export.answer_json(answer, image.size)["spans"]
    assert [place["kind"] for place in listed["places"]] == ["box", "mask"]
    assert listed["places"][0]["box"] == pytest.approx([150, 25, 225, 75], abs=0.01)
    assert listed["places"][1]["box"] == pytest.approx([150, 25, 225, 75], abs=4)
    assert listed["places"][1]["mask"]["size"] == [300, 100]
    again = export.from_json(export.answer_json(answer, image.size), image.size)
    assert again.spans[0].places[1] == span.places[1]
    whole = np.asarray(span.places[1].array())
    inside = np.zeros((100, 300), bool)
    inside[25:75, 150:225] = True
    assert (whole & inside).sum() / (whole | inside).sum() > 0.9
    *_, stored = export.coco([("wide.png", image.size, answer)])["annotations"]
    assert stored["bbox"] == pytest.approx([150, 25, 75, 50], abs=4) and stored["area"] == pytest.approx(3750, rel=0.1)
    painted = np.asarray(paint.answer(image, answer)).astype(int)
    changed = np.abs(painted - 90).max(-1) > 8
    assert changed[40:60, 160:215].all() and not changed[:, :140].any() and not changed[:, 240:].any()


def test_the_page_shows_a_mask_in_its_shape():
    cells = np.zeros((40, 60), bool)
    cells[10:30, 20:40] = True
    cells[15:20, 25:30] = False
    answer = Answer("a ring", "a ring", (Span(0, 6, (Mask.from_array(cells),)),), ((None,),))
    ((place,),) = [found["places"] for found in phrases(answer)]
    assert place["kind"] == "mask" and place["box"] == pytest.approx([1 / 3, 1 / 4, 2 / 3, 3 / 4], abs=1e-6)
    with Image.open(BytesIO(b64decode(place["shape"].partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown.getchannel("A")) > 0, cells[10:30, 20:40])


def test_the_head_is_asked_with_the_states_that_wrote_the_marks(engine, picture, monkeypatch):
    given = []
    monkeypatch.setattr(
        type(engine.model), "locate",
        lambda model, states, seen, shown: given.append((states, shown))
        or Located(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
    )  # fmt: skip
    last = asked(engine, picture)[-1]
    assert not last.spans and last.text == "a kite over a hill."  # nothing was found: words alone
    ((states, shown),) = given
    assert shown == 0
    (talk,) = engine._talks
    parts = [*engine._laid_out(talk.prompt, next(iter(engine._sights.values())).content)[1], *talk.answer]
    rows = engine.inputs(parts)
    with torch.no_grad():
        all_states = engine.model.language.model(inputs_embeds=rows).last_hidden_state[0]
    seg = engine.tokens.token("<seg>")
    begins = rows.shape[1] - len(talk.answer)
    before = [begins + number - 1 for number, index in enumerate(talk.answer) if index == seg]
    assert len(before) == 2 and torch.allclose(states, all_states[before], atol=1e-5)


def test_the_heads_own_places_lie_in_the_picture_and_the_threshold_holds(engine, picture):
    engine.model.head.threshold = 1 / 12  # 12 queries: some get more than their share
    last = asked(engine, picture)[-1]
    assert last.spans and all(0 <= place.x0 <= place.x1 <= 1 for span in last.spans
                              for place in span.places if isinstance(place, Box))  # fmt: skip
    engine.model.head.threshold = 1.0
    assert not asked(engine, picture)[-1].spans


def test_a_phrase_gets_the_queries_with_more_than_its_share():
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [-9.0, 0.0], [-9.0, 0.0]])
    assert [queries.tolist() for queries in matched(logits, 0.3)] == [[0, 1], []]


def test_what_was_said_is_told_without_its_marks():
    turns = (Turn("user", "Where?", images=(0,)), Turn("assistant", SAID), Turn("user", "And <seg>?"))
    prompt = FAMILY.template.render(turns, lambda number, region: ())
    assert "ASSISTANT: a kite over a hill.USER: And <seg>? ASSISTANT:" in prompt[-1]


# drawn places


def test_a_place_stands_where_the_word_would(engine, picture):
    ask = Ask((picture,), (Turn("user", "What is the object @1 holding?", (BOX,)),))
    *_, before, slot, after = Desk(engine)._prepare(ask).prompt
    assert before.endswith("\nWhat is the object") and slot == Slot("region", 0)
    assert after == " holding? ASSISTANT:"


@pytest.mark.parametrize("rest", [" holding?", "?"])
def test_the_words_around_a_place_have_the_ids_that_they_have_around_the_sign(engine, picture, rest, tmp_path):
    shutil.copy(Path(__file__).resolve().parent / "tokenizers" / "tokenizer.model", tmp_path)
    tokens = engine.tokens = Tokens.read(tmp_path, {})
    ask = Ask((picture,), (Turn("user", f"What is the object @1{rest}", (BOX,)),))
    ready = Desk(engine)._prepare(ask)
    talk, _ = engine._laid_out(ready.prompt, ready.sight.content)
    begun = talk.ids.index(Slot("image", 0)) + 1
    # The original cuts the talk at the picture and tokenizes the rest at once; the sign is "▁" and "%" here.
    sign = tokens.ids(f"\nWhat is the object %{rest} ASSISTANT:")
    at = sign.index(tokens.token("%"))
    assert talk.ids[begun:] == [*sign[: at - 1], Slot("region", 0), *sign[at + 1 :]]


def seen(engine: LocalEngine, image: Image.Image, *regions: Region) -> Sight:
    return engine.see((FAMILY.frame(FAMILY.dwarf).fit(image)[0],), regions)


def test_a_click_a_box_and_another_box_are_three_things(engine, picture):
    click = Region("point", Box(0.45, 0.45, 0.45, 0.45), (Point(0.45, 0.45),))
    other = replace(BOX, box=Box(0.1, 0.1, 0.3, 0.3))
    vectors = seen(engine, picture, BOX, click, other).content.regions
    assert (
        vectors.shape == (3, 64)
        and (vectors[0] - vectors[1]).abs().max() > 1e-4 < (vectors[0] - vectors[2]).abs().max()
    )
    assert torch.allclose(seen(engine, picture, click).content.regions[0], vectors[1], atol=1e-5)
    # The same small square drawn as a box is no click.
    square = Region("box", Box(0.447, 0.447, 0.453, 0.453))
    assert (seen(engine, picture, square).content.regions[0] - vectors[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["point", "box", "scribble", "polygon", "mask"])
def test_whatever_is_drawn_reaches_the_prompts_in_the_squares_frame(engine, monkeypatch, kind):
    """On a wide picture, through the desk: a click keeps no area, all else is the box around it."""
    image, box = Image.new("RGB", (300, 100), (90, 90, 90)), Box(0.5, 0.3, 0.8, 0.9)
    corners = (Point(0.5, 0.3), Point(0.8, 0.3), Point(0.8, 0.9))
    cells = np.zeros((100, 300), bool)
    cells[30:90, 150:240] = True
    drawn = {
        "point": Region("point", Box(0.5, 0.3, 0.5, 0.3), corners[:1]),
        "box": Region("box", box),
        "scribble": Region("scribble", box, corners, size=image.size),
        "polygon": Region("polygon", box, corners, size=image.size),
        "mask": Region("mask", box, mask=Mask.from_array(cells), size=image.size),
    }[kind]
    given, forward = [], engine.model.regions.forward
    monkeypatch.setattr(engine.model.regions, "forward", lambda *inputs: given.append(inputs[1]) or forward(*inputs))
    answer = asked(engine, image, "What is the object @1 doing?", drawn)[-1]
    assert not any("box around" in str(value) for name, value in answer.notes if name == "hint")
    ((corner,),) = given
    end = (0.5, 0.1) if kind == "point" else (0.8, 0.3)
    near = 1 / 128 if kind == "mask" else 1e-6  # a cell of the dwarf's square
    assert corner.tolist() == pytest.approx([0.5, 0.1, *end], abs=near)


def test_each_place_is_looked_at_on_its_own_picture(engine, picture):
    small = FAMILY.frame(FAMILY.dwarf)
    dark = Image.new("RGB", (80, 60), (20, 20, 20))
    pictures = tuple(small.fit(image)[0] for image in (dark, picture))
    both = engine.see(pictures, (replace(BOX, image=1), BOX)).content.regions
    assert torch.allclose(both[0], seen(engine, picture, BOX).content.regions[0], atol=1e-4)
    assert torch.allclose(both[1], seen(engine, dark, BOX).content.regions[0], atol=1e-4)


def test_nothing_is_looked_at_for_prompts_that_nobody_drew(engine, picture, monkeypatch):
    monkeypatch.setattr(engine.model.regions, "forward", lambda *_: pytest.fail("no region was drawn"))
    assert seen(engine, picture).content.regions is None
