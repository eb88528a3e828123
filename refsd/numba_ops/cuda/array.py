"""An array on a device: shape, strides and dtype over memory that Python does not see.

It is strict. Nothing turns it into a NumPy array but `.numpy()`, nothing makes one but `to_device`;
both are counted in `copies`. Its operators are ops of the registry, on "cuda" whatever `use` says;
beside them it has the few of NumPy's methods that refsd/places.py names. Strides count elements.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from refsd.errors import ResourceError
from refsd.leaf import Weight
from refsd.numba_ops.cuda.device import current
from refsd.registry import active_backend, dispatch, use, watch

CHANNELS_LAST = (0, 2, 3, 1)  # axes of (N, C, H, W) from the outermost in memory to the innermost
# Kernels count elements in 32 bits, the last block some beyond the end.
MOST = 2**32 - 2**16
copies = {"to_device": 0, "to_host": 0}


class _ReadOnly:
    """An array's `flags`: what they say of writing cannot be changed."""

    @property
    def writeable(self) -> bool:
        return False

    @writeable.setter
    def writeable(self, value: bool) -> None:
        if value:
            raise ValueError("an array on a device is read-only: make another one")


class DeviceArray:
    """Numbers on a device. Views share a block; nobody writes to an array that others have."""

    on_device = True  # see refsd.places
    flags = _ReadOnly()
    __slots__ = ("shape", "strides", "dtype", "block", "offset", "__weakref__")
    __array_priority__ = 1000
    __array_ufunc__ = None  # NumPy's operators give way to those below

    def __init__(self, shape: tuple, strides: tuple, dtype: np.dtype, block: Any, offset: int = 0):
        self.shape, self.strides, self.dtype, self.block, self.offset = (
            shape, strides, dtype, block, offset)

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of its elements."""
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements from the first to the last in memory, both included."""
        if not self.size:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))

    def is_contiguous(self, order: Sequence[int] | None = None) -> bool:
        """Whether memory has the elements without gaps, axes in this order, the outermost first."""
        return is_contiguous(self.shape, self.strides, order)

    def transpose(self, axes: Sequence[int]) -> "DeviceArray":
        """A view whose axis i is this one's axis axes[i]."""
        return DeviceArray(tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes),
                           self.dtype, self.block, self.offset)

    def reshape(self, *shape: int) -> "DeviceArray":
        """A view of contiguous memory in another shape; ValueError if memory is not contiguous."""
        if not self.is_contiguous() or math.prod(shape) != self.size:
            raise ValueError(f"{self.shape} with strides {self.strides} cannot be seen as {shape}")
        return DeviceArray(tuple(shape), contiguous_strides(shape), self.dtype, self.block,
                           self.offset)

    def part(self, axis: int, start: int, stop: int) -> "DeviceArray":
        """The view x[..., start:stop, ...] along an axis."""
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1:])
        return DeviceArray(shape, self.strides, self.dtype, self.block,
                           self.offset + start * self.strides[axis])

    def numpy(self) -> np.ndarray:
        """A copy on the host, logical order C. It waits for the device."""
        copies["to_host"] += 1
        host = np.empty(self.span, self.dtype)
        self.block.device.download(self.block, self.offset * self.dtype.itemsize, host)
        steps = [s * self.dtype.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(host, self.shape, steps).copy()

    @staticmethod
    def put(host: Any) -> "DeviceArray":
        """Numbers of the host, on the device."""
        return to_device(host)

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        """In another dtype, each number rounded once; from float64 to a half, by way of float32."""
        from refsd.numba_ops.cuda.cast import cast

        return self if np.dtype(dtype) == self.dtype else cast(self, np.dtype(dtype))

    def clip(self, low: float, high: float) -> "DeviceArray":
        """The op clamp."""
        return _op("clamp", self, low=low, high=high)

    def std(self, *, axis: tuple[int, ...], keepdims: bool, ddof: int) -> "DeviceArray":
        """The standard deviation of each image, (N, 1, 1, 1)."""
        from refsd.numba_ops.cuda.deviation import deviation

        if axis != tuple(range(1, self.ndim)) or not keepdims:
            raise TypeError(f"std over axis={axis}, keepdims={keepdims}: an array on a device has "
                            "it over all axes but the first, which are kept")
        return deviation(self, ddof)

    def repeat(self, count: int, axis: int) -> "DeviceArray":
        """Each part along the first axis `count` times."""
        if axis != 0:
            raise TypeError(f"repeat along axis {axis}: on a device it is along axis 0")
        rows = [self[i:i + 1] for i in range(self.shape[0]) for _ in range(count)]
        return self if count == 1 else _op("concat", rows, axis=0)

    def __getitem__(self, index: Any) -> "DeviceArray":
        """x[start:stop] along the first axis, a view."""
        if not isinstance(index, slice) or index.step not in (None, 1):
            raise TypeError(f"an array on a device is cut like x[a:b], not [{index!r}]; other cuts "
                            "are .part(axis, start, stop) and .numpy()")
        start, stop, _ = index.indices(self.shape[0])
        return self.part(0, start, max(start, stop))

    def __iter__(self) -> Any:
        """Its parts along the first axis, as x[0] is of NumPy's, all views."""
        for i in range(len(self)):
            yield DeviceArray(self.shape[1:], self.strides[1:], self.dtype, self.block,
                              self.offset + i * self.strides[0])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        from refsd.numba_ops.cuda.exchange import interface

        return interface(self)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        from refsd.numba_ops.cuda.exchange import capsule

        return capsule(self)  # after all work: any stream may go on with it

    def __dlpack_device__(self) -> tuple[int, int]:
        from refsd.numba_ops.cuda.exchange import where

        return where(self)

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("this array is on the GPU: .numpy() copies it to the host")

    def __bool__(self) -> bool:
        raise TypeError("the truth of an array on the GPU would be a copy to the host; .numpy() "
                        "is one")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype}, on {self.block.device.name})"

    # The other operand is an array or a Python number; on the left it can only be a number.
    def __add__(self, other: Any) -> Any:
        return _op("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return _op("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _op("add", -self, other)

    def __mul__(self, other: Any) -> Any:
        return _op("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return _op("div", self, other)

    def __neg__(self) -> Any:
        return _op("mul", self, -1.0)


def _op(name: str, *arrays: Any, **options: Any) -> Any:
    """An op where its arrays are, whatever backend is in use; like NumPy's, nobody hears of it."""
    if any(type(array) is np.ndarray for array in arrays):
        raise TypeError(f"{name} of an array on the GPU and one of NumPy: to_device(array) of "
                        "refsd.numba_ops.cuda.array copies the latter there")
    with watch(None), nullcontext() if active_backend() == "cuda" else use("cuda"):
        return dispatch(name, arrays, options)


def is_contiguous(shape: Sequence[int], strides: Sequence[int],
                  order: Sequence[int] | None = None) -> bool:
    """Whether elements lie without gaps, axes in this order, the outermost first."""
    wanted = contiguous_strides(shape, order)
    return 0 in shape or all(n == 1 or s == w for n, s, w in zip(shape, strides, wanted))


def contiguous_strides(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Of memory without gaps, axes in this order, the outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def empty(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> DeviceArray:
    """An array of any content, axes in memory in this order, the outermost first.

    ResourceError for more elements than kernels count.
    """
    dtype, shape = np.dtype(dtype), tuple(map(int, shape))
    if math.prod(shape) > MOST:
        raise ResourceError(f"an array {shape} has {math.prod(shape)} elements, kernels of the GPU "
                            f"count to {MOST}: ask for smaller or fewer pictures")
    block = current().allocate(math.prod(shape) * dtype.itemsize)
    return DeviceArray(shape, contiguous_strides(shape, order), dtype, block)


def to_device(value: Any, order: Sequence[int] | None = None) -> Any:
    """A NumPy array, a leaf, or a tree of them, on the device. What is there already stays: an
    array of another library on the GPU is taken as it is (DLPack), without a copy."""
    if isinstance(value, Mapping):
        return {key: to_device(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_device, value))
    if isinstance(value, DeviceArray) or value is None:
        return value
    if isinstance(value, Weight):
        value = value.dense()
    if hasattr(value, "__dlpack_device__") and type(value) is not np.ndarray:
        from refsd.numba_ops.cuda.exchange import from_dlpack, is_foreign

        if is_foreign(value):
            return from_dlpack(value)
    copies["to_device"] += 1
    value = np.asarray(value)
    array = empty(value.shape, value.dtype, order)
    host = value if order is None else value.transpose(order)
    if array.size:
        current().upload(np.ascontiguousarray(host), array.block, 0)
    return array
