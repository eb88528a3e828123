"""Recorded ops in the layout of ONNX's own tests: CASE/model.onnx, CASE/test_data_set_0/input_0.pb.

The model is the op in ONNX's standard operators (refsd.graph.onnx_ops), every tensor an input.
call.json names the op, its options, which input is which, and the tolerance.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refsd import functional as F
from refsd.atomic import empty_folder
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.golden.packs.manifest import Entry
from refsd.golden.packs.pack import Pack
from refsd.golden.porting.export import chosen, encode, file_of, write_folder
from refsd.golden.recording.replay import arrays_of
from refsd.graph import trace
from refsd.graph.graph import Graph
from refsd.graph.onnx import write_onnx
from refsd.registry import ops

MODEL, DATA = "model.onnx", "test_data_set_0"


def export_onnx(pack: Pack, folder: str | Path, *, read_weight: Callable[[str], np.ndarray],
                only: Iterable[str] = ()) -> list[str]:
    """A folder for each recorded op of the pack; gives their names.

    read_weight is recording.replay.weights(pack). Raises UsageError where the onnx package is
    missing, and for a pack without recorded ops (levels below 3).
    """
    as_proto = encoder()
    wanted = [name for name in chosen(pack.entries, only) if pack.entries[name].op in ops()]
    if not wanted:
        raise UsageError(f"{pack.path}: no op is recorded in it under these names; give a pack "
                         "of level 3, or of ops")
    folder = empty_folder(folder)
    for name in wanted:
        entry = pack.entries[name]
        case = folder / file_of(name).replace("/", "__")
        arrays = arrays_of(entry, tensor=pack.read, weight=read_weight)
        inputs = {p: arrays[p] for p in ops()[entry.op].signature.parameters if p in arrays}
        tensors, others = _flat(inputs)
        files = {f"input_{i}.pb": as_proto(array, key)
                 for i, (key, array) in enumerate(tensors.items())}
        files["output_0.pb"] = as_proto(pack.read(name), "output_0")
        files = {f"{DATA}/{file}": data for file, data in files.items()}
        write_folder(case, files | {"call.json": encode({
            "name": name, "op": entry.op, "inputs": list(tensors), "numbers": others,
            "options": entry.options, "tolerance": entry.tolerance})})
        write_onnx(_graph(entry, inputs, tensors), case / MODEL)
    return wanted


def _graph(entry: Entry, inputs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Graph:
    """The op alone, its tensors inputs of their names."""

    def call(**specs):
        found = {name: [specs[f"{name}.{k}"] for k in range(len(value))]
                 if isinstance(value, list) else specs.get(name, value)
                 for name, value in inputs.items()}
        return getattr(F, entry.op)(**found, **entry.options)

    return trace(call, **{name: Spec(array.shape, str(array.dtype))
                          for name, array in tensors.items()})


def encoder() -> Callable[[np.ndarray, str], bytes]:
    """What makes an array a TensorProto's bytes; UsageError where the onnx package is missing."""
    try:
        from onnx import numpy_helper
    except ImportError:
        raise UsageError("--to onnx needs the onnx package: pip install refsd[onnx]") from None

    def as_proto(array: np.ndarray, name: str) -> bytes:
        return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape),
                                       name).SerializeToString()

    return as_proto


def _flat(inputs: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by parameter, those of lists as "arrays.0" and on; and the plain numbers."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        flat |= {f"{name}.{k}": item for k, item in enumerate(value)} if isinstance(
            value, list) else {name: value}
    return ({name: value for name, value in flat.items() if isinstance(value, np.ndarray)},
            {name: value for name, value in flat.items() if not isinstance(value, np.ndarray)})
