"""Transposing in registers: a square of vectors, by halves of halves."""

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refsd.numba_ops.vector import Elements, Vector, first_lanes


@intrinsic
def transpose(typing, x, at, step, rows, columns, out, out_at, out_step):
    """out[out_at + j out_step + i] = x[at + i step + j] for i < rows, j < columns <= lanes

    Of each row of out whole vectors are written: lanes from `rows` on repeat the last row.
    """
    return _transpose(x, out, all_lanes=True)


@intrinsic
def transpose_masked(typing, x, at, step, rows, columns, out, out_at, out_step):
    """As transpose, but only the first `rows` elements of each row of out are written."""
    return _transpose(x, out, all_lanes=False)


def _transpose(x, out, all_lanes):
    n, number = Vector(x.dtype).count, ir.IntType(64)
    read, written = Elements(x.dtype, n), Elements(out.dtype, n)

    def emit(context, builder, signature, arguments):
        source, at, step, rows, columns, target, out_at, out_step = (
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments))
        last = builder.sub(rows, ir.Constant(number, 1))
        inside = first_lanes(builder, columns, n)
        wide = []
        for i in range(n):
            row = ir.Constant(number, i)
            row = builder.select(builder.icmp_signed("<", row, rows), row, last)
            address = read.address(builder, source, builder.add(at, builder.mul(row, step)))
            wide.append(read.load(builder, address, inside))

        half = n // 2
        while half:
            for i in range(n):
                if not i & half:
                    wide[i], wide[i + half] = _exchange(builder, wide[i], wide[i + half], half, n)
            half //= 2

        wanted = first_lanes(builder, ir.Constant(number, n) if all_lanes else rows, n)
        for j, value in enumerate(wide):
            there = builder.icmp_signed("<", ir.Constant(number, j), columns)
            with builder.if_then(there, likely=True):
                shift = builder.mul(out_step, ir.Constant(number, j))
                address = written.address(builder, target, builder.add(out_at, shift))
                written.store(builder, value, address, wanted)
        return context.get_dummy_value()

    return types.void(x, *[types.intp] * 4, out, types.intp, types.intp), emit


def _exchange(builder, x, y, half, n):
    """Of two rows: the blocks of `half` lanes that stay left, and those that stay right."""
    def of(i):  # lane i of x is number i, of y number n + i
        return ir.Constant(ir.VectorType(ir.IntType(32), n), i)

    left = [n + i - half if i & half else i for i in range(n)]
    right = [n + i if i & half else i + half for i in range(n)]
    return builder.shuffle_vector(x, y, of(left)), builder.shuffle_vector(x, y, of(right))
