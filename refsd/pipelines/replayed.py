"""Weights that come and go, without weights: the streamer's own code over a pool of addresses.

What is read, converted, quantized and laid out takes and frees blocks of the replayed allocator in
the order in which the loader does it. Reading ahead is done at once: the queue is as full as it may
be before a kernel begins.
"""

import math
from collections.abc import Sequence
from typing import Any

from refsd import functional as F
from refsd.bands.graph import Graph
from refsd.contracts import itemsize
from refsd.leaf import is_multiplied
from refsd.pipelines.planned import STORED
from refsd.planning import AwaySpec, WeightSpec
from refsd.weights.forms import item_bytes
from refsd.weights.passing import passing_bytes
from refsd.weights.plan import Plan
from refsd.weights.streaming import Group, Streamer


class Held(WeightSpec):
    """A weight that is there: its block is free when it is gone."""

    memory = None

    def made(self, empty: Any = None) -> "Held":
        """As ops read it: converted, unless it was as it was laid out."""
        chain = [self]
        for size in () if self.laid_out else self.away.passing[1]:
            chain.append(held(self.away, size, self.memory))  # beside those that it is made of
        return chain[-1]

    def __del__(self) -> None:
        if self.memory is not None:
            self.memory.free(*self.block)


def held(away: AwaySpec, size: int, memory: Any, laid_out: bool = False) -> Held:
    """A leaf that is there, in a block of so many bytes."""
    found = Held(away.shape, away.dtype)
    found.name, found.nbytes, found.away, found.laid_out = away.name, size, away, laid_out
    found.memory, found.block = memory, memory.take(size)
    return found


class Laying:
    """What a replayed streamer asks of its backend."""

    empty = None

    def __init__(self, memory: Any):
        self.memory = memory

    def place(self, tensors: dict[str, Held], *, passing: bool) -> None:
        """Convert weights and lay them out at once, each beside what was read; tables stay."""
        for name, leaf in tensors.items():
            if leaf.away.laid_out:
                beside = leaf.made() if leaf.dtype == "float64" else leaf  # which is made before
                tensors[name] = held(leaf.away, leaf.away.laid_out, self.memory, True)
                del beside

    def release(self) -> None:
        """Small memory."""


class Replayed(Streamer):
    """A streamer of shapes. directed: the backend's module that says what lies in its memory.

    noted: the bytes of leaves in use, and of those that were read ahead, at the memory's peak.
    """

    def __init__(self, mode: str, memory: Any, directed: Any):
        super().__init__(mode, Laying(memory))
        self._memory, self._directed, self._away = memory, directed, {}
        self.noted, memory.note = (0, 0), self._note

    def take(self, part: str, leaves: dict[str, WeightSpec], plan: Plan | None, form: str | None,
             stored: str = STORED) -> dict[str, AwaySpec]:
        """A network's leaves, away. plan says where they lie in files, else all are `stored`."""
        found = {}
        for name, leaf in leaves.items():
            away = found[name] = AwaySpec(leaf.shape, leaf.dtype)
            away.name, away.source, away.nbytes = f"{part}.{leaf.name}", self, 0
            source, count = plan and plan.sources[leaf.name], math.prod(leaf.shape)
            stored_as = source.info.dtype if plan else stored
            of = form if len(leaf.shape) > 1 else None
            away.passing = passing_bytes(count, stored_as, of, leaf.dtype)
            away.waiting_bytes = away.passing[0][-1]
            away.loaded_bytes = count * item_bytes(of, stored_as, leaf.dtype)
            away.place = (str(source.header.path), source.info.start) if plan else ("", len(found))
            plain = away.loaded_bytes == count * itemsize(leaf.dtype)
            away.laid_out = 0 if not is_multiplied(name, leaf.shape) else (
                self._directed.packed_bytes(leaf.shape, leaf.dtype) if plain else leaf.nbytes)
            self._away[away.name] = away
        return found

    def _note(self) -> None:
        ahead = sum(leaf.nbytes for _, leaves in self._queue for leaf in leaves.values())
        self.noted = sum(leaf.nbytes for leaf in self._leaves.values()), ahead

    def _start(self, reading: Any) -> None:
        self._read_ahead(reading)

    def _read(self, group: Group, names: Sequence[str], reading: Any = None) -> dict[str, Held]:
        found, memory = {}, self._memory
        for away in sorted((self._away[name] for name in names), key=lambda away: away.place):
            leaf = None
            for size in away.passing[0]:
                leaf = held(away, size, memory)  # beside the one that it is made of
            found[away.name] = leaf if len(away.shape) > 1 else leaf.made()
            if reading is None:
                self._place(found, [away.name])
            del leaf  # where the next one is read
        return found


class Bands(Graph):
    """A network in bands, whose group norms are planned like other ops."""

    def _normaliser(self, node, later):
        weights = [value for name, value in node.inputs.items() if name != "x"]
        for _ in self._pass(node.inputs["x"], later):
            pass
        return lambda band: F.group_norm(band, *weights, **node.options)
