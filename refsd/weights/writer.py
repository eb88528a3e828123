"""Tensors into a safetensors file, which appears whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refsd.atomic import replacing
from refsd.errors import ResourceError, UsageError


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata as a safetensors file, in place of any older one.

    Written beside its place under another name and then renamed. Raises UsageError for what the
    format cannot hold, ResourceError when it cannot be written; then nothing is left behind.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    arrays = {name: array.reshape(np.shape(tensors[name])) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise UsageError(f"{path}: tensor {name!r} is {array.dtype}, which safetensors lacks. "
                             "Save it as float32")

    with replacing(path) as draft:
        try:
            save_file(arrays, draft, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            reason = " ".join(str(error).split()).replace(str(draft), str(path))
            raise ResourceError(f"{path}: cannot be written: {reason}. Give another "
                                "place") from None
        os.chmod(draft, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
