"""AMX: eight registers of 16 rows of 64 bytes, called tiles, and what multiplies them.

    add_pairs(t, c, a, b)    c[i, j] += sum_k a[i, 2k] b[k, 2j] + a[i, 2k + 1] b[k, 2j + 1]
    add_quads(t, c, a, b)    the same of four int8 by four uint8, exact in int32

a has 16 rows of 32 bfloat16 (64 int8); b has 16 rows, each of two (four) adjacent rows of a matrix,
interleaved; c has 16 by 16 float32 (int32). Tiles have numbers, 0 to 7, which the code names: LLVM
moves none of them. They belong to the thread between its `begin` and its `end`.

Products of bfloat16 are exact. Those of even k and those of odd k are summed apart in float32, then
both together onto c; what is subnormal there counts as 0, as do subnormal bfloat16 and results
(TDPBF16PS in Intel's Software Developer's Manual, and in Bochs, cpu/avx/amx.cc). With
REFSD_TILES=emulated the same bits come from other instructions and memory, on any processor: tests
run so.
"""

import ctypes
import os
import platform
import sys
from functools import cache

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

from refsd.errors import UsageError
from refsd.numba_ops.vector import emit_splat

ROWS, BYTES = 16, 64  # of a tile
_TILE = ROWS * BYTES
_BYTE, _INT, _NUMBER = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_INTS, _FLOATS = ir.VectorType(_INT, 16), ir.VectorType(ir.FloatType(), 16)


def _emulated():
    said = os.environ.get("REFSD_TILES")
    if said not in (None, "", "emulated"):
        raise UsageError(f"REFSD_TILES is {said!r}; give emulated, or unset it")
    return bool(said)


EMULATED = _emulated()


@cache
def refused() -> str:
    """Why the system lets this process have no tiles; nothing where it does.

    It is asked once, by the request that Linux wants before the first use (arch_prctl,
    ARCH_REQ_XCOMP_PERM, of XTILEDATA); threads have the permission too.
    """
    if EMULATED:
        return ""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "only Linux is asked for tiles so far"
    if ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0:
        return "Linux does not let this process have them"
    return ""


def _configuration():
    """What ldtilecfg reads: palette 1, and all eight tiles whole."""
    found = np.zeros(64, np.uint8)
    found[0] = 1
    found[16:32].view(np.uint16)[:] = BYTES
    found[48:56] = ROWS
    return found.tolist()


@intrinsic
def begin(typing):
    """Tiles for this thread, to be named to all else here; what is in them is not defined."""

    def emit(context, builder, signature, arguments):
        if EMULATED:
            rows = cgutils.alloca_once(builder, _INTS, size=ir.Constant(_NUMBER, 8 * ROWS))
            return builder.bitcast(rows, _BYTE.as_pointer())
        kind = ir.ArrayType(_BYTE, 64)
        value = cgutils.global_constant(builder.module, "refsd.tiles",
                                        ir.Constant(kind, _configuration()))
        address = builder.bitcast(value, _BYTE.as_pointer())
        _call(builder, "ldtilecfg", address)
        return ir.Constant(_BYTE.as_pointer(), None)

    return types.voidptr(), emit


@intrinsic
def end(typing, t):
    """This thread has no tiles any more."""

    def emit(context, builder, signature, arguments):
        if not EMULATED:
            _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(t), emit


@intrinsic(prefer_literal=True)
def zero(typing, t, n):
    """tile n = 0"""
    tile = _literal(n)

    def emit(context, builder, signature, arguments):
        if EMULATED:
            for i in range(ROWS):
                builder.store(ir.Constant(_INTS, None), _row(builder, arguments[0], tile, i))
        else:
            _call(builder, "tilezero", tile)
        return context.get_dummy_value()

    return types.void(t, n), emit


@intrinsic(prefer_literal=True)
def load(typing, t, n, memory, at, step):
    """tile n = 16 rows of 64 bytes from byte `at` of the memory on, `step` bytes apart"""
    tile = _literal(n)

    def emit(context, builder, signature, arguments):
        handle, _, _, _, step = arguments
        place = _place(context, builder, signature, arguments)
        if not EMULATED:
            _call(builder, "tileloadd64", tile, place, step)
            return context.get_dummy_value()
        for i in range(ROWS):
            row = builder.load(_there(builder, place, step, i))
            row.align = 1
            builder.store(row, _row(builder, handle, tile, i))
        return context.get_dummy_value()

    return types.void(t, n, memory, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def store(typing, t, n, memory, at, step):
    """16 rows of 64 bytes from byte `at` of the memory on, `step` bytes apart, = tile n"""
    tile = _literal(n)

    def emit(context, builder, signature, arguments):
        handle, _, _, _, step = arguments
        place = _place(context, builder, signature, arguments)
        if not EMULATED:
            _call(builder, "tilestored64", tile, place, step)
            return context.get_dummy_value()
        for i in range(ROWS):
            row = builder.load(_row(builder, handle, tile, i))
            builder.store(row, _there(builder, place, step, i)).align = 1
        return context.get_dummy_value()

    return types.void(t, n, memory, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def add_pairs(typing, t, c, a, b):
    """tile c += tile a times tile b, pairs of bfloat16 by pairs of bfloat16"""
    return _products("tdpbf16ps", _add_pairs, t, c, a, b)


@intrinsic(prefer_literal=True)
def add_quads(typing, t, c, a, b):
    """tile c += tile a times tile b, four int8 by four uint8"""
    return _products("tdpbsud", _add_quads, t, c, a, b)


def _products(name, emulated, t, *tiles):
    numbers = [_literal(n) for n in tiles]

    def emit(context, builder, signature, arguments):
        if EMULATED:
            emulated(builder, arguments[0], *numbers)
        else:
            _call(builder, name, *numbers)
        return context.get_dummy_value()

    return types.void(t, *tiles), emit


def _add_pairs(builder, tiles, c, a, b):
    """As the manual writes it, a row of c at a time."""
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fma.v16f32")
    with cgutils.for_range(builder, ir.Constant(_NUMBER, ROWS)) as row:
        odd, even = (cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None))
                     for _ in range(2))
        with cgutils.for_range(builder, ir.Constant(_NUMBER, BYTES // 4)) as pair:
            left = _splat_of(builder, tiles, a, row.index, pair.index)
            right = builder.load(_row(builder, tiles, b, pair.index))
            for total, halves in ((even, _lower), (odd, _upper)):
                value = builder.call(fma, [_flushed(builder, halves(builder, x))
                                           for x in (left, right)] + [builder.load(total)])
                builder.store(_flushed(builder, value), total)
        place = builder.bitcast(_row(builder, tiles, c, row.index), _FLOATS.as_pointer())
        both = _flushed(builder, builder.fadd(builder.load(even), builder.load(odd)))
        value = builder.fadd(_flushed(builder, builder.load(place)), both)
        builder.store(_flushed(builder, value), place)


def _add_quads(builder, tiles, c, a, b):
    """As the manual writes it, a row of c at a time."""
    with cgutils.for_range(builder, ir.Constant(_NUMBER, ROWS)) as row:
        place = _row(builder, tiles, c, row.index)
        with cgutils.for_range(builder, ir.Constant(_NUMBER, BYTES // 4)) as quad:
            left = _splat_of(builder, tiles, a, row.index, quad.index)
            right = builder.load(_row(builder, tiles, b, quad.index))
            for shift in (0, 8, 16, 24):
                x = builder.ashr(builder.shl(left, _all(24 - shift)), _all(24))
                y = builder.and_(builder.lshr(right, _all(shift)), _all(255))
                builder.store(builder.add(builder.load(place), builder.mul(x, y)), place)


def _splat_of(builder, tiles, n, row, column):
    """The four bytes of a tile there, in every lane."""
    place = builder.bitcast(_row(builder, tiles, n, row), _INT.as_pointer())
    return emit_splat(builder, builder.load(builder.gep(place, [column])), 16)


def _lower(builder, pairs):
    return builder.bitcast(builder.shl(pairs, _all(16)), _FLOATS)


def _upper(builder, pairs):
    return builder.bitcast(builder.and_(pairs, _all(-65536)), _FLOATS)


def _flushed(builder, x):
    """x, but 0 of its sign where it is subnormal."""
    bits = builder.bitcast(x, _INTS)
    normal = builder.icmp_unsigned("!=", builder.and_(bits, _all(0x7F800000)), _all(0))
    kept = builder.select(normal, bits, builder.and_(bits, _all(-0x80000000)))
    return builder.bitcast(kept, _FLOATS)


def _all(value):
    return ir.Constant(_INTS, [value] * 16)


def _literal(n):
    if not isinstance(n, types.IntegerLiteral):
        raise errors.RequireLiteralValue(n)
    return ir.Constant(_BYTE, n.literal_value)


def _place(context, builder, signature, arguments):
    """The address of byte `at` of the memory, an array or a pointer."""
    kind, value = signature.args[2], arguments[2]
    if isinstance(kind, types.Array):
        value = context.make_array(kind)(context, builder, value).data
    return builder.gep(builder.bitcast(value, _BYTE.as_pointer()), [arguments[3]])


def _there(builder, place, step, i):
    """The address of a row in memory."""
    at = builder.mul(step, ir.Constant(_NUMBER, i))
    return builder.bitcast(builder.gep(place, [at]), _INTS.as_pointer())


def _row(builder, tiles, n, i):
    """The address of a row of an emulated tile; i is a number, here or in the code."""
    first = ir.Constant(_NUMBER, n.constant * _TILE)
    i = ir.Constant(_NUMBER, i) if isinstance(i, int) else i
    at = builder.add(first, builder.mul(i, ir.Constant(_NUMBER, BYTES)))
    return builder.bitcast(builder.gep(tiles, [at]), _INTS.as_pointer())


def _call(builder, name, *arguments):
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"),
                 arguments)
