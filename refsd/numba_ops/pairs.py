"""Pairs of bfloat16 in the lanes of an int32 vector, as AVX512-BF16 multiplies them."""

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsd.numba_ops.levels import BFloat, shuffle
from refsd.numba_ops.vector import Vector

LANES = 16
_PAIRS = ir.VectorType(BFloat(), 2 * LANES)
_ONES = ir.Constant(ir.VectorType(ir.IntType(16), 2 * LANES), [0x3F80] * 2 * LANES)


@intrinsic
def pair_up(typing, x, y):
    """(x, y) in each lane, rounded to nearest, ties to even; what is below the normal ones is 0."""
    alternate = np.arange(2 * LANES).reshape(2, LANES).T

    def emit(context, builder, signature, arguments):
        found = []
        for first, second in zip(*(_registers(builder, a) for a in arguments)):
            both = _call(builder, "cvtne2ps2bf16", _PAIRS, second, first)
            both = builder.bitcast(both, _ONES.type)
            both = shuffle(builder, (both, both), alternate)
            found.append(builder.bitcast(both, ir.VectorType(ir.IntType(32), LANES)))
        return _joined(builder, found)

    return Vector(types.int32, x.count)(x, y), emit


@intrinsic
def add_pairs(typing, total, pairs):
    """total + both of each pair"""
    def emit(context, builder, signature, arguments):
        ones = builder.bitcast(_ONES, _PAIRS)
        return _joined(builder, [
            _call(builder, "dpbf16ps", part.type, part, builder.bitcast(pair, _PAIRS), ones)
            for part, pair in zip(*(_registers(builder, a) for a in arguments))])

    return total(total, pairs), emit


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind,
                                              f"llvm.x86.avx512bf16.{name}.512")
    return builder.call(function, arguments)


def _registers(builder, x):
    """A vector of one or two registers, one by one."""
    return [shuffle(builder, (x, x), np.arange(i, i + LANES))
            for i in range(0, x.type.count, LANES)]


def _joined(builder, parts):
    return parts[0] if len(parts) == 1 else shuffle(builder, parts, np.arange(2 * LANES))
