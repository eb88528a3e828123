"""Sums of a product in parts: where tiles are few, several blocks share one, each a part of K.

Each writes what it has summed, float32; then the parts are added up in order. How many there are
must not depend on the number of images or prompts, or a picture would not have the same bits alone
and in a batch: who calls `count` gives the tiles of two of them, a guided step's.
"""

from typing import Any

from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.numbers import reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory

THREADS = 256
BLOCKS = 128  # that fill a GPU, of 108 multiprocessors (A100) to 132 (H100)
LEAST = 16  # stages of a part: below, it costs more to add it up than it saves
MOST = 16


def count(tiles: int, stages: int) -> int:
    """Parts of K, so that as many blocks as there are multiprocessors have something to do."""
    return max(1, min(BLOCKS // tiles, stages // LEAST, MOST))


@factory(each=[(dtype,) for dtype in ("float32", "float16", "bfloat16")])
def add_parts(gpu: Any, dtype: str) -> Plan:
    """y[r, o] = (parts[0, r, o] + parts[1, r, o] + ...) + bias[o]: four numbers a thread."""
    cuda, uint32, float32, load4 = gpu.cuda, gpu.uint32, gpu.float32, gpu.load4
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)

    def add(parts, bias, y, has_bias, count, size, N):
        at = uint32(4) * (uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if at < size:
            s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
            for part in range(count):
                four = load4(parts, uint32(part * size + at))
                s0, s1, s2, s3 = s0 + four[0], s1 + four[1], s2 + four[2], s3 + four[3]
            if has_bias:
                o = uint32(at % N)
                s0, s1 = s0 + read(bias, o), s1 + read(bias, uint32(o + uint32(1)))
                s2 = s2 + read(bias, uint32(o + uint32(2)))
                s3 = s3 + read(bias, uint32(o + uint32(3)))
            write(y, at, s0)
            write(y, uint32(at + uint32(1)), s1)
            write(y, uint32(at + uint32(2)), s2)
            write(y, uint32(at + uint32(3)), s3)

    return Plan(add, (gpu.array("float32"), array, array, *(gpu.uint32,) * 4), THREADS)


def add_up(parts: DeviceArray, bias: DeviceArray | None, y: DeviceArray, columns: int) -> None:
    """y = the sum of parts (count, ...) + bias (columns), a multiple of 4; y without gaps."""
    launch(add_parts, (str(y.dtype),), (-(-y.size // (4 * THREADS)),), parts,
           y if bias is None else bias, y, bias is not None, parts.shape[0], y.size, columns)
