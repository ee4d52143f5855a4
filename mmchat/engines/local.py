"""See, speak and trace on a model in this process: pictures seen once, the talk's prefix kept from turn to turn."""

from __future__ import annotations

import ctypes
import gc
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mmchat import family, models
from mmchat.engines.searching import Searching
from mmchat.engines.talks import (
    Filled,
    Part,
    Talk,
    agreeing,
    agreement,
    columns_of,
    copied,
    held,
    said,
    size,
    written,
)  # fmt: skip
from mmchat.engines.tokens import Growing, Tokens, tokenizer_folder
from mmchat.family import Family, Footage, Limits, Picture, Said, Sight, Trace
from mmchat.geometry import Box, Mask, Place, Region, outline
from mmchat.nets import archive, plan, trace, weights
from mmchat.nets.model import Encoded, Model, Seen
from mmchat.prompt import Piece, Slot, opened

PICTURES = 4  # whose encoded form is kept
TALKS = 6  # whose words are remembered
PREFIX_BYTES = 1 << 30  # of keys and values that may be kept for all talks together
LEAST_SHARED = 16  # positions that must agree before a prefix is copied for another talk
OF_LEVELS = ("feature norm", "components", "likeness")  # heat maps that any level of features gives
OF_TALKS = ("attention", "logit lens")  # and those for which the talk is read once more


class LocalEngine:
    """A family's model, its tokenizer, what is kept between questions. One caller at a time: the desk sees to that."""

    def __init__(
        self,
        family: Family,
        config: Mapping[str, Any],
        model: Model,
        tokens: Tokens,
        precision: str = "fp32",
        notes: tuple[str, ...] = (),
        context: int | None = None,
    ) -> None:
        if family.speaks is not None:
            family = replace(family, template=family.speaks(config))
        self.family, self.config, self.model, self.tokens = family, config, model, tokens
        self.precision, self.notes = precision, notes
        self.context = min(context or model.context, model.context)  # tokens of a talk that are read at most
        self.encoder_runs = 0
        self._encoded: OrderedDict[str, Encoded] = OrderedDict()
        self._sights: OrderedDict[str, Sight] = OrderedDict()
        self._talks: list[Talk] = []  # the newest last
        marks = {mark: tokens.token(mark) for mark in family.template.stop}
        self._ends = tokens.ends | {index for index in marks.values() if index is not None}
        self._stops = tuple(mark for mark, index in marks.items() if index is None)
        self.searching: Searching | None = None  # for families that answer with pictures of the user's
        self._asks = frozenset(tokens.token(mark) for mark in model.head_marks) - {None}

    @staticmethod
    def open(
        folder: Path | str,
        family: Family,
        precision: str = "auto",
        device: str | None = None,
        context: int | None = None,
        progress: weights.Progress | None = None,
        free: int | None = None,
        otherwise: Mapping[str, Any] | None = None,
    ) -> LocalEngine:
        """The checkpoint in `folder`. ValueError, with cause and remedy, where it is not whole or of another family;
        `plan.NoRoom` before a weight is read where it does not fit into `free` bytes (None: what is free now).

        device: cpu, cuda, auto (spread over the GPUs and then the CPU), disk (the language model's layers stay in
        files and are read when they run). context: tokens that a talk may have, where it should be fewer. otherwise:
        entries of config.json to read otherwise.
        """
        folder = archive.opened(Path(folder))
        check_device(device)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = {**weights.read_config(folder, family.parts), **(otherwise or {})}
        check_family(config, family, folder)
        precision = config.get("quantised", precision) if precision == "auto" else precision
        sources = weights.sources(folder, config, family.parts)
        try:
            with weights.without_memory():
                model = family.build(config)
        except KeyError as error:
            raise ValueError(
                f"{folder}/config.json has no {error}: it is not a checkpoint of {family.title}."
            ) from None
        except ValueError:
            raise
        except Exception as error:  # noqa: BLE001 -- torch and the library raise anything at sizes that are none
            raise ValueError(
                f"{folder}/config.json does not describe a model of {family.title} "
                f"({' '.join(str(error).split())[:200]}): download it again."
            ) from None
        # What brings words brings their tokenizer: a language model, or what an adapter was trained on.
        language = [one.path for one in sources if one.part is not None and one.part.holds in ("language.", "")]
        tokens = Tokens.read(tokenizer_folder(folder, *language), config, family.marks)
        real = (
            "cuda"
            if device == "auto" and torch.cuda.is_available()
            else "cpu"
            if device in ("auto", "disk")
            else device
        )
        name, _, _ = weights.settle_precision(precision, real)
        plan.require(model, family.title, name, device, family.keep, context, free)
        places = plan.offloaded(model) if device == "disk" else device
        notes = weights.load(
            model,
            sources,
            family.keys,
            family.drop,
            family.fold,
            precision,
            family.keep,
            places,
            family.parts,
            progress,
        )
        engine = LocalEngine(family, config, model, tokens, name, notes, context)
        if family.retrieves:
            engine.searching = Searching(family, config, model, tokens, folder)
        return engine

    @staticmethod
    def named(name: str | None = None, precision: str = "auto", device: str | None = None, **more: Any) -> LocalEngine:
        """The checkpoint that models.toml calls so (None: the first one); "auto" is the precision that stands there.

        more: context, progress, free as in `open`.
        """
        entry = models.find(name)
        if lacks := models.unfetched(entry):
            raise ValueError(lacks)
        precision = entry.precision if precision == "auto" else precision
        known = family.load(entry.family)
        return LocalEngine.open(entry.folder, known, precision, device, otherwise=entry.config, **more)

    @property
    def reserved(self) -> frozenset[str]:
        """Texts that would be a mark to the model, whoever wrote them."""
        return self.tokens.reserved

    @property
    def held(self) -> int:
        """Bytes of the parameters in memory: what closing it gives back at least."""
        tensors = {id(one): one for one in (*self.model.parameters(), *self.model.buffers()) if not one.is_meta}
        return sum(one.numel() * one.element_size() for one in tensors.values())

    # see

    @torch.inference_mode()
    def see(self, pictures: tuple[np.ndarray | Footage, ...], regions: tuple[Region, ...]) -> Sight:
        """pictures float32 [3, H, W], clips as their family makes them; regions in the unit square of the fitted
        picture.

        The encoder runs once for the same pictures, whatever is drawn on them.
        """
        digest = hashlib.sha256()
        for picture in pictures:
            kind, values = (picture.kind, picture.values) if isinstance(picture, Footage) else ("", picture)
            digest.update(f"{kind}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values))
        key = digest.hexdigest()
        boxes = tuple(outline(region.place) for region in regions)
        owners = tuple(region.image for region in regions)
        shapes = hashlib.sha256(repr(regions).encode()).hexdigest()  # a box and a line inside it are not the same
        whole = f"{key}/{boxes}/{owners}/{shapes}"
        if whole in self._sights:
            self._sights.move_to_end(whole)
            kept = self._sights[whole]
            return Sight(kept.key, kept.candidates, kept.regions, kept.content, 0, kept.owners)
        runs = int(key not in self._encoded)
        if runs:
            pixels = [self._pixels(picture) for picture in pictures]
            clips = any(isinstance(picture, Footage) for picture in pixels)
            alike = not clips and len({picture.shape for picture in pixels}) == 1  # else one by one
            self._encoded[key] = self.model.encode(torch.stack(pixels) if alike else pixels)
            self.encoder_runs += 1
        self._encoded.move_to_end(key)
        corners = torch.tensor([(box.x0, box.y0, box.x1, box.y1) for box in boxes]).reshape(-1, 4)
        of = torch.tensor(owners, dtype=torch.long)
        seen = self.model.gather_drawn(self._encoded[key], corners, of, regions)
        candidates = tuple(Box(*row) for row in seen.candidates.tolist())
        sight = Sight(whole, candidates, len(boxes), seen, runs, tuple(seen.owners.tolist()))
        self._sights[whole] = sight
        for store in (self._encoded, self._sights):
            while len(store) > PICTURES:
                store.popitem(last=False)
        return sight

    def _pixels(self, picture: np.ndarray | Footage) -> torch.Tensor | Footage:
        """A picture or a clip where the model computes."""
        if isinstance(picture, Footage):
            return replace(picture, values=self._pixels(picture.values))
        return torch.from_numpy(picture).to(self.model.device, self.model.dtype)

    # speak

    def speak(self, prompt: tuple[Piece, ...], sight: Sight, limits: Limits) -> Iterator[Said]:
        """The text as it grows; the last one has done=True. Closing the iterator stops at the next token.

        ValueError where the prompt is longer than the model can read. With limits.cache False all is read again, with
        the same ids.
        """
        talk, parts = self._laid_out(prompt, sight.content)
        goes_on = bool(opened(prompt)[1])
        length = sum(size(part) for part in parts)
        room = self.model.room(length, self.context)
        if room < 1:
            raise ValueError(
                f"The talk has {length} tokens and the model reads at most {self.context}: "
                "shorten the question or start a new talk."
            )
        if self.searching is not None and parts[-1] == self.searching.mark:  # there is nothing to say but a picture
            pictures, notes = self.searching.found(self.inputs(parts), [(length - 1, 0)], limits.pictures)
            counters = {"prefilled_tokens": length, "new_tokens": 0}
            yield Said("", done=True, counters=counters, pictures=pictures, notes=notes)
            return
        known, shared = self._prefix(parts) if limits.cache else (None, 0)
        self._remember(talk)
        choose, growing = chooser(limits), Growing(self.tokens)
        asked: list[torch.Tensor] = []
        most, made, done = min(limits.new_tokens, room), 0, False
        try:
            logits, fed = self._prefill(talk, parts, known, shared)
            while not done:
                if self.searching is not None and limits.readiness != 1.0:
                    logits = logits.clone()  # the model's own may not be written to here
                    logits[self.searching.mark] *= limits.readiness
                index, probability = choose(self.model.allowed(logits, growing.ids, parts))
                made += 1
                done = index in self._ends or made >= most
                if index not in self._ends:
                    growing.add(index, probability)
                if index in self._asks and talk.state is not None:
                    asked.append(talk.state)
                text, pieces, stopped = said(growing, self._stops, done, goes_on)
                done = done or stopped
                talk.text, talk.answer, talk.pieces = text, growing.ids[: len(pieces)], pieces
                candidates, groups = self._located(prompt, sight.content, asked if done else [])
                counters = {"prefilled_tokens": fed, "new_tokens": made}
                pictures, notes = self._retrieved(talk, parts, limits.pictures) if done else ((), ())
                yield Said(text, tuple(pieces), candidates, done, counters, groups, pictures, notes)
                if not done:
                    logits = self._step(talk, index)
        finally:
            if not limits.cache:
                talk.forget()

    def _retrieved(self, talk: Talk, parts: list[Part], most: int) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
        """Pictures of the user's for the marks of a finished answer, and sentences where there are none."""
        if self.searching is None:
            return (), ()
        length = sum(size(part) for part in parts)
        marks = [
            (length + number, start)
            for number, (index, (start, _, _)) in enumerate(zip(talk.answer, talk.pieces, strict=True))
            if index == self.searching.mark
        ]
        return self.searching.found(self.inputs([*parts, *talk.answer]), marks, most) if marks else ((), ())

    @torch.inference_mode()
    def _located(
        self, prompt: tuple[Piece, ...], seen: Seen, asked: list[torch.Tensor]
    ) -> tuple[tuple[Place, ...] | None, tuple[tuple[int, ...], ...]]:
        """What the head finds for the marks of the answer, and which of it is for the k-th; None without a head.

        While the answer grows no mark stands for anything. A box comes before its mask.
        """
        if not self.model.head_marks:
            return None, ()
        if not asked:
            return (), ()
        shown = [piece.index for piece in prompt if isinstance(piece, Slot) and piece.kind == "image"]
        found = self.model.locate(torch.stack(asked), seen, shown[-1] if shown else len(seen.images) - 1)
        candidates: list[Place] = []
        groups: list[list[int]] = [[] for _ in asked]
        for number, (corners, mark) in enumerate(zip(found.boxes.tolist(), found.marks.tolist(), strict=True)):
            places: list[Place] = [Box(*corners)]
            if found.masks is not None and found.masks[number].any():
                places.append(Mask.from_array(found.masks[number].cpu().numpy()))
            groups[mark] += range(len(candidates), len(candidates) + len(places))
            candidates += places
        return tuple(candidates), tuple(map(tuple, groups))

    def _laid_out(self, prompt: tuple[Piece, ...], seen: Seen) -> tuple[Talk, list[Part]]:
        """The prompt as ids and filled slots; where it goes on from a known talk, with the ids that it was made of."""
        prompt, _ = opened(prompt)
        dummy = self.family.template.dummy_space
        if dummy is None:
            dummy = not self.tokens.blank
        ids: list[int | Slot] = []
        start, rest = 0, ""
        best = max(self._talks, key=lambda talk: agreement(talk, prompt), default=None)
        if best is not None and agreement(best, prompt):
            start = len(best.prompt)
            rest = prompt[start - 1][
                len(best.prompt[-1]) :
            ]  # what follows the known prompt: the answer, then what is new
            ids = list(best.ids)
            used, length = written(best, rest)
            ids += best.answer[:used]
            ids += self._ids(rest[length:], dummy_space=False)
            begun = True
        else:
            begun = not self.family.template.late_start
            ids += self.tokens.start if begun else ()
        for number, piece in enumerate(prompt[start:], start):
            if not begun and (not isinstance(piece, Slot) or piece.kind == "typed"):
                ids, begun = [*ids, *self.tokens.start], True
            if not isinstance(piece, Slot):
                before = prompt[number - 1] if number else None
                word = isinstance(before, Slot) and before.kind in self.family.template.words
                ids += self._ids(piece, (dummy and not word) or number == 0)
            elif piece.kind == "typed":
                ids += self.tokens.letters(piece.text)
            else:
                ids.append(piece)
        tokenize = self.tokens.ids
        filled: dict[Slot, Filled] = {}
        parts: list[Part] = []
        for one in ids:
            if isinstance(one, Slot) and one not in filled:
                filled[one] = Filled(one, self._fill(one, seen, tokenize), self.model.beside(one, seen))
            parts.append(filled[one] if isinstance(one, Slot) else one)
        return Talk(prompt, ids), parts

    def _ids(self, text: str, dummy_space: bool) -> list[int]:
        """Ids of a prompt's text, cut as the family's training texts were; only its first part may lack the blank."""
        parts = self.family.template.cut(text)
        return [one for number, part in enumerate(parts) for one in self.tokens.ids(part, dummy_space or number > 0)]

    @torch.inference_mode()
    def _fill(self, slot: Slot, seen: Seen, tokenize: Callable[[str], list[int]]) -> torch.Tensor:
        return self.model.fill(slot, seen, tokenize).to(self.model.device, self.model.dtype)

    def _prefix(self, parts: list[Part]) -> tuple[Talk | None, int]:
        """The kept talk that shares most with `parts` from the start, and how many parts."""
        best, most = None, 0
        for talk in () if self.model.whole else self._talks:
            shared = agreeing(talk.read, parts) if talk.cache is not None else 0
            if shared > most:
                best, most = talk, shared
        # The last part must be read anew: its logits are what is wanted.
        return best, min(most, len(parts) - 1)

    def _remember(self, talk: Talk) -> None:
        """Keep a talk and let the oldest go: a longer form of a known talk takes its place."""
        self._talks = [old for old in self._talks if old.prompt != talk.prompt][-(TALKS - 1) :] + [talk]

    @torch.inference_mode()
    def _prefill(self, talk: Talk, parts: list[Part], known: Talk | None, shared: int) -> tuple[torch.Tensor, int]:
        """Read what is not known yet; logits [V] of the next token and how many positions were read."""
        positions = sum(size(part) for part in parts[:shared])
        config = self.model.language.config
        if known is None or known.cache is None or positions < LEAST_SHARED:
            talk.cache, shared = DynamicCache(config=config), 0
        elif len(known.read) == shared:  # the same talk goes on
            talk.cache, known.cache, known.read = known.cache, None, []
        else:
            talk.cache = copied(known.cache, positions, config)
        inputs = self.inputs(parts[shared:])
        out = self._run(talk, inputs_embeds=inputs, **self.model.told(parts, shared))
        talk.read = list(parts)
        self._make_room(talk)
        return out.logits[0, -1].float(), inputs.shape[1]

    @torch.inference_mode()
    def _step(self, talk: Talk, index: int) -> torch.Tensor:
        """Read one id; logits [V] of the next."""
        ids = torch.tensor([[index]], device=self.model.device)
        try:
            out = self._run(talk, input_ids=ids, **self.model.told([*talk.read, index], len(talk.read)))
        except BaseException:
            talk.forget()  # half a step may be in it
            raise
        talk.read.append(index)
        return out.logits[0, -1].float()

    def _run(self, talk: Talk, **given: Any) -> Any:
        """The language model on what is new in a talk; keeps the last state where a head may ask for it."""
        out = self.model.language(
            **given, past_key_values=talk.cache, use_cache=True, logits_to_keep=1, output_hidden_states=bool(self._asks)
        )
        talk.state = out.hidden_states[-1][0, -1].clone() if self._asks else None
        return out

    def inputs(self, parts: list[Part]) -> torch.Tensor:
        """Vectors [1, T, C] of ids and filled slots."""
        runs: list[torch.Tensor] = []
        ids: list[int] = []
        for part in [*parts, None]:
            if isinstance(part, int):
                ids.append(part)
                continue
            if ids:
                runs.append(self.model.embed(ids))
                ids = []
            if part is not None:
                runs.append(part.vectors)
        return torch.cat(runs)[None]

    def _make_room(self, newest: Talk) -> None:
        """Let go of the oldest keys and values beyond PREFIX_BYTES; the newest talk keeps its own."""
        total = 0
        for talk in reversed(self._talks):
            total += held(talk.cache)
            if talk is not newest and total > PREFIX_BYTES:
                talk.forget()

    # trace

    def trace(
        self, prompt: tuple[Piece, ...], text: str, sight: Sight, want: str, about: Region | str | None = None
    ) -> Trace:
        """A heat map over the fitted picture. want: one of the family's `heats`, or "feature norm: LEVEL" and the like.

        about: a Region for "likeness" (fitted unit square), a phrase of the answer for "attention", words for
        "logit lens".
        """
        seen: Seen = sight.content
        shown = [piece.index for piece in prompt if isinstance(piece, Slot) and piece.kind == "image"]
        picture = about.image if isinstance(about, Region) else shown[-1] if shown else 0
        if want in OF_TALKS:
            return self._inside(prompt, text, seen, want, about, picture)
        kind, _, name = want.partition(": ")
        if kind in seen.levels:
            kind, name = "feature norm", kind
        if kind not in OF_LEVELS:
            given = [one for one in self.family.heats if one in (*OF_LEVELS, *OF_TALKS, *seen.levels)]
            raise ValueError(f"This model gives no heat map {want!r}: choose one of {', '.join(given)}.")
        if not seen.levels:
            raise ValueError("This model keeps no feature maps: choose another heat map.")
        name = name or default_level(seen.levels)
        if name not in seen.levels:
            raise ValueError(f"There is no level {name!r}: choose one of {', '.join(seen.levels)}.")
        level = seen.levels[name][picture]
        if level.shape[0] == 1:  # not features, but a measure of each cell
            return Trace(want, trace.unit(level[0]), f"{name.capitalize()}: most where it is brightest.")
        where = f"{name}, {level.shape[2]} x {level.shape[1]} cells of {level.shape[0]} numbers"
        if kind == "feature norm":
            return Trace(want, trace.norm(level), f"Length of the feature vectors ({where}).")
        if kind == "components":
            return Trace(want, trace.components(level), f"First three principal components as colours ({where}).")
        if not isinstance(about, Region):
            raise ValueError("Likeness is about a region: draw one on the picture first.")
        box = outline(about.place).clipped()
        corners = (box.x0, box.y0, box.x1, box.y1)
        return Trace(want, trace.likeness(level, corners), f"Likeness of each cell to the region ({where}).")

    def _inside(
        self, prompt: tuple[Piece, ...], text: str, seen: Seen, want: str, about: Region | str | None, picture: int
    ) -> Trace:
        """Maps that need the finished talk to be read once more."""
        phrase = about if isinstance(about, str) else ""
        talk, parts = self._laid_out(prompt, seen)
        columns = columns_of(parts, picture)
        if want == "logit lens":
            ids = self.tokens.ids(phrase, dummy_space=True) or self.tokens.ids(text.strip(), dummy_space=True)
            if not ids:
                raise ValueError("The logit lens is about a word: write one, or ask something first.")
            values = trace.lens(self.model.language, self.inputs(parts), ids, columns)
            word = repr(phrase) if phrase else "the answer's words"
            return Trace(
                want,
                trace.unit(self.model.spread(values, seen, picture)),
                f"How much each part of the picture makes the model think {word}.",
            )
        if not text.strip():
            raise ValueError("Attention is that of an answer: ask something first.")
        growing = Growing(self.tokens)
        answer = self._answer_ids(talk.prompt, text)
        for index in answer:
            growing.add(index, 1.0)
        at = growing.text.lower().find(phrase.lower()) if phrase else -1
        if phrase and at < 0 and phrase.lower() in opened(prompt)[1].lower():
            raise ValueError(f"The model was given {phrase!r} to go on from: choose words that it wrote itself.")
        if phrase and at < 0:
            raise ValueError(f"The answer does not say {phrase!r}: choose words of the answer.")
        end = at + len(phrase) if phrase else len(growing.text)
        begins = sum(size(part) for part in parts)
        tokens = [number for number, (from_, to, _) in enumerate(growing.pieces) if to > max(0, at) and from_ < end]
        values = self.model.attention(self.inputs([*parts, *answer]), begins, tokens, columns)
        what = repr(phrase) if phrase else "the answer"
        return Trace(
            want,
            trace.unit(self.model.spread(values, seen, picture)),
            f"Where the model looked while it wrote {what}.",
        )

    def _answer_ids(self, prompt: tuple[Piece, ...], text: str) -> list[int]:
        """The ids that wrote an answer, where it is remembered; else its text's."""
        for talk in reversed(self._talks):
            if talk.prompt == prompt and talk.text == text and talk.answer:
                return list(talk.answer)
        return self.tokens.ids(text, dummy_space=not text.startswith(" "))

    def close(self) -> None:
        """Let go of the model and of all that was kept."""
        self._encoded.clear()
        self._sights.clear()
        self._talks.clear()
        self.searching = None  # it holds the model, too
        del self.model
        give_back()


def give_back() -> None:
    """Hand freed memory to the system: hooks of spread models hold circles, and the allocators keep what they had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library than glibc keeps no such heap
        pass


def check_device(device: str | None) -> None:
    """ValueError for a device that is not known or not here."""
    if device is None or device in ("cpu", "disk", "auto"):
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or not number):
        raise ValueError(f"There is no device {device!r}: choose cpu, cuda, auto or disk.")
    if int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no GPU for the device {device}: choose cpu.")


def check_family(config: Mapping[str, Any], family: Family, folder: Path) -> None:
    """ValueError where a checkpoint says that it is of another family."""
    types = {*family.types, family.dwarf.get("model_type")} - {None}
    found = config.get("model_type")
    if types and found is not None and found not in types:
        raise ValueError(
            f"The checkpoint in {folder} is of the type {found!r}, and {family.title} opens "
            f"{' or '.join(sorted(types - {''}))}: choose the family that it belongs to."
        )


def default_level(levels: Mapping[str, torch.Tensor]) -> str:
    """The level that says most about the picture: after the fuser where there is one, else what the tower gives."""
    return next((name for name in ("after fuser", "vision") if name in levels), next(reversed(levels)))


def chooser(limits: Limits) -> Callable[[torch.Tensor], tuple[int, float]]:
    """A function from logits [V] to the next id and its probability (at temperature 1)."""
    random = torch.Generator().manual_seed(limits.seed)

    def choose(logits: torch.Tensor) -> tuple[int, float]:
        logits = logits.cpu()
        probabilities = logits.softmax(-1)
        if limits.temperature == 0:
            index = int(logits.argmax())
        else:
            sampled = (logits / limits.temperature).softmax(-1)
            if limits.top_p < 1:
                values, order = sampled.sort(descending=True)
                values[values.cumsum(0) - values >= limits.top_p] = 0.0  # the most probable one always stays
                index = int(order[torch.multinomial(values, 1, generator=random)])
            else:
                index = int(torch.multinomial(sampled, 1, generator=random))
        return index, float(probabilities[index])

    return choose
