"""A graph in the language of Graphviz: `dot -Tsvg` draws it.

A box is an op with the path of its weights and what it gives, coloured by the op's family; frames
are blocks of the network, by the paths. An op without weights stands where the one before it does.
"""

import json
import re
from collections.abc import Iterator

from refsd.graph.graph import Graph, Node
from refsd.registry import ops

COLOURS = {"activation": "#fde3c8", "arithmetic": "#eeeeee", "attention": "#f6c9d6",
           "conv": "#c9dcf5", "embedding": "#e3d5f2", "fused": "#ffd9a0", "layout": "#ffffff",
           "linear": "#cdebd0", "norm": "#fff3b8", "resize": "#d3eeee"}
OTHER = "#dddddd"  # of ops that are not refsd's
# "down_blocks.0.resnets.1": an element of a list is a block, and one of a list inside it.
BLOCK = re.compile(r"[a-zA-Z_.]*?(?:s|block|layer|\bh)\.\d+(?=\.|$)")


def dot(graph: Graph) -> str:
    """Inputs at the top, outputs at the bottom; weights are not drawn."""
    lines = ["digraph refsd {", '  node [shape=box style=filled fontname="Helvetica" fontsize=10]',
             '  edge [color="#777777" arrowsize=0.6]']
    for number in graph.numbers("input"):
        lines.append(f"  {_box(graph, number, graph.values[number].name, None, '#ffffff')}")
    open_blocks: tuple[str, ...] = ()
    for node in graph.nodes:
        blocks = blocks_of(node.path) if node.path else open_blocks
        lines += _frames(open_blocks, blocks)
        open_blocks = blocks
        indent = "  " * (1 + len(blocks))
        lines.append(indent + _box(graph, node.result, node.op, node.path, _colour(node)))
    lines += _frames(open_blocks, ())
    for node in graph.nodes:
        lines += [f"  v{n} -> v{node.result}" for n in dict.fromkeys(node.reads)
                  if graph.values[n].kind in ("input", "result")]
    lines += [f'  out{i} [label="output {i}" shape=ellipse fillcolor="#ffffff"]\n  v{n} -> out{i}'
              for i, n in enumerate(graph.outputs)]
    return "\n".join([*lines, "}"])


def blocks_of(path: str) -> tuple[str, ...]:
    """The blocks that a weight lies in, the outer one first: at most two."""
    found, end = [], 0
    while len(found) < 2 and (there := BLOCK.match(path, end)):
        end = there.end()
        found.append(path[:end])
    return tuple(found)


def _frames(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[str]:
    """What closes some blocks and opens others. Names may come twice: frames then are one."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    for depth in range(len(before), same, -1):
        yield "  " * depth + "}"
    for depth in range(same, len(after)):
        indent, name = "  " * (depth + 1), json.dumps(f"cluster {after[depth]}")
        yield (f'{indent}subgraph {name} {{ label={json.dumps(after[depth])} color="#999999" '
               'fontname="Helvetica" fontsize=10')


def _box(graph: Graph, number: int, op: str, path: str | None, colour: str) -> str:
    value = graph.values[number]
    shape = " x ".join(map(str, value.shape)) or "a number"
    text = "\n".join(line for line in (op, path, f"{shape} {value.dtype}") if line)
    kind = " shape=ellipse" if value.kind == "input" else ""
    return f'v{number} [label={json.dumps(text)} fillcolor="{colour}"{kind}]'


def _colour(node: Node) -> str:
    return COLOURS.get(ops()[node.op].family, OTHER)
