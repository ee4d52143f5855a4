"""The dialects by name: one record each, after the published code of each model.

`way` is the frame that the numbers refer to: the picture squashed (its own unit square), padded, padded at the end, or
cropped.
"""

from __future__ import annotations

from dataclasses import replace

from mmchat.dialect.forms import NUMBER, Cells, Form, Index, Scaled, Segments, Times, brackets
from mmchat.dialect.listing import Json
from mmchat.dialect.marks import Marks
from mmchat.dialect.points import molmo, molmo2

NEVER = r"(?!)"  # a pattern that matches nowhere: one mark, one place
LIST = r"-+0-9.,;eE \t\n\[\]"  # the inside of nested brackets
P = ("<p>", "</p>")
REF = ("<ref>", "</ref>")
OBJECT_REF = ("<|object_ref_start|>", "<|object_ref_end|>")

# the families of this house

LLAVA = Marks("llava", (brackets(join=", "),), way="pad", example="the dog at [0.28, 0.34, 0.40, 0.71]")
HONEYBEE = Marks(
    "honeybee", (brackets(decimals=3, comma=",", join=", "),), example="the dog at [0.280,0.340,0.400,0.710]"
)
MMFUSER = Marks("mmfuser", (brackets(999, 0, double=True, join=", "),), way="pad", example="[[280, 340, 400, 709]]")
SHIKRA = Marks(
    "shikra",
    (brackets(decimals=3, comma=",", point=True, several=True),),
    way="pad",
    example="two kites [0.100,0.200,0.300,0.400;0.500,0.200,0.700,0.410]",
)
GROUNDINGGPT = Marks(
    "groundinggpt",
    (
        brackets(decimals=3, join=""),
        Form(("{",), r"0-9., ", ("}",), Times(), plain=True, split=NEVER),  # a stretch of a video or a sound
    ),
    way="pad",
    example="a kite [0.312, 0.055, 0.471, 0.208]",
)
MINIGPT_V2 = Marks(
    "minigpt_v2",
    (
        Form(
            ("{",), "-<>0-9 ", ("}",), Scaled(100, 0, step="floor"), "<{}><{}><{}><{}>", join="<delim>", several=False,
            split=NEVER, plain=True,
        ),
    ),
    phrase=P,
    silent=("<delim>",),
    label="marked",
    example="<p>two chairs</p> {<10><20><30><40>}<delim>{<50><20><70><40>}",
)  # fmt: skip
KOSMOS2 = Marks(
    "kosmos2",
    (
        Form(
            ("<patch_index_",), "0-9", (">",), Cells(32), "<patch_index_{}><patch_index_{}>",
            join="</delimiter_of_multi_objects/>", run=2,
        ),
    ),
    phrase=("<phrase>", "</phrase>"),
    group=("<object>", "</object>"),
    silent=("<grounding>", "</delimiter_of_multi_objects/>", "<s>", "</s>", "<image>", "</image>"),
    label="marked",
    space="",
    example="<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object>",
)  # fmt: skip
FERRET = Marks(
    "ferret",
    (brackets(1000, 0, point=True, join=" ", step="floor", largest=999),),
    silent=("<region_fea>",),
    example="a dog [100, 150, 300, 200]",
)
GROMA = Marks(
    "groma",
    (Form(("<r",), "0-9", (">",), Index(), "<r{}>", join="", run=1),),
    phrase=P,
    group=("<roi>", "</roi>"),
    silent=("[grounding]", "<sep>", "<s>", "</s>", "<img>", "</img>", "<image>", "<region>"),
    label="marked",
    example="<p>two mugs</p> <roi><r3><r18></roi>",
)
LLAVA_GROUNDING = Marks(
    "llava_grounding",
    (Form(("<seg",), " ", (">",), Index(), "", join=""),),
    phrase=("<g_s>", "<g_e>"),
    label="marked",
    way="pad_end",
    example="<g_s> a red kite <g_e> <seg> flies over <g_s> a hill <g_e> <seg> .",
)
_SEG = Form(("[SEG",), " ", ("]",), Index(), "", join="")  # the k-th stands for the k-th mask
GLAMM = Marks(  # Sa2VA writes the same
    "glamm", (_SEG,), phrase=P, label="marked", example="<p>the dog</p> [SEG] beside <p>a bowl</p> [SEG]."
)
LISA = Marks("lisa", (_SEG,), example="It is [SEG].")
FROMAGE = Marks("fromage", (), silent=("[RET]",), example="a cup [RET]")
POCKET = Marks(
    "pocket",
    (
        Form(("<r",), "0-9", (">",), Index(least=0.9), "<r{}>", join="", run=1),
        brackets(comma=",", join="", several=False),
    ),
    phrase=P,
    label="marked",
    way="pad",
    space="",
    example="I see <p>the bus</p><r3> and <p>a bird</p>[0.12,0.30,0.55,0.80].",
)

# models of other houses

_BARE = brackets(1000, 0, double=True, join=", ")  # how a mark's inside is read where the model left out the mark
QWEN_VL = Marks(
    "qwen_vl",
    (
        Form(
            ("<box>",), "-0-9,(). ", ("</box>",), Scaled(1000, 0), "({},{}),({},{})", "({},{})", join="", several=False,
            split=NEVER,
        ),
        Form(("<quad>",), "-0-9,(). ", ("</quad>",), Scaled(1000, 0), several=False, split=NEVER, polygons=True),
    ),
    phrase=REF,
    silent=("<|endoftext|>", "<|im_end|>"),
    label="marked",
    space="",
    example="<ref>red cup</ref><box>(112,300),(240,455)</box>",
)  # fmt: skip
QWEN2_VL = Marks(
    "qwen2_vl",
    (
        Form(
            ("<|box_start|>",), "-0-9,(). ", ("<|box_end|>",), Scaled(1000, 0), "({},{}),({},{})", "({},{})", join="",
            several=False, split=NEVER,
        ),
        Form(
            ("<|quad_start|>", "<quad>"), "-0-9,(). ", ("<|quad_end|>", "</quad>"), Scaled(1000, 0), several=False,
            split=NEVER, polygons=True,
        ),
    ),
    phrase=OBJECT_REF,
    silent=("<|endoftext|>", "<|im_end|>"),
    label="marked",
    space="",
    example="<|object_ref_start|>red cup<|object_ref_end|><|box_start|>(112,300),(240,455)<|box_end|>",
)  # fmt: skip
INTERNVL = Marks(
    "internvl",
    (
        Form(
            ("<box>",), LIST, ("</box>",), Scaled(1000, 0, fractions_below=4), "[{}, {}, {}, {}]", "[{}, {}]",
            join=", ", wrap=("[", "]"),
        ),
        replace(_BARE, code=Scaled(1000, 0, fractions_below=4)),
    ),
    phrase=REF,
    silent=("<|im_end|>",),
    label="marked",
    space="",
    example="<ref>dog</ref><box>[[105, 211, 460, 780]]</box>",
)  # fmt: skip
DEEPSEEK_VL2 = Marks(
    "deepseek_vl2",
    (
        Form(
            ("<|det|>",), LIST, ("<|/det|>",), Scaled(999, 0), "[{}, {}, {}, {}]", "[{}, {}]", join=", ",
            wrap=("[", "]"),
        ),
    ),
    phrase=("<|ref|>", "<|/ref|>"),
    silent=("<|grounding|>",),
    label="marked",
    space="",
    example="<|ref|>the man in white<|/ref|><|det|>[[96, 120, 410, 998]]<|/det|>",
)  # fmt: skip
MINICPM_V = Marks(
    "minicpm_v",
    (
        Form(
            ("<box>",), "-0-9. ", ("</box>",), Scaled(1000, 0), "{} {} {} {}", join="", several=False, split=NEVER,
        ),
    ),
    phrase=REF,
    label="marked",
    space="",
    example="<ref>book</ref><box>105 211 460 780</box>",
)  # fmt: skip
REX_OMNI = Marks(
    "rex_omni",
    (
        Form(
            ("<|box_start|>",), r"<>0-9, \n", ("<|box_end|>",), Scaled(999, 0, step="floor"), "<{}><{}><{}><{}>",
            "<{}><{}>", join=",", split=",", polygons=True,
        ),
    ),
    phrase=OBJECT_REF,
    silent=("<|im_end|>",),
    label="marked",
    space="",
    example="<|object_ref_start|>person<|object_ref_end|><|box_start|><0><35><980><987>,<646><0><999><940><|box_end|>",
)  # fmt: skip
COGVLM = Marks(
    "cogvlm",
    (
        Form(
            ("[[",), r"-+0-9.,; \t\n", ("]]",), Scaled(1000, 0, step="floor", largest=999, width=3), "{},{},{},{}",
            "{},{}", plain=True,
        ),
    ),
    space="",
    example="a dog[[105,211,460,780;007,045,100,200]]",
)  # fmt: skip
_GLM = replace(brackets(1000, 0, double=True, point=True, join=", "), polygons=True, body=r"-+0-9.,; \t\n\"'")
GLM_V = Marks(  # the vendor's reader takes every kind of bracket
    "glm_v",
    (
        _GLM,
        replace(_GLM, open=("<bbox>",), close=("</bbox>",), body=r"-+0-9.,; \t\n\[\]", plain=False),
        replace(_GLM, open=("{{", "{"), close=("}}", "}")),
        replace(_GLM, open=("((", "("), close=("))", ")")),
        replace(_GLM, open=("<",), close=(">",)),
    ),
    silent=("<|begin_of_box|>", "<|end_of_box|>"),
    example="<|begin_of_box|>[[105,211,460,780]]<|end_of_box|>",
)
_LOC = Scaled(1000, 0, step="bin", largest=999)
_LOCS = ("<s>", "</s>", "<pad>", "<od>", "</od>", "<ocr>", "</ocr>", "<ground>", "</ground>", "<poly>", "</poly>")
FLORENCE_2 = Marks(
    "florence_2",
    (Form(("<loc_",), "0-9", (">",), _LOC, "<loc_{}>" * 4, join="", run=4),),
    silent=(*_LOCS, "<sep>"),
    label="whole",
    space="",
    apart=", ",
    example="dog<loc_105><loc_211><loc_460><loc_780>cat<loc_5><loc_211><loc_90><loc_780>",
)
FLORENCE_2_OUTLINES = Marks(
    "florence_2_outlines",
    (Form(("<loc_",), "0-9", (">",), _LOC, "<loc_{}>" * 4, join="<sep>", run=100_000, polygons=True),),
    silent=(*_LOCS, "<sep>"),
    label="whole",
    space="",
    apart=", ",
    example="<loc_321><loc_575><loc_457><loc_898><loc_851><loc_643><sep><loc_82><loc_262><loc_516><loc_857><loc_452><loc_169>",
)
FLORENCE_2_OCR = Marks(
    "florence_2_ocr",
    (Form(("<loc_",), "0-9", (">",), _LOC, "<loc_{}>" * 4, join="", run=8, polygons=True),),
    silent=(*_LOCS, "<sep>"),
    label="whole",
    space="",
    apart=", ",
    example="EXIT<loc_10><loc_10><loc_90><loc_10><loc_90><loc_40><loc_10><loc_40>",
)
PALIGEMMA = Marks(
    "paligemma",
    (
        Form(
            ("<loc",), "0-9", (">",), Scaled(1023, 0, order="yxyx", step="even", width=4), "<loc{}>" * 4, join="", run=4
        ),
        Form(("<seg",), "0-9", (">",), Segments(), run=16),
    ),
    silent=("<eos>",),
    label="after",
    example="<loc0211><loc0105><loc0780><loc0460> cat ; <loc0000><loc0512><loc1023><loc1023> dog",
)
_EQUALS = r"\s*=\s*[\"']?\s*"
MOLMO = Marks(
    "molmo",
    (
        Form(
            ("<point ", "<points "), "^<>", (">",), Scaled(100, 1, step="even"), "", 'x="{}" y="{}"', join="",
            several=False, split=NEVER, number=rf"\bx\d*{_EQUALS}{NUMBER}\s*[\"']?\s*y\d*{_EQUALS}{NUMBER}", pairs=True,
            gather=molmo,
        ),
        # older forms: the vendor's reader wants one decimal, or three digits that are tenths of a percent
        Form(("Click(",), "0-9., ", (")",), Scaled(100, 1), "", "{}, {}", several=False, split=NEVER),
        Form(
            ("(",), "0-9., ", (")",), Scaled(100, 1), "", "({}, {})", several=False, split=NEVER, plain=True,
            number=r"(\d{1,3}\.\d)(?!\d)",
        ),
        Form(
            ("p=", "p =", "="), "0-9, ", ("",), Scaled(1000, 0), "", "{},{}", several=False, split=NEVER, plain=True,
            number=r"(?<!\d)(\d{3})\s*,\s*(\d{3})(?!\d)", pairs=True,
        ),
    ),
    phrase=("", "</point>"),
    ends=("</points>",),
    label="inside",
    example='<point x="61.5" y="40.2" alt="dog">dog</point>',
)  # fmt: skip
QWEN25_VL_POINTS = Marks(  # what its notebook asks for points in
    "qwen2_5_vl_points",
    (replace(MOLMO.forms[0], code=Scaled(0, 0)),),
    phrase=("", "</points>"),
    ends=("</point>",),
    label="inside",
    example='<points x1="104" y1="163" x2="418" y2="276" alt="red cups">red cups</points>',
)
MOLMO2 = Marks(  # number of the picture or second, then threes: number of the point, x, y
    "molmo2",
    (
        Form(
            ("<points ", "<tracks ", "<point ", "<points\n", "<POINTS "), "^<>", (">",), Scaled(1000, 0, width=3), "",
            'coords="1 1 {} {}"', join="",
            several=False, split=NEVER, number=r"(?<=\s)\d{1,6}\s(\d{3,4})\s(\d{3,4})(?=[\s\"';:,])", pairs=True,
            gather=molmo2,
        ),
        replace(MOLMO.forms[0], open=("<point x", "<points x1"), gather=None),
        MOLMO.forms[1],
    ),
    phrase=("", "</points>"),
    ends=("</tracks>", "</point>", "</POINTS>"),
    label="inside",
    example='<points coords="1 1 615 402 2 133 470">dogs</points>',
)  # fmt: skip
_TARS = ("='(", "= '(", "='<|box_start|>(", "='<point>")
UI_TARS = Marks(
    "ui_tars",
    (
        Form(
            _TARS, r"0-9,. ", (")'", ")<|box_end|>'", "</point>'"), Scaled(1000, 0),
            "{},{},{},{}", "{},{}", split=NEVER,
        ),
    ),
    label="whole",
    space="",
    example="Thought: I press it.\nAction: click(start_box='(512,88)')",
)  # fmt: skip

UI_TARS_15 = replace(UI_TARS, name="ui_tars_1_5", forms=(replace(UI_TARS.forms[0], code=Scaled(0, 0)),))
UNLIMITED_OCR = Marks(
    "unlimited_ocr",
    (
        Form(
            ("<|det|>",), r"-\w,. \t\n\[\]", ("<|/det|>",), Scaled(999, 0), "text [{}, {}, {}, {}]", join="",
            several=False, split=NEVER,
        ),
    ),
    label="after",
    space="",
    example="<|det|>title [119, 172, 733, 262]<|/det|>A heading",
)  # fmt: skip

QWEN25_VL = Json("qwen2_5_vl", code=Scaled(0, 0), example='[{"bbox_2d": [112, 300, 240, 455], "label": "red cup"}]')
QWEN3_VL = Json("qwen3_vl", code=Scaled(1000, 0), example='[{"bbox_2d": [112, 300, 240, 455], "label": "red cup"}]')
GEMINI = Json(
    "gemini",
    code=Scaled(1000, 0, order="yxyx"),
    box=("box_2d",),
    point=("point",),
    example='[{"box_2d": [211, 105, 780, 460], "label": "dog"}]',
)
KIMI_VL = Json("kimi_vl", code=Scaled(1, 3), example='[{"bbox_2d": [0.280, 0.500, 0.520, 0.700], "label": "cup"}]')
LFM_VL = Json(
    "lfm_vl",
    code=Scaled(1, 2, thousandths_above=1.5),
    box=("bbox",),
    example='[{"label": "dog", "bbox": [0.10, 0.21, 0.46, 0.78]}]',
)

GLM_V_JSON = Json("glm_v_json", code=Scaled(1000, 0), example='[{"label": "car-1", "bbox_2d": [105, 211, 460, 780]}]')
MOONDREAM = Json(
    "moondream",
    code=Scaled(1, 3),
    box=(),
    point=(),
    corners=("x_min", "y_min", "x_max", "y_max"),
    spot=("x", "y"),
    example='{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.4, "y_max": 0.7}]}',
)

DIALECTS: dict[str, Marks | Json] = {
    dialect.name: dialect
    for dialect in (
        LLAVA, HONEYBEE, MMFUSER, SHIKRA, GROUNDINGGPT, MINIGPT_V2, KOSMOS2, FERRET, GROMA, LLAVA_GROUNDING, GLAMM,
        LISA, FROMAGE, POCKET, QWEN_VL, QWEN2_VL, INTERNVL, DEEPSEEK_VL2, MINICPM_V, REX_OMNI, COGVLM, GLM_V,
        FLORENCE_2, FLORENCE_2_OUTLINES, PALIGEMMA, MOLMO, MOLMO2, UI_TARS, QWEN25_VL, QWEN3_VL, GEMINI, KIMI_VL,
        LFM_VL, FLORENCE_2_OCR, UI_TARS_15, UNLIMITED_OCR, QWEN25_VL_POINTS, GLM_V_JSON, MOONDREAM,
    )
}  # fmt: skip
