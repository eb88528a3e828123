"""Calls of ops out of an ONNX model: of each node that has a counterpart among refsd's ops.

Shapes are inferred by onnx; weights are not read, only their shapes. What nodes mean is in
graph_cases_onnx_ops.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refsd.contracts import FLOATS, Spec
from refsd.errors import UsageError, damaged
from refsd.golden.recording.graph_cases import Call, Left
from refsd.golden.recording.graph_cases_json import as_spec
from refsd.golden.recording.graph_cases_onnx_moves import Covered, Unread
from refsd.golden.recording.graph_cases_onnx_ops import READ
from refsd.golden.recording.graph_cases_onnx_shapes import OWN, SMALL, settled
from refsd.weights.files import read_bytes

CONTRIBUTED = ("com.microsoft", "MultiHeadAttention")  # what onnxruntime makes of attentions
MOST = 2 << 30  # bytes of a model file, which protocol buffers allow; weights may lie beside


def calls_in_onnx(path: str | Path, dims: Mapping[str, int]) -> tuple[list[Call], list[Left]]:
    """The calls in a model, in its order, and the nodes that are none with the reasons.

    dims: the sizes that its inputs leave open, by name. Raises UsageError where the onnx package is
    missing, a size is of no input, or one is left open; ModelError for a file that is no model or
    makes no sense.
    """
    model = _Model(path, dims)
    calls, left = [], []
    for i, proto in enumerate(model.nodes):
        node = Node(model, proto, i)
        known = proto.domain in OWN or (proto.domain, proto.op_type) == CONTRIBUTED
        read = READ.get(proto.op_type) if known else None
        try:
            if read is None:
                raise Unread("no op of refsd is its counterpart")
            for op, inputs, options in read(node):
                calls.append(Call(op, inputs, options, node.name, node.dtype))
        except Covered:
            continue
        except Unread as why:
            left.append(Left(node.name, proto.op_type, str(why)))
    return calls, left


class _Model:
    """A model's nodes, and what is known of its values."""

    def __init__(self, path: str | Path, dims: Mapping[str, int]):
        try:
            import onnx
            from google.protobuf.message import DecodeError
        except ImportError:
            raise UsageError(f"{path}: reading it needs the onnx package: pip install "
                             "refsd[onnx]") from None
        self.onnx = onnx
        try:
            model = onnx.ModelProto.FromString(read_bytes(path, limit=MOST))
        except DecodeError:
            raise damaged(f"{path}: no ONNX model") from None
        self.weights: dict[str, Spec] = {}  # what comes of no input
        self.known: dict[str, np.ndarray] = {}  # the values of small ones
        for tensor in model.graph.initializer:
            self._keep(tensor)
        self._settle(path, model.graph, dims)
        for value in model.graph.output:  # which an exporter may have left open
            value.type.tensor_type.ClearField("shape")
        graph = settled(onnx, model, path, self.known)
        self.weights |= {name: Spec(array.shape, str(array.dtype))
                         for name, array in self.known.items()}
        self.same: dict[str, str] = {}  # what an Identity gives is what it reads
        for node in graph.node:
            if node.op_type == "Identity":
                self.same[node.output[0]] = self.same.get(node.input[0], node.input[0])
        self.nodes = [node for node in graph.node if node.op_type != "Identity"]
        self.infos = {value.name: value.type.tensor_type for values in (
            graph.input, graph.value_info, graph.output) for value in values}
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self.users: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(self.same.get(name, name) for name in node.input):
                self.users.setdefault(name, []).append(i)

    def _keep(self, tensor: Any) -> None:
        """Its spec, and its values if they are few; a large one lets go of them."""
        onnx = self.onnx
        self.weights[tensor.name] = Spec(tuple(tensor.dims), self._dtype(tensor.data_type))
        if np.prod(tensor.dims, dtype=float) > SMALL:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(field)
        elif tensor.data_location != onnx.TensorProto.EXTERNAL:
            self.known[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def _dtype(self, number: int) -> str:
        name = self.onnx.TensorProto.DataType.Name(number).lower()
        return {"float": "float32", "double": "float64"}.get(name, name)

    def _settle(self, path: str | Path, graph: Any, dims: Mapping[str, int]) -> None:
        """Put sizes where the inputs have names."""
        names = {}
        for value in graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    names[dim.dim_param] = None
                if dim.dim_param in dims:
                    dim.dim_value = dims[dim.dim_param]
        for name in dims.keys() - names.keys():
            raise UsageError(f"{path}: no input has a size called {name!r}; there are: "
                             f"{', '.join(names) or 'none'}. Give one of them")
        if left := [name for name in names if name not in dims]:
            raise UsageError(f"{path}: its inputs leave sizes open; give "
                             f"{' '.join(f'--dim {name}=N' for name in left)}")

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a value; Unread where one is not known."""
        if name in self.weights:
            return self.weights[name]
        info = self.infos.get(name)
        if info is None or not info.HasField("shape") or not info.elem_type or not all(
                dim.HasField("dim_value") for dim in info.shape.dim):
            raise Unread("sizes of its arrays cannot be inferred: export it with fixed sizes")
        return Spec(tuple(dim.dim_value for dim in info.shape.dim), self._dtype(info.elem_type))


class Node:
    """A node as graph_cases_onnx_ops looks at it; what it asks for and is not there is Unread."""

    def __init__(self, model: _Model, proto: Any, index: int):
        self.model, self.proto, self.kind, self.index = model, proto, proto.op_type, index
        self.name = proto.name or f"{proto.op_type}.{index}"
        self.inputs = [model.same.get(name, name) for name in proto.input]

    @property
    def dtype(self) -> str:
        """What its first input of floats has."""
        for name in self.inputs:
            try:
                if name and (dtype := self.model.spec(name).dtype) in FLOATS:
                    return dtype
            except Unread:
                continue
        return "float32"

    def attribute(self, name: str, default: Any = None) -> Any:
        """Its value; texts are str, lists tuples."""
        found = next((one for one in self.proto.attribute if one.name == name), None)
        if found is None:
            return default
        value = self.model.onnx.helper.get_attribute_value(found)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value if isinstance(value, (int, float)) else tuple(value)

    def has(self, i: int) -> bool:
        """Whether there is an input of this number."""
        return i < len(self.inputs) and bool(self.inputs[i])

    def spec(self, i: int) -> Spec:
        """An input as an array of a case."""
        if not self.has(i):
            raise Unread(f"input {i} is missing")
        known = self.model.spec(self.inputs[i])
        return as_spec(known.shape, known.dtype)

    def floats(self, i: int) -> Spec:
        """An input of floats."""
        known = self.model.spec(self.inputs[i]) if self.has(i) else self.spec(i)
        if known.dtype not in FLOATS:
            raise Unread(f"it computes with {known.dtype}")
        return as_spec(*known)

    def result(self, i: int = 0) -> Spec:
        """An output as an array."""
        known = self.model.spec(self.proto.output[i])
        return as_spec(known.shape, known.dtype)

    def is_weight(self, i: int) -> bool:
        """Whether an input is an initializer or a constant."""
        return self.has(i) and self.inputs[i] in self.model.weights

    def values(self, i: int) -> np.ndarray:
        """A small constant's values."""
        if not self.has(i) or self.inputs[i] not in self.model.known:
            raise Unread(f"its input {i} is no small constant")
        return self.model.known[self.inputs[i]]

    def scalar(self, i: int) -> float | None:
        """A constant of one number; None for anything else."""
        array = self.model.known.get(self.inputs[i]) if self.has(i) else None
        return None if array is None or array.size != 1 else float(array.reshape(())[()])

    def maker(self, i: int) -> "Node | None":
        """The node that makes an input."""
        index = self.model.makers.get(self.inputs[i]) if self.has(i) else None
        return None if index is None else Node(self.model, self.model.nodes[index], index)

    def users(self) -> list["Node"]:
        """The nodes that read its first output."""
        return [Node(self.model, self.model.nodes[i], i)
                for i in self.model.users.get(self.proto.output[0], [])]
