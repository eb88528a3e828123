"""Maps and pairs, broadcast: one kernel a formula and dtype.

A thread computes sixteen bytes of the result where all arrays have as many side by side, else one
element.
"""

import functools
import math
from typing import Any

import numpy as np

from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, contiguous_strides, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.formulas import MAPS, PAIRS, formulas
from refsd.numba_ops.cuda.layout import order_by
from refsd.numba_ops.cuda.numbers import narrower, number, widener
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.strides import from_element, merged, walker, walks

THREADS = 256
DTYPES = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}  # and elements in 16 bytes


def _at_once(gpu, name, dtype):
    """one(a, b, p, q) -> y of an element each, and many of sixteen bytes of them."""
    f, widen, narrow = formulas(gpu, dtype)[name], widener(gpu, dtype), narrower(gpu, dtype)

    def one(a, b, p, q):
        return narrow(f(widen(a), widen(b), p, q))

    one = gpu.device(one)

    def two(a, b, p, q):
        return one(a[0], b[0], p, q), one(a[1], b[1], p, q)

    two = gpu.device(two)

    def four(a, b, p, q):
        return two(a[:2], b[:2], p, q) + two(a[2:], b[2:], p, q)

    four = gpu.device(four)

    def eight(a, b, p, q):
        return four(a[:4], b[:4], p, q) + four(a[4:], b[4:], p, q)

    return one, {2: two, 4: four, 8: gpu.device(eight)}[DTYPES[dtype]]


@factory(each=[(name, dtype) for name in (*MAPS, *PAIRS) for dtype in DTYPES])
def pointwise_kernel(gpu: Any, name: str, dtype: str) -> Plan:
    """y = f(a, b, p, q) over four axes; `wide`: the last one is counted in sixteen bytes."""
    cuda, uint32, place = gpu.cuda, gpu.uint32, walker(gpu)
    load4, store4 = gpu.load4, gpu.store4
    one, many = _at_once(gpu, name, dtype)

    def pointwise(y, a, b, wide, count, n1, n2, n3, y0, y1, y2, y3, a0, a1, a2, a3,
                  b0, b1, b2, b3, p, q):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            i0, i1, i2, i3 = place(i, n1, n2, n3)
            at_y = uint32(i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3)
            at_a = uint32(i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3)
            at_b = uint32(i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3)
            if wide:
                store4(y, at_y, many(load4(a, at_a), load4(b, at_b), p, q))
            else:
                y[at_y] = one(a[at_a], b[at_b], p, q)

    array, kind = gpu.array(dtype), number(gpu, dtype)
    return Plan(pointwise, (array, array, array, *(gpu.uint32,) * 17, kind, kind), THREADS)


def mapped(name: str, x: DeviceArray, p: float = 0.0, q: float = 0.0) -> DeviceArray:
    """f(x, p, q) of each element, where x is in memory order."""
    return paired(name, x, x, p, q)


def paired(name: str, a: DeviceArray, b: DeviceArray, p: float = 0.0,
           q: float = 0.0) -> DeviceArray:
    """f(a, b, p, q) of each pair of elements, broadcast."""
    shape, order, wide, launches = _walked(str(a.dtype), *(
        (x.shape, x.strides, x.offset % 8) for x in (a, b)))
    y = empty(shape, a.dtype, order)
    for (to, *starts), count, sizes, steps in launches:
        launch(pointwise_kernel, (name, str(a.dtype)), (-(-count // THREADS),),
               from_element(y, to), *map(from_element, (a, b), starts), wide, count, *sizes,
               *steps, p, q)
    return y


@functools.lru_cache(4096)
def _walked(dtype, *arrays):
    """The result's shape and order, whether sixteen bytes are taken at once, and the launches."""
    shape = np.broadcast_shapes(*(shape for shape, _, _ in arrays))
    order = _order_of_result(shape, arrays)
    strides = [contiguous_strides(shape, order), *(
        _broadcast(shape, of, steps) for of, steps, _ in arrays)]
    axes, at_once = merged(shape, *strides), DTYPES[dtype]
    everything = [offset for *_, offset in arrays] + [n for axis in axes[:-1] for n in axis[1:]]
    wide = bool(axes) and axes[-1][1:] == [1] * len(strides) and (
        math.gcd(at_once, axes[-1][0], *everything) == at_once)
    if wide:
        axes[-1] = [axes[-1][0] // at_once, *[at_once] * len(strides)]
    return shape, order, wide, [*walks(axes, len(strides))] if math.prod(shape) else []


def _broadcast(shape, of, strides):
    """Steps of an array that is broadcast to a shape: 0 along axes that it has not."""
    missing = len(shape) - len(of)
    return (0,) * missing + tuple(
        0 if m == 1 != n else s for n, m, s in zip(shape[missing:], of, strides))


def _order_of_result(shape, arrays):
    """That of an array of the same shape; for images, channels last if one of them has it so."""
    orders = [order_by(of, strides) for of, strides, _ in arrays if of == shape]
    if len(shape) == 4 and (not orders or CHANNELS_LAST in orders):
        return CHANNELS_LAST
    return orders[0] if orders else tuple(range(len(shape)))
