"""A complete random model of a few thousand weights, written as a real diffusers folder."""

import json
from pathlib import Path

import numpy as np

from refsd.networks import shapes_of
from refsd.text.vocabulary import BOS, EOS, byte_alphabet
from refsd.weights import write_safetensors

MERGES = ["r e", "re d</w>", "c a", "ca t</w>"]
LENGTH = 16  # tokens of a prompt, bos and eos included

TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": LENGTH, "vocab_size": 512 + len(MERGES) + 2,
    "eos_token_id": 512 + len(MERGES) + 1, "hidden_act": "quick_gelu",
}  # fmt: skip
UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 4, "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2,
    "cross_attention_dim": 16, "norm_num_groups": 4,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 4,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip
CONFIGS = {"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE}


def tensors(component, seed=0, config=None):
    """Random weights under the checkpoint's names, small enough that pictures are not all grey."""
    random = np.random.default_rng(seed)
    shapes = shapes_of(component, CONFIGS[component] if config is None else config)
    return {name: _weight(name, shape, random) for name, shape in shapes.items()}


def _weight(name, shape, random):
    if "norm" in name and ".linear." not in name:  # that of adaLN is a layer
        return np.full(shape, float(name.endswith("weight")), "f4")
    scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
    return (scale * random.standard_normal(shape)).astype("f4")


def write_model(folder, *, seed=0, **replaced):
    """The model as a folder that `-m` takes; `unet=` and the like replace a part's tensors."""
    folder = Path(folder)
    for part, config in CONFIGS.items():
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        found = replaced.get(part) or tensors(part, seed)
        write_safetensors(folder / part / f"{stem}.safetensors", found)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    write_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def write_tokenizer(folder):
    """Bytes and four merges: "red" and "cat" are one token each."""
    alphabet = byte_alphabet()
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *merged, BOS, EOS]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LENGTH}))
