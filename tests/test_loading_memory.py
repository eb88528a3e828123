"""Loading never holds a model twice: what it asks for, one tensor on its way, and nothing else."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from refsd.backends import find_backend
from refsd.families import SD1
from refsd.networks import shapes_of
from refsd.registry import make_ready
from refsd.weights import load_checkpoint, write_safetensors
from refsd.weights.ldm import to_ldm

ROOT = Path(__file__).parent.parent
# Stable Diffusion 1 with narrow blocks: 10 million numbers, 0.46 in the largest tensor.
CONFIGS = {
    "text_encoder": {**SD1.configs["text_encoder"], "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 1000},
    "unet": {**SD1.configs["unet"], "block_out_channels": [32, 64, 160, 160],
             "cross_attention_dim": 64},
    "vae": {**SD1.configs["vae"], "block_out_channels": [32, 64, 64, 64]},
}
STEM = {"text_encoder": "model"}
BESIDE = 3 << 20  # headers, trees and leaves of a thousand tensors, and what NumPy keeps to read
FORMS = [("float32", None), ("float64", None), ("bfloat16", None), ("float32", "float16"),
         ("float32", "bfloat16"), ("float32", "int8"), ("bfloat16", "int8"), ("int8", None),
         ("float32", "as-is")]  # fmt: skip


def tensors(part):
    random = np.random.default_rng(len(part))
    return {name: random.standard_normal(shape, dtype="f4")
            for name, shape in shapes_of(part, CONFIGS[part]).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part, config in CONFIGS.items():
        (path / part).mkdir()
        (path / part / "config.json").write_text(json.dumps(config))
        write_safetensors(path / part / f"{STEM.get(part, 'diffusion_pytorch_model')}.safetensors",
                          tensors(part))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    write_safetensors(path, {name: array for part, config in CONFIGS.items() for name, array
                             in to_ldm(part, tensors(part), config, SD1).items()})
    return path


@pytest.mark.parametrize("backend, dtype, weights", [
    *(("numpy", *form) for form in FORMS),
    ("numba", "float32", None), ("numba", "bfloat16", None), ("numba", "float32", "int8")])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_one_copy_and_one_tensor(request, kind, backend, dtype, weights):
    """The peak of arrays, while a model is read, converted, and placed as a backend wants it.

    On its way a tensor is there as stored and as converted, and of int8 its scaled values and
    their rounding: at most four times, as wide as what it reads as.
    """
    place, options = request.getfixturevalue(kind), {"configs": CONFIGS} if kind == "file" else {}
    make_ready(backend, "float32")
    tracemalloc.start()
    parts = load_checkpoint(place, dtype=dtype, weights=weights, **options)
    for part in parts.values():
        find_backend(backend).place(part.tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    leaves = [leaf for part in parts.values() for leaf in part.tensors.values()]
    held = sum(leaf.nbytes for leaf in leaves)
    largest = max(int(np.prod(leaf.shape)) for leaf in leaves)
    wide = 8 if dtype == "float64" else 4
    assert held < peak <= held + 4 * wide * largest + BESIDE, (held, peak)


MEASURE = """
import re, sys
from pathlib import Path
from refsd.weights import load_checkpoint
import refsd.half, refsd.quantized
status = Path("/proc/self/status")
def kilobytes(name): return int(re.search(name + r":\\s*(\\d+)", status.read_text())[1])
before = kilobytes("VmRSS")
parts = load_checkpoint(sys.argv[1], dtype=sys.argv[2])
print(1024 * (kilobytes("VmHWM") - before),
      sum(leaf.nbytes for part in parts.values() for leaf in part.tensors.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone says VmHWM")
def test_the_process_does_not_hold_it_twice_either(folder):
    """Of 40 MB, or 20 in halves; 12 are the libraries' that reading is the first to need."""
    for dtype in ("float32", "bfloat16"):
        said = subprocess.run([sys.executable, "-c", MEASURE, str(folder), dtype], cwd=ROOT,
                              capture_output=True, text=True, check=True).stdout
        peak, held = map(int, said.split())
        assert held < peak <= held + (12 << 20), (peak, held)
