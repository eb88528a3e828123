"""SIMD vectors as values in Numba code: load, compute with + - * /, store.

    x = load(a, i)                  # a[i : i + lanes] of a 1-D array: 16 float32 on AVX-512
    store(out, i, fma(x, x, 0.5 * x))

A `Vector` (vector.py) is one LLVM vector, so an operator is one machine instruction. Nothing here
checks bounds or wraps negative indices.
"""

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsd.numba_ops.vector import (
    WIDTH,
    Elements,
    Vector,
    emit_splat,
    first_lanes,
    lanes,
    same_size,
    scratch,
    splat,
    splat_like,
)
from refsd.numba_ops.wide import wide_vector

__all__ = ["Vector", "WIDTH", "absolute", "bitcast", "copysign", "emit_splat", "fma",
           "lane_indices", "lanes", "libm_erf", "libm_exp", "libm_exp2", "libm_tanh", "load",
           "load_pair", "load_wide", "masked_load", "masked_store", "maximum", "minimum",
           "pointer", "prefetch", "prefetch_line", "reduce_add", "reduce_max", "rint", "scratch",
           "select", "splat", "splat_like", "sqrt", "store", "store_rounded", "to_integer",
           "to_real"]


@intrinsic
def pointer(typing, a, i):
    """The address of a[i], which loads and stores take like an array that begins there.

    For helpers called in a loop: with an array they would count references, which costs more than
    the work of a short row. So it does not keep the array alive: use the array after the helper.
    """

    def emit(context, builder, signature, arguments):
        return builder.gep(_data(context, builder, a, arguments[0]), [arguments[1]])

    return types.CPointer(a.dtype)(a, types.intp), emit


def _data(context, builder, kind, value):
    """The address that an array begins at, or a pointer is."""
    if isinstance(kind, types.CPointer):
        return value
    return context.make_array(kind)(context, builder, value).data


def elements_at(context, builder, kind, value, index, vector):
    """How a vector of an array lies in memory, and the address of the one that begins at index."""
    elements = Elements(kind.dtype, vector.count)
    return elements, elements.address(builder, _data(context, builder, kind, value), index)


@intrinsic
def load(typing, a, i):
    """a[i : i + lanes], for a 1-D array whose elements are adjacent."""
    return _load(a, Vector(a.dtype))


@intrinsic
def load_pair(typing, a, i):
    """a[i : i + 2 lanes] as one value, of which every operator makes two instructions."""
    return _load(a, Vector(a.dtype, 2 * Vector(a.dtype).count))


def _load(a, vector):
    def emit(context, builder, signature, arguments):
        elements, address = elements_at(context, builder, signature.args[0], *arguments, vector)
        return elements.load(builder, address)

    return vector(a, types.intp), emit


@intrinsic
def load_wide(typing, a, i):
    """A pair of vectors of float64 (of halves: float32) from the values at a[i :]."""
    vector = wide_vector(a)
    narrow = Vector(a.dtype, vector.count)

    def emit(context, builder, signature, arguments):
        elements, address = elements_at(context, builder, signature.args[0], *arguments, narrow)
        value = elements.load(builder, address)
        return builder.fpext(value, vector.llvm) if a.dtype == types.float32 else value

    return vector(a, types.intp), emit


@intrinsic
def store_rounded(typing, a, i, x):
    """a[i : i + lanes] = x, rounded to a's dtype"""
    narrow = Vector(a.dtype, x.count)

    def emit(context, builder, signature, arguments):
        array, index, value = arguments
        if a.dtype != x.dtype:
            value = builder.fptrunc(value, narrow.llvm)
        elements, address = elements_at(context, builder, signature.args[0], array, index, narrow)
        elements.store(builder, value, address)
        return context.get_dummy_value()

    return types.void(a, types.intp, x), emit


@intrinsic
def store(typing, a, i, x):
    """a[i : i + lanes] = x"""

    def emit(context, builder, signature, arguments):
        array, index, value = arguments
        elements, address = elements_at(context, builder, signature.args[0], array, index, x)
        elements.store(builder, value, address)
        return context.get_dummy_value()

    return types.void(a, types.intp, x), emit


@intrinsic
def prefetch(typing, a, i):
    """Prefetch the cache line of a[i]. No harm if there is no such element."""

    def emit(context, builder, signature, arguments):
        data = _data(context, builder, signature.args[0], arguments[0])
        prefetch_line(builder, builder.gep(data, [arguments[1]]), level=1)
        return context.get_dummy_value()

    return types.void(a, types.intp), emit


def prefetch_line(builder, address, level):
    """LLVM code that prefetches the cache line of an address into the cache of a level (1 to 3)."""
    number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, locality, of_data = (ir.Constant(number, n) for n in (0, 4 - level, 1))
    builder.call(function, [builder.bitcast(address, byte), to_read, locality, of_data])


@intrinsic
def masked_load(typing, a, i, n):
    """The first n lanes from a[i : i + n], the others 0. Nothing beyond is touched."""
    vector = Vector(a.dtype)

    def emit(context, builder, signature, arguments):
        array, index, count = arguments
        elements, address = elements_at(context, builder, signature.args[0], array, index, vector)
        return elements.load(builder, address, first_lanes(builder, count, vector.count))

    return vector(a, types.intp, types.intp), emit


@intrinsic
def masked_store(typing, a, i, x, n):
    """a[i : i + n] = the first n lanes of x. Nothing beyond is touched."""

    def emit(context, builder, signature, arguments):
        array, index, value, count = arguments
        elements, address = elements_at(context, builder, signature.args[0], array, index, x)
        elements.store(builder, value, address, first_lanes(builder, count, x.count))
        return context.get_dummy_value()

    return types.void(a, types.intp, x, types.intp), emit


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
rint = _function("rint", 1, "The nearest integer, halves to even")
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


libm_exp, libm_exp2, libm_tanh, libm_erf = map(_by_lane, ("exp", "exp2", "tanh", "erf"))


@intrinsic
def lane_indices(typing, x):
    """0, 1, 2 and so on in the lanes of a vector like x."""

    def emit(context, builder, signature, arguments):
        return ir.Constant(x.llvm, [float(i) for i in range(x.count)])

    return x(x), emit


@intrinsic
def select(typing, condition, x, y):
    """x where the condition holds, y elsewhere."""

    def emit(context, builder, signature, arguments):
        return builder.select(*arguments)

    return x(condition, x, x), emit


def _conversion(name, instruction, doc):
    """Floating-point lanes as integers of the same size, or the other way round."""

    def convert(typing, x):
        result = Vector(same_size(x.dtype), x.count)

        def emit(context, builder, signature, arguments):
            return getattr(builder, instruction)(arguments[0], result.llvm)

        return result(x), emit

    convert.__name__, convert.__doc__ = name, doc
    return intrinsic(convert)


bitcast = _conversion("bitcast", "bitcast", "The bits of floats as integers, or back.")
to_integer = _conversion("to_integer", "fptosi", "Floats, whole already and in range, as integers.")
to_real = _conversion("to_real", "sitofp", "Integers as floats, rounded to nearest.")


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


reduce_add = _reduction("reduce_add", "The sum of all lanes", lambda b, x, y: b.fadd(x, y))
reduce_max = _reduction("reduce_max", "The largest lane; NaN if any is", _larger)
