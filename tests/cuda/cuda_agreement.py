"""The ops on a device against the reference, as numba_agreement.py has it for the CPU."""

import agreement_bounds
import numpy as np
from bounds import assert_within
from numba_agreement import OPS, cast, truth_of

from refsd import functional as F
from refsd import registry
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, to_device

DTYPES = ("float32", "float64", "float16", "bfloat16")
VIEWS = ("transposed", "part")
EVERYWHERE = (*VIEWS, "apart", "behind")


def lie(value, how):
    """On the device as a view: with its axes the other way round, or a part of a larger array.

    apart: every other element along all axes; behind: without gaps, behind one element.
    """
    if how == "transposed":
        axes = tuple(range(value.ndim))[::-1]
        return to_device(value.transpose(axes)).transpose(axes)
    if how == "behind":
        x = to_device(np.append(value.flat[-1:], value))
        return x[len(x) - value.size:].reshape(*value.shape)
    if how == "apart":
        for axis in range(value.ndim):
            value = value.repeat(2, axis)
        x = to_device(value)
        return DeviceArray(tuple(n // 2 for n in x.shape), tuple(2 * s for s in x.strides), x.dtype,
                           x.block)
    larger = np.full([n + 3 for n in value.shape], value.flat[-1] if value.size else 0, value.dtype)
    larger[tuple(np.s_[1:n + 1] for n in value.shape)] = value
    x = to_device(larger)
    for axis, n in enumerate(value.shape):
        x = x.part(axis, 1, n + 1)
    return x


def run(name, args, options, images=CHANNELS_LAST):
    """The op on the device: arrays go there, the result comes back.

    images: the order of their axes, or how all arrays lie, one of EVERYWHERE.
    """
    def moved(value):
        if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
            return [moved(v) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        if isinstance(images, str):
            return lie(value, images)
        return to_device(value, images if value.ndim == 4 else None)

    with registry.use("cuda"):
        return getattr(F, name)(*map(moved, args), **{k: moved(v) for k, v in
                                                      options.items()}).numpy()


def agree(name, args, options, dtype="float32", images=CHANNELS_LAST, products="widened"):
    """Within the bound of the reference in float64; shape and dtype are what the contract says.

    products: how halves are multiplied, as in agreement_bounds.of_dtype.
    """
    args = [cast(a, dtype) for a in args]
    options = {k: cast(v, dtype) for k, v in options.items()}
    inferred = OPS[name].contract(*args, **options)
    y = run(name, args, options, images)
    assert (y.shape, str(y.dtype)) == (inferred.shape, inferred.dtype), name
    truth, wide = truth_of(name, args, options)
    bound = agreement_bounds.of_dtype(name, *wide, truth, dtype, products)
    if dtype == "float64":  # then the truth errs too
        bound = bound * 2
    shapes = [getattr(a, "shape", a) for a in args]
    assert_within(y, truth, bound, f"{name} {dtype} {shapes} {options}")
    return y
