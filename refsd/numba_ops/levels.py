"""The levels of the micro-kernel: how it multiplies two matrices of one dtype on this processor.

    widen   a fused multiply-add for each product; two-byte floats are widened to float32 before
    dot     bfloat16 with AVX512-BF16: one instruction adds two exact products to each sum
    vnni    int8 with AVX512-VNNI: one instruction adds four, exact in int32 (cpu/linear_int8.py)

A level says how a step of the sum over k is made: `depth`, the rows of the panel that it takes,
and LLVM code for its left values, its right vectors, and what adds their products to a sum.
REFSD_BFLOAT16 forces a level; both are inside the bounds, and each has bits of its own. REFSD_INT8
forces one of int8, of which all have the same bits.
"""

import os

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

from refsd.errors import UsageError
from refsd.numba_ops.vector import WIDTH, Elements, Vector, emit_splat, half


def _choose(variable="REFSD_BFLOAT16", fast="dot", slow="widen", needs="AVX512-BF16"):
    """The level of products of a type, and why."""
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    missing = ""
    if "+" + needs.lower().replace("-", "") not in features.split(","):
        missing = f"no {needs} here"
    elif WIDTH != 64:
        missing = f"vectors are of {WIDTH} bytes, {needs} wants 64"
    forced = os.environ.get(variable)
    if not forced:
        return (slow, missing) if missing else (fast, needs)
    if forced not in (fast, slow):
        raise UsageError(f"{variable} is {forced!r}; give {fast} or {slow}, or unset it")
    if forced == fast and missing:
        raise UsageError(f"{variable} is {fast!r}: {missing}; give {slow}, or unset it")
    return forced, f"{variable} says so"


BFLOAT16, BFLOAT16_WHY = _choose()
INT8, INT8_WHY = _choose("REFSD_INT8", "vnni", "float32", "AVX512-VNNI")


def level_of(left, right):
    """The level for matrices of these Numba types of elements."""
    if left == types.int32:
        return Pairs()
    if left == types.uint32:
        return Quads()
    dot = BFLOAT16 == "dot" and half(left) == half(right) == "bfloat16"
    return Dot() if dot else Widen(left, right)


class Widen:
    """sum = fma(x, w, sum), on any processor and of any dtype."""

    depth = 1

    def __init__(self, left, right):
        self.vector = Vector(left)
        self._left, self._right = (Elements(dtype, self.vector.count) for dtype in (left, right))

    def left(self, builder, address):
        """The value there, in every lane."""
        return self._left.load_splat(builder, address)

    def right(self, builder, address, step, count):
        """`count` vectors of a row of the panel."""
        return [self._right.load(builder, self._right.beside(builder, address, j))
                for j in range(count)]

    def add(self, builder, x, w, total):
        """x w + total"""
        kind = ir.FunctionType(self.vector.llvm, [self.vector.llvm] * 3)
        name = f"llvm.fma.{self.vector.suffix}"
        fma = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(fma, [x, w, total])

    def sums(self, builder, sums):
        """A row of sums as they lie in memory."""
        return sums


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


class Dot:
    """sum = fma(x_k, w_k, fma(x_k+1, w_k+1, sum)): vdpbf16ps, which takes subnormals for 0.

    It wants w_k and w_k+1 side by side. Two rows of 32 outputs are interleaved in registers, within
    each 128 bits, which costs nothing beside 28 such instructions: then lanes of a first sum are
    outputs 0-3, 8-11, 16-19, 24-27, those of a second one the others, until `sums` sorts them.
    """

    depth = 2
    vector = Vector(types.float32)

    def left(self, builder, address, last=False):
        """Two adjacent values, in every lane; the last alone with a 0."""
        number = ir.IntType(16 if last else 32)
        one = builder.load(builder.bitcast(address, number.as_pointer()))
        one.align = 2
        if last:
            one = builder.zext(one, ir.IntType(32))
        return emit_splat(builder, one, 16)

    def right(self, builder, address, step, count, last=False):
        """A pair of vectors of two rows of the panel, `step` apart; the last row alone with 0s."""
        row = ir.VectorType(ir.IntType(16), 32)
        rows = []
        for at in (address, builder.gep(address, [step]))[:2 - last]:
            rows.append(builder.load(builder.bitcast(at, row.as_pointer())))
            rows[-1].align = 2
        rows += [ir.Constant(row, None)] * last
        lanes = np.arange(64).reshape(2, 4, 2, 4)  # row, 128 bits, half of them, value
        return [shuffle(builder, rows, order) for order in lanes.transpose(2, 1, 3, 0)]

    def add(self, builder, x, w, total):
        """The products of both pairs + total"""
        pairs = ir.VectorType(BFloat(), 32)
        kind = ir.FunctionType(self.vector.llvm, [self.vector.llvm, pairs, pairs])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        dot = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(dot, [total, builder.bitcast(x, pairs), builder.bitcast(w, pairs)])

    def sums(self, builder, sums):
        """A row of sums as they lie in memory."""
        lanes = np.arange(32).reshape(2, 4, 4)  # sum, 128 bits, value
        return [shuffle(builder, sums, order) for order in lanes.swapaxes(0, 1).reshape(2, 16)]


class Pairs(Dot):
    """The same of matrices packed in pairs, each an int32 (pairs.py): nothing to be interleaved."""

    depth = 1
    _memory = Elements(types.int32, Dot.vector.count)

    def left(self, builder, address):
        """The pair there, in every lane."""
        return self._memory.load_splat(builder, address)

    def right(self, builder, address, step, count):
        """`count` vectors of a row of the panel."""
        return [self._memory.load(builder, self._memory.beside(builder, address, j))
                for j in range(count)]

    def sums(self, builder, sums):
        """A row of sums as they lie in memory."""
        return sums


class Quads(Pairs):
    """Four int8 by four in a lane, summed in int32: vpdpbusd, exact.

    It takes one side as unsigned: the panel's, whose bytes are its values + 128 (linear_int8.py).
    """

    vector = Vector(types.int32)

    def add(self, builder, x, w, total):
        """The four products + total"""
        kind = ir.FunctionType(self.vector.llvm, [self.vector.llvm] * 3)
        name = "llvm.x86.avx512.vpdpbusd.512"
        dot = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(dot, [total, w, x])


def shuffle(builder, vectors, order):
    """The lanes of two vectors, one behind the other, in that order."""
    kind = ir.VectorType(ir.IntType(32), order.size)
    return builder.shuffle_vector(*vectors, ir.Constant(kind, order.ravel().tolist()))
