"""A SIMD vector as a Numba value: load it, compute with + - * /, store it.

    x = load(a, i)                  # a[i : i + lanes] of a 1-D array: 16 float32 on AVX-512
    store(out, i, fma(x, x, 0.5 * x))

A `Vector` is one LLVM vector, so an operator is one machine instruction. float32 arrays give
vectors of WIDTH / 4 lanes, float64 arrays of WIDTH / 8. The width belongs to the machine: 64 bytes
with AVX-512, 32 with AVX2, 16 otherwise (NEON, SSE); REFSD_SIMD_BYTES forces another, which LLVM
then makes of what there is. Nothing here checks bounds or wraps negative indices.
"""

import operator
import os

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_jitable, register_model


def _width():
    forced = os.environ.get("REFSD_SIMD_BYTES")
    if forced is None:
        features = llvm.get_host_cpu_features()
        return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    if forced not in ("16", "32", "64"):
        raise ImportError(f"REFSD_SIMD_BYTES is {forced!r}; give 16, 32 or 64")
    return int(forced)


WIDTH = _width()
_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
         types.int32: ir.IntType(32), types.int64: ir.IntType(64), types.boolean: ir.IntType(1)}
_SAME_SIZE = {types.float32: types.int32, types.float64: types.int64,
              types.int32: types.float32, types.int64: types.float64}


class Vector(types.Type):
    """`count` numbers of one dtype side by side; of booleans, as the result of a comparison."""

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


@register_jitable
def lanes(a):
    """Elements of an array (or, in Python, a dtype) in one vector."""
    return WIDTH // a.itemsize


# ---- between memory and vectors


def _pointer(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.llvm.as_pointer())


@intrinsic
def load(typing, a, i):
    """a[i : i + lanes], for a 1-D array whose elements are adjacent."""
    vector = Vector(a.dtype)

    def emit(context, builder, signature, arguments):
        value = builder.load(_pointer(context, builder, signature.args[0], *arguments, vector))
        value.align = a.dtype.bitwidth // 8
        return value

    return vector(a, types.intp), emit


@intrinsic
def store(typing, a, i, x):
    """a[i : i + lanes] = x"""

    def emit(context, builder, signature, arguments):
        array, index, value = arguments
        place = builder.store(value, _pointer(context, builder, signature.args[0], array, index, x))
        place.align = a.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(a, types.intp, x), emit


@intrinsic
def load_first(typing, a, i, n):
    """The first n lanes from a[i : i + n], the others 0. Nothing beyond is touched."""
    vector = Vector(a.dtype)

    def emit(context, builder, signature, arguments):
        array, index, count = arguments
        place = _pointer(context, builder, signature.args[0], array, index, vector)
        mask = _first(builder, count, vector.count)
        name = f"llvm.masked.load.{vector.suffix}.p0"
        kind = ir.FunctionType(vector.llvm, [place.type, ir.IntType(32), mask.type, vector.llvm])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        align = ir.Constant(ir.IntType(32), a.dtype.bitwidth // 8)
        return builder.call(function, [place, align, mask, ir.Constant(vector.llvm, None)])

    return vector(a, types.intp, types.intp), emit


@intrinsic
def store_first(typing, a, i, x, n):
    """a[i : i + n] = the first n lanes of x. Nothing beyond is touched."""

    def emit(context, builder, signature, arguments):
        array, index, value, count = arguments
        place = _pointer(context, builder, signature.args[0], array, index, x)
        mask = _first(builder, count, x.count)
        name = f"llvm.masked.store.{x.suffix}.p0"
        kind = ir.FunctionType(ir.VoidType(), [x.llvm, place.type, ir.IntType(32), mask.type])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        align = ir.Constant(ir.IntType(32), a.dtype.bitwidth // 8)
        builder.call(function, [value, place, align, mask])
        return context.get_dummy_value()

    return types.void(a, types.intp, x, types.intp), emit


def _first(builder, count, of):
    """The mask whose lanes 0 .. count - 1 are true."""
    kind = ir.VectorType(ir.IntType(64), of)
    return builder.icmp_signed("<", ir.Constant(kind, list(range(of))), spread(builder, count, of))


def spread(builder, scalar, count):
    """LLVM code for a vector with the scalar in every lane."""
    kind = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar,
                                 ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(one, one, zeros)


@intrinsic
def splat(typing, value):
    """The same number in every lane."""
    vector = Vector(value)

    def emit(context, builder, signature, arguments):
        return spread(builder, arguments[0], vector.count)

    return vector(value), emit


@intrinsic
def splat_like(typing, x, number):
    """The number, rounded to x's dtype, in every lane of a vector like x."""

    def emit(context, builder, signature, arguments):
        scalar = context.cast(builder, arguments[1], signature.args[1], x.dtype)
        return spread(builder, scalar, x.count)

    return x(x, number), emit


# ---- operators


def _operator(function, instruction, result=None):
    """x op y for two vectors, or a vector and a number, which is rounded to the vector's dtype."""

    @intrinsic
    def lane_wise(typing, x, y):
        def emit(context, builder, signature, arguments):
            return instruction(builder, *arguments)

        return (x if result is None else Vector(result, x.count))(x, x), emit

    @overload(function, inline="always")
    def choose(x, y):
        if isinstance(x, Vector) and x == y:
            return lambda x, y: lane_wise(x, y)
        if isinstance(x, Vector) and isinstance(y, types.Number):
            return lambda x, y: lane_wise(x, splat_like(x, y))
        if isinstance(y, Vector) and isinstance(x, types.Number):
            return lambda x, y: lane_wise(splat_like(y, x), y)


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


@overload(operator.neg, inline="always")
def _negate(x):
    if isinstance(x, Vector):
        return lambda x: _lane_wise_negate(x)


@intrinsic
def _lane_wise_negate(typing, x):
    return x(x), lambda context, builder, signature, arguments: builder.fneg(arguments[0])


# ---- functions, lane by lane


def _function(name, arity, doc):
    """LLVM's intrinsic of that name on vectors of one type."""

    def emit(context, builder, signature, arguments):
        vector = signature.return_type
        kind = ir.FunctionType(vector.llvm, [vector.llvm] * arity)
        full = f"llvm.{name}.{vector.suffix}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), arguments)

    def one(typing, x):
        return (x(x), emit) if isinstance(x, Vector) else None

    def two(typing, x, y):
        return (x(x, y), emit) if isinstance(x, Vector) and x == y else None

    def three(typing, x, y, z):
        return (x(x, y, z), emit) if isinstance(x, Vector) and x == y == z else None

    function = {1: one, 2: two, 3: three}[arity]
    function.__name__, function.__doc__ = name, doc
    return intrinsic(function)


fma = _function("fma", 3, "x y + z, rounded once")
sqrt = _function("sqrt", 1, "The square root")
absolute = _function("fabs", 1, "|x|")
nearest = _function("rint", 1, "The nearest integer, halves to even")
minimum = _function("minimum", 2, "The smaller; NaN if either is")
maximum = _function("maximum", 2, "The larger; NaN if either is")
copysign = _function("copysign", 2, "|x| with the sign of y")


def _by_lane(name):
    """The C library's function of that name, one float64 lane after the other."""

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType()])
        call = cgutils.get_or_insert_function(builder.module, kind, name)
        result = arguments[0]
        for lane in range(signature.return_type.count):
            index = ir.Constant(ir.IntType(32), lane)
            value = builder.call(call, [builder.extract_element(arguments[0], index)])
            result = builder.insert_element(result, value, index)
        return result

    def function(typing, x):
        return (x(x), emit) if isinstance(x, Vector) and x.dtype == types.float64 else None

    function.__name__ = "libm_" + name
    return intrinsic(function)


libm_exp, libm_tanh, libm_erf = _by_lane("exp"), _by_lane("tanh"), _by_lane("erf")


@intrinsic
def select(typing, condition, x, y):
    """x where the condition holds, y elsewhere."""

    def emit(context, builder, signature, arguments):
        return builder.select(*arguments)

    return x(condition, x, x), emit


@intrinsic
def bits(typing, x):
    """The bits of floating-point lanes as integers, or the other way round."""
    result = Vector(_SAME_SIZE[x.dtype], x.count)

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], result.llvm)

    return result(x), emit


@intrinsic
def to_integer(typing, x):
    """Floating-point lanes, whole already and in range, as integers of the same size."""
    result = Vector(_SAME_SIZE[x.dtype], x.count)

    def emit(context, builder, signature, arguments):
        return builder.fptosi(arguments[0], result.llvm)

    return result(x), emit


def _reduction(name, doc, combine):
    """Fold the upper half onto the lower until one lane is left: a fixed order."""

    def reduce(typing, x):
        def emit(context, builder, signature, arguments):
            value, count = arguments[0], x.count
            while count > 1:
                count //= 2
                halves = [ir.Constant(ir.VectorType(ir.IntType(32), count), indices)
                          for indices in ([*range(count)], [*range(count, 2 * count)])]
                low, high = (builder.shuffle_vector(value, value, half) for half in halves)
                value = combine(builder, low, high)
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return x.dtype(x), emit

    reduce.__name__, reduce.__doc__ = name, doc
    return intrinsic(reduce)


def _larger(builder, x, y):
    bigger = builder.select(builder.fcmp_ordered(">", x, y), x, y)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, bigger)


total = _reduction("total", "The sum of all lanes", lambda b, x, y: b.fadd(x, y))
largest = _reduction("largest", "The largest lane; NaN if any is", _larger)
