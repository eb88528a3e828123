"""Where tensors lie in a file, as its list says: index.json of raw files, safetensors' header.

Each entry is judged by itself: one that cannot be true does not take the others with it.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.dumps import (
    DTYPES,
    Dump,
    Listing,
    dtype_name,
    same_axes,
    shown,
    size_of,
)
from refsd.golden.comparing.layouts import layout
from refsd.weights import files
from refsd.weights.files import as_object, open_file, read_bytes
from refsd.weights.header import BYTES, MAX_HEADER, is_possible, read_header

MAX_INDEX = 64 << 20  # bytes of an index.json; 10,000 tensors take about 2 MB
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
               "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
               "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
               "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


class Twice:
    """In place of the value of a key that an object has twice: nobody can say which is meant."""


def parse_foreign(data: bytes, where: str | Path) -> dict[str, Any]:
    """Another program's JSON object; a key that appears twice has a Twice for its value."""
    return as_object(files.parse_foreign(data, where, pairs=unique_pairs), where)


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's members; a key that appears twice has a Twice for its value."""
    members: dict[str, Any] = {}
    for key, value in pairs:
        members[key] = Twice() if key in members else value
    return members


def indexed(path: Path, listing: Listing, prefix: str = "") -> set[str]:
    """The tensors of raw files beside an index.json, into `listing`; gives the files it speaks of.

    {"tensors": {NAME: {"file": .., "offset": 0, "shape": [..], "dtype": "float32"}}}, each with
    its "layout" where that is not the logical one; other keys are the writer's own. Raises
    ModelError for a file that is no such list.
    """
    tensors = parse_foreign(read_bytes(path, limit=MAX_INDEX), path).get("tensors")
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: wants an object \"tensors\" of NAME: {{file, shape, dtype}}")
    described = set()
    for name, entry in tensors.items():
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            described.add(os.path.normpath(path.parent / entry["file"].replace("\\", "/")))
        with listing.noting(path, prefix + name):
            listing.add(prefix + name, _raw(path, name, entry))
    return described


def _raw(index: Path, name: str, entry: Any) -> Dump:
    where = f"{index}: tensor {shown(name)}"
    if isinstance(entry, Twice):
        raise ModelError(f"{where} is there twice. Leave one out")
    entry = entry if isinstance(entry, dict) else {}
    file, shape, dtype = (entry.get(key) for key in ("file", "shape", "dtype"))
    offset, kept = entry.get("offset") or 0, entry.get("layout")
    if not (isinstance(file, str) and isinstance(dtype, str) and _sizes(shape) and _sizes([offset])
            and (kept is None or isinstance(kept, str))):
        raise ModelError(f"{where} needs file, shape, dtype ({', '.join(DTYPES)}) and, where they "
                         "are not 0 and NCHW, offset and layout")
    dtype, path = _dtype(where, dtype), Path(file.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in file:
        raise ModelError(f"{where} lies outside the index's folder: {shown(file)}. Copy it "
                         "there")
    room, item = _size(where, index.parent / path) - offset, np.dtype(DTYPES[dtype]).itemsize
    said = tuple(shape)
    logical = said if kept is None else layout(kept).physical(said)
    # The bytes may hold the shape only if it is the one that is stored, with its padding.
    fits = next((one for one in (logical, said) if math.prod(one) * item <= room), None)
    if fits is None:
        raise ModelError(f"{where} takes bytes {offset:,} to {offset + math.prod(logical) * item:,}"
                         f", {file} has {room + offset:,}. Write the file whole, or mend the index")
    if not is_possible(fits, item):
        raise ModelError(f"{where} has the shape {ascii(fits)[:80]}, which no array can have; "
                         "write the right one")
    return Dump(str(index.parent / path), "", offset, fits, dtype, math.prod(fits) * item, kept,
                said=None if kept is None else said, room=room)


def _size(where: str, path: Path) -> int:
    try:
        return size_of(path)
    except ModelError:
        raise ModelError(f"{where} lies in {path}, which is no file. Write it, or leave it "
                         "out") from None


def _dtype(where: str, text: str) -> str:
    try:
        return dtype_name(text)
    except UsageError as error:
        raise ModelError(f"{where}: {error}") from None


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def as_said(dump: Dump, shape: tuple[int, ...]) -> Dump:
    """The dump of an index with a layout, for a golden tensor of `shape`.

    The index is to give the logical shape; where it gives the one that is stored instead, which
    the golden shape and the bytes allow in one way only, that is taken.
    """
    if dump.said is None or same_axes(dump.said, shape):
        return dump
    stored = layout(dump.layout).physical(tuple(shape))
    size = math.prod(dump.said) * np.dtype(DTYPES[dump.dtype]).itemsize
    if not same_axes(dump.said, stored) or size > dump.room:
        return dump
    return dump._replace(shape=dump.said, bytes=size)


def safetensors(path: Path, listing: Listing) -> None:
    """The tensors of a safetensors file, those whose entries are right also beside wrong ones.

    Raises ModelError for a file without a header that can be read.
    """
    try:
        header = read_header(path)
    except ModelError as error:
        _one_by_one(path, listing, error)
        return
    for name, info in header.tensors.items():
        listing.add(name, Dump(str(path), "", header.data + info.start, info.shape, SAFETENSORS.get(
            info.dtype, info.dtype), info.stop - info.start))


def _one_by_one(path: Path, listing: Listing, error: ModelError) -> None:
    """The entries of a header that is wrong as a whole; the first reason where there are none."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8) or b"", "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise error
        raw = file.read(length) or b""
    try:
        entries = parse_foreign(raw, path)
    except ModelError:
        raise error from None
    for name, entry in entries.items():
        if name != "__metadata__":
            with listing.noting(path, name):
                listing.add(name, _entry(path, name, entry, 8 + length, size))


def _entry(path: Path, name: str, entry: Any, data: int, size: int) -> Dump:
    known = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (known.get(key) for key in ("dtype", "shape", "data_offsets"))
    good = isinstance(dtype, str) and _sizes(shape) and _sizes(offsets) and len(offsets) == 2
    start, stop = offsets if good else (0, 0)
    if not good or start > stop or not is_possible(shape, BYTES.get(dtype, 1)) or (
            dtype in BYTES and stop - start != math.prod(shape) * BYTES[dtype]):
        why = "is there twice" if isinstance(entry, Twice) else f"cannot be {ascii(known)[:200]}"
        raise ModelError(f"{path}: tensor {shown(name)} {why}. Have the file written anew")
    if data + stop > size:
        raise ModelError(f"{path}: tensor {shown(name)} takes bytes {data + start:,} to "
                         f"{data + stop:,}, the file has {size:,}. Is it complete? Fetch it again")
    return Dump(str(path), "", data + start, tuple(shape), SAFETENSORS.get(dtype, dtype),
                stop - start)
