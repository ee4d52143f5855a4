"""Which words a place belongs to, where no mark says it."""

from __future__ import annotations

import re

# The last of these words in front of a place begins its phrase.
LEADING = re.compile(
    r"(?i)\b(?:an?|the|this|that|these|those|his|her|its|their|my|your|our|another|each|every|some|several|many|both"
    r"|two|three|four|five|six|seven|eight|nine|ten|\d+)\b"
)
# Words between a phrase and its place that belong to neither: "the dog is located at [...]".
TRAILING = re.compile(
    r"(?i)(?:[\s:(]+|\b(?:is|are|was|were|at|in|located|shown|visible|here|positioned|bounding|box(?:es)?|coordinates?"
    r"|with|of|as)\b)+\Z"
)

BREAK = re.compile(r"[.!?;:,]\s+|\n")  # a phrase does not reach over it
OF = re.compile(r"\bof\s\Z")
JOINT = re.compile(r"(?i)(?:and|or|with|while|there (?:is|are))\s+")


def whole_words(words: str) -> tuple[int, int]:
    """Where the words begin and end without white space and joints."""
    trimmed = words.rstrip()  # white space of any kind first: the clean text loses it at its end
    while trimmed and (trimmed[-1] in ",;|" or trimmed[-1].isspace()):
        trimmed = trimmed.rstrip(",;|").rstrip()
    return len(trimmed) - len(trimmed.lstrip(" \t\r\n,;.|")), len(trimmed)


def phrase_before(words: str) -> tuple[int, int]:
    """Where the phrase stands that a place after `words` most likely belongs to: from the last article or number on.

    Only the last sentence and at most 160 characters are looked at. "X of the Y" stays one phrase.
    """
    base = max(0, len(words) - 160)
    tail = words[base:].rstrip(" \t\r\n,;:")
    cut = 0
    for match in BREAK.finditer(tail):
        cut = match.end()
    base, tail = base + cut, tail[cut:]
    trimmed = TRAILING.sub("", tail) or tail
    starts = [match.start() for match in LEADING.finditer(trimmed)] if trimmed else []
    begin = starts[-1] if starts else 0
    while len(starts) > 1 and OF.search(trimmed, 0, begin):
        starts.pop()
        begin = starts[-1]
    if not starts:
        joint = JOINT.match(trimmed)
        begin = joint.end() if joint else 0
    begin += len(trimmed[begin:]) - len(trimmed[begin:].lstrip())
    return base + begin, base + len(trimmed)
