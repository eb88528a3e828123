"""Products of a warp on tensor cores, and the loads that feed them. Their meaning: meaning.py."""

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from refsd.numba_ops.cuda.ptx import F32, I32, _asm, _shared_address


def _mma(kind):
    @intrinsic
    def mma(typingctx, a, b, c):
        """c + A B of one warp: A 16 x 16 (4 words), B 16 x 8 (2 words), C 16 x 8 (4 float32)."""
        def emit(context, builder, signature, arguments):
            d = _asm(builder, ir.LiteralStructType([F32] * 4),
                     f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{$0,$1,$2,$3}}, "
                     "{$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
                     "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", _parts(builder, arguments))
            return _tuple(context, builder, signature, d)
        return _MMA, emit
    return mma


_MMA = types.UniTuple(types.float32, 4)(
    types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2),
    types.UniTuple(types.float32, 4))


def _parts(builder, fragments):
    return [builder.extract_value(f, i) for f, n in zip(fragments, (4, 2, 4)) for i in range(n)]


def _tuple(context, builder, signature, struct):
    count = signature.return_type.count
    return context.make_tuple(builder, signature.return_type,
                              [builder.extract_value(struct, i) for i in range(count)])


mma_f16, mma_bf16 = _mma("f16"), _mma("bf16")


@intrinsic
def mma_f16_turing(typingctx, a, b, c):
    """The same of two instructions, for each half of the 16 products: Turing has m16n8k8 only."""
    def emit(context, builder, signature, arguments):
        parts = _parts(builder, arguments)
        sums = parts[6:]
        for half in range(2):
            d = _asm(builder, ir.LiteralStructType([F32] * 4),
                     "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5}, "
                     "{$6}, {$7,$8,$9,$10};", "=f,=f,=f,=f,r,r,r,f,f,f,f",
                     [parts[2 * half], parts[2 * half + 1], parts[4 + half], *sums])
            sums = [builder.extract_value(d, i) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, sums)
    return _MMA, emit


def _ldmatrix(transposed):
    @intrinsic
    def ldmatrix(typingctx, array, index):
        """Four 8 x 8 matrices of halves; thread i says where row i % 8 of matrix i / 8 is."""
        def emit(context, builder, signature, arguments):
            place = _shared_address(context, builder, array, *arguments)
            r = _asm(builder, ir.LiteralStructType([I32] * 4),
                     f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{$0,$1,$2,$3}}, [$4];",
                     "=r,=r,=r,=r,r,~{memory}", [place], True)
            return _tuple(context, builder, signature, r)
        return types.UniTuple(types.uint32, 4)(array, types.uint32), emit
    return ldmatrix


ldmatrix, ldmatrix_t = _ldmatrix(""), _ldmatrix(".trans")
