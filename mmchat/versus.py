"""The same answers read by mmchat and by supervision's `Detections.from_vlm`: whole ones, and broken in ten ways.

supervision is imported where it is used: it takes two seconds. Florence-2 and Kosmos-2 are left out of the table: of
these two supervision takes what the model's own processor has read already (but see tests/test_versus.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mmchat.dialect import DIALECTS, Json, Scene
from mmchat.geometry import Box, outline

SIZE = (1000, 800)  # the picture, also as the model sees it
DOG, CAT = Box(0.1, 0.2, 0.4, 0.7), Box(0.5, 0.3, 0.9, 0.8)
PEERS = {  # dialect -> what supervision calls it
    "paligemma": "paligemma",
    "qwen2_5_vl": "qwen_2_5_vl",
    "qwen3_vl": "qwen_3_vl",
    "deepseek_vl2": "deepseek_vl_2",
    "gemini": "gemini_2_5",
    "moondream": "moondream",
}
LAST = re.compile(r'(?:<loc\d+>|,\s*(?:"\w+":\s*)?[\d.]+)\Z')  # the last number of a place, with what parts it
NUMBER = re.compile(r"\d+(?:\.\d+)?(?=>?\Z)")
Labelled = list[tuple[str, Box]]
SAME = 0.99  # intersection over union: one step of the numbers is less


@dataclass(frozen=True)
class Broken:
    """One way of breaking an answer: its name, what becomes of the text, what can still be meant of the cat.

    `change` takes the text and where the second place's numbers stand in it. `beyond`: the cat's last number is beyond
    the edge, so its box reaches it.
    """

    name: str
    change: Callable[[str, int, int], str]
    cat: str | None = "cat"  # None: nothing
    beyond: bool = False

    def meant(self, name: str) -> Labelled:
        """What can still be meant in that dialect: labels and boxes."""
        last = "x1" if _y_first(name) else "y1"
        cat = replace(CAT, **{last: 1.0}) if self.beyond else CAT
        labels = ("", "") if name == "moondream" else ("dog", self.cat or "")
        return [(labels[0], DOG), *([(labels[1], cat)] if self.cat else [])]


def _last(text: str, start: int, end: int, change: Callable[[str], str]) -> str:
    """The text with the last number of the second place changed."""
    return text[:start] + NUMBER.sub(lambda match: change(match.group()), text[start:end]) + text[end:]


def _larger(number: str) -> str:
    return f"{float(number) * 1.5:.3f}" if "." in number else f"{round(int(number) * 1.5):0{len(number)}d}"


WAYS = (
    Broken("whole", lambda text, start, end: text),
    Broken("with a sentence around it", lambda text, start, end: f"Sure, I see them:\n{text}\nIs that all?"),
    Broken("a comma in the label", lambda text, start, end: text.replace("cat", "cat, black"), "cat, black"),
    Broken("a line end in the label", lambda text, start, end: text.replace("cat", "black\ncat"), "black cat"),
    Broken("single quotes", lambda text, start, end: text.replace('"', "'")),
    Broken("the last number beyond the edge", lambda text, start, end: _last(text, start, end, _larger),
           beyond=True),
    Broken("cut off in the last number", lambda text, start, end: text[: end - 2], None),
    Broken("the last number missing",
           lambda text, start, end: text[:start] + LAST.sub("", text[start:end]) + text[end:], None),
    Broken("one number too many",
           lambda text, start, end: text[:end] + (LAST.findall(text[start:end]) or [""])[0] + text[end:]),
    Broken("a number that is none", lambda text, start, end: _last(text, start, end, lambda number: "NaN"), None),
)  # fmt: skip


def answer(name: str, boxes: tuple[Box, Box] = (DOG, CAT)) -> str:
    """A dog and a cat in the words of a dialect, as its model would say them."""
    dialect, scene = DIALECTS[name], Scene(size=SIZE)
    if name == "moondream":
        return dialect.write(boxes, None, scene)
    dog, cat = dialect.write(boxes[:1], "dog", scene), dialect.write(boxes[1:], "cat", scene)
    if name == "paligemma":
        return f"{dog} ; {cat}"
    return f"```json\n{dog[:-1]}, {cat[1:]}\n```" if dog.startswith("[") else dog + cat


def broken(name: str) -> list[tuple[Broken, str]]:
    """Every way of breaking the dialect's answer that changes it, swapped corners first, and the text."""
    text = answer(name)
    places = [where for span in DIALECTS[name].read(text, Scene(size=SIZE)).spans for where in span.source]
    start, end = places[1]
    swapped = answer(name, (DOG, Box(CAT.x1, CAT.y1, CAT.x0, CAT.y0)))
    texts = [(way, way.change(text, start, end)) for way in WAYS]
    made = [(way, changed) for way, changed in texts if changed != text or way.name == "whole"]
    return [made[0], (Broken("swapped corners", WAYS[0].change), swapped), *made[1:]]


def ours(name: str, text: str) -> tuple[Labelled, bool]:
    """The boxes that mmchat reads, and whether it reports that something was not taken as written."""
    read = DIALECTS[name].read(text, Scene(size=SIZE))
    found = [(read.text[span.start : span.end], outline(place)) for span in read.spans for place in span.places]
    return found, bool(read.dropped)


def theirs(name: str, text: str) -> Labelled:
    """The boxes that supervision reads; what it raises is raised. A dictionary is what it wants of moondream."""
    import supervision as sv  # two seconds

    told: Any = json.loads(text) if name == "moondream" else text
    more = {"input_wh": SIZE} if name == "qwen2_5_vl" else {}
    found = sv.Detections.from_vlm(sv.VLM(PEERS[name]), told, resolution_wh=SIZE, **more)
    labels = found.data.get("class_name", [""] * len(found))
    # Numbers that are none come through as such: they make a box at no place, which nobody meant.
    corners = [[number if abs(number) < 1e9 else -1e9 for number in map(float, row)] for row in found.xyxy]
    return [(str(label), Box.from_pixels(row, SIZE)) for label, row in zip(labels, corners, strict=True)]


def verdict(found: Labelled, meant: Labelled) -> str:
    """How many of the boxes that are meant were found, how many with another label, how many nobody meant."""
    pairs = [next(((label, got) for got, at in found if box.iou(at) > SAME), None) for label, box in meant]
    good = [pair for pair in pairs if pair is not None]
    other = sum(label.split() != got.split() for label, got in good)
    wrong = sum(not any(box.iou(at) > SAME for _, box in meant) for _, at in found)
    parts = [
        f"{len(good)} of {len(meant)}",
        f"{other} with another label" * bool(other),
        f"{wrong} wrong" * bool(wrong),
    ]
    return ", ".join(part for part in parts if part)


def rows() -> list[tuple[str, str, str, str]]:
    """Dialect, what is the matter with the answer, what mmchat makes of it, what supervision does."""
    listed = []
    for name in PEERS:
        for way, text in broken(name):
            found, told = ours(name, text)
            mine = verdict(found, way.meant(name)) + (", reported" if told else "")
            try:
                other = verdict(theirs(name, text), way.meant(name))
            except Exception as error:  # whatever it raises is what its user meets
                other = f"raises {type(error).__name__}"
            listed.append((name, way.name, mine, other))
    return listed


def _y_first(name: str) -> bool:
    dialect = DIALECTS[name]
    code = dialect.code if isinstance(dialect, Json) else dialect.forms[0].code
    return getattr(code, "order", "") == "yxyx"


def markdown() -> str:
    """The rows as a section of docs/dialects.md."""
    import supervision as sv  # two seconds

    lines = [
        "## Against supervision",
        "",
        f"Two boxes in an answer, read by mmchat and by `Detections.from_vlm` of supervision {sv.__version__}: how "
        "many of the boxes that can still be meant were found, and how many that nobody "
        "meant. supervision has no word for what it leaves out; mmchat reports it with its place in the text.",
        "",
        "| dialect | the answer is | mmchat | supervision |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows()),
    ]
    return "\n".join(lines)
