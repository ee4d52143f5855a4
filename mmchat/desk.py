"""The desk knows the order of the verbs and what is kept between questions.

fit, see, render, speak, read; and trace to look inside. It is handed an engine and imports none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmchat.asking import (
    LONGEST,
    MENTION,
    Ask,
    check,
    check_pictures,
    fitted,
    named_in,
    plain,
    taken,
    usable,
    with_pictures,
    wrong_numbers,
)  # fmt: skip
from mmchat.clip import Clip
from mmchat.dialect import Dropped, Moment, Scene, Span, confidence, home, inspect
from mmchat.family import Engine, Footage, Limits, Picture, Said, Sight, Trace
from mmchat.geometry import KINDS, Place, Placement, Region, outline
from mmchat.prompt import Piece, Slot, Turn, opened

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LONGEST", "MENTION", "Answer", "Ask", "Desk", "Limits", "Turn", "check_pictures", "named_in", "plain"]

PATIENCE = 0.25  # seconds between two looks of somebody who waits: then Stop can reach him too


@dataclass(frozen=True)
class Answer:
    """An answer so far. Places are in the unit square of the upright original.

    `scores[i][j]` is the confidence of `spans[i].places[j]` or None. `raw` is what the model wrote and becomes the next
    assistant turn. `pictures` are files of the user's that the model answers with. `notes` are (name, value):
    encoder_runs, prefilled_tokens, new_tokens, waiting (how many are ahead), hint (a sentence; there may be several).
    """

    text: str
    raw: str
    spans: tuple[Span, ...] = ()
    scores: tuple[tuple[float | None, ...], ...] = ()
    dropped: tuple[Dropped, ...] = ()
    done: bool = False
    notes: tuple[tuple[str, object], ...] = ()
    pictures: tuple[Picture, ...] = ()
    moments: tuple[Moment, ...] = ()  # stretches of a video or a sound
    shown: int = 0  # the picture of the talk that the places are on
    task: str | None = None  # as it was asked


@dataclass(frozen=True)
class Prepared:
    """A question after fit, see and render: what speak and trace take, and how to bring places home."""

    prompt: tuple[Piece, ...]
    sight: Sight
    placements: tuple[Placement, ...]
    shown: int  # the picture that numbers in the answer refer to: that of the regions asked about, else the last one
    hints: tuple[str, ...]

    @property
    def lead(self) -> str:
        """The words of the prompt that the answer begins with: a model that completes does not say them itself."""
        return opened(self.prompt)[1]

    @property
    def placement(self) -> Placement:
        return self.placements[self.shown]


class Desk:
    """One open model and a line of those who wait for it. Made with an engine; imports none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._line: deque[object] = deque()  # who holds the model, then who waits, first come first served
        self._changed = threading.Condition()

    def answer(self, ask: Ask) -> Iterator[Answer]:
        """Answers that grow; the last has done=True. Closing the iterator stops the model at the next token.

        While others are ahead, answers without text tell how many. ValueError, with cause and remedy, where the
        question cannot be asked.
        """
        check(ask)
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            while (ahead := self._ahead(ticket)) > 0:
                yield Answer("", "", notes=(("waiting", ahead),))
            ready = self._prepare(ask)
            speaking = self.engine.speak(ready.prompt, ready.sight, ask.limits)
            try:
                for said in speaking:
                    yield self._read(said, ready, ask)
            finally:
                close = getattr(speaking, "close", None)
                if close is not None:
                    close()
        finally:
            self._leave(ticket)

    def heat(self, ask: Ask, answer: Answer | None, what: str, about: object = None) -> Image.Image:
        """A picture under a heat map `what`, one of the family's `heats`: that of the region, else that of the answer.

        Its info["note"] says what it shows, its info["shown"] which picture of the talk it is.

        about: a Region of the original picture, a phrase, or None.
        """
        from mmchat import paint  # drawing libraries are kept off the path of an answer

        trace, placement, image = self.trace(ask, answer, what, about)
        painted = paint.heat(image, trace.map, placement)
        painted.info["note"] = trace.note
        painted.info["shown"] = next(index for index, one in enumerate(ask.images) if one is image)
        return painted

    def trace(
        self, ask: Ask, answer: Answer | None, what: str, about: object = None
    ) -> tuple[Trace, Placement, Image.Image]:
        """A heat map over the fitted picture, the placement of the picture in it, and the picture."""
        heats = self.engine.family.heats
        if what not in heats:
            known = f"choose one of {', '.join(heats)}" if heats else "choose another model"
            raise ValueError(f"This model has no heat map {what!r}: {known}.")
        check(replace(ask, turns=(*ask.turns[:-1], replace(ask.turns[-1], text="-"))), alone=True)
        with self._held():
            # What was answered could be asked; before that a task may still lack its words.
            asked = answer is not None or bool(ask.turns[-1].text.strip())
            ready = self._prepare(replace(ask, task=ask.task if asked else None))
            if isinstance(about, Region):
                about = fitted(about, ready.placements[about.image])
            elif about is not None and not isinstance(about, str):
                raise ValueError(f"A heat map is about a region or a phrase, not {type(about).__name__}.")
            shown = about.image if isinstance(about, Region) else ready.shown
            image = ask.images[shown]
            if isinstance(image, Clip):
                raise ValueError(f"A heat map lies over a picture, not over a {image.kind}: ask about a picture.")
            raw = answer.raw.removeprefix(ready.lead) if answer is not None else ""
            trace = self.engine.trace(ready.prompt, raw, ready.sight, what, about)
        return trace, ready.placements[shown], image

    def reread(self, answer: Answer, size: tuple[int, int], most: int = 9) -> tuple[tuple[str, Answer], ...]:
        """An answer as the family reads it and in other frames and conventions, by name, the likeliest first.

        size: (width, height) of the upright picture. Ways that give the same places count once. () where the answer
        has no numbers that could be meant otherwise.
        """
        family = self.engine.family
        seen = family.frame(self.engine.config).place(size).fitted
        usual = tuple(span.places for span in answer.spans)
        known, found = [usual], [("as this model writes", answer)]
        views = inspect(family.reading(answer.task), answer.raw, size, seen)  # type: ignore[arg-type]
        for view in sorted(views, key=lambda view: view.order != "corners"):  # other orders are rare: behind the rest
            places = tuple(span.places for span in view.answer.spans)
            if places and not any(_alike(places, other) for other in known):
                known.append(places)
                read = view.answer
                kept = replace(
                    answer, text=read.text, spans=read.spans, scores=(), dropped=read.dropped, moments=read.moments
                )
                found.append((view.name, kept))
        return tuple(found[:most]) if len(found) > 1 else ()

    def open(self, engine: Engine) -> None:
        """Change the model: waits for the answer that is being written, then closes the old engine."""
        with self._held():
            old, self.engine = self.engine, engine
            if old is not engine:
                old.close()

    def switch(self, make: Callable[[], Engine], back: Callable[[], Engine] | None = None) -> None:
        """Close the open model first and make the new one in the room that it leaves; whoever asks meanwhile waits.

        Where the new one fails, `back` opens the old one again; what `make` raised is raised then.
        """
        with self._held():
            self.engine.close()
            try:
                self.engine = make()
            except BaseException:
                if back is not None:
                    self.engine = back()
                raise

    def close(self) -> None:
        """Free the model. The desk answers no more."""
        with self._held():
            self.engine.close()

    # Who may use the model: a line, not a lock, so that nobody is overtaken and a waiting answer can be closed.

    def _ahead(self, ticket: object) -> int:
        """How many are before this ticket, after waiting a moment for it to become 0."""
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] is ticket, PATIENCE)
            return self._line.index(ticket)

    def _leave(self, ticket: object) -> None:
        with self._changed:
            self._line.remove(ticket)
            self._changed.notify_all()

    @contextmanager
    def _held(self) -> Iterator[None]:
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            while self._ahead(ticket) > 0:
                pass
            yield
        finally:
            self._leave(ticket)

    # The verbs before and after speaking.

    def _prepare(self, ask: Ask) -> Prepared:
        """fit, see, render."""
        family = self.engine.family
        pictures = sum(not isinstance(image, Clip) for image in ask.images)
        frame = family.frame(self.engine.config).among(pictures)
        fits = [self._footage(image) if isinstance(image, Clip) else frame.fit(image) for image in ask.images]
        placements = tuple(placement for _, placement in fits)
        hints = list(getattr(self.engine, "notes", ()))
        turns = with_pictures(ask)
        drawn = [region for turn in turns for region in turn.regions]
        named = named_in(turns, family, ask.task)
        regions = []
        for number, region in enumerate(drawn, 1):
            if region.image < len(ask.images) and isinstance(ask.images[region.image], Clip):
                raise ValueError(f"Region {number} is on no picture, but on a clip: draw it on a picture.")
            kind, changed = taken(region, number, family, placements)
            inside, cut = usable(kind, number, placements)
            regions.append(inside)
            hints += [*(changed if number in named else ()), *cut]
        hints += wrong_numbers(turns, len(drawn))
        sight = self.engine.see(tuple(picture for picture, _ in fits), tuple(regions))
        waiting = iter(regions)
        # Where users' words are tokenized as letters, only what ends a turn is left to be broken.
        own = frozenset() if family.template.typed else getattr(self.engine, "reserved", frozenset())
        reserved = (*family.template.stop, *own)
        turns = [
            replace(
                turn,
                text=plain(turn.text, reserved) if turn.role == "user" else turn.text,
                regions=tuple(next(waiting) for _ in turn.regions),
            )
            for turn in turns
        ]

        def mention(number: int, region: Region) -> tuple[Piece, ...]:
            if not family.takes & set(KINDS):  # said to another model, earlier in the talk
                return (f"@{number}",)
            scene = Scene(sight.candidates, placements[region.image].fitted)
            return family.mention(number, region, family.dialect, scene)

        prompt = family.template.render(turns, mention, ask.task)
        pictures = [piece.index for piece in prompt if isinstance(piece, Slot) and piece.kind == "image"]
        about = {drawn[number - 1].image for number in named} & set(pictures)
        last = pictures[-1] if pictures else len(placements) - 1
        return Prepared(prompt, sight, placements, about.pop() if len(about) == 1 else last, tuple(hints))

    def _footage(self, clip: Clip) -> tuple[Footage, Placement]:
        """A video or a sound as the family's model takes it. ValueError where it takes none."""
        family = self.engine.family
        if family.clip is None or clip.kind not in family.takes:
            raise ValueError(f"{family.title} takes no {clip.kind}s: choose another model, or ask about a picture.")
        values = family.clip(self.engine.config, clip)
        return Footage(clip.kind, values), Placement(clip.size, clip.size, (1.0, 1.0), (0.0, 0.0))

    def _read(self, said: Said, ready: Prepared, ask: Ask) -> Answer:
        """read, and home."""
        said = after(ready.lead, said)
        candidates = ready.sight.candidates if said.candidates is None else said.candidates
        scene = Scene(candidates, ready.placement.fitted, said.groups)
        grounded = home(self.engine.family.reading(ask.task).read(said.text, scene, said.done), ready.placement)
        scores = tuple(confidence(span, said.pieces) for span in grounded.spans)
        counters = {"encoder_runs": ready.sight.encoder_runs, **said.counters}
        hints = (*ready.hints, *said.notes)
        notes: list[tuple[str, object]] = [*counters.items(), *(("hint", hint) for hint in hints)]
        most = ask.limits.new_tokens
        if said.done and said.counters.get("new_tokens", 0) >= most:
            notes.append(("hint", f"The answer was cut off after {most} tokens: raise the limit."))
        return Answer(
            grounded.text,
            said.text,
            grounded.spans,
            scores,
            grounded.dropped,
            said.done,
            tuple(notes),
            said.pictures,
            grounded.moments,
            ready.shown,
            ask.task,
        )


def _alike(one: tuple[tuple[Place, ...], ...], other: tuple[tuple[Place, ...], ...]) -> bool:
    """Whether two readings show the same places, to a fiftieth of the picture."""
    first = [outline(place) for group in one for place in group]
    second = [outline(place) for group in other for place in group]
    return len(first) == len(second) and all(
        max(abs(a.x0 - b.x0), abs(a.y0 - b.y0), abs(a.x1 - b.x1), abs(a.y1 - b.y1)) < 0.02
        for a, b in zip(first, second, strict=True)
    )


def after(lead: str, said: Said) -> Said:
    """What was said with the words in front that it goes on from."""
    moved = len(lead)
    return replace(
        said,
        text=lead + said.text,
        pieces=tuple((start + moved, end + moved, probability) for start, end, probability in said.pieces),
        pictures=tuple(replace(picture, at=picture.at + moved) for picture in said.pictures),
    )
