"""What contracts are made of: shapes without data, checks with one voice, and the foretold result.

A contract is a function with its op's signature. It reads only `.shape` and `.dtype`, so that a
`Spec` can stand in for an array and a whole model can be planned without weights.
"""

import math
import numbers
from typing import Any, NamedTuple

from refsd.errors import UsageError

FLOATS = ("float32", "float64")
INTEGERS = {f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (1, 2, 4, 8)}
BYTES = {  # an element, by the dtype's name
    "bool": 1, **INTEGERS, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1),
    "complex64": 8, "complex128": 16}


class Spec(NamedTuple):
    """The shape and dtype of an array that need not exist."""

    shape: tuple[int, ...]
    dtype: str


class Output(NamedTuple):
    """What an op will give: shape, dtype, and its cost in FLOPs (multiply and add count as two).

    `bytes` is the least traffic possible: every input read once and the output written once.
    """

    shape: tuple[int, ...]
    dtype: str
    flops: int
    bytes: int


def output(shape: tuple[int, ...], dtype: str, *, flops: int, reads: tuple[Any, ...]) -> Output:
    """An Output whose bytes are counted from the arrays read and the array written."""
    read = sum(math.prod(a.shape) * itemsize(a.dtype) for a in reads if a is not None)
    shape = tuple(int(n) for n in shape)
    return Output(shape, str(dtype), int(flops), read + math.prod(shape) * itemsize(dtype))


def itemsize(dtype: Any) -> int:
    """Bytes an element ("int64" -> 8). UsageError for a dtype without a known, whole number."""
    size = BYTES.get(str(dtype))
    if size is None:
        raise UsageError(f"dtype {dtype} has no known number of bytes; known are: "
                         f"{', '.join(BYTES)}")
    return size


def need(condition: bool, op: str, message: str) -> None:
    """Raise the one error of all backends, `op: message`, unless the condition holds."""
    if not condition:
        raise UsageError(f"{op}: {message}")


def floats(op: str, **arrays: Any) -> str:
    """The common dtype of the arrays: float32 or float64, the same for all."""
    for name, array in arrays.items():
        _need_array(op, name, array)
        need(str(array.dtype) in FLOATS, op,
             f"{name} has dtype {array.dtype}, wanted {' or '.join(FLOATS)}: convert it first")
    dtypes = {str(array.dtype) for array in arrays.values()}
    need(len(dtypes) == 1, op, "one dtype for all, got "
         + ", ".join(f"{name} {array.dtype}" for name, array in arrays.items()))
    return dtypes.pop()


def given(**optional: Any) -> dict[str, Any]:
    """Those of the optional arrays that are there."""
    return {name: array for name, array in optional.items() if array is not None}


def integers(op: str, name: str, array: Any) -> None:
    """Require an array of a signed or unsigned integer dtype."""
    _need_array(op, name, array)
    need(str(array.dtype) in INTEGERS, op, f"{name} has dtype {array.dtype}, wanted integers")


def dims(op: str, name: str, array: Any, letters: str) -> tuple[int, ...]:
    """The shape of an array that must have one dimension a letter ("N C H W")."""
    _need_array(op, name, array)
    wanted = letters.split()
    need(len(array.shape) == len(wanted), op,
         f"{name} has shape {tuple(array.shape)}, wanted ({', '.join(wanted)})")
    return tuple(array.shape)


def positive(op: str, **options: Any) -> None:
    """Require Python (or NumPy) integers of at least 1."""
    for name, value in options.items():
        need(is_int(value) and value >= 1, op, f"{name} is {value!r}, wanted an integer >= 1")


def positive_eps(op: str, eps: Any) -> None:
    """Require a finite eps > 0: without it a constant row divides by zero."""
    need(is_number(eps) and 0 < eps < math.inf, op,
         f"eps is {eps!r}, wanted a finite Python number > 0")


def flag(op: str, **options: Any) -> None:
    """Require True or False: any other value would be a guess at what was meant."""
    for name, value in options.items():
        need(isinstance(value, bool), op, f"{name} is {value!r}, wanted True or False")


def vector(op: str, name: str, array: Any, length: int, of: str) -> None:
    """Require a one-dimensional array of the given length (or None)."""
    need(array is None or tuple(array.shape) == (length,), op,
         f"{name} has shape {None if array is None else tuple(array.shape)}, "
         f"wanted ({length},): one value for each {of}")


def is_int(value: Any) -> bool:
    """Whether a value is an integer (Python's or NumPy's) and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is Python's int or float. NumPy's float64 would widen float32 arrays."""
    return type(value) in (int, float)


def broadcast(op: str, a: Any, b: Any) -> tuple[int, ...]:
    """The shape two arrays broadcast to under NumPy's rules."""
    shape = []
    for i in range(max(len(a.shape), len(b.shape)), 0, -1):
        m = a.shape[-i] if i <= len(a.shape) else 1
        n = b.shape[-i] if i <= len(b.shape) else 1
        need(m == n or m == 1 or n == 1, op,
             f"shapes {tuple(a.shape)} and {tuple(b.shape)} do not broadcast: {m} against {n}")
        shape.append(n if m == 1 else m)
    return tuple(shape)


def _need_array(op: str, name: str, array: Any) -> None:
    need(hasattr(array, "shape") and hasattr(array, "dtype"), op,
         f"{name} has type {type(array).__name__}, wanted an array")
    if hasattr(array, "filled") or hasattr(array, "getA1"):  # NumPy's own, of no concern to a port
        raise UsageError(f"{op}: {name} is a {type(array).__name__}, wanted a plain array: "
                         "np.asarray drops what is more")
