"""Linear layers on the CPU: fused ones have the bits of their ops, few rows have those of many."""

import pytest
from agreement_checks import leaf_of
from numba_agreement import masked, same_bits
from op_table import normal

from refsd import functional as F
from refsd.half import HALVES, to_float32, to_half
from refsd.numba_ops.cpu import blocked, few
from refsd.numba_ops.tile import FEW, ROWS
from refsd.numba_ops.weights import pack_all
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


@pytest.mark.parametrize("form", ["own", "int8", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_have_the_same_bits_however_many_there_are(dtype, form, monkeypatch):
    """More products than a block of a chain, and than DEEP rows; a last panel that is not whole."""
    monkeypatch.setattr(few, "PART", 2**10)  # so that threads share even these
    x, bias, addend = (normal(shape, i).astype(HALVES.get(dtype, dtype)) for i, shape in enumerate([
        (2 * ROWS, 805), (74,), (2 * ROWS, 74)]))
    weight, wide = (normal((n, 805), n).astype(x.dtype) for n in (74, 148))
    biases = normal((148,), 4).astype(x.dtype)
    if form != "own":
        weight, wide = (leaf_of(w, form, dtype) for w in (weight, wide))
        tensors = {"a.weight": weight, "b.weight": wide}
        pack_all(tensors)
        weight, wide = tensors.values()

    def layers(M):
        with use("numba"):
            return (F.linear(x[:M], weight, bias), F.linear(x[:M], weight),
                    F.linear_add(x[:M], weight, addend[:M], bias),
                    F.linear_geglu(x[:M], wide, biases))

    whole = layers(len(x))
    for M in (*range(1, FEW + 2), ROWS):
        with masked(1 + M % 2):
            for y, all_rows in zip(layers(M), whole):
                same_bits(y, all_rows[:M], f"{M} rows")


def test_few_rows_are_multiplied_as_few(monkeypatch):
    """No tile, which would have the same bits, and take twice as long."""
    seen, real = [], few.multiply_few
    monkeypatch.setattr(blocked, "multiply_few", lambda *args: seen.append(1) or real(*args))
    with use("numba"):
        for M in range(1, FEW + 3):
            F.linear(normal((M, 5), 1), normal((3, 5), 2))
    assert len(seen) == FEW
