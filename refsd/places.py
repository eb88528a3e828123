"""Where arrays lie: NumPy's on the host, a backend's own beside them, perhaps on a device.

Code between networks is written once, with what both have: + - * / with arrays of one shape and
Python's numbers, x[a:b], `shape`, `ndim`, `dtype`, of NumPy's methods `astype`, `clip`, `std` and
`repeat`. What only the host can do takes `on_host`, and puts back with `beside`.
An array on a device has `on_device = True`, `numpy()`, which copies it to the host, and `put(x)`,
which copies an array of the host to its side. It is read-only, and NumPy cannot read it. Ops refuse
what is `misplaced`; ids and times they take from the host, where they are made, and from a device.
"""

from typing import Any


def is_on_device(value: Any) -> bool:
    """Whether a value is an array that NumPy cannot reach."""
    return getattr(value, "on_device", False) is True


def on_host(array: Any) -> Any:
    """NumPy's array of an array; of one on a device a copy, for which the device is waited for."""
    return array.numpy() if is_on_device(array) else array


def beside(array: Any, host: Any) -> Any:
    """An array of the host where `array` lies."""
    return array.put(host) if is_on_device(array) else host


def misplaced(array: Any, device: str) -> str:
    """Why a backend of this device cannot read an array, and what to do; empty if it can."""
    if device == "cpu" and is_on_device(array):
        return "lies on a device, wanted on the host: copy it by .numpy()"
    if device == "cuda" and not is_on_device(array) and array.shape:  # else it is a number
        return "lies on the host, wanted on the GPU: take refsd.numba_ops.cuda.array.to_device"
    return ""
