"""A graph as JSON, and back: schema 1, which docs/graph.md describes. Weights are names alone.

Constants are base64 of their little-endian bytes, so that what was written and read again runs with
the same bits. A file is checked to the last key before anything is made of it.
"""

import base64
import binascii
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refsd import rules
from refsd.arguments import shown
from refsd.contracts import BYTES
from refsd.errors import ModelError, UsageError
from refsd.graph.graph import KINDS, Graph, Node, Ref, Value
from refsd.half import HALVES
from refsd.registry import ops
from refsd.weights.files import parse_json, read_text

FORMAT, SCHEMA = "refsd.graph", 1
MOST = 256 << 20  # bytes of a file: of constants alone, graphs have thousands of lines
WHOLE = rules.integer(0, 2**53)
GRAPH = {"format": rules.only(FORMAT), "schema": rules.integer(SCHEMA, SCHEMA),
         "single": rules.boolean, "values": rules.each(rules.anything),
         "nodes": rules.each(rules.anything), "outputs": rules.each(WHOLE)}
VALUE = {"number": WHOLE, "kind": rules.only(*KINDS), "name": rules.text(1000),
         "shape": rules.each(WHOLE, most=32), "dtype": rules.only(*BYTES), "data": rules.text(MOST)}
AN_OBJECT = rules.that(lambda value: isinstance(value, dict), "an object")
NODE = {"op": rules.text(100), "inputs": AN_OBJECT, "options": AN_OBJECT, "result": WHOLE,
        "path": rules.optional(rules.text(1000))}


def to_json(graph: Graph) -> str:
    """A value and a node a line."""
    parts = {"format": FORMAT, "schema": SCHEMA, "single": graph.single}
    lines = [f' {json.dumps(key)}: {json.dumps(part)}' for key, part in parts.items()]
    for key, rows in {"values": [_value(graph, n) for n in graph.values],
                      "nodes": [_node(node) for node in graph.nodes]}.items():
        rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows)
        lines.append(f' "{key}": [\n  {rows}\n ]')
    lines.append(f' "outputs": {json.dumps(list(graph.outputs))}')
    return "{\n" + ",\n".join(lines) + "\n}"


def _value(graph: Graph, number: int) -> dict[str, Any]:
    value = graph.values[number]
    found = {"number": number, **value._asdict(), "shape": list(value.shape)}
    if value.kind == "constant":
        data = _swapped(np.ascontiguousarray(graph.held[number])).tobytes()
        found["data"] = base64.b64encode(data).decode("ascii")
    return found


def _swapped(array: np.ndarray) -> np.ndarray:
    """With bytes in the order of the file, or back."""
    return array.byteswap() if sys.byteorder == "big" else array


def _node(node: Node) -> dict[str, Any]:
    return {"op": node.op, "inputs": {name: _put(value) for name, value in node.inputs.items()},
            "options": {name: _put(value) for name, value in node.options.items()},
            "result": node.result, "path": node.path}


def _put(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"value": value.number}
    if isinstance(value, (list, tuple)):
        return [_put(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}  # JSON has none
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def read(path: str | Path) -> Graph:
    """The graph in a file; ModelError says what is wrong with it."""
    return from_json(read_text(path, limit=MOST), path)


def from_json(text: str, where: str | Path = "graph") -> Graph:
    """The graph that `to_json` wrote. ModelError for whatever else."""
    found = parse_json(text, where)
    rules.check(found, GRAPH, where)
    values, held = {}, {}
    for i, row in enumerate(found["values"]):
        at = f"{where}: values[{i}]"
        rules.check(row, VALUE, at, optional=("data",))
        if row["number"] in values:
            raise ModelError(f"{at}: a second %{row['number']}; give each value a number")
        if ("data" in row) != (row["kind"] == "constant"):
            raise ModelError(f"{at}: a {row['kind']}; constants, and they alone, have data: "
                             "write it there")
        value = values[row["number"]] = Value(row["kind"], row["name"], tuple(row["shape"]),
                                              row["dtype"])
        if "data" in row:
            held[row["number"]] = _array(row["data"], value, at)
    nodes = tuple(_read_node(row, values, f"{where}: nodes[{i}]")
                  for i, row in enumerate(found["nodes"]))
    graph = Graph(values, nodes, tuple(found["outputs"]), found["single"], held)
    unmade = {n for n, value in values.items() if value.kind == "result"} - graph.makers().keys()
    if unmade:
        raise ModelError(f"{where}: no node makes %{min(unmade)}; leave it out")
    if graph.single and len(graph.outputs) != 1:
        raise ModelError(f"{where}: single, with {len(graph.outputs)} outputs; give one")
    try:
        return graph.check()
    except UsageError as error:
        raise ModelError(f"{where}: {error}") from None


def _array(data: str, value: Value, at: str) -> np.ndarray:
    dtype = HALVES.get(value.dtype) or np.dtype(value.dtype)
    try:
        array = np.frombuffer(base64.b64decode(data, validate=True), dtype)
        return _swapped(array).reshape(value.shape)
    except (binascii.Error, ValueError):
        raise ModelError(f"{at}: data is no base64 of {value.dtype} {value.shape}; write its "
                         "bytes anew") from None


def _read_node(row: Any, values: dict[int, Value], at: str) -> Node:
    rules.check(row, NODE, at)
    op = ops().get(row["op"])
    if op is None:
        raise ModelError(f"{at}: {shown(row['op'])} is no op of this refsd; refsd ops has them "
                         "all. Have the graph made anew")
    parts = {}
    for part, wanted in (("inputs", False), ("options", True)):
        names = [p.name for p in op.signature.parameters.values()
                 if (p.kind is p.KEYWORD_ONLY) == wanted]
        rules.check(row[part], dict.fromkeys(names, rules.anything), f"{at}: {part} of {op.name}")
        parts[part] = {name: _got(row[part][name], values, at) for name in names}
    for name, value in parts["options"].items():
        if isinstance(value, list):
            parts["options"][name] = _tuples(value)
    return Node(op.name, parts["inputs"], parts["options"], row["result"], row["path"])


def _got(value: Any, values: dict[int, Value], at: str) -> Any:
    """A Ref, a number, a text, None, or a list of these."""
    if isinstance(value, list):
        return [_got(one, values, at) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value"} and type(value["value"]) is int and value["value"] in values:
        return Ref(value["value"])
    if value.keys() == {"number"} and value["number"] in ("inf", "-inf", "nan"):
        return float(value["number"])
    raise ModelError(f'{at}: {shown(value)}, expected {{"value": N}} of a value that is there, or '
                     'one of {"number": "inf"}, "-inf", "nan"')


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
