"""Numbers in memory and in registers: halves are widened when read, rounded when written."""

from typing import Any

COMPUTED = {"float64": "float64"}  # everything else is computed in float32


def number(gpu: Any, dtype: str) -> Any:
    """The type that a kernel of this dtype computes in."""
    return getattr(gpu, COMPUTED.get(dtype, "float32"))


def reader(gpu: Any, dtype: str) -> Any:
    """read(array, i): the element, as the number that is computed with."""
    kind, uint32, float_of = number(gpu, dtype), gpu.uint32, gpu.float_of

    def read(array, i):
        return kind(array[i])

    def read_bfloat16(array, i):
        return float_of(uint32(array[i]) << uint32(16))

    return gpu.device(read_bfloat16 if dtype == "bfloat16" else read)


def writer(gpu: Any, dtype: str) -> Any:
    """write(array, i, value): the element becomes the value, rounded to nearest, ties to even."""
    uint16, uint32, bits_of = gpu.uint16, gpu.uint32, gpu.bits_of
    kind = getattr(gpu, "uint16" if dtype == "bfloat16" else dtype)

    def write(array, i, value):
        array[i] = kind(value)

    def write_bfloat16(array, i, value):
        bits = bits_of(value)
        rounded = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
        array[i] = uint16(rounded) if value == value else uint16(0x7FFF)

    return gpu.device(write_bfloat16 if dtype == "bfloat16" else write)
