"""Where arrays lie: NumPy's on the host, a backend's own beside them, perhaps on a device.

Code between the networks is written once, with what both kinds have: + - * / with arrays of one
shape and with Python's numbers, x[a:b], `shape`, `ndim`, `dtype`, and of NumPy's methods `astype`,
`clip`, `std` and `repeat`. What only the host can do takes `on_host`, and puts back with `beside`.
An array on a device has `on_device = True`, `numpy()`, which copies it to the host, and `put(x)`,
which copies an array of the host to its side. It is read-only, and NumPy cannot read it.
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
