"""Graphs of Stable Diffusion 1.5 at its own size, 512 x 512 pixels, have the bits of eager calls.

`make parity-full FAMILY=sd1`: random weights, one network at a time, 8 GB.
"""

import time
from functools import partial

import numpy as np
import pytest

import refsd
from refsd.backends import find_backend
from refsd.contracts import Spec
from refsd.families import sd1
from refsd.graph import run, trace
from refsd.leaf import Weight
from refsd.networks import shapes_of, validate
from refsd.pipelines.loading import computes
from refsd.pipelines.planned import calls, planned_networks, sized
from refsd.weights.checkpoint import Component

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
PARTS = {"text_encoder": "text_encoder", "unet": "unet", "vae": "decode"}


def weights(part, config):
    """Leaves that let numbers keep their size from layer to layer."""
    random = np.random.default_rng(0)
    for name, shape in shapes_of(part, config).items():
        if "norm" in name:
            array = np.full(shape, float(name.endswith("weight")), "float32")
        else:
            scale = np.float32(1 / np.sqrt(max(np.prod(shape[1:]), 1)))
            array = scale * random.standard_normal(shape, dtype="float32")
        yield name, Weight(array, f"{part}.{name}")


@pytest.mark.parametrize("part", PARTS)
def test_sd1(part):
    configs, random = sd1.SD1.configs, np.random.default_rng(1)
    tensors = dict(weights(part, configs[part]))
    find_backend("numba").place(tensors)
    loaded = Component(validate(part, configs[part]), tensors, part)
    network = computes(part, loaded.config).of(loaded, "numba", False)
    networks = {**planned_networks(configs, backend="numba"), part: network}
    call, plan, _ = calls(networks, sized(networks, copies=1))[PARTS[part]]
    graph = trace(call)
    assert [node.op for node in graph.nodes] == [planned.op for planned in plan]

    arrays = [random.standard_normal(value.shape, dtype=value.dtype) if value.dtype == "float32"
              else random.integers(0, 999, value.shape, value.dtype)
              for value in (graph.values[n] for n in graph.numbers("input"))]
    assert [type(value) for value in call.args] == [Spec] * len(arrays)
    seconds = {}
    with refsd.use("numba"):
        for kind, function in (("warm-up", partial(call.func, *arrays, **call.keywords)),
                               ("eager", partial(call.func, *arrays, **call.keywords)),
                               ("graph", partial(run, graph, *arrays))):
            begun = time.perf_counter()
            y = function()
            seconds[kind] = time.perf_counter() - begun
            if kind == "eager":
                expected = y
    print(f"\nsd1 {part}: {len(graph.nodes)} ops, eager {seconds['eager']:.2f} s, graph "
          f"{seconds['graph']:.2f} s")
    assert np.isfinite(expected).all() and expected.std() > 1e-3
    assert np.array_equal(y, expected)
