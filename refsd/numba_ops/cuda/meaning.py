"""The intrinsics of ptx.py and ptx_matrices.py in Python: the same names, by what they mean.

PTX ISA 8.x, sections 9.7.13 (cp.async) and 9.7.14 (ldmatrix, mma). What memory demands of an access
is in guarded.py. `tally` counts rows of matrices that share memory banks with another.
"""

import math
from fractions import Fraction

import greenlet
import numpy as np
from scipy.special import erf as _erf

current = greenlet.getcurrent
tally = {"ldmatrix": 0, "conflicts": 0}


def _wanted(values, kind, what):
    """TypeError unless all are numbers of this type: no float64 came in through Python."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{what} is given a {type(value).__name__}, wanted {kind.__name__}")


def load4(array, index):
    """Sixteen bytes of neighbours in one load.   index a multiple of 16 / itemsize"""
    values = array.vector(index, 16, "load4")
    return tuple(values.astype(array.wide) if array.wide else values)


def store4(array, index, values):
    """Sixteen bytes of neighbours in one store."""
    _wanted(values, np.integer if array.wide else array.kind, "store4")
    array.vector(index, 16, "store4", "write")[:] = values


def store_pair(array, index, pair):
    """Two neighbouring halves, packed, in one store.   index even"""
    array.vector(index, 4, "store_pair", "write").view(np.uint32)[0] = pair


def store_pairs(array, index, low, high):
    """Four neighbouring halves, two of them packed in each word, in one store.   index % 4 = 0"""
    array.vector(index, 8, "store_pairs", "write").view(np.uint32)[:] = low, high


def bits_of(x):
    """The bits of a float32, as uint32."""
    _wanted((x,), np.float32, "bits_of")
    return np.uint64(x.view(np.uint32))


def float_of(bits):
    """The float32 of these bits."""
    return np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)


def pack_f16(low, high):
    """Two float32 as float16 in one register, rounded to nearest, ties to even."""
    _wanted((low, high), np.float32, "pack_f16")
    return np.uint64(np.array([low, high], np.float16).view(np.uint32)[0])


pack_f16_ampere = pack_f16


def pack_bf16(low, high):
    """Two float32 as bfloat16 in one register. Ampere and later."""
    _wanted((low, high), np.float32, "pack_bf16")
    return np.uint64(_bf16(low) | _bf16(high) << 16)


def _bf16(x):
    bits = int(x.view(np.uint32))
    if math.isnan(x):
        return 0x7FFF
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


def _in_kind(function):
    """A function of float64, rounded to the argument's type."""
    def rounded(x):
        _wanted((x,), np.floating, function.__name__)
        return type(x)(function(float(x)))
    return rounded


def _exp(x):
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


exp, tanh, erf = map(_in_kind, (_exp, math.tanh, _erf))
sin, cos = map(_in_kind, (np.sin, np.cos))
sqrt = _in_kind(np.sqrt)


def exp2(x):
    """2^x of the special-function unit: 2 ulp, 0 for tiny results.   float32"""
    _wanted((x,), np.float32, "exp2")
    y = np.float32(np.exp2(np.float64(x)))
    return y if not 0 < y < np.finfo(np.float32).tiny else np.float32(0)


def larger(a, b):
    """The larger number; of a number and a NaN, the number.   float32"""
    _wanted((a, b), np.float32, "larger")
    return np.fmax(a, b)


def fma(a, b, c):
    """a b + c, rounded once."""
    _wanted((a, b), type(c), "fma")
    if type(c) is np.float64 and np.isfinite(a) and np.isfinite(b) and np.isfinite(c):
        return np.float64(float(Fraction(a) * Fraction(b) + Fraction(c)))
    return type(c)(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def _halves(words, kind):
    pairs = np.array(words, np.uint64).astype(np.uint32).reshape(-1, 1).view(np.uint16)
    if kind == "f16":
        return pairs.view(np.float16).astype(np.float32)
    return (pairs.astype(np.uint32) << 16).view(np.float32)


def _of_warp(value, function):
    """What the instruction of a warp gives this thread: function(the values of all)[lane]."""
    me = current()
    everyone = me.wait("warp", value)
    if me.block.products is None or me.block.products[0] is not everyone:
        me.block.products = everyone, function(everyone)
    return me.block.products[1][me.index % 32]


def _mma(kind):
    def mma(a, b, c):
        """c + A B of one warp: A 16 x 16 (4 words), B 16 x 8 (2 words), C 16 x 8 (4 float32)."""
        _wanted((*a, *b), np.integer, "mma")
        _wanted(c, np.float32, "mma")
        return _of_warp((a, b, c), lambda everyone: _product(everyone, kind))
    return mma


def _product(everyone, kind):
    """The fragments of all 32 threads put together, multiplied, and taken apart again."""
    A, B, C = (np.zeros(shape, np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    for lane, (a, b, c) in enumerate(everyone):
        row, column = lane // 4, lane % 4 * 2
        for i, pair in enumerate(_halves(a, kind)):
            at = column + 8 * (i // 2)
            A[row + 8 * (i % 2), at:at + 2] = pair
        for i, pair in enumerate(_halves(b, kind)):
            B[column + 8 * i:column + 8 * i + 2, row] = pair
        C[row, column:column + 2], C[row + 8, column:column + 2] = c[:2], c[2:]
    D = (A.astype(np.float64) @ B + C).astype(np.float32)
    return [(*D[i // 4, i % 4 * 2:][:2], *D[i // 4 + 8, i % 4 * 2:][:2]) for i in range(32)]


mma_f16, mma_bf16 = _mma("f16"), _mma("bf16")
mma_f16_turing = mma_f16


def _ldmatrix(transposed):
    def load(array, index):
        """Four 8 x 8 matrices of halves; thread i says where row i % 8 of matrix i / 8 is."""
        row = array.vector(index, 16, "ldmatrix").view(np.uint16)
        return _of_warp((int(index), row), lambda everyone: _matrices(everyone, transposed))
    return load


def _matrices(rows, transposed):
    """For each lane: of matrix m the pair in row lane / 4, columns lane % 4 * 2 and the next."""
    tally["ldmatrix"] += 4
    squares = np.stack([row for _, row in rows]).reshape(4, 8, 8)
    for m in range(4):
        tally["conflicts"] += 8 - len({i // 8 % 8 for i, _ in rows[8 * m:8 * m + 8]})
    squares = squares.swapaxes(1, 2) if transposed else squares
    pairs = np.ascontiguousarray(squares).view(np.uint32).reshape(4, 32).astype(np.uint64)
    return [tuple(of_lane) for of_lane in pairs.T]


ldmatrix, ldmatrix_t = _ldmatrix(False), _ldmatrix(True)


def copy16(to, to_index, source, index, wanted):
    """cp.async of 16 bytes into shared memory; unless `wanted`, zeros, and nothing is read.

    They arrive when they are waited for, not before: until then the place holds NaN.
    """
    place = to.vector(to_index, 16, "copy16 to shared memory", "fly")
    value = (source.vector(index, 16, "copy16").copy() if wanted
             else np.zeros(len(place), to.dtype))
    place.view(np.uint8).fill(0xFF)
    current().copies.append((to, int(to_index), place, value))


def copy16_turing(to, to_index, source, index, wanted):
    """The same through registers: they have arrived."""
    copy16(to, to_index, source, index, wanted)
    _arrive(current().copies.pop())


def _arrive(copy):
    to, index, place, value = copy
    place[:] = value
    to.touched.arrive(index, index + len(place))
    current().unseen = True  # by Hopper's products, until fence_async


def commit():
    """The copies since the last one are a group."""
    me = current()
    me.groups.append(me.copies)
    me.copies = []


def _wait(count):
    def wait():
        """Until at most so many of this thread's groups are on the way."""
        me = current()
        while len(me.groups) > count:
            for copy in me.groups.pop(0):
                _arrive(copy)
    return wait


wait0, wait1, wait2 = map(_wait, range(3))


def nothing():
    """No instruction: where another architecture has one."""
