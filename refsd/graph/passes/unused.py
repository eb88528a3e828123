"""Nodes whose results nobody reads."""

from refsd.graph.graph import Graph
from refsd.graph.passes.matching import Site


def unused(graph: Graph, backend: str) -> tuple[Graph, list[Site]]:
    """Gone; and what only they read too."""
    read, kept = set(graph.outputs), []
    sites = []
    for node in reversed(graph.nodes):
        if node.result in read:
            kept.append(node)
            read.update(node.reads)
        else:
            sites.append(Site(f"{node.op} {node.path or f'%{node.result}'}"))
    return (graph.with_nodes(tuple(reversed(kept))) if sites else graph), sites[::-1]
