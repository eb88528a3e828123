"""The SIMD vector as a type that Numba knows: one LLVM vector, as wide as the machine's registers.

float32 vectors have WIDTH / 4 lanes, float64 vectors WIDTH / 8. The width is 64 bytes with AVX-512,
32 with AVX2, 16 otherwise (NEON, SSE); REFSD_SIMD_BYTES forces another, which LLVM then makes of
what there is.
"""

import operator
import os

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    overload,
    register_model,
    type_callable,
)

from refsd.errors import UsageError


def _width():
    forced = os.environ.get("REFSD_SIMD_BYTES")
    if not forced:
        features = llvm.get_host_cpu_features()
        return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    if forced not in ("16", "32", "64"):
        raise UsageError(f"REFSD_SIMD_BYTES is {forced!r}; give 16, 32 or 64, or unset it")
    return int(forced)


WIDTH = _width()
_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
         types.int32: ir.IntType(32), types.int64: ir.IntType(64), types.boolean: ir.IntType(1)}


class Vector(types.Type):
    """`count` values of one dtype side by side; of booleans, as the result of a comparison."""

    def __init__(self, dtype, count=None):
        self.dtype = dtype
        self.count = WIDTH * 8 // dtype.bitwidth if count is None else count
        super().__init__(name=f"Vector({dtype}, {self.count})")

    @property
    def llvm(self):
        return ir.VectorType(_LLVM[self.dtype], self.count)

    @property
    def suffix(self):
        """The vector's name in the names of LLVM's intrinsics."""
        letter = "f" if self.dtype in types.real_domain else "i"
        return f"v{self.count}{letter}{self.dtype.bitwidth}"


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


def same_size(dtype):
    """The integer type of a floating-point type's bits, and the other way round."""
    pairs = {types.float32: types.int32, types.float64: types.int64}
    return {**pairs, **{v: k for k, v in pairs.items()}}[dtype]


def lanes(a):
    """Elements of an array (or, in Python, a dtype) in one vector."""
    return WIDTH // a.itemsize


@overload(lanes)
def _lanes(a):
    # From the type, not from the array's itemsize: loops whose step is a constant compile better.
    count = Vector(a.dtype).count
    return lambda a: count


def emit_splat(builder, scalar, count):
    """LLVM code for a vector with the scalar in every lane."""
    kind = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar,
                                 ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(one, one, zeros)


@intrinsic
def splat(typing, value):
    """The same value in every lane."""
    vector = Vector(value)

    def emit(context, builder, signature, arguments):
        return emit_splat(builder, arguments[0], vector.count)

    return vector(value), emit


@intrinsic
def splat_like(typing, x, number):
    """The number, rounded to x's dtype, in every lane of a vector like x."""

    def emit(context, builder, signature, arguments):
        scalar = context.cast(builder, arguments[1], signature.args[1], x.dtype)
        return emit_splat(builder, scalar, x.count)

    return x(x, number), emit


def _operator(function, instruction, result=None):
    """x op y for two vectors, or a vector and a number, which is rounded to the vector's dtype.

    Typed and emitted here, not as an overload: those take Numba far longer to compile.
    """

    @type_callable(function)
    def find_type(context):
        def choose(x, y):
            vector = x if isinstance(x, Vector) else y
            if isinstance(vector, Vector) and all(a == vector or isinstance(a, types.Number)
                                                  for a in (x, y)):
                return vector if result is None else Vector(result, vector.count)

        return choose

    def emit(context, builder, signature, arguments):
        vector = next(kind for kind in signature.args if isinstance(kind, Vector))
        values = [value if kind == vector
                  else emit_splat(builder, context.cast(builder, value, kind, vector.dtype),
                              vector.count)
                  for kind, value in zip(signature.args, arguments)]
        return instruction(builder, *values)

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *kinds)(emit)


def _instruction(real, integer):
    def emit(builder, x, y):
        is_real = isinstance(x.type.element, (ir.FloatType, ir.DoubleType))
        return getattr(builder, real if is_real else integer)(x, y)

    return emit


_operator(operator.add, _instruction("fadd", "add"))
_operator(operator.sub, _instruction("fsub", "sub"))
_operator(operator.mul, _instruction("fmul", "mul"))
_operator(operator.truediv, _instruction("fdiv", None))
_operator(operator.and_, _instruction(None, "and_"))
_operator(operator.or_, _instruction(None, "or_"))
_operator(operator.lshift, _instruction(None, "shl"))
_operator(operator.rshift, _instruction(None, "ashr"))
for _function, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"),
                         (operator.ge, ">="), (operator.eq, "==")):
    _operator(_function, lambda builder, x, y, sign=_sign: builder.fcmp_ordered(sign, x, y),
              types.boolean)


@type_callable(operator.neg)
def _type_of_negative(context):
    return lambda x: x if isinstance(x, Vector) else None


@lower_builtin(operator.neg, Vector)
def _negate(context, builder, signature, arguments):
    return builder.fneg(arguments[0])


def first_lanes(builder, count, of):
    """LLVM code: the mask whose lanes 0 .. count - 1 are true."""
    kind = ir.VectorType(ir.IntType(64), of)
    indices = ir.Constant(kind, list(range(of)))
    return builder.icmp_signed("<", indices, emit_splat(builder, count, of))


def emit_masked_load(builder, address, mask, vector):
    """LLVM code: the lanes of the mask, the others 0. Nothing else is touched."""
    align = ir.Constant(ir.IntType(32), vector.dtype.bitwidth // 8)
    kind = ir.FunctionType(vector.llvm, [address.type, align.type, mask.type, vector.llvm])
    function = cgutils.get_or_insert_function(builder.module, kind,
                                              f"llvm.masked.load.{vector.suffix}.p0")
    return builder.call(function, [address, align, mask, ir.Constant(vector.llvm, None)])


def emit_masked_store(builder, value, address, mask, vector):
    """LLVM code: store the lanes of the mask."""
    align = ir.Constant(ir.IntType(32), vector.dtype.bitwidth // 8)
    kind = ir.FunctionType(ir.VoidType(), [value.type, address.type, align.type, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind,
                                              f"llvm.masked.store.{vector.suffix}.p0")
    builder.call(function, [value, address, align, mask])
