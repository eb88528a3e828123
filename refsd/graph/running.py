"""Running a graph: node after node, with the bits of the function that it was traced from."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from refsd.errors import UsageError
from refsd.graph.graph import Graph, Node
from refsd.graph.placing import Arena
from refsd.registry import dispatch


def run(graph: Graph, *inputs: Any, weights: Mapping[str, Any] | None = None,
        arena: Arena | None = None) -> Any:
    """What the graph gives for these inputs, in the order of its inputs, on the active backend.

    weights by their names; by default those that were there when the graph was traced. A result is
    let go after the last op that reads it; with an arena it lies where the arena's plan says.
    Raises UsageError for inputs of another number or shape.
    """
    found = arrays(graph, inputs, weights)
    last = last_uses(graph)
    with nullcontext(_dispatch) if arena is None else arena.running(graph) as call:
        for i, node in enumerate(graph.nodes):
            arguments = graph.arguments(node, found.__getitem__)
            options = graph.options(node, found.__getitem__)
            found[node.result] = call(i, node, tuple(arguments), options)
            del arguments, options
            for number in last.get(i, ()):
                del found[number]
    outputs = [found[number] for number in graph.outputs]
    return outputs[0] if graph.single else tuple(outputs)


def _dispatch(i: int, node: Node, arguments: tuple, options: dict) -> Any:
    return dispatch(node.op, arguments, options)


def arrays(graph: Graph, inputs: Any, weights: Mapping[str, Any] | None) -> dict[int, Any]:
    """The arrays from outside, by their numbers. Raises UsageError."""
    numbers = graph.numbers("input")
    if len(inputs) != len(numbers):
        names = ", ".join(graph.values[number].name for number in numbers)
        raise UsageError(f"graph: got {len(inputs)} inputs, wanted {len(numbers)}: {names}; give "
                         "these")
    found = dict(zip(numbers, inputs))
    for number, array in found.items():
        value = graph.values[number]
        if (tuple(array.shape), str(array.dtype)) != (value.shape, value.dtype):
            raise UsageError(f"graph: {value.name} is {array.dtype} {tuple(array.shape)}; it was "
                             f"traced for {value.dtype} {value.shape}: give one of these")
    found |= graph.held
    for number in graph.numbers("weight"):
        name = graph.values[number].name
        if weights is not None and name in weights:
            found[number] = weights[name]
        elif number not in found:
            raise UsageError(f"graph: the weight {name} is missing; give it in weights")
    return found


def last_uses(graph: Graph) -> dict[int, list[int]]:
    """By a node's index the results that no later node reads, and that are no outputs."""
    found: dict[int, list[int]] = {}
    for number, users in graph.users().items():
        if graph.values[number].kind == "result" and len(graph.nodes) not in users:
            made = graph.makers()[number] if not users else users[-1]
            found.setdefault(made, []).append(number)
    return found
