"""A planned run: each result lies where the plan says, in one arena that call after call uses.

Of what a kernel allocates, the first piece that is as large as its result is its result's memory;
others are what it works in. That is looked at afterwards: a result that lies elsewhere is counted
as unplaced, and is as right there. What goes out is allocated apart, so that the next call
overwrites nothing that a caller holds; a listener of ops that keeps a result has to copy it.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refsd.errors import UsageError
from refsd.graph.arena import MemoryPlan, directed_memory
from refsd.graph.checking import ALIGNED
from refsd.graph.graph import Graph, Node
from refsd.graph.lifetimes import views
from refsd.registry import active_backend, dispatch

logger = logging.getLogger(__name__)


class Arena:
    """The memory of a graph's plan: taken when it first runs, kept until this object is gone.

    After a run: `unplaced` has the numbers of results that lie elsewhere (also views that had to be
    copies), `spilled` by a node's index the bytes that it worked in beyond its place, `worked` all
    of them. UsageError if the plan does not hold for the graph.
    """

    def __init__(self, graph: Graph, plan: MemoryPlan) -> None:
        self.graph, self.plan = graph, plan.check(graph)
        self.memory: Any = None  # bytes
        self.unplaced: list[int] = []
        self.spilled: dict[int, int] = {}
        self.worked: dict[int, int] = {}
        self._views, self._lock = views(graph), threading.Lock()
        self._usual: Callable[[int], Any] | None = None
        self._node = self._result = self._bytes = -1  # that is computed, whose memory is awaited
        self._free = self._stop = 0  # of its workspace

    @contextmanager
    def running(self, graph: Graph) -> Iterator[Callable[[int, Node, tuple, dict], Any]]:
        """Within the block what is given calls a node's op. UsageError for another graph, or twice.

        A backend that cannot be told where results lie (numpy) puts them where it likes: there the
        plan says when they are let go, and no more. One line of the log says so.
        """
        if graph is not self.graph:
            raise UsageError("an arena is of one graph, and got another: make one for it")
        if not self._lock.acquire(blocking=False):
            raise UsageError("an arena holds the results of one run, which is not at its end: make "
                             "a second one for another thread")
        try:
            self.unplaced, self.spilled, self.worked = [], {}, {}
            directed = directed_memory(active_backend())
            if directed is None:
                logger.info("%s places results itself: the plan of %d bytes only lets them go",
                            active_backend(), self.plan.arena)
                self.unplaced = [*self.plan.results]
                yield lambda i, node, arguments, options: dispatch(node.op, arguments, options)
                return
            self._usual = directed.allocate_from_pool
            if self.memory is None:
                self.memory = self._usual(self.plan.arena)
            with directed.allocating_with(self._allocate):
                yield self._call
        finally:
            self._lock.release()

    def address(self) -> int:
        """Of the arena's first byte."""
        return _address(self.memory)

    def _call(self, i: int, node: Node, arguments: tuple, options: dict) -> Any:
        number, work = node.result, self.plan.work.get(i)
        place = self.plan.results.get(number)
        self._node, self._result = i, number
        self._bytes = self.plan.outside.get(number, -1) if place is None else place.size
        self._free, self._stop = (0, 0) if work is None else (work.offset, work.stop)
        result = dispatch(node.op, arguments, options)
        root = self.plan.results.get(self._views.get(number, number))
        if root is not None and result.size:
            at = _address(result) - self.address()
            if not (at == root.offset if place is not None else root.offset <= at < root.stop):
                self.unplaced.append(number)
        return result

    def _allocate(self, size: int) -> Any:
        """What a kernel is given."""
        if size == self._bytes:
            self._bytes = -1
            place = self.plan.results.get(self._result)
            if place is None:
                return self._usual(size)
            return self.memory[place.offset:place.stop]
        self.worked[self._node] = self.worked.get(self._node, 0) + -(-size // ALIGNED) * ALIGNED
        start = self._free
        if start + size > self._stop:
            self.spilled[self._node] = self.spilled.get(self._node, 0) + size
            return self._usual(size)
        self._free = start + -(-size // ALIGNED) * ALIGNED
        return self.memory[start:start + size]


def _address(array: Any) -> int:
    return array.__array_interface__["data"][0]
