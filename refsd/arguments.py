"""The door: what callers hand in as numbers and arrays becomes Python's numbers and NumPy's arrays.

Callers have NumPy scalars of every width, arrays without dimensions, torch's tensors, lists. What
they mean is plain, so it is converted, here and nowhere else; what is no number, or no array of
the right kind, is refused under the argument's name. NumPy is imported only where arrays are:
`refsd --help` must not load it.
"""

import difflib
import numbers
import operator
from collections.abc import Collection, Iterable
from typing import Any

from refsd.errors import UsageError
from refsd.places import is_on_device

FLOATS = ("bfloat16", "float16", "float32", "float64")
ARITHMETICS = (*FLOATS, "int8")  # what a model can compute in; int8: float32 with products of int8
# How NumPy can read another library's array. One without them is a backend's own, and stays.
READABLE = ("__array__", "__array_interface__", "__buffer__", "__dlpack__")
# torch's types that NumPy lacks; float32 holds every value of theirs.
NARROW = ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e4m3fnuz", "torch.float8_e5m2",
          "torch.float8_e5m2fnuz")


def as_number(value: Any) -> int | float | None:
    """One real number as Python's int or float; None for a bool, a text and all that is not one.

    NumPy's scalars, and arrays and tensors without dimensions, are numbers; so are fractions and
    decimals. An array of one element with dimensions is none.
    """
    if tuple(getattr(value, "shape", ())) or hasattr(value, "filled"):  # masked: not even a zero
        return None
    try:
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, (bool, str, bytes)):
            return None
        if hasattr(value, "__index__"):
            return operator.index(value)
        if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
            return None
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def as_integer(value: Any) -> int | None:
    """The same of a whole number; 20.0 is 20, as from sliders and JSON, 20.5 is None."""
    number = as_number(value)
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number


def is_array(value: Any) -> bool:
    """Whether this is an array or a tensor of at least one dimension, of any library."""
    return bool(tuple(getattr(value, "shape", ()))) and hasattr(value, "dtype")


def as_array(name: str, value: Any, dtype: Any = None) -> Any:
    """Real numbers as a NumPy array of `dtype`; None leaves integers and FLOATS as such.

    Takes arrays in any order of bytes and axes, tensors of torch (detached, on the CPU) and of all
    that NumPy can read, and lists. What already is the array that is wanted is returned itself, and
    so is what has the dtype and keeps its numbers where NumPy cannot read them. What lies on a
    device stays there.
    Raises UsageError, which begins with `name`.
    """
    import numpy as np

    from refsd.half import HALVES, is_half, to_half

    if is_on_device(value):
        return value if dtype is None else value.astype(HALVES.get(str(dtype), dtype), copy=False)
    right = str(getattr(value, "dtype", "")) in ([str(dtype)] if dtype else FLOATS)
    if right and (type(value) is np.ndarray or not any(hasattr(value, way) for way in READABLE)):
        return value
    try:
        array = np.asarray(_readable(name, value))
    except UsageError:
        raise
    except Exception as error:  # of any library, for its own reasons
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{name}: a {type(value).__name__} cannot be read as an array of numbers "
                         f"({reason}); give a NumPy array") from None
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise UsageError(f"{name} holds {array.dtype.name} (a {type(value).__name__} of shape "
                         f"{array.shape}); give an array of numbers")
    own = dtype_name(getattr(value, "dtype", array.dtype))  # torch's bfloat16 came as float32
    if dtype is None:
        whole, native = array.dtype.kind in "iu", array.dtype.newbyteorder("=")
        dtype = native if whole else own if own in FLOATS else "float32"
    if is_half(dtype) and own != str(dtype):
        return to_half(array, dtype)  # what is too large is infinite, and said by require_finite
    with np.errstate(over="ignore"):
        return array.astype(HALVES.get(str(dtype), dtype), copy=False)


def _readable(name, value):
    """`value` as NumPy can read it: what torch keeps for gradients or in types of its own."""
    if isinstance(value, (list, tuple)):
        return [_readable(name, item) if hasattr(item, "shape") else item for item in value]
    if hasattr(value, "mask") and hasattr(value, "filled"):  # NumPy would drop the mask
        raise UsageError(f"{name} is a masked array; give numbers for all of it")
    if hasattr(value, "detach"):
        value = value.detach()
    return value.float() if str(getattr(value, "dtype", "")) in NARROW else value


def shown(value: Any, most: int = 60) -> str:
    """repr(value) in one line of at most `most` characters, for messages."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of more digits than Python prints, a tensor without numbers
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most - 3]}..."


def nearest(word: Any, known: Iterable[str], otherwise: str = "") -> str:
    """"did you mean X?", of the known word that is nearest; what else to say where none is near."""
    close = difflib.get_close_matches(str(word), known, 1)
    return f"did you mean {close[0]}?" if close else otherwise


def refuse_unknown(function: str, names: Iterable[Any], known: Collection[str],
                   kind: str = "argument") -> None:
    """Raise UsageError for the first name that is not known, with the nearest that is."""
    for name in names:
        if name not in known:
            hint = nearest(name, known, f"it takes {', '.join(known)}")
            raise UsageError(f"{function} has no {kind} {name!r}; {hint}")


def dtype_name(value: Any) -> str:
    """The name of a dtype, whoever's it is: "float32", numpy.float32, torch.float32, ..."""
    known = getattr(value, "name", getattr(value, "__name__", value))
    return str(known).removeprefix("torch.")
