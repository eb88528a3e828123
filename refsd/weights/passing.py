"""What a weight takes in memory while it is streamed, as reader.py and forms.py make it."""

from refsd.weights.forms import held_form, read_as, size_of
from refsd.weights.header import BLOCKS, BYTES

OWN = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16", "I8": "int8"}
LATER = ("F16", "F32", "BF16")  # stay what they are until they are laid out


def passing_bytes(count: int, stored: str, form: str | None, dtype: str) -> tuple[list, list]:
    """The bytes of arrays that are made one of the other: as it is read, then as it is used.

    The last of the first list waits to be used. Of a weight of so many numbers, stored as a type,
    that reads as dtype and is held in a form. Blocks of GGUF are about a byte a number.
    """
    kind = stored.removesuffix("_SCALED")
    reads, there = [count * (1 if kind in BLOCKS else BYTES[kind])], OWN.get(kind)
    if there is None:
        reads, there = [*reads, 4 * count], "float32"
    wanted, held, made = read_as(form, dtype), held_form(form, stored), []
    if kind not in LATER and there != "int8" and wanted not in (None, there):
        reads, there = [*reads, size_of(wanted) * count], wanted
    if held not in (None, "int8") and size_of(held) < size_of(dtype):
        reads += [size_of(held) * count] * (there != held)
    elif there != "int8":
        made = [size_of(dtype) * count] * (there != dtype) + [count] * (held == "int8")
    return reads, made
