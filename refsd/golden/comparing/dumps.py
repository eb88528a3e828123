"""Where the tensors of somebody else's program lie, and reading them one at a time.

A file is data, never code: pickled objects are refused, and sizes are compared with the file
before anything is allocated. What cannot be read is kept as a Trouble beside what can.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError, damaged
from refsd.golden.comparing.base64_file import Base64File
from refsd.weights import float8
from refsd.weights.files import open_file
from refsd.weights.header import is_possible

# What the name of a type may be in an index and after a raw file's last dot.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8",
    "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1", "uint16": "<u2", "uint32": "<u4",
    "uint64": "<u8", "bool": "?", "float8_e4m3fn": "u1", "float8_e5m2": "u1",
}  # fmt: skip
SHORT = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp32":
         "float32", "fp16": "float16", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64",
         "f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2"}
FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}  # as safetensors calls them

# The members of an archive, unpacked, may take so many times its bytes, or UNPACKED if that is
# more. Deflate packs zeros 1000 to 1 and activations less than 2 to 1.
RATIO, UNPACKED = 20, 1 << 30


class Dump(NamedTuple):
    """Where one tensor lies. shape is None where a raw file has no index; dtype is a name.

    said: the shape as an index with a layout gives it: the logical one, or the one that is stored
    (`as_said` tells them apart). room: the bytes from the offset to the file's end. coded: where
    and how long the base64 text is in which it lies; the offset is then that of its bytes.
    """

    file: str
    member: str  # of an archive, or of JSON; "" for bytes that lie plainly in the file
    offset: int
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int
    layout: str | None = None
    fortran: bool = False
    said: tuple[int, ...] | None = None
    room: int = 0
    big: bool = False  # the first byte of a number is its most significant
    coded: tuple[int, int] | None = None


class Trouble(NamedTuple):
    """What cannot be read, and why. name: of its only tensor; None where that is not known."""

    file: str
    name: str | None
    why: str


class Listing:
    """The tensors of a candidate by name, and what could not be read of it."""

    def __init__(self) -> None:
        self.dumps: dict[str, Dump] = {}
        self.troubles: list[Trouble] = []
        self._bad: set[str] = set()  # names of what is in trouble

    def add(self, name: str, dump: Dump) -> None:
        """One more tensor; two of a name are a trouble, for nobody can say which is meant."""
        first = self.dumps.get(name)
        if first is not None:
            self.refuse(dump.file, name, f"tensor {shown(name)} is in {first.file} and in "
                        f"{dump.file}. Leave one of them out")
        elif name not in self._bad:
            self.dumps[name] = dump

    def refuse(self, file: str | Path, name: str | None, why: str) -> None:
        """Keep what is wrong with a file, or with its tensor of that name."""
        self.troubles.append(Trouble(str(file), name, why))
        if name is not None:
            self._bad.add(name)
            self.dumps.pop(name, None)

    @contextmanager
    def noting(self, file: str | Path, name: str | None = None) -> Iterator[None]:
        """What is refused inside the block is a trouble with this file, and not the end."""
        try:
            yield
        except (ModelError, ResourceError, UsageError) as error:
            self.refuse(file, name, str(error))


def same_axes(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are the same but for axes of one."""
    return [n for n in a if n != 1] == [n for n in b if n != 1]


def shown(text: str) -> str:
    """A name of any origin, for a message."""
    return ascii(text)[:200]


def dtype_name(text: str) -> str:
    """The full name of a type ("bf16", "BF16", "torch.bfloat16" -> "bfloat16", "<f4" ->
    "float32"); UsageError lists those there are."""
    name = text.lower().rpartition(".")[2]
    name = SHORT.get(name, name)
    if text[:1] in "<|=" and text[1:] in {kind.lstrip("<") for kind in DTYPES.values()}:
        name = np.dtype(text).name
    if name not in DTYPES:
        raise UsageError(f"dtype {text[:40]!r} is not one of: {', '.join(DTYPES)}; give one")
    return name


def size_of(path: Path) -> int:
    """Bytes of an ordinary file; raises as open_file."""
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def open_archive(file: BinaryIO, path: str | Path) -> zipfile.ZipFile:
    """A zip for reading; ModelError when it is none."""
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(f"{path}: not a readable .npz archive: {error}") from None


def open_member(archive: zipfile.ZipFile, member: Any, where: str) -> Any:
    """A member (its name or ZipInfo) for reading; ModelError when it is damaged or encrypted."""
    try:
        return archive.open(member)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise damaged(f"{where} cannot be read: {str(error)[:200]}") from None


class Reader:
    """Reads dumps one after the other; the archive read last stays open until `close`."""

    def __init__(self):
        self._path, self._file, self._archive = None, None, None

    def read(self, dump: Dump) -> np.ndarray:
        """The tensor as it was written; bfloat16 and 8-bit floats as float32, which holds each.

        Raises ModelError for a file that has changed or ends early.
        """
        if dump.dtype not in DTYPES:
            raise ModelError(f"{dump.file}: numbers of the type {dump.dtype[:40]} are not read. "
                             "Save them as float32, which holds each of them")
        kind = np.dtype(DTYPES[dump.dtype])
        array = np.empty(dump.bytes // kind.itemsize, kind)
        where = f"{dump.file}: {ascii(dump.member)[:200]}"
        if dump.coded:
            with open_file(dump.file) as file:
                data = io.BufferedReader(Base64File(file, *dump.coded))
                data.read(dump.offset)
                _fill(data, array, where)
        elif dump.member:
            with open_member(self._open(dump.file), dump.member, where) as data:
                data.read(dump.offset)
                _fill(data, array, where)
        else:
            with open_file(dump.file) as file:
                file.seek(dump.offset)
                _fill(file, array, dump.file)
        if dump.big:
            array.byteswap(inplace=True)
        if dump.dtype in FLOAT8:
            array = float8.widen(array, FLOAT8[dump.dtype])
        elif dump.dtype == "bfloat16":
            array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
        if dump.shape is None:
            return array
        return array.reshape(dump.shape, order="F" if dump.fortran else "C")

    def _open(self, path: str) -> zipfile.ZipFile:
        if path != self._path:
            self.close()
            self._file = open_file(path)
            self._archive, self._path = open_archive(self._file, path), path
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
        raise damaged(f"{where}: damaged: {str(error)[:200]}") from None
    except OSError as error:
        raise ResourceError(f"{where}: reading failed: {error.strerror}. See whether the disk is "
                            "well") from None
    if rest:
        raise damaged(f"{where}: ended early: it changed while it was read, or is damaged")


def npy(path: Path) -> Dump:
    """The tensor of a .npy file; ModelError for one that is damaged or not plain numbers."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise damaged(f"{path}: not a readable .npy file: it is empty")
        return header(file, Dump(str(path), "", 0, (), "", size))


def npz(path: Path, listing: Listing) -> None:
    """The members of an archive, each by itself; what they claim to take is checked first.

    Raises ModelError for what is no archive, or one that would unpack to far more than it is.
    """
    with open_file(path) as file, open_archive(file, path) as archive:
        members = [member for member in archive.infolist() if _is_array(member.filename)]
        unpacked = sum(member.file_size for member in members)
        limit = max(UNPACKED, RATIO * os.fstat(file.fileno()).st_size)
        if unpacked > limit:
            raise ModelError(f"{path}: would unpack to {unpacked:,} bytes; at most {limit:,} are "
                             "read from an archive of this size. Save it without compression")
        for member in members:
            name = member.filename.removesuffix(".npy")
            where = f"{path}: {shown(member.filename)}"
            with listing.noting(path, name), open_member(archive, member, where) as data:
                listing.add(name, header(data, Dump(str(path), member.filename, 0, (), "",
                                                   member.file_size)))


def _is_array(member: str) -> bool:
    """macOS packs a ._x.npy of its own beside x.npy."""
    return member.endswith(".npy") and not member.rpartition("/")[2].startswith("._")


def header(file: Any, dump: Dump) -> Dump:
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
        raise damaged(f"{where}: not a readable .npy file: "
                      f"{' '.join(str(error).split())[:200]}") from None
    if dtype.hasobject:
        raise ModelError(f"{where}: holds pickled Python objects, and loading those can run any "
                         "code. Save plain numbers")
    name = _name_of(dtype)
    if name is None:
        raise ModelError(f"{where}: holds {ascii(str(dtype))[1:-1][:80]}; save plain "
                         "numbers: float16, bfloat16, float32, float64 or integers")
    offset = file.tell()
    rest = dump.bytes - offset
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != rest or (
            not is_possible(shape, dtype.itemsize)):
        raise ModelError(f"{where}: the header claims {ascii(shape)[:80]} of {name}, which are not "
                         f"the {rest:,} bytes that follow. Fetch or write it again")
    return dump._replace(offset=offset, shape=tuple(shape), dtype=name, bytes=rest,
                         fortran=fortran, big=dtype.str[0] == ">")


def _name_of(dtype: np.dtype) -> str | None:
    """NumPy keeps the bfloat16 of ml_dtypes as two bytes without a meaning."""
    if dtype.kind == "V":
        return "bfloat16" if dtype.itemsize == 2 and dtype.names is None else None
    return dtype.name if dtype.name in DTYPES else None
