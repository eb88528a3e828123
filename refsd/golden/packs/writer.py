"""Recording a golden pack: tensors go to disk as they come, one shard in memory at most."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from refsd import parallel
from refsd.atomic import write_file
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.packs import journal
from refsd.golden.packs.manifest import (
    MAX_MANIFEST,
    Entry,
    Manifest,
    as_dict,
    read_entry,
    write_manifest,
)
from refsd.golden.packs.rules import CHECKPOINT_RULES, DTYPES, INVARIANT_RULES, SCHEMA, shown
from refsd.golden.packs.shards import discard_drafts, sha256, statistics, write_shard
from refsd.rules import check
from refsd.version import __version__
from refsd.weights.header import read_header
from refsd.weights.reader import read_tensors

SHARD_BYTES = 64 << 20
MANIFEST, INDEX, SUMS = "manifest.json", "index.tsv", "SHA256SUMS"


class Writer:
    """A golden pack that is being recorded in a folder: `with Writer(...) as pack: pack.add(...)`.

    The same tensors in the same order give the same bytes, also when the recording was interrupted
    and went on. Raises UsageError for a folder that holds something else, ResourceError when it
    cannot be written.
    """

    def __init__(self, folder: str | Path, *, recipe: Mapping[str, Any], model: Mapping[str, Any],
                 kind: str = "run", title: str = "", resume: bool = False,
                 shard_bytes: int = SHARD_BYTES):
        self.folder = Path(folder)
        self._about = {"kind": kind, "title": title, "recipe": plain(recipe),
                       "model": plain(model), "versions": versions(), "machine": machine()}
        _as_usage(lambda: write_manifest(self._manifest([])))
        self._shard_bytes = shard_bytes
        self._held: dict[str, Entry] = {}
        self._resumed: set[str] = set()
        self._rows: list[journal.Shard] = []  # the shards that are closed
        self._row = journal.Shard(_shard_name(0))  # the one that is still in memory
        self._arrays: dict[str, np.ndarray] = {}
        self._filled = 0  # their bytes
        self._unsaved = False
        self._size = 0
        self._finished: Manifest | None = None
        self._prepare(resume)

    def _prepare(self, resume: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if resume:
                discard_drafts(self.folder)
            there = sorted(path.name for path in self.folder.iterdir())
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be a folder: {error.strerror}. Give "
                                "another place") from None
        head = {**self._about, "schema": SCHEMA, "shard_bytes": self._shard_bytes}
        if resume and journal.JOURNAL in there:
            self._take_over(journal.read(self.folder, head))
        elif resume and MANIFEST in there:
            raise UsageError(f"{self.folder}: the pack is finished; there is nothing to resume")
        elif there:
            raise UsageError(f"{self.folder}: the folder is not empty ({shown(there[0])}). Give "
                             "another, or resume what was interrupted")
        journal.write(self.folder, head, [*self._rows, *([self._row] if self._arrays else [])])

    def _take_over(self, rows: list[journal.Shard]) -> None:
        """Go on after the shards that are there; the last is taken back for more tensors."""
        for row in rows:
            for entry in row.tensors:
                self._note(entry)
        self._resumed = set(self._held)
        if rows:
            *self._rows, self._row = rows
            tensors = read_tensors(read_header(self.folder / self._row.shard))
            self._arrays = {entry.name: tensors[entry.name] for entry in self._row.tensors}
            self._filled = sum(array.nbytes for array in self._arrays.values())

    def holds(self, name: str) -> bool:
        """Whether a tensor of this name was added, now or before the recording was interrupted."""
        return name in self._held

    def add(self, name: str, array: Any, *, op: str | None = None, stage: str,
            step: int | None = None, options: Mapping[str, Any] | None = None,
            inputs: Mapping[str, Any] | None = None, tolerance: Mapping[str, Any] | None = None,
            note: str = "", keep: bool = False) -> Entry:
        """Add the next tensor in the order of execution; gives its entry.

        float64 is rounded to float32, to nearest, unless `keep`. A tensor that `inputs` refers to
        is added before. A resumed recording may add again what it holds: the same values change
        nothing, others are a UsageError, as is whatever the format page does not allow.
        """
        array = _stored(name, array, keep)
        if name in self._held:
            return self._again(name, array)
        if self._finished is not None:
            raise UsageError(f"golden pack: {shown(name)} is added to a pack that is "
                             "finished; make another one")
        if self._arrays and self._filled + array.nbytes > self._shard_bytes:
            self._save()
            self._rows.append(self._row)
            self._row, self._arrays = journal.Shard(_shard_name(len(self._rows))), {}
            self._filled = 0
        entry = _as_usage(lambda: read_entry({
            "name": name, "op": op, "stage": stage, "step": plain(step),
            "shape": list(array.shape), "dtype": array.dtype.name, "options": plain(options or {}),
            "inputs": plain(inputs or {}), "index": len(self._held), "shard": self._row.shard,
            "sha256": sha256(array), "stats": statistics(array),
            "tolerance": plain(tolerance or {}), "note": note}, "golden pack"))
        missing = next((ref for ref in entry.sources if ref not in self._held), None)
        if missing is not None:
            raise UsageError(f"golden pack: {name} has the input {shown(missing)}, which is to be "
                             "added before it: add that first")
        self._arrays[name] = array
        self._filled += array.nbytes
        self._row.tensors.append(entry)
        self._note(entry)
        self._unsaved = True
        return entry

    def _again(self, name: str, array: np.ndarray) -> Entry:
        held = self._held[name]
        if name not in self._resumed:
            raise UsageError(f"golden pack: {name} is added twice; give it another name")
        if (held.sha256, held.shape, held.dtype) != (
                sha256(array), array.shape, array.dtype.name):
            raise UsageError(f"golden pack: {name} was recorded with other values before the "
                             "interruption. Make another pack in a new folder")
        return held

    def _note(self, entry: Entry) -> None:
        self._size += len(json.dumps(as_dict(entry))) + 2
        if self._size > MAX_MANIFEST * 9 // 10:
            raise UsageError(f"golden pack: {len(self._held):,} tensors are as many as a manifest "
                             "takes. Filter by name, step or op, or make several packs")
        self._held[entry.name] = entry

    def checkpoint(self, percent: int, name: str, *, step: int) -> None:
        """Mark a tensor as the state of the run at `percent` of its steps."""
        mark = {"percent": percent, "step": step, "tensor": name}
        self._mark("checkpoints", CHECKPOINT_RULES, mark)

    def invariant(self, name: str, value: float, *, limit: float,
                  tensor: str | None = None) -> None:
        """Keep a check of the recording itself: `value` is to be at most `limit`."""
        mark = {"name": name, "tensor": tensor, "value": float(value), "limit": float(limit)}
        self._mark("invariants", INVARIANT_RULES, mark)

    def _mark(self, kind: str, rules: dict[str, Any], mark: dict[str, Any]) -> None:
        """Keep a mark, unless it was kept before the recording was interrupted."""
        _as_usage(lambda: check(mark, rules, f"golden pack: {kind}"))
        if mark["tensor"] is not None and mark["tensor"] not in self._held:
            raise UsageError(f"golden pack: {kind}: there is no tensor {shown(mark['tensor'])} "
                             "yet. Record it first")
        if not any(mark in getattr(row, kind) for row in [*self._rows, self._row]):
            getattr(self._row, kind).append(mark)
            self._unsaved = True

    def _save(self) -> None:
        """Put the open shard on disk, as far as it is filled."""
        if self._unsaved and self._arrays:
            self._row.file = write_shard(self.folder / self._row.shard, self._arrays)
            journal.add(self.folder, self._row)
            self._unsaved = False

    def close(self) -> Manifest:
        """Finish the pack: the index, the manifest, the list of hashes. The journal goes."""
        if self._finished is not None:
            return self._finished
        self._save()
        rows = [*self._rows, self._row] if self._arrays else self._rows
        manifest = self._manifest(rows)
        manifest.files[INDEX] = write_file(self.folder / INDEX, [index(self.folder, manifest)])
        _as_usage(lambda: seal(self.folder, manifest))
        (self.folder / journal.JOURNAL).unlink()
        self._finished = manifest
        return manifest

    def _manifest(self, rows: list[journal.Shard]) -> Manifest:
        checkpoints = [mark for row in rows for mark in row.checkpoints]
        return Manifest(
            **self._about, files={row.shard: row.file for row in rows},
            checkpoints=sorted(checkpoints, key=lambda mark: mark["percent"]),
            invariants=[mark for row in rows for mark in row.invariants],
            tensors=[entry for row in rows for entry in row.tensors])

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        """Finish the pack, or after an error leave what `resume` needs."""
        if kind is None:
            self.close()
        else:
            self._save()


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, and SHA256SUMS, of a pack whose other files are there."""
    data = write_manifest(manifest)
    write_file(folder / MANIFEST, [data])
    write_file(folder / SUMS, [sums(manifest.files, hashlib.sha256(data).hexdigest())])


def index(folder: Path, manifest: Manifest) -> bytes:
    """index.tsv: where each tensor's bytes lie, for readers without JSON.

    A line a tensor in the order of execution, separated by tabs: name, dtype, sizes joined by x
    ("-" for none), shard, the first byte in that file, the number of bytes, SHA-256.
    """
    lines, headers = [], {}
    for entry in manifest.tensors:
        if entry.shard not in headers:
            headers[entry.shard] = read_header(folder / entry.shard)
        header = headers[entry.shard]
        sizes = "x".join(map(str, entry.shape)) or "-"
        lines.append(f"{entry.name}\t{entry.dtype}\t{sizes}\t{entry.shard}\t"
                     f"{header.data + header.tensors[entry.name].start}\t{entry.nbytes}\t"
                     f"{entry.sha256}\n")
    return "".join(lines).encode("ascii")


def sums(files: dict[str, dict[str, Any]], manifest: str) -> bytes:
    """SHA256SUMS, as sha256sum prints it: every file of the pack, the manifest's hash given."""
    hashes = {**{name: file["sha256"] for name, file in files.items()}, MANIFEST: manifest}
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode("ascii")


def _shard_name(number: int) -> str:
    return f"tensors-{number:05d}.safetensors"


def _stored(name: str, array: Any, keep: bool) -> np.ndarray:
    """A copy of the array as it is stored: float64 rounded, native byte order, C order."""
    array = np.asarray(array)
    if array.dtype.name not in DTYPES:
        raise UsageError(f"golden pack: {shown(name)} is {array.dtype}, expected one of "
                         + ", ".join(DTYPES))
    dtype = array.dtype.newbyteorder("=")
    if dtype == np.float64 and not keep:
        dtype = np.dtype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # beyond float32: infinity
        return np.array(array, dtype=dtype, order="C", copy=True)


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples and small arrays as lists, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value


def versions() -> dict[str, str]:
    """The versions that decide the values in a pack."""
    return {"refsd": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scipy")}}


def machine() -> dict[str, str]:
    """The processor and the system; nothing that tells whose they are, or how many threads."""
    return {"system": platform.system(), "architecture": platform.machine(),
            "processor": parallel.processor()[:200]}


def _as_usage(call: Any) -> Any:
    """What the rules refuse is the maker's own mistake here, not a damaged file."""
    try:
        return call()
    except ModelError as error:
        raise UsageError(str(error)) from None
