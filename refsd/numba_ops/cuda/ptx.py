"""PTX instructions that Numba does not emit by itself, as intrinsics. Their meaning: meaning.py."""

import math

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

I16, I32, I64 = (ir.IntType(n) for n in (16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
SHARED, GLOBAL = 3, 1


def _element(context, builder, kind, array, index):
    """A pointer to array[index] of a one-dimensional contiguous array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [builder.zext(index, I64)])


def _shared_address(context, builder, kind, array, index):
    """The 32-bit address of array[index] within shared memory.

    In 32 bits, so that the constants of many indices become offsets of one address.
    """
    data = context.make_array(kind)(context, builder, array).data
    inside = builder.addrspacecast(data, ir.PointerType(data.type.pointee, SHARED))
    size = ir.Constant(I32, kind.dtype.bitwidth // 8)
    return builder.add(builder.ptrtoint(inside, I32), builder.mul(index, size))


def _asm(builder, result, text, constraints, operands, effects=False):
    kind = ir.FunctionType(result, [v.type for v in operands])
    return builder.asm(kind, text, constraints, operands, effects)


@intrinsic
def load4(typingctx, array, index):
    """Sixteen bytes of neighbours in one load.   index a multiple of 16 / itemsize"""
    count = 16 // (array.dtype.bitwidth // 8)

    def emit(context, builder, signature, arguments):
        place = _element(context, builder, array, *arguments)
        words = builder.load(builder.bitcast(place, WORDS.as_pointer()), align=16)
        return context.make_tuple(builder, signature.return_type,
                                  _taken_apart(builder, words, place.type.pointee, count))
    return types.UniTuple(array.dtype, count)(array, types.uint32), emit


# Sixteen bytes go as four words: a vector of halves would go 8 bytes at a time.
WORDS = ir.VectorType(I32, 4)


def _taken_apart(builder, words, kind, count):
    """The elements of four words, from the lowest bits on."""
    if count <= 4:
        vector = builder.bitcast(words, ir.VectorType(kind, count))
        return [builder.extract_element(vector, ir.Constant(I32, i)) for i in range(count)]
    bits, elements = 128 // count, []
    for i in range(count):
        word = builder.extract_element(words, ir.Constant(I32, i * bits // 32))
        part = builder.lshr(word, ir.Constant(I32, i * bits % 32))
        elements.append(builder.bitcast(builder.trunc(part, ir.IntType(bits)), kind))
    return elements


def _put_together(builder, elements):
    """Four words of elements, the first in the lowest bits."""
    count, words = len(elements), ir.Constant(WORDS, ir.Undefined)
    if count <= 4:
        vector = ir.Constant(ir.VectorType(elements[0].type, count), ir.Undefined)
        for i, element in enumerate(elements):
            vector = builder.insert_element(vector, element, ir.Constant(I32, i))
        return builder.bitcast(vector, WORDS)
    bits, per = 128 // count, count // 4
    for w in range(4):
        word = ir.Constant(I32, 0)
        for i in range(per):
            part = builder.bitcast(elements[w * per + i], ir.IntType(bits))
            part = builder.shl(builder.zext(part, I32), ir.Constant(I32, i * bits))
            word = builder.or_(word, part)
        words = builder.insert_element(words, word, ir.Constant(I32, w))
    return words


@intrinsic
def store4(typingctx, array, index, values):
    """Sixteen bytes of neighbours in one store."""
    count = 16 // (array.dtype.bitwidth // 8)

    def emit(context, builder, signature, arguments):
        place = _element(context, builder, array, *arguments[:2])
        elements = [builder.extract_value(arguments[2], i) for i in range(count)]
        builder.store(_put_together(builder, elements), builder.bitcast(
            place, WORDS.as_pointer()), align=16)
        return context.get_dummy_value()
    return types.void(array, types.uint32, types.UniTuple(array.dtype, count)), emit


@intrinsic
def store_pair(typingctx, array, index, pair):
    """Two neighbouring halves, packed, in one store.   index even"""
    def emit(context, builder, signature, arguments):
        place = _element(context, builder, array, *arguments[:2])
        builder.store(arguments[2], builder.bitcast(place, I32.as_pointer()), align=4)
        return context.get_dummy_value()
    return types.void(array, types.uint32, types.uint32), emit


@intrinsic
def store_pairs(typingctx, array, index, low, high):
    """Four neighbouring halves, two of them packed in each word, in one store.   index % 4 = 0"""
    def emit(context, builder, signature, arguments):
        place = _element(context, builder, array, *arguments[:2])
        vector = ir.VectorType(I32, 2)
        value = ir.Constant(vector, ir.Undefined)
        for i, word in enumerate(arguments[2:]):
            value = builder.insert_element(value, word, ir.Constant(I32, i))
        builder.store(value, builder.bitcast(place, vector.as_pointer()), align=8)
        return context.get_dummy_value()
    return types.void(array, types.uint32, types.uint32, types.uint32), emit


@intrinsic
def bits_of(typingctx, x):
    """The bits of a float32, as uint32."""
    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], I32)
    return types.uint32(types.float32), emit


@intrinsic
def float_of(typingctx, bits):
    """The float32 of these bits."""
    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], F32)
    return types.float32(types.uint32), emit


@intrinsic
def pack_f16(typingctx, low, high):
    """Two float32 as float16 in one register, rounded to nearest, ties to even."""
    def emit(context, builder, signature, arguments):
        halves = [_asm(builder, I16, "cvt.rn.f16.f32 $0, $1;", "=h,f", [v]) for v in arguments]
        low, high = (builder.zext(h, I32) for h in halves)
        return builder.or_(low, builder.shl(high, ir.Constant(I32, 16)))
    return types.uint32(types.float32, types.float32), emit


@intrinsic
def pack_f16_ampere(typingctx, low, high):
    """The same in one instruction. Ampere and later."""
    def emit(context, builder, signature, arguments):
        low, high = arguments
        return _asm(builder, I32, "cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f", [high, low])
    return types.uint32(types.float32, types.float32), emit


@intrinsic
def pack_bf16(typingctx, low, high):
    """Two float32 as bfloat16 in one register. Ampere and later."""
    def emit(context, builder, signature, arguments):
        low, high = arguments
        return _asm(builder, I32, "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f", [high, low])
    return types.uint32(types.float32, types.float32), emit


@intrinsic
def exp2(typingctx, x):
    """2^x of the special-function unit: 2 ulp, 0 for tiny results.   float32"""
    def emit(context, builder, signature, arguments):
        return _asm(builder, F32, "ex2.approx.ftz.f32 $0, $1;", "=f,f", arguments)
    return types.float32(types.float32), emit


@intrinsic
def larger(typingctx, a, b):
    """The larger number; of a number and a NaN, the number.   float32"""
    def emit(context, builder, signature, arguments):
        return _asm(builder, F32, "max.f32 $0, $1, $2;", "=f,f,f", arguments)
    return types.float32(types.float32, types.float32), emit


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c, rounded once."""
    def emit(context, builder, signature, arguments):
        return builder.fma(*arguments)
    return c(c, c, c), emit


@intrinsic
def copy16(typingctx, to, to_index, source, index, wanted):
    """cp.async of 16 bytes into shared memory; unless `wanted`, zeros, and nothing is read."""
    def emit(context, builder, signature, arguments):
        to_array, to_at, from_array, from_at, wanted = arguments
        place = _shared_address(context, builder, to, to_array, to_at)
        origin = _element(context, builder, source, from_array, from_at)
        origin = builder.addrspacecast(origin, ir.PointerType(origin.type.pointee, GLOBAL))
        size = builder.select(wanted, ir.Constant(I32, 16), ir.Constant(I32, 0))
        _asm(builder, ir.VoidType(), "cp.async.cg.shared.global [$0], [$1], 16, $2;",
             "r,l,r,~{memory}", [place, builder.ptrtoint(origin, I64), size], True)
        return context.get_dummy_value()
    return types.void(to, types.uint32, source, types.uint32, types.boolean), emit


@intrinsic
def copy16_turing(typingctx, to, to_index, source, index, wanted):
    """The same through registers: they have arrived."""
    def emit(context, builder, signature, arguments):
        to_array, to_at, from_array, from_at, wanted = arguments
        vector = ir.VectorType(I32, 4)
        place = _element(context, builder, to, to_array, to_at)
        place = builder.addrspacecast(place, ir.PointerType(place.type.pointee, SHARED))
        origin = _element(context, builder, source, from_array, from_at)
        before = builder.block
        with builder.if_then(wanted):
            value = builder.load(builder.bitcast(origin, vector.as_pointer()), align=16)
            inside = builder.block
        either = builder.phi(vector)
        either.add_incoming(value, inside)
        either.add_incoming(ir.Constant(vector, [0] * 4), before)
        builder.store(either, builder.bitcast(place, ir.PointerType(vector, SHARED)), align=16)
        return context.get_dummy_value()
    return types.void(to, types.uint32, source, types.uint32, types.boolean), emit


def _plain(text):
    @intrinsic
    def instruction(typingctx):
        def emit(context, builder, signature, arguments):
            _asm(builder, ir.VoidType(), text, "~{memory}", [], True)
            return context.get_dummy_value()
        return types.void(), emit
    return instruction


commit = _plain("cp.async.commit_group;")
wait0, wait1, wait2 = (_plain(f"cp.async.wait_group {n};") for n in range(3))
nothing = _plain("")

exp, tanh, erf, sin, cos, sqrt = (math.exp, math.tanh, math.erf, math.sin, math.cos, math.sqrt)
