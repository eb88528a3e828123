"""refsd in a worker process: variants "numba", "numpy", "bfloat16 numba", "bfloat16 int8 numba".

It referees results too.
"""

import numpy as np

import refsd
from benchmarks import agreement, models, peaks
from benchmarks.calls import make_arrays
from refsd import functional as F
from refsd.backends import find_backend
from refsd.half import to_float32, to_half
from refsd.leaf import Weight
from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.components import TextEncoder, UNet
from refsd.weights import load_folder

_loaded = {}


def prepare(job, variant, threads):
    """A function that does the job's work once and returns its result."""
    if job["kind"] == "op":
        return _op(job, variant)
    if job["kind"] in ("fma", "copy"):
        return {"fma": peaks.fma, "copy": peaks.copy}[job["kind"]](threads)[0]
    if job["kind"] == "bundled":
        pipe = refsd.StableDiffusionPipeline.from_pretrained(backend=variant)
        return lambda: pipe(models.PROMPT, num_inference_steps=models.STEPS, generator=models.SEED,
                            guidance_scale=models.GUIDANCE, output_type="np").images
    return _part(job, variant)


def _op(job, variant):
    arrays = as_in_a_network(make_arrays(job["inputs"]), variant)
    function, options = getattr(F, job["op"]), job["options"]

    def run():
        with refsd.use(variant):
            return function(*arrays, **options)

    return run


def as_in_a_network(arrays, variant):
    """Weights as a pipeline loads them for the backend, pictures as its kernels hand them on."""
    weights = {name: arrays[name] for name in ("weight", "bias") if arrays.get(name) is not None}
    weights = {name: Weight(weight, name) for name, weight in weights.items()}
    find_backend(variant).place(weights)
    return [weights.get(name, channels_last(array)) for name, array in arrays.items()]


def channels_last(array):
    """Pictures with their channels side by side in memory, as the kernels hand them on."""
    if array is None or array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _part(job, variant):
    """A whole network, its weights packed for the backend, and kept but for dense ones of int8."""
    if "dense" in variant:
        return lambda: _network(job, variant, _load(job, variant))()
    key = models.COMPONENT[job["kind"]], variant
    if key not in _loaded:
        _loaded[key] = _load(job, variant)
    return _network(job, variant, _loaded[key])


def _dtype(variant):
    return "bfloat16" if "bfloat16" in variant else "float32"


def _load(job, variant):
    form = "int8" if "int8" in variant else None
    found = load_folder(job["folder"], models.COMPONENT[job["kind"]], dtype=_dtype(variant),
                        weights=form)
    if "dense" in variant:
        for name, weight in found.tensors.items():
            found.tensors[name] = Weight(weight.dense(), name)
    find_backend(variant.split()[-1]).place(found.tensors)
    return found


def _network(job, variant, found):
    dtype, backend, part = _dtype(variant), variant.split()[-1], job["kind"]
    x = models.inputs(part)
    if dtype != "float32":
        x = {name: to_half(array, dtype) if array.dtype.kind == "f" else array
             for name, array in x.items()}
    if part == "clip":
        encoder = TextEncoder(found.tree["text_model"], CLIPTextConfig.from_json(found.config),
                              backend)
        return lambda: encoder(x["ids"]).last_hidden_state
    if part == "unet":
        unet = UNet(found.tree, UNetConfig.from_json(found.config), backend)
        return lambda: unet(x["sample"], x["timestep"], x["text"])
    vae = VAE(found.tree, VAEConfig.from_json(found.config), backend)
    if part == "decode":
        return lambda: vae.decode(x["latents"])
    return lambda: vae.encode(x["picture"]).mean


def numpy(result):
    return to_float32(np.asarray(result))


def referee(job, own, others):
    """What agreement says of our own result and of files with the others'."""
    found = {}
    if job["kind"] != "op":
        results = {"refsd": own} | {name: np.load(path) for name, path in others.items()}
        for name, result in results.items():
            truth, allowed = job.get("held_to", {}).get(name, ("truth", job["allowed"]))
            found[name] = (_said(agreement.near, result, results[truth].astype("float64"), allowed)
                           if truth in results else {"red": f"there is no result of {truth}"})
        del found["truth"]
        return found

    arrays, options = make_arrays(job["inputs"]), job["options"]
    found["refsd"] = _said(agreement.check, job["op"], arrays, options, own)
    algorithm = found["refsd"].get("algorithm")
    for name, path in others.items():
        found[name] = _said(agreement.compare, job["op"], arrays, options,
                            np.load(path, mmap_mode="r"), algorithm)
    return found


def _said(judge, *arguments):
    try:
        return judge(*arguments)
    except AssertionError as problem:
        return {"red": str(problem)}
