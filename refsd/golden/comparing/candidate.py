"""A candidate: the tensors that a port wrote, found under the names of a golden pack."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.dumps import Dump, Reader, dtype_name, dumps_in, indexed
from refsd.golden.comparing.layouts import from_layout, layout
from refsd.weights.files import read_object

INDEX, MANIFEST = "index.json", "manifest.json"


class Candidate:
    """Reads a port's tensors one at a time, under golden names. Use it in a `with` block."""

    def __init__(self, dumps: dict[str, Dump], where: str, name_map: "NameMap", layout: str | None):
        self.where, self._dumps, self._map, self._layout = where, dumps, name_map, layout
        self._reader, self._loose = Reader(), {}
        for name in dumps:
            self._loose.setdefault(loosely(name), []).append(name)

    @classmethod
    def open(cls, path: str | Path, *, name_map: dict[str, str] | str | Path | None = None,
             dtype: str | None = None, layout: str | None = None) -> "Candidate":
        """The tensors of a folder (npy, npz, safetensors, raw) or of one such file. None is read.

        A folder's .npy and raw files are named by their path in it without the ending; archives
        and safetensors by the names inside. Raw files have an index.json beside them, or end in
        their type (.f32, .bf16), or are of `dtype` (float32 without it). name_map (or a JSON file
        of it) gives the candidate's name of a golden one; * in both stands for any text. layout is
        that of every tensor, unless an index says another.

        Raises ModelError for files that are damaged or unsafe to read, and for two tensors of one
        name; UsageError for a layout, dtype or map that makes no sense.
        """
        path, name_map = Path(path), NameMap.of(name_map)
        dtype, kept = dtype and dtype_name(dtype), layout and _layout_name(layout)
        found = _folder(path, dtype) if path.is_dir() else _file(path, dtype)
        return cls(found, str(path), name_map, kept)

    def __enter__(self) -> "Candidate":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close what reading left open."""
        self._reader.close()

    def names(self) -> list[str]:
        """The candidate's own names, in no special order."""
        return list(self._dumps)

    def find(self, name: str) -> str | None:
        """The candidate's name of a golden tensor: the map's, the same, or one written loosely.

        Loosely: `.`, `/`, `:` and `__` between the parts are alike, as are 3 and 003. Raises
        UsageError when several names fit.
        """
        mapped = self._map.apply(name)
        for wanted in (mapped, name) if mapped else (name,):
            if wanted in self._dumps:
                return wanted
        fits = self._loose.get(loosely(mapped or name), [])
        if len(fits) > 1:
            raise UsageError(f"{self.where}: {fits[0]!r} and {fits[1]!r} could both be {name!r}. "
                             "Say which with a name map")
        return fits[0] if fits else None

    def extra(self, names: Iterable[str]) -> list[str]:
        """The candidate's names that none of the golden names leads to."""
        used = {self.find(name) for name in names}
        return [name for name in self._dumps if name not in used]

    def info(self, name: str) -> Dump | None:
        """Shape, dtype and size in bytes of a golden tensor's counterpart; None if there is none.

        Nothing is read.
        """
        found = self.find(name)
        return None if found is None else self._dumps[found]

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """The counterpart of a golden tensor of that name and shape; None if there is none.

        With a shape, the candidate's layout is undone and a raw file without an index takes the
        shape, where the number of elements allows. Otherwise the array is as it was written. Its
        dtype is the candidate's (bfloat16 comes as float32).
        """
        dump = self.info(name)
        if dump is None:
            return None
        data = self._reader.read(dump)
        if shape is None or data.shape == tuple(shape) and not (dump.layout or self._layout):
            return data
        kept = dump.layout or self._layout or "NCHW"
        physical = layout(kept).physical(tuple(shape))
        flat = data.ndim == 1 and data.size == math.prod(physical)
        # an array that keeps its axes must keep them as the layout does, but for axes of one
        if flat or _without_ones(data.shape) == _without_ones(physical):
            return from_layout(data, shape, kept)
        return data


class NameMap:
    """Golden name -> candidate's name, in which * stands for the same text on both sides."""

    def __init__(self, pairs: dict[str, str]):
        self._exact = {golden: mine for golden, mine in pairs.items() if "*" not in golden}
        self._patterns = [(re.compile("(.*)".join(map(re.escape, golden.split("*"))), re.DOTALL),
                           mine.split("*")) for golden, mine in pairs.items() if "*" in golden]

    @classmethod
    def of(cls, source: dict[str, str] | str | Path | None) -> "NameMap":
        """A map out of a dict or a JSON file; UsageError when it is no object of strings."""
        pairs = source or {}
        if not isinstance(pairs, dict):
            try:
                pairs = read_object(pairs)
            except ModelError as error:
                raise UsageError(f"name map: {error}") from None
        for golden, mine in pairs.items():
            if not isinstance(golden, str) or not isinstance(mine, str) or (
                    mine.count("*") > golden.count("*")):
                raise UsageError(f"name map: {golden!r} -> {mine!r}: give two names, with no more "
                                 "* in the second than in the first")
        return cls(pairs)

    def apply(self, name: str) -> str | None:
        """The candidate's name, or None where the map says nothing. The first pattern decides."""
        if name in self._exact:
            return self._exact[name]
        for pattern, parts in self._patterns:
            if match := pattern.fullmatch(name):
                return parts[0] + "".join(f"{text}{part}"
                                          for text, part in zip(match.groups(), parts[1:]))
        return None


def loosely(name: str) -> str:
    """A name with one separator and without leading zeros: unet__003.conv_in -> unet.3.conv_in"""
    name = re.sub(r"[/:.\\]+|__+", ".", name.strip("./"))
    return re.sub(r"(?<![^.])0+(?=\d+(?:\.|$))", "", name).lower()


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [n for n in shape if n != 1]


def _layout_name(name: str) -> str:
    layout(name)  # raises for one there is not
    return name.upper()


def _file(path: Path, dtype: str | None) -> dict[str, Dump]:
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder. Give what the port wrote")
    found = indexed(path) if path.name == INDEX else dumps_in(path, path.stem, dtype)
    if not found:
        raise UsageError(f"{path}: no tensors in it; give a folder, or a .npy, .npz, .safetensors, "
                         f".bin or {INDEX} file")
    return found


def _folder(path: Path, dtype: str | None) -> dict[str, Dump]:
    """Every tensor under a folder; raw files that an index describes are left to it."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    found: dict[str, Dump] = {}
    described = set()
    for file in (file for file in files if file.name == INDEX):
        inside = file.parent.relative_to(path).as_posix()
        dumps = indexed(file)
        described.update(dump.file for dump in dumps.values())
        _take(found, {name if inside == "." else f"{inside}/{name}": dump
                      for name, dump in dumps.items()}, path)
    for file in files:
        if file.name not in (INDEX, MANIFEST) and str(file) not in described:
            name = file.relative_to(path).with_suffix("").as_posix()
            _take(found, dumps_in(file, name, dtype), path)
    if not found:
        raise UsageError(f"{path}: no .npy, .npz, .safetensors or raw file in this folder")
    return found


def _take(found: dict[str, Dump], more: dict[str, Dump], path: Path) -> None:
    for name, dump in more.items():
        if name in found:
            raise ModelError(f"{path}: tensor {ascii(name)[:200]} is in {found[name].file} and in "
                             f"{dump.file}")
        found[name] = dump
