"""GGUF files, as stable-diffusion.cpp and ComfyUI-GGUF write them: the header, and the blocks.

A file is "GGUF", a version, two counts, metadata, the list of tensors (name, sizes, type, offset;
the last axis comes first), and the tensors, each aligned. Quantized tensors are blocks of 32 or 256
numbers with scales of their own. Source: docs/gguf.md of ggml-org/ggml.

The gguf package knows the types and decodes their blocks. Its reader is not for files of strangers:
it maps the file (the process is killed when another one truncates it), and makes an array for every
element of an array of metadata, a hundred bytes for one. So the header is parsed here; tests hold
it against the package's reader.
"""

import io
import math
import struct
from typing import Any, BinaryIO

import numpy as np

from refsd.errors import ModelError, ResourceError, damaged
from refsd.weights.header import (
    MAX_DIMENSIONS,
    MAX_HEADER,
    TensorInfo,
    check_layout,
    is_possible,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # of one layout; 3 may be big-endian, which nobody writes
MAX_COUNT = 1 << 16  # of tensors, and of keys
MAX_TEXTS = 1 << 20  # of an array: a vocabulary's
MAX_ALIGNMENT = 1 << 16
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd"))
UINT32, STRING, ARRAY = 4, 8, 9
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF: kernels are stored as rows of 256
PIECE = 4096  # blocks that are decoded at a time


class _Reader:
    """The parts of a header one after the other: never beyond its file, nor beyond MAX_HEADER."""

    def __init__(self, file: io.BufferedReader, size: int, path: str):
        self._file, self._size, self.path, self.at = file, size, path, 0

    def _claim(self, count: int) -> None:
        if self.at + count > self._size:
            raise ModelError(f"{self.path}: the GGUF header goes beyond the end of the file "
                             f"({self._size:,} bytes). Is the download incomplete? Fetch it again")
        if self.at + count > MAX_HEADER:
            raise ModelError(f"{self.path}: the GGUF header has more than {MAX_HEADER:,} bytes. "
                             "Convert the model to .safetensors")
        self.at += count

    def take(self, count: int) -> bytes:
        self._claim(count)
        found = self._file.read(count)
        if len(found) < count:
            raise damaged(f"{self.path}: ended inside its header. It changed while it was "
                          "read")
        return found

    def skip(self, count: int) -> None:
        self._claim(count)
        self._file.seek(self.at)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(f"{self.path}: the GGUF header's {data[:80]!r} is not "
                          "UTF-8") from None

    def count(self, what: str) -> int:
        found = self.number("Q")
        if found > MAX_COUNT:
            raise ModelError(f"{self.path}: the GGUF header claims {found:,} {what}, at most "
                             f"{MAX_COUNT:,} are allowed")
        return found


def parse(
    file: BinaryIO, size: int, path: str
) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """The tensors, the metadata as text (arrays are left out), and where the tensors begin.

    Raises ModelError for a damaged file, ResourceError without the gguf package.
    """
    package, buffered = _package(path), io.BufferedReader(file)
    try:
        buffered.seek(0)
        reader = _Reader(buffered, size, path)
        reader.skip(len(MAGIC))
        version = reader.number("I")
        if version not in VERSIONS:
            raise ModelError(f"{path}: GGUF of version {version}; 2 and 3 are read. Convert the "
                             "model again")
        count, keys = reader.count("tensors"), reader.count("keys")
        metadata = _metadata(reader, keys)
        alignment = metadata.pop("general.alignment", 32)
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            name, info = _tensor(reader, package, metadata)
            if name in tensors:
                raise damaged(f"{path}: two tensors are named {ascii(name)[:200]}")
            tensors[name] = info
    finally:
        buffered.detach()  # the file stays open

    data = reader.at + -reader.at % alignment
    check_layout(tensors, max(size - data, 0), path, alignment=alignment)
    said = {key: str(value) for key, value in metadata.items() if not isinstance(value, tuple)}
    return tensors, said, data


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key, kind = reader.string(), reader.number("I")
        if key in found:
            raise damaged(f"{reader.path}: the GGUF key {ascii(key)[:200]} appears twice")
        found[key] = _value(reader, key, kind)
        if key == "general.alignment" and (kind != UINT32 or found[key] not in (
                1 << power for power in range(MAX_ALIGNMENT.bit_length()))):
            raise ModelError(f"{reader.path}: general.alignment is {str(found[key])[:80]}, expected"
                             f" a power of two up to {MAX_ALIGNMENT}")
    return found


def _value(reader: _Reader, key: str, kind: int) -> Any:
    """The value of a key; of arrays only shapes of tensors, others are ()."""
    if kind in SCALARS:
        return reader.number(SCALARS[kind])
    if kind == STRING:
        return reader.string()
    of = reader.number("I") if kind == ARRAY else kind
    if of not in SCALARS and of != STRING or kind != ARRAY:
        raise damaged(f"{reader.path}: the GGUF key {ascii(key)[:200]} is of the unknown type "
                      f"{of}")
    count = reader.number("Q")
    if of == STRING:
        if count > MAX_TEXTS:
            raise ModelError(f"{reader.path}: the GGUF key {ascii(key)[:200]} claims {count:,} "
                             f"texts, at most {MAX_TEXTS:,} are allowed")
        for _ in range(count):
            reader.skip(reader.number("Q"))
    elif key.startswith(ORIGINAL_SHAPE) and count <= MAX_DIMENSIONS:
        return tuple(reader.number(SCALARS[of]) for _ in range(count))
    else:
        reader.skip(count * struct.calcsize(f"<{SCALARS[of]}"))
    return ()


def _tensor(reader: _Reader, package: Any, metadata: dict) -> tuple[str, TensorInfo]:
    name = reader.string()
    shown, rank = ascii(name)[:200], reader.number("I")
    if rank > MAX_DIMENSIONS:
        raise damaged(f"{reader.path}: tensor {shown} has {rank} dimensions")
    sizes = [reader.number("Q") for _ in range(rank)]
    code, start = reader.number("I"), reader.number("Q")
    try:
        kind = package.GGMLQuantizationType(code)
    except ValueError:
        raise damaged(f"{reader.path}: tensor {shown} is of the unknown type {code}") from None
    block, bytes_ = package.GGML_QUANT_SIZES[kind]
    shape, count = tuple(reversed(sizes)), math.prod(sizes)
    if not is_possible(shape, 8) or count % block or (sizes and sizes[0] % block):
        raise damaged(f"{reader.path}: tensor {shown} has the shape {str(shape)[:80]}, which no "
                      f"{kind.name} can have")
    original = metadata.get(ORIGINAL_SHAPE + name)
    if original is not None and (math.prod(original) != count or min(original, default=1) < 0):
        raise damaged(f"{reader.path}: tensor {shown} has the shape {str(shape)[:80]}, and "
                      f"{ORIGINAL_SHAPE} says {str(original)[:80]}")
    info = TensorInfo(kind.name, original or shape, start, start + count // block * bytes_)
    return name, info


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float32 of the bytes of blocks of a type, in one dimension; some at a time, to save memory.

    A block with a scale that is not finite gives what is not finite.
    """
    package = _package(dtype)
    kind = package.GGMLQuantizationType[dtype]
    block, bytes_ = package.GGML_QUANT_SIZES[kind]
    found = np.empty(raw.size // bytes_ * block, np.float32)
    with np.errstate(all="ignore"):
        for i in range(0, raw.size // bytes_, PIECE):
            piece = raw[i * bytes_:(i + PIECE) * bytes_]
            found[i * block:(i + PIECE) * block] = package.dequantize(piece[None], kind)[0]
    return found


def _package(what: str) -> Any:
    try:
        import gguf
    except ImportError:
        raise ResourceError(f'{what}: GGUF needs the package gguf: pip install "refsd[gguf]"'
                            ) from None
    return gguf
