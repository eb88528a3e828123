"""What a step of Stable Diffusion 1.5's UNet would hold with concats written where they are made.

    python -m benchmarks.concats

A skip would lie in the memory of the concat that reads it, all of which is there from the making of
its first part on. Nothing is computed. How long the concats take: python -m benchmarks.passes
--passes concat.
"""

from unittest import mock

from refsd.families import sd1
from refsd.graph import arena, trace
from refsd.graph.lifetimes import Lifetime, lifetimes, views
from refsd.pipelines.planned import calls, planned_networks, sized


def in_place(graph):
    """Lifetimes where the parts of a concat are parts of its memory."""
    lives, of = lifetimes(graph), views(graph)
    for node in graph.nodes:
        if node.op == "concat":
            parts = [lives.pop(of.get(number, number)) for number in node.reads]
            lives[node.result] = Lifetime(min(life.first for life in parts),
                                          max(life.last for life in (*parts, lives[node.result])))
    return lives


def main():
    """Print a line for each dtype."""
    for dtype in ("float32", "bfloat16"):
        networks = planned_networks(sd1.SD1.configs, backend="numba", dtype=dtype)
        graph = trace(calls(networks, sized(networks))["unet"][0])
        now = arena.plan_memory(graph, "numba").arena
        with mock.patch.object(arena, "lifetimes", in_place):
            then = arena.plan_memory(graph, "numba").arena
        print(f"{dtype}: a plan of {now / 1e6:.1f} MB, with concats in place {then / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
