"""Tensors that somebody else's program wrote: npy, npz, safetensors and raw files, one at a time.

A file is data, never code: pickled objects are refused, and sizes are compared with the file
before anything is allocated.
"""

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.comparing.layouts import layout
from refsd.weights.files import open_file, read_object
from refsd.weights.header import is_possible, read_header

MAX_INDEX = 64 << 20  # bytes of an index.json; 10,000 tensors take about 2 MB
# The members of an archive, unpacked, may take so many times its bytes, or UNPACKED if that is
# more. Deflate packs zeros 1000 to 1 and activations less than 2 to 1.
RATIO, UNPACKED = 20, 1 << 30

# What the name of a type may be in an index and after a raw file's last dot.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8",
    "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1", "uint16": "<u2", "uint32": "<u4",
    "bool": "?",
}  # fmt: skip
SHORT = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp32":
         "float32", "fp16": "float16", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}
RAW = (".bin", ".raw", *(f".{name}" for name in (*DTYPES, *SHORT)))
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
               "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
               "U16": "uint16", "U32": "uint32", "BOOL": "bool"}


class Dump(NamedTuple):
    """Where one tensor lies. shape is None where a raw file has no index; dtype is a name."""

    file: str
    member: str  # of an archive; "" for bytes that lie plainly in the file
    offset: int
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int
    layout: str | None = None
    fortran: bool = False


def dtype_name(text: str) -> str:
    """The full name of a type ("bf16" -> "bfloat16"); UsageError lists those there are."""
    found = SHORT.get(text.lower(), text.lower())
    if found not in DTYPES:
        raise UsageError(f"dtype {text[:40]!r} is not one of: {', '.join(DTYPES)}")
    return found


def dumps_in(path: Path, name: str, dtype: str | None) -> dict[str, Dump]:
    """The tensors of one file by name; `name` is that of a file that holds only one.

    dtype is what a raw file's numbers are where neither index nor file name says it. Raises
    ModelError for a file that is damaged or not safe to read. A file of another kind holds none.
    """
    end = path.suffix.lower()
    if end == ".npy":
        return {name: _npy(path)}
    if end == ".npz":
        return _npz(path)
    if end == ".safetensors":
        header = read_header(path)
        return {key: Dump(str(path), "", header.data + info.start, info.shape,
                          SAFETENSORS.get(info.dtype, info.dtype), info.stop - info.start)
                for key, info in header.tensors.items()}
    if end in RAW:
        named = end[1:] if end[1:] in SHORT or end[1:] in DTYPES else dtype or "float32"
        return {name: Dump(str(path), "", 0, None, dtype_name(named), _size(path))}
    return {}


def _size(path: Path) -> int:
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def _npy(path: Path) -> Dump:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _npy_header(file, Dump(str(path), "", 0, (), "", size))


def _npy_header(file: Any, dump: Dump) -> Dump:
    """The dump of a whole .npy file with what its header says."""
    where = f"{dump.file}{dump.member and ': '}{ascii(dump.member)[1:-1][:200]}"
    form = np.lib.format
    try:
        version = form.read_magic(file)
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format is not supported")
        shape, fortran, dtype = read(file)
    except (ValueError, OSError, EOFError, RecursionError, zlib.error, zipfile.BadZipFile,
            NotImplementedError) as error:
        raise ModelError(f"{where}: not a readable .npy file: "
                         f"{' '.join(str(error).split())[:200]}") from None
    if dtype.hasobject:
        raise ModelError(f"{where}: holds pickled Python objects, and loading those can run any "
                         "code. Save plain numbers")
    name = _name_of(dtype)
    if name is None:
        raise ModelError(f"{where}: holds {ascii(str(dtype))[1:-1][:80]}; plain numbers are "
                         "compared: float16, bfloat16, float32, float64 or integers")
    offset = file.tell()
    rest = dump.bytes - offset
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != rest or (
            not is_possible(shape, dtype.itemsize)):
        raise ModelError(f"{where}: the header claims {ascii(shape)[:80]} of {name}, which are not "
                         f"the {rest:,} bytes that follow. The file is damaged")
    if dtype.byteorder == ">":
        raise ModelError(f"{where}: is big-endian. Save little-endian numbers")
    return dump._replace(offset=offset, shape=tuple(shape), dtype=name, bytes=rest,
                         fortran=fortran)


def _name_of(dtype: np.dtype) -> str | None:
    """NumPy keeps the bfloat16 of ml_dtypes as two bytes without a meaning."""
    if dtype.kind == "V":
        return "bfloat16" if dtype.itemsize == 2 and dtype.names is None else None
    return dtype.name if dtype.name in DTYPES else None


def _npz(path: Path) -> dict[str, Dump]:
    """The members of an archive; what they claim to take unpacked is checked first."""
    found: dict[str, Dump] = {}
    with open_file(path) as file, _archive(file, path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        limit = max(UNPACKED, RATIO * os.fstat(file.fileno()).st_size)
        if unpacked > limit:
            raise ModelError(f"{path}: would unpack to {unpacked:,} bytes; at most {limit:,} are "
                             "read from an archive of this size. Save it without compression")
        for member in members:
            name = member.filename.removesuffix(".npy")
            where = f"{path}: {ascii(member.filename)[:200]}"
            if name == member.filename:
                continue
            if name in found:
                raise ModelError(f"{where} is there twice")
            with _member(archive, member.filename, where) as data:
                found[name] = _npy_header(data, Dump(str(path), member.filename, 0, (), "",
                                                     member.file_size))
    return found


def _archive(file: BinaryIO, path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: not a readable .npz archive: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, where: str) -> Any:
    try:
        return archive.open(name)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{where} cannot be read: {str(error)[:200]}") from None


def indexed(path: Path) -> dict[str, Dump]:
    """The tensors of raw files beside an index.json.

    {"tensors": {NAME: {"file": .., "offset": 0, "shape": [..], "dtype": "float32"}}}, each with
    its "layout" where that is not the logical one; other keys are the writer's own.
    """
    tensors = read_object(path, limit=MAX_INDEX).get("tensors")
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: wants an object \"tensors\" of NAME: {{file, shape, dtype}}")
    return {name: _raw(path, name, entry) for name, entry in tensors.items()}


def _raw(index: Path, name: str, entry: Any) -> Dump:
    where = f"{index}: tensor {ascii(name)[:200]}"
    entry = entry if isinstance(entry, dict) else {}
    file, shape, dtype = (entry.get(key) for key in ("file", "shape", "dtype"))
    offset, kept = entry.get("offset", 0), entry.get("layout")
    sizes = [offset, *shape] if isinstance(shape, list) else [None]
    if not (isinstance(file, str) and isinstance(dtype, str) and dtype in DTYPES
            and all(type(n) is int and 0 <= n < 1 << 48 for n in sizes)
            and (kept is None or isinstance(kept, str))):
        raise ModelError(f"{where} needs file, shape, dtype ({', '.join(DTYPES)}) and, where they "
                         "are not 0 and NCHW, offset and layout")
    place = Path(file)
    if place.is_absolute() or ".." in place.parts or "\\" in file or ":" in file:
        raise ModelError(f"{where} lies outside the index's folder: {ascii(file)[:200]}")
    shape = tuple(shape) if kept is None else layout(kept).physical(tuple(shape))
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    size, wanted = _size(index.parent / place), math.prod(shape) * itemsize
    if offset + wanted > size:
        raise ModelError(f"{where} takes bytes {offset:,} to {offset + wanted:,}, {file} has "
                         f"{size:,}")
    if not is_possible(shape, itemsize):
        raise ModelError(f"{where} has the shape {ascii(shape)[:80]}, which no array can have")
    return Dump(str(index.parent / place), "", offset, shape, dtype, wanted, kept)


class Reader:
    """Reads dumps one after the other; the archive read last stays open until `close`."""

    def __init__(self):
        self._path, self._file, self._archive = None, None, None

    def read(self, dump: Dump) -> np.ndarray:
        """The tensor as it was written; bfloat16 as float32, which holds its every value.

        Raises ModelError for a file that has changed or ends early.
        """
        if dump.dtype not in DTYPES:
            raise ModelError(f"{dump.file}: numbers of the type {dump.dtype[:40]} are not read. "
                             "Save them as float32, which holds each of them")
        kind = np.dtype(DTYPES[dump.dtype])
        array = np.empty(dump.bytes // kind.itemsize, kind)
        if dump.member:
            where = f"{dump.file}: {ascii(dump.member)[:200]}"
            with _member(self._open(dump.file), dump.member, where) as data:
                data.read(dump.offset)
                _fill(data, array, where)
        else:
            with open_file(dump.file) as file:
                file.seek(dump.offset)
                _fill(file, array, dump.file)
        if dump.dtype == "bfloat16":
            array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
        if dump.shape is None:
            return array
        return array.reshape(dump.shape, order="F" if dump.fortran else "C")

    def _open(self, path: str) -> zipfile.ZipFile:
        if path != self._path:
            self.close()
            self._file = open_file(path)
            self._archive, self._path = _archive(self._file, path), path
        return self._archive

    def close(self) -> None:
        """Close the archive."""
        if self._file is not None:
            self._archive.close()
            self._file.close()
            self._path, self._file, self._archive = None, None, None


def _fill(file: Any, array: np.ndarray, where: str) -> None:
    rest = memoryview(array.view(np.uint8))
    try:
        while rest and (count := file.readinto(rest)):
            rest = rest[count:]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelError(f"{where}: damaged: {str(error)[:200]}") from None
    except OSError as error:
        raise ResourceError(f"{where}: reading failed: {error.strerror}") from None
    if rest:
        raise ModelError(f"{where}: ended early. It changed while it was read, or is damaged")
