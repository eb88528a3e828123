"""float8 weights with a scale: what stands in the file for float8 times scale.

ComfyUI writes LAYER.weight as F8_E4M3 or F8_E5M2, and beside it one float32 for the whole tensor:
LAYER.scale_weight and a marker PREFIX.scaled_fp8 in its older files, LAYER.weight_scale and
LAYER.comfy_quant (JSON: {"format": "float8_e4m3fn"}), or the same JSON for all layers in the
metadata, in its newer ones. Scales of a layer's input (scale_input, input_scale) serve products in
float8, and change no weight. Source: comfy/ops.py and comfy/utils.py of ComfyUI.

Scales that are not one number, or of a format that is not named here, are left in place, and so
refused as other scales are.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from refsd.errors import ModelError
from refsd.weights.files import parse_foreign
from refsd.weights.header import FLOATS, SCALED, TensorInfo

WEIGHT_SCALES = (".scale_weight", ".weight_scale")
OF_INPUTS = (".scale_input", ".input_scale")
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
METADATA = "_quantization_metadata"
MAX_NOTE = 4096  # bytes of a comfy_quant
PREFIX_LEVELS = 4  # text_encoders.clip_l.transformer. has three


def with_scales(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str],
    read: Callable[[TensorInfo], bytes],
) -> dict[str, TensorInfo]:
    """The tensors, those with a scale as their product with it, and without what belongs to it.

    read gives the bytes of a small tensor.
    """
    found, noted = dict(tensors), None
    for name in tensors:
        suffix = next((end for end in WEIGHT_SCALES if name.endswith(end)), None)
        if suffix is None:
            continue
        layer, scale = name.removesuffix(suffix), tensors[name]
        weight, note = tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.comfy_quant")
        if weight is None or f"{weight.dtype}_SCALED" not in SCALED:
            continue
        twice = all(layer + end in tensors for end in WEIGHT_SCALES)
        if twice or scale.count != 1 or scale.dtype not in FLOATS:
            continue
        if noted is None:
            noted = _layers(metadata)
        if note is None:
            said = next((noted[part] for part in _endings(layer) if part in noted), None)
        else:
            small = note.dtype == "U8" and note.count <= MAX_NOTE
            said = _json(read(note)) if small else "unknown"
        if not _is_plain(said, weight.dtype):
            continue
        found[f"{layer}.weight"] = weight._replace(dtype=f"{weight.dtype}_SCALED", scale=scale)
        for end in (suffix, ".comfy_quant", *OF_INPUTS):
            found.pop(layer + end, None)
    applied = len(found) < len(tensors)
    return {name: info for name, info in found.items()
            if not applied or name.rpartition(".")[2] != "scaled_fp8"}


def _is_plain(said: Any, dtype: str) -> bool:
    """Whether what is said of a layer, if anything, is that it is float8 times a scale."""
    if said is None:
        return True
    said = {"format": said} if isinstance(said, str) else said
    return (isinstance(said, dict) and said.keys() <= {"format", "full_precision_matrix_mult"}
            and isinstance(said.get("format"), str) and FORMATS.get(said["format"]) == dtype)


def _layers(metadata: Mapping[str, str]) -> dict[str, Any]:
    found = _json(metadata.get(METADATA, "{}").encode())
    layers = found.get("layers") if isinstance(found, dict) else None
    return layers if isinstance(layers, dict) else {}


def _endings(layer: str) -> Iterator[str]:
    """a.b.c, b.c: the metadata may leave out what stands before all names, a few levels."""
    for _ in range(PREFIX_LEVELS + 1):
        yield layer
        layer = layer.partition(".")[2]


def _json(data: bytes) -> Any:
    try:
        return parse_foreign(data, "")
    except ModelError:
        return "unknown"
