"""The micro-kernel under every dense op: a tile of a matrix product, summed in registers."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsd.numba_ops.simd import WIDTH, Vector, fetch_line, spread

# 14 x 2 sums, two columns and one row value fill the 32 registers of AVX-512; 6 x 2 those of AVX2.
ROWS, VECTORS = (14, 2) if WIDTH == 64 else (6, 2)


@intrinsic
def tile(typing, a, at, step, segments, length, panel, panel_at, c):
    """c[i, :] = sum_{s, k} a[at + i step + segments[s] + k] panel[panel_at + (s length + k) NR + :]

    a: the left matrix's memory, 1-D; its ROWS rows lie `step` elements apart, and each is made of
    segments of `length` elements (a linear layer has one, a convolution one for each row of taps).
    panel: NR = VECTORS vectors of the right matrix for each k, packed one after the other.
    c: 1-D, ROWS x NR, overwritten. Each sum is one chain of fused multiply-adds in the order of k,
    so its bits depend on nothing but its own row and column.
    """
    return _tile(a, segments, panel, c)


@intrinsic
def tile_ahead(typing, a, at, step, segments, length, panel, panel_at, panel_step, c, onto, next_a,
               next_panel, pace):
    """As tile, with rows of the panel panel_step apart, and meanwhile fetch what comes next.

    With `onto` c += the sums: a long k in pieces, added up, has a fraction of the rounding error of
    one chain. After k steps the caches have been asked for k ROWS elements from a[next_a] on, and
    for k pace elements of the panel whose first row begins at panel[next_panel].
    """
    return _tile(a, segments, panel, c, types.intp, types.intp, types.intp, types.intp, types.intp)


def _tile(a, segments, panel, c, *more):
    vector = Vector(a.dtype)
    width = VECTORS * vector.count
    signature = types.void(a, types.intp, types.intp, segments, types.intp, panel, types.intp,
                           *more[:1], c, *more[1:])

    def emit(context, builder, signature, arguments):
        memory = [context.make_array(kind)(context, builder, value).data
                  if isinstance(kind, types.Array) else value
                  for kind, value in zip(signature.args, arguments)]
        panel_step = memory.pop(7) if more else ir.Constant(ir.IntType(64), width)
        a_data, at, step, offsets, length, panel_data, panel_at, c_data, *ahead = memory
        count = context.make_array(signature.args[3])(context, builder, arguments[3]).shape
        whole = vector.llvm.as_pointer()
        right_from = builder.gep(panel_data, [panel_at])
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector.llvm, [vector.llvm] * 3),
            f"llvm.fma.{vector.suffix}")
        zero = ir.Constant(vector.llvm, None)
        # LLVM keeps these in registers: nothing ever takes their address.
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(ROWS * VECTORS)]
        row_starts = [builder.mul(step, ir.Constant(step.type, i)) for i in range(ROWS)]

        with cgutils.for_range(builder, builder.extract_value(count, 0)) as segment:
            offset = builder.load(builder.gep(offsets, [segment.index]))
            left_at = builder.gep(a_data, [builder.add(at, offset)])
            with cgutils.for_range(builder, length) as loop:
                k = builder.add(builder.mul(segment.index, length), loop.index)
                right_at = builder.bitcast(
                    builder.gep(right_from, [builder.mul(k, panel_step)]), whole)
                right = [_load(builder, right_at, ir.Constant(k.type, j), a)
                         for j in range(VECTORS)]
                if ahead:
                    _fetch(builder, k, a_data, panel_data, panel_step, width, *ahead[1:])
                here = builder.gep(left_at, [loop.index])
                for i, start in enumerate(row_starts):
                    left = spread(builder, builder.load(builder.gep(here, [start])), vector.count)
                    for j in range(VECTORS):
                        place = sums[i * VECTORS + j]
                        product = builder.call(fma, [left, right[j], builder.load(place)])
                        builder.store(product, place)

        out = builder.bitcast(c_data, whole)
        if ahead:
            with builder.if_then(builder.icmp_signed("!=", ahead[0], ir.Constant(at.type, 0))):
                for i, place in enumerate(sums):
                    before = _load(builder, out, ir.Constant(at.type, i), a)
                    builder.store(builder.fadd(before, builder.load(place)), place)
        for i, place in enumerate(sums):
            stored = builder.store(builder.load(place),
                                   builder.gep(out, [ir.Constant(ir.IntType(64), i)]))
            stored.align = a.dtype.bitwidth // 8
        return context.get_dummy_value()

    return signature, emit


def _fetch(builder, k, a_data, panel_data, panel_step, width, next_a, next_panel, pace):
    """Ask for element k ROWS from a[next_a] on, and element k pace from the next panel's first."""
    done = builder.mul(k, pace)
    row, column = (divide(done, ir.Constant(k.type, width))
                   for divide in (builder.udiv, builder.urem))  # width is a power of 2
    for data, start, further in (
            (a_data, next_a, builder.mul(k, ir.Constant(k.type, ROWS))),
            (panel_data, next_panel, builder.add(builder.mul(row, panel_step), column))):
        fetch_line(builder, builder.gep(data, [builder.add(start, further)]), level=2)


def _load(builder, vectors, index, array):
    """vectors[index], aligned as the array's elements are."""
    value = builder.load(builder.gep(vectors, [index]))
    value.align = array.dtype.bitwidth // 8
    return value
