"""FROMAGe: a frozen OPT that is shown pictures as one vector each, and that answers with pictures of the user's own.

Koh et al. 2023, arXiv 2301.13823, github.com/kohjingyu/fromage. It knows no places: grounding here is pictures between
the words. Its file holds three linear maps and the row of one token, `[RET]`; the hidden state at that token searches
an index of pictures (`nets.retrieval`, built by `python -m mmchat index`). The file goes into a folder with its
model_args.json, which names the two other parts; they lie in or beside the folder:

    pretrained_ckpt.pth.tar  model_args.json       ../opt-6.7b  ../clip-vit-large-patch14

The picture is squashed, as in the authors' demo; their training cut the middle out of it. Where a `[RET]` stands is
counted with the pictures before it, which the authors' code forgets to do. The published index of CC3M is not read: it
holds addresses of the web.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.opt.configuration_opt import OPTConfig
from transformers.models.opt.modeling_opt import OPTForCausalLM

from mmchat.dialect import DIALECTS, Scene
from mmchat.family import Dialect, Family
from mmchat.geometry import Frame, Region
from mmchat.nets.model import Encoded, Model, as_map
from mmchat.nets.vision import CLIP_LARGE, CLIP_MEAN, CLIP_STD, ClipTower
from mmchat.nets.weights import Fold, Part
from mmchat.prompt import Piece, Slot, Task, Template, joined

RET = "[RET]"
MARKS = ("<|image|>", RET)  # behind OPT's own tokens; the first one is never used
CAPTION = "A picture of"
TABLE = "language.model.decoder.embed_tokens.weight"
ROW = "language.retrieval_row"

TASKS = (
    Task("free", "Ask freely", "{text}"),
    Task("describe", "Describe the picture", "{answer}" + CAPTION, needs=""),
    Task("pictures", "Find pictures of what I name", f"{{text}} {RET}"),
)


@dataclass(frozen=True)
class Talk(Template):
    """Questions and answers as the authors' demo writes them; pictures stand before the turn they came with.

    A caption's beginning, which is the answer's, and words that end with the mark are a text to go on with or to search
    by: they and what answers them are framed by nothing.
    """

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        bare = False
        for role, text in messages:
            shown = [piece for piece in text if isinstance(piece, Slot) and piece.kind == "image"]
            words = joined(piece for piece in text if piece not in shown)
            written = "".join(piece for piece in words if isinstance(piece, str))
            if role == "user":
                bare = not written or written.rstrip().endswith(RET)
            pattern = self.user if role == "user" else self.assistant or ""
            plain = "{text}" if role == "user" else "{text}\n"
            before, _, after = (plain if bare else pattern).partition("{text}")
            pieces += [*shown, before, *words, after]
        return joined([*pieces, "" if bare or not messages or messages[-1][0] != "user" else self.cue()])


class Tower(ClipTower):
    """CLIP's last layer with the class token."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, -1, class_token=True)

    def pooled(self, level: torch.Tensor) -> torch.Tensor:
        """[N, 1 + patches, width] -> what the tower says of the whole picture, [N, width]."""
        return self.post_layernorm(level[:, 0])


class Shown(nn.Module):
    """A whole picture's vector as `count` words of the language model."""

    def __init__(self, width: int, language_width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.visual_embeddings = nn.Linear(width, language_width * count)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """[N, width] -> [N, count, language width]."""
        return self.visual_embeddings(pooled).unflatten(-1, (self.count, -1))


class Search(nn.Module):
    """Two maps into one space, in which a picture and the `[RET]` that asks for it lie close."""

    def __init__(self, width: int, language_width: int, shared: int) -> None:
        super().__init__()
        self.visual_fc = nn.Linear(width, shared)
        self.text_hidden_fcs = nn.ModuleList([nn.Sequential(nn.Linear(language_width, shared))])
        self.logit_scale = nn.Parameter(torch.empty(()))

    def picture(self, pooled: torch.Tensor) -> torch.Tensor:
        """[N, width] -> rows of an index [N, shared], of any length."""
        return self.visual_fc(pooled)

    def query(self, states: torch.Tensor) -> torch.Tensor:
        """Last hidden states [..., language width] -> [..., shared], each of length one."""
        return F.normalize(self.text_hidden_fcs[0](states), dim=-1)

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as queries are multiplied with: of length one, times the learned scale."""
        return F.normalize(rows, dim=-1) * self.logit_scale.exp()


class Fromage(Model):
    """The slots; a picture is one vector (or four), so only the tower's patches are a map of it."""

    @property
    def mark_id(self) -> int:
        """The token whose state searches pictures: the last row of the table."""
        return self.language.config.vocab_size - 1

    @property
    def makers(self) -> list[torch.Tensor]:
        """What rows of an index depend on."""
        return [*self.head.visual_fc.parameters(), self.vision.post_layernorm.weight]

    def encode(self, pixels: torch.Tensor) -> Encoded:
        (level,) = self.vision(pixels)
        return Encoded(self.bridge(self.vision.pooled(level)), {"vision": as_map(level[:, 1:])})

    def rows(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, side, side] -> their rows in an index [N, shared], float32."""
        return self.head.picture(self.vision.pooled(self.vision(pixels)[0])).float()

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        """Vectors [B, T, C] -> last hidden states [B, T, C], behind the last norm."""
        return self.language.model.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state

    def likeness(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Last hidden states [n, C] at `[RET]`, rows of an index [k, shared] -> how well they go together [n, k]."""
        scaled = self.head.scaled(rows.to(states.device, states.dtype))
        return self.head.query(states) @ scaled.T


def tower_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the tower, those of CLIP-L/14 at 224 where none are named."""
    sizes = config.get("vision_config") or {}
    return {**CLIP_LARGE, "image_size": 224, **sizes.get("vision_config", sizes)}


def frame(config: Mapping[str, Any]) -> Frame:
    """The picture squashed to a square."""
    return Frame(tower_sizes(config)["image_size"], "squash", mean=CLIP_MEAN, std=CLIP_STD)


def opt(config: Mapping[str, Any]) -> OPTForCausalLM:
    """OPT with a table that ends with the row of `[RET]`."""
    sizes = config.get("llm_config") or {}
    if "hidden_size" not in sizes:
        raise ValueError(
            "The checkpoint says no sizes of the language model: put the folder that its opt_version names (opt-6.7b) "
            "beside it."
        )
    made = OPTConfig(**{**sizes, "vocab_size": config["retrieval_token_idx"] + 1, "tie_word_embeddings": True})
    made._attn_implementation = "sdpa"
    return OPTForCausalLM(made)


def build(config: Mapping[str, Any]) -> Fromage:
    """The model of a model_args.json with its parts' sizes (see above), parameters yet to be loaded."""
    language, tower = opt(config), Tower(tower_sizes(config))
    width, count = language.config.word_embed_proj_dim, config.get("n_visual_tokens", 1)
    last, named = language.config.num_hidden_layers, list(config.get("text_emb_layers") or (-1,))
    if named not in ([-1], [last]):
        raise ValueError(
            f"text_emb_layers is {named} in model_args.json: only the last layer ([-1]), which both published "
            "checkpoints search with, is known here."
        )
    head = Search(tower.width, width, config.get("shared_emb_dim", 256))
    return Fromage(language, tower, Shown(tower.width, width, count), head=head)


def mention(number: int, region: Region, dialect: Dialect, scene: Scene) -> tuple[Piece, ...]:
    """ValueError: no text of this model means a place."""
    raise ValueError("FROMAGe knows no places in a picture: ask about the whole picture, without @1.")


def with_row(state: dict[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """OPT's table cut to the tokens there are, the trained row of `[RET]` written over its last one; it is the head
    too, whatever a file holds as one.
    """
    table = state[TABLE][: shapes[TABLE][0]]
    if ROW in state:
        table = torch.cat((table[:-1], state[ROW].to(table.dtype)))
    return {TABLE: table}


FAMILY = Family(
    name="fromage",
    title="FROMAGe",
    about="Talks about pictures and answers with pictures of your own, found in a folder that you have indexed. "
    "Knows no places.",
    template=Talk("", "Q: {text}\n", "A: {text}\n", image="{image}{text}", stop=("\n", "</s>"), tasks=TASKS,
                  late_start=True),
    dialect=DIALECTS["fromage"],
    frame=frame,
    build=build,
    mention=mention,
    keys=(
        (r"^model\.visual_model\.vision_model\.", "vision."),
        (r"^model\.lm\.(?:model\.)?decoder\.", "language.model.decoder."),
        (r"^model\.lm\.lm_head\.", "language.lm_head."),
        (r"^model\.(visual_embeddings)\.", r"bridge.\1."),
        (r"^model\.(visual_fc|text_hidden_fcs|logit_scale)(?=[.]|$)", r"head.\1"),
        (r"^ret_input_embeddings\.weight$", ROW),
    ),
    drop=(
        r"^model\.input_embeddings\.",  # the table once more
        r"decoder\.version$",
        r"^model\.visual_model\.(text_model\.|(visual|text)_projection\.|logit_scale$)", r"position_ids$",
    ),
    fold=Fold((rf"^{TABLE}$", rf"^{ROW}$", r"^language\.lm_head\.weight$"), with_row, sized=True),
    parts=(
        Part(
            "opt_version", "language model", usual="opt-6.7b", holds="language.", prefix="model.lm.",
            config="llm_config",
        ),
        Part(
            "visual_encoder", "vision tower", usual="clip-vit-large-patch14", holds="vision.",
            prefix="model.visual_model.", config="vision_config",
        ),
    ),
    takes=frozenset({"several pictures"}),
    keep=("vision", "bridge", "head", "language.lm_head"),
    heats=("feature norm", "components", "likeness"),
    unverified="Its published maps were never run here.",
    licence="Code and maps Apache 2.0; OPT under Meta's OPT licence, for research only; CLIP MIT.",
    marks=MARKS,
    retrieves=RET,
    dwarf={
        "model_type": "fromage", "n_visual_tokens": 2, "shared_emb_dim": 12, "retrieval_token_idx": 260,
        "llm_config": {
            "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 512, "word_embed_proj_dim": 64, "vocab_size": 266, "pad_token_id": 1,
            "bos_token_id": 257, "eos_token_id": 257,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu",
        },
    },
)  # fmt: skip
