"""What both generators accept: seeds, shapes and dtypes, checked at the door."""

import math

import numpy as np

from refsd.arguments import as_number, dtype_name, shown
from refsd.errors import UsageError
from refsd.half import is_half, to_half

DTYPES = ("float32", "float64", "float16", "bfloat16")


def check_seed(seed):
    """The seed in 0 .. 2^64 - 1; a negative one counts from 2^64 down, as in torch."""
    number = as_int(seed)
    if number is None:
        raise UsageError(f"seed: got {shown(seed)}, a {type(seed).__name__}; give an int")
    if not -(2**63) <= number < 2**64:
        raise UsageError(f"seed: got {number}; give an int from -2**63 to 2**64 - 1")
    return number % 2**64


def check_shape_and_dtype(name, shape, dtype):
    """The sizes and the dtype; the dtype may follow the shape, as in randn((2, 3), "float64")."""
    if len(shape) > 1 and (isinstance(shape[-1], (str, type, np.dtype))
                           or str(shape[-1]).startswith("torch.")):
        if dtype != "float32":
            raise UsageError(f"{name}: got two dtypes, {shape[-1]!r} and {dtype!r}; give one")
        *shape, dtype = shape
    return check_shape(name, shape), check_dtype(name, dtype)


def check_shape(name, shape):
    """A tuple of sizes, from one tuple, one list or the sizes themselves."""
    if len(shape) == 0:
        raise UsageError(f"{name}: got no shape; give the sizes, or () for a single number")
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = shape[0]
    sizes = tuple(as_int(size) for size in shape)
    if any(size is None or size < 0 for size in sizes):
        raise UsageError(f"{name}: got the shape {tuple(shape)!r}; give ints of 0 or more")
    if math.prod(sizes) >= 2**60:
        raise UsageError(f"{name}: got the shape {sizes}; give one that fits into memory")
    return sizes


def check_dtype(name, dtype):
    """One of the names in DTYPES, from the name or NumPy's or torch's dtype of that name."""
    known = dtype_name(dtype)
    if known not in DTYPES:
        raise UsageError(f"{name}: got the dtype {dtype!r}; give one of {', '.join(DTYPES)}")
    return known


def as_int(value):
    """The value as an int; None for a bool, and for floats, which hold no 64 bits of a seed."""
    number = as_number(value)
    return number if isinstance(number, int) else None


def to_dtype(x, dtype):
    """x rounded to the dtype, ties to even."""
    return to_half(x, dtype) if is_half(dtype) else x.astype(dtype)
