"""A library model behind our slots: its decoder with a head as `language`, pictures of their own size, told positions.

transformers' whole models take ids in which marks stand for pictures and find the pictures' places by searching for
the marks. Our talks are vectors with slots, so what the library works out of the marks (positions in two directions,
features added on the way) is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmchat.nets.model import Encoded, Model, PartLike, Seen, SlotLike


def configured(kind: Callable[..., Any], config: Mapping[str, Any], attention: str = "sdpa") -> Any:
    """The library's config of a published config.json: `kind` is its class."""
    return attending(kind(**{key: value for key, value in config.items() if key != "model_type"}), attention)


def attending(made: Any, attention: str = "sdpa") -> Any:
    """A library's config of eyes and words, with the way in which all of it attends."""
    for part in (made, made.text_config, made.vision_config):
        part._attn_implementation = attention
    return made


def unrepeated(logits: torch.Tensor, row: Sequence[int], count: int) -> torch.Tensor:
    """Logits [V] of what may follow the ids of `row`: -inf where `count` of them in a row would come a second time.

    The library's `no_repeat_ngram_size`; 0: any may.
    """
    before = count - 1
    if before < 0:
        return logits
    last = tuple(row[len(row) - before :])
    again = [row[at + before] for at in range(len(row) - before) if tuple(row[at : at + before]) == last]
    logits = logits.clone()
    logits[again] = -torch.inf
    return logits


class Speaker(nn.Module):
    """A library's decoder (`base`, without a head) and its head, as one causal language model.

    tied: the head is the table of words. cap: the highest logit, approached by a tanh, where the family has one.
    """

    def __init__(self, base: nn.Module, tied: bool, cap: float | None = None) -> None:
        super().__init__()
        self.config, self.cap = base.config, cap
        self.model = base
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        if tied:
            self.lm_head.weight = base.get_input_embeddings().weight

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_attn_implementation(self, name: str) -> None:
        """The decoder's way to attend: "eager" gives its weights."""
        self.model.set_attn_implementation(name)

    def forward(self, logits_to_keep: int = 0, **given: Any) -> CausalLMOutputWithPast:
        """Takes what the decoder takes; logits [B, T, V] of the last `logits_to_keep` positions (0: of all)."""
        out = self.model(**given)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return CausalLMOutputWithPast(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)


def tied(config: Mapping[str, Any]) -> bool:
    """Whether the head is the table of words: as a config.json says, else as its part of the words does (before 5)."""
    return bool(config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings", False)))


class Tower(nn.Module):
    """The library's tower, as one level; `skip` vectors in front are of no patch."""

    def __init__(self, tower: nn.Module, skip: int = 0) -> None:
        super().__init__()
        self.tower, self.skip = tower, skip

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor]:
        """pictures [N, 3, side, side] -> [N, patches, width]."""
        return (self.tower(pictures).last_hidden_state[:, self.skip :],)


class Bridge(nn.Module):
    """The library's projector on the last level."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """levels [N, patches, c] -> [N, vectors, C]."""
        return self.projector(levels[-1])


class NativeSize(Model):
    """The Qwen-VL kin: each picture in its own size, patches merged by squares, positions in rows and columns.

    `vision` is the library's tower with its merger. `deep`: the tower's earlier features are added in the decoder's
    first layers, where the picture stands (Qwen3-VL).
    """

    def __init__(self, language: Speaker, vision: nn.Module, deep: bool = False) -> None:
        super().__init__(language, vision)
        self.deep = deep

    def encode(self, pixels: torch.Tensor | Sequence[torch.Tensor]) -> Encoded:
        """pixels [B, 3, H, W], or pictures [3, H, W] of different sizes; sides are multiples of patch and merge."""
        sizes = self.vision.config
        images, levels, kept = [], [], []
        for picture in pixels:
            cells, rows, columns = patches(
                picture, sizes.patch_size, sizes.spatial_merge_size, sizes.temporal_patch_size
            )
            grid = torch.tensor([[1, rows, columns]], device=cells.device)
            seen = self.vision(cells, grid_thw=grid)
            rows, columns = rows // sizes.spatial_merge_size, columns // sizes.spatial_merge_size
            images.append(seen.pooler_output)
            levels.append(seen.pooler_output.T.unflatten(1, (rows, columns)))
            kept.append((rows, columns, tuple(seen.deepstack_features) if self.deep else ()))
        return Encoded(images, {"vision": levels}, kept)

    def beside(self, slot: SlotLike, seen: Seen) -> tuple[int, int, tuple[torch.Tensor, ...]] | None:
        """Rows, columns and earlier features of a picture."""
        return seen.kept[slot.index] if slot.kind == "image" else None

    def told(self, parts: Sequence[int | PartLike], start: int) -> Mapping[str, Any]:
        """Positions [3, 1, T] in time, down and across; where the decoder wants them, earlier features of pictures."""
        columns, pictures = [], []
        last = 0
        for number, part in enumerate(parts):
            if isinstance(part, int) or part.beside is None:
                length = 1 if isinstance(part, int) else len(part.vectors)
                here = torch.arange(last, last + length).expand(3, -1)
                last += length
            else:
                rows, across, _ = part.beside
                down, right = torch.meshgrid(torch.arange(rows), torch.arange(across), indexing="ij")
                here = last + torch.stack((torch.zeros_like(down), down, right)).flatten(1)
                last += max(rows, across)
            if number >= start:
                columns.append(here)
                pictures.append(None if isinstance(part, int) else part.beside)
        device = self.device
        more: dict[str, Any] = {"position_ids": torch.cat(columns, 1)[:, None].to(device)}
        shown = [picture for picture in pictures if picture is not None]
        if self.deep and shown:
            where = [
                torch.full((one.shape[1],), picture is not None) for one, picture in zip(columns, pictures, strict=True)
            ]
            more["visual_pos_masks"] = torch.cat(where)[None].to(device)
            more["deepstack_visual_embeds"] = [
                torch.cat(layer).to(device, self.dtype) for layer in zip(*(one[2] for one in shown), strict=True)
            ]
        return more


def patches(picture: torch.Tensor, side: int, merge: int, times: int) -> tuple[torch.Tensor, int, int]:
    """A picture [3, H, W] as patches [rows * columns, 3 * times * side * side], and their rows and columns.

    Squares of `merge` x `merge` patches, which become one vector, lie together; a still picture is shown `times` times.
    """
    rows, columns = picture.shape[1] // side, picture.shape[2] // side
    cut = picture.reshape(3, rows // merge, merge, side, columns // merge, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    again = cut.unsqueeze(5).expand(*cut.shape[:5], times, side, side)
    return again.reshape(rows * columns, -1), rows, columns
