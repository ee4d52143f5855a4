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
    "ferret_v1": _vicuna(_FERRET),
    "ferret_first": _vicuna(_FERRET_FIRST),
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
