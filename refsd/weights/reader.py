"""Tensors out of a safetensors or GGUF file: read, never mapped, one after the other."""

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.half import HALVES, as_dtype, is_half
from refsd.weights import float8, gguf
from refsd.weights.files import open_file
from refsd.weights.header import BLOCKS, WEIGHTS, Header, TensorInfo, identity, read_header

# bfloat16 and 8-bit floats are read as bits and widened; all else is what NumPy calls it.
NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8",
}  # fmt: skip
WORKING = (None, "float32", "float64", *HALVES)
PIECE = 2**15  # numbers that are converted at once
INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # the bits of +inf; those of NaN are more

logger = logging.getLogger(__name__)


def read_safetensors(
    path: str | Path, *, dtype: str | None = None, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a safetensors or GGUF file by name, in the order in which they lie in it.

    dtype None keeps each tensor's own type, with bfloat16 and the 8-bit floats E4M3 and E5M2 as
    float32, which holds their every value, and GGUF's blocks, and float8 times a scale, as the
    float32 that they stand for. A name of a float type converts the floating-point ones: "float64"
    and "float32", exact but for float64 to float32; "bfloat16" and "float16", rounded as refsd.half
    does, unless they are stored so. names limits what is read. Memory: the result, and one tensor
    to convert.

    Raises ModelError for a damaged file, one that changes while it is read, a pickle, or another
    type; ResourceError for a failing disk. A file that shrinks meanwhile is an error like others.
    """
    return read_tensors(read_header(path), dtype=dtype, names=names)


def read_tensors(
    header: Header, *, dtype: str | None = None, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """`read_safetensors` of a file whose header was read before; it must not have changed."""
    return dict(iter_tensors(header, dtype=dtype, names=names))


def iter_tensors(
    header: Header, *, dtype: str | None = None, names: Collection[str] | None = None,
    empty: Callable = np.empty, later: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """The same, name and tensor, one after the other: who keeps none holds one at a time.

    They are read into what empty(shape, dtype) gives. later: those of float32 and halves stay what
    they are in the file, whoever asks for them converts them.
    """
    if dtype not in WORKING:
        raise UsageError(f"dtype: got {dtype!r}, expected one of {WORKING}")
    wanted = header.tensors if names is None else {n: header.tensors[n] for n in names}
    in_order = sorted(wanted.items(), key=lambda item: item[1].start)

    with open_file(header.path) as file:
        _check_unchanged(header, file)
        for name, info in in_order:
            yield name, _read(file, header, name, info, dtype, empty, later)
        _check_unchanged(header, file)


def _read(file: BinaryIO, header: Header, name: str, info: TensorInfo, dtype: str | None,
          empty: Callable = np.empty, later: bool = False):
    kind = info.dtype.removesuffix("_SCALED")
    if kind not in NUMPY and kind not in BLOCKS:
        raise ModelError(
            f"{header.path}: tensor {ascii(name)[:200]} is {kind}, which is not supported. "
            "Convert the file to float16; of the 8-bit floats F8_E4M3 and F8_E5M2 are read"
        )
    array = (empty(info.stop - info.start, np.uint8) if kind in BLOCKS
             else empty(info.shape, NUMPY[kind]))
    file.seek(header.data + info.start)
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while rest:
        try:
            count = file.readinto(rest)
        except OSError as error:
            raise ResourceError(f"{header.path}: reading failed: {error.strerror}. See whether "
                                "the disk is well") from None
        if not count:
            raise ModelError(f"{header.path}: ended inside tensor {ascii(name)[:200]}. {CHANGED}")
        rest = rest[count:]
    if sys.byteorder == "big":
        array = array.astype(array.dtype.newbyteorder("="))

    if kind == "BF16" and (later or dtype == "bfloat16") and info.scale is None:
        return array.view(HALVES["bfloat16"])
    if kind == "BF16":
        wide = empty(array.shape, np.uint32)
        array = np.left_shift(array, 16, out=wide, dtype=np.uint32).view(np.float32)
    elif kind in float8.TABLES:
        array = float8.widen(array, kind)
    elif kind in BLOCKS:
        array = gguf.decode(array, kind).reshape(info.shape)
    if info.scale is not None:
        with np.errstate(all="ignore"):  # what is not finite then is said as other weights' is
            array *= _read(file, header, name, info.scale, "float32").item()
    if later and info.dtype in ("F16", "F32"):
        return array
    if dtype in (None, array.dtype.name) or info.dtype not in WEIGHTS:
        return array
    return as_dtype(array, dtype, empty)


CHANGED = "It changed while it was read. Try again when nothing writes to it"


def _check_unchanged(header: Header, file: BinaryIO) -> None:
    """Neither this open file nor what its path now names differs from what the header was of."""
    try:
        named = identity(os.stat(header.path))
    except OSError:
        named = None
    if named != header.identity or identity(os.fstat(file.fileno())) != header.identity:
        raise ModelError(f"{header.path}: {CHANGED}")


def nonfinite(array: np.ndarray) -> bool:
    """Whether a floating-point array, or a leaf, holds a NaN or an infinity.

    Leaves are looked at as they are held, in pieces: no large array is made.
    """
    held, dtype = getattr(array, "values", array), array.dtype
    if held.dtype == np.int8 and held is not array:
        return array.scale is not None and nonfinite(array.scale)
    if not array.size or not is_half(held.dtype) and held.dtype.kind != "f":
        return False
    # of halves all numbers are those of wider types, but for bfloat16's and float16
    rounded = held.dtype != dtype and not (is_half(held.dtype) and dtype != np.float16)
    pieces = [held] if not held.flags.c_contiguous else (
        held.reshape(-1)[i:i + PIECE] for i in range(0, held.size, PIECE))
    return any(_nonfinite(as_dtype(piece, dtype) if rounded else piece) for piece in pieces)


def _nonfinite(piece):
    if is_half(piece.dtype):  # NumPy compares halves one by one, their bits many at once
        return bool((piece.view(np.uint16) & 0x7FFF).max() >= INFINITE[piece.dtype.name])
    with np.errstate(all="ignore"):
        return not (np.isfinite(piece.max()) and np.isfinite(piece.min()))


def warn_nonfinite(tensors: dict[str, np.ndarray], where: str) -> None:
    """Log the names of tensors with NaN or infinite weights, which is never what was trained."""
    bad = [ascii(name)[1:-1][:200] for name, array in tensors.items() if nonfinite(array)]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        logger.warning("%s: NaN or infinite weights in %s%s", where, ", ".join(bad[:5]), more)
