"""Golden packs, read: one tensor in memory at a time, each checked before it is believed.

A pack is a folder, or one .zip or .tar.zst of it. `Writer`, which records one, is here too.
"""

import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.arguments import nearest
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.packs.archive import unpack
from refsd.golden.packs.journal import JOURNAL
from refsd.golden.packs.manifest import MAX_MANIFEST, Entry, Manifest, read_manifest
from refsd.golden.packs.rules import DTYPES, shown
from refsd.golden.packs.shards import sha256, sha256_of_file
from refsd.golden.packs.writer import INDEX, MANIFEST, SUMS, Writer, index, sums
from refsd.weights.files import open_file, read_bytes
from refsd.weights.header import Header, read_header
from refsd.weights.reader import read_tensors

__all__ = ["Entry", "Fault", "Pack", "Writer"]

MAX_SUMS = 16 << 20

logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """What is wrong with a pack: a file or a tensor that is "altered", "missing" or "extra"."""

    name: str
    kind: str
    sentence: str


class Pack:
    """A golden pack, open for reading: `with Pack.open(path) as pack: pack.read(name)`.

    `manifest` is all that it says of itself; `entries` are its tensors by name, in the order of
    execution.
    """

    def __init__(self, folder: Path, *, path: Path, temporary: Any = None):
        self.folder, self.path = folder, path
        self._temporary = temporary
        self._headers: dict[str, Header] = {}
        self.manifest = self._read_manifest()
        self.entries: dict[str, Entry] = {entry.name: entry for entry in self.manifest.tensors}

    @classmethod
    def open(cls, path: str | Path) -> "Pack":
        """Open a folder, or an archive, which is unpacked into a temporary folder.

        Raises ModelError for what is no pack, unsafe, incomplete, altered or of another schema,
        ResourceError when the system refuses. The hash of a tensor is compared when it is read.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path, path=path)
        if not path.exists():
            raise ModelError(f"{path}: no such pack. Give a folder, a .zip or a .tar.zst")
        temporary = tempfile.TemporaryDirectory(prefix="refsd-pack-")
        try:
            unpack(path, temporary.name)
            return cls(Path(temporary.name), path=path, temporary=temporary)
        except BaseException:
            temporary.cleanup()
            raise

    def _read_manifest(self) -> Manifest:
        """The manifest, which agrees with SHA256SUMS and the files that are there."""
        where = f"{self.path}: {MANIFEST}"
        if os.path.lexists(self.folder / JOURNAL):
            raise ModelError(f"{self.path}: the recording was interrupted. Resume it first")
        if not os.path.lexists(self.folder / MANIFEST):
            raise ModelError(f"{self.path}: no golden pack: there is no {MANIFEST} in it. Give "
                             "the folder of one")
        self._check_ordinary(MANIFEST)
        data = read_bytes(self.folder / MANIFEST, limit=MAX_MANIFEST)
        if not os.path.lexists(self.folder / SUMS):
            read_manifest(data, where)  # another schema is the better reason
        self._check_ordinary(SUMS)
        listed, digest = read_bytes(self.folder / SUMS, limit=MAX_SUMS), hashlib.sha256(data)
        if f"{digest.hexdigest()}  {MANIFEST}".encode("ascii") not in listed.splitlines():
            raise self._altered(MANIFEST, f"has another hash than {SUMS} says")
        manifest = read_manifest(data, where)
        if INDEX not in manifest.files:
            raise self._altered(INDEX, f"is not among the files of {MANIFEST}")
        for name, file in manifest.files.items():
            size = self._check_ordinary(name).st_size
            if size != file["bytes"]:
                raise self._altered(name, f"has {size:,} bytes instead of {file['bytes']:,}")
        if listed != sums(manifest.files, digest.hexdigest()):
            raise self._altered(SUMS, f"is not the list of the files that {MANIFEST} gives")
        for fault in self._extra(manifest):
            logger.warning("%s: %s", self.path, fault.sentence)
        return manifest

    def _check_ordinary(self, name: str) -> os.stat_result:
        try:
            status = os.lstat(self.folder / name)
        except FileNotFoundError:
            raise self._altered(name, "is missing") from None
        except OSError as error:
            raise ResourceError(f"{self.folder / name}: {error.strerror}. See who may "
                                "read it") from None
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{self.path}: {name} is not an ordinary file. A pack has no links; "
                             "copy the files themselves")
        return status

    def _extra(self, manifest: Manifest) -> list[Fault]:
        there = sorted(set(os.listdir(self.folder)) - {MANIFEST, SUMS, *manifest.files})
        return [Fault(name, "extra", f"{shown(name)} is not part of the pack") for name in there]

    def _altered(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.path}: bundle altered: {name} {why}. Fetch or make it anew")

    def read(self, name: str) -> np.ndarray:
        """One tensor, checked: dtype and shape before it is read, SHA-256 after.

        Raises UsageError for a name that is not in the pack, ModelError for what was altered.
        """
        if name not in self.entries:
            raise UsageError(f"{self.path}: no tensor {shown(name)}. "
                             + nearest(name, self.entries, "refsd golden info shows what there is"))
        entry = self.entries[name]
        header = self._header(entry.shard)
        info = header.tensors.get(name)
        if info is None:
            raise self._altered(name, f"is missing in {entry.shard}")
        if (info.dtype, info.shape) != (DTYPES[entry.dtype], entry.shape):
            raise self._altered(name, f"is {info.dtype} {list(info.shape)} in {entry.shard}, and "
                                f"{entry.dtype} {list(entry.shape)} in {MANIFEST}")
        array = read_tensors(header, names=[name])[name]
        if sha256(array) != entry.sha256:
            raise self._altered(name, "has other values than it was made with")
        return array

    def _header(self, shard: str) -> Header:
        if shard not in self._headers:
            self._check_ordinary(shard)
            try:
                self._headers[shard] = read_header(self.folder / shard)
            except ModelError as error:
                raise self._altered(shard, f"is damaged ({error})") from None
        return self._headers[shard]

    def verify(self) -> list[Fault]:
        """Read every byte: hashes of files and tensors, the index, and what is there besides."""
        faults = self._extra(self.manifest)
        self._headers.clear()
        for name, file in sorted(self.manifest.files.items()):
            with open_file(self.folder / name) as opened:
                if sha256_of_file(opened) != file["sha256"]:
                    faults.append(Fault(name, "altered", f"bundle altered: {name}"))
        shards: dict[str, list[str]] = {}
        for entry in self.manifest.tensors:
            shards.setdefault(entry.shard, []).append(entry.name)
        for shard, names in shards.items():
            faults += self._verify_shard(shard, names)
        if all(fault.kind == "extra" for fault in faults) and (
                read_bytes(self.folder / INDEX, limit=MAX_MANIFEST)
                != index(self.folder, self.manifest)):
            faults.append(Fault(INDEX, "altered", f"{INDEX} is not the index of {MANIFEST}"))
        return faults

    def _verify_shard(self, shard: str, names: list[str]) -> list[Fault]:
        try:
            there = self._header(shard).tensors
        except ModelError as error:
            return [Fault(shard, "altered", str(error))]
        faults = [Fault(name, "extra", f"{shown(name)} is in {shard} and not part of the pack")
                  for name in sorted(set(there) - set(names))]
        for name in names:
            try:
                self.read(name)
            except ModelError as error:
                kind = "altered" if name in there else "missing"
                faults.append(Fault(name, kind, str(error)))
        return faults

    def close(self) -> None:
        """Let go of the temporary folder of an archive."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
