"""The shards of a golden pack: safetensors files whose bytes follow from the tensors alone.

The safetensors library writes the same format, but holds a copy of all tensors while it does, and
how it orders and pads them may change with its version. A pack's bytes may not.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refsd.atomic import write_file
from refsd.golden.packs.rules import DTYPES

HERE = {**DTYPES, "bfloat16": "BF16"}  # which exports have, and packs have not
CHUNK = 1 << 20  # values that are summed at once
COLUMNS = 256
DRAFT = re.compile(r"\.(tensors-\d+\.safetensors|index\.tsv|manifest\.json|SHA256SUMS|"
                   r"unfinished\.jsonl)\.[0-9a-f]{8}\.tmp")


def discard_drafts(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote a file of a pack."""
    for path in folder.iterdir():
        if DRAFT.fullmatch(path.name):
            path.unlink()


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write a safetensors file; gives its sha256 and bytes.

    The widest dtypes come first, so that each number lies at a multiple of its size, and tensors of
    one width in the given order. The header's keys are sorted, and spaces fill it up to a multiple
    of eight bytes.
    """
    header, offset = {}, 0
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    for name, array in ordered:
        header[name] = {"dtype": HERE[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return write_file(path, [len(text).to_bytes(8, "little"), text,
                             *(raw(array) for _, array in ordered)])


def raw(array: np.ndarray) -> memoryview:
    """The bytes of a tensor, little-endian, in C order; a copy only where they are not so."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">" or not np.little_endian:
        array = array.astype(array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8))


def sha256(array: np.ndarray) -> str:
    """The SHA-256 of a tensor's bytes, little-endian, in C order."""
    return hashlib.sha256(raw(array)).hexdigest()


def sha256_of_file(file: BinaryIO) -> str:
    """The SHA-256 of the rest of an open file, in hex."""
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def statistics(array: np.ndarray) -> dict[str, Any]:
    """min, max, mean and l2 = sqrt(sum x^2) of the finite values, and how many nan and inf.

    None where there is no finite number, or a sum is beyond float64. The sums are made in float64
    in an order that does not depend on the processor: number i is added to column i mod 256, and
    the columns exactly.
    """
    flat = array.reshape(-1)
    total, squares, count, nan, inf = [], [], 0, 0, 0
    low, high = math.inf, -math.inf
    for start in range(0, flat.size, CHUNK):
        x = flat[start:start + CHUNK].astype(np.float64)
        finite = np.isfinite(x)
        count += (good := int(np.count_nonzero(finite)))
        if good < x.size:
            nan += (lost := int(np.count_nonzero(np.isnan(x))))
            inf += x.size - good - lost
            x[~finite] = 0
        if good:
            low = min(low, float(np.min(x, where=finite, initial=math.inf)))
            high = max(high, float(np.max(x, where=finite, initial=-math.inf)))
        with np.errstate(over="ignore", invalid="ignore"):
            total.append(_columns(x))
            squares.append(_columns(x * x))
    if not count:
        return {"min": None, "max": None, "mean": None, "l2": None, "nan": nan, "inf": inf}
    mean, square = _exactly(total), _exactly(squares)
    return {"min": low + 0.0, "max": high + 0.0,  # + 0.0: which zero is the smaller is chance
            "mean": None if mean is None else mean / count,
            "l2": None if square is None else math.sqrt(square), "nan": nan, "inf": inf}


def _exactly(columns: list[np.ndarray]) -> float | None:
    """The sum, or None where it is beyond float64."""
    try:
        total = math.fsum(np.concatenate(columns))
    except (OverflowError, ValueError):  # on the way, or infinities of both signs
        return None
    return total if math.isfinite(total) else None


def _columns(x: np.ndarray) -> np.ndarray:
    whole = x.size // COLUMNS * COLUMNS
    tail = np.zeros(COLUMNS)
    tail[:x.size - whole] = x[whole:]
    return np.add.reduce(x[:whole].reshape(-1, COLUMNS), axis=0) + tail
