"""A model without values: every op answers with the shape and dtype that its contract infers.

A model of any size runs on `Spec`s in milliseconds and without weights. What it would run is the
list that benchmarks time, that the porting kit orders, and that tests compare with real runs; and
since a result is alive as long as the model holds it, here as there, what it would hold at once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from refsd.contracts import Output, Spec, array_bytes, itemsize
from refsd.leaf import layer_of
from refsd.memory_models import MemoryModel
from refsd.registry import trace

# Ops whose results may be views (refsd.ops.layout): no memory of their own is counted.
VIEWS = ("reshape", "slice", "to_image", "to_tokens", "transpose")


class Planned(NamedTuple):
    """One op that would run; `path` is the checkpoint's of its weights ("conv_in"), or None."""

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    output: Output
    path: str | None


class WeightSpec(Spec):
    """The Spec of a weight: its path in its network, as a leaf (refsd.leaf) has it, its memory."""

    name: str
    nbytes: int


class AwaySpec(WeightSpec):
    """The Spec of a weight that is away (refsd.leaf.Away): while an op is planned, it is there."""

    loaded_bytes: int
    source: Any

    def fetch(self) -> WeightSpec:
        """The one that is there."""
        return self.source.fetch(self)


class Asked(NamedTuple):
    """What a drawing is planned for: pictures at once, for each of which a step has `copies`.

    height and width are those of the latents, `downscale` times smaller than a picture's.
    """

    pictures: int
    copies: int
    height: int
    width: int
    downscale: int

    @property
    def rows(self) -> int:
        """What a step's batch has: with guidance each picture twice."""
        return self.pictures * self.copies


class Plan(list):
    """The ops, in their order, and bytes of results: all of them, and the most that live at once.

    `peak` also has what an op works in, if the backend's MemoryModel was given; with a `replay` of
    the backend's allocator it is what that holds, gaps included.
    """

    def __init__(self, replay: Any = None) -> None:
        super().__init__()
        self.naive = self.peak = self.alive = 0
        self.replay = replay

    def with_gaps(self, share: float) -> int:
        """The peak, with a share of it for gaps between results unless they are in it."""
        return self.peak if self.replay is not None else int((1 + share) * self.peak)

    @property
    def flops(self) -> int:
        """Of all ops."""
        return sum(planned.output.flops for planned in self)


class _Result(Spec):
    """The Spec of a result, counted while it is alive; a view keeps what it is a view of."""

    block = None  # of a replayed allocator

    def __del__(self) -> None:
        self.plan.alive -= self.held
        if self.block is not None:
            self.plan.replay.free(*self.block)


@contextmanager
def planning(memory: MemoryModel | None = None, directed: Any = None,
             replay: Any = None) -> Iterator[Plan]:
    """Inside the block ops are planned instead of computed; yields the list they are added to.

    directed: the backend's module that knows what its kernels allocate (refsd.graph.arena), or
    None, where its MemoryModel estimates that. replay: the allocator of what came before, by
    default one of its own.
    """
    plan = Plan(directed.Replay() if replay is None and directed is not None else replay)

    def answer(op, inputs, options, inferred):
        there = [value.fetch() for value in inputs.values() if isinstance(value, AwaySpec)]
        result = _Result(inferred.shape, inferred.dtype)
        result.plan, result.held = plan, 0
        if op in VIEWS:
            result.of = next(iter(inputs.values()))
        else:
            result.held = array_bytes(inferred)
        plan.alive += result.held
        plan.naive += result.held
        work = None if directed is None else directed.work_bytes(op, inputs, options, inferred)
        if work is None:
            work = 0 if memory is None else work_bytes(memory, op, inputs, options, inferred)
        if plan.replay is None:
            plan.peak = max(plan.peak, plan.alive + work)
        else:  # a kernel asks for its result first
            result.block = plan.replay.take(result.held)
            plan.replay.free(*plan.replay.take(work))
            plan.peak = plan.replay.peak
        del there  # after the kernel, which holds them
        plan.append(Planned(op, {name: _plain(value) for name, value in inputs.items()}, options,
                            inferred, layer_of(inputs)))
        return result

    with trace(answer):
        yield plan


def _plain(value: Any) -> Any:
    """An input that keeps no result alive."""
    if isinstance(value, _Result):
        return Spec(*value)
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def work_bytes(memory: MemoryModel, op: str, inputs: dict, options: dict, result: Output) -> int:
    """What an op holds on top of its input and its result, in bytes.

    A convolution of more than a pixel the padded picture, what it multiplies, and its transformed
    kernels; NumPy's attention three slices of scores, its other ops an array more.
    """
    read = next((array_bytes(value) for value in inputs.values() if hasattr(value, "dtype")), 0)
    if op == "conv2d":
        weight = inputs["weight"]
        if math.prod(weight.shape[2:]) == 1:
            return 0
        most = max(read, array_bytes(result))
        return int(read + min(memory.workspace, memory.unrolled * most)
                   + min(memory.transformed, 4 * array_bytes(weight)))
    if op == "attention":
        L, S = inputs["q"].shape[1], inputs["k"].shape[1]  # of one sample after the other
        scores = options["heads"] * L * S * itemsize(result.dtype)
        return 3 * min(memory.scores, scores)
    return read if memory.dense and op not in VIEWS else 0
