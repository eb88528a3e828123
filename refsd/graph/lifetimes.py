"""How long each result's memory is needed: from the node that makes it to its last reader.

A view (planning.VIEWS) has no memory of its own: who reads it reads what it is a view of.
"""

from typing import NamedTuple

from refsd.graph.graph import Graph
from refsd.planning import VIEWS


class Lifetime(NamedTuple):
    """The indices of the first and the last node at which memory is in use, both included.

    first is the node that writes it; last is len(graph.nodes) for what goes out.
    """

    first: int
    last: int


def views(graph: Graph) -> dict[int, int]:
    """By a view's number, the number of the value whose memory it lies in, which is no view."""
    found: dict[int, int] = {}
    for node in graph.nodes:
        if node.op in VIEWS:
            seen = node.reads[0]
            found[node.result] = found.get(seen, seen)
    return found


def lifetimes(graph: Graph) -> dict[int, Lifetime]:
    """Of each result that has memory of its own; that of its views is part of it."""
    of, users = views(graph), graph.users()
    found = {number: Lifetime(i, i) for number, i in graph.makers().items() if number not in of}
    for number, indices in users.items():
        root = of.get(number, number)
        if root in found and indices:
            found[root] = Lifetime(found[root].first, max(found[root].last, indices[-1]))
    return found


def kept(graph: Graph) -> set[int]:
    """The results whose memory whoever asked for the outputs holds: those, or what they see."""
    of = views(graph)
    return {of.get(number, number) for number in graph.outputs}
