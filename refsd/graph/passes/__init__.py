"""Passes over a graph, in their order: each puts a fused op where its pattern is.

    >>> from refsd import F
    >>> from refsd.contracts import Spec
    >>> from refsd.graph import trace
    >>> from refsd.graph.passes import optimize
    >>> x, weight = Spec((2, 3), "float32"), Spec((3, 3), "float32")
    >>> graph, report = optimize(trace(lambda x, w: F.add(F.linear(x, w), x), x, weight))
    >>> print(graph)
    %0 = input x                              (2, 3) float32
    %1 = input w                              (3, 3) float32
    %3 = linear_add(%0, %1, %0)               (2, 3) float32
    return %3
    >>> print(*report.lines(), sep="\\n")
    linear_add: 1 of 1
      %3
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from refsd.graph.graph import Graph
from refsd.graph.passes.hoisting import Split, split
from refsd.graph.passes.matching import Pass, Site, pattern
from refsd.graph.passes.norms import group_norm_silu
from refsd.graph.passes.products import conv2d_add, linear_add, linear_geglu, upsample_conv2d
from refsd.graph.passes.unused import unused
from refsd.registry import active_backend

# A convolution that an addition takes is no longer one that a picture could be enlarged for.
PASSES: tuple[Pass, ...] = (unused, group_norm_silu, upsample_conv2d, conv2d_add, linear_geglu,
                            linear_add)


@dataclass(frozen=True)
class Report:
    """By the name of a pass the places where its pattern is; `nodes` before and after all."""

    sites: Mapping[str, list[Site]]
    nodes: tuple[int, int]

    def counts(self) -> dict[str, int]:
        """How many of each fused; patterns that are nowhere are left out."""
        return {name: sum(site.why is None for site in sites)
                for name, sites in self.sites.items() if sites}

    def lines(self) -> list[str]:
        """For people: what fused where, and what did not and why."""
        found = []
        for name, sites in self.sites.items():
            done = sum(site.why is None for site in sites)
            found += [f"{name}: {done} of {len(sites)}"] if sites else []
            found += [f"  {site.path}" + (f", not fused: {site.why}" if site.why else "")
                      for site in sites]
        return found or ["nothing to fuse"]


def optimize(graph: Graph, passes: Iterable[Pass] = PASSES,
             backend: str | None = None) -> tuple[Graph, Report]:
    """The graph after the passes, for a backend, by default the active one; and what they did."""
    backend, before, sites = backend or active_backend(), len(graph.nodes), {}
    for one in passes:
        graph, sites[one.__name__] = one(graph, backend)
    return graph, Report(sites, (before, len(graph.nodes)))


__all__ = ["PASSES", "Pass", "Report", "Site", "Split", "conv2d_add", "group_norm_silu",
           "linear_add", "linear_geglu", "optimize", "pattern", "split", "unused",
           "upsample_conv2d"]
