"""A talk becomes words and slots. Prompts are built from pieces and never searched for marks: what a user types stays
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmchat.geometry import Region


@dataclass(frozen=True)
class Turn:
    """One turn of a talk. `text` may say @1, @2 ... (counted over `regions` of the whole talk). `images`: indices of
    pictures shown with it; `kinds`: what each of them is, "image", "video" or "sound" (empty: all are pictures).
    `task`: how an earlier turn was asked; the last one is asked as the talk says.
    """

    role: Literal["user", "assistant"]
    text: str
    regions: tuple[Region, ...] = ()
    images: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    task: str | None = None


@dataclass(frozen=True)
class Slot:
    """A place in the prompt for vectors: "image", "video" or "sound" index (they are counted together), "region" index
    (-1: all candidates), "clue" (about `text`, the words of the user's turn `index`). Two kinds hold no vectors:
    "typed" words of the user in which every mark is letters, "lead" the words that a prompt ends with and an answer
    begins with (see `opened`).
    """

    kind: Literal["image", "video", "sound", "region", "clue", "typed", "lead"]
    index: int = 0
    text: str = ""


Piece = str | Slot
Mention = Callable[[int, Region], tuple[Piece, ...]]

_FIELD = re.compile(r"\{(text|image|video|sound|clue|candidates)\}")
# @1, or as other systems' users write it: <region1>, [region0] (from 0), <boxes> (all)
_MENTION = re.compile(r"(?<![\w@])@(\d{1,3})(?!\w)|<region(\d{1,3})>|\[region(\d{1,3})\]|<boxes>")
_SIGNS = re.compile(r"[<>@]")


@dataclass(frozen=True)
class Task:
    """A way of asking that the model was trained on. `pattern` holds {text}: the user's words, or the regions where it
    needs one. Where it also holds {image}, the turn's pictures stand there instead of where the template puts them.
    What stands behind {answer} is the beginning of the answer, which the model goes on with.

    `needs`: "" nothing (the user may leave the text empty), "phrase" words, "region" a drawn region.
    """

    name: str
    label: str
    pattern: str = "{text}"
    needs: Literal["", "phrase", "region"] = "phrase"


@dataclass(frozen=True)
class Template:
    """How a family lays out a talk: patterns, not code.

    `user` and `assistant` hold {text}; `first` stands in for `user` in the first turn of the talk (a system text inside
    it, no separator
    before it). A prompt that ends with a user's turn ends with what stands before {text} in `assistant`, less spaces:
    the answer's first
    token brings its own; `opening` overrides that. `image` says how each picture of a turn stands to the turn's text:
    what is before
    {text} goes in front of it, picture by picture, the rest behind. {clue} and {candidates} put in their slots.
    `assistant` None: a form for one question only, that cannot hold an answer: of a talk it shows the last one alone,
    with all pictures.
    `dummy_space`: whether a text after a slot is tokenized like the start of a text (SentencePiece then puts a space in
    front of it); None: as the tokenizer does behind a mark. `words`: kinds of slots that stand for a word inside a
    sentence: never after those.
    `cuts`: texts at which a prompt is cut besides, wherever they stand: they and what is between them are tokenized
    each for itself. `typed`: whether the user's words stand in slots of their own, where `</s>` or `<r3>` is
    tokenized as letters: for models whose marks are tokens and may be written by pattern, mention and the model's
    answers alone.
    `late_start`: whether the ids that begin a prompt stand before its first text, behind pictures that come before it.
    `leaning`: for models that were trained on short talks, a regular expression of the questions that lean on what was
    said before: these are shown with the exchange that they lean on, all others alone, with the pictures.
    `video` and `sound` say of these what `image` says of pictures; `order` is how a turn's kinds follow one another.
    """

    system: str = ""
    user: str = "{text}"
    assistant: str | None = "{text}"
    image: str = "{image}\n{text}"
    first: str | None = None
    opening: str | None = None
    stop: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = (Task("free", "Ask freely"),)
    dummy_space: bool | None = True
    cuts: tuple[str, ...] = ()
    typed: bool = False
    late_start: bool = False
    leaning: str | None = None
    words: frozenset[str] = frozenset()
    video: str = ""
    sound: str = ""
    order: tuple[str, ...] = ("image", "video", "sound")

    def task(self, name: str) -> Task:
        """The task of that name; ValueError with the known ones otherwise."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"no task {name!r} here: choose one of {', '.join(task.name for task in self.tasks)}")

    def render(self, turns: Sequence[Turn], mention: Mention, task: str | None = None) -> tuple[Piece, ...]:
        """The whole talk as pieces. `mention(number, region)` gives what stands for @number; `task` wraps the last user
        turn.
        """
        regions = [region for turn in turns for region in turn.regions]
        last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=-1)
        seen, messages, lead = 0, [], ""
        shown, images = self._shown(turns, last), ()
        slots = {slot.index: slot for turn in turns for slot in _slots(turn)}
        for index, turn in enumerate(turns):
            if index not in shown:
                seen, images = seen + len(turn.regions), (*images, *turn.images)
                continue
            front, text = "", turn.text
            shows = sorted(
                (slots[one] for one in (*images, *turn.images)), key=lambda slot: self.order.index(slot.kind)
            )
            own = range(seen + 1, seen + 1 + len(turn.regions)) or range(1, seen + 1)
            seen += len(turn.regions)
            if task is not None and index == last:
                front, text, begun = _asked(self.task(task), text, own, len(regions))
                lead = led(_mentioned(begun, regions, mention, self.typed))
            elif turn.role == "user" and index + 1 < len(turns):
                front, text = self._asked_before(turn, turns[index + 1].text, own, regions, mention)
            # A model's earlier answer is fed back as it was: only the user's words can point at regions.
            front, pieces = (
                _mentioned(part, regions, mention, self.typed) if turn.role == "user" else (part,)
                for part in (front, text)
            )
            between = () if front else shows
            placed = tuple(piece for one in shows for piece in self.shown(one)) if front else ()
            messages.append((turn.role, joined((*front, *placed, *self.beside(pieces, between)))))
            images = ()
        pieces = self.lay_out(messages)
        return (*pieces, Slot("lead", 0, lead)) if lead else pieces

    def _asked_before(
        self, turn: Turn, answer: str, own: range, regions: Sequence[Region], mention: Mention
    ) -> tuple[str, str]:
        """What an earlier turn asked, in its task's words (before the pictures, and the rest). Those that its answer
        begins with are in the answer.
        """
        if turn.task not in [task.name for task in self.tasks]:  # none, or one of another checkpoint
            return "", turn.text
        front, text, begun = _asked(self.task(turn.task), turn.text, own, len(regions))
        lead = led(_mentioned(begun, regions, mention, self.typed)).lstrip()
        return front, text if answer.startswith(lead) else text + begun

    def _shown(self, turns: Sequence[Turn], last: int) -> frozenset[int]:
        """The turns that the model is shown: all, unless the template holds one or says that questions stand alone."""
        if self.assistant is None and last >= 0:
            return frozenset(range(last, len(turns)))
        if self.leaning is None or last < 0:
            return frozenset(range(len(turns)))
        before = last
        while before > 0 and (turns[before].role != "user" or re.match(self.leaning, turns[before].text)):
            before -= 1
        first = range(before, min(before + 2, last))
        return frozenset((*first, *range(last, len(turns))))

    def beside(self, text: tuple[Piece, ...], images: Sequence[int | Slot]) -> tuple[Piece, ...]:
        """A turn's text with its pictures placed as `image` says, its clips as `video` and `sound` say."""
        slots = [Slot("image", one) if isinstance(one, int) else one for one in images]
        halves = [getattr(self, slot.kind).partition("{text}")[::2] for slot in slots]
        before = [piece for slot, (front, _) in zip(slots, halves, strict=True) for piece in _placed(front, slot)]
        after = [piece for slot, (_, behind) in zip(slots, halves, strict=True) for piece in _placed(behind, slot)]
        return joined((*before, *text, *after))

    def shown(self, image: Slot) -> tuple[Piece, ...]:
        """A picture or a clip with its marks, as it stands inside a sentence."""
        return joined(_placed(getattr(self, image.kind).partition("{text}")[0].strip(), image))

    def lay_out(self, messages: Sequence[tuple[str, tuple[Piece, ...]]]) -> tuple[Piece, ...]:
        """Messages (role, pieces) in this template's order; ends open for the model's answer when the last one is the
        user's.

        An assistant's message without pieces counts as not yet said. ValueError where the template cannot hold an
        answer.
        """
        pieces: list[Piece] = [self.system]
        asked, open_end = 0, False
        for index, (role, text) in enumerate(messages):
            if role == "user":
                pattern = self.first if index == 0 and self.first is not None else self.user
                pieces += _filled(pattern, text=text, clue=(Slot("clue", asked, _words(text)),))
                asked, open_end = asked + 1, True
            elif not any(text):
                pieces.append(self.cue())
                open_end = False
            else:
                if self.assistant is None:
                    raise ValueError(
                        "this template holds one question and no answer: start a new talk or choose another template"
                    )
                pieces += _filled(self.assistant, text=text)
                open_end = False
        if open_end:
            pieces.append(self.cue())
        return joined(pieces)

    def cut(self, text: str) -> list[str]:
        """A text of the prompt in the parts that are tokenized each for itself: one, unless the template has `cuts`."""
        if not self.cuts:
            return [text] if text else []
        return [part for part in re.split(f"({'|'.join(map(re.escape, self.cuts))})", text) if part]

    def cue(self) -> str:
        """What a prompt ends with, so that the model answers next."""
        if self.opening is not None:
            return self.opening
        return "" if self.assistant is None else self.assistant.partition("{text}")[0].rstrip(" ")


def joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbouring texts made one, empty ones left out."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return tuple(out)


def led(pieces: Iterable[Piece]) -> str:
    """The words of pieces that an answer begins with. ValueError where there are vectors: they cannot be read."""
    words = [piece if isinstance(piece, str) else piece.text for piece in pieces]
    if not all(words):
        raise ValueError("an answer cannot begin with a region's vector: write it before {answer} in the task")
    return "".join(words)


def opened(prompt: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], str]:
    """A prompt with its lead as words like all others, and that lead less blanks in front, which the answer begins with
    ("" where it has none).
    """
    if not prompt or not isinstance(prompt[-1], Slot) or prompt[-1].kind != "lead":
        return prompt, ""
    return joined((*prompt[:-1], prompt[-1].text)), prompt[-1].text.lstrip()


def encode(
    pieces: Iterable[Piece], tokenize: Callable[[str], list[int]], start: Sequence[int] = ()
) -> list[int | Slot]:
    """Token ids with the slots between: every text is tokenized for itself (`tokenize` adds no special ids), `start`
    stands in front once.
    """
    out: list[int | Slot] = list(start)
    for piece in pieces:
        out += [piece] if isinstance(piece, Slot) else tokenize(piece)
    return out


def _slots(turn: Turn) -> list[Slot]:
    """What a turn shows."""
    kinds = turn.kinds or ("image",) * len(turn.images)
    return [Slot(kind, index) for kind, index in zip(kinds, turn.images, strict=True)]  # type: ignore[arg-type]


def _placed(pattern: str, slot: Slot) -> list[Piece]:
    """A pattern with the one thing that is shown put in."""
    return _filled(pattern, **{slot.kind: (slot,)})


def _filled(pattern: str, **fields: tuple[Piece, ...]) -> list[Piece]:
    """A pattern with its fields put in; a filling is never searched for fields again."""
    fields.setdefault("candidates", (Slot("region", -1),))
    out: list[Piece] = []
    for index, part in enumerate(_FIELD.split(pattern)):
        if index % 2 == 0:
            out.append(part)
        elif part in fields:
            out += fields[part]
        else:
            raise ValueError(f"the pattern {pattern!r} names {{{part}}}, which this place of a template does not have")
    return out


def _asked(task: Task, text: str, own: range, known: int) -> tuple[str, str, str]:
    """The user's words in the task's pattern: what stands before the pictures ("" where the pattern has no place for
    them), the rest, and the beginning of the answer. Where it needs a region and no @number is said, this turn's own
    regions stand in.
    """
    text = text.strip()
    if task.needs == "region" and not any(_regions(match, known) for match in _MENTION.finditer(text)):
        if not own:
            raise ValueError(f"the task {task.label!r} is about a region: draw one first")
        text = " ".join([*(f"@{number}" for number in own), *([text] if text else [])])
    if task.needs == "phrase" and not text:
        raise ValueError(f"the task {task.label!r} needs some words: write what to look for or ask")
    # The pattern is cut before it is filled: what the user types is never taken for a place.
    asked, _, begun = task.pattern.partition("{answer}")
    front, _, rest = ("", "", asked) if "{image}" not in asked else asked.partition("{image}")
    return front.replace("{text}", text), rest.replace("{text}", text), begun.replace("{text}", text)


def _words(text: Iterable[Piece]) -> str:
    """What a turn says, without slots for vectors; what was typed is without the signs that a mark would need."""
    said = (
        _SIGNS.sub(" ", piece.text) if isinstance(piece, Slot) and piece.kind == "typed" else piece for piece in text
    )
    return "".join(piece for piece in said if isinstance(piece, str)).strip()


def _regions(match: re.Match[str], known: int) -> tuple[int, ...]:
    """The numbers, from 1, of the regions that a mention names; none where it names one that does not exist."""
    if match.group() == "<boxes>":
        return tuple(range(1, known + 1))
    number = int(match[3]) + 1 if match[3] else int(match[1] or match[2])
    return (number,) if 1 <= number <= known else ()


def mentioned(text: str, known: int) -> tuple[int, ...]:
    """The numbers, from 1, of the `known` regions that a text names, however it is written, each once."""
    numbers = (number for match in _MENTION.finditer(text) for number in _regions(match, known))
    return tuple(dict.fromkeys(numbers))


def unknown_mentions(text: str, known: int) -> list[str]:
    """Each mention of a region in `text`, as it is written, that none of `known` regions answers to, once."""
    unknown = (match.group() for match in _MENTION.finditer(text) if not _regions(match, known))
    return list(dict.fromkeys(unknown))


def _mentioned(text: str, regions: Sequence[Region], mention: Mention, typed: bool = False) -> tuple[Piece, ...]:
    """@1, @2 ... turned into what the family says for them; an @number that no region has stays text. `typed`: all else
    in slots.
    """

    def own(words: str) -> Piece:
        return Slot("typed", 0, words) if typed and words else words

    out: list[Piece] = []
    end = 0
    for match in _MENTION.finditer(text):
        numbers = _regions(match, len(regions))
        if numbers:
            out.append(own(text[end : match.start()]))
            for place, number in enumerate(numbers):
                out += [*([" "] if place else []), *mention(number, regions[number - 1])]
            end = match.end()
    return joined((*out, own(text[end:])))
