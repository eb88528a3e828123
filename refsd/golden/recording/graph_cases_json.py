"""Calls of ops out of JSON: a graph's (`refsd graph --json`), contracts.json's, or a list of them.

    [{"op": "conv2d", "node": "down.0.conv1", "dtype": "bfloat16", "options": {"padding": 1},
      "inputs": {"x": [2, 320, 64, 64], "weight": [320, 320, 3, 3], "bias": [320]}}, ..]

An input is its shape, {"shape": [..], "dtype": ".."}, a number, null, or a list of such for ops of
several arrays. node and dtype may be left out.
"""

from pathlib import Path
from typing import Any

from refsd import rules
from refsd.contracts import BYTES, FLOATS, Spec
from refsd.errors import ModelError, UsageError
from refsd.golden.recording.graph_cases import Call, refused
from refsd.graph.graph import Graph, Ref, Value
from refsd.graph.json import FORMAT, MOST, from_json
from refsd.weights.files import parse_json, read_text

OBJECT = rules.that(lambda value: isinstance(value, dict), "an object")
ROW = {"op": rules.text(100), "node": rules.text(1000), "inputs": OBJECT, "options": OBJECT,
       "dtype": rules.only(*FLOATS)}
SIZES = rules.each(rules.integer(0, 1 << 40), most=32)
SPEC = {"shape": SIZES, "dtype": rules.only(*BYTES)}


def calls_in_json(path: str | Path) -> list[Call]:
    """The calls in a file, in its order.

    Raises ModelError for a file of another form, UsageError for a call that an op's contract
    refuses, with the node and the reason.
    """
    text = read_text(path, limit=MOST)
    found = parse_json(text, path)
    if isinstance(found, dict) and found.get("format") == FORMAT:
        calls = _of_graph(from_json(text, path))
    elif isinstance(found, dict) and isinstance(found.get("calls"), dict):
        calls = [_row({"op": op, "node": row.get("first") or f"{op}.{i}", "inputs": row["inputs"],
                       "options": row["options"]}, f"{path}: calls.{op}[{i}]")
                 for op, rows in found["calls"].items() for i, row in enumerate(_rows(rows, path))]
    elif isinstance(found, list):
        calls = [_row(row, f"{path}: call {i}") for i, row in enumerate(found)]
    else:
        raise ModelError(f"{path}: expected a graph of refsd graph --json, contracts.json, or a "
                         "list of calls: [{\"op\", \"inputs\", \"options\"}, ..]")
    for call in calls:
        if why := refused(call):
            raise UsageError(f"{path}: node {call.node}: {why}. Mend this call")
    return calls


def _rows(rows: Any, path: str | Path) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(
            isinstance(row, dict) and {"inputs", "options"} <= row.keys() for row in rows):
        raise ModelError(f"{path}: expected lists of calls with inputs and options in calls")
    return rows


def _row(row: Any, where: str) -> Call:
    rules.check(row, ROW, where, optional=("node", "options", "dtype"))
    dtypes: set[str] = set()
    inputs = {name: _input(value, f"{where}: {name}", dtypes)
              for name, value in row["inputs"].items()}
    options = {name: _tuples(value) for name, value in row.get("options", {}).items()}
    dtype = row.get("dtype") or next((one for one in sorted(dtypes) if one in FLOATS), "float32")
    return Call(row["op"], inputs, _wide(options), row.get("node") or where.rpartition(": ")[2],
                dtype)


def _input(value: Any, where: str, dtypes: set[str]) -> Any:
    if isinstance(value, list) and value and not all(type(one) is int for one in value):
        return [_input(one, where, dtypes) for one in value]
    if isinstance(value, list):
        value = {"shape": value}
    if not isinstance(value, dict):
        if value is None or type(value) in (int, float):
            return value
        raise ModelError(f"{where} is {rules.shown(value, 120)}, expected a shape, a number or "
                         "null")
    rules.check(value, SPEC, where, optional=("dtype",))
    dtypes.add(value.get("dtype", ""))
    return as_spec(value["shape"], value.get("dtype", "float32"))


def as_spec(shape: Any, dtype: str) -> Spec:
    """An array of a case: floats are float32's in a pack, whichever the port keeps."""
    return Spec(tuple(shape), "float32" if dtype in FLOATS else dtype)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _wide(options: dict[str, Any]) -> dict[str, Any]:
    return options | ({"dtype": "float32"} if "dtype" in options else {})


def _of_graph(graph: Graph) -> list[Call]:
    """A constant is taken as it is: a mask, positions; of all else the shape."""

    def found(value):
        if isinstance(value, Ref):
            known: Value = graph.values[value.number]
            dtypes.add(known.dtype)
            if known.kind != "constant":
                return as_spec(known.shape, known.dtype)
            array = graph.held[value.number]
            return array.astype("float32") if known.dtype in FLOATS else array
        return [found(one) for one in value] if isinstance(value, list) else value

    calls = []
    for i, node in enumerate(graph.nodes):
        dtypes: set[str] = set()
        inputs = {name: found(value) for name, value in node.inputs.items()}
        options = {name: found(value) for name, value in node.options.items()}
        arrays = {name: value for name, value in options.items() if hasattr(value, "shape")}
        plain = {name: value for name, value in options.items() if name not in arrays}
        dtype = next((one for one in sorted(dtypes) if one in FLOATS), "float32")
        calls.append(Call(node.op, inputs | arrays, _wide(plain), node.path or f"{node.op}.{i}",
                          dtype))
    return calls
