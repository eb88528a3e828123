"""A GPT-2 of random weights as a folder, with a tokenizer of bytes and a few merges."""

import json
from pathlib import Path

import numpy as np

from refsd.networks import shapes_of
from refsd.text.vocabulary import EOS, byte_alphabet
from refsd.weights import write_safetensors

MERGES = [["r", "e"], ["re", "d"], ["\u0120", "c"], ["\u0120c", "a"]]
END = 256 + len(MERGES)  # the id of <|endoftext|>
CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": END + 1,
          "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40,
          "bos_token_id": END, "eos_token_id": END}
TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D's, (in, out) in a file


def tensors(config=CONFIG, seed=0):
    """name -> weight as a file has it, without "transformer."; large, so that texts vary."""
    random = np.random.default_rng(seed)
    found = {name: random.standard_normal(shape).astype("f4") * 0.6
             for name, shape in shapes_of("gpt2", config).items()}
    return {name: x.T.copy() if name.endswith(TURNED) else x for name, x in found.items()}


def write(folder, config=CONFIG, *, prefix="transformer.", weights=None, files=()):
    """The folder of such a model; files: more of them, name -> content."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(byte_alphabet())
    vocabulary = [*alphabet, *(a + b for a, b in MERGES), EOS]
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocabulary)},
             "merges": MERGES}
    content = {"config.json": config, "tokenizer.json": {"model": model, "added_tokens": []},
               **dict(files)}
    for name, value in content.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    weights = tensors() if weights is None else weights
    write_safetensors(folder / "model.safetensors",
                      {prefix + name: x for name, x in weights.items()})
    return folder
