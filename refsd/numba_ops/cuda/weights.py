"""Weights on the device: uploaded once, in the order in which kernels read them."""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.leaf import Weight
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, to_device


class DeviceWeight(Weight):
    """A leaf whose array lies on the device; ops are given that array."""

    on_device = True  # see refsd.places
    __slots__ = ()

    def _hold(self, array: DeviceArray) -> DeviceArray:
        return array

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def dense(self) -> DeviceArray:
        """The array on the device."""
        return self._array

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return self._array.numpy()

    @property
    def prepared_bytes(self) -> int:
        """Nothing is kept beside it."""
        return 0


def place_all(tensors: dict[str, Any]) -> None:
    """Upload a checkpoint's tensors in place, one after the other, as the dense arrays they are.

    A kernel (O, I, kh, kw) lies there as rows (O, kh, kw, I). UsageError for weights whose ops
    round what they meet: there are no such products here.
    """
    for name, weight in tensors.items():
        if hasattr(weight, "meet"):
            raise UsageError(f"{name} is to be multiplied int8 by int8, which backend 'cuda' does "
                             "not do: take another dtype, or another backend")
        order = CHANNELS_LAST if len(weight.shape) == 4 else None
        tensors[name] = DeviceWeight(to_device(weight, order), weight.name)
