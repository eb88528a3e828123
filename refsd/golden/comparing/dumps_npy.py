"""The headers of .npy files, plain and in .npz archives. No object in them is ever loaded."""

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError
from refsd.golden.comparing.dumps import DTYPES, Dump, Found, open_archive, open_member, shown
from refsd.weights.files import open_file
from refsd.weights.header import is_possible

# The members of an archive, unpacked, may take so many times its bytes, or UNPACKED if that is
# more. Deflate packs zeros 1000 to 1 and activations less than 2 to 1.
RATIO, UNPACKED = 20, 1 << 30


def npy(path: Path) -> Dump:
    """The tensor of a .npy file; ModelError for one that is damaged or not plain numbers."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ModelError(f"{path}: not a readable .npy file: it is empty")
        return _header(file, Dump(str(path), "", 0, (), "", size))


def npz(path: Path, found: Found) -> None:
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
            with found.noting(path, name), open_member(archive, member, where) as data:
                found.add(name, _header(data, Dump(str(path), member.filename, 0, (), "",
                                                   member.file_size)))


def _is_array(member: str) -> bool:
    """macOS packs a ._x.npy of its own beside x.npy."""
    return member.endswith(".npy") and not member.rpartition("/")[2].startswith("._")


def _header(file: Any, dump: Dump) -> Dump:
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
    return dump._replace(offset=offset, shape=tuple(shape), dtype=name, bytes=rest,
                         fortran=fortran, big=dtype.str[0] == ">")


def _name_of(dtype: np.dtype) -> str | None:
    """NumPy keeps the bfloat16 of ml_dtypes as two bytes without a meaning."""
    if dtype.kind == "V":
        return "bfloat16" if dtype.itemsize == 2 and dtype.names is None else None
    return dtype.name if dtype.name in DTYPES else None
