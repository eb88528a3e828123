"""Sums and maxima of the 32 lanes of a warp, and of all threads of a block, in a fixed order.

A butterfly adds the same pairs in every lane, so all lanes have the same bits. Where one number is
NaN a maximum may leave it out; a sum of what is made of all numbers does not.
"""

from typing import Any

FULL = 0xFFFFFFFF
DISTANCES = (16, 8, 4, 2, 1)


def warp_sum(gpu: Any) -> Any:
    """total(x): the sum of the lanes' numbers, in all lanes."""
    return _of_warp(gpu, gpu.device(_sum))


def warp_max(gpu: Any) -> Any:
    """largest(x): of the lanes' numbers, in all lanes."""
    return _of_warp(gpu, gpu.device(_larger))


def block_sum(gpu: Any, kind: Any, threads: int) -> Any:
    """total(x, t): the sum of all threads' numbers, in all of them; t is the thread's own index."""
    return _of_block(gpu, kind, threads, gpu.device(_sum))


def block_max(gpu: Any, kind: Any, threads: int) -> Any:
    """largest(x, t): of all threads' numbers, in all of them."""
    return _of_block(gpu, kind, threads, gpu.device(_larger))


def _sum(x, other):
    return x + other


def _larger(x, other):
    return other if other > x else x


def _of_warp(gpu, join):
    shuffle = gpu.cuda.shfl_xor_sync

    def joined(x):
        for distance in DISTANCES:
            x = join(x, shuffle(FULL, x, distance))
        return x

    return gpu.device(joined)


def _of_block(gpu, kind, threads, join):
    cuda, uint32, of_warp, warps = gpu.cuda, gpu.uint32, _of_warp(gpu, join), threads // 32

    def joined(x, t):
        parts = cuda.shared.array(warps, kind)
        x = of_warp(x)
        cuda.syncthreads()  # the parts of another call may still be read
        if t & uint32(31) == uint32(0):
            parts[t >> uint32(5)] = x
        cuda.syncthreads()
        x = parts[0]
        for w in range(1, warps):
            x = join(x, parts[w])
        return x

    return gpu.device(joined)
