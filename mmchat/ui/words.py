"""Words for the page: a talk as escaped HTML, its phrases tied to their places, and cards for what went wrong.

Everything a model or a user wrote passes through `escape`; the only tags in the result are ours. A phrase carries its
places as data (unit square of the upright picture), so the drawing surface shows what the text shows, nothing else.
"""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from dataclasses import dataclass, replace
from html import escape
from io import BytesIO

from mmchat.desk import MENTION, Answer, Turn
from mmchat.geometry import Box, Mask, Place, Point
from mmchat.paint import colour
from mmchat.ui.found import pictures_html

log = logging.getLogger("mmchat.page")
SHAPE = 256  # pixels of a mask's longer side in the page


@dataclass(frozen=True)
class Exchange:
    """A question of the talk and its answer.

    `shown` is the question as the user wrote it: its @numbers are those of the drawing surface, the turn's count over
    the talk. `pictures` are digests of the talk's pictures up to here, `model` the family asked. `ended` tells why a
    finished exchange has no whole answer: "stopped" or "failed". `key` names this try of it, so that none is spoken
    twice. `own` is the answer as the family reads it, where the user chose another way of reading its numbers.
    """

    question: Turn
    shown: str
    pictures: tuple[str, ...]
    model: str
    task: str | None = None
    answer: Answer | None = None
    clip: str = ""  # digest of the video or sound among the pictures, where there is one
    seconds: float = 0.0  # and its length
    ended: str = ""
    attempt: int = 0
    key: str = ""
    own: Answer | None = None

    @property
    def running(self) -> bool:
        """Whether its answer is still to come or growing."""
        return not self.ended and not (self.answer is not None and self.answer.done)

    @property
    def picture(self) -> str:
        """The digest of the picture that its places are on, or will be."""
        at = len(self.pictures) - 1 if self.answer is None else self.answer.shown
        return self.pictures[at] if 0 <= at < len(self.pictures) else ""

    def settled(self, why: str = "stopped") -> Exchange:
        """The same, no longer waiting for words."""
        return replace(self, ended=why) if self.running else self


Talk = tuple[Exchange, ...]


def phrases(answer: Answer) -> list[dict[str, object]]:
    """Each span with text, colour and places as plain data: what `data-places` holds and the drawing surface draws."""
    out = []
    for index, span in enumerate(answer.spans):
        scores = answer.scores[index] if index < len(answer.scores) else ()
        out.append({
            "span": index,
            "text": answer.text[span.start : span.end],
            "colour": colour(index),
            "places": [
                {**_place(place), "score": scores[number] if number < len(scores) else None}
                for number, place in enumerate(span.places)
            ],
        })  # fmt: skip
    return out


def _place(place: Place) -> dict[str, object]:
    if isinstance(place, Box):
        return {"kind": "box", "box": _rounded(place.x0, place.y0, place.x1, place.y1)}
    if isinstance(place, Point):
        return {"kind": "point", "point": _rounded(place.x, place.y)}
    if isinstance(place, Mask):
        box = place.box
        return {"kind": "mask", "box": _rounded(box.x0, box.y0, box.x1, box.y1), "shape": _shape(place)}
    return {"kind": "polygon", "points": [_rounded(point.x, point.y) for point in place.points]}


def _shape(mask: Mask) -> str:
    """What lies inside the mask's box, as the address of a small picture that is clear where the mask is not."""
    import numpy as np  # masks are rare, and the page starts without it
    from PIL import Image

    cells = mask.array()
    rows, columns = cells.any(1).nonzero()[0], cells.any(0).nonzero()[0]
    if not len(rows):
        return ""
    inside = cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = Image.fromarray(inside.astype(np.uint8) * 255)
    alpha.thumbnail((SHAPE, SHAPE), Image.Resampling.BILINEAR)
    picture = Image.new("LA", alpha.size)
    picture.putalpha(alpha)
    picture.save(made := BytesIO(), "PNG")
    return "data:image/png;base64," + b64encode(made.getvalue()).decode()


def _rounded(*values: float) -> list[float]:
    return [round(value, 6) for value in values]


def answer_html(answer: Answer, turn: int, seconds: float = 0.0) -> str:
    """The clean text with its phrases marked. Of overlapping spans the later keeps what is left; none left: a chip.

    seconds: length of the clip that was asked about.
    """
    parts, end = [], 0
    for found in sorted(
        phrases(answer), key=lambda found: (answer.spans[int(str(found["span"]))].start, found["span"])
    ):
        span = answer.spans[int(str(found["span"]))]
        start, stop = max(span.start, end), max(span.end, end)
        parts.append(escape(answer.text[end:start]))
        parts.append(_phrase(found, answer.text[start:stop], turn))
        end = stop
    parts.append(escape(answer.text[end:]))
    parts += [_moment(answer, number, seconds) for number in range(len(answer.moments))]
    return "".join(parts).replace("\n", "<br>")


def _moment(answer: Answer, number: int, seconds: float) -> str:
    """A stretch of a video or a sound: a button that seeks it, or words where no clip's length is known."""
    moment = answer.moments[number]
    words = answer.text[moment.start : moment.end].strip() or "here"
    if not seconds:
        stretch = f"{moment.first:g} to {moment.last:g}"
        title = escape(f"{words}: from {moment.first:g} to {moment.last:g} of the length")
        return f' <span class="mm-badge" title="{title}">{escape(words)} {stretch}</span>'
    start, end = moment.within(seconds)
    title = escape(f"{words}: {start:.2f} s to {end:.2f} s")
    mark = colour(len(answer.spans) + number)
    return (
        f' <button type="button" class="mm-moment" data-start="{start:.3f}" data-end="{end:.3f}" data-colour="{mark}"'
        f' style="--mark:{mark}" title="{title}">{escape(words)} {start:.2f}–{end:.2f} s</button>'
    )


def _phrase(found: dict[str, object], words: str, turn: int) -> str:
    places = found["places"]
    assert isinstance(places, list)
    span = int(str(found["span"]))
    count = "1 place" if len(places) == 1 else f"{len(places)} places"
    scores = [f"{place['score']:.0%}" for place in places if place["score"] is not None]
    title = f"{found['text'] or 'here'}: {count}" + (f", confidence {', '.join(scores)}" if scores else "")
    inner = escape(words) if words.strip() else f'<span class="mm-spot" aria-hidden="true">{span + 1}</span>'
    return (
        f'<span class="mm-phrase" role="button" tabindex="0" aria-pressed="false" id="mm-phrase-{turn}-{span}"'
        f' data-turn="{turn}" data-span="{span}" data-text="{escape(str(found["text"]))}"'
        f' data-colour="{found["colour"]}"'
        f' data-places="{escape(json.dumps(places))}" style="--mark:{found["colour"]}" title="{escape(title)}"'
        f' aria-label="{escape(title)}">{inner}</span>'
    )


def question_html(text: str) -> str:
    """The user's words, @1 and the like set as badges."""
    return MENTION.sub(r'<span class="mm-badge">@\1</span>', escape(text)).replace("\n", "<br>")


def talk_html(talk: Talk, welcome: str = "", tasks: dict[str, str] | None = None) -> str:
    """The whole talk, or `welcome` (our own HTML) where nothing has been said."""
    if not talk:
        return f'<div class="mm-talk" role="log" aria-live="polite" aria-label="Conversation">{welcome}</div>'
    parts = []
    for turn, exchange in enumerate(talk):
        label = (tasks or {}).get(exchange.task or "", "")
        words = question_html(exchange.shown) or f'<span class="mm-quiet">{escape(label)}</span>'
        tag = f'<span class="mm-task">{escape(label)}</span> ' if label and exchange.shown else ""
        parts.append(f'<div class="mm-said mm-user">{tag}{words}</div>')
        parts.append(_answered(exchange, turn))
    return f'<div class="mm-talk" role="log" aria-live="polite" aria-label="Conversation">{"".join(parts)}</div>'


def _answered(exchange: Exchange, turn: int) -> str:
    answer = exchange.answer
    state = "running" if exchange.running else exchange.ended or "done"
    body = answer_html(answer, turn, exchange.seconds) + pictures_html(answer) if answer is not None else ""
    if exchange.running:
        body += '<span class="mm-caret" aria-hidden="true"></span>'
        if answer is None or not answer.text:
            ahead = dict(answer.notes).get("waiting") if answer is not None else None
            what = "clip" if exchange.clip == exchange.pictures[-1] else "picture"
            doing = f"Waiting for the model, {ahead} ahead" if ahead else f"Looking at the {what}"
            body = f'<span class="mm-quiet">{doing}</span>{body}'
    elif not body.strip():
        body = f'<span class="mm-quiet">{"No answer" if exchange.ended else "The model said nothing."}</span>'
    return (
        f'<div class="mm-said mm-model" data-turn="{turn}" data-state="{state}" data-picture="{exchange.picture}"'
        f' data-clip="{exchange.clip}">'
        f'<div class="mm-body">{body}</div>'
        f'<div class="mm-foot">{_foot(exchange)}</div></div>'
    )


def _foot(exchange: Exchange) -> str:
    """One quiet line under an answer: how many places, what was left out, whether it was stopped."""
    answer = exchange.answer
    if exchange.running:
        return ""
    parts = []
    if exchange.ended == "stopped":
        parts.append("stopped")
    if answer is not None:
        places = sum(len(span.places) for span in answer.spans)
        if answer.pictures:
            count = len(answer.pictures)
            parts.append("1 picture of yours" if count == 1 else f"{count} pictures of yours")
        else:
            if places or not answer.moments:
                parts.append("no places" if not places else "1 place" if places == 1 else f"{places} places")
            if answer.moments:
                count = len(answer.moments)
                parts.append("1 stretch of time" if count == 1 else f"{count} stretches of time")
        if answer.dropped:
            parts.append(f"{len(answer.dropped)} left out, see Details")
        parts += [escape(str(value)) for name, value in answer.notes if name == "hint"]
    return " · ".join(parts) + ' <button type="button" class="mm-copy" title="Copy the answer">Copy</button>'


def said(text: str) -> str:
    """A quiet line about what was done."""
    return f'<p class="mm-quiet" role="status">{escape(text)}</p>'


def card(error: BaseException | str, title: str = "") -> str:
    """A failure as a card: what happened, why, and what to do."""
    if isinstance(error, MemoryError) or "outofmemory" in type(error).__name__.lower():
        title = title or "Out of memory"
        text = "The model needed more memory than is free: take a smaller picture, or NF4 in the Model tab."
    elif isinstance(error, str | ValueError):
        text = str(error) or "The input could not be used: try another one."
    else:
        title = title or "Something broke"
        text = (
            f"An unexpected {type(error).__name__} stopped this step, the log has its trace: try again or begin anew."
        )
    text = text[:1].upper() + text[1:]
    return (
        f'<div class="mm-card" role="alert"><strong>{escape(title or "That did not work")}</strong>'
        f"<p>{escape(text)}</p>"
        '<button type="button" class="mm-dismiss" aria-label="Dismiss">×</button></div>'
    )


def failure(error: Exception, title: str = "") -> str:
    """A failure as a card; what is not the user's to mend goes to the log with its trace, never with a picture."""
    if not isinstance(error, ValueError):
        log.exception("a step of the page failed")
    return card(error, title)
