"""A model with int8 weights as a folder, and what each layer's rounding costs: `refsd quantize`."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refsd import functional as F
from refsd.atomic import empty_folder, write_file, writing
from refsd.errors import UsageError
from refsd.leaf import Weight
from refsd.networks import NETWORKS
from refsd.quantized import Quantized, can_quantize, quantize
from refsd.registry import watch
from refsd.weights import load_folder, write_safetensors
from refsd.weights.model_index import networks_of, parts_of

REPORT = "quantize.json"


@dataclass
class Layer:
    """What int8 does to one weight: relative errors (of root mean squares) that it alone makes.

    own: of its layer's output, in the calibration run. latents: of the picture's latents at its
    end; None where that was not measured.
    """

    name: str
    own: float
    latents: float | None = None
    kept: bool = False


def measure(pipe: Any, prompt: str, *, steps: int, worst: int,
            keep: Collection[str] = ()) -> tuple[list[Layer], float]:
    """The layers, worst first, and the latents' error with all of them but the kept as int8.

    One run gives each layer's own error; for the `worst` of those outside of the VAE
    a run each, with that layer alone as int8, gives the latents'. Nothing goes by names but `keep`.
    """
    sums: dict[str, np.ndarray] = {}

    def listen(op, inputs, options, output):
        weight = inputs.get("weight")
        if op in ("linear", "conv2d") and type(weight) is Weight and weight.name:
            small = as_int8(weight)
            if small is not weight:
                rounded = getattr(F, op)(**{**inputs, "weight": small}, **options)
                error, size = np.subtract(rounded, output, dtype=np.float64), np.asarray(output)
                found = np.square(error).sum(), np.square(size, dtype=np.float64).sum()
                sums[weight.name] = sums.get(weight.name, 0) + np.array(found)

    def run():
        return pipe(prompt, num_inference_steps=steps, generator=0, output_type="latent").images

    with watch(listen):
        wanted = run()
        pipe.to_output(wanted, "np")
    layers = [Layer(name, float(np.sqrt(error / size)) if size else 0.0, None, matches(name, keep))
              for name, (error, size) in sums.items()]
    layers.sort(key=lambda layer: -layer.own)
    places = dict(_places(pipe))
    measured = [layer for layer in layers if not layer.name.startswith("vae.")][:worst]
    for layer in measured:
        node, key = places[layer.name]
        plain = node[key]
        node[key] = as_int8(plain)
        layer.latents = _apart(run(), wanted)
        node[key] = plain
    for name, (node, key) in places.items():
        if not matches(name, keep):
            node[key] = as_int8(node[key])
    layers.sort(key=lambda layer: (-(layer.latents or 0), -layer.own))
    return layers, _apart(run(), wanted)


def as_int8(weight: Weight) -> Weight:
    """The weight as int8, or itself: a vector, or what int8 cannot stand for."""
    dense = weight.dense()
    if isinstance(weight, Quantized) or not can_quantize(dense):
        return weight
    return Quantized(*quantize(dense), weight.dtype, weight.name)


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name such as unet.conv_in.weight is one of the patterns'."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _apart(found, wanted):
    return float(np.linalg.norm(np.ravel(found - wanted)) / np.linalg.norm(np.ravel(wanted)))


def _places(pipe: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    def walk(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                yield from walk(value)
            elif isinstance(value, Weight) and value.name:
                yield value.name, (node, key)

    for part in pipe.networks.values():
        yield from walk(part.tree)


def write(model: Path, folder: str | Path, *, keep: Collection[str] = ()) -> dict[str, int]:
    """The model's folder with int8 weights in it; the bytes of each part's file.

    NAME as int8 stands beside NAME_scale, float32 (O, 1, ..): the weight is their product. What is
    kept, and vectors, are float32; all other files are copied. Raises UsageError for a single file.
    """
    if not model.is_dir():
        raise UsageError(f"{model}: a single file; give a folder as diffusers writes it")
    out, sizes = empty_folder(folder), {}
    with writing(out):
        for name in parts_of(model) - set(networks_of(model)):
            shutil.copytree(model / name, out / name)
        shutil.copyfile(model / "model_index.json", out / "model_index.json")
        for part in networks_of(model):
            (out / part).mkdir()
            shutil.copyfile(model / part / "config.json", out / part / "config.json")
    for part in networks_of(model):
        file, tensors = out / part / f"{NETWORKS[part].stems[0]}.safetensors", {}
        for name, leaf in load_folder(model, part, force=True).tensors.items():
            tensors |= stored(name, leaf if matches(leaf.name, keep) else as_int8(leaf))
        write_safetensors(file, tensors, {"format": "pt"})
        sizes[part] = file.stat().st_size
    return sizes


def stored(name: str, leaf: Weight) -> dict[str, np.ndarray]:
    """What stands in a file for a leaf."""
    if not isinstance(leaf, Quantized) or leaf.scale is None:
        return {name: leaf.dense()}
    return {name: leaf.values,
            name + "_scale": leaf.scale.reshape(-1, *[1] * (len(leaf.shape) - 1))}


def write_report(folder: str | Path, layers: list[Layer], error: float,
                 about: Mapping[str, Any]) -> None:
    """All that was measured, as JSON beside the model."""
    text = json.dumps({**about, "latents": error, "layers": [asdict(layer) for layer in layers]},
                      indent=1, allow_nan=False)
    write_file(Path(folder) / REPORT, [text.encode()])
