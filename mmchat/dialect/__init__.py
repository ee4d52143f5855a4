"""The grounding language: write places as a model's text, read a model's text as phrases with places.

Everything here is in the frame of the *fitted* picture (unit square); `home` brings an answer to the upright original.
Pure Python.

A dialect is data. `Marks` covers every way of writing places between words: it names the marks around phrases and one
or more `Form`s of places; `Json` covers models that answer with a list of objects. Both offer

    .write(places, phrase=None, scene=Scene()) -> str
    .read(text, scene=Scene(), final=True) -> Grounded      (final=False: text still grows, half a mark is held back)

Reading is a pure function of the text so far: it never raises, takes time linear in the text, and what it shows of a
prefix is a prefix of what it shows of the whole (words, spans, and the places of a span may only be added to).
"""

from mmchat.dialect.comparison import markdown, table
from mmchat.dialect.evaluation import double_brackets, evaluated_boxes
from mmchat.dialect.forms import Cells, Form, Index, Scaled, brackets
from mmchat.dialect.inspection import View, inspect
from mmchat.dialect.listing import Json
from mmchat.dialect.marks import Marks
from mmchat.dialect.spans import Dropped, Grounded, Moment, Scene, Span, confidence, home, settle
from mmchat.dialect.table import DIALECTS, LLAVA, MMFUSER, POCKET

__all__ = [
    "DIALECTS",
    "LLAVA",
    "MMFUSER",
    "POCKET",
    "Cells",
    "Dropped",
    "Form",
    "Grounded",
    "Index",
    "Json",
    "Marks",
    "Moment",
    "Scaled",
    "Scene",
    "Span",
    "View",
    "brackets",
    "confidence",
    "double_brackets",
    "evaluated_boxes",
    "home",
    "inspect",
    "markdown",
    "settle",
    "table",
]
