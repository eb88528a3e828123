"""A graph as lines to read: a value, the op that makes it of what, its shape and dtype."""

from typing import Any

from refsd.graph.graph import Graph, Node, Ref
from refsd.registry import ops

COLUMN = 42  # where shapes begin


def listing(graph: Graph) -> str:
    """Inputs, then each op with the path of its weights, then what is returned."""
    lines = [f"%{number} = input {graph.values[number].name}" for number in graph.numbers("input")]
    numbers = list(graph.numbers("input"))
    for node in graph.nodes:
        lines.append(f"%{node.result} = {call(graph, node)}")
        numbers.append(node.result)
    shaped = [f"{line:{COLUMN - 1}} {graph.values[number].shape} {graph.values[number].dtype}"
              for line, number in zip(lines, numbers)]
    return "\n".join([*shaped, "return " + ", ".join(f"%{n}" for n in graph.outputs)])


def call(graph: Graph, node: Node) -> str:
    """`conv2d(%3, conv_in.weight, conv_in.bias, stride=2)`: options that are not the default."""
    inputs = [_shown(graph, value) for value in node.inputs.values()]
    while inputs and inputs[-1] == "None":
        inputs.pop()
    defaults = ops()[node.op].signature.parameters
    options = [f"{name}={_shown(graph, value)}" for name, value in node.options.items()
               if value != defaults[name].default]
    return f"{node.op}({', '.join([*inputs, *options])})"


def _shown(graph: Graph, value: Any) -> str:
    if isinstance(value, Ref):
        found = graph.values[value.number]
        return found.name if found.kind == "weight" else f"%{value.number}"
    if isinstance(value, list):
        return f"[{', '.join(_shown(graph, one) for one in value)}]"
    return repr(value)
