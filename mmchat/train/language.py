"""Train the cut language model on questions about pictures: many short questions behind one shared picture, loss on the
answers alone.

Without cached features the picture is made up of words (the form is learned, and the cut model heals); with them
picture and region vectors are projected into the prompt and the projections learn along. Checkpoints go to
OUT/state.pt; --resume goes on from there.

Axes: B sequences, T tokens, R regions, D language width.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from mmchat.nets.clue import Clue, write_clue
from mmchat.train.cut import config_of, cut_down, shorten, smollm2
from mmchat.train.pictures import Sights, load_pictures
from mmchat.train.questions import Picture, Said, ask, follow, invented
from mmchat.train.words import catalogue, labels

SIDE = 6  # picture tokens: SIDE x SIDE
FUSED, WORDS = 256, 384  # widths of the fused map and of the word vectors
OPEN, CLOSE, TURN = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
UNAIDED = ("find", "name", "colour region", "tell", "describe")  # what can be answered from the region vectors too
EYES = 0.6  # share of batches with picture and region vectors, once there are any
AVERAGE = 8  # steps between two averagings where several processes train together


@dataclass
class Packed:
    """A batch. `slots` [B]: number of region vectors; ids stand at 0 under slots. `targets`: -100 where nothing is
    learned."""

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor  # 0 the shared prefix, 1.. the questions, -1 padding
    targets: torch.Tensor
    picture: torch.Tensor | None
    regions: torch.Tensor | None
    counts: list[int]


class Speaker(nn.Module):
    """The language model with the two projections that bring picture and regions to its width."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        width = config["hidden_size"]
        self.language = LlamaForCausalLM(
            LlamaConfig(
                **{key: value for key, value in config.items() if key not in ("architectures", "dtype")},
                attn_implementation="sdpa",
            )
        )
        self.projector = nn.Sequential(nn.Linear(FUSED, width), nn.GELU(), nn.Linear(width, width))
        self.region_projector = nn.Sequential(nn.Linear(FUSED + WORDS, width), nn.GELU(), nn.Linear(width, width))
        for layer in (self.projector[2], self.region_projector[2]):
            nn.init.normal_(layer.weight, std=0.1 / math.sqrt(width))  # begins as small as words' embeddings are
            nn.init.zeros_(layer.bias)

    def embed(self, packed: Packed, first_region: int, head: int) -> torch.Tensor:
        """[B, T, D]: words, and behind the first `head` of them the picture's vectors and the regions', each with its
        token's embedding added."""
        table = self.language.get_input_embeddings()
        words = table(packed.ids)
        if packed.picture is None or packed.regions is None:
            return words
        picture = self.projector(packed.picture)
        own = table.weight[first_region : first_region + packed.regions.shape[1]]
        regions = self.region_projector(packed.regions) + own
        return torch.cat(
            [words[:, :head], picture, regions, words[:, head + picture.shape[1] + regions.shape[1] :]], dim=1
        )

    def forward(self, packed: Packed, first_region: int, head: int) -> torch.Tensor:
        """Mean cross entropy over the answers' tokens."""
        segments = packed.segments
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        order = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
        allowed = same & order & (segments[:, None, :] >= 0) | torch.eye(
            segments.shape[1], dtype=torch.bool, device=segments.device
        )
        mask = torch.zeros(allowed.shape, device=segments.device).masked_fill(~allowed, torch.finfo(torch.float32).min)[
            :, None
        ]
        hidden = self.language.model(
            inputs_embeds=self.embed(packed, first_region, head),
            attention_mask=mask,
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        wanted = packed.targets != -100
        logits = F.linear(hidden[wanted], self.language.get_input_embeddings().weight)
        return F.cross_entropy(logits, packed.targets[wanted])


class Lessons:
    """Packs questions into sequences. `names`: what invented pictures are made of; `seen`: pictures with features, or
    none."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        length: int,
        names: Sequence,
        seen: Sequence[tuple[Picture, Sights]] = (),
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.length, self.names, self.seen = tokenizer, length, names, seen
        self.chance = random.Random(seed)
        self.groups: dict[int, list[tuple[Picture, Sights]]] = {}
        for pair in seen:
            self.groups.setdefault(len(pair[1].regions), []).append(pair)
        self.head = self.ids(OPEN)
        self.tail, self.close = self.ids(CLOSE), self.ids(TURN)
        self.end = tokenizer.token_to_id("<|im_end|>")
        self.first_region = tokenizer.token_to_id("<r0>")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turn(self, said: Said) -> tuple[list[int], list[int]]:
        """Ids and targets of one turn behind the opening words; the answer ends with the end mark."""
        asked = self.ids(said.question) + self.ids(write_clue(said.clue)) + self.tail
        # A word is written with the blank in front that it has in the clue: without it "chair" falls into other tokens
        # and cannot be copied.
        blank = "" if said.answer.startswith("<") else " "
        answer = [*self.ids(blank + said.answer), self.end]
        return asked + answer, [-100] * len(asked) + answer

    def talk(self, picture: Picture, eyes: bool = False) -> tuple[list[int], list[int]]:
        """One question, now and then two that belong together."""
        said = ask(picture, self.chance)
        if eyes and said.kind in UNAIDED and self.chance.random() < 0.15:
            said = replace(said, clue=Clue())  # now and then the region vectors must do alone
        ids, targets = self.turn(said)
        if self.chance.random() < 0.25:
            second = follow(said, picture, self.chance)
            if second is not None:
                more, learned = self.turn(second)
                between = self.ids("\n" + OPEN)
                ids, targets = ids + between + more, targets + [-100] * len(between) + learned
        return ids, targets

    def sequence(self, group: int | None = None) -> tuple[list[int], list[int], list[int], list[int], Sights | None]:
        """ids, positions, segments, targets, sights of a packed sequence. `group`: how many regions."""
        sights: Sights | None = None
        if group is not None:
            picture, sights = shuffled(*self.chance.choice(self.groups[group]), self.chance)
            slots = len(sights.picture) + len(sights.regions)
        else:
            picture, slots = invented(self.chance, self.names), 0
        prefix = [*self.head, *([0] * slots)]
        ids, positions, segments, targets = prefix[:], list(range(len(prefix))), [0] * len(prefix), [-100] * len(prefix)
        number = 1
        for _ in range(30):
            if group is None and number % 3 == 0:
                picture = invented(self.chance, self.names)  # words alone share nothing: a new picture costs nothing
            more, learned = self.talk(picture, sights is not None)
            if len(ids) + len(more) > self.length:
                break
            # What predicts an answer's token is the position before it.
            ids += more
            positions += range(len(prefix), len(prefix) + len(more))
            segments += [number] * len(more)
            targets += learned[1:] + [-100]
            number += 1
        return ids, positions, segments, targets, sights

    def batch(self, size: int) -> Packed:
        """`size` sequences, padded to the longest. All pictures of a batch have equally many regions."""
        # Pictures and pictures of words alone take turns: words alone bring far more nouns.
        with_eyes = bool(self.seen) and self.chance.random() < EYES
        group = len(self.chance.choice(self.seen)[1].regions) if with_eyes else None
        rows = [self.sequence(group) for _ in range(size)]
        longest = max(len(row[0]) for row in rows)

        def padded(part: int, fill: int) -> torch.Tensor:
            return torch.tensor([row[part] + [fill] * (longest - len(row[part])) for row in rows])

        picture = regions = None
        if rows[0][4] is not None:
            picture = torch.stack([row[4].picture for row in rows])
            regions = torch.stack([row[4].regions for row in rows])
        return Packed(
            padded(0, 0), padded(1, 0), padded(2, -1), padded(3, -100), picture, regions, [len(row[0]) for row in rows]
        )


def shuffled(picture: Picture, sights: Sights, chance: random.Random) -> tuple[Picture, Sights]:
    """The same picture with its candidates in another order: an index must mean nothing but its place."""
    order = list(range(len(sights.regions)))
    chance.shuffle(order)
    new = {old: index for index, old in enumerate(order)}
    items = []
    for item in picture.items:
        index = item.seen.index
        items.append(item if index is None else replace(item, seen=replace(item.seen, index=new[index])))
    return replace(picture, items=tuple(items)), Sights(sights.picture, sights.regions[order])


def names() -> list[tuple[tuple[str, ...], tuple[str, ...], bool]]:
    """What invented pictures are made of: (words, kinds, plural) of the catalogue and of all that the eyes can say."""
    return [*(((noun.name, *noun.synonyms), noun.hypernyms, noun.plural) for noun in catalogue()), *labels()]


def rate(step: int, done: float, peak: float) -> float:
    """Learning rate: forty steps of warming up, then a cosine down to a twentieth. `done`: share of the run, 0..1."""
    if step < 40:
        return peak * (step + 1) / 40
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    model: Speaker,
    lessons: Lessons,
    steps: int,
    size: int,
    peak: float,
    out: Path,
    start: int = 0,
    held: dict | None = None,
    every: float = 240.0,
    device: str = "cpu",
    still: int = 0,
    seconds: float = math.inf,
) -> Iterator[tuple[int, float]]:
    """Yields (step, loss). Saves OUT/state.pt every `every` seconds and at the end. `still`: so many layers at the
    bottom stay as they are. Ends after `steps` or `seconds`, whichever is sooner; the rate falls towards that end."""
    model.to(device).train()
    for layer in model.language.model.layers[:still]:
        layer.requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = [parameter for parameter in learned if parameter.ndim < 2]
    groups = [
        {"params": [parameter for parameter in learned if parameter.ndim >= 2], "weight_decay": 0.01},
        {"params": flat, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    if held is not None:
        optimizer.load_state_dict(held)
    began = saved = time.time()
    for step in range(start, steps):
        done = max(step / steps, (time.time() - began) / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, done, peak)
        packed = lessons.batch(size)
        for name in ("ids", "positions", "segments", "targets", "picture", "regions"):
            value = getattr(packed, name)
            if value is not None:
                setattr(packed, name, value.to(device))
        loss = model(packed, lessons.first_region, len(lessons.head))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if step % AVERAGE == AVERAGE - 1:
            average(learned)
        yield step, float(loss.detach())
        stop = step + 1 == steps or (step % AVERAGE == AVERAGE - 1 and agreed(done >= 1))
        if (stop or time.time() - saved > every) and not rank():
            save(
                out / "state.pt",
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "still": still},
            )
            saved = time.time()
        if stop:
            return


def agreed(mine: bool) -> bool:
    """Whether it is time to stop, as the first of those who train together sees it: none may wait for one that left."""
    if not torch.distributed.is_initialized():
        return mine
    said = torch.tensor(float(mine))
    torch.distributed.broadcast(said, 0)
    return bool(said)


def rank() -> int:
    """This process's number among those that train together (torchrun), 0 when it is alone."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def average(parameters: Sequence[torch.Tensor]) -> None:
    """The mean over the processes that train together. Between two of these each goes its own way: slow neighbours then
    hold nobody up at every step."""
    if torch.distributed.is_initialized():
        with torch.no_grad():
            flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            for parameter, mean in zip(
                parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True
            ):
                parameter.copy_(mean.view_as(parameter))


def save(path: Path, content: dict) -> None:
    """Never leaves half a file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def export(state: dict[str, torch.Tensor], config: dict[str, Any], tokenizer: Tokenizer, out: Path) -> None:
    """OUT as a Llama checkpoint in fp16 with its tokenizer, and the projections beside it."""
    out.mkdir(parents=True, exist_ok=True)
    words = {
        name.removeprefix("language."): tensor.half().contiguous()
        for name, tensor in state.items()
        if name.startswith("language.model.")
    }
    bridges = {name: tensor.half().contiguous() for name, tensor in state.items() if not name.startswith("language.")}
    save_file(words, out / "model.safetensors", metadata={"format": "pt"})
    save_file(bridges, out / "projections.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))


def begin(source: Path, layers: Sequence[int], kept: int, seed: int = 0) -> tuple[Speaker, Tokenizer, dict[str, Any]]:
    """A fresh Speaker cut from the GGUF file (its unpacked copy is kept beside it as whole.pt after the first time)."""
    whole = source.with_name("whole.pt")
    if whole.exists():
        full, state, spelling = torch.load(whole, weights_only=True)
    else:
        full, state, spelling = smollm2(source.parent, source.name)
        torch.save((full, state, spelling), whole)
    tokenizer = Tokenizer.from_str(json.dumps(shorten(spelling, kept)))
    torch.manual_seed(seed)
    cut = cut_down(state, layers, kept, torch.Generator().manual_seed(seed))
    config = config_of(full, len(layers), cut["model.embed_tokens.weight"].shape[0])
    model = Speaker(config)
    missing, unknown = model.language.load_state_dict(cut, strict=False)
    if unknown or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"the checkpoint does not fit: missing {missing}, unknown {unknown}")
    return model, tokenizer, config


def main(arguments: list[str]) -> None:
    """python -m mmchat.train language --source FILE.gguf --out DIR [--features DIR] [--steps N] [--resume]"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train language", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="cached features of composed scenes (the features step)")
    parser.add_argument("--scenes", type=Path, help="the scenes of these features")
    parser.add_argument("--fuser", type=Path, help="the fuser step's safetensors")
    parser.add_argument(
        "--labels", type=Path, help="safetensors: word vectors `things` [80, 384] and `classes` [1000, 384]"
    )
    parser.add_argument("--layers", default="0,1,2,3,4,27,28,29")
    parser.add_argument("--vocabulary", type=int, default=10240)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long even if steps are left")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--still", type=int, default=0, help="layers at the bottom that stay as they are")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--warm", type=Path, help="begin with the weights of this state.pt, from step 0")
    given = parser.parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo" if given.device == "cpu" else "nccl")
    model, tokenizer, config = begin(
        given.source, [int(layer) for layer in given.layers.split(",")], given.vocabulary, given.seed
    )
    start, held = 0, None
    if given.resume and (given.out / "state.pt").exists():
        state = torch.load(given.out / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        start, held = state["step"], state["optimizer"]
    elif given.warm:
        model.load_state_dict(torch.load(given.warm, weights_only=True)["model"])
    given.out.mkdir(parents=True, exist_ok=True)
    seen: list[tuple[Picture, Sights]] = []
    if given.features:
        seen = load_pictures(given.features, given.scenes, given.fuser, given.labels, given.out / "sights.pt")
    lessons = Lessons(tokenizer, given.length, names(), seen, seed=given.seed + start + 7919 * rank())
    began, window = time.time(), []
    for step, loss in train(
        model,
        lessons,
        given.steps,
        given.batch,
        given.rate,
        given.out,
        start,
        held,
        device=given.device,
        still=given.still,
        seconds=60 * given.minutes,
    ):
        window.append(loss)
        if step % 10 == 9 and not rank():
            print(f"step {step + 1} loss {sum(window) / len(window):.3f} {time.time() - began:.0f} s", flush=True)
            window.clear()
    if rank():
        return
    export(model.state_dict(), config, tokenizer, given.out / "checkpoint")
