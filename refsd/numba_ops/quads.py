"""Four int8 in the lanes of an int32 vector, as AVX512-VNNI multiplies them."""

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDE = 32  # outputs of a panel


@intrinsic
def store_quads(typing, panel, at, values, i, step):
    """Row `at` of a panel: in lane o of its int32, values[i + n step + o] + 128 for n in 0 .. 3.

    panel: 1-D uint32, WIDE a row; values: 1-D int8. The bytes are unsigned, the first n lowest.
    """
    row, quads = (ir.VectorType(ir.IntType(8), count) for count in (WIDE, 4 * WIDE))

    def lanes(order):
        return ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)

    def emit(context, builder, signature, arguments):
        out, source = (context.make_array(signature.args[n])(context, builder, arguments[n]).data
                       for n in (0, 2))
        _, at, _, i, step = arguments
        rows = []
        for n in range(4):
            index = builder.add(i, builder.mul(step, ir.Constant(step.type, n)))
            address = builder.bitcast(builder.gep(source, [index]), row.as_pointer())
            rows.append(builder.load(address))
            rows[-1].align = 1
        pairs = [builder.shuffle_vector(*two, lanes([*range(2 * WIDE)]))
                 for two in (rows[:2], rows[2:])]
        value = builder.shuffle_vector(
            *pairs, lanes([WIDE * n + o for o in range(WIDE) for n in range(4)]))
        value = builder.xor(value, ir.Constant(quads, [-128] * 4 * WIDE))
        target = builder.gep(out, [builder.mul(at, ir.Constant(at.type, WIDE))])
        builder.store(value, builder.bitcast(target, quads.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(panel, types.intp, values, types.intp, types.intp), emit
