"""Memory orders: which one an array has, and copies into another."""

from refsd.numba_ops.cuda.array import DeviceArray


def dense(x: DeviceArray) -> tuple[DeviceArray, tuple[int, ...]]:
    """x without gaps in memory, and the order of its axes there, the outermost first."""
    order = tuple(sorted(range(x.ndim), key=lambda axis: (-x.strides[axis], axis)))
    if not x.is_contiguous(order):
        raise NotImplementedError("a copy into memory without gaps")
    return x, order


def ordered(x: DeviceArray, order: tuple[int, ...]) -> DeviceArray:
    """x in memory without gaps, axes in this order, the outermost first."""
    if not x.is_contiguous(order):
        raise NotImplementedError("a copy into another order")
    return x
