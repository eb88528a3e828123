"""Whether a network's calls run as graphs (refsd.pipelines.graphed), and which passes change these.
"""

import math
import weakref
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.tree import flatten

# Where graphs are faster than eager calls in a whole network, with the same bits, and the passes
# that make them so: measured in turns, docs/graph.md. By backend, dtype, and the network's class.
FASTER = {("numba", "float32", "UNet"): ("linear_geglu",)}
# The fewest parameters of such a network: to trace a smaller one takes longer than is gained.
LARGE = 100_000_000


def check_graph(value: Any) -> bool | None:
    """`graph` as it is; UsageError for what is none of True, False and None."""
    if value is None or isinstance(value, bool):
        return value
    raise UsageError(f"graph is {shown(value)}; give True, False, or None: where it is faster")


def with_text(function: Callable[..., Any], text: Any) -> Callable[..., Any]:
    """function of that text, which is not kept alive by it."""
    kept = weakref.ref(text)
    return lambda *arrays: function(kept(), *arrays)


class GraphMode:
    """A network with `graph`: True, False, or None, which is True where that was found faster."""

    _graph: bool | None = None

    @property
    def graph(self) -> bool | None:
        """Whether calls run as graphs; eager where somebody hears of each op."""
        return self._graph

    @graph.setter
    def graph(self, value: bool | None) -> None:
        self._graph = check_graph(value)

    @cached_property
    def _faster(self) -> tuple[str, ...] | None:
        """The passes by which graphs of this network are faster; None where none is known."""
        size = sum(math.prod(leaf.shape) for leaf in flatten(self.tree).values())
        found = FASTER.get((self.backend, self.dtype, type(self).__name__))
        return found if size >= LARGE else None

    def as_graph(self, function: Callable[..., Any], key: Hashable = None) -> Callable[..., Any]:
        """function(text, *arrays), or the graph of it. One that is given again has the same key."""
        passes = self._faster
        if self._graph is False or (self._graph is None and passes is None):
            return function
        from refsd.graph.passes import PASSES
        from refsd.pipelines.graphed import Graphed

        chosen = tuple(one for one in PASSES if self._graph or one.__name__ in passes)
        graphs = vars(self).setdefault("_graphs", {})
        if (key, chosen) not in graphs:
            graphs[key, chosen] = Graphed(function, self, chosen)
        return graphs[key, chosen]
