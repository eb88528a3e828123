"""attention against loops over single numbers, identities, slices, and its memory."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within
from hypothesis import given
from hypothesis import strategies as st
from op_table import normal

from refsd import functional as F
from refsd.ops import attention as attention_module

INF = math.inf


def loops(q, k, v, heads, mask=None, causal=False):
    """The definition, one number after the other, in float64 with exactly rounded sums."""
    (N, L, C), (_, S, D) = q.shape, v.shape
    d, dv = C // heads, D // heads
    mask = np.zeros((N, heads, L, S)) if mask is None else np.broadcast_to(mask, (N, heads, L, S))
    q, k, v, mask = (t.astype("float64").tolist() for t in (q, k, v, mask))
    y = np.zeros((N, L, D))
    for n, h, i in itertools.product(range(N), range(heads), range(L)):
        seen = [j for j in range(S) if mask[n][h][i][j] != -INF and not (causal and j > i)]
        scores = {j: math.fsum(q[n][i][h * d + c] * k[n][j][h * d + c] for c in range(d))
                  / math.sqrt(d) + mask[n][h][i][j] for j in seen}
        largest = max(scores.values(), default=0)
        e = {j: math.exp(s - largest) for j, s in scores.items()}
        total = math.fsum(e.values())
        for c in range(h * dv, (h + 1) * dv):
            y[n, i, c] = math.fsum(e[j] / total * v[n][j][c] for j in seen)
    return y


def check(q, k, v, *, heads, mask=None, causal=False):
    """float32 within its bound of the loops, float64 within the float64 bound."""
    truth = loops(q, k, v, heads, mask, causal)
    options = {"heads": heads, "causal": causal}
    for dtype, slack in (("float32", 1), ("float64", 2)):
        args = [t.astype(dtype) for t in (q, k, v)]
        with_mask = options | ({} if mask is None else {"mask": mask.astype(dtype)})
        wide = [t.astype("float64") for t in args]
        bound = BOUNDS["attention"](wide, with_mask, truth, PRECISIONS[dtype])
        # in float64 the loops err as much as the op
        assert_within(F.attention(*args, **with_mask), truth, slack * bound, f"{dtype} {options}")


def qkv(N, L, S, C, D, seed=0):
    return normal((N, L, C), seed), normal((N, S, C), seed + 1), normal((N, S, D), seed + 2)


@pytest.mark.parametrize("heads, d, dv", [(1, 1, 1), (1, 5, 5), (2, 3, 4), (3, 8, 8), (2, 40, 40),
                                          (4, 7, 2)])
def test_heads_of_any_width(heads, d, dv):
    check(*qkv(2, 5, 6, heads * d, heads * dv), heads=heads)


@pytest.mark.parametrize("L, S", [(1, 1), (1, 7), (4, 1), (9, 3), (3, 77)])
def test_cross_attention_of_any_length(L, S):
    check(*qkv(1, L, S, 6, 4), heads=2)


@pytest.mark.parametrize("L", [1, 2, 7])
def test_causal(L):
    check(*qkv(2, L, L, 6, 6), heads=2, causal=True)


@pytest.mark.parametrize("shape", [
    (2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1), (3, 4, 5), (1, 1, 5),
    (4, 5), (4, 1), (1, 5), (5,), (1,), ()])
def test_masks_of_every_broadcast_shape(shape):
    mask = normal(shape, 7)
    check(*qkv(2, 4, 5, 6, 6), heads=3, mask=mask)
    hidden = np.asarray(np.where(normal(shape, 8) > 0.3, -INF, mask), "float32")
    check(*qkv(2, 4, 5, 6, 6), heads=3, mask=hidden)


def test_mask_and_causal_together():
    check(*qkv(1, 5, 5, 4, 4), heads=2, mask=normal((5, 5), 7), causal=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_query_without_keys_gives_zeros(dtype):
    q, k, v = (t.astype(dtype) for t in qkv(1, 3, 4, 6, 6))
    mask = np.zeros((3, 4), dtype)
    mask[1] = -INF
    with np.errstate(all="raise"):
        y = F.attention(q, k, v, heads=2, mask=mask)
    assert y[0, 1].tolist() == [0] * 6
    assert np.all(y[0, [0, 2]] != 0)
    everything = F.attention(q, k, v, heads=2, mask=np.full((1,), -INF, dtype))
    assert not everything.any()


def test_causal_is_the_mask_of_minus_infinity():
    q, k, v = qkv(2, 9, 9, 6, 6)
    mask = np.where(np.tri(9) == 1, 0, -INF).astype("float32")
    causal = F.attention(q, k, v, heads=2, causal=True)
    assert np.array_equal(causal, F.attention(q, k, v, heads=2, mask=mask))
    assert np.array_equal(causal[:, 0], v[:, 0])


def test_the_future_does_not_matter():
    q, k, v = qkv(1, 8, 8, 6, 6)
    before = F.attention(q, k, v, heads=2, causal=True)
    k[:, 5:], v[:, 5:] = 100, -100
    after = F.attention(q, k, v, heads=2, causal=True)
    assert np.array_equal(before[:, :5], after[:, :5])
    assert np.all(before[:, 5:] != after[:, 5:])


def test_heads_are_blocks_of_features_and_do_not_mix():
    q, k, v = qkv(1, 5, 6, 12, 12)
    together = F.attention(q, k, v, heads=3)
    for h in range(3):
        block = np.s_[..., 4 * h:4 * h + 4]
        alone = F.attention(*(np.ascontiguousarray(t[block]) for t in (q, k, v)), heads=1)
        wide = [t[block].astype("float64") for t in (q, k, v)]
        bound = BOUNDS["attention"](wide, {"heads": 1}, alone, PRECISIONS["float32"])
        assert_within(together[block], alone.astype("float64"), 2 * bound)


def test_without_a_question_the_values_are_averaged():
    q, k, v = qkv(1, 3, 8, 4, 4)
    v = np.round(v * 8)  # 1/8 and whole numbers: exact
    assert np.array_equal(F.attention(0 * q, k, v, heads=2),
                          np.broadcast_to(v.mean(axis=1, keepdims=True), (1, 3, 4)))


def test_scores_of_any_size_do_not_overflow():
    q, k, v = qkv(1, 4, 6, 8, 8)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = F.attention(1e4 * q, 1e4 * k, v, heads=1)
    best = np.argmax(q[0].astype("float64") @ k[0].T.astype("float64"), axis=1)
    assert np.array_equal(y[0], v[0, best])


def test_nan_spoils_its_own_row_only():
    q, k, v = qkv(1, 4, 6, 8, 8)
    q[0, 2, 0] = np.nan
    y = F.attention(q, k, v, heads=1)
    assert np.isnan(y[0, 2]).all() and np.isfinite(y[0, [0, 1, 3]]).all()


@given(seed=st.integers(0, 2**32 - 1), S=st.integers(2, 20))
def test_the_order_of_the_keys_and_a_shift_of_the_mask_do_not_matter(seed, S):
    q, k, v = qkv(1, 3, S, 6, 6, seed % 2**31)
    order = np.random.default_rng(seed).permutation(S)
    wide = [t.astype("float64") for t in (q, k, v)]
    y = F.attention(q, k, v, heads=2).astype("float64")
    bound = BOUNDS["attention"](wide, {"heads": 2}, y, PRECISIONS["float32"])
    assert_within(F.attention(q, k[:, order], v[:, order], heads=2), y, 2 * bound)
    shift = {"heads": 2, "mask": np.full((1,), 5.0)}
    moved = bound + BOUNDS["attention"](wide, shift, y, PRECISIONS["float32"])
    shift["mask"] = shift["mask"].astype("float32")
    assert_within(F.attention(q, k, v, **shift), y, moved)


@pytest.mark.parametrize("limit", [1, 400, 1500])
def test_slices_of_queries_change_nothing(limit, monkeypatch):
    q, k, v = (t.astype("float64") for t in qkv(2, 17, 17, 6, 6))
    mask = normal((2, 1, 17, 17), 5).astype("float64")
    whole = F.attention(q, k, v, heads=2, mask=mask, causal=True)
    monkeypatch.setattr(attention_module, "SLICE_BYTES", limit)
    sliced = F.attention(q, k, v, heads=2, mask=mask, causal=True)
    truth = loops(q, k, v, 2, mask, True)
    bound = BOUNDS["attention"]((q, k, v), {"heads": 2, "mask": mask, "causal": True}, truth,
                                PRECISIONS["float64"])
    assert_within(sliced, truth, 2 * bound)
    assert_within(sliced, whole, 2 * bound)


def test_memory_stays_far_below_all_scores_at_once():
    """4096 tokens and 8 heads are 512 MiB of scores; here, to be quick, for a quarter of the
    queries, which would be 128 MiB. What a slice takes does not depend on how many there are."""
    q, k, v = qkv(1, 1024, 4096, 64, 64)
    tracemalloc.start()
    F.attention(q, k, v, heads=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # one slice of scores, the softmax's three copies of it, and the result of 0.3 MB
    assert peak < 4.5 * attention_module.SLICE_BYTES + 2**20 < 128 * 2**20
