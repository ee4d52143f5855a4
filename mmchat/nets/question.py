"""What a question looks for: its kind and the phrase in it, read by patterns from the words alone. No torch.

The kinds are those of the lessons that the language model had: what is looked up for a question decides what its clue
says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHORT = re.compile(
    r"[\s,.;]*\b(?:please )?(?:answer (?:me )?(?:in|with) (?:one|a single|1) word(?: or phrase)?|(?:in )?(?:one"
    r"|a single) word(?: only)?(?: please)?|short answer"
    r"|answer briefly|just the answer|give a short answer"
    r"|answer (?:the question )?using a single word or phrase)(?:,? please)?[\s.!?]*$"
)
_REGION = re.compile(r"(?:@|<r)(\d+)>?")
_HERE = re.compile(
    r"(?: that)?(?: are| is| do| can)?(?: there| you| i| we)?(?: see| find| count)?(?: visible| shown)?(?: here"
    r"| (?:in|on|of) (?:the|this) (?:picture|image|photo|photograph|scene))?[\s?.!]*$"
)
_FIND = re.compile(
    r"^(?:please |can you |could you |would you )*(?:where(?:'s| is| are| was| were| can i see| can i find"
    r"| do you see)|find|locate|show(?: me)?(?: where)?|point (?:to|at|out)"
    r"|mark|highlight|box|look for|select|which one is|which (?:thing|object) is|i am looking for"
    r"|i'm looking for|ground|detect|search for|give me|bounding box (?:of|for)) +(?P<x>.+)$"
)
_ALL = re.compile(r"^(?:all|every|each)(?: of)?(?: the)? +(?P<x>.+)$")
_COLOUR = (
    re.compile(r"^(?:what|which) colou?r (?:is|are|was|has|have) (?P<x>.+)$"),
    re.compile(r"^(?:what|which) colou?rs? do(?:es)? (?P<x>.+?) have$"),
    re.compile(r"^(?:what (?:is|are) |what's |tell me |say |name )?(?:the )?colou?rs? of (?P<x>.+)$"),
)
_COUNT = (re.compile(r"^(?:how many|count(?: all| up)?|(?:what is |what's |tell me )?the number of) (?P<x>.+)$"),)
_SCENE = re.compile(
    r"^(?:what|which) (?:(?:kind|sort|type) of )?(?:place|room|setting|scene|season|sport|location|weather"
    r"|time of day|landscape)\b"
    r"|^where (?:was (?:this|it)|are we|is this)|^what is (?:this|that|it)(?: place)?$"
    r"|^what is this a (?:picture|photo|photograph|image) of$"
    r"|^is (?:this|it) (?:a|an|the)? ?\w+(?: \w+)? or "
)
_THING = re.compile(r"^what (?:is|are) (?:this|that|these|those)(?: thing| things| object| objects)$")
_WHICH = re.compile(
    r"^(?:what|which)(?: (?:kind|sort|type) of)? (?P<x>[a-z ]+?) (?:is|are) (?:this|it|that|these|those"
    r"|in the (?:picture|image|photo)|shown|here)$"
    r"|^(?:what|which)(?: (?:kind|sort|type) of)? (?P<y>[a-z ]+?) do you see$|^name the (?P<z>[a-z ]+)$"
)
_DESCRIBE = re.compile(
    r"^(?:please )?(?:(?:describe|caption|summari[sz]e)\b(?!.*(?:@|<r))|tell me (?:about|what is in) (?:this"
    r"|the) (?:picture|image|photo)|what (?:do|can) you see(?: here| in (?:the|this).*)?$"
    r"|what (?:is|are) (?:in|on|shown in) (?:this|the) (?:picture|image|photo|photograph)|what is happening"
    r"|what is there$|give me a description|what does the (?:picture|image|photo) show"
    r"|list (?:what|every|all))"
)
_THERE = re.compile(
    r"^(?:is there|are there|do you see|can you see|does (?:the|this) (?:picture|image|photo) (?:show|contain"
    r"|have)|is it true that there is) (?P<x>.+)$"
    r"|^is (?P<y>(?:a|an|any|the) .+) in (?:the|this) (?:picture|image|photo)$"
)
_PLACE = re.compile(
    r"^what (?:is|are|stands|lies|sits|can be seen|do you see|can you see|hangs|flies)(?: (?:flying|standing"
    r"|lying|sitting|hanging))? "
    r"(?P<x>(?:(?:just |right |to the |on the |at the |in the )?(?:left|right|top|bottom|middle|centre|center"
    r"|background|foreground|upper|lower)\b"
    r"|on|at|in|under|below|above|behind|beside|next to|near|over|beneath|between|in front of).*)$"
    r"|^which thing is (?P<y>(?:on|at|in|under|below|above|behind|beside|next|near|left|right).*)$"
)
_IS = re.compile(r"^(?:is|are|does|do|has|have|was|were) (?P<x>(?:the|this|that|these|those|a|an|his|her|its) .+)$")
_BEYOND = re.compile(
    r"^(?:what|why|how|when|who|whose|which)\b.*?\b(?:is|are|does|do|did|made|owns|was) (?P<x>(?:the|this|that"
    r"|these|those|a|an) .+)$"
)
_TALK = re.compile(
    r"^(?:hello|hi|hey|good (?:morning|evening|afternoon|day)|thanks|thank you|bye|goodbye|see you|well done"
    r"|nice|great|help|who are you|what are you|what is your name|tell me about yourself"
    r"|what can you do|how can you help|what should i ask|how does this work|are you sure|is that right|really"
    r"|can you read|what does the (?:text|sign) say|read the|who is (?:this|that|he|she|it)"
    r"|what is (?:his|her) name|tell me a joke|write a|what day is|what is the capital)\b"
)
_FOLLOW = re.compile(r"^(?:and|what about|how about) (?P<x>.+)$")
_AFTER = re.compile(
    r" (?:doing|used for|happy|made of|made|thinking|looking|facing|pointing|smiling|open|closed|alive|called"
    r"|cost|here|there"
    r"|(?:red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y)$|on the (?:left|right)"
    r"|at the (?:top|bottom).*|in the (?:middle|background|foreground)|holding|wearing|sitting on|standing on"
    r"|lying on|have|wear|say|mean|eat|eating|walking|running|an?|or)\b.*$"
)
_IT = frozenset(("it", "this", "that", "they", "them", "these", "those", "he", "she", ""))
_PLURALS = frozenset("people men women children mice geese feet teeth knives leaves wolves sheep".split())


@dataclass(frozen=True)
class Question:
    """One of the kinds find, all, count, colour, there, is, which, place, scene, describe, region, colour region,
    beyond, talk, free.

    `phrase`: what it looks for, without article, "" where nothing. `regions`: numbers of the candidates it names.
    """

    kind: str
    phrase: str = ""
    regions: tuple[int, ...] = ()


def read_question(text: str) -> Question:
    """The question in a user's words. Regions may stand as `<r0>` (a candidate) or as @1 (the first one drawn)."""
    regions = tuple(int(match[1]) - (match[0][0] == "@") for match in _REGION.finditer(text) if match[0] != "@0")
    plain = SHORT.sub("", " ".join(text.lower().split())).strip(" ?.!,")
    plain = (
        re.sub(r"^(?:please|ok|okay|so|well),? |,? please$", "", plain)
        .replace("what's", "what is")
        .replace("where's", "where is")
    )
    if regions:
        return Question("colour region" if re.search(r"\bcolou?r", plain) else "region", "", regions)
    if _TALK.match(plain) or not plain:
        return Question("talk")
    for pattern in _COUNT:
        if match := pattern.match(plain):
            return Question("count", _thing(match["x"]))
    for pattern in _COLOUR:
        if match := pattern.match(plain):
            phrase = _thing(match["x"])
            return Question("free") if match["x"] in _IT else Question("colour", phrase)
    if _SCENE.match(plain):
        return Question("scene")
    if _THING.match(plain):
        return Question("which", "thing")
    if _DESCRIBE.match(plain):
        return Question("describe")
    if (match := _WHICH.match(plain)) and (match["x"] or match["y"] or match["z"]):
        return Question("which", _thing(match["x"] or match["y"] or match["z"]))
    if match := _THERE.match(plain):
        # "Is there a lake or a desert ...": the answer is one of two words for the whole picture.
        return Question("scene") if " or " in plain else Question("there", _thing(match["x"] or match["y"]))
    if match := _PLACE.match(plain):
        return Question("place", f"thing {match['x'] or match['y']}")
    if match := _FOLLOW.match(plain):
        return Question("find", _thing(match["x"]))
    if match := _FIND.match(plain):
        phrase = match["x"]
        if every := _ALL.match(phrase):
            return Question("all", _thing(every["x"]))
        phrase = _thing(phrase)
        return Question("all" if several(phrase) else "find", phrase)
    if every := _ALL.match(plain):
        return Question("all", _thing(every["x"]))
    for pattern, kind in ((_IS, "is"), (_BEYOND, "beyond")):
        if match := pattern.match(plain):
            phrase = _thing(_AFTER.sub("", " " + match["x"]).strip() or match["x"])
            return Question("free") if phrase in _IT else Question(kind, phrase)
    if (
        re.match(r"(?:what|which|who|why|how|when|is|are|do|does|can|could|tell|write)\b", plain)
        or len(plain.split()) > 14
    ):
        return Question("free")
    phrase = _thing(plain)
    return Question("all" if several(phrase) and phrase == plain else "find", phrase)


def several(phrase: str) -> bool:
    """Whether a phrase is one bare plural noun, with an adjective or two: "red cups", "people"."""
    words = phrase.split()
    if not words or len(words) > 3 or {"on", "in", "of", "at", "left", "right", "with", "behind", "near"} & set(words):
        return False
    last = words[-1]
    return (
        last in _PLURALS
        or bool(re.search(r"[^suia]s$", last))
        and last not in ("scissors", "glasses", "pants", "jeans", "shorts", "skis", "lens")
    )


def _thing(text: str) -> str:
    """Without article and without what only says "in the picture"."""
    text = (
        _HERE.sub("", text.strip(" ?.!,"))
        if re.search(r"\b(?:there|see|here|picture|image|photo|photograph|scene|visible)\b", text)
        else text
    )
    text = re.sub(r" (?:are|is)(?: \w+ing)?$", "", text.strip(" ?.!,"))
    text = re.sub(r"^(\w+) do(?:es)? (the .+?) have$", r"\1 of \2", text)
    return re.sub(r"^(?:the|a|an|any|some|all the|all|this|that|these|those|its|his|her) ", "", text).strip()
