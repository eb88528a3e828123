"""The CPU kernel of attention: blocks of keys that are hidden, head widths, masks, places."""

import math

import ml_dtypes
import numpy as np
import pytest
from numba_agreement import DTYPES, KERNELS, agree, same_bits
from op_table import normal

import refsd
from refsd.half import HALVES
from refsd.numba_ops.cpu.attention import KEYS
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.memory import layout_copies

attention = KERNELS["attention"]


def qkv(N, L, S, C, D, seed=0):
    return normal((N, L, C), seed), normal((N, S, C), seed + 1), normal((N, S, D), seed + 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, d, e", [(2, 80, 80), (1, 160, 160), (1, 512, 512)])
def test_the_head_widths_of_stable_diffusion(heads, d, e, dtype):
    agree("attention", qkv(1, 35, 77, heads * d, heads * e), {"heads": heads}, dtype)


def test_the_first_query_sees_the_first_key_only():
    q, k, v = qkv(2, 33, 33, 24, 24)
    y = agree("attention", (q, k, v), {"heads": 3, "causal": True})
    np.testing.assert_array_equal(y[:, 0], v[:, 0])


@pytest.mark.parametrize("shape", [
    (2, 3, 40, 290), (1, 3, 40, 290), (2, 1, 40, 290), (2, 3, 1, 290), (2, 3, 40, 1),
    (3, 40, 290), (1, 1, 290), (40, 290), (40, 1), (290,), (1,), ()])
def test_masks_of_every_broadcast_shape(shape):
    args, mask = qkv(2, 40, 290, 12, 12), normal(shape, 7, 3.0)
    hidden = np.asarray(np.where(normal(shape, 8) > 0.3, -math.inf, mask), "float32")
    for m in (mask, hidden):
        agree("attention", args, {"heads": 3, "mask": m})


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


def test_a_head_has_the_same_bits_alone():
    q, k, v = qkv(2, 150, 290, 3 * 40, 3 * 40)
    mask = normal((2, 1, 150, 290), 5)
    whole = attention(q, k, v, heads=3, mask=mask)
    for head in range(3):
        part = np.s_[:, :, 40 * head:40 * (head + 1)]
        alone = attention(q[part], k[part], v[part], heads=1, mask=mask)
        np.testing.assert_array_equal(alone, whole[part])


def test_a_query_has_the_same_bits_wherever_it_stands():
    q, k, v = qkv(1, 150, 290, 40, 40)
    y = attention(q, k, v, heads=1)
    for i in (0, 31, 32, 149):
        np.testing.assert_array_equal(attention(q[:, i:i + 1], k, v, heads=1)[0, 0], y[0, i])


@pytest.mark.parametrize("start, width", [(0, 17), (1, 17), (1, 18)])
def test_rows_of_bfloat16_may_begin_anywhere(start, width):
    """Queries and keys are read in pairs; those that begin within one are copied, and counted."""
    whole = [np.asarray(x, HALVES["bfloat16"]) for x in qkv(2, 5, 7, width, width)]
    parts = [x[..., start:start + 16] for x in whole]
    before = layout_copies()
    y = attention(*parts, heads=2)
    copies = layout_copies() - before
    same_bits(y, attention(*map(np.copy, parts), heads=2))
    if BFLOAT16 == "dot":
        assert copies == 2


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", (*DTYPES, *HALVES))
@pytest.mark.parametrize("d", [8, 7])
def test_the_lowest_number_hides_a_key_and_no_row(d, dtype, backend):
    """As transformers masks: finfo(dtype).min, which finite scores vanish beside; two are -inf.

    A row of nothing else weighs all of its keys the same, but for float16, whose -65504 leaves
    float32's scores some digits.
    """
    dtype = HALVES.get(dtype, np.dtype(dtype))
    lowest, highest = (float(n) for n in (ml_dtypes.finfo(dtype).min, ml_dtypes.finfo(dtype).max))
    q, k, v = (x.astype(dtype) for x in qkv(2, 40, KEYS + 9, 2 * d, 2 * d))
    mask = np.zeros((40, KEYS + 9))
    mask[0, 3:] = mask[1] = mask[2, 5:] = mask[5, 1:4] = mask[6, :KEYS] = lowest
    mask[2, 7:9] = mask[3] = mask[5, 5] = mask[7, :KEYS] = -np.inf
    mask[7, KEYS:] = lowest
    mask[8, 6] = highest
    infinite = np.where(mask < 0, -np.inf, mask)
    infinite[8] = np.where(np.arange(KEYS + 9) == 6, 0, -np.inf)
    with refsd.use(backend):
        y, expected = (refsd.F.attention(q, k, v, heads=2, mask=m.astype(dtype))
                       for m in (mask, infinite))
        same = refsd.F.attention(0 * q, k, v, heads=2, mask=np.where(
            np.isinf(mask), mask, 0).astype(dtype))
    assert not y[:, 3].any()
    rows = [0, 2, 3, 4, 5, 6, 8, *range(9, 40)]
    if dtype != np.float16:
        same_bits(y[:, [1, 7]], same[:, [1, 7]])
    else:
        rows.remove(8)  # 65504 more than the others is no more than that
    same_bits(y[:, rows], expected[:, rows])
    if backend == "numba":
        agree("attention", (q, k, v), {"heads": 2, "mask": mask.astype(dtype)}, dtype.name)


def test_a_mask_of_halves():
    q, k, v = qkv(1, 5, 9, 8, 8)
    mask = np.where(normal((5, 9), 4) > 1, -math.inf, normal((5, 9), 5)).astype("float32")
    for dtype in HALVES:
        agree("attention", (q, k, v), {"heads": 2, "mask": mask}, dtype)
