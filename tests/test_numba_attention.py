"""The CPU kernel of attention against the reference: block edges, masks, strides, bits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba_agreement import (
    DTYPES,
    KERNELS,
    NARROW,
    OPS,
    agree,
    agree_on,
    run_again_with,
    same_for_all_threads,
)
from op_table import LAYOUTS, lay_out, normal
from op_table import OPS as CALLS

from refsd.numba_ops.cpu.attention import KEYS, PANELS
from refsd.numba_ops.tile import ROWS

attention = KERNELS["attention"]


def qkv(N, L, S, C, D, seed=0):
    return normal((N, L, C), seed), normal((N, S, C), seed + 1), normal((N, S, D), seed + 2)


@given(data=st.data())
@settings(max_examples=50)
def test_any_call(data):
    agree_on("attention", data.draw(CALLS["attention"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, d, e", [(1, 1, 1), (8, 40, 40), (2, 80, 80), (1, 160, 160),
                                         (3, 64, 64), (1, 512, 512), (2, 7, 29), (1, 17, 3)])
def test_head_widths(heads, d, e, dtype):
    agree("attention", qkv(2, 35, 77, heads * d, heads * e), {"heads": heads}, dtype)


@pytest.mark.parametrize("S", [1, ROWS - 1, ROWS, ROWS + 1, 77, KEYS - 1, KEYS, KEYS + 1,
                               2 * KEYS + 5])
def test_any_number_of_keys(S):
    agree("attention", qkv(1, 5, S, 16, 16), {"heads": 2})


@pytest.mark.parametrize("L", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 32 * PANELS - 1, 32 * PANELS,
                               32 * PANELS + 1, 300])
def test_any_number_of_queries(L):
    agree("attention", qkv(2, L, 20, 10, 10), {"heads": 2})


@pytest.mark.parametrize("L", [1, 2, 33, 77, KEYS + 40])
def test_causal(L):
    y = agree("attention", qkv(2, L, L, 24, 24), {"heads": 3, "causal": True})
    v = qkv(2, L, L, 24, 24)[2]
    np.testing.assert_allclose(y[:, 0], v[:, 0], rtol=0)  # the first query sees the first key only


@pytest.mark.parametrize("shape", [
    (2, 3, 40, 290), (1, 3, 40, 290), (2, 1, 40, 290), (2, 3, 1, 290), (2, 3, 40, 1),
    (3, 40, 290), (1, 1, 290), (40, 290), (40, 1), (290,), (1,), ()])
def test_masks_of_every_broadcast_shape(shape):
    args, mask = qkv(2, 40, 290, 12, 12), normal(shape, 7, 3.0)
    hidden = np.asarray(np.where(normal(shape, 8) > 0.3, -math.inf, mask), "float32")
    for m in (mask, hidden):
        agree("attention", args, {"heads": 3, "mask": m})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_and_tokens_anywhere_in_memory(layout):
    args = [lay_out(x, layout) for x in qkv(2, 9, 9, 12, 12)]
    mask = lay_out(normal((2, 3, 9, 9), 7), layout)
    agree("attention", args, {"heads": 3, "mask": mask, "causal": True})


def test_parts_of_one_projection():
    """q, k and v as slices of one array: rows with gaps, and no copies needed."""
    whole = normal((2, 50, 3 * 40), 1)
    agree("attention", np.split(whole, 3, axis=-1), {"heads": 1})


@pytest.mark.parametrize("S", [5, KEYS, KEYS + 3])
def test_a_query_that_sees_nothing_gives_zeros(S):
    mask = np.zeros((4, S), "float32")
    mask[2] = -math.inf
    mask[3, :-1] = -math.inf
    q, k, v = qkv(1, 4, S, 8, 8)
    y = agree("attention", (q, k, v), {"heads": 2, "mask": mask})
    assert not y[0, 2].any()
    np.testing.assert_array_equal(y[0, 3], v[0, -1])


def test_keys_hidden_a_block_at_a_time():
    """The largest score so far is -inf, then comes a visible key; and the other way round."""
    mask = np.zeros((2, 3 * KEYS), "float32")
    mask[0, :2 * KEYS] = mask[1, KEYS:] = -math.inf
    agree("attention", qkv(1, 2, 3 * KEYS, 8, 8), {"heads": 1, "mask": mask})


def test_scores_that_differ_by_hundreds():
    """The largest score rises from block to block: what was summed before vanishes."""
    q, k, v = qkv(1, 3, 3 * KEYS, 4, 4)
    k *= np.linspace(1, 400, 3 * KEYS, dtype="float32")[:, None]
    agree("attention", (q, k, v), {"heads": 1})
    agree("attention", (q, k[:, ::-1], v), {"heads": 1})


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_spoils_what_the_reference_spoils(where, bad):
    args = dict(zip("qkv", qkv(2, 40, KEYS + 9, 12, 12)))
    args[where][1, 33, 5] = bad
    with np.errstate(invalid="ignore"):
        wanted = OPS["attention"].definition(*args.values(), heads=3)
    got = attention(*args.values(), heads=3)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))


def test_the_same_bits_for_any_threads_place_in_the_batch_and_head():
    q, k, v = qkv(3, 300, 290, 3 * 40, 3 * 40)
    mask = normal((3, 1, 300, 290), 5)
    batch = same_for_all_threads("attention", q, k, v, heads=3, mask=mask)
    for n in range(3):
        one = np.s_[n:n + 1]
        alone = attention(q[one], k[one], v[one], heads=3, mask=mask[one])
        np.testing.assert_array_equal(alone[0].view("i4"), batch[n].view("i4"))
        for head in range(3):
            part = np.s_[one, :, 40 * head:40 * (head + 1)]
            alone = attention(q[part], k[part], v[part], heads=1, mask=mask[one])
            np.testing.assert_array_equal(alone[0], batch[n, :, 40 * head:40 * (head + 1)])


def test_a_query_has_the_same_bits_wherever_it_stands():
    q, k, v = qkv(1, 150, 290, 40, 40)
    y = attention(q, k, v, heads=1)
    for i in (0, 31, 32, 149):
        np.testing.assert_array_equal(attention(q[:, i:i + 1], k, v, heads=1)[0, 0], y[0, i])


@pytest.mark.parametrize("width", ["16", "32"])
def test_narrower_machines(width):
    if not NARROW:  # else this is that other run
        run_again_with(width, __file__, "number_of or broadcast_shape")
