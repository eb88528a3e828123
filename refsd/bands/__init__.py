"""A network computed in bands of rows: the very bits of the whole, in the memory of some bands.

The network is called once with a picture that has only a shape (registry.trace), which gives its
graph. Bands then flow through the graph from above to below: a convolution waits for the rows below
its own and keeps those above, a residual's bands wait for those that they are added to. A group
norm needs all of its input first: a pass over everything before it, which sums and forgets. So that
the next passes need not begin at the picture, they begin at what was last kept: results of which
all that later passes need fits into KEPT. Ops of tokens are computed whole.

Each band goes through the op's own kernel, with the algorithm of the whole picture's shape and
heights that keep its bits (`rules`: refsd/ops/bands.py, refsd/numba_ops/cpu/bands.py).
"""

from collections.abc import Callable
from typing import Any

from refsd.bands.graph import Graph
from refsd.registry import trace


def compute(network: Callable[[Any], Any], x: Any, kind: type[Graph] = Graph) -> Any:
    """network(x), in bands, keeping up to KEPT between passes.   x (N, C, H, W)

    On top of these come the bands of a pass, and what attention over all pixels takes. UsageError
    for a backend or a convolution whose bands would have other bits.
    """
    graph = kind()
    source = graph.source(x)
    with trace(graph.answer):
        result = network(source)
    return graph.compute(result)
