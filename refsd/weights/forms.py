"""The forms in which a model's weights are held: `weights=` of whatever loads one."""

from collections.abc import Callable

import numpy as np

from refsd.errors import UsageError
from refsd.half import HALVES, as_dtype, is_half
from refsd.leaf import Weight, is_multiplied, seal
from refsd.quantized import W8A8, AsRead, Quantized

FORMS = ("float32", "bfloat16", "float16", "int8", "as-is")
# The smallest of our forms that holds all values of a type in a file.
AS_IS = {"F8_E4M3": "float16", "F8_E5M2": "float16", "F16": "float16", "BF16": "bfloat16",
         "F32": "float32", "I8": "int8"}  # fmt: skip


def check_form(form: str | None, dtype: str | None) -> None:
    """UsageError for a word that is no form, or one whose values `dtype` does not hold."""
    if form is not None and form not in FORMS:
        raise UsageError(f"weights: got {form!r}, expected one of {', '.join(FORMS)}")
    if dtype == "int8" and form not in (None, "int8"):
        raise UsageError(f"weights: {form} is not what dtype int8 multiplies; give int8 or nothing")
    if form in HALVES and is_half(dtype) and form != dtype:
        raise UsageError(f"weights: {form} is not held by {dtype}, in which the model computes; "
                         f"give {dtype}, int8 or as-is")
    if form is not None and dtype is None:
        raise UsageError(f"weights: {form} needs a dtype, as which the weights read")


def meant(form: str | None, dtype: str | None) -> tuple[str | None, str | None]:
    """The form and the dtype; of dtype int8, float32 whose products are of int8 (W8A8)."""
    return ("w8a8", "float32") if dtype == "int8" else (form, dtype)


def read_as(form: str | None, dtype: str | None) -> str | None:
    """The dtype in which to read tensors that will be held so; None: each in its own."""
    return None if form in (*HALVES, "as-is") else dtype


def item_bytes(form: str | None, stored: str, dtype: str) -> int:
    """Bytes of a number of a large tensor once it is held."""
    held = held_form(form, stored)
    return 1 if held == "int8" else min(size_of(held or dtype), size_of(dtype))


def hold(array: np.ndarray | Quantized, name: str, *, form: str | None, stored: str,
         dtype: str | None, later: bool = False, empty: Callable = np.empty) -> Weight:
    """An array, read as `read_as` says or of its file's type, as a leaf that reads as `dtype`.

    Matrices, tables and kernels take the form; vectors (biases, norms) are plain, as is what int8
    cannot stand for. stored: its type in the file. later: what is to be converted is an AsRead;
    else it lies in what empty(shape, dtype) gives.
    """
    held = held_form(form, stored)
    kind = W8A8 if form == "w8a8" and _is_product(array.shape, name) else Quantized
    if isinstance(array, Quantized):
        if held == "int8":
            return kind(array.values, array.scale, dtype or "float32", name)
        array = array.dense()
    if array.ndim >= 2 and held not in (None, "int8") and size_of(held) < size_of(dtype):
        return Quantized(seal(as_dtype(array, held, empty)), None, dtype, name)
    if dtype is None:
        return Weight(seal(array), name)
    leaf = AsRead(seal(array), dtype, name, kind if array.ndim >= 2 and held == "int8" else None)
    is_done = array.ndim < 2 or leaf.kind is None and array.dtype == leaf.dtype
    return leaf if later and not is_done else leaf.made(empty)


def widened(array: np.ndarray, name: str | None) -> Weight:
    """An array of halves as a leaf that reads as float32, with the same numbers.

    Matrices and kernels stay in the memory of halves.
    """
    if array.ndim >= 2:
        return Quantized(array, None, "float32", name)
    return Weight(seal(array.astype(np.float32)), name)


def _is_product(shape, name):
    """Whether a weight is a linear layer's, and no table, or a 1 x 1 kernel that acts like one.

    Not where the number of channels changes: then it is a shortcut, and what it errs is in all that
    follows.
    """
    return is_multiplied(name, shape) and (
        len(shape) == 2 or shape[2:] == (1, 1) and shape[0] == shape[1])


def held_form(form: str | None, stored: str) -> str | None:
    """What a matrix of a type is held as where `form` is asked for; None: as what it reads as."""
    if form == "w8a8":
        return "int8"
    if form == "as-is":
        return AS_IS.get(stored)
    return "int8" if form is None and stored == "I8" else form


def size_of(dtype: str) -> int:
    """Bytes of a number of a dtype."""
    return np.dtype(HALVES.get(dtype, dtype)).itemsize
