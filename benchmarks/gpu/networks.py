"""A UNet with random weights on the device and, if torch is there, on torch's: the same numbers."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.calls import PERIOD
from refsd.families import DEFAULT
from refsd.leaf import Weight
from refsd.models import unet
from refsd.models.layers import Text
from refsd.networks import shapes_of
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.weights import place_all
from refsd.pipelines.planned import planned_network
from refsd.registry import use
from refsd.weights import to_tree

# For a rehearsal: Stable Diffusion 1.5's kinds of blocks, as small as they can be.
TINY = {"_class_name": "UNet2DConditionModel", "sample_size": 4, "block_out_channels": [6, 12],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2,
        "cross_attention_dim": 6, "norm_num_groups": 2}


@contextmanager
def light(work: Any) -> Iterator[None]:
    """In a rehearsal the kernels are the definitions: lockstep takes half a minute for a step."""
    if not work.rehearse:
        yield
        return
    import pytest
    import standing_in

    with pytest.MonkeyPatch.context() as patch:
        standing_in.stand_in(patch)
        yield


class Network:
    """Configuration, weights and inputs in a dtype, on the host. tiny: for a rehearsal"""

    def __init__(self, dtype: str, tiny: bool, batch: int = 2):
        config = TINY if tiny else DEFAULT.configs["unet"]
        self.config, self.dtype = planned_network("unet", config).config, dtype
        self.tensors = {name: _weight(name, shape, i, dtype) for i, (name, shape)
                        in enumerate(shapes_of("unet", config).items())}
        side, length = (4, 3) if tiny else (64, 77)
        random = np.random.default_rng(1)
        self.inputs = {
            "sample": random.standard_normal((batch, 4, side, side)).astype(dtype),
            "timesteps": np.full(batch, 981),
            "text": random.standard_normal((batch, length, config["cross_attention_dim"])
                                           ).astype(dtype)}

    def numpy(self) -> np.ndarray:
        """The definition's result in float32."""
        wide = {name: array.astype("float32") for name, array in self.tensors.items()}
        inputs = [x.astype("float32") if x.dtype != np.int64 else x for x in self.inputs.values()]
        return unet.unet(*inputs, **to_tree(wide), config=self.config)


_BLOCK = np.random.default_rng(0).uniform(-1, 1, PERIOD).astype("float32")


def _weight(name, shape, i, dtype):
    """As benchmarks/models.py has them, but rounded before they are repeated."""
    if "norm" in name:
        return np.full(shape, float(name.endswith("weight")), dtype)
    return np.resize(np.roll(_scaled(max(math.prod(shape[1:]), 1), dtype), -7919 * i), shape)


@functools.cache
def _scaled(inputs, dtype):
    return (_BLOCK * np.float32(1 / np.sqrt(inputs))).astype(dtype)


class Ours:
    """The network on our device. As in a pipeline, keys and values of the text are made once."""

    def __init__(self, network: Network):
        leaves = {name: Weight(array, name) for name, array in network.tensors.items()}
        place_all(leaves)
        self.tree, self.config = to_tree(leaves), network.config
        self.inputs = {name: x if name == "timesteps" else to_device(x)
                       for name, x in network.inputs.items()}
        self.text = Text(self.inputs["text"])

    def step(self, sample: Any = None, timesteps: Any = None) -> Any:
        """What is predicted, launched from Python op by op."""
        sample = self.inputs["sample"] if sample is None else sample
        timesteps = self.inputs["timesteps"] if timesteps is None else timesteps
        with use("cuda"):
            return unet.unet(sample, timesteps, self.text, **self.tree, config=self.config)


def torch_step(network: Network) -> tuple[Any, tuple[Any, ...]]:
    """The same as a torch module with its inputs, on torch's GPU or, without one, its processor."""
    import torch

    from benchmarks.gpu.torch_networks import Step

    place = "cuda" if torch.cuda.is_available() else "cpu"
    tree = to_tree({name: torch.from_numpy(array).to(place)
                    for name, array in network.tensors.items()})
    inputs = tuple(torch.from_numpy(x).to(place) for x in network.inputs.values())
    return Step(tree, network.config), inputs
