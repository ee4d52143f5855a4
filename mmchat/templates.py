"""Conversation forms, as data: those of FastChat that the LLaVA kin carries, under the names it gives them, and those
of the grounding systems.

Facts from haotian-liu/LLaVA `llava/conversation.py` and from the conversation code of each system named below; a
checkpoint understands only the words it was trained on, to the letter.
"""

from __future__ import annotations

from dataclasses import replace

from mmchat.prompt import Template

_POLITE = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, "
    "explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information."
)
_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
# The oldest form shows the model one exchange before the user's first.
_ENERGY = (
    "Human: What are the key differences between renewable and non-renewable energy sources?###"
    "Assistant: Renewable energy sources are those that can be replenished naturally in a relatively "
    "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
    "Non-renewable energy sources, on the other hand, are finite and will eventually be "
    "depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, "
    "and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically "
    "have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n###"
)


def _hashes(system: str) -> Template:
    return Template(f"{system}###", "Human: {text}###", "Assistant: {text}###", stop=("###",))


def _vicuna(system: str) -> Template:
    return Template(f"{system} ", "USER: {text} ", "ASSISTANT: {text}</s>", stop=("</s>",))


def _chatml(system: str) -> Template:
    user, assistant = "<|im_start|>user\n{text}<|im_end|>", "<|im_start|>assistant\n{text}<|im_end|>"
    return Template(f"<|im_start|>system\n{system}<|im_end|>", user, assistant, stop=("<|im_end|>",))


def _llama_2(system: str) -> Template:
    first = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{{text}} [/INST]"
    return Template("", "<s>[INST] {text} [/INST]", " {text} </s>", first=first, stop=("</s>",))


_OLDEST = replace(_hashes(_POLITE.format(who="human")), image="{text}\n{image}")
_OLDEST = replace(_OLDEST, system=_OLDEST.system + _ENERGY)
_ONE_QUESTION = Template("", "{text}\n", None, stop=("\n",))  # of projector training: a picture, its caption

TEMPLATES: dict[str, Template] = {
    "default": _OLDEST,
    "v0": _OLDEST,
    "v1": _vicuna(_POLITE.format(who="user")),
    "vicuna_v1": _vicuna(_POLITE.format(who="user")),
    "llama_2": _llama_2(_LLAMA_2),
    "mistral_instruct": Template("", "[INST] {text} [/INST]", " {text} </s>", stop=("</s>",)),
    "chatml_direct": _chatml("Answer the questions."),
    "mistral_direct": _chatml("Answer the questions."),
    "plain": _ONE_QUESTION,
    "v0_plain": _ONE_QUESTION,
    "llava_v0": _hashes(_POLITE.format(who="human")),
    "v0_mmtag": replace(_hashes(_TAGGED), image="<Image>{image}</Image>###Assistant: Received.###Human: {text}"),
    "llava_v1": _vicuna(_POLITE.format(who="human")),
    "v1_mmtag": replace(_vicuna(_TAGGED), image="<Image>{image}</Image> ASSISTANT: Received.</s>USER: {text}"),
    "llava_llama_2": _llama_2(_LANGUAGE_AND_VISION),
    "mpt": _chatml(
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
    ),
}

# the grounding systems, each after its own code

_FERRET = (
    "A chat between a human and an AI that understands visuals. In images, [x, y] denotes points: top-left [0, 0], "
    "bottom-right [width-1, height-1]. Increasing x moves right; y moves down. Bounding box: [x1, y1, x2, y2]. "
    "Image size: 1000x1000. Follow instructions. "
)
_FERRET_FIRST = (
    "A chat between a curious human and an artificial intelligence assistant. Assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language. "
    "In images, points are represented by coordinates [x, y]. The top-left corner is [0, 0]. The bottom-right corner "
    "is [width-1, height-1]. Increasing x moves right across the image while increasing y moves down. A bounding box "
    "is marked by [x1, y1, x2, y2] with the top-left and bottom-right points being [x1, y1] and [x2, y2] respectively. "
    "The image size is assumed to be (1000, 1000), i.e., width=1000, height=1000. Follow the instructions carefully. "
)
_HONEYBEE = "The following is a conversation between a curious human and AI assistant."
_HONEYBEE_DEMO = (
    "The following is a conversation between a curious human and AI. "
    "The AI gives helpful, detailed, and polite answers to the human's questions."
)


def _introduced(template: Template, closing: str) -> Template:
    """Groma's first exchange, in which picture and regions are handed over; `closing` stands between its two turns."""
    handed = "Here is an image with region crops from it. Image: {image}. Regions: {candidates}."
    return replace(
        template, image=f"{handed}{closing.format('Thank you for the image! How can I assist you with it?')}{{text}}"
    )


def _ai(system: str) -> Template:
    return Template(
        system, "\nHuman: {text}", "\nAI: {text}", image="{image}\nHuman: {text}", opening="\nAI: ", stop=("\nHuman:",)
    )


_INST = Template("", "<s>[INST] {text} [/INST]", "{text}", image="<Img>{image}</Img> {text}", stop=("</s>",))
_HEADED = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"

TEMPLATES |= {
    "lego": TEMPLATES["llava_v0"],  # GroundingGPT's name for it; what it calls llava_v0 begins with a greeting
    "lego_greeted": _hashes(
        f"{_POLITE.format(who='human')}###Human: Hi!###Assistant: Hi there! How can I help you today?"
    ),
    "llama3": Template(  # INF-LLaVA: the string begins with the token that the tokenizer puts in front once more
        "<|begin_of_text|>" + _HEADED.format("system", _POLITE.format(who="user")),
        _HEADED.format("user", "{text}"),
        _HEADED.format("assistant", "{text}"),
        stop=("<|eot_id|>",),
    ),
    "llava_llama_3": Template(  # LLaVA-NeXT's; trained with the token in front that the tokenizer puts there, once
        _HEADED.format("system", _LANGUAGE_AND_VISION),
        _HEADED.format("user", "{text}"),
        _HEADED.format("assistant", "{text}"),
        stop=("<|eot_id|>",),
    ),
    "ferret_v1": _vicuna(_FERRET),
    "ferret_first": _vicuna(_FERRET_FIRST),
    "ferret_vicuna_v1": _vicuna(_FERRET.rstrip()),  # Ferret-UI's three
    "ferret_llama_3": Template(
        "<|begin_of_text|>" + _HEADED.format("system", _FERRET.rstrip()),
        _HEADED.format("user", "{text}"),
        _HEADED.format("assistant", "{text}"),
        stop=("<|eot_id|>",),
    ),
    "ferret_gemma_instruct": Template(
        _FERRET.rstrip(),
        "<start_of_turn>user\n{text}<end_of_turn>\n",
        "<start_of_turn>model\n{text}<end_of_turn>\n<eos>",
        stop=("<end_of_turn>", "<eos>"),
    ),
    "llava_grounding": replace(_vicuna(_POLITE.format(who="user")), assistant="ASSISTANT: {text}"),  # </s> is taken out
    "shikra": replace(_vicuna(_POLITE.format(who="user")), image="<im_start>{image}<im_end> {text}"),
    "minigpt_v2": _INST,
    "minigpt_v2_training": replace(_INST, user="[INST] {text}  [/INST]"),
    "kosmos2": Template("", "{text}", " {text}", image="<image>{image}</image> {text}", opening=""),
    "groma": _introduced(_vicuna(_POLITE.format(who="user")), " ASSISTANT: {}</s>USER: "),
    "groma_default": _introduced(
        replace(_vicuna(_POLITE.format(who="user")), assistant="ASSISTANT: {text} "), " ASSISTANT: {} USER: "
    ),
    "groma_simple": _introduced(Template("", "{text} ", "{text}"), " {}"),
    "groma_llama_2": _introduced(_llama_2(_LANGUAGE_AND_VISION), " [/INST] {} </s><s>[INST] "),
    "honeybee": _ai(_HONEYBEE),
    "honeybee_polite": _ai(
        f"{_HONEYBEE} The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    "honeybee_demo": _ai(_HONEYBEE_DEMO),
    "honeybee_captions": Template("", "{text}", None, image="{image} {text}"),
}

# models of other houses

_INTERN = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_INTERN_25 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_END = "<｜end▁of▁sentence｜>"


def _turns(system: str, start: str, end: str, opening: str) -> Template:
    """Turns that each begin with a role's mark and end with `end`; {} in `start` is the role."""
    user, assistant = start.format("user") + "{text}" + end, start.format("assistant") + "{text}" + end
    return Template(start.format("system") + system + end, user, assistant, opening=opening, stop=(end.strip(),))


_IM = "<|im_start|>{}\n"
TEMPLATES |= {
    "internvl": _turns(_INTERN, _IM, "<|im_end|>", _IM.format("assistant")),
    "internvl_phi3": _turns(_INTERN, "<|{}|>\n", "<|end|>", "<|assistant|>\n"),
    "internvl2_5": _turns(_INTERN_25, _IM, "<|im_end|>\n", _IM.format("assistant")),
    "deepseek_vl2": Template(
        "", "<|User|>: {text}\n\n", f"<|Assistant|>: {{text}}{_END}", opening="<|Assistant|>:", stop=(_END,)
    ),
    "deepseek_vl2_bare": Template("", f"{{text}}{_END}", f"{{text}}{_END}", opening="", stop=(_END,)),
    "deepseek_vl2_plain": Template("", "{text}", "{text}", opening=""),
    "cogvlm_base": Template("", "{text}", None, image="{image}{text}"),
    "cogvlm_chat": Template("", " [INST] {text} [/INST] ", "{text}", image="{image}{text}", opening=""),
    "cogvlm_vqa": Template("", "Question: {text}", None, image="{image}{text}", opening=" Short answer:"),
    "cogvlm_chat_old": Template("", "Question: {text}", " Answer: {text}\n", image="{image}{text}", opening=" Answer:"),
    "qwen_vl": Template("", "{text}", "{text}", image="{image}\n{text}", opening=""),
}

FLORENCE_2: dict[str, str] = {  # the sentence that each task's token stands for
    "<OCR>": "What is the text in the image?",
    "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OD>": "Locate the objects with category name in the image.",
    "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
    "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
    "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {text}",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {text} in the image with mask",
    "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {text}",
    "<OPEN_VOCABULARY_DETECTION>": "Locate {text} in the image.",
    "<REGION_TO_CATEGORY>": "What is the region {text}?",
    "<REGION_TO_DESCRIPTION>": "What does the region {text} describe?",
    "<REGION_TO_OCR>": "What text is in the region {text}?",
}
REX_OMNI: dict[str, str] = {
    "detection": "Detect {text}. Output the bounding box coordinates in [x0, y0, x1, y1] format.",
    "pointing": "Point to {text}.",
    "visual_prompting": (
        "Given reference boxes {text} indicating one or more objects, find all similar objects in the image and output "
        "their bounding boxes."
    ),
    "keypoint": (
        "Can you detect each {text} in the image using a [x0, y0, x1, y1] box format, and then provide the coordinates "
        "of its {keypoints} as [x0, y0]? Output the answer in JSON format."
    ),
    "ocr_box": "Detect all {text} and recognize them.",
    "ocr_polygon": (
        "Can you detect all {text} in this image in polygon format like [x0, y0, x1, y1, x2, y2 ...] and then "
        "recognize them?"
    ),
    "gui_grounding": 'Detect element "{text}"" in the image.',
    "gui_pointing": 'Point to element "{text}".',
}


def florence_2(text: str) -> str:
    """What Florence-2 is asked where a user writes a task's token, with or without words beside it.

    ValueError where the task takes no words and has some.
    """
    for token, sentence in FLORENCE_2.items():
        if token in text:
            words = text.replace(token, "").strip()
            if words and "{text}" not in sentence:
                raise ValueError(f"the task {token} takes no words beside it: leave out {words!r}")
            return sentence.replace("{text}", words)
    return text
