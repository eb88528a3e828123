"""What every kernel of attention is given: arrays, a scale, and the numbers of a call."""

from typing import Any, NamedTuple

from refsd.numba_ops.cuda.numbers import number

WARP = 32


class Call(NamedTuple):
    """The numbers of an attention, as kernels are given them. Steps count elements of memory."""

    masked: bool
    causal: bool
    heads: int
    L: int
    S: int
    d: int
    e: int
    q_image: int
    q_row: int
    k_image: int
    k_row: int
    v_image: int
    v_row: int
    mask_image: int
    mask_head: int
    mask_query: int
    mask_key: int


def signature(gpu: Any, dtype: str) -> tuple:
    """q, k, v, mask, y, the scale of scores, and the numbers of a Call."""
    return (gpu.array(dtype),) * 5 + (number(gpu, dtype),) + (gpu.uint32,) * len(Call._fields)
