"""One arena for the results of a graph: where each lies, so that none is overwritten too early.

Results whose lifetimes do not meet share bytes. Each is put into the smallest gap between those
that live at the same time: the largest first, of one size the first or the longest used first, or
one after the other as they are made; the lowest of these arenas is taken. What a node's kernel
works in is planned like a result that lives for that node alone. What goes out lies outside: the
next call must not overwrite it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from refsd.backends import find_backend
from refsd.contracts import array_bytes
from refsd.graph.checking import ALIGNED, check
from refsd.graph.graph import Graph
from refsd.graph.lifetimes import Lifetime, kept, lifetimes
from refsd.planning import VIEWS, work_bytes


class Place(NamedTuple):
    """Bytes offset .. offset + size - 1 of the arena, from node `first` to node `last`."""

    offset: int
    size: int
    lifetime: Lifetime

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True)
class MemoryPlan:
    """Where results lie, by their numbers, and workspaces, by their nodes' indices.

    arena: its bytes. outside: bytes of results by number that are no part of it, for they go out.
    naive: bytes of all results, if each had its own. bound: the most that are in use at one node,
    workspace included; no plan takes less.
    """

    results: Mapping[int, Place]
    work: Mapping[int, Place]
    outside: Mapping[int, int]
    arena: int
    naive: int
    bound: int

    @property
    def peak(self) -> int:
        """Bytes of the arena and of what goes out."""
        return self.arena + sum(self.outside.values())

    @property
    def workspace(self) -> int:
        """The most bytes that one node works in."""
        return max((place.size for place in self.work.values()), default=0)

    def check(self, graph: Graph) -> "MemoryPlan":
        """Itself. UsageError where a node of the graph would read what is overwritten by then."""
        check(self, graph)
        return self


def plan_memory(graph: Graph, backend: str | None = None,
                work: Mapping[int, int] | None = None) -> MemoryPlan:
    """The plan of a graph, without values.

    work: the bytes that nodes work in, by index, as measured; else what the backend of this name
    says, or nothing.
    """
    lives, out = lifetimes(graph), kept(graph)
    sizes = {number: array_bytes(graph.values[number]) for number in lives}
    work = work_sizes(graph, backend) if work is None else work
    asked = [(number, sizes[number], life) for number, life in lives.items() if number not in out]
    asked += [(~i, size, Lifetime(i, i)) for i, size in work.items() if size]
    found = min((_placed(order) for order in (
        sorted(asked, key=lambda one: (-one[1], one[2])),
        sorted(asked, key=lambda one: (-one[1], one[2].first - one[2].last)),
        sorted(asked, key=lambda one: (one[2].first, -one[1])))), key=_height)
    outside = {number: sizes[number] for number in lives if number in out}
    alive = np.zeros(len(graph.nodes) + 2, np.int64)
    for _, size, life in asked + [(n, size, lives[n]) for n, size in outside.items()]:
        alive[life.first] += size
        alive[life.last + 1] -= size
    return MemoryPlan({n: place for n, place in found.items() if n >= 0},
                      {~n: place for n, place in found.items() if n < 0},
                      outside, _height(found), sum(sizes.values()), int(alive.cumsum().max()))


def work_sizes(graph: Graph, backend: str | None) -> dict[int, int]:
    """What each node works in on top of what it reads and gives, by its index.

    As the backend's kernels allocate it; what it does not say, by its MemoryModel.
    """
    if backend is None:
        return {}
    directed, memory, found = directed_memory(backend), find_backend(backend).memory, {}
    for i, node in enumerate(graph.nodes):
        if node.op in VIEWS:
            continue
        inputs = dict(zip(node.inputs, graph.arguments(node, graph.values.__getitem__)))
        call = node.op, inputs, dict(node.options), graph.values[node.result]
        size = directed.work_bytes(*call) if directed else None
        found[i] = work_bytes(memory, *call) if size is None else size
    return found


def directed_memory(backend: str) -> Any:
    """The module of a backend that says where its results lie, and can be told; None without."""
    name = f"{find_backend(backend).module}.planned"
    try:
        return import_module(name) if find_spec(name) else None
    except ModuleNotFoundError:  # the backend's module is no package
        return None


def _height(places: Mapping[int, Place]) -> int:
    return max((place.stop for place in places.values()), default=0)


def _placed(asked: Iterable[tuple[int, int, Lifetime]]) -> dict[int, Place]:
    """Each in the smallest gap that holds it between those, placed before, that it meets."""
    asked = list(asked)
    starts, stops, firsts, lasts = np.zeros((4, len(asked)), np.int64)
    found = {}
    for i, (number, size, life) in enumerate(asked):
        meeting = np.flatnonzero((firsts[:i] <= life.last) & (life.first <= lasts[:i]))
        meeting = meeting[np.argsort(starts[meeting], kind="stable")]
        before = np.maximum.accumulate(np.append(0, stops[meeting]))  # where a gap begins
        gaps = starts[meeting] - before[:-1]
        room = -(-size // ALIGNED) * ALIGNED
        fitting = np.flatnonzero(gaps >= room)
        at = before[fitting[gaps[fitting].argmin()]] if fitting.size else before[-1]
        starts[i], stops[i], firsts[i], lasts[i] = at, at + room, *life
        found[number] = Place(int(at), size, life)
    return found
