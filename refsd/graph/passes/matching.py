"""What a pass is made of: a graph to look at, a pattern found or missed, and where.

A pattern is a function of a View and a node, the pattern's last. It gives None where the pattern is
not, a Fusion where it is, and a Site that says why where it would be but for something.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from refsd.errors import UsageError
from refsd.graph.graph import Graph, Node, Ref, spec_of
from refsd.registry import kernels, ops


class Site(NamedTuple):
    """Where a pattern is, by the checkpoint's path of its weights; why is None where it fused."""

    path: str
    why: str | None = None


class Fusion(NamedTuple):
    """A node in the place of others: of the last at `indices`, after which the rest is gone."""

    indices: frozenset[int]
    node: Node
    path: str


Found = Fusion | Site | None
Pass = Callable[[Graph, str], tuple[Graph, list[Site]]]


class View:
    """A graph, and who makes and reads its values."""

    def __init__(self, graph: Graph):
        self.graph, self._makers = graph, graph.makers()
        # once for each time: a node may read a value twice
        self._reads = Counter(number for node in graph.nodes for number in node.reads)
        self._reads.update(graph.outputs)

    def maker(self, read: Any, op: str) -> Node | None:
        """The node that makes what an input reads, if it is of this op."""
        at = self._makers.get(read.number) if isinstance(read, Ref) else None
        node = None if at is None else self.graph.nodes[at]
        return node if node is not None and node.op == op else None

    def index(self, node: Node) -> int:
        """Where a node stands."""
        return self._makers[node.result]

    def fuse(self, op: str, inputs: dict[str, Any], options: dict[str, Any], *nodes: Node) -> Found:
        """`op` of these inputs in the place of nodes, the last of which gives what it gives."""
        *inner, last = nodes
        path = next((node.path for node in nodes if node.path), None)
        place = path or f"%{last.result}"
        for node in inner:
            if (reads := self._reads[node.result]) > 1:
                return Site(place, f"what {node.op} gives is read {reads} times")
        keyword = {name: p for name, p in ops()[op].signature.parameters.items()
                   if p.kind is p.KEYWORD_ONLY}
        inputs = {name: inputs.get(name) for name in ops()[op].signature.parameters
                  if name not in keyword}
        made = Node(op, inputs, {name: options.get(name, p.default) for name, p in keyword.items()},
                    last.result, path)
        value = self.graph.values[last.result]
        try:
            given = ops()[op].contract(*Graph.arguments(
                made, lambda number: spec_of(self.graph.values[number])), **made.options)
        except UsageError as problem:
            return Site(place, str(problem))
        if (given.shape, given.dtype) != (value.shape, value.dtype):
            return Site(place, f"{op} gives {given.shape} in place of {value.shape}")
        return Fusion(frozenset(map(self.index, nodes)), made, place)


def pattern(op: str) -> Callable[[Callable[[View, Node], Found]], Pass]:
    """Make of a pattern the pass that puts `op` wherever the pattern is."""

    def of(find: Callable[[View, Node], Found]) -> Pass:
        @functools.wraps(find)
        def sweep(graph: Graph, backend: str) -> tuple[Graph, list[Site]]:
            view, sites, placed, gone = View(graph), [], {}, set()
            for i, node in enumerate(graph.nodes):
                found = find(view, node)
                if isinstance(found, Fusion) and not kernels(op, backend):
                    found = Site(found.path, f"{backend} has no kernel of {op}")
                elif isinstance(found, Fusion):
                    placed[i], gone = found.node, gone | found.indices - {i}
                    found = Site(found.path)
                sites += [] if found is None else [found]
            nodes = tuple(placed.get(i, node) for i, node in enumerate(graph.nodes)
                          if i not in gone)
            return (graph.with_nodes(nodes) if placed else graph), sites

        return sweep

    return of

