"""Detectors against the library's own: networks, image processors, tokenizers and post-processing, on random dwarfs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_fetch import Hub, hub  # noqa: F401 -- a hub on loopback
from transformers import BertTokenizer, CLIPTokenizer

from mmchat import detectors
from mmchat.detectors import Detector, owlv2, pictures, words
from mmchat.detectors.grounding_dino import Sampling, fitted
from mmchat.detectors.sam import Prompt, Segmenter
from mmchat.geometry import Box, Mask, Point

SHAPES = [(90, 70), (60, 180), (180, 60), (64, 64), (31, 200)]
PHRASES = ["a cat", "Red cars", "dog?"]
MARKS = (101, 102, 1012)  # [CLS], [SEP] and the full stop
THICK, THIN = {"shortest_edge": 64, "longest_edge": 107}, {"height": 64, "width": 64}


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height): no part is like another."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random parameters throughout: the library starts many of them at zero, where mistakes would not show."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 / max(1, parameter.shape[-1]) ** 0.5 if parameter.ndim > 1 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=random) * spread)
    return model.eval()


def bert_words() -> dict[str, int]:
    """A vocabulary with BERT's own numbers for the marks, "." and "?", which the network knows by heart."""
    table = {f"[unused{number}]": number for number in range(1100)}
    known = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    named = ["a", "cat", "red", "car", "##s", "dog", "remote", "e", "[", "]", "sep", "s", "##ep"]
    known |= {name: 200 + number for number, name in enumerate(named)}
    taken = set(known.values())
    return {name: number for name, number in table.items() if number not in taken} | known


def clip_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, each at a word's end, some pairs, the marks behind them, as CLIP's vocabulary is ordered."""
    from tokenizers.pre_tokenizers import ByteLevel

    signs = sorted(ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    names = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(pair) for pair in merges)]
    names.remove("!")
    names = ["!", *names, "<|startoftext|>", "<|endoftext|>"]  # "!" is 0, with which texts are filled up
    return {name: number for number, name in enumerate(names)}, merges


def dino(kind: str = "GroundingDino") -> torch.nn.Module:
    import transformers

    backbone = {
        "model_type": "swin", "image_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2],
        "window_size": 4, "out_indices": [2, 3, 4],
    }  # fmt: skip
    text = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "vocab_size": 1100}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, text_config=text, num_queries=20, encoder_layers=2, encoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_layers=2, decoder_ffn_dim=48, decoder_attention_heads=4, d_model=64,
        max_text_len=24,
    )  # fmt: skip
    model = shaken(getattr(transformers, f"{kind}ForObjectDetection")(config))
    with torch.no_grad():  # MM's alone: it starts where nothing is found
        for name, parameter in model.named_parameters():
            if "class_embed" in name:
                parameter.zero_()
    return model


def owl() -> torch.nn.Module:
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    vocabulary, _ = clip_words()
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = {**size, **marks, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    config = Owlv2Config(text_config=text, vision_config={**size, "image_size": 64, "patch_size": 8}, projection_dim=32)
    model = shaken(Owlv2ForObjectDetection(config))
    with torch.no_grad():  # boxes near their patches, scores that are neither 0 nor 1
        for layer in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
            layer.weight.mul_(0.05)
    return model


def sam() -> torch.nn.Module:
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_dim": 48,
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8}
    masks = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "iou_head_hidden_dim": 16}  # fmt: skip
    return shaken(SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)))


def sam_two() -> torch.nn.Module:
    from transformers import Sam2Config, Sam2Model

    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
        "blocks_per_stage": [1, 2, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "window_size_per_stage": [4, 2, 4, 2],
        "num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    masks = {"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "iou_head_hidden_dim": 16}  # fmt: skip
    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
    return shaken(Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)))


def write_bert(folder: Path) -> None:
    names = sorted(bert_words().items(), key=lambda pair: pair[1])
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name, _ in names))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def write_clip(folder: Path) -> None:
    vocabulary, merges = clip_words()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges))


MADE: dict[str, tuple[Callable[[], torch.nn.Module], Any, dict[str, Any]]] = {
    "dino": (dino, write_bert, {"size": THICK}),
    "mm_dino": (lambda: dino("MMGroundingDino"), write_bert, {"size": THICK}),
    "owl": (owl, write_clip, {"size": THIN}),
    "sam": (sam, None, {"size": {"longest_edge": 64}}),
    "sam_two": (sam_two, None, {"size": THIN}),
}


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[torch.nn.Module, Path]]:
    """The library's dwarf of a kind and the folder where the library saved it, written once."""
    known: dict[str, tuple[torch.nn.Module, Path]] = {}

    def make(name: str) -> tuple[torch.nn.Module, Path]:
        if name not in known:
            build, write, settings = MADE[name]
            folder = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = build()
            model.save_pretrained(folder)
            if write is not None:
                write(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(settings))
            known[name] = model, folder
        return known[name]

    return make


@pytest.fixture
def copied(stored: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a folder that a test may change."""
    import shutil

    return lambda name: Path(shutil.copytree(stored(name)[1], tmp_path / name))


# Grounding DINO


def theirs(model: torch.nn.Module, image: Image.Image, phrases: list[str], threshold: float) -> dict[str, Any]:
    """Grounding DINO's answer as the library gives it, from its own processor and post-processing."""
    from transformers import GroundingDinoProcessor
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
    from transformers.models.grounding_dino.processing_grounding_dino import get_phrases_from_posmap

    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=THICK), BertTokenizer(vocab=bert_words()))
    inputs = processor(images=image, text=phrases, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs)
    found = processor.post_process_grounded_object_detection(
        out, inputs.input_ids, threshold, 0.5, target_sizes=[image.size[::-1]]
    )[0]
    chances = out.logits[0].sigmoid()
    chances = chances[chances.max(-1).values > threshold]
    ids = inputs.input_ids[0].tolist()
    told = get_phrases_from_posmap(chances > 0.5, ids)
    bare = [[one for one in row if one not in MARKS] for row in told]
    plain = [row == less for row, less in zip(told, bare, strict=True)]
    return {**found, "chances": chances, "ids": ids, "bare": processor.batch_decode(bare), "plain": plain}


@pytest.mark.parametrize(("name", "size"), [*(("dino", size) for size in SHAPES), ("mm_dino", SHAPES[2])])
def test_grounding_dino_finds_what_the_library_finds(stored: Any, name: str, size: tuple[int, int]) -> None:
    model, folder = stored(name)
    image, threshold = noise(size), 0.3
    want = theirs(model, image, PHRASES, threshold)
    look = detectors.opened(folder, device="cpu").look
    with torch.inference_mode():
        have = look(image, PHRASES, threshold, of_words=0.5)
    assert len(have.boxes) == len(want["boxes"]) > 0
    pixels = have.boxes * torch.tensor([*image.size, *image.size])
    assert torch.allclose(pixels / max(size), want["boxes"] / max(size), atol=1e-5)
    assert torch.allclose(have.scores, want["scores"], atol=1e-5)
    # The library counts the marks between phrases among the words of a box; here they are left out.
    assert list(have.words) == want["bare"] and len(set(have.words)) > 1 and any(want["plain"])
    for mine, label, plain in zip(have.words, want["text_labels"], want["plain"], strict=True):
        assert mine == label or not plain
    # The phrase is the one whose word has the highest chance: [CLS] a cat . red car ##s . dog ? . [SEP]
    owners = [None, 0, 0, None, 1, 1, 1, None, 2, 2, None, None]
    assert len(want["ids"]) == len(owners)
    for row, number in zip(want["chances"], have.numbers.tolist(), strict=True):
        best = max((place for place, owner in enumerate(owners) if owner is not None), key=lambda place: row[place])
        assert owners[best] == number


@pytest.mark.parametrize("size", [*SHAPES, (2000, 800), (64, 90), (400, 1333), (1333, 1000)])
def test_grounding_dino_prepares_pictures_as_the_library(stored: Any, size: tuple[int, int]) -> None:
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    look = detectors.opened(stored("dino")[1], device="cpu").look
    want = GroundingDinoImageProcessorPil(size=THICK)(noise(size), return_tensors="pt").pixel_values
    assert torch.allclose(look.pixels(noise(size)), want, atol=1e-6)


def test_the_published_sizes_of_grounding_dino() -> None:
    assert fitted((640, 480), 800, 1333) == (1066, 800)
    assert fitted((4000, 1000), 800, 1333) == (1333, 333)
    assert fitted((100, 1000), 800, 1333) == (133, 1333)


def test_the_deformable_attention_runs_on_our_operator(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = stored("dino")
    detector = detectors.opened(folder, device="cpu")
    places = [module for module in detector.look.model.modules() if isinstance(module, Sampling)]
    assert len(places) == 4  # two layers of each of encoder and decoder
    called: list[int] = []
    from mmchat.detectors import grounding_dino

    inner = grounding_dino.ms_deform_attn
    monkeypatch.setattr(grounding_dino, "ms_deform_attn", lambda *given: called.append(1) or inner(*given))
    detector(noise((80, 60)), ["a cat"], 0.3)
    assert len(called) == 4


def test_marks_in_a_phrase_are_letters(stored: Any) -> None:
    look = detectors.opened(stored("dino")[1], device="cpu").look
    ids, owners = look.text(["[SEP] cat"])
    assert ids.count(look.end) == 1 and len(ids) == len(owners) and owners[1:-2] == [0] * (len(ids) - 3)


def test_too_many_words_are_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="reads at most 24: ask for fewer"):
        detectors.opened(stored("dino")[1], device="cpu")(noise((80, 60)), ["a cat"] * 9)


def test_a_thread_of_a_picture_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="too thin"):
        detectors.opened(stored("dino")[1], device="cpu")(noise((20, 900)), ["a cat"])


# OWLv2


@pytest.mark.parametrize("size", SHAPES)
def test_owlv2_finds_what_the_library_finds(stored: Any, size: tuple[int, int]) -> None:
    from transformers import Owlv2Processor
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    model, folder = stored("owl")
    vocabulary, merges = clip_words()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, pad_token="!")
    processor = Owlv2Processor(Owlv2ImageProcessorPil(size=THIN), tokenizer)
    image = noise(size)
    inputs = processor(text=[PHRASES], images=image, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs)
    want = processor.post_process_grounded_object_detection(
        out, threshold=0.5, target_sizes=[image.size[::-1]], text_labels=[PHRASES]
    )[0]
    look = detectors.opened(folder, device="cpu").look
    with torch.inference_mode():
        have = look(image, PHRASES, 0.5)
    assert 0 < len(have.boxes) == len(want["boxes"]) < 64
    pixels = have.boxes * torch.tensor([*image.size, *image.size])
    assert torch.allclose(pixels / max(size), want["boxes"] / max(size), atol=1e-5)
    assert torch.allclose(have.scores, want["scores"], atol=1e-5)
    assert [PHRASES[number] for number in have.numbers.tolist()] == want["text_labels"]


@pytest.mark.parametrize("size", [*SHAPES, (10, 7), (1, 30), (333, 500)])
@pytest.mark.parametrize("side", [64, 48])
def test_owlv2_prepares_pictures_as_the_library(size: tuple[int, int], side: int) -> None:
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    processor = Owlv2ImageProcessorPil(size={"height": side, "width": side})
    want = processor(noise(size), return_tensors="pt").pixel_values
    have = pictures.normal(owlv2.sampled(np.asarray(noise(size)), side), pictures.CLIP)
    assert torch.allclose(have, want, atol=2e-5)


def test_boxes_in_the_padding_are_not_found(stored: Any) -> None:
    found = detectors.opened(stored("owl")[1], device="cpu")(noise((180, 60)), PHRASES, 0.0, overlap=1.0)
    assert 0 < len(found) < 64  # the library gives one for each of the 64 patches
    for one in found:
        assert 0 <= one.box.x0 < one.box.x1 <= 1 and 0 <= one.box.y0 < one.box.y1 <= 1


def test_a_long_phrase_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="Phrase 2 is .* at most 16: say it shorter"):
        detectors.opened(stored("owl")[1], device="cpu")(noise((80, 60)), ["cat", "a cat upon a very green mat"])


# Words


@pytest.mark.parametrize("text", ["a cat", "Red cars", "  ReD\tCARS ", "dog?", "café", "it's 42 cats!", "犬 dog"])
def test_words_become_the_ids_of_the_library(stored: Any, text: str, tmp_path: Path) -> None:
    plain = " ".join(text.split())
    bert = BertTokenizer(vocab=bert_words())
    assert (
        words.ids(words.word_pieces(stored("dino")[1], 1100), plain) == bert(plain, add_special_tokens=False).input_ids
    )
    vocabulary, merges = clip_words()
    clip = CLIPTokenizer(vocab=vocabulary, merges=merges)
    want = clip(plain, add_special_tokens=False).input_ids
    assert words.ids(words.byte_pairs(stored("owl")[1], 2000), plain) == want
    # The same from a tokenizer.json alone.
    for made, read, wanted in ((bert, words.word_pieces, bert), (clip, words.byte_pairs, clip)):
        made.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert words.ids(read(tmp_path, 2000), plain) == wanted(plain, add_special_tokens=False).input_ids


def test_marks_of_a_tokenizer_json_are_letters_as_well(tmp_path: Path) -> None:
    bert = BertTokenizer(vocab=bert_words())
    bert.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert bert("[SEP] dog", add_special_tokens=False).input_ids[0] == 102
    letters = words.ids(words.word_pieces(tmp_path, 1100), "[SEP] dog")
    assert 102 not in letters and letters[-1] == bert_words()["dog"] and len(letters) > 2


def test_a_tokenizer_of_another_kind_or_size_is_refused(stored: Any, tmp_path: Path) -> None:
    BertTokenizer(vocab=bert_words()).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="another kind than BPE"):
        words.byte_pairs(tmp_path, 2000)
    with pytest.raises(ValueError, match="up to number 1099, the model knows 1000"):
        words.word_pieces(tmp_path, 1000)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        words.word_pieces(tmp_path, 2000)


# SAM

PROMPTS = [
    Prompt((Point(0.3, 0.6),), (1,)),
    Prompt((Point(0.3, 0.6), Point(0.9, 0.1)), (1, 0)),
    Prompt(box=Box(0.1, 0.2, 0.7, 0.9)),
    Prompt((Point(0.5, 0.5),), (0,), Box(0.1, 0.2, 0.7, 0.9)),
]


def in_pixels(prompt: Prompt, size: tuple[int, int]) -> dict[str, Any]:
    """A prompt as the library's processor takes it."""
    given: dict[str, Any] = {}
    if prompt.points:
        given["input_points"] = [[[[point.x * size[0], point.y * size[1]] for point in prompt.points]]]
        given["input_labels"] = [[list(prompt.labels)]]
    if prompt.box is not None:
        given["input_boxes"] = [[list(prompt.box.pixels(size))]]
    return given


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_sam_cuts_out_what_the_library_cuts_out(stored: Any, size: tuple[int, int], number: int) -> None:
    from transformers import SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    model, folder = stored("sam")
    image, prompt = noise(size), PROMPTS[number]
    processor = SamProcessor(SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}))
    inputs = processor(images=image, **in_pixels(prompt, size), return_tensors="pt")
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        out = model(**inputs, multimask_output=number == 0)
    scores = out.iou_scores[0, 0]
    assert len(scores) == (3 if number == 0 else 1)
    best = int(scores.argmax())
    want = processor.image_processor.post_process_masks(out.pred_masks, *sizes)[0][0, best].numpy()
    cutout = detectors.opened(folder, device="cpu")(image, [prompt])[0]
    assert cutout.score == pytest.approx(float(scores[best]), abs=1e-5)
    assert torch.allclose(cutout.logits[0], out.pred_masks[0, 0, best], atol=1e-4)
    assert cutout.mask.size == size and (cutout.mask.array() != want).mean() < 1e-3 and 0 < want.mean() < 1


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_sam_two_cuts_out_what_the_library_cuts_out(stored: Any, number: int) -> None:
    """From the same pixels: the library's own way to make them needs torchvision."""
    model, folder = stored("sam_two")
    image, prompt = noise((180, 60)), PROMPTS[number]
    segmenter = detectors.opened(folder, device="cpu")
    pixels = pictures.normal(pictures.resized(image, 64, 64), pictures.IMAGENET)
    given = {name: torch.tensor(value) for name, value in in_pixels(prompt, (64, 64)).items()}
    with torch.inference_mode():
        out = model(pixel_values=pixels, multimask_output=number == 0, **given)
    best = int(out.iou_scores[0, 0].argmax())
    logits = out.pred_masks[0, 0, best]
    cutout = segmenter(image, [prompt])[0]
    assert cutout.score == pytest.approx(float(out.iou_scores[0, 0, best]), abs=1e-5)
    assert torch.allclose(cutout.logits[0], logits, atol=1e-4)
    large = torch.nn.functional.interpolate(logits[None, None], (60, 180), mode="bilinear", align_corners=False)
    assert (cutout.mask.array() != (large[0, 0] > 0).numpy()).mean() < 1e-3


def test_sam_two_is_read_from_a_checkpoint_for_videos(copied: Callable[[str], Path]) -> None:
    folder = copied("sam_two")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video", "num_maskmem": 7}))
    state = load_file(folder / "model.safetensors")
    more = {
        "memory_attention.layers.0.linear1.weight": torch.zeros(2),
        "object_pointer_proj.proj_in.bias": torch.ones(1),
    }
    save_file({**state, **more}, folder / "model.safetensors")
    assert isinstance(detectors.opened(folder, device="cpu"), Segmenter)


def test_an_earlier_mask_is_taken_and_a_picture_is_seen_once(stored: Any) -> None:
    model, folder = stored("sam")
    segmenter = detectors.opened(folder, device="cpu")
    seen: list[int] = []
    inner = segmenter.model.get_image_embeddings
    segmenter.model.get_image_embeddings = lambda pixels: seen.append(1) or inner(pixels)
    first = segmenter(noise((90, 70)), PROMPTS[:2])[0]
    again = segmenter(noise((90, 70)), [Prompt((Point(0.3, 0.6),), (1,), logits=first.logits)])[0]
    assert len(seen) == 1 and first.logits.shape == again.logits.shape
    with torch.inference_mode():
        out = model(
            image_embeddings=segmenter.see(noise((90, 70))), input_points=torch.tensor([[[[0.3 * 64, 0.6 * 50]]]]),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int), input_masks=first.logits[None], multimask_output=False,
        )  # fmt: skip
    assert torch.allclose(again.logits[0], out.pred_masks[0, 0, 0], atol=1e-4)
    segmenter(noise((90, 70), 1), PROMPTS[:1])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (Prompt(), "shows nothing"),
        (Prompt((Point(0.5, 0.5),)), "a label for each point"),
        (Prompt((Point(0.5, 0.5),), (2,)), "a label for each point"),
        (Prompt((Point(1.5, 0.5),), (1,)), "outside the picture"),
        (Prompt(box=Box(0.5, 0.5, 0.5, 0.9)), "no area"),
        (Prompt(box=Box(0.5, 0.5, 1.5, 0.9)), "outside the picture"),
    ],
)
def test_prompts_that_show_nothing_are_refused(stored: Any, prompt: Prompt, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        detectors.opened(stored("sam")[1], device="cpu")(noise((90, 70)), [prompt])


# What all have in common


def test_a_picture_is_turned_upright_first(stored: Any, tmp_path: Path) -> None:
    detector = detectors.opened(stored("owl")[1], device="cpu")
    upright = noise((90, 60))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right
    lying.save(tmp_path / "lying.png", exif=exif)
    assert detector(tmp_path / "lying.png", PHRASES, 0.3) == detector(upright, PHRASES, 0.3) != ()


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_nothing_above_the_threshold_is_an_empty_result(stored: Any, name: str) -> None:
    assert detectors.opened(stored(name)[1], device="cpu")(noise((90, 70)), PHRASES, 1.0) == ()


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_a_thing_is_found_once_by_a_phrase_and_the_surest_first(stored: Any, name: str) -> None:
    detector = detectors.opened(stored(name)[1], device="cpu")
    every, thinned = (detector(noise((90, 70)), PHRASES, 0.0, overlap) for overlap in (1.0, 0.0))
    assert set(thinned) < set(every)
    assert [one.score for one in thinned] == sorted((one.score for one in thinned), reverse=True)
    for one in thinned:
        assert one.phrase == PHRASES[one.number]
        assert all(one.box.iou(other.box) <= 1e-6 for other in thinned
                   if other is not one and other.number == one.number)  # fmt: skip


@pytest.mark.parametrize("name", ["dino", "owl"])
@pytest.mark.parametrize(
    ("phrases", "more", "sentence"),
    [
        ([], {}, "give at least one"),
        ("a cat", {}, "list of phrases"),
        (["cat", " "], {}, "Phrase 2 is empty"),
        (["cat"], {"threshold": 2.0}, "threshold must be in 0..1"),
        (["cat"], {"overlap": -1.0}, "overlap must be in 0..1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(stored: Any, name: str, phrases: Any, more: Any, sentence: str) -> None:
    detector = detectors.opened(stored(name)[1], device="cpu")
    with pytest.raises(ValueError, match=sentence):
        detector(noise((90, 70)), phrases, **more)


def test_a_full_stop_alone_is_no_phrase_of_grounding_dino(stored: Any) -> None:
    with pytest.raises(ValueError, match="Phrase 1 has no words"):
        detectors.opened(stored("dino")[1], device="cpu")(noise((90, 70)), ["."])


@pytest.mark.parametrize("name", ["dino", "owl", "sam"])
def test_torch_s_own_files_are_read_as_well(copied: Callable[[str], Path], stored: Any, name: str) -> None:
    folder = copied(name)
    state = stored(name)[0].state_dict() if name == "sam" else load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(dict(state), folder / "pytorch_model.bin")
    detector, same = (detectors.opened(one, device="cpu") for one in (folder, stored(name)[1]))
    given = (noise((90, 70)), PROMPTS if name == "sam" else PHRASES)
    if isinstance(detector, Detector):
        assert detector(*given, threshold=0.2) == same(*given, threshold=0.2) != ()
    else:
        assert [one.mask for one in detector(*given)] == [one.mask for one in same(*given)]


def test_older_names_and_tables_that_are_computed_are_passed_over(copied: Callable[[str], Path]) -> None:
    """What the checkpoints of 2024 hold beside today's parameters, and what they lack."""
    folder = copied("dino")
    state = load_file(folder / "model.safetensors")
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self."
    assert f"{block}query.weight" in state  # the library saves under the published names
    norms = [name for name in state if ".swin.layernorm." in name or ".model.layernorm." in name]
    assert len(norms) == 2
    more = {f"{block}relative_position_index": torch.zeros(16, 16, dtype=torch.long)}
    save_file(
        {name: tensor for name, tensor in state.items() if name not in norms} | more, folder / "model.safetensors"
    )
    assert detectors.opened(folder, device="cpu")(noise((90, 70)), PHRASES, 0.2) != ()


def test_parameters_that_do_not_fit_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("owl")
    state = load_file(folder / "model.safetensors")
    del state["box_head.dense0.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="1 missing \\(box_head.dense0.weight\\)"):
        detectors.opened(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", {"model_type": "llava"}, "type llava, which is no detector"),
        ("config.json", {"model_type": "owlv2", "text_config": 3}, "describes no OWLv2"),
        ("vocab.json", None, "no tokenizer.json or vocab.json and merges.txt"),
        ("model.safetensors", None, "no weights"),
        ("preprocessor_config.json", {"image_mean": [1]}, "mean and deviation"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    copied: Callable[[str], Path], file: str, content: Any, sentence: str
) -> None:
    folder = copied("owl")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        detectors.opened(folder, device="cpu")


def test_another_kind_than_models_toml_says_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="holds OWLv2, not Grounding DINO"):
        detectors.opened(stored("owl")[1], "grounding-dino", "cpu")
    with pytest.raises(ValueError, match="no kind of detector"):
        detectors.record("yolo")


def test_masks_are_those_of_geometry(stored: Any) -> None:
    cutout = detectors.opened(stored("sam")[1], device="cpu")(noise((90, 70)), PROMPTS)[0]
    assert isinstance(cutout.mask, Mask) and cutout.mask.size == (90, 70)


# The published ones: their config.json as it lies on the hub, with entries of older versions of the library

OLD = {
    "torchscript": False,
    "pruned_heads": {},
    "use_bfloat16": False,
    "_name_or_path": "",
    "chunk_size_feed_forward": 0,
}
SWIN = {
    **OLD, "model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
    "image_size": 224, "out_features": ["stage2", "stage3", "stage4"], "out_indices": [2, 3, 4], "hidden_size": 768,
    "num_layers": 4, "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"], "patch_size": 4,
}  # fmt: skip
PUBLISHED = {
    "grounding-dino": ({
        "backbone": None, "backbone_kwargs": None, "use_timm_backbone": False, "use_pretrained_backbone": False,
        "backbone_config": SWIN, "text_config": {**OLD, "model_type": "bert"}, "torch_dtype": "float32",
        "transformers_version": "4.40.0.dev0",
    }, 172),
    "owlv2": ({
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "projection_dim": 512, "torch_dtype": "float32",
        "text_config": {**OLD, "model_type": "owlv2_text_model"}, "vision_config": {
            **OLD, "model_type": "owlv2_vision_model", "image_size": 960, "patch_size": 16,
        },
    }, 155),
    "sam": ({
        "initializer_range": 0.02, "torch_dtype": "float32", "vision_config": {**OLD, "model_type": ""},
        "prompt_encoder_config": {**OLD, "model_type": ""}, "mask_decoder_config": {**OLD, "model_type": ""},
    }, 94),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_a_published_config_builds_the_network_of_its_size(kind: str) -> None:
    """Millions of parameters as the checkpoints' pages tell them; without memory."""
    from mmchat.nets import weights

    config, millions = PUBLISHED[kind]
    with weights.without_memory():
        model = detectors.record(kind).build({**config, "model_type": kind})
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


# The command


@pytest.fixture
def known(stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models.toml with the dwarfs under their kinds' names, and "lost" without a folder."""
    rows = f'[[model]]\nname = "chat"\nfamily = "llava"\nfolder = "{tmp_path}/none"\n'
    kinds = {"dino": "grounding-dino", "owl": "owlv2", "sam": "sam", "sam_two": "sam2"}
    for name, kind in kinds.items():
        rows += f'[[detector]]\nname = "{name}"\nfamily = "{kind}"\nfolder = "{stored(name)[1]}"\n'
    rows += '[[detector]]\nname = "lost"\nfamily = "owlv2"\nfolder = "lost"\nhub = "ours/lost"\n'
    (tmp_path / "models.toml").write_text(rows)
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    noise((180, 60)).save(tmp_path / "picture.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    from mmchat.cli import main

    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_what_was_found_is_told_as_an_answer_of_ask(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = known / "picture.png"
    status, out, err = run(capsys, "detect", picture, "dog?", "a cat", "--model", "owl", "--threshold", 0.1, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["model"], told["precision"], told["text"]) == ("owl", "fp32", "dog?, a cat")
    found = detectors.opened(detectors.named("owl", "boxes").folder, device="cpu")(picture, ["dog?", "a cat"], 0.1)
    assert {span["phrase"] for span in told["spans"]} == {one.phrase for one in found} != set()
    for span in told["spans"]:
        assert told["text"][span["start"] : span["end"]] == span["phrase"]
        mine = [one for one in found if one.phrase == span["phrase"]]
        assert [place["score"] for place in span["places"]] == [one.score for one in mine]
        for place, one in zip(span["places"], mine, strict=True):
            assert place["kind"] == "box" and place["box"] == [round(value, 2) for value in one.box.pixels((180, 60))]


def test_the_first_detector_of_the_list_is_taken_and_nothing_found_is_said(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "detect", known / "picture.png", "a cat", "--threshold", 1)
    assert (status, out.strip()) == (0, "a cat") and "lower --threshold" in err
    out = run(capsys, "detect", known / "picture.png", "a cat", "--threshold", 1, "--json")[1]
    assert json.loads(out)["model"] == "dino" and json.loads(out)["spans"] == []


@pytest.mark.parametrize("cutter", ["sam", "sam_two"])
def test_masks_take_the_place_of_boxes_and_go_to_other_formats(
    known: Path, capsys: pytest.CaptureFixture[str], cutter: str
) -> None:
    asked = ("detect", known / "picture.png", "a cat", "dog?", "--threshold", 0.3, "--segment", cutter)
    status, out, err = run(capsys, *asked, "--json", "--save", known / "painted.png")
    assert status == 0, err
    places = [place for span in json.loads(out)["spans"] for place in span["places"]]
    assert places and {place["kind"] for place in places} >= {"mask"}
    assert Image.open(known / "painted.png").size == (180, 60)
    (known / "answer.json").write_text(out)
    status, out, err = run(capsys, "export", "coco", known / "picture.png", known / "answer.json")
    assert status == 0, err
    assert len(json.loads(out)["annotations"]) == len(places)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a cat", "--model", "sam"), "no detector sam that finds boxes: choose one of dino, owl, lost"),
        (("a cat", "--segment", "owl"), "no detector owl that finds masks: choose one of sam, sam_two"),
        (("a cat", "--model", "lost"), "python -m mmchat fetch lost"),
        (("a cat", "--threshold", "2"), "no number from 0 to 1"),
        (("a cat", "--device", "abacus"), "no device 'abacus'"),
        ((" ",), "Phrase 1 is empty"),
        ((), "required: PHRASE"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(
    known: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    status, out, err = run(capsys, "detect", known / "picture.png", *arguments)
    assert (status, out) == (2, "") and sentence in err and err.count("\n") == 1


def test_detectors_are_listed_apart_and_are_no_models_to_chat_with(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmchat import doctor, models

    rows = json.loads(run(capsys, "models", "--json")[1])
    assert [row["name"] for row in rows] == ["chat", "dino", "owl", "sam", "sam_two", "lost"]
    assert [bool(row["missing"]) for row in rows] == [True, False, False, False, False, True]
    assert [row["name"] for row in doctor.models()] == ["chat"]  # what the page offers
    with pytest.raises(ValueError, match="owl is a detector and does not chat"):
        models.find("owl")


def test_the_detectors_of_models_toml_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmchat import models

    monkeypatch.delenv("MMCHAT_MODELS", raising=False)
    listed = models.detectors()
    assert {entry.family for entry in listed} <= set(detectors.KINDS) and all(entry.hub for entry in listed)
    assert not {entry.name for entry in listed} & {entry.name for entry in models.listed()}
    assert detectors.named(None, "boxes").name == "grounding-dino" and detectors.named(None, "masks").name == "sam"


@pytest.mark.parametrize("name", ["dino", "owl", "sam"])
def test_a_detector_is_fetched_with_its_words_and_opens(
    hub: Hub,  # noqa: F811
    stored: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    files = {path.name: path.read_bytes() for path in stored(name)[1].iterdir()}
    hub.files[f"ours/{name}"] = {**files, "pytorch_model.bin": b"the same again", "README.md": b"read me"}
    kind = json.loads(files["config.json"])["model_type"]
    row = f'[[detector]]\nname = "mine"\nfamily = "{kind}"\nfolder = "mine"\nhub = "ours/{name}"\n'
    (tmp_path / "models.toml").write_text(f'[[model]]\nname = "a"\nfamily = "llava"\nfolder = "a"\n{row}')
    monkeypatch.setenv("MMCHAT_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    status, out, err = run(capsys, "fetch", "mine")
    assert (status, out.strip()) == (0, str(tmp_path / "mine")), err
    assert {path.name for path in (tmp_path / "mine").iterdir() if path.is_file()} == {
        *files, "manifest.json", "SHA256SUMS",
    }  # fmt: skip
    assert detectors.opened(tmp_path / "mine", kind, "cpu")
