"""What stays the same from step to step, apart from what does not: computed once for a text."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from refsd.graph.graph import Graph, Value


class Split(NamedTuple):
    """A graph in two: `once` gives what `each` reads besides its own inputs.

    hoisted: the numbers of these values, in the order of once's outputs. Values have the numbers
    that they had in the whole.
    """

    once: Graph
    each: Graph
    hoisted: tuple[int, ...]

    def inputs(self, graph: Graph, found: Mapping[int, Any]) -> list[Any]:
        """Arrays by number as one of the two graphs takes them."""
        return [found[number] for number in graph.numbers("input")]


def split(graph: Graph, fixed: Collection[int]) -> Split:
    """In two, where the inputs of these numbers, and weights, are always the same.

    A node is hoisted if all that it reads stays. Nothing of `each` reads an input of `fixed` whose
    nodes are all hoisted: it is none of its inputs.
    """
    stays = {n for n, value in graph.values.items() if value.kind in ("weight", "constant")}
    stays |= set(fixed)
    first, later = [], []
    for node in graph.nodes:
        hoist = stays.issuperset(node.reads)
        (first if hoist else later).append(node)
        if hoist:
            stays.add(node.result)
    made = {node.result for node in first}
    read = {number for node in later for number in node.reads} | set(graph.outputs)
    hoisted = tuple(number for number in graph.values if number in made & read)
    once = replace(graph, outputs=hoisted, single=False,
                   values=_without_inputs(graph, set(graph.numbers("input")) - set(fixed)))
    each = replace(graph, values=_without_inputs(graph, set(fixed) - read) | {
        number: Value("input", *graph.values[number][1:]) for number in hoisted})
    return Split(once.with_nodes(tuple(first)), each.with_nodes(tuple(later)), hoisted)


def _without_inputs(graph, numbers):
    return {n: value for n, value in graph.values.items() if n not in numbers}
