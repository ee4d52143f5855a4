"""The dialects by name: one record each."""

from __future__ import annotations

from mmchat.dialect.forms import Form, Index, brackets
from mmchat.dialect.marks import Marks

LLAVA = Marks("llava", (brackets(join=", "),), way="pad", example="the dog at [0.28, 0.34, 0.40, 0.71]")
MMFUSER = Marks("mmfuser", (brackets(999, 0, double=True, join=", "),), way="pad", example="[[280, 340, 400, 709]]")
POCKET = Marks(
    "pocket",
    (
        Form(("<r",), "0-9", (">",), Index(least=0.9), place="<r{}>", join="", run=1),
        brackets(comma=",", join="", several=False),
    ),
    phrase=("<p>", "</p>"),
    label="marked",
    way="pad",
    space="",
    example="I see <p>the bus</p><r3> and <p>a bird</p>[0.12,0.30,0.55,0.80].",
)

DIALECTS: dict[str, Marks] = {dialect.name: dialect for dialect in (LLAVA, MMFUSER, POCKET)}
