"""An adapter's file, found and read; or its tensors, handed in as arrays."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refsd.arguments import as_array, shown
from refsd.errors import ModelError, UsageError
from refsd.weights.header import Header, read_header
from refsd.weights.location import from_hub
from refsd.weights.memory import check_memory, needed_bytes
from refsd.weights.reader import nonfinite, read_tensors

USUAL = "pytorch_lora_weights.safetensors"  # diffusers' own name


@dataclass(frozen=True)
class Source:
    """Tensors by key: their shapes, at once, and their values, where `read` is called."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    header: Header | None
    arrays: Mapping[str, np.ndarray]

    def read(self, keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The values, of these keys or of all.

        ModelError for NaN and infinities, ResourceError where memory is short.
        """
        keys = self.shapes if keys is None else keys
        if self.header is None:
            found = {key: self.arrays[key] for key in keys}
        else:
            wanted = [self.header.tensors[key] for key in keys]
            check_memory(needed_bytes(wanted, None), self.name)
            found = read_tensors(self.header, names=keys)
        bad = [ascii(key)[1:-1][:120] for key, array in found.items() if nonfinite(array)]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise ModelError(f"{self.name}: NaN or infinite values in {', '.join(bad[:3])}{more}. "
                             "Fetch the file again, or take another")
        return found


def open_source(given: Any, weight_name: str | None = None, **hub: Any) -> Source:
    """A file, a folder or a hub id (`weight_name` says which file there), or a dict of arrays.

    Raises ModelError for a damaged file, UsageError for a place where no adapter is.
    """
    if isinstance(given, Mapping):
        arrays = {str(key): as_array(f"load_lora_weights: {key}", value, None)
                  for key, value in given.items()}
        return Source("load_lora_weights: the dict", {k: a.shape for k, a in arrays.items()}, {},
                      None, arrays)
    header = read_header(find_file(given, weight_name, **hub))
    return Source(header.path, {k: info.shape for k, info in header.tensors.items()},
                  header.metadata, header, {})


def find_file(given: Any, weight_name: str | None = None, *, download: bool = False,
              subfolder: str | None = None, **hub: Any) -> Path:
    """The file that is meant by a path, a folder or a hub id, or by a `subfolder` of the two.

    Of a folder without `weight_name` it is diffusers' usual one, or the only .safetensors file.
    """
    text = os.fspath(given) if isinstance(given, (str, os.PathLike)) else given
    if not isinstance(text, str) or not text:
        raise UsageError(f"load_lora_weights: got {shown(given)}; give the path of a file, a "
                         "folder or a hub id with weight_name, or a dict of arrays")
    place = Path(text)
    if not os.path.exists(text):
        return _from_hub(text, weight_name or USUAL, download, {**hub, "subfolder": subfolder})
    if not place.is_dir():
        return place
    place /= subfolder or ""
    names = sorted(path.name for path in place.glob("*.safetensors"))
    if weight_name is None and len(names) != 1 and USUAL not in names:
        raise UsageError(f"{place}: there are {len(names)} .safetensors files in it"
                         + (f" ({', '.join(names[:3])}{', ...' if names[3:] else ''})" if names
                            else "") + "; give the path of one")
    return place / (weight_name or (USUAL if USUAL in names else names[0]))


def _from_hub(name: str, file: str, download: bool, hub: Mapping[str, Any]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{shown(name, 200)}: no such file or folder, and no hub id; give "
                         "one") from None
    return from_hub(huggingface_hub.hf_hub_download, name, file, where=name,
                    missing=f"no {file} of it", download=download,
                    **{key: value for key, value in hub.items() if value is not None})
