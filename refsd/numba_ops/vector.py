"""The SIMD vector as a type that Numba knows: one LLVM vector, as wide as the machine's registers.

float32 vectors have WIDTH / 4 lanes, float64 vectors WIDTH / 8. Halves are half as wide in memory,
int8 a quarter, and both float32 in registers. The width is 64 bytes with AVX-512, 32 with AVX2, 16
otherwise (NEON, SSE); REFSD_SIMD_BYTES forces another, which LLVM then makes of what there is.
"""

import operator
import os

import refsd.numba_ops.settings  # noqa: F401  before Numba

import llvmlite.binding as llvm
import numpy as np
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
_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int8: ir.IntType(8),
         types.int32: ir.IntType(32), types.int64: ir.IntType(64), types.boolean: ir.IntType(1)}


def half(dtype):
    """"bfloat16", "float16" or "bits" for elements that memory.py has made so; None for others."""
    return next(iter(dtype.fields)) if isinstance(dtype, types.Record) else None


def computed(dtype):
    """The type that elements have in registers: float32 of halves and int8, else their own."""
    return types.float32 if half(dtype) or dtype == types.int8 else dtype


class Vector(types.Type):
    """`count` values of one dtype side by side; of booleans, as the result of a comparison."""

    def __init__(self, dtype, count=None):
        self.dtype = dtype = computed(dtype)
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
    return WIDTH // max(a.itemsize, 4)


def scratch(size, like):
    """An uninitialised 1-D array, in compiled code, of what like's elements are in registers."""
    raise NotImplementedError


@overload(scratch)
def _scratch(size, like):
    dtype = computed(like.dtype)
    return lambda size, like: np.empty(size, dtype)


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


class Elements:
    """Vectors of an array's elements in memory: LLVM code that loads, stores, widens and rounds."""

    def __init__(self, dtype, count):
        self.half = half(dtype)
        self.size = 2 if self.half else dtype.bitwidth // 8  # bytes, and their alignment
        self.memory = ir.VectorType(ir.IntType(16) if self.half else _LLVM[dtype], count)
        self.registers = Vector(dtype, count).llvm
        self.is_int8 = dtype == types.int8  # of which only whole numbers that it has are stored
        self.suffix = (f"v{count}i{8 * self.size}" if self.half or self.is_int8
                       else Vector(dtype, count).suffix)

    def address(self, builder, data, index):
        """Of the vector that begins at an element."""
        return builder.bitcast(builder.gep(data, [index]), self.memory.as_pointer())

    def beside(self, builder, address, j):
        """The address of vector j from one on."""
        first = builder.bitcast(address, self.memory.as_pointer())
        return builder.gep(first, [ir.Constant(ir.IntType(64), j)])

    def load_splat(self, builder, address):
        """The element in every lane."""
        one = builder.load(builder.bitcast(address, self.memory.element.as_pointer()))
        one.align = self.size
        return self._widened(builder, emit_splat(builder, one, self.memory.count))

    def load(self, builder, address, mask=None):
        """The vector; with a mask its lanes, the others 0, and nothing else is touched."""
        if mask is None:
            value = builder.load(address)
            value.align = self.size
        else:
            align, none = ir.Constant(ir.IntType(32), self.size), ir.Constant(self.memory, None)
            value = self._call(builder, "load", self.memory, [address, align, mask, none])
        return self._widened(builder, value)

    def store(self, builder, value, address, mask=None):
        """The vector; with a mask its lanes. Gives the instruction."""
        value = self._rounded(builder, value)
        if mask is None:
            written = builder.store(value, address)
            written.align = self.size
            return written
        align = ir.Constant(ir.IntType(32), self.size)
        return self._call(builder, "store", ir.VoidType(), [value, address, align, mask])

    def _call(self, builder, what, result, arguments):
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.masked.{what}.{self.suffix}.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    def _widened(self, builder, value):
        """Exact: a bfloat16 is the upper half of a float32."""
        if self.is_int8:
            return builder.sitofp(value, self.registers)
        if self.half is None:
            return value
        if self.half == "float16":
            narrow = ir.VectorType(ir.HalfType(), value.type.count)
            return builder.fpext(builder.bitcast(value, narrow), self.registers)
        wide = ir.VectorType(ir.IntType(32), value.type.count)
        bits = builder.zext(value, wide)
        if self.half == "bfloat16":
            bits = builder.shl(bits, ir.Constant(wide, [16] * wide.count))
        return builder.bitcast(bits, self.registers)

    def _rounded(self, builder, value):
        """To nearest, ties to even. Not by vcvtneps2bf16, which takes subnormals for 0."""
        if self.is_int8:
            return builder.fptosi(value, self.memory)
        if self.half is None:
            return value
        if self.half == "float16":
            narrow = ir.VectorType(ir.HalfType(), value.type.count)
            return builder.bitcast(builder.fptrunc(value, narrow), self.memory)
        wide = ir.VectorType(ir.IntType(32), value.type.count)

        def number(n):
            return ir.Constant(wide, [n] * wide.count)

        bits = builder.bitcast(value, wide)
        if self.half == "bits":
            return builder.trunc(bits, self.memory)
        upper = builder.lshr(bits, number(16))
        odd = builder.and_(upper, number(1))
        nearest = builder.lshr(builder.add(bits, builder.add(odd, number(0x7FFF))), number(16))
        sign = builder.and_(upper, number(0x8000))  # rounding would make a NaN an infinity
        quiet = builder.or_(sign, number(0x7FC0))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, nearest), self.memory)
