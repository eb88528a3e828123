"""Files and models, whole and damaged, for the tests of refsd.weights."""

import json
import re

import numpy as np
import pytest

from refsd.errors import ModelError, RefsdError, ResourceError, UsageError
from refsd.networks import shapes_of
from refsd.weights import write_safetensors


def file_of(header, body=b"", length=None):
    """The bytes of a safetensors file with this header, true or false."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


GOOD = file_of({"a": entry(), "b": entry("F16", (2, 3), (8, 20)), "c": entry("I64", (), (20, 28))},
               np.arange(28, dtype="u1").tobytes())  # fmt: skip


def refused(call, *words, error=ModelError):
    """The call raises this error, with its exit code, in one line with these words."""
    with pytest.raises(RefsdError) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.exit_code == {ModelError: 3, ResourceError: 4, UsageError: 2}[error]
    assert all(word in text for word in words), text
    assert "\n" not in text and len(text) < 1000 and not re.search(r"0x[0-9a-f]{4}", text), text


TINY = {
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30,
        "max_position_embeddings": 8,
    },
    "unet": {
        "_class_name": "UNet2DConditionModel", "block_out_channels": [8, 16], "sample_size": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 2,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1,
        "cross_attention_dim": 12, "norm_num_groups": 4,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 4,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}  # fmt: skip
STEM = {"text_encoder": "model", "unet": "diffusion_pytorch_model"}
STEM["vae"] = STEM["unet"]


def tiny_tensors(component, seed=0, dtype="f4"):
    """Random weights of the tiny model, under their names."""
    random = np.random.default_rng(seed)
    shapes = shapes_of(component, TINY[component])
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_folder(path, *, variant="", **replaced):
    """The tiny model as a diffusers folder; replaced: another component's tensors."""
    for component, config in TINY.items():
        (path / component).mkdir(parents=True, exist_ok=True)
        (path / component / "config.json").write_text(json.dumps(config))
        tensors = replaced.get(component, tiny_tensors(component))
        file = f"{STEM[component]}{variant and '.' + variant}.safetensors"
        write_safetensors(path / component / file, tensors)
    index = {"_class_name": "StableDiffusionPipeline"}
    (path / "model_index.json").write_text(json.dumps(index))
    return path
