"""Hopper's products of 128 threads, a warpgroup, for 9.0a. Their meaning: meaning_hopper.py."""

import functools
from typing import Any

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from refsd.numba_ops.cuda.ptx import F32, I32, I64, _asm, _plain, _shared_address

# A tile of halves in shared memory: rows of 128 bytes, swizzled, 8 of them in 1024 bytes.
_DESCRIPTOR = (1 << 62) | ((1024 >> 4) << 32) | (1 << 16)

wgmma_fence = _plain("wgmma.fence.sync.aligned;")
wgmma_commit = _plain("wgmma.commit_group.sync.aligned;")
wgmma_wait0, wgmma_wait1 = (_plain(f"wgmma.wait_group.sync.aligned {n};") for n in range(2))
fence_async = _plain("fence.proxy.async.shared::cta;")


@functools.cache
def wgmma(columns: int, kind: str) -> Any:
    """product(sums, a, a_index, b, b_index): sums += A (64, 16) B (columns, 16)^T.

    sums: columns / 2 float32 of each thread. A, B: in rows of 64 halves, pieces of 16 bytes of
    row r turned by r % 8. kind: f16 or bf16.
    """
    count = columns // 2

    @intrinsic
    def product(typingctx, sums, a, a_index, b, b_index):
        def emit(context, builder, signature, arguments):
            descriptors = []
            for array, value, at in ((a, *arguments[1:3]), (b, *arguments[3:5])):
                address = _shared_address(context, builder, array, value, at)
                low = builder.lshr(builder.and_(address, ir.Constant(I32, 0x3FFFF)),
                                   ir.Constant(I32, 4))
                descriptors.append(builder.or_(builder.zext(low, I64),
                                               ir.Constant(I64, _DESCRIPTOR)))
            data = context.make_array(sums)(context, builder, arguments[0]).data
            places = [builder.gep(data, [ir.Constant(I64, i)]) for i in range(count)]
            numbers = ",".join(f"${i}" for i in range(count))
            after = _asm(builder, ir.LiteralStructType([F32] * count),
                         f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
                         f"{{{numbers}}}, ${2 * count}, ${2 * count + 1}, 1, 1, 1, 0, 0;",
                         ",".join(["=f"] * count + [str(i) for i in range(count)] + ["l", "l"]),
                         [builder.load(place) for place in places] + descriptors, True)
            for i, place in enumerate(places):
                builder.store(builder.extract_value(after, i), place)
            return context.get_dummy_value()
        return types.void(sums, a, types.uint32, b, types.uint32), emit
    return product
