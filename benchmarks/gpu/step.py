"""A UNet step of Stable Diffusion 1.5 (batch 2, 64 x 64 latents, halves) beside torch's, and fifty.

Both run the same composition (torch_networks.py) on the same random weights in the same process.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from benchmarks import models
from benchmarks.gpu.networks import Network, Ours, light, torch_step
from benchmarks.gpu.work import middle
from refsd.backends import BACKENDS
from refsd.families import DEFAULT
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.device import current
from refsd.pipelines import stages
from refsd.pipelines.components import UNet
from refsd.pipelines.loading import bundled_model
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.registry import use
from refsd.schedulers import from_config

DTYPE = "float16"
# A network's own roundings: 20 of its dtype's for each of the two, as benchmarks/agreement.py has
# it for bfloat16, where torch is 7 off.
ALLOWED = 2 * 20 * 2.0**-12
GREY = 0.5  # of 255: pictures are the same when they are written
GOALS = {"torch eager": 1.0, "torch compiled": 1.5}  # refsd's time at most in units of theirs
Rows = Iterator[tuple[str, dict[str, Any]]]


def section(work: Any) -> Rows:
    """Ours first: whatever becomes of torch, this is known then."""
    with light(work):
        yield from _section(work)


def _section(work) -> Rows:
    network = Network(DTYPE, work.rehearse)
    ours = Ours(network)
    replayed = BACKENDS["cuda"].replayed(ours.step, ours.tree)
    inputs = ours.inputs["sample"], ours.inputs["timesteps"]
    kept: dict[str, np.ndarray] = {}
    found: dict[str, float] = {}

    def row(name: str, make: Callable[[], tuple[Callable, Callable, Callable]]) -> Any:
        def measured():
            run, finish, host = make()
            kept[name] = host(run()).astype("float64")
            samples = work.seconds(run, finish)
            found[name] = middle(samples)
            first = next(iter(kept.values()))
            error = float(np.sqrt(np.mean((kept[name] - first)**2) / np.mean(first**2)))
            said = {"seconds": samples, "from_the_first": error}
            return said | ({} if error <= ALLOWED else {"red": f"differs by {error:.3g}"})
        return name, work.guarded(measured)

    wait = current().synchronize
    yield row("refsd by op", lambda: (ours.step, wait, lambda y: y.numpy()))
    yield row("refsd", lambda: (lambda: replayed(*inputs), wait, lambda y: y.numpy()))
    if work.rehearse and kept:
        yield "truth", work.guarded(lambda: _truth(network, kept["refsd by op"]))
    yield from _torch(work, network, row)
    for name, limit in GOALS.items():
        if {"refsd", name} <= set(found):
            ratio = found["refsd"] / found[name]
            red = not work.rehearse and ratio > limit
            yield f"goal: {name}", {"ratio": ratio, "limit": limit} | (
                {"red": f"{ratio:.2f} of its time, wanted at most {limit}"} if red else {})


def _truth(network, y):
    """A small network is compared with the definition in float32."""
    truth = network.numpy()
    error = float(np.sqrt(np.mean((y - truth)**2) / np.mean(truth**2)))
    return {"error": error} | ({} if error <= ALLOWED else {"red": f"differs by {error:.3g}"})


def _torch(work, network, row) -> Rows:
    try:
        import torch
    except ImportError:
        yield "torch", {"skipped": "torch is not installed"}
        return
    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    module, inputs = torch_step(network)

    def host(y):
        return y.float().cpu().numpy()

    def last(x):
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    def channels_last():
        module.channels_last()
        return lambda: module(*map(last, inputs)), wait, host

    def compiled():
        options = {"backend": "eager"} if work.rehearse else {}
        fast = torch.compile(module, fullgraph=True, **options)
        return lambda: fast(*map(last, inputs)), wait, host

    def captured():
        fast = torch.compile(module, fullgraph=True)
        places = tuple(map(last, inputs))
        for _ in range(3):
            fast(*places)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fast(*places)

        def replay():
            graph.replay()
            return y
        return replay, wait, host

    with torch.inference_mode():
        yield row("torch eager", lambda: (lambda: module(*inputs), wait, host))
        yield row("torch channels-last", channels_last)
        yield row("torch compiled", compiled)
        if on_gpu and not work.rehearse:
            yield row("torch compiled, in a graph", captured)


def fifty(work: Any) -> Rows:
    """Guided steps of the pipeline's own loop, from noise to latents."""
    steps = 3 if work.rehearse else 50

    def timed():
        network = Network(DTYPE, work.rehearse, batch=1)
        ours = Ours(network)
        unet = UNet(ours.tree, network.config, "cuda")
        text = to_device(network.inputs["text"])
        scheduler = from_config(DEFAULT.scheduler)

        def denoise():
            with use("cuda"):
                stages.make_schedule(scheduler, steps)
                for step in stages.denoise(unet, scheduler, to_device(network.inputs["sample"]),
                                           text, text, guidance_scale=7.5):
                    latents = step.latents
                current().synchronize()
                return latents

        samples = []
        for _ in range(3):
            begun = time.perf_counter()
            latents = denoise()
            samples.append(time.perf_counter() - begun)
        finite = bool(np.isfinite(latents.numpy().astype("float32")).all())
        return {"seconds": samples[1:], "first": samples[0], "steps": steps} | (
            {} if finite else {"red": "latents are not finite"})

    with light(work):
        yield f"{steps} steps", work.guarded(timed)


def picture(work: Any) -> Rows:
    """A whole picture of the bundled model in float32, and the NumPy backend's."""
    def drawn():
        with tempfile.TemporaryDirectory() as folder:
            model = tiny.write_model(Path(folder) / "tiny") if work.rehearse else bundled_model()
            side, steps = (16, 1) if work.rehearse else (None, 20)
            pictures, seconds = {}, {}
            for backend in ("numpy", "cuda"):
                pipe = StableDiffusionPipeline.from_pretrained(model, backend=backend)
                pipe.set_progress_bar_config(disable=True)
                begun = time.perf_counter()
                pictures[backend] = pipe(models.PROMPT, side, side, num_inference_steps=steps,
                                         generator=models.SEED, output_type="np").images
                seconds[backend] = [time.perf_counter() - begun]
        off = float(abs(pictures["cuda"].astype("float64") - pictures["numpy"]).max()) * 255
        return {"seconds": seconds, "grey_levels": off} | (
            {} if off <= GREY else {"red": f"{off:.3g} grey levels off, allowed {GREY}"})

    with light(work):
        yield "bundled model", work.guarded(drawn)
