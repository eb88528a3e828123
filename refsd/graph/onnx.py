"""A graph as an ONNX model of opset 21, by refsd.graph.onnx_ops; it needs the onnx package.

An op of halves is that of their float32 values, rounded once, here as in refsd. Weights are
initializers under their paths: in the file, or, if they are large or not there, in a file beside
it, one after the other.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.atomic import write_file
from refsd.contracts import HALVES, array_bytes
from refsd.errors import UsageError
from refsd.graph.graph import Graph, Node
from refsd.graph.onnx_ops import COUNTERPARTS, On, Tensor, data_type
from refsd.half import HALVES as HALF_DTYPES
from refsd.kinds import Movement
from refsd.registry import ops

OPSET, IR = 21, 10  # GroupNormalization is with a scale for each channel from 21 on
INSIDE = 1 << 30  # bytes of weights; a file of protocol buffers has at most 2 GiB
ALIGNED = 4096  # where a tensor begins in the file beside, so that programs can map it


class Written(NamedTuple):
    """The files of a model: itself, and the one beside it that has its weights.

    `weights` is None if they are inside; `missing` says that they are to lie there and do not.
    """

    model: Path
    weights: Path | None
    missing: bool
    nodes: int


def write_onnx(graph: Graph, path: str | Path, *, weights: Mapping[str, Any] | None = None,
               inside: int = INSIDE) -> Written:
    """Write the graph with these weights, by default those that were there when it was traced.

    More than `inside` bytes of weights lie in a file beside, PATH.data. Without them it is not
    written: the model then says where in it each belongs. Raises UsageError for an op without a
    counterpart, a weight that does not fit, or where the onnx package is missing.
    """
    path, model = Path(path), _Model(graph)
    beside = path.with_name(f"{path.name}.data")
    found = _weights(graph, weights)
    missing = not found and bool(graph.numbers("weight"))
    size = sum(array_bytes(graph.values[number]) for number in graph.numbers("weight"))
    external = missing or size > inside
    at = 0
    for number in graph.numbers("weight"):
        value = graph.values[number]
        if external:
            at += -at % ALIGNED
            model.outside(value, beside.name, at)
            at += array_bytes(value)
        else:
            model.inside(value.name, _little(found[number]), value.shape, value.dtype)
    made = model.made()
    if external and not missing:
        write_file(beside, _parts(graph, found))
    write_file(path, [made.SerializeToString()])
    return Written(path, beside if external else None, missing, len(made.graph.node))


def _weights(graph: Graph, given: Mapping[str, Any] | None) -> dict[int, Any]:
    """All of them, or none."""
    values = {number: graph.values[number] for number in graph.numbers("weight")}
    found = {number: graph.held.get(number) if given is None else given.get(value.name)
             for number, value in values.items()}
    absent = [values[number].name for number, array in found.items() if array is None]
    if given is None and len(absent) == len(found):
        return {}
    if absent:
        raise UsageError(f"onnx: the weight {absent[0]} is missing; give all in weights, or none")
    for number, array in found.items():
        value = values[number]
        if (tuple(array.shape), str(array.dtype)) != (value.shape, value.dtype):
            raise UsageError(f"onnx: {value.name} is {array.dtype} {tuple(array.shape)}; give "
                             f"{value.dtype} {value.shape}")
    return found


def _little(array: Any) -> bytes:
    """An array's values in C order, little-endian; a quantized weight's as it reads."""
    array = np.ascontiguousarray(array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _parts(graph: Graph, found: Mapping[int, Any]) -> Iterator[bytes]:
    """The file beside, a tensor at a time."""
    at = 0
    for number in graph.numbers("weight"):
        yield bytes(-at % ALIGNED)
        data = _little(found[number])
        at += -at % ALIGNED + len(data)
        yield data


class _Model:
    """The nodes and tensors that have been made."""

    def __init__(self, graph: Graph):
        try:
            import onnx
        except ImportError:
            raise UsageError("--onnx needs the onnx package: pip install refsd[onnx]") from None
        self.onnx, self.graph = onnx, graph
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constants: dict[tuple, str] = {}
        self.names = {number: value.name if value.kind in ("input", "weight") else f"v{number}"
                      for number, value in graph.values.items()}
        names = [self.names[n] for kind in ("input", "weight") for n in graph.numbers(kind)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"onnx: two values are called {twice}; give each a name of its own")

    def made(self) -> Any:
        """The whole model."""
        helper, graph, values = self.onnx.helper, self.graph, self.graph.values
        for number in graph.numbers("constant"):
            value = values[number]
            self.inside(self.names[number], _little(graph.held[number]), value.shape, value.dtype)
        for node in graph.nodes:
            self.node(node)
        outputs = []
        for i, number in enumerate(graph.outputs):
            self.nodes.append(helper.make_node("Identity", [self.names[number]], [f"output_{i}"]))
            outputs.append(self.info(f"output_{i}", values[number]))
        made = helper.make_graph(
            self.nodes, "refsd", [self.info(values[n].name, values[n])
                                  for n in graph.numbers("input")], outputs, self.initializers,
            value_info=[self.info(self.names[n], values[n]) for n in graph.numbers("result")])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)],
                                 ir_version=IR, producer_name="refsd")

    def info(self, name: str, value: Any) -> Any:
        """The shape and type of a value."""
        return self.onnx.helper.make_tensor_value_info(name, self.kind(value.dtype), value.shape)

    def kind(self, dtype: str) -> int:
        """TensorProto's number of a dtype."""
        return self.onnx.TensorProto.DataType.Value(data_type(dtype))

    def tensor(self, name: str, shape: Any, dtype: str) -> Any:
        """A new initializer, without data."""
        found = self.onnx.TensorProto(name=name, dims=shape, data_type=self.kind(dtype))
        self.initializers.append(found)
        return found

    def inside(self, name: str, data: bytes, shape: Any, dtype: str) -> None:
        """An initializer with its data."""
        self.tensor(name, shape, dtype).raw_data = data

    def outside(self, value: Any, file: str, at: int) -> None:
        """An initializer whose data lie in a file."""
        found = self.tensor(value.name, value.shape, value.dtype)
        found.data_location = self.onnx.TensorProto.EXTERNAL
        for key, what in {"location": file, "offset": at, "length": array_bytes(value)}.items():
            found.external_data.add(key=key, value=str(what))

    def node(self, node: Node) -> None:
        """The operators of one op."""
        counterpart = COUNTERPARTS.get(node.op)
        if counterpart is None:
            raise UsageError(f"onnx: {node.op} has no counterpart among ONNX's operators; give a "
                             "graph without it")
        result = self.graph.values[node.result]
        wide = result.dtype in HALVES and not isinstance(ops()[node.op].kind, Movement)
        on = On(lambda *call: self.add(node, *call), self.constant, result)

        def tensor(number):
            value = self.graph.values[number]
            if wide and value.dtype in HALVES:
                return Tensor(on.cast(self.names[number], "float32"), value.shape, "float32")
            return Tensor(self.names[number], value.shape, value.dtype)

        options = self.graph.options(node, tensor)
        if wide and "dtype" in options:
            options["dtype"] = "float32"
        found = counterpart(on, *self.graph.arguments(node, tensor), **options)
        if wide:
            found = on.cast(found, result.dtype)
        self.nodes[-1].output[[*self.nodes[-1].output].index(found)] = self.names[node.result]

    def add(self, node: Node, operator: str, inputs: Any, outputs: int, attributes: Any) -> list:
        """A node; the names of its results."""
        i = len(self.nodes)
        names = [f"v{node.result}.{i}.{k}" for k in range(outputs)]
        read = ["" if x is None else x.name if isinstance(x, Tensor) else x for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(
            operator, read, names, f"{node.path or node.op}:{i}", **attributes))
        return names

    def constant(self, value: Any, dtype: str) -> str:
        """The name of an initializer with this value, the same for the same."""
        array = np.asarray(value).astype(HALF_DTYPES.get(dtype) or dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"constant_{len(self.constants)}"
            self.inside(self.constants[key], _little(array), array.shape, dtype)
        return self.constants[key]
