"""One op of a pack again, by the reference in float64, on whatever inputs are given."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.kinds import kind_of
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.leaf import Weight
from refsd.pipelines import identity
from refsd.registry import ops, use

TENSOR, WEIGHT = "tensor:", "weight:"


def replay(entry: Entry, inputs: Mapping[str, Any]) -> np.ndarray:
    """The entry's op in float64 on these arrays of its inputs, by parameter.

    Arrays of floats are raised to float64, integers stay, and so do numbers, None and lists.
    Raises UsageError for an entry without an op, an input too many or too few, or shapes that the
    op does not take.
    """
    if entry.inputs.keys() != inputs.keys():
        raise UsageError(f"{entry.name}: got the inputs {', '.join(inputs) or 'none'}; give "
                         f"{', '.join(entry.inputs) or 'none'}")
    return compute(entry.name, entry.op, inputs, entry.options)


def compute(name: str, op: str | None, inputs: Mapping[str, Any],
            options: Mapping[str, Any]) -> np.ndarray:
    """An op or a pipeline op in float64; `name` is for errors, as in replay."""
    raised = {key: raise_to_float64(value) for key, value in inputs.items()}
    if op in PIPELINE_OPS:
        return PIPELINE_OPS[op](**raised, **options)
    declared = ops().get(op)
    if declared is None:
        raise UsageError(f"{name}: {'a block' if op == 'block' else 'no op'}, which cannot be "
                         "replayed; give an entry of level 3 or of the stages")
    wide = {"dtype": "float64"} if "dtype" in options else {}
    raised |= {**options, **wide}
    declared.contract(**raised)
    with use("numpy"):
        return np.asarray(declared.definition(**raised))


def raise_to_float64(value: Any) -> Any:
    """Arrays of floats as float64, alone or in a list; all else as it is."""
    if isinstance(value, list):
        return [raise_to_float64(item) for item in value]
    return value.astype(np.float64) if getattr(value, "dtype", np.dtype("i8")).kind == "f" else (
        value)


def fill_in(value: Any, *, tensor: Callable[[str], Any], weight: Callable[[str], Any]) -> Any:
    """A reference, or a list of them, as arrays: tensor(NAME) and weight(PART.PATH) read them."""
    if isinstance(value, list):
        return [fill_in(item, tensor=tensor, weight=weight) for item in value]
    if isinstance(value, str) and value.startswith(TENSOR):
        return tensor(value.removeprefix(TENSOR))
    if isinstance(value, str) and value.startswith(WEIGHT):
        return weight(value.removeprefix(WEIGHT))
    return value


def arrays_of(entry: Entry, *, tensor: Callable[[str], Any],
              weight: Callable[[str], Any]) -> dict[str, Any]:
    """All inputs of an entry, read: what `replay` takes."""
    return {name: fill_in(value, tensor=tensor, weight=weight)
            for name, value in entry.inputs.items()}


def weights(pack: Any, model: Any = None) -> Callable[[str], np.ndarray]:
    """What reads a pack's weights, "unet.conv_in.weight" (also with "weight:"), as float32.

    They come from the pack's own model, or from `model`, a path or hub id, if that is where it lies
    here. Its files are those of the pack by their SHA-256, or a ModelError says so. It is read at
    the first question.
    """
    parts: dict[str, Mapping[str, Weight]] = {}

    def read(reference: str) -> np.ndarray:
        if not parts:
            parts.update(load_weights(pack.manifest, model))
        part, _, path = reference.removeprefix(WEIGHT).partition(".")
        try:
            return parts[part][path].dense()
        except KeyError:
            raise ModelError(f"{reference[:200]!r} is not a weight of the model. Give the one that "
                             "was recorded, with -m") from None

    return read


def load_weights(manifest: Any, model: Any) -> dict[str, Mapping[str, Weight]]:
    """The weights of a pack's model in float32, by part and path; see `weights`."""
    recorded, kind = manifest.model, kind_of(manifest.recipe)
    files, variant = recorded.get("files"), recorded.get("variant")
    name = recorded.get("name")
    if model is None and name != kind.bundled and not identity.HUB_ID.fullmatch(str(name)):
        raise UsageError(f"the pack was made with the model {str(name)[:200]!r} from a local path, "
                         "which it does not keep. Say where it is, with -m MODEL")
    model = name if model is None and name != kind.bundled else model
    hashes = kind.files(model, variant)
    if not isinstance(files, dict) or sorted(files.values()) != sorted(hashes.values()):
        raise ModelError("the model is not the one that the pack was made with: the SHA-256 of its "
                         f"weights ({', '.join(hashes)}) differ from the pack's. Give the right "
                         "one")
    return kind.weights(model, variant)
