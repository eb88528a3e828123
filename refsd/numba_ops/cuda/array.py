"""An array on a device: shape, strides and dtype over memory that Python does not see.

It is strict. Nothing turns it into a NumPy array but `.numpy()`, nothing makes one but `to_device`;
both are counted in `copies`. Its operators are ops of the registry. Strides count elements.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refsd.leaf import Weight
from refsd.numba_ops.cuda.device import current
from refsd.registry import dispatch

CHANNELS_LAST = (0, 2, 3, 1)  # axes of (N, C, H, W) from the outermost in memory to the innermost
copies = {"to_device": 0, "to_host": 0}


class DeviceArray:
    """Numbers on a device. Views share a block; nobody writes to an array that others have."""

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
        step = 1
        for axis in reversed(range(self.ndim) if order is None else order):
            if self.size and self.shape[axis] != 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

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

    def __getitem__(self, index: Any) -> "DeviceArray":
        """x[start:stop] along the first axis, a view."""
        if not isinstance(index, slice) or index.step not in (None, 1):
            raise TypeError(f"an array on a device is cut like x[a:b], not [{index!r}]; other cuts "
                            "are .part(axis, start, stop) and .numpy()")
        start, stop, _ = index.indices(self.shape[0])
        return self.part(0, start, max(start, stop))

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("this array is on the GPU: .numpy() copies it to the host")

    def __bool__(self) -> bool:
        raise TypeError("the truth of an array on the GPU would be a copy to the host; .numpy() "
                        "is one")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype}, on {self.block.device.name})"

    def __add__(self, other: Any) -> Any:
        return dispatch("add", (self, other), {})

    def __radd__(self, other: Any) -> Any:
        return dispatch("add", (other, self), {})

    def __sub__(self, other: Any) -> Any:
        return dispatch("sub", (self, other), {})

    def __rsub__(self, other: Any) -> Any:
        return dispatch("sub", (other, self), {})

    def __mul__(self, other: Any) -> Any:
        return dispatch("mul", (self, other), {})

    def __rmul__(self, other: Any) -> Any:
        return dispatch("mul", (other, self), {})

    def __truediv__(self, other: Any) -> Any:
        return dispatch("div", (self, other), {})

    def __rtruediv__(self, other: Any) -> Any:
        return dispatch("div", (other, self), {})

    def __neg__(self) -> Any:
        return dispatch("mul", (self, -1.0), {})


def contiguous_strides(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Of memory without gaps, axes in this order, the outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def empty(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> DeviceArray:
    """An array of any content, axes in memory in this order, the outermost first."""
    dtype, shape = np.dtype(dtype), tuple(map(int, shape))
    block = current().allocate(math.prod(shape) * dtype.itemsize)
    return DeviceArray(shape, contiguous_strides(shape, order), dtype, block)


def to_device(value: Any, order: Sequence[int] | None = None) -> Any:
    """A NumPy array, a leaf, or a tree of them, on the device. What is there already stays."""
    if isinstance(value, Mapping):
        return {key: to_device(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_device, value))
    if isinstance(value, DeviceArray) or value is None:
        return value
    if isinstance(value, Weight):
        value = value.dense()
    copies["to_device"] += 1
    value = np.asarray(value)
    array = empty(value.shape, value.dtype, order)
    host = value if order is None else value.transpose(order)
    if array.size:
        current().upload(np.ascontiguousarray(host), array.block, 0)
    return array
