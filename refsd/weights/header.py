"""The header of a safetensors file: which tensors it holds, and where. GGUF's is in gguf.py.

A file is 8 bytes with the length of the header (little-endian), the header, and the tensors. The
header is a JSON object of name: {dtype, shape, data_offsets}, besides `__metadata__` of strings.
Source: the format page of huggingface/safetensors.

Why not the safetensors library, which refsd writes with: its lazy reader maps the file into
memory, and the process is killed by SIGBUS if another one truncates the file; its eager reader
holds the whole file and a copy of every tensor (twice the memory, and eight times the time for
1 GB); and neither sees duplicate keys. So the header is parsed here, with the library's own rules
of layout, and the tests hold its verdict against the library's on damaged files.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from refsd.errors import ModelError, damaged
from refsd.weights.files import open_file, parse_object

MAX_HEADER = 100_000_000  # the library's limit
MAX_DIMENSIONS = 32  # NumPy itself stops at 64
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
# GGUF's types of blocks, which its package decodes; its other types have safetensors' names.
BLOCKS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S",
    "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip
SCALED = ("F8_E4M3_SCALED", "F8_E5M2_SCALED")  # ours: float8 times a scale (scaled.py)
WEIGHTS = (*FLOATS, *BLOCKS, *SCALED)  # the types that weights may be of
MAX_BYTES = (1 << 63) - 1  # of an array, for NumPy, which leaves out the sizes that are 0
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
PICKLE_REFUSED = (
    "pickle checkpoints are refused because loading one can run any code. "
    "Convert it to .safetensors first (docs/checkpoints.md says how)"
)


class TensorInfo(NamedTuple):
    """One tensor: dtype as the format names it, shape, and its bytes' place after the header.

    scale: where the one number lies that the others are to be multiplied by.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    scale: "TensorInfo | None" = None

    @property
    def count(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors of one file, where their bytes begin, and which file it was.

    applied: the names of scales, and of what belongs to them, that are part of other tensors here.
    """

    path: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data: int
    identity: tuple
    applied: frozenset[str] = frozenset()


def read_header(path: str | Path) -> Header:
    """The checked header of a safetensors or GGUF file. No tensor is read.

    Raises ModelError for what is neither, is damaged or cut short, or is a pickle; a file with a
    pickle's name is not opened.
    """
    if str(path).lower().endswith(PICKLES):
        raise ModelError(f"{path}: {PICKLE_REFUSED}")
    with open_file(path) as file:
        return _parse(file, path)


def _parse(file: BinaryIO, path: str | Path) -> Header:
    status = os.fstat(file.fileno())
    first = file.read(16)
    if first.startswith(b"GGUF"):
        from refsd.weights import gguf

        return Header(str(path), *gguf.parse(file, status.st_size, str(path)), identity(status))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 10 or length > min(MAX_HEADER, status.st_size - 8):
        raise ModelError(f"{path}: {_what_it_is(first, length, status.st_size)}")

    raw = bytearray(first[8 : 8 + length])
    while len(raw) < length and (part := file.read(length - len(raw))):
        raw += part
    where = f"{path} (safetensors header)"
    found = parse_object(raw, where)

    metadata = _strings(found.pop("__metadata__", None), where)
    tensors = {name: _tensor(name, entry, where) for name, entry in found.items()}
    check_layout(tensors, status.st_size - 8 - length, path)
    return _applying_scales(file, Header(str(path), tensors, metadata, 8 + length,
                                         identity(status)))


def _applying_scales(file: BinaryIO, header: Header) -> Header:
    from refsd.weights.scaled import with_scales

    def read(info: TensorInfo) -> bytes:
        file.seek(header.data + info.start)
        return file.read(info.stop - info.start)

    tensors = with_scales(header.tensors, header.metadata, read)
    return replace(header, tensors=tensors, applied=frozenset(header.tensors.keys() - tensors))


def identity(status: os.stat_result) -> tuple:
    """What changes when a file is replaced, cut or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _what_it_is(first: bytes, length: int, size: int) -> str:
    """Why these are not the first bytes of a whole safetensors file."""
    if first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return PICKLE_REFUSED
    if first.startswith(b"version https://"):
        return "a Git LFS pointer, not the file itself. Run git lfs pull"
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not a model. Download the file itself"
    if len(first) < 10 or first[8:9] not in (b"{", b" "):
        return f"not a safetensors file ({size:,} bytes). Give one"
    if length > MAX_HEADER:
        return f"the header claims {length:,} bytes, at most {MAX_HEADER:,} are allowed"
    return (
        f"the header claims {length:,} bytes, the file has {size:,}. "
        "Is the download incomplete? Fetch it again"
    )


def _strings(found: object, where: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(type(value) is str for value in found.values()):
        raise damaged(f"{where}: __metadata__ is not an object of strings")
    return found


def _tensor(name: str, entry: object, where: str) -> TensorInfo:
    """One checked entry of the header."""
    shown = ascii(name)[:200]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where}: tensor {shown} needs exactly dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in BYTES:
        raise damaged(f"{where}: tensor {shown} has the unknown dtype {ascii(dtype)[:40]}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged(f"{where}: tensor {shown} has the shape {ascii(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise damaged(f"{where}: tensor {shown} has the offsets {ascii(offsets)[:80]}")

    start, stop = offsets
    if stop - start != math.prod(shape) * BYTES[dtype]:
        raise damaged(
            f"{where}: tensor {shown} is {dtype} {ascii(shape)[:80]} "
            f"and cannot lie in bytes {str(start)[:24]} to {str(stop)[:24]}"
        )
    if not is_possible(shape, BYTES[dtype]):
        raise damaged(f"{where}: tensor {shown} has the shape {ascii(shape)[:80]}, which no "
                      "array can have")
    return TensorInfo(dtype, tuple(shape), start, stop)


def is_possible(shape: Iterable[int], itemsize: int) -> bool:
    """Whether an array can have this shape: an empty one too has strides that must fit."""
    return math.prod(n or 1 for n in shape) * itemsize <= MAX_BYTES


def _sizes(found: object) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 64 for n in found)


def check_layout(
    tensors: dict[str, TensorInfo], size: int, path: str | Path, *, alignment: int = 1
) -> None:
    """The tensors follow each other, aligned, without gap or overlap, and fill `size` bytes."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:4]):
        begin = end + -end % alignment
        if tensor.start != begin:
            kind = "overlaps another" if tensor.start < begin else "leaves a gap before it"
            raise damaged(f"{path}: tensor {ascii(name)[:200]} {kind}")
        end = tensor.stop
    if end > size:
        raise ModelError(
            f"{path}: the tensors need {end:,} bytes, the file has {size:,} of them. "
            "Is the download incomplete? Fetch it again"
        )
    if end + -end % alignment < size:
        raise damaged(f"{path}: {size - end:,} bytes after the last tensor")
