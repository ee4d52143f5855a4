"""What happens when a button is pressed, without a widget: questions begin, grow and settle; heat maps are made.

Each step takes and gives plain values (a `Surface`, a tuple of `Exchange`), so that it can be tested without a page.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

from PIL import Image

from mmchat import paint
from mmchat.clip import Clip
from mmchat.desk import LONGEST, MENTION, Answer, Ask, Desk, Limits, Turn, named_in
from mmchat.geometry import Region, open_image
from mmchat.ui import reel as reels
from mmchat.ui.canvas import Sheet, Surface, regions_of, sheets_of, shown_on
from mmchat.ui.reel import Reel
from mmchat.ui.words import Exchange, Talk

PAUSE = 0.05  # seconds between two updates of the page: each one carries the whole talk
GLANCE = 0.2  # seconds between two looks at a model that is being opened
LIVELIER = 0.6  # temperature of a second try, which would else say the same again


def picture_of(surface: Surface | None) -> Image.Image:
    """The picture that is shown, upright RGB; ValueError where there is none or it cannot be read."""
    sheets = sheets_of(surface)
    assert surface is not None
    return opened(sheets[min(shown_on(surface), len(sheets) - 1)])


def opened(sheet: Sheet) -> Image.Image:
    assert sheet.image is not None
    return open_image(sheet.image.path)


def asked_about(desk: Desk, surface: Surface | None) -> tuple[list[Sheet], dict[int, Region]]:
    """The pictures that a question is about, and the regions drawn on these by the number on their badge.

    All pictures where the open model takes several, else the one that is shown.
    """
    sheets = sheets_of(surface)
    assert surface is not None
    drawn = regions_of(surface)
    if len(sheets) == 1 or "several pictures" in desk.engine.family.takes:
        return sheets, drawn
    shown = shown_on(surface)
    own = {number: replace(region, image=0) for number, region in drawn.items() if region.image == shown}
    return [sheets[shown]], own


def goes_on(talk: Talk, digests: tuple[str, ...]) -> bool:
    """Whether the talk is about these pictures: its own, in its order, and new ones behind them."""
    return bool(talk) and talk[-1].pictures == digests[: len(talk[-1].pictures)]


def sheets_under(surface: Surface | None, exchange: Exchange) -> list[Sheet]:
    """The pictures of an exchange, found on the surface; ValueError where one is there no more."""
    there = {sheet.key: sheet for sheet in sheets_of(surface)}
    if not all(digest in there for digest in exchange.pictures):
        raise ValueError("The picture of this talk is no longer here: bring it back, or begin a new chat.")
    return [there[digest] for digest in exchange.pictures]


def shown_in(surface: Surface | None, reel: Reel | None, exchange: Exchange) -> tuple[Image.Image | Clip, ...]:
    """The pictures and the clip of an exchange, opened; ValueError where one is there no more."""
    clip = reels.checked(reel, frozenset(reels.KINDS))
    if exchange.clip and (clip is None or clip.key != exchange.clip):
        raise ValueError("The clip of this talk is no longer here: bring it back, or begin a new chat.")
    pictures = tuple(digest for digest in exchange.pictures if digest != exchange.clip)
    there = {}
    if pictures:
        there = {sheet.key: sheet for sheet in sheets_under(surface, replace(exchange, pictures=pictures))}
    return tuple(
        opened(there[digest]) if digest in there else reels.opened(clip.file.path, clip.key)  # type: ignore[union-attr]
        for digest in exchange.pictures
    )


def begin(
    desk: Desk, surface: Surface | None, talk: Talk, text: str, task: str | None, reel: Reel | None = None
) -> Talk:
    """The talk with a new question at its end, waiting for its answer. ValueError where it cannot be asked.

    Another picture begins a new talk, one that is added comes with the question; another model goes on with the talk.
    A question that failed is not kept: the model has not seen it.
    """
    if talk and talk[-1].running:
        raise ValueError("An answer is still being written: wait for it or press Stop.")
    clip = reels.checked(reel, desk.engine.family.takes)
    alone = clip is not None and (surface is None or surface.image is None)
    sheets, drawn = ([], {}) if alone else asked_about(desk, surface)
    for sheet in sheets:
        opened(sheet)  # a sentence where a file is gone or broken
    selected = surface.selected if surface is not None else None
    text = (text or "").strip()
    if len(text) > LONGEST:
        raise ValueError(f"The question has {len(text)} characters, at most {LONGEST} are taken: shorten it.")
    clips = () if clip is None else (clip.key,)
    digests, model = (*(sheet.key for sheet in sheets), *clips), desk.engine.family.name
    if not goes_on(talk, digests):
        talk = ()
    talk = tuple(exchange for exchange in talk if exchange.answer is not None)
    fresh = range(len(talk[-1].pictures) if talk else 0, len(digests))
    tasks = desk.engine.family.template.tasks
    task = task if any(task == known.name for known in tasks) else None  # another model may have been opened meanwhile
    asked = desk.engine.family.template.task(task) if task else None
    if asked and text and "{text}" not in asked.pattern:
        asked = task = None  # this way of asking has no place for words, and what was written must not be lost
    needs = asked.needs if asked else "phrase"
    shown = text
    if needs == "region" and not MENTION.search(text) and selected in drawn:
        shown = f"@{selected} {text}".strip()
    if not shown and needs == "phrase":
        raise ValueError("The question is empty: write what you want to know or find.")
    if needs == "region" and not drawn:
        raise ValueError("This asks about a region and none is drawn: drag a box on the picture first.")
    known = [region for exchange in talk for region in exchange.question.regions]
    words, new = renumbered(shown, drawn, known)
    turn = Turn("user", words, new, images=tuple(fresh))
    seen = {} if clip is None else {"clip": clip.key, "seconds": clip.seconds}
    talk = (*talk, Exchange(turn, shown, digests, model, task, key=secrets.token_hex(8), **seen))
    named_in(list(turns_of(talk)), desk.engine.family, task)  # refused while the words still stand in their box
    return talk


def renumbered(text: str, drawn: dict[int, Region], known: list[Region]) -> tuple[str, tuple[Region, ...]]:
    """@numbers of the surface turned into numbers over the talk, and the regions that are new in it.

    ValueError for a number without a region.
    """
    new = [region for _, region in sorted(drawn.items()) if region not in known]
    every = [*known, *new]

    def number(match: re.Match[str]) -> str:
        region = drawn.get(int(match[1]))
        if region is None:
            have = ", ".join(f"@{one}" for one in sorted(drawn)) or "none yet"
            raise ValueError(f"There is no region @{match[1]} on the picture (drawn: {have}): draw it or name another.")
        return f"@{every.index(region) + 1}"

    return MENTION.sub(number, text), tuple(new)


def turns_of(talk: Talk) -> tuple[Turn, ...]:
    """The talk as the model reads it: as it was asked, its own earlier answers raw, with the numbers it wrote, and the
    last question.

    Of another family's talk the clean words: its tasks and numbers would mean other things, or nothing.
    """
    turns: list[Turn] = []
    for exchange in talk[:-1]:
        answer = exchange.answer
        same = exchange.model == talk[-1].model
        words = "" if answer is None else answer.raw if same else answer.text
        turns += [replace(exchange.question, task=exchange.task if same else None), Turn("assistant", words)]
    return (*turns, talk[-1].question)


def opening(
    open_model: Callable[[str, str, Callable[[int, int], None]], object], name: str, precision: str
) -> Iterator[float]:
    """Opens a model in a thread of its own and gives the share that was read, now and then; raises what it raised."""
    share = [0.0]

    def progress(done: int, total: int) -> None:
        share[0] = done / max(1, total)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(open_model, name, precision, progress)
        while not wait([working], GLANCE).done:
            yield share[0]
        working.result()
    yield 1.0


def speak(
    desk: Desk, surface: Surface | None, talk: Talk, limits: Limits | None = None, reel: Reel | None = None
) -> Iterator[Talk]:
    """The talk as its last answer grows, one step in PAUSE seconds and always the last. Closing it stops the model."""
    if not talk or not talk[-1].running:
        return
    exchange = talk[-1]
    images, limits = shown_in(surface, reel, exchange), limits or Limits()
    if exchange.attempt:
        limits = replace(limits, temperature=max(limits.temperature, LIVELIER), seed=limits.seed + exchange.attempt)
    answers = desk.answer(Ask(images, turns_of(talk), exchange.task, limits))
    shown_at = 0.0
    try:
        for answer in answers:
            if answer.done or time.monotonic() - shown_at >= PAUSE:
                shown_at = time.monotonic()
                yield (*talk[:-1], replace(exchange, answer=answer))
    finally:
        close = getattr(answers, "close", None)
        if close is not None:
            close()


def settled(talk: Talk, why: str = "stopped") -> Talk:
    """The talk with nothing left to wait for."""
    return (*talk[:-1], talk[-1].settled(why)) if talk else talk


def again(talk: Talk) -> Talk:
    """The talk with its last question asked once more."""
    if not talk or talk[-1].running:
        raise ValueError("There is no finished answer to try again: ask something first.")
    last = talk[-1]
    return (*talk[:-1], replace(last, answer=None, ended="", attempt=last.attempt + 1, key=secrets.token_hex(8)))


def heat(
    desk: Desk, surface: Surface | None, talk: Talk, kind: str | None, about: str, reel: Reel | None = None
) -> Image.Image:
    """A picture under a heat map; its info["picture"] is its digest.

    about: "" nothing (or the selected region), "@1" a region, or a phrase. The picture is that of the region, else the
    one that is shown. Where the talk is not about it, it is looked at alone.
    """
    sheets = sheets_of(surface)
    assert surface is not None
    if not kind:
        raise ValueError("This model has no heat maps: open another one in the Model tab.")
    drawn = regions_of(surface)
    about = (about or "").strip()
    match = MENTION.fullmatch(about)
    if match and int(match[1]) not in drawn:
        raise ValueError(f"There is no region {about} on the picture: draw it, or leave the field empty.")
    subject = drawn[int(match[1])] if match else about or drawn.get(surface.selected or 0)
    sheet = sheets[subject.image if isinstance(subject, Region) else shown_on(surface)]
    if talk and talk[-1].picture == sheet.key and talk[-1].model == desk.engine.family.name:
        last, turns = talk[-1], turns_of(talk)
        images = shown_in(surface, reel, last)
        at, task, answer = last.pictures.index(sheet.key), last.task, last.answer
    else:
        turns, images, at, task, answer = (Turn("user", "", images=(0,)),), (opened(sheet),), 0, None, None
    if isinstance(subject, Region):
        subject = replace(subject, image=at)
    painted = desk.heat(Ask(images, turns, task), answer, kind, subject)
    painted.info["picture"] = sheet.key
    return painted


def last_answered(talk: Talk) -> Exchange | None:
    """The newest exchange that has an answer, whole or stopped."""
    return next((exchange for exchange in reversed(talk) if exchange.answer is not None), None)


def last_answer(talk: Talk) -> Answer | None:
    """The newest answer there is, whole or stopped."""
    last = last_answered(talk)
    return None if last is None else last.answer


def sheet_of_answer(surface: Surface | None, talk: Talk) -> Sheet | None:
    """The picture that the newest answer's places are on; None where there is no answer or it lies there no more."""
    last = last_answered(talk)
    if last is None or surface is None or surface.image is None:
        return None
    return next((sheet for sheet in sheets_of(surface) if sheet.key == last.picture), None)


def readings(desk: Desk, surface: Surface | None, talk: Talk) -> tuple[tuple[str, Answer], ...]:
    """The last answer in every way its numbers may be meant, by name; the first is the family's own.

    ValueError where there is nothing to compare.
    """
    picture_of(surface)  # a sentence where there is none
    sheet = sheet_of_answer(surface, talk)
    if not talk or talk[-1].running or talk[-1].answer is None or sheet is None:
        raise ValueError("There is no finished answer about this picture yet: ask something first.")
    last = talk[-1]
    if last.model != desk.engine.family.name:
        raise ValueError("Another model was opened since this answer: ask it, then compare its frames.")
    found = desk.reread(last.own or last.answer, opened(sheet).size)  # type: ignore[arg-type]
    if not found:
        raise ValueError("This answer has no numbers that could be meant in another way.")
    return found


def strip(desk: Desk, surface: Surface | None, talk: Talk, side: int = 360) -> list[tuple[Image.Image, str]]:
    """Small pictures of the readings with their places drawn, each with its name."""
    shown, sheet = readings(desk, surface, talk), sheet_of_answer(surface, talk)
    assert sheet is not None
    small = opened(sheet)
    small.thumbnail((side, side))
    return [(paint.answer(small, answer), name) for name, answer in shown]


def read_as(desk: Desk, surface: Surface | None, talk: Talk, number: int) -> tuple[Talk, str]:
    """The talk with its last answer read in the chosen way, counted as in `strip`, and the name of that way."""
    shown = readings(desk, surface, talk)
    if not 0 <= number < len(shown):
        raise ValueError("This way of reading is no longer there: press Compare again.")
    name, answer = shown[number]
    last = talk[-1]
    own = None if number == 0 else last.own or last.answer
    return (*talk[:-1], replace(last, answer=answer, own=own)), name
