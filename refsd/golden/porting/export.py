"""Tensors as files for programs in other languages: raw, npy, npz or safetensors, in any layout.

Beside them lies a list: index.json for raw files (the one that `refsd golden compare` reads back),
export.json for the others, which name themselves.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refsd.atomic import write_file, writing
from refsd.errors import ResourceError, UsageError
from refsd.golden.comparing.layouts import layout as known_layout
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.packs.manifest import as_dict
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.shards import write_shard

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
        self._put = KINDS[kind](self.folder)

    def add(self, name: str, array: np.ndarray, **about: Any) -> None:
        """Write one tensor in the layout; what else is said of it goes into the list."""
        if name in self.tensors:
            raise UsageError(f"{name}: there are two tensors of that name")
        stored = to_layout(array, self.layout)
        if stored.dtype.byteorder == ">":
            stored = stored.astype(stored.dtype.newbyteorder("<"))
        location = self._put.add(name, stored)
        self.tensors[name] = {
            **location, "shape": list(array.shape), "dtype": str(array.dtype),
            "layout": self.layout, "stored": list(stored.shape), "bytes": stored.nbytes,
            "sha256": hashlib.sha256(stored).hexdigest(), **about}

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            with writing(self.folder):
                self._put.close()
        except ResourceError:
            if kind is None:  # else what went wrong first is the better reason
                raise
        if kind is None:
            name = "index.json" if self.kind == "raw" else "export.json"
            write_file(self.folder / name, [encode({
                "kind": self.kind, "layout": self.layout, "tensors": self.tensors})])


def empty_folder(path: str | Path) -> Path:
    """The folder, made if it is not there; UsageError unless it is empty."""
    path = Path(path)
    if path.is_file():
        raise ResourceError(f"{path}: is a file. Give a folder")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{path}: is not empty, and nothing in it is overwritten. Give a new "
                             "folder")
    return path


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


class _Npy:
    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, name, array):
        file = f"{file_of(name)}.npy"
        path = self.folder / file
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array, allow_pickle=False)
        return {"file": file}

    def close(self):
        """Nothing is open."""


class _Npz:
    FILE = "tensors.npz"

    def __init__(self, folder: Path):
        self.path = folder / self.FILE
        with writing(self.path):
            self.archive = zipfile.ZipFile(self.path, "x")

    def add(self, name, array):
        with (writing(self.path),
              self.archive.open(f"{name}.npy", "w", force_zip64=True) as member):
            np.lib.format.write_array(member, array, allow_pickle=False)
        return {"file": self.FILE}

    def close(self):
        self.archive.close()


class _Raw:
    FILE = "tensors.bin"

    def __init__(self, folder: Path):
        self.path, self.offset = folder / self.FILE, 0
        with writing(self.path):
            self.file = open(self.path, "xb")  # noqa: SIM115  closed below

    def add(self, name, array):
        start = -(-self.offset // ALIGNED) * ALIGNED
        with writing(self.path):
            self.file.write(bytes(start - self.offset))
            self.file.write(memoryview(array.reshape(-1).view(np.uint8)))
        self.offset = start + array.nbytes
        return {"file": self.FILE, "offset": start}

    def close(self):
        self.file.close()


class _Safetensors:
    def __init__(self, folder: Path):
        self.folder, self.held, self.shards = folder, {}, 0

    def add(self, name, array):
        if self.held and sum(a.nbytes for a in self.held.values()) + array.nbytes > SHARD_BYTES:
            self.close()
        self.held[name] = array
        return {"file": self._name()}

    def _name(self):
        return f"tensors-{self.shards + 1:05}.safetensors"

    def close(self):
        if self.held:
            write_shard(self.folder / self._name(), self.held)
            self.held, self.shards = {}, self.shards + 1


KINDS: dict[str, Callable[[Path], Any]] = {
    "raw": _Raw, "npy": _Npy, "npz": _Npz, "safetensors": _Safetensors}


def chosen(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of the names that any of the patterns fits ("unet/*", "*.conv1"); no pattern: all.

    Raises UsageError for a pattern that fits none.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--only {pattern!r} fits no name; the first there is: "
                             f"{names[0] if names else 'none'}")
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
