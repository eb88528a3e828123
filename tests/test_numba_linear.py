"""Linear layers on the CPU: what is fused with them has the bits of its ops one by one."""

import pytest
from numba_agreement import same_bits
from op_table import normal

from refsd import functional as F
from refsd.half import HALVES, to_float32, to_half
from refsd.registry import use


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_of_fused_layers_have_the_bits_of_their_ops(dtype):
    """Of halves: those of float32's results, rounded once. (bfloat16 may be summed in pairs.)"""
    x, weight, bias, addend, wide, biases = (a.astype(HALVES.get(dtype, dtype)) for a in (
        normal((47, 320), 1), normal((100, 320), 2), normal((100,), 3), normal((47, 100), 4),
        normal((200, 320), 5), normal((200,), 6)))
    with use("numba"):
        added, gated = F.linear_add(x, weight, addend, bias), F.linear_geglu(x, wide, biases)
        sums = F.linear(*map(to_float32, (x, weight, bias)))
        for y, one_by_one in ((added, F.add(sums, to_float32(addend))),
                              (gated, F.geglu(F.linear(*map(to_float32, (x, wide, biases)))))):
            same_bits(y, one_by_one if dtype == "float32" else to_half(one_by_one, dtype))
