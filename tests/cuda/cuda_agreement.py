"""The ops on a device against the reference, as numba_agreement.py has it for the CPU."""

import numpy as np
from numba_agreement import cast, require_near

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
    """The op on the device: arrays go there, the result comes back, and they are as before.

    images: the order of their axes, or how all arrays lie, one of EVERYWHERE.
    """
    placed = []

    def moved(value):
        if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
            return [moved(v) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        x = (lie(value, images) if isinstance(images, str)
             else to_device(value, images if value.ndim == 4 else None))
        placed.append(x.block)
        return x

    args, options = [moved(a) for a in args], {k: moved(v) for k, v in options.items()}
    before = [_bytes_in(block) for block in placed]
    with registry.use("cuda"):
        y = getattr(F, name)(*args, **options).numpy()
    assert [_bytes_in(block) for block in placed] == before, f"{name} changed an input"
    return y


def _bytes_in(block):
    """What lies around and between an array's elements too."""
    host = np.empty(block.nbytes, np.uint8)
    block.device.download(block, 0, host)
    return host.tobytes()


def agree(name, args, options, dtype="float32", images=CHANNELS_LAST, products="widened"):
    """Run the op as `dtype`, however arrays lie; the result is as numba_agreement.py wants it."""
    args = [cast(a, dtype) for a in args]
    options = {k: cast(v, dtype) for k, v in options.items()}
    y = run(name, args, options, images)
    require_near(y, name, args, options, dtype, products)
    return y
