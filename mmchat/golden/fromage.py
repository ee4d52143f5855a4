"""Recorded cases of FROMAGe (kohjingyu/fromage): texts, pictures, a tiny whole model, interleaved prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from mmchat.engines.tokens import Tokens, byte_pairs
from mmchat.families.fromage import FAMILY, MARKS, RET, Fromage, build, frame
from mmchat.geometry import Frame
from mmchat.golden import Case, Line, Outputs, texts
from mmchat.golden.llava import images
from mmchat.golden.loading import filled
from mmchat.nets.retrieval import Library, Shelf

IGNORED = -100
PREFIX = "A picture of"
START = "</s>"
BESIDE = ("model.lm.lm_head.weight", "model.input_embeddings.weight", "model.lm.model.decoder.embed_tokens.weight")


def captions(case: Case) -> list[Line]:
    """How a generated caption is cut: after its first line, or else after its first sentence."""
    return texts.table(case.info["parse"], lambda entry: first_caption(entry["text"]), name="caption")


def first_caption(text: str) -> str:
    """The first line of a caption, or its first sentence where it has one line."""
    text = text.strip("\n")
    line, newline, _ = text.partition("\n")
    sentence, stop, _ = text.partition(".")
    return line + newline if newline else sentence + stop


def preprocessed(case: Case, dtype: torch.dtype) -> Outputs:
    """The middle of the picture, as in training, and the squashed picture that our family shows."""
    config = case.config
    kept = {"mean": tuple(config["mean"]), "std": tuple(config["std"])}
    ways = {"pixel_values": "crop", "pixel_values_after_squash": "squash"}
    return {
        name.replace("image", key): torch.from_numpy(Frame(config["shortest_edge"], way, **kept).fit(image)[0])
        for key, way in ways.items()
        for name, image in images(case).items()
    }


def tokens_of(case: Case) -> Tokens:
    """The toy tokenizer beside a case, with the family's marks behind its own tokens."""
    files = (case.path.with_name(name) for name in ("toy_vocab.json", "toy_merges.txt"))
    tokenizer = byte_pairs(*files, {"bos_token": START, "pad_token": "<pad>"})
    tokenizer.add_special_tokens(list(MARKS))
    return Tokens(tokenizer, [tokenizer.token_to_id(START)])


def sizes(case: Case) -> dict[str, Any]:
    """A case's config under the keys of model_args.json and its parts."""
    config = case.config
    vision = {**config["vision"], "image_size": config["side"]}
    return {**config, "llm_config": config["opt"], "vision_config": vision}


def loaded(case: Case, dtype: torch.dtype) -> Fromage:
    """The model as it is published: what the file holds, the language model's longer table, the tower."""
    held = case.part("ckpt.") | {f"model.lm.{name}": tensor for name, tensor in case.part("opt_file.").items()}
    state = {name: tensor for name, tensor in case.state().items() if name not in BESIDE} | held
    return filled(lambda: build(sizes(case)), state, dtype, FAMILY.keys, FAMILY.drop, FAMILY.fold, FAMILY.parts)


@torch.no_grad()
def whole(case: Case, dtype: torch.dtype) -> Outputs:
    """Pictures to vectors, captioning and retrieval with and without a beginning, greedy ids, an index and scores."""
    model, given, config = loaded(case, dtype), case.inputs(dtype), case.config
    (level,) = model.vision(given["pixel_values"])
    pooled = model.vision.pooled(level)
    shown, rows = torch.stack(model.see(given["pixel_values"]).images), model.head.picture(pooled)
    tokens = tokens_of(case)
    prefix = torch.tensor(tokens.ids(PREFIX))
    (pad,) = tokens.start  # the authors' loader makes the end token the pad, and it is the start token too
    before = model.embed(prefix).expand(len(shown), -1, -1)
    words, asking = model.embed(given["labels"]), model.embed(given["labels_ret"])
    at, row = given["caption_len_ret"] - 1, torch.arange(len(shown))
    states = model.states(asking)
    logits = model.language.lm_head(states)
    query = model.head.query(states[row, at])
    prompt = torch.cat((shown[0], words[0, : given["caption_len"][0]]))[None]
    ret, steps = config["retrieval_token_idx"], case.tensors["out.generated"].shape[1]
    ids, steps_logits, last = generated(model, prompt, steps, ret)
    scaled = config["ret_scale_factor_of_generated_scaled"], config["min_word_tokens_of_generated_scaled"]
    index = given["index_embeddings"]
    return {
        "pooled": pooled,
        "visual_embs_captioning": shown,
        "visual_embs_retrieval": rows[:, None],
        "caption_logits": model.language(inputs_embeds=torch.cat((shown, words), 1)).logits,
        "caption_labels": labelled(given["labels"], shown.shape[1], pad),
        "caption_prefix_logits": model.language(inputs_embeds=torch.cat((shown, before, words), 1)).logits,
        "caption_prefix_labels": labelled(given["labels"], shown.shape[1] + len(prefix), pad),
        "retrieval_text_embedding": query,
        "retrieval_image_embedding_scaled": model.head.scaled(rows),
        "retrieval_logits": logits,
        "ret_logit_row": logits[row, at - 1],
        "retrieval_last_hidden": states,
        "retrieval_prefix_text_embedding": model.head.query(
            model.states(torch.cat((before, asking), 1))[row, at + len(prefix)]
        ),
        "generated": ids,
        "generated_embeddings_last": model.head.query(last),
        "generated_logits": steps_logits,
        "generated_scaled": generated(model, prompt, steps, ret, *scaled)[0],
        "prompt_embeddings": prompt,
        "emb_matrix": model.head.scaled(index),
        "scores": model.likeness(states[row, at], index).T,
    }


def labelled(captions: torch.Tensor, before: int, pad: int) -> torch.Tensor:
    """What the loss of captioning is taken over: nothing from the first pad on. captions [B, T] -> [B, before + T]."""
    kept = (captions != pad).long().cumprod(1).bool()
    return torch.nn.functional.pad(captions.masked_fill(~kept, IGNORED), (before, 0), value=IGNORED)


def generated(
    model: Fromage, prompt: torch.Tensor, steps: int, ret: int, factor: float = 1.0, barred: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Greedy ids [1, steps], logits of each step, states of the last pass. `ret` is barred at first, then its logit
    multiplied.
    """
    rows, ids, logits = prompt, [], []
    states = prompt
    for step in range(steps):
        states = model.states(rows)
        row = model.language.lm_head(states[:, -1])
        row[:, ret] = row[:, ret] * factor if step >= barred else float("-inf")
        logits.append(row)
        ids.append(row.argmax(-1))
        rows = torch.cat((rows, model.embed(ids[-1])[:, None]), 1)
    return torch.stack(ids, 1), torch.stack(logits, 1), states


def interleaved(case: Case) -> list[Line]:
    """Pictures and texts in turn: the ids they become, what is said, which pictures are found and were tried."""
    own = Case(case.path.with_name("whole_tiny.json"))
    model, tokens, rows = loaded(own, torch.float32), tokens_of(case), own.inputs()["index_embeddings"]
    library = Library(tuple(f"img_{number:02d}" for number in range(len(rows))), rows)
    shown = load_file(case.path.with_name("toy_images.safetensors"))
    lines = []
    for entry in case.info["interleaved"]:
        theirs = {key: entry[key] for key in ("sequence", "outputs", "paths_opened")}
        shelf = Shelf(library, lambda path, bad=entry["unreadable_paths"]: path not in bad)  # type: ignore[misc]
        pieces = [piece if isinstance(piece, str) else picture(shown, piece) for piece in entry["prompts"]]
        about = {**entry, "text": entry["prompts"]}

        def ours(entry: texts.Entry, pieces: Any = pieces, shelf: Shelf = shelf) -> dict[str, Any]:
            sequence, outputs = spoken(own, model, tokens, shelf, pieces, **entry["arguments"])
            return {"sequence": sequence, "outputs": outputs, "paths_opened": shelf.opened}

        said = f"interleaved{' ' + entry['raises'] if entry['raises'] else ''}"
        lines.append(texts.line(about, ours, theirs, said))
    return lines


def picture(shown: dict[str, torch.Tensor], entry: dict[str, Any]) -> Image.Image:
    return Image.fromarray(shown["image." + "_".join(map(str, entry["image_seed_w_h"]))].numpy())


@torch.no_grad()
def spoken(
    case: Case,
    model: Fromage,
    tokens: Tokens,
    shelf: Shelf,
    pieces: Sequence[str | Image.Image],
    num_words: int = 0,
    ret_scale_factor: float = 1.0,
    max_num_rets: int = 1,
    max_img_per_ret: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> tuple[list[Any], list[Any]]:
    """The ids of a prompt, and what follows it: texts, and after a text that ends with the mark the pictures found.

    No words wanted: the prompt's own marks are answered.
    """
    if num_words < 0 or (temperature == 0 and top_p < 1):
        raise ValueError("words are counted from 0, and the likeliest word is not drawn from a share of them")
    fit = Frame(case.config["side"], "crop", mean=frame({}).mean, std=frame({}).std)
    sequence: list[Any] = []
    vectors: list[torch.Tensor] = []
    places: list[int | None] = []  # the id at each position, None where a picture stands
    started = False
    for piece in pieces:
        if isinstance(piece, str):
            ids = [*(() if started else tokens.start), *tokens.ids(piece)]
            started = True
            sequence.append(ids)
            vectors.append(model.embed(ids))
            places += ids
        else:
            vectors += model.see(torch.from_numpy(fit.fit(piece)[0])[None]).images
            sequence.append("image")
            places += [None] * len(vectors[-1])
    if not started:
        raise ValueError("a prompt needs words")
    rows, ret = torch.cat(vectors)[None], tokens.token(RET)
    assert ret is not None
    if num_words:
        made = generated(model, rows, num_words, ret, ret_scale_factor)[0][0].tolist()
        newline = tokens.ids("\n")[0]
        made = made[: made.index(newline)] if newline in made[1:] and made[0] != newline else made
        rows = torch.cat((rows, model.embed(made)[None]), 1)
        places = [*(None for _ in places), *made]
    states = model.states(rows)[0]
    asked = [number for number, one in enumerate(places) if one == ret][:max_num_rets]
    if not asked:
        return sequence, [first_caption(words(tokens, places))]
    outputs: list[Any] = []
    after = 0
    for at in asked:
        found = shelf.best(model.likeness(states[at : at + 1], shelf.library.rows)[0], max_img_per_ret)
        outputs.append(first_caption(words(tokens, places[after:at])) + f" {RET}")
        outputs.append([shelf.library.paths[index] for index in found])
        after = at + 1
    return sequence, outputs


def words(tokens: Tokens, places: Sequence[int | None]) -> str:
    """The text of ids, marks left out."""
    return tokens.tokenizer.decode([one for one in places if one is not None], skip_special_tokens=True)


HANDLERS = {
    "dialect": captions,
    "prompts": interleaved,
    "get_pixel_values_for_model": preprocessed,
    "Fromage loaded with load_fromage (cast to bfloat16 and CUDA switched off)": whole,
}
