"""What a network asks a GPU for: every launch, its blocks, its bytes and its FLOPs, without a GPU.

The network runs on a device that only counts. Ops that have a CUDA kernel run its own wrapper, so
that variants, splits and copies are those of the code; for others a rule, `by_rule`, says what they
would launch. Nothing is computed, and no weight exists.
"""

import functools
import math
import os
import re
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from refsd.contracts import BYTES
from refsd.leaf import Weight
from refsd.models import clip, unet, vae
from refsd.models.layers import Text
from refsd.numba_ops import cuda  # noqa: F401  declares the kernels
from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.device import Block, on
from refsd.numba_ops.cuda.weights import DeviceWeight
from refsd.pipelines.planned import planned_network
from refsd.registry import kernels, trace

PRODUCTS = ("conv2d", "linear", "matmul", "attention")
BESIDE = re.compile(r"\.(add_|widen|copy|cast|softmax)")  # what is launched beside a product
VIEWS = ("to_tokens", "to_image", "slice", "transpose", "reshape")  # by rule they cost nothing
TILE, QUERIES, ELEMENTS, ROWS = 128, 64, 1024, 8  # of one block, by rule


class Launch(NamedTuple):
    """One kernel on a grid. way: how it multiplies, see `way_of`; rule: it is no kernel of ours."""

    op: str
    kernel: str
    way: str
    blocks: int
    threads: int
    flops: int
    bytes: int
    rule: bool


class Counting:
    """A device that notes what it is asked for. Its memory has addresses and no bytes."""

    name = "a device that counts"

    def __init__(self, capability: int):
        self.capability, self.launches, self.allocated, self.uploaded = capability, [], 0, 0

    def allocate(self, nbytes: int) -> Block:
        """Addresses that nobody has had."""
        self.allocated += -(-nbytes // 256) * 256
        return Block(self, self.allocated, nbytes)

    def free(self, block: Block) -> None:
        """Nothing was taken."""

    def upload(self, host: Any, block: Block, offset: int) -> None:
        """Counted."""
        self.uploaded += host.nbytes

    def download(self, block: Block, offset: int, host: Any) -> None:
        """A step that reads back is not one that a graph can replay."""
        raise RuntimeError(f"{host.nbytes} bytes would be copied to the host; only a device that "
                           "computes has them")

    def launch(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """Noted; FLOPs are shared out when the op has ended."""
        threads, way = variant(factory, constants)
        moved = sum(min(a.size, a.span) * a.dtype.itemsize for a in arguments
                    if isinstance(a, DeviceArray))
        name = f"{factory.name}({', '.join(map(str, constants))})"  # as the gate has it
        self.launches.append(Launch("", name, way, math.prod(grid),
                                    threads, 0, moved, False))

    def synchronize(self) -> None:
        """Nothing is ever left to do."""


@functools.cache
def variant(factory: Any, constants: tuple) -> tuple[int, str]:
    """Threads of a block, and the way it multiplies."""
    asked: set[str] = set()

    class Noting:
        def __getattr__(self, name: str) -> Any:
            asked.add(name)
            return getattr(lockstep, name)

    return factory(Noting(), *constants).threads, way_of(asked)


def way_of(asked: set[str]) -> str:
    """By the instructions that a kernel takes: wgmma, mma, tiles (in registers), or plain."""
    for way in ("wgmma", "mma"):
        if any(name.startswith(way) for name in asked):
            return way
    return "tiles" if asked & {"fma", "load4", "copy16"} else "plain"


def launches(part: str, dtype: str, capability: int, rule: bool = False) -> list[Launch]:
    """Of one run of a part of Stable Diffusion 1.5: 512 x 512, guided.

    "unet" is any step but the "first step", in which the text's keys and values are made.
    rule: as if no op had a kernel yet.
    """
    device = Counting(capability)
    # Which kernels there are is asked of a backend that is available.
    with patch.dict(os.environ, REFSD_CUDA="lockstep"), on(device), trace(
            functools.partial(_answer, device, rule)):
        NETWORKS[part](dtype, device)
    return device.launches


def _answer(device, rule, op, inputs, options, inferred):
    """The result of an op, without numbers; its launches are noted with its name and its FLOPs."""
    first, kernel = len(device.launches), kernels(op).get("cuda")
    inputs = {name: x.dense() if isinstance(x, Weight) else x for name, x in inputs.items()}
    if kernel is not None and not rule:
        result = kernel(*inputs.values(), **options)
    else:
        result = empty(inferred.shape, inferred.dtype,
                       CHANNELS_LAST if len(inferred.shape) == 4 else None)
        device.launches += by_rule(op, inputs, options, inferred)
    mine = device.launches[first:]
    # Of an op's several launches the ones that multiply share its FLOPs, by their blocks.
    products = [launch for launch in mine if not BESIDE.search(launch.kernel)] or mine
    blocks = sum(launch.blocks for launch in products)
    device.launches[first:] = [launch._replace(
        op=op, flops=inferred.flops * launch.blocks // blocks if launch in products else 0)
        for launch in mine]
    return result


def by_rule(op: str, inputs: dict, options: dict, inferred: Any) -> list[Launch]:
    """Until an op has its kernel: tiles of 128 x 128, 64 queries, 1024 elements, 8 rows a block."""
    if op in VIEWS:
        return []
    size, shape = math.prod(inferred.shape), inferred.shape
    half = BYTES[inferred.dtype] == 2
    blocks = -(-size // ELEMENTS)
    if op == "attention":
        blocks = shape[0] * options["heads"] * -(-shape[1] // QUERIES)
    elif op in PRODUCTS:
        columns = shape[1] if op == "conv2d" else shape[-1]
        blocks = -(-(size // columns) // TILE) * -(-columns // TILE)
    elif op == "layer_norm":
        blocks = -(-(size // shape[-1]) // ROWS)
    way = ("mma" if half else "tiles") if op in PRODUCTS else "plain"
    one = Launch(op, op, way, blocks, 256, 0, inferred.bytes, True)
    if op != "group_norm":
        return [one]
    # The moments are a launch of their own: x is read twice.
    read = math.prod(inputs["x"].shape) * BYTES[inferred.dtype]
    return [one._replace(kernel="group_norm moments", bytes=read), one]


def _tree(component, dtype):
    """The weights on the counting device, as a pipeline places them."""
    def placed(node):
        if isinstance(node, dict):
            return {key: placed(item) for key, item in node.items()}
        if isinstance(node, list):
            return [placed(item) for item in node]
        return DeviceWeight(_array(node.shape, dtype), node.name)
    return placed(planned_network(component).tree)


def _array(shape, dtype):
    return empty(shape, dtype, CHANNELS_LAST if len(shape) == 4 else None)


def _clip(dtype, device):
    clip.clip_text(np.zeros((2, 77), "int64"), **_tree("text_encoder", dtype),
                   config=planned_network("text_encoder").config)


def _first_step(dtype, device):
    _steps(dtype, device, 1)


def _unet(dtype, device):
    _steps(dtype, device, 2)


def _steps(dtype, device, count):
    """The last of some steps: the first makes the text's keys and values."""
    tree, text = _tree("unet", dtype), Text(_array((2, 77, 768), dtype))
    for _ in range(count):
        device.launches.clear()
        unet.unet(_array((2, 4, 64, 64), dtype), np.full(2, 981), text, **tree,
                  config=planned_network("unet").config)


def _decode(dtype, device):
    tree = _tree("vae", dtype)
    vae.decode(_array((1, 4, 64, 64), dtype), decoder=tree["decoder"],
               post_quant_conv=tree.get("post_quant_conv"), config=planned_network("vae").config)


NETWORKS = {"clip": _clip, "first step": _first_step, "unet": _unet, "decode": _decode}


def totals(found: list[Launch]) -> tuple[int, int, int]:
    """Launches, FLOPs, bytes."""
    return len(found), sum(launch.flops for launch in found), sum(launch.bytes for launch in found)

