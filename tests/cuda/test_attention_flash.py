"""Attention of halves on tensor cores, in lockstep."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from cuda_agreement import agree, run
from numba_agreement import cast, same_bits
from op_table import normal
from test_attention import qkv, spoils

from refsd.numba_ops.cuda import attention, device, layout, meaning
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.plan import AMPERE, Choice


@contextmanager
def forced(constants, turing=False):
    """Inside, attention takes this variant, which may be too small to be worth launching."""
    def choice(*_):
        flash = attention.attention_flash_turing if turing else attention.attention_flash
        return Choice(flash, constants, "a test's")

    with mock.patch.object(attention, "choose_attention", choice):
        yield


SMALL = [  # constants; heads, L, S, d, e, causal
    (("float16", 40, False, 1, 1, 16), (2, 20, 37, 40, 40, False)),
    (("bfloat16", 40, False, 2, 1, 16), (1, 35, 35, 24, 40, True)),
    (("float16", 64, False, 1, 2, 32), (1, 40, 40, 64, 56, True)),
    (("bfloat16", 80, False, 1, 1, 32), (1, 16, 32, 80, 80, False)),
    (("float16", 160, False, 1, 1, 16), (1, 9, 20, 160, 160, False)),
    (("bfloat16", 256, False, 1, 1, 16), (1, 17, 1, 256, 248, False)),
]


def attend(constants, sizes, turing=False, N=1):
    """Within the bound, and every ldmatrix reads 8 rows from all banks."""
    heads, L, S, d, e, causal = sizes
    with forced(constants, turing), mock.patch.dict(meaning.tally, ldmatrix=0, conflicts=0):
        agree("attention", qkv(N, L, S, heads * d, heads * e),
              {"heads": heads, "causal": causal}, constants[0], products="matrix")
        assert meaning.tally["ldmatrix"] and not meaning.tally["conflicts"]


@pytest.mark.parametrize("constants, sizes", SMALL, ids=str)
def test_ragged_tiles(constants, sizes, order):
    attend(constants, sizes)


@pytest.mark.parametrize("i", [0, 2])
def test_ragged_tiles_on_turing(i, order):
    attend(*SMALL[i], turing=True)


@pytest.mark.parametrize("dtype, d, masked", [("float16", 40, False), ("bfloat16", 64, False),
                                              ("float16", 160, False), ("bfloat16", 64, True)])
def test_variants_that_are_launched(dtype, d, masked):
    """A block whose last queries and keys are not there."""
    device.current().capability = AMPERE
    keys = attention.choose_attention(d, d, dtype, masked, AMPERE).constants[5]
    options = {"mask": normal((19, keys + 5), 4, 2.0)} if masked else {}
    agree("attention", qkv(1, 19, keys + 5, d, d), {"heads": 1} | options, dtype,
          products="matrix")


@pytest.mark.parametrize("shape", [(2, 2, 5, 37), (2, 1, 5, 1), (5, 37), (37,), ()])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masks(shape, dtype):
    args, mask = qkv(2, 5, 37, 16, 16), normal(shape, 7, 3.0)
    hidden = np.asarray(np.where(normal(shape, 8) > 0.3, -math.inf, mask), "float32")
    with forced((dtype, 16, True, 1, 1, 32)):
        agree("attention", args, {"heads": 2, "mask": hidden if len(shape) % 2 else mask}, dtype,
              products="matrix")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hidden_keys_and_the_lowest_number(dtype):
    """A query that sees nothing gives 0; one that sees nothing but the lowest, the mean."""
    q, k, v = (cast(x, dtype) for x in qkv(1, 6, 40, 8, 8))
    lowest = float(np.finfo(np.float16).min if dtype == "float16" else -3.38e38)
    mask = np.zeros((6, 40), "float32")
    mask[0, 3:], mask[1] = lowest, lowest
    mask[2], mask[3, :-1], mask[4, 1:], mask[5, :20] = (-math.inf,) * 4
    with forced((dtype, 8, True, 1, 1, 16)):
        y = agree("attention", (q, k, v), {"heads": 1, "mask": cast(mask, dtype)}, dtype,
                  products="matrix")
    assert not y[0, 2].any() and y[0, 1].all()
    np.testing.assert_array_equal(y[0, 3:5], v[0, [-1, 0]])


def test_the_same_values_everywhere_are_the_result():
    """Weights are rounded, and so is their sum: the mean of equal values is their value."""
    q, k, _ = qkv(1, 16, 40, 8, 8)
    v = np.broadcast_to(cast(normal((8,), 3), "float16"), (1, 40, 8))
    with forced(("float16", 8, False, 1, 1, 16)):
        y = run("attention", [cast(q, "float16"), cast(k, "float16"), v], {"heads": 1})
    same_bits(y, np.ascontiguousarray(v[:, :16]))


@pytest.mark.parametrize("L, S, options", [(3, 19, {}), (7, 7, {"causal": True}),
                                           (3, 19, {"mask": True})], ids=str)
def test_what_is_not_a_number_spoils_what_it_spoils_in_the_reference(L, S, options):
    with forced(("bfloat16", 8, "mask" in options, 1, 1, 16)):
        spoils(L, S, 8, options, "bfloat16")


def test_an_image_a_head_and_a_query_have_the_same_bits_alone():
    q, k, v = (cast(x, "float16") for x in qkv(2, 18, 20, 16, 16))
    with forced(("float16", 8, False, 1, 1, 16)):
        whole = run("attention", (q, k, v), {"heads": 2})
        for n, head, row in [(0, 1, 17), (1, 0, 3)]:
            part, columns = slice(n, n + 1), slice(8 * head, 8 * head + 8)
            args = q[part, row:row + 1, columns], k[part, :, columns], v[part, :, columns]
            same_bits(run("attention", args, {"heads": 1}), whole[part, row:row + 1, columns])


@pytest.mark.parametrize("start, width, copies", [(0, 32, 0), (8, 32, 0), (4, 32, 1), (0, 20, 1)])
def test_rows_begin_at_whole_vectors_or_are_copied(start, width, copies):
    whole = cast(normal((1, 3, width), 1), "float16")
    q, k, v = (to_device(whole).part(2, start, start + 8) for _ in range(3))
    y = attention.empty((1, 3, 8), "float16")
    before = layout.copied["arrays"]
    attention.run(Choice(attention.attention_flash, ("float16", 8, False, 1, 1, 16), ""), q, k, v,
                  None, y, heads=1, causal=False)
    assert layout.copied["arrays"] - before == 3 * copies
    part = np.ascontiguousarray(whole[..., start:start + 8])
    with forced(("float16", 8, False, 1, 1, 16)):
        same_bits(y.numpy(), run("attention", [part] * 3, {"heads": 1}))
