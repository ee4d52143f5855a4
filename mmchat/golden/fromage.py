"""Recorded cases of FROMAGe (kohjingyu/fromage): texts."""

from __future__ import annotations

from mmchat.golden import Case, Line, texts


def captions(case: Case) -> list[Line]:
    """How a generated caption is cut: after its first line, or else after its first sentence."""
    return texts.table(case.info["parse"], lambda entry: first_caption(entry["text"]), name="caption")


def first_caption(text: str) -> str:
    """The first line of a caption, or its first sentence where it has one line."""
    text = text.strip("\n")
    line, newline, _ = text.partition("\n")
    sentence, stop, _ = text.partition(".")
    return line + newline if newline else sentence + stop


HANDLERS = {"dialect": captions}
