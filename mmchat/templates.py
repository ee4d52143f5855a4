"""Conversation forms that several families share, as data: those of FastChat that the LLaVA kin carries, under the
names it gives them.

Facts from haotian-liu/LLaVA `llava/conversation.py`; a checkpoint understands only the words it was trained on, to the
letter.
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
