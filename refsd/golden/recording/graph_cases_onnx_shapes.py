"""The arithmetic of shapes in an ONNX model, done beforehand, so that all shapes are known.

Exporters compute sizes by nodes (Shape, Gather, Mul, Concat, ..), even those that are fixed.
"""

from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import damaged

OWN = ("", "ai.onnx")  # the domain of ONNX's own operators
SMALL = 1 << 12  # numbers of a constant whose values are looked at
# Whose result is no larger than what they read, or what they read broadcast.
FOLDED = {"Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Floor",
          "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
          "ReduceProd", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
          "Where"}  # fmt: skip


def settled(onnx: Any, model: Any, path: str | Path, known: dict[str, np.ndarray]) -> Any:
    """The graph with inferred shapes, without the nodes whose results are constants.

    known: values of constants, to which theirs are added. Raises ModelError for a model that
    does not say which operators it means.
    """
    while True:
        graph = _inferred(onnx, model, path)
        shapes = {value.name: _shape(value.type.tensor_type) for values in (
            graph.input, graph.value_info, graph.output) for value in values}
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        rest, found = [], {}
        for node in model.graph.node:
            value = _value(onnx, model, node, {**known, **found} if found else known, shapes)
            if value is None:
                rest.append(node)
            else:
                found[node.output[0]] = value
        if not found:
            return graph
        known |= found
        del model.graph.node[:]
        model.graph.node.extend(rest)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name)
                                       for name, array in found.items())


def _inferred(onnx: Any, model: Any, path: str | Path) -> Any:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise damaged(f"{path}: shapes cannot be inferred: "
                      f"{' '.join(str(error).split())[:300]}") from None


def _shape(kind: Any) -> tuple[int, ...] | None:
    """A shape of which all sizes are known."""
    dims = kind.shape.dim
    known = kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


def _value(onnx: Any, model: Any, node: Any, known: dict[str, np.ndarray],
           shapes: dict[str, tuple[int, ...] | None]) -> np.ndarray | None:
    """What a node gives, if that is a small constant."""
    if node.domain not in OWN:
        return None
    if node.op_type == "Constant" and node.attribute:
        value = onnx.helper.get_attribute_value(node.attribute[0])
        value = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        return value if np.size(value) <= SMALL else None
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        part = {one.name: one.i for one in node.attribute}
        return None if shape is None else np.array(
            shape[part.get("start", 0):part.get("end")], np.int64)
    if node.op_type not in FOLDED or any(name and name not in known for name in node.input):
        return None
    inputs = {name: known[name] for name in node.input if name}
    if node.op_type == "ConstantOfShape" and np.prod(inputs[node.input[0]], dtype=float) > SMALL:
        return None
    value = _computed(onnx, model, node, inputs)
    return value if value is not None and value.size <= SMALL else None


def _computed(onnx: Any, model: Any, node: Any, inputs: dict[str, np.ndarray]) -> Any:
    """By ONNX's own evaluator; None for what it does not know."""
    from onnx.reference import ReferenceEvaluator

    made = onnx.helper.make_graph([node], "node", [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(
            array.dtype), array.shape) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=node.output[0])])
    try:
        with np.errstate(all="ignore"):
            [value] = ReferenceEvaluator(onnx.helper.make_model(
                made, opset_imports=model.opset_import)).run(None, inputs)
    except Exception:  # a node of a foreign model, which may be anything
        return None
    return np.asarray(value)
