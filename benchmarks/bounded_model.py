"""Models of published size with random float16 weights, written tensor by tensor."""

import json
import struct

import numpy as np

from benchmarks.models import STEMS, random_weight
from refsd.families import sd1, sdxl
from refsd.networks import shapes_of
from refsd.text.vocabulary import clip_vocabulary

FAMILIES = {"sd1": (sd1.SD1, "StableDiffusionPipeline"),
            "sdxl": (sdxl.SDXL, "StableDiffusionXLPipeline")}


def make(cache, name):
    """The folder of a model, written unless it is there. model_index.json comes last."""
    folder = cache / f"{name}-float16"
    if (folder / "model_index.json").is_file():
        return folder
    family, pipeline = FAMILIES[name]
    for part, config in family.configs.items():
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        stem = "model" if part.startswith("text_encoder") else STEMS[part]
        write(place / f"{stem}.safetensors", shapes_of(part, config))
        if part.startswith("text_encoder"):
            tokenizer(folder / part.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(family.scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


def write(path, shapes):
    """A .safetensors of float16 whose tensors are never all in memory."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, (name, shape) in enumerate(shapes.items()):
            file.write(random_weight(name, shape, i).astype("<f2").tobytes())


def tokenizer(folder):
    """CLIP's vocabulary as published folders have it."""
    known = clip_vocabulary()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(known.tokens))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *map(" ".join, known.merges)]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": known.length}))
