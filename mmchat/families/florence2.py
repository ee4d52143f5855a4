"""Florence-2: a DaViT tower at 768 pixels, one sentence a task, BART that reads it and writes; boxes in 1000 steps.

Xiao et al. 2023, arXiv 2311.06242; checkpoints florence-community/Florence-2-base and its kin, run by transformers' own
classes behind our slots, and microsoft's own files of the same weights. An encoder reads picture and task as one, a
decoder writes: two tables of positions. The authors search with three beams; here each token is the most probable one,
with their rule that no three tokens in a row come twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BartModel, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.florence2.configuration_florence2 import Florence2Config
from transformers.models.florence2.modeling_florence2 import Florence2MultiModalProjector, Florence2VisionBackbone

from mmchat.dialect import DIALECTS
from mmchat.family import Family, as_box
from mmchat.geometry import Frame
from mmchat.nets import trace
from mmchat.nets.model import Encoded, Model, PartLike, Seen
from mmchat.nets.native import Speaker, attending, unrepeated
from mmchat.nets.vision import IMAGENET_MEAN, IMAGENET_STD
from mmchat.nets.weights import Fold
from mmchat.prompt import Task, Template
from mmchat.templates import FLORENCE_2

SIDE = 768  # pixels: no config names it
MARKS = (  # what the published processor adds to BART's tokens, misspelling and all
    "<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{step}>" for step in range(1000)), "<cap>", "</cap>", "<ncap>",
    "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>", "<sep>", "<region_cap>",
    "</region_cap>", "<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>", "<poly>",
    "</poly>", "<and>",
)  # fmt: skip
PUBLISHED = {"forced_bos_token_id": 0, "no_repeat_ngram_size": 3}  # where neither file of a checkpoint says so
TASKS = (
    Task("find", "Find what I name", FLORENCE_2["<CAPTION_TO_PHRASE_GROUNDING>"]),
    Task("describe", "Caption the picture", FLORENCE_2["<CAPTION>"], needs=""),
    Task("detail", "Describe in detail", FLORENCE_2["<DETAILED_CAPTION>"], needs=""),
    Task("paragraph", "Describe at length", FLORENCE_2["<MORE_DETAILED_CAPTION>"], needs=""),
    Task("objects", "Find all objects", FLORENCE_2["<OD>"], needs=""),
    Task("dense", "Describe part by part", FLORENCE_2["<DENSE_REGION_CAPTION>"], needs=""),
    Task("proposals", "Find regions", FLORENCE_2["<REGION_PROPOSAL>"], needs=""),
    Task("detect", "Find every one of a kind", FLORENCE_2["<OPEN_VOCABULARY_DETECTION>"]),
    Task("segment", "Outline what I name", FLORENCE_2["<REFERRING_EXPRESSION_SEGMENTATION>"]),
    Task("region", "Describe my region", FLORENCE_2["<REGION_TO_DESCRIPTION>"], needs="region"),
    Task("name", "Name what is in my region", FLORENCE_2["<REGION_TO_CATEGORY>"], needs="region"),
    Task("outline", "Outline what is in my region", FLORENCE_2["<REGION_TO_SEGMENTATION>"], needs="region"),
    Task("read", "Read the text", FLORENCE_2["<OCR>"], needs=""),
    Task("lines", "Read the text with places", FLORENCE_2["<OCR_WITH_REGION>"], needs=""),
    Task("read_region", "Read the text in my region", FLORENCE_2["<REGION_TO_OCR>"], needs="region"),
)


class Writer(Speaker):
    """BART as a causal language model: vectors go to its encoder, ids to its decoder.

    What was read is answered with the logits behind `begins`, the ids that every answer begins with. The cache that an
    engine hands in holds keys and values of both: of what is written, and behind those layers of what was read.
    """

    def __init__(self, config: Any, begins: Sequence[int]) -> None:
        super().__init__(BartModel(config), tied=True)
        self.begins = tuple(begins)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """A prompt's inputs_embeds [1, T, C], or input_ids [1, n] that go on; logits [1, n, V]."""
        known = None if past_key_values is None else halves(past_key_values, self.config.decoder_layers)
        if inputs_embeds is not None:
            input_ids = torch.tensor([self.begins], device=inputs_embeds.device)
            read = self.model.encoder(inputs_embeds=inputs_embeds).last_hidden_state
        else:  # its keys and values are known: of what was read only the length is looked at
            assert known is not None and input_ids is not None, "ids go on from what was read"
            keys = known.cross_attention_cache.layers[0].keys
            read = keys.new_zeros(()).expand(1, keys.shape[2], self.config.d_model)
        out = self.model.decoder(
            input_ids=input_ids,
            encoder_hidden_states=read,
            past_key_values=known,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values, hidden_states=out.hidden_states)


def halves(cache: DynamicCache, layers: int) -> EncoderDecoderCache:
    """A cache as the library's pair of what is written and what was read, each with so many layers of it."""
    cache.layers += [DynamicLayer() for _ in range(2 * layers - len(cache.layers))]
    written, read = DynamicCache(), DynamicCache()
    written.layers, read.layers = cache.layers[:layers], cache.layers[layers:]
    return EncoderDecoderCache(written, read)


class Florence2(Model):
    """The slots. A picture is its cells, row by row, behind the mean of them all.

    `unique`: how many tokens in a row never come twice (0: any may).
    """

    whole = True

    def __init__(self, made: Florence2Config, begins: Sequence[int], unique: int) -> None:
        vision, bridge = Florence2VisionBackbone(made.vision_config), Florence2MultiModalProjector(made)
        super().__init__(Writer(made.text_config, begins), vision, bridge)
        self.unique = unique
        eyes = made.vision_config
        # Sixteen maps of the first stage, as measured: an MLP's two inner ones of four each, what it adds to, copies.
        self.seeing = 16 * (SIDE // eyes.patch_stride[0]) ** 2 * eyes.embed_dim[0]

    def encode(self, pixels: torch.Tensor) -> Encoded:
        level = self.vision(pixels).last_hidden_state
        return Encoded(self.bridge(level), {"vision": level})

    def room(self, length: int, context: int) -> int:
        """What is written counts its positions anew."""
        return context + 1 - len(self.language.begins) if length <= context else 0

    def allowed(
        self, logits: torch.Tensor, written: Sequence[int], read: Sequence[int | PartLike] = ()
    ) -> torch.Tensor:
        """No tokens that would make a row of `unique` come again in what is written."""
        return unrepeated(logits, (*self.language.begins, *written), self.unique)

    def attention(self, inputs: torch.Tensor, start: int, tokens: Sequence[int], columns: slice) -> torch.Tensor:
        """That of the decoder to what was read: the answer's own words are not among them."""
        bart, begins = self.language.model, self.language.begins
        words = torch.cat((self.embed(list(begins))[None], inputs[:, start:]), 1)

        def run() -> None:
            read = bart.encoder(inputs_embeds=inputs[:, :start]).last_hidden_state
            bart.decoder(inputs_embeds=words, encoder_hidden_states=read, use_cache=False)

        looking = [layer.encoder_attn for layer in bart.decoder.layers]
        return trace.attended(bart, looking, run, [len(begins) + number - 1 for number in tokens], columns)

    def spread(self, values: torch.Tensor, seen: Seen, picture: int) -> torch.Tensor:
        return super().spread(values[1:], seen, picture)  # the mean lies nowhere


def sizes(config: Mapping[str, Any]) -> Florence2Config:
    """The library's config of a published config.json, its own or the authors'."""
    eyes = dict(config["vision_config"])
    if "dim_embed" in eyes:
        eyes["embed_dim"] = eyes["dim_embed"]
        eyes["max_temporal_embeddings"] = eyes["visual_temporal_embedding"]["max_temporal_embeddings"]
        eyes["max_position_embeddings"] = eyes["image_pos_embed"]["max_pos_embeddings"]
    known = Florence2Config().vision_config.to_dict()
    eyes = {key: value for key, value in eyes.items() if key in known and key != "model_type"}
    return attending(Florence2Config(vision_config=eyes, text_config={"model_type": "bart", **config["text_config"]}))


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square; steps are of its own width and height."""
    return Frame(SIDE, "squash", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def build(config: Mapping[str, Any]) -> Florence2:
    """The model of a published config.json, parameters yet to be loaded."""
    made = sizes(config)
    rules = config.get("generation_config") or {**PUBLISHED, **config["text_config"]}
    start = rules.get("decoder_start_token_id", made.text_config.decoder_start_token_id)
    first = rules.get("forced_bos_token_id")
    return Florence2(made, [start] if first is None else [start, first], rules.get("no_repeat_ngram_size") or 0)


def turned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' projection as a linear layer's weight: they multiply from the other side."""
    return {"bridge.image_projection.weight": state["bridge.image_projection.columns"].T.contiguous()} if state else {}


FAMILY = Family(
    name="florence2",
    title="Florence-2",
    about="Captions, finds, outlines and reads: fifteen set tasks, one answer each. It knows no free questions.",
    template=Template("", "{text}</s>", None, image="{image}{text}", stop=("</s>",), tasks=TASKS, late_start=True),
    dialect=DIALECTS["florence_2"],
    dialects={
        "segment": DIALECTS["florence_2_outlines"],
        "outline": DIALECTS["florence_2_outlines"],
        "lines": DIALECTS["florence_2_ocr"],
    },
    frame=frame,
    build=build,
    mention=as_box,
    keys=(
        (r"^model\.vision_tower\.", "vision."),
        (r"^model\.multi_modal_projector\.", "bridge."),
        (r"^model\.language_model\.", "language.model."),
        (r"^lm_head\.", "language.lm_head."),
        # the authors' own files
        (r"^language_model\.(model|lm_head)\.", r"language.\1."),
        (r"^image_projection$", "bridge.image_projection.columns"),
        (r"^image_pos_embed\.", "bridge.image_position_embed."),
        (r"^(image_proj_norm|visual_temporal_embed)\.", r"bridge.\1."),
        (r"^vision_tower\.(convs\.\d+)\.proj\.", r"vision.\1.conv."),
        (r"^vision_tower\.(.+)\.fn\.dw\.", r"vision.\1."),
        (r"^vision_tower\.(.+)\.(?:window|channel)_attn\.norm\.", r"vision.\1.norm1."),
        (r"^vision_tower\.(.+)\.ffn\.norm\.", r"vision.\1.norm2."),
        (r"^vision_tower\.(.+)\.fn\.(?:net\.)?", r"vision.\1."),
        (r"^vision_tower\.", "vision."),
    ),
    drop=(r"final_logits_bias$",),
    fold=Fold((r"^bridge\.image_projection\.columns$",), turned),
    takes=frozenset({"box"}),
    keep=("vision", "bridge", "language.lm_head"),
    heats=("feature norm", "components", "likeness", "attention"),
    unverified="Its published weights were never run here.",
    licence="MIT, code and weights.",
    marks=MARKS,
    dwarf={
        "model_type": "florence2", "image_token_id": 1283, "tie_word_embeddings": True,
        "text_config": {
            "model_type": "bart", "vocab_size": 1288, "d_model": 64, "max_position_embeddings": 512,
            "encoder_layers": 1, "encoder_ffn_dim": 96, "encoder_attention_heads": 4,
            "decoder_layers": 2, "decoder_ffn_dim": 96, "decoder_attention_heads": 2,
            "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 257,
            "forced_bos_token_id": 256, "forced_eos_token_id": 257, "no_repeat_ngram_size": 3,
            "scale_embedding": False,
        },
        "vision_config": {
            "model_type": "florence_vision", "depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 4],
            "num_groups": [2, 4], "patch_size": [15, 7], "patch_stride": [16, 8], "patch_padding": [7, 3],
            "patch_prenorm": [False, True], "window_size": 4, "projection_dim": 64, "max_temporal_embeddings": 10,
            "max_position_embeddings": 12,
        },
    },
)  # fmt: skip
