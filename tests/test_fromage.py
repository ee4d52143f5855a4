"""FROMAGe: its published layout, the row of its mark, and an index of pictures that the mark searches."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import dwarfs
import numpy as np
import published
import pytest
import torch
from dwarfs import BYTES
from PIL import Image
from safetensors.torch import load_file, save_file

from mmchat import cli
from mmchat.desk import Ask, Desk, Limits, Turn
from mmchat.engines.local import LocalEngine
from mmchat.families.fromage import CAPTION, FAMILY, MARKS, RET, TABLE, build
from mmchat.geometry import Box, Region
from mmchat.nets import retrieval
from mmchat.prompt import Slot, opened
from mmchat.prompt import Turn as Said

SPECIAL = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
COLOURS = {"red": (200, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}


def layout(root: Path) -> Path:
    """The dwarf as its three parts are published: maps and one row, OPT with more rows and its tokenizer, CLIP."""
    state = dwarfs.build(FAMILY).state_dict()
    folder, opt, clip = root / "fromage", root / "opt-6.7b", root / "clip-vit-large-patch14"
    folder.mkdir(parents=True)
    maps = published.named(state, ((r"^bridge\.|^head\.", "model."),))
    row = state[TABLE][-1:].clone()
    torch.save({"state_dict": maps | {"ret_input_embeddings.weight": row}}, folder / "pretrained_ckpt.pth.tar")
    own = {key: value for key, value in FAMILY.dwarf.items() if not isinstance(value, dict) and key != "model_type"}
    named = {"opt_version": "facebook/opt-6.7b", "visual_encoder": "openai/clip-vit-large-patch14"}
    (folder / "model_args.json").write_text(json.dumps(own | named | {"freeze_lm": True, "text_emb_layers": [-1]}))
    language = published.named(state, ((r"^language\.model\.", ""),))
    table = torch.cat((state[TABLE][:-1], torch.full((6, 64), 9.0)))  # the row of the mark is nobody's yet
    language |= {"decoder.embed_tokens.weight": table, "decoder.version": torch.ones(1)}
    published.write(opt, language, FAMILY.dwarf["llm_config"], "bin")
    (opt / "tokenizer.json").unlink()
    vocabulary = {mark: number for number, mark in enumerate([*BYTES, "<s>", "</s>", "<pad>"])}
    (opt / "vocab.json").write_text(json.dumps(vocabulary))
    (opt / "merges.txt").write_text("#version: 0.2\n")
    (opt / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"tokenizer_class": "GPT2Tokenizer"}))
    clip.mkdir()
    tower = published.named(state, ((r"^vision\.", "vision_model."),))
    tower |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(4)}
    tower |= {"visual_projection.weight": torch.ones(2, 32), "vision_model.embeddings.position_ids": torch.arange(17)}
    save_file(tower, clip / "model.safetensors")
    (clip / "config.json").write_text(json.dumps({"vision_config": FAMILY.dwarf["vision_config"]}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> LocalEngine:
    return LocalEngine.open(folder, FAMILY, "fp32", "cpu")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Pictures of one colour each, one in a folder below, one hidden, one that is none."""
    (tmp_path / "below").mkdir()
    for name, colour in COLOURS.items():
        noise = np.random.default_rng(len(name)).integers(0, 15, (30, 50, 3), dtype=np.uint8)
        where = tmp_path / "below" if name == "blue" else tmp_path
        Image.fromarray((np.uint8(colour) + noise).astype(np.uint8)).save(where / f"{name}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


def searched(engine: LocalEngine, picture: Image.Image, text: str = "a red cup") -> list:
    return list(Desk(engine).answer(Ask((picture,), (Turn("user", text),), "pictures", Limits(new_tokens=4))))


def test_the_three_parts_are_the_model(engine):
    for name, tensor in dwarfs.build(FAMILY).state_dict().items():
        assert torch.equal(engine.model.state_dict()[name], tensor), name
    assert engine.model.language.lm_head.weight is engine.model.language.model.decoder.embed_tokens.weight
    assert engine.tokens.token(RET) == engine.model.mark_id == 260 and engine.tokens.start == (257,)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_it_answers(folder, picture, precision):
    desk = Desk(LocalEngine.open(folder, FAMILY, precision, "cpu"))
    said = list(desk.answer(Ask((picture,), (Turn("user", "What is here?"),), limits=Limits(new_tokens=8))))[-1]
    assert said.done
    desk.close()


def test_without_its_language_model_it_says_what_to_put_where(tmp_path):
    folder = layout(tmp_path)
    (tmp_path / "opt-6.7b").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"put the folder that its opt_version names \(opt-6.7b\)"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


def test_fetch_knows_the_other_parts_from_model_args(folder):
    from mmchat import fetch

    found = fetch._named_parts(folder, FAMILY.parts)
    assert found == [
        ("facebook/opt-6.7b", folder.parent / "opt-6.7b"),
        ("openai/clip-vit-large-patch14", folder.parent / "clip-vit-large-patch14"),
    ]
    files = [
        "pretrained_ckpt.pth.tar",
        "model_args.json",
        "README.md",
        "cc3m_embeddings.pkl",
        "a/pretrained_ckpt.pth.tar",
    ]
    assert fetch.chosen(files) == {"pretrained_ckpt.pth.tar", "model_args.json"}


def test_without_its_tower_it_says_what_to_put_where(tmp_path):
    folder = layout(tmp_path)
    (tmp_path / "clip-vit-large-patch14").rename(tmp_path / "elsewhere")
    (tmp_path / "fromage" / "model_args.json").write_text(
        json.dumps(
            json.loads((folder / "model_args.json").read_text()) | {"vision_config": FAMILY.dwarf["vision_config"]}
        )
    )
    with pytest.raises(ValueError, match="no vision tower"):
        LocalEngine.open(folder, FAMILY, "fp32", "cpu")


def test_an_opt_whose_words_are_narrower_than_its_layers_searches_too():
    """As OPT-350m's: the last states go through a layer of their own before they search."""
    narrow = {**FAMILY.dwarf, "llm_config": {**FAMILY.dwarf["llm_config"], "word_embed_proj_dim": 48}}
    model = build(narrow)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    states = model.states(torch.randn(1, 3, 48))
    assert states.shape == (1, 3, 48) and model.likeness(states[0], torch.randn(5, 12)).shape == (3, 5)


def test_a_search_with_other_layers_than_the_last_is_refused():
    with pytest.raises(ValueError, match=r"text_emb_layers is \[-1, 1\].*only the last layer"):
        build({**FAMILY.dwarf, "text_emb_layers": [-1, 1]})
    build({**FAMILY.dwarf, "text_emb_layers": [2]})  # the last one by its number


def test_a_talk_is_written_as_in_the_demo():
    turns = (Said("user", "what breed is it?", images=(0,)), Said("assistant", "a pug"), Said("user", "how old?"))
    prompt = FAMILY.template.render(turns, FAMILY.mention)
    assert prompt == (Slot("image", 0), "Q: what breed is it?\nA: a pug\nQ: how old?\nA:")
    shown = (Said("user", "", images=(0, 1)),)
    prompt, lead = opened(FAMILY.template.render(shown, FAMILY.mention, "describe"))
    assert prompt == (Slot("image", 0), Slot("image", 1), CAPTION) and lead == CAPTION
    asked = (Said("user", "a red bicycle"),)
    assert FAMILY.template.render(asked, FAMILY.mention, "pictures") == ("a red bicycle [RET]",)


def test_what_was_completed_or_found_stays_unframed_in_the_talk():
    """As it was asked: else what had been read of the talk would be read once more."""

    def told(text, task, answer):
        turns = (Turn("user", text, task=task), Turn("assistant", answer), Turn("user", "Why?"))
        return FAMILY.template.render(turns, lambda number, region: (), "free")

    assert told("", "describe", "A picture of a cat.") == ("A picture of a cat.\nQ: Why?\nA:",)
    assert told("a cat", "pictures", "") == ("a cat [RET]\nQ: Why?\nA:",)


def test_the_start_stands_behind_the_pictures_that_come_first(engine, picture):
    pixels = engine.family.frame(engine.config).fit(picture)[0]
    seen = engine.see((pixels,), ()).content
    talk, parts = engine._laid_out((Slot("image", 0), "a", Slot("image", 0), "b"), seen)
    slot = Slot("image", 0)
    assert talk.ids == [slot, 257, *engine.tokens.ids("a"), slot, *engine.tokens.ids("b")]
    assert parts[0].vectors.shape == (2, 64)


def test_nobody_can_end_the_prompt_or_point_at_a_place(engine, picture):
    with pytest.raises(ValueError, match="FROMAGe takes no regions"):
        turn = Turn("user", "What is @1?", (Region("box", Box(0.1, 0.1, 0.5, 0.5)),))
        list(Desk(engine).answer(Ask((picture,), (turn,))))


def test_a_mark_without_an_index_says_how_to_make_one(engine, picture):
    (said,) = searched(engine, picture)
    assert said.done and not said.pictures and "python -m mmchat index FOLDER" in dict(said.notes)["hint"]


def test_an_index_is_built_searched_and_kept(tmp_path, gallery, picture):
    folder = layout(tmp_path / "model")
    engine, told = LocalEngine.open(folder, FAMILY, "fp32", "cpu"), []
    made = engine.searching.build(gallery, lambda *numbers: told.append(numbers))
    assert [Path(path).stem for path in made.paths] == ["blue", "green", "red", "white"] and told[-1] == (5, 5, 1)
    (said,) = searched(engine, picture)
    states = engine.model.states(engine.inputs(_parts(engine, picture)))[0, -1:]
    wanted = engine.model.likeness(states, made.rows)[0].argsort(descending=True)[:3].tolist()
    assert [one.path for one in said.pictures] == [made.paths[index] for index in wanted]
    assert said.pictures[0].score >= said.pictures[1].score and dict(said.notes)["new_tokens"] == 0
    again = LocalEngine.open(folder, FAMILY, "fp32", "cpu")
    assert [one.path for one in searched(again, picture)[0].pictures] == [one.path for one in said.pictures]


def _parts(engine: LocalEngine, picture: Image.Image) -> list:
    pixels = engine.family.frame(engine.config).fit(picture)[0]
    return engine._laid_out((Slot("image", 0), f"a red cup {RET}"), engine.see((pixels,), ()).content)[1]


def test_a_row_is_what_the_maps_make_of_the_squashed_picture(engine, gallery):
    engine.searching.build(gallery, lambda *_: None)
    library = engine.searching.library()
    with Image.open(gallery / "red.png") as image:
        pixels = FAMILY.frame(FAMILY.dwarf).fit(image.convert("RGB"))[0]
    tower = engine.model.vision
    with torch.no_grad():
        whole = tower.post_layernorm(tower.hidden_states(torch.from_numpy(pixels)[None])[-1][:, 0])
        row = engine.model.head.visual_fc(whole)[0]
    assert torch.allclose(library.rows[library.paths.index(str(gallery / "red.png"))], row, atol=1e-5)
    engine.searching.file.unlink()


def test_a_mark_in_an_answer_searches_too(engine, gallery, picture, monkeypatch):
    engine.searching.build(gallery, lambda *_: None)
    script = iter([*engine.tokens.ids("so:"), engine.model.mark_id, *engine.tokens.ids(" and"), 257])
    monkeypatch.setattr("mmchat.engines.local.chooser", lambda limits: lambda logits: (next(script), 1.0))
    turn = Turn("user", "show me one")
    said = list(Desk(engine).answer(Ask((picture,), (turn,), limits=Limits(new_tokens=20))))
    assert said[-1].raw == f"so:{RET} and" and said[-1].text.replace("  ", " ") == "so: and"
    assert len(said[-1].pictures) == 3 and {one.at for one in said[-1].pictures} == {3}
    assert not any(one.pictures for one in said[:-1])
    engine.searching.file.unlink()


def test_a_user_says_how_many_pictures_and_how_readily(engine, gallery, picture, monkeypatch):
    """The demo's two settings: pictures for a mark, and what the mark's own score is multiplied by."""
    engine.searching.build(gallery, lambda *_: None)
    asked = Ask((picture,), (Turn("user", "a red cup"),), "pictures")
    for most in (0, 1, 2):
        *_, said = Desk(engine).answer(replace(asked, limits=Limits(pictures=most)))
        assert len(said.pictures) == most and not any(name == "hint" for name, _ in said.notes)
    seen = []

    def chooser(limits):
        return lambda logits: (seen.append(logits[engine.model.mark_id].item()) or 257, 1.0)

    monkeypatch.setattr("mmchat.engines.local.chooser", chooser)
    for readiness in (1.0, 2.5, 0.0):
        limits = Limits(readiness=readiness, cache=False)
        list(Desk(engine).answer(replace(asked, turns=(Turn("user", "What is it?"),), task=None, limits=limits)))
    assert seen[0] != 0 and seen == pytest.approx([seen[0], 2.5 * seen[0], 0.0])
    for wrong in (Limits(pictures=-1), Limits(pictures=10), Limits(readiness=-0.1), Limits(readiness=3.1)):
        with pytest.raises(ValueError, match="0 to 9 pictures for a mark, a readiness to show them of 0 to 3"):
            list(Desk(engine).answer(replace(asked, limits=wrong)))
    engine.searching.file.unlink()


def test_the_page_says_which_pictures_can_be_found(engine, gallery):
    from mmchat.ui import panels

    assert "run `python -m mmchat index FOLDER" in panels.indexed_html(Desk(engine))
    engine.searching.build(gallery, lambda *_: None)
    assert "the best of 4 pictures of yours" in panels.indexed_html(Desk(engine))
    engine.searching.file.write_bytes(b"broken")
    assert "build it anew" in panels.indexed_html(Desk(engine))
    engine.searching.file.unlink()


def test_the_page_shows_the_pictures_found_in_the_talk(engine, gallery, picture):
    from mmchat.ui import steps, words
    from mmchat.ui.canvas import surface_of

    strange = gallery / '"><b>x.png'
    (gallery / "white.png").rename(strange)
    engine.searching.build(gallery, lambda *_: None)
    picture.save(gallery / "asked.png")
    surface, desk = surface_of(str(gallery / "asked.png"), str(gallery / ".cache")), Desk(engine)
    talk = steps.begin(desk, surface, (), "a red cup", "pictures")
    *_, talk = steps.speak(desk, surface, talk)
    shown = words.talk_html(talk)
    assert shown.count('<img src="data:image/jpeg;base64,') == 3 and "3 pictures of yours" in shown
    assert "said nothing" not in shown and "<b>x" not in shown and str(gallery) not in shown
    for one in talk[-1].answer.pictures:
        Path(one.path).unlink()
    assert words.talk_html(talk).count("cannot be opened any more") == 3
    engine.searching.file.unlink()


def test_what_has_not_changed_is_not_looked_at_again(engine, gallery):
    engine.searching.build(gallery, lambda *_: None)
    seen = []
    embed = lambda images: seen.append(len(images)) or torch.zeros(len(images), 12)  # noqa: E731
    Image.new("RGB", (20, 20), "yellow").save(gallery / "yellow.png")
    (gallery / "green.png").unlink()
    made = retrieval.build(gallery, engine.searching.file, embed, engine.searching.maker)
    assert seen == [1] and [Path(path).stem for path in made.paths] == ["blue", "red", "white", "yellow"]
    engine.searching.file.unlink()


def test_pictures_that_are_gone_are_passed_over_and_none_comes_twice():
    library = retrieval.Library(("a", "b", "c", "d"), torch.eye(4))
    shelf = retrieval.Shelf(library, lambda path: path != "b")
    likeness = torch.tensor([0.2, 0.9, 0.5, 0.1])
    assert shelf.best(likeness, 1) == [2] and shelf.opened == ["b", "c"]
    assert shelf.best(likeness, 5) == [0, 3] and shelf.best(likeness, 5) == []


@pytest.mark.parametrize("harm", ["cut", "other weights", "rows", "text"])
def test_an_index_that_is_not_this_models_is_refused(tmp_path, harm):
    path = tmp_path / "index.safetensors"
    retrieval.write(retrieval.Library(("a", "b"), torch.ones(2, 3), ("1", "2"), "me"), path)
    assert retrieval.read(path, "me").paths == ("a", "b")
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif harm == "rows":
        about = {"pictures": json.dumps({"paths": ["a"], "stamps": ["1"], "maker": "me"})}
        save_file({"rows": load_file(path)["rows"]}, path, about)
    elif harm == "text":
        save_file({"rows": torch.ones(2, 3)}, path)
    with pytest.raises(ValueError, match="damaged|other weights|no index of pictures"):
        retrieval.read(path, "me" if harm != "other weights" else "you")


def test_an_index_says_the_same_maker_in_every_precision():
    tensors = [torch.randn(4, 3), torch.randn(4)]
    halves = [tensor.to(torch.bfloat16) for tensor in tensors]
    assert retrieval.maker_of(tensors) == retrieval.maker_of(halves) != retrieval.maker_of(tensors[:1])


@pytest.mark.parametrize(("names", "sentence"), [
    ([], "There are no pictures"), (["a.png", "b.jpg"], "None of the 2 pictures"), (None, "There is no folder"),
])  # fmt: skip
def test_a_folder_without_pictures_is_refused(tmp_path, names, sentence):
    for name in names or ():
        (tmp_path / name).write_text("no picture")
    with pytest.raises(ValueError, match=sentence):
        where = tmp_path if names is not None else tmp_path / "nowhere"
        retrieval.build(where, tmp_path / "out" / "x", lambda images: torch.zeros(len(images), 2), "me")


def test_the_commands_index_and_ask(tmp_path, gallery, picture, monkeypatch, capsys):
    folder = layout(tmp_path / "model")
    listed = tmp_path / "models.toml"
    listed.write_text(f'[[model]]\nname = "mine"\nfamily = "fromage"\nfolder = "{folder}"\nprecision = "fp32"\n')
    monkeypatch.setitem(os.environ, "MMCHAT_MODELS", str(listed))
    picture.save(tmp_path / "asked.png")
    assert cli.main(["models"]) == 0 and "ready" in capsys.readouterr().out
    assert cli.main(["index", str(gallery), "--model", "mine"]) == 0
    said = capsys.readouterr()
    index = folder / retrieval.FILE
    assert said.out.startswith(f"5 pictures in {index}")  # the one asked about lies there too
    assert "1 cannot be read" in said.err
    asked = ["ask", str(tmp_path / "asked.png"), "a red cup", "--task", "pictures", "--model", "mine", "--json"]
    assert cli.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pictures"]) == 3 and all(Path(one["path"]).is_file() for one in found["pictures"])


def test_a_model_that_finds_no_pictures_is_not_indexed_for(gallery, capsys):
    assert cli.main(["index", str(gallery), "--model", "pocket"]) == 2
    assert "does not answer with pictures" in capsys.readouterr().err


def test_its_marks_are_behind_the_words_of_the_language_model(engine):
    assert [engine.tokens.token(mark) for mark in MARKS] == [259, 260]
