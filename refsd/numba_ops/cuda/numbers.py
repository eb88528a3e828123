"""Numbers in memory and in registers: halves are widened when read, rounded when written."""

from typing import Any


def computed(dtype: str) -> str:
    """What a kernel of this dtype computes in."""
    return "float64" if dtype == "float64" else "float32"


def number(gpu: Any, dtype: str) -> Any:
    """The same, as a type."""
    return getattr(gpu, computed(dtype))


def widener(gpu: Any, dtype: str) -> Any:
    """widen(element): what memory holds, as the number that is computed with."""
    kind, uint32, float_of = number(gpu, dtype), gpu.uint32, gpu.float_of

    def widen(element):
        return kind(element)

    def widen_bfloat16(element):
        return float_of(uint32(element) << uint32(16))

    return gpu.device(widen_bfloat16 if dtype == "bfloat16" else widen)


def narrower(gpu: Any, dtype: str) -> Any:
    """narrow(value): what memory holds of a number, rounded to nearest, ties to even."""
    uint16, uint32, bits_of = gpu.uint16, gpu.uint32, gpu.bits_of
    kind = getattr(gpu, "uint16" if dtype == "bfloat16" else dtype)

    def narrow(value):
        return kind(value)

    def narrow_bfloat16(value):
        bits = bits_of(value)
        rounded = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
        return uint16(rounded) if value == value else uint16(0x7FFF)

    return gpu.device(narrow_bfloat16 if dtype == "bfloat16" else narrow)


def reader(gpu: Any, dtype: str) -> Any:
    """read(array, i): the element, as the number that is computed with."""
    widen = widener(gpu, dtype)

    def read(array, i):
        return widen(array[i])

    return gpu.device(read)


def writer(gpu: Any, dtype: str) -> Any:
    """write(array, i, value): the element becomes the value, rounded to nearest, ties to even."""
    narrow = narrower(gpu, dtype)

    def write(array, i, value):
        array[i] = narrow(value)

    return gpu.device(write)
