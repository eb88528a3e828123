"""Tensors as files for programs in other languages: raw, npy, npz or safetensors, in any layout.

Beside them lies a list: index.json for raw files (the one that `refsd golden compare` reads back),
export.json for the others, which name themselves.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refsd.atomic import empty_folder, write_file, writing
from refsd.errors import ResourceError, UsageError
from refsd.golden.comparing.layouts import layout as known_layout
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.packs.manifest import as_dict
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.shards import raw, write_shard

ALIGNED = 64  # bytes: a raw tensor begins at a multiple, so that it can be mapped and read as SIMD
SHARD_BYTES = 1 << 30  # of safetensors, and what is held in memory for them


class Files:
    """Writes tensors into an empty folder, one at a time: `with Files(..) as out: out.add(..)`.

    The list of them is written last: a folder without one is incomplete. Raises UsageError for an
    unknown kind or layout and a folder that is not empty, ResourceError when the system refuses.
    """

    def __init__(self, folder: str | Path, kind: str, *, layout: str = "NCHW"):
        if kind not in KINDS:
            raise UsageError(f"--to is {kind!r}; give one of {', '.join(KINDS)}")
        known_layout(layout)
        self.folder, self.kind, self.layout = empty_folder(folder), kind, layout.upper()
        self.tensors: dict[str, dict[str, Any]] = {}
        self._opened = KINDS[kind](self.folder)
        with writing(self.folder):
            self._add = self._opened.__enter__()

    def add(self, name: str, array: np.ndarray, **about: Any) -> None:
        """Write one tensor in the layout; what else is said of it goes into the list."""
        if name in self.tensors:
            raise UsageError(f"{name}: there are two tensors of that name; rename one")
        stored = to_layout(array, self.layout)
        if stored.dtype.byteorder == ">":
            stored = stored.astype(stored.dtype.newbyteorder("<"))
        with writing(self.folder / name):
            location = self._add(name, stored)
        self.tensors[name] = {
            **location, "shape": list(array.shape), "dtype": str(array.dtype),
            "layout": self.layout, "stored": list(stored.shape), "bytes": stored.nbytes,
            "sha256": hashlib.sha256(raw(stored)).hexdigest(), **about}

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            with writing(self.folder):
                self._opened.__exit__(kind, *error)
        except ResourceError:
            if kind is None:  # else what went wrong first is the better reason
                raise
        if kind is None:
            name = "index.json" if self.kind == "raw" else "export.json"
            write_file(self.folder / name, [encode({
                "kind": self.kind, "layout": self.layout, "tensors": self.tensors})])


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> Path:
    """These files, by their paths in it, in a new or an empty folder."""
    folder = empty_folder(folder)
    for name, data in files.items():
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, [data])
    return folder


def encode(value: Any) -> bytes:
    """JSON for people and programs: a line a key, plain ASCII."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")


def file_of(name: str) -> str:
    """A tensor's name as a path that every system can have: `:` becomes `__`."""
    return name.replace(":", "__")


# Each kind gives within its block what writes one tensor and says where it lies.

@contextmanager
def _npy(folder):
    def add(name, array):
        file = f"{file_of(name)}.npy"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / file, array, allow_pickle=False)
        return {"file": file}

    yield add


@contextmanager
def _npz(folder):
    file = "tensors.npz"
    with zipfile.ZipFile(folder / file, "x") as archive:
        def add(name, array):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            return {"file": file}

        yield add


@contextmanager
def _raw(folder):
    file = "tensors.bin"
    with open(folder / file, "xb") as opened:
        def add(name, array):
            opened.write(bytes(-opened.tell() % ALIGNED))
            start = opened.tell()
            opened.write(memoryview(array.reshape(-1).view(np.uint8)))
            return {"file": file, "offset": start}

        yield add


@contextmanager
def _safetensors(folder):
    shards = [{}]

    def write():
        write_shard(folder / f"tensors-{len(shards):05}.safetensors", shards[-1])
        shards[-1] = None  # let go of

    def add(name, array):
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > SHARD_BYTES:
            write()
            shards.append({})
        shards[-1][name] = array
        return {"file": f"tensors-{len(shards):05}.safetensors"}

    yield add
    if shards[-1]:
        write()


KINDS: dict[str, Callable[[Path], Any]] = {
    "raw": _raw, "npy": _npy, "npz": _npz, "safetensors": _safetensors}


def chosen(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of the names that any of the patterns fits ("unet/*", "*.conv1"); no pattern: all.

    Raises UsageError for a pattern that fits none.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--only {pattern!r} fits no name; the first there is: "
                             f"{names[0] if names else 'none'}. Give a pattern of names")
    return [name for name in names
            if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


def export_pack(pack: Pack, folder: str | Path, kind: str, *, layout: str = "NCHW",
                only: Iterable[str] = ()) -> Files:
    """A pack's tensors in another kind of file and another layout.

    One is in memory at a time, for safetensors as many as a file takes (SHARD_BYTES).

    The list says of each what the manifest does: op, options, inputs, tolerance and the rest.
    """
    wanted = chosen(pack.entries, only)
    with Files(folder, kind, layout=layout) as out:
        for name in wanted:
            known = as_dict(pack.entries[name])
            about = {key: known[key] for key in ("op", "stage", "step", "options", "inputs",
                                                "tolerance", "note")}
            out.add(name, pack.read(name), **about)
    return out
