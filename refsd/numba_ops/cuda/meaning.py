"""The intrinsics of ptx.py in Python: the same names, by what the instructions mean.

PTX ISA 8.x, sections 9.7.13 (cp.async) and 9.7.14 (ldmatrix, mma). Alignment and bounds, which
hardware answers with a fault or not at all, are errors here. `tally` counts rows that share memory
banks.
"""

import math

import greenlet
import numpy as np
from scipy.special import erf as _erf

current = greenlet.getcurrent
tally = {"ldmatrix": 0, "conflicts": 0}


def _raw(array):
    return array.view(np.ndarray)


def _chunk(array, index, what):
    """Sixteen bytes of an array, where they lie on sixteen."""
    count, index = 16 // array.dtype.itemsize, int(index)
    if index % count:
        raise IndexError(f"{what} at element {index}, which is not a multiple of {count}")
    if not 0 <= index <= array.size - count:
        raise IndexError(f"{what} at element {index} of {array.size}: out of bounds")
    return _raw(array)[index:index + count]


def load4(array, index):
    """Sixteen bytes of neighbours in one load.   index a multiple of 16 / itemsize"""
    return tuple(_chunk(array, index, "load4"))


def store4(array, index, values):
    """Sixteen bytes of neighbours in one store."""
    _chunk(array, index, "store4")[:] = values


def store_pair(array, index, pair):
    """Two neighbouring halves, packed, in one store.   index even"""
    if index % 2 or not 0 <= index <= array.size - 2:
        raise IndexError(f"store_pair at element {index} of {array.size}")
    _raw(array)[int(index):int(index) + 2].view(np.uint32)[0] = pair


def store_pairs(array, index, low, high):
    """Four neighbouring halves, two of them packed in each word, in one store.   index % 4 = 0"""
    if index % 4 or not 0 <= index <= array.size - 4:
        raise IndexError(f"store_pairs at element {index} of {array.size}")
    _raw(array)[int(index):int(index) + 4].view(np.uint32)[:] = low, high


def bits_of(x):
    """The bits of a float32, as uint32."""
    return np.float32(x).view(np.uint32)


def float_of(bits):
    """The float32 of these bits."""
    return np.uint32(bits).view(np.float32)


def pack_f16(low, high):
    """Two float32 as float16 in one register, rounded to nearest, ties to even."""
    return np.array([low, high], np.float32).astype(np.float16).view(np.uint32)[0]


def pack_bf16(low, high):
    """Two float32 as bfloat16 in one register. Ampere and later."""
    return np.uint32(_bf16(low) | _bf16(high) << 16)


def _bf16(x):
    bits = int(np.float32(x).view(np.uint32))
    if math.isnan(x):
        return 0x7FFF
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


def _in_kind(function):
    """A function of float64, rounded to the argument's type."""
    def rounded(x):
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
    y = np.float32(np.exp2(np.float64(x)))
    return y if not 0 < y < np.finfo(np.float32).tiny else np.float32(0)


def fma(a, b, c):
    """a b + c, rounded once."""
    return type(c)(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def _halves(words, kind):
    pairs = np.array(words, np.uint32).reshape(-1, 1).view(np.uint16)
    if kind == "f16":
        return pairs.view(np.float16).astype(np.float32)
    return (pairs.astype(np.uint32) << 16).view(np.float32)


def _mma(kind):
    def mma(a, b, c):
        """c + A B of one warp: A 16 x 16 (4 words), B 16 x 8 (2 words), C 16 x 8 (4 float32)."""
        me = current()
        everyone = me.wait("warp", (a, b, c))
        if me.block.products is None or me.block.products[0] is not everyone:
            me.block.products = everyone, _product(everyone, kind)
        return me.block.products[1][me.index % 32]
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
        me = current()
        rows = me.wait("warp", (array, int(index)))
        raw = [_chunk(a, i, "ldmatrix").view(np.uint16) for a, i in rows]
        words = []
        for m in range(4):
            tally["ldmatrix"] += 1
            tally["conflicts"] += 8 - len({i // 8 % 8 for _, i in rows[8 * m:8 * m + 8]})
            square = np.stack(raw[8 * m:8 * m + 8])
            square = square.T if transposed else square
            lane = me.index % 32
            low, high = square[lane // 4, lane % 4 * 2:][:2]
            words.append(np.uint32(int(low) | int(high) << 16))
        return tuple(words)
    return load


ldmatrix, ldmatrix_t = _ldmatrix(False), _ldmatrix(True)


def copy16(to, to_index, source, index, wanted):
    """cp.async of 16 bytes into shared memory; unless `wanted`, zeros, and nothing is read.

    They arrive when they are waited for, not before: until then the place holds NaN.
    """
    place = _chunk(to, to_index, "copy16's place")
    value = (_chunk(source, index, "copy16's source").copy() if wanted
             else np.zeros(len(place), to.dtype))
    place.view(np.uint8).fill(0xFF)
    current().copies.append((place, value))


def copy16_turing(to, to_index, source, index, wanted):
    """The same through registers: they have arrived."""
    copy16(to, to_index, source, index, wanted)
    place, value = current().copies.pop()
    place[:] = value


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
            for place, value in me.groups.pop(0):
                place[:] = value
    return wait


wait0, wait1, wait2 = map(_wait, range(3))


def nothing():
    """No instruction: where another architecture has one."""
