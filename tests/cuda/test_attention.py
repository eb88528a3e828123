"""Attention in lockstep: the plain kernel."""

import math

import ml_dtypes
import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from numba_agreement import cast, same_bits, truth_of
from op_table import normal

from refsd import functional as F
from refsd import registry
from refsd.numba_ops.cuda import layout
from refsd.numba_ops.cuda.array import to_device


def qkv(N, L, S, C, D, seed=0):
    return normal((N, L, C), seed), normal((N, S, C), seed + 1), normal((N, S, D), seed + 2)


WIDTHS = [(2, 5, 33, 3, 7), (1, 1, 1, 1, 1), (1, 4, 32, 2, 65), (2, 6, 31, 5, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_width_and_any_number_of_keys(dtype, order):
    for heads, L, S, d, e in WIDTHS:
        agree("attention", qkv(2, L, S, heads * d, heads * e), {"heads": heads}, dtype)
    agree("attention", qkv(0, 2, 3, 4, 4), {"heads": 2}, dtype)


MASKS = [(2, 3, 5, 37), (1, 3, 5, 37), (2, 1, 5, 37), (2, 3, 1, 37), (2, 3, 5, 1), (3, 5, 37),
         (1, 1, 37), (5, 37), (5, 1), (37,), (1,), ()]


@pytest.mark.parametrize("shape", MASKS)
def test_masks_of_every_broadcast_shape(shape):
    args, mask = qkv(2, 5, 37, 6, 6), normal(shape, 7, 3.0)
    hidden = np.asarray(np.where(normal(shape, 8) > 0.3, -math.inf, mask), "float32")
    for m in (mask, hidden):
        agree("attention", args, {"heads": 3, "mask": m})


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_begin_in_the_middle_of_sixteen_bytes(dtype):
    """Without gaps between them: memory that begins behind two elements of another array."""
    x = cast(normal((2 + 5 * 16,), 1), dtype)
    inside = to_device(x)[2:].reshape(1, 5, 16)
    with registry.use("cuda"):
        y = F.attention(inside, inside, inside, heads=2).numpy()
    same_bits(y, run("attention", [x[2:].reshape(1, 5, 16)] * 3, {"heads": 2}))


def test_the_first_query_sees_the_first_key_only(order):
    q, k, v = qkv(1, 35, 35, 4, 4)
    y = agree("attention", (q, k, v), {"heads": 2, "causal": True})
    np.testing.assert_array_equal(y[:, 0], v[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_nothing_gives_zeros(dtype):
    """And keys that are hidden a block at a time, before and behind those that are seen."""
    mask = np.zeros((4, 70), "float32")
    mask[1] = mask[2, :-1] = mask[3, 1:] = -math.inf
    q, k, v = qkv(1, 4, 70, 4, 4)
    y = agree("attention", (q, k, v), {"heads": 2, "mask": mask}, dtype)
    assert not y[0, 1].any()
    np.testing.assert_array_equal(y[0, 2:], cast(v, dtype)[0, [-1, 0]])


def test_scores_that_differ_by_hundreds(order):
    """The largest score rises from block to block: what was summed before vanishes."""
    q, k, v = qkv(1, 3, 80, 4, 4)
    k *= np.linspace(1, 400, 80, dtype="float32")[:, None]
    agree("attention", (q, k, v), {"heads": 1})
    agree("attention", (q, k[:, ::-1], v), {"heads": 1})


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lowest_number_hides_a_key_and_no_row(dtype):
    """As transformers masks. A row of nothing else weighs all of its keys the same."""
    q, k, v = (cast(x, dtype) for x in qkv(1, 3, 40, 4, 4))
    lowest = float(ml_dtypes.finfo(q.dtype).min)
    mask = np.zeros((3, 40))
    mask[0, 3:], mask[1] = lowest, lowest
    infinite = np.where(mask < 0, -math.inf, mask)
    y, expected = (run("attention", (q, k, v), {"heads": 1, "mask": cast(m, dtype)})
                   for m in (mask, infinite))
    same_bits(y[:, [0, 2]], expected[:, [0, 2]])
    agree("attention", (q, k, v), {"heads": 1, "mask": cast(mask, dtype)}, dtype)
    assert y[0, 1].all() and not expected[0, 1].any()


@pytest.mark.parametrize("L, S, options", [(3, 35, {}), (7, 7, {"causal": True}),
                                           (3, 35, {"mask": True})], ids=str)
def test_what_is_not_a_number_spoils_what_it_spoils_in_the_reference(L, S, options):
    spoils(L, S, 2, options, "float32")


def spoils(L, S, d, options, dtype):
    """NaN and infinities, each in a head of its own, in a query, a key, a value and the mask."""
    args = [cast(x, dtype) for x in qkv(7, L, S, 2 * d, 2 * d)]
    mask = np.zeros((7, 2, L, S), "float32")
    mask[:, :, :, 3:S - 2] = -math.inf
    options = {"heads": 2} | options | ({"mask": mask} if "mask" in options else {})
    options = {name: cast(value, dtype) for name, value in options.items()}
    clean, clean_truth = run("attention", args, options), truth_of("attention", args, options)[0]
    bad = [math.nan, math.inf, -math.inf]
    for i, array in enumerate(args):
        for j, value in enumerate(bad):
            n, head = divmod(3 * i + j, 2)
            array[n, min(L - 1, 5) if array is args[0] else 5, head * d + 1] = value
    if "mask" in options:
        options["mask"][[4, 5, 5], [1, 0, 1], 2, 5] = bad
    got, truth = run("attention", args, options), truth_of("attention", args, options)[0]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(truth))
    np.testing.assert_array_equal(got[np.isinf(truth)], truth[np.isinf(truth)])
    assert np.isfinite(got[np.isfinite(truth)]).all()
    same = truth == clean_truth
    same_bits(got[same], clean[same])


def test_an_image_a_head_and_a_query_have_the_same_bits_alone():
    q, k, v = qkv(2, 9, 40, 3 * 4, 3 * 4)
    mask = normal((2, 1, 9, 40), 5)
    whole = run("attention", (q, k, v), {"heads": 3, "mask": mask})
    for n, head, row in [(0, 2, 8), (1, 1, 0), (1, 0, 5)]:
        part, columns = slice(n, n + 1), slice(4 * head, 4 * head + 4)
        args = q[part, row:row + 1, columns], k[part, :, columns], v[part, :, columns]
        alone = run("attention", args, {"heads": 1, "mask": mask[part, :, row:row + 1]})
        same_bits(alone, whole[part, row:row + 1, columns])


def test_parts_of_one_projection():
    """q, k and v as slices of one array: rows with gaps are read where they lie."""
    whole = normal((2, 5, 3 * 6), 1)
    array, copies = to_device(whole), layout.copied["arrays"]
    with registry.use("cuda"):
        y = F.attention(*(array.part(2, 6 * i, 6 * i + 6) for i in range(3)), heads=2).numpy()
    assert layout.copied["arrays"] == copies
    same_bits(y, run("attention", np.split(whole, 3, axis=-1), {"heads": 2}))


def test_rows_that_are_no_rows_are_copied():
    """Features that do not lie side by side."""
    q, k, v = qkv(2, 5, 7, 6, 6)
    columns = [to_device(x.swapaxes(1, 2)).transpose((0, 2, 1)) for x in (q, k, v)]
    with registry.use("cuda"):
        same_bits(F.attention(*columns, heads=2).numpy(), run("attention", (q, k, v), {"heads": 2}))
