"""Embeddings by plain indexing, sinusoids with 50 digits, rotations as complex numbers."""

import cmath
import itertools
import math

import mpmath
import numpy as np
import pytest
from bounds import BOUNDS, OTHERS, PRECISIONS, assert_within
from hypothesis import given
from hypothesis import strategies as st
from op_table import normal

from refsd import functional as F

DTYPES = ("float32", "float64")
U = 2.0**-24


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "uint64"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0, 2), (1, 2, 3)])
def test_embedding_picks_rows(shape, kind):
    weight = normal((7, 5), 1)
    ids = np.asarray(np.random.default_rng(0).integers(0, 7, shape), kind)
    y = F.embedding(ids, weight)
    assert y.shape == (*shape, 5)
    for i in np.ndindex(shape):
        assert np.array_equal(y[i], weight[int(ids[i])])


@pytest.mark.parametrize("bad", [[-1, 0], [0, 7], [2**31]])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(IndexError, match=rf"embedding: indices run from {min(bad)} to {max(bad)}, "
                                         "there are rows 0 to 6"):
        F.embedding(np.array(bad), normal((7, 5), 1))
    with pytest.raises(IndexError, match="gather: indices run from"):
        F.gather(normal((len(bad), 7, 5), 1), np.array(bad))


def test_gather_picks_one_row_a_sample():
    x = normal((3, 4, 5), 1)
    y = F.gather(x, np.array([3, 0, 2]))
    assert np.array_equal(y, np.stack([x[0, 3], x[1, 0], x[2, 2]]))


def sinusoids(t, dim, freq_shift):
    """sin and cos with 50 digits, and how far float32 frequencies and angles may take them."""
    half = dim // 2
    with mpmath.workdps(50):
        exponents = [-mpmath.log(10000) * i / (half - freq_shift) for i in range(half)]
        angles = [mpmath.mpf(float(t)) * mpmath.exp(e) for e in exponents]
        values = [[float(f(a)) for a in angles] for f in (mpmath.sin, mpmath.cos)]
    # The exponent takes 3 roundings (the constant, the product, the quotient), each an absolute
    # error of u |exponent| that exp turns into a relative one; the frequency takes 1, the angle 1.
    moved = [float(a) * (3 * abs(float(e)) + 2) * U * 1.001 for a, e in zip(angles, exponents)]
    return values, moved


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, freq_shift", [(320, 0), (32, 0), (7, 0), (16, 1), (2, 0), (64, 0.5)])
def test_sinusoids_of_time(dim, freq_shift, dtype):
    steps = np.array([0, 1, 21, 500, 981, 999])
    y = F.timestep_embedding(steps, dim=dim, flip_sin_to_cos=False, freq_shift=freq_shift,
                             dtype=dtype)
    half = dim // 2
    for t, row in zip(steps, y):
        (sines, cosines), moved = sinusoids(t, dim, freq_shift)
        bound = np.array(moved) + OTHERS * PRECISIONS[dtype].u + 2.0**-53
        assert_within(row[:half], np.array(sines), bound, f"sin, t = {t}")
        assert_within(row[half:2 * half], np.array(cosines), bound, f"cos, t = {t}")
        assert not np.any(row[2 * half:])
    flipped = F.timestep_embedding(steps, dim=dim, flip_sin_to_cos=True, freq_shift=freq_shift,
                                   dtype=dtype)
    assert np.array_equal(flipped[:, :half], y[:, half:2 * half])
    assert np.array_equal(flipped[:, half:2 * half], y[:, :half])
    assert np.array_equal(flipped[:, 2 * half:], y[:, 2 * half:])


def test_the_frequencies_run_from_1_to_1_over_10000():
    """With freq_shift 1 the last one is 10000^-1; a small angle is its own sine."""
    y = F.timestep_embedding(np.array([1]), dim=64, flip_sin_to_cos=False, freq_shift=1,
                             dtype="float64")[0]
    # exponent off by 3 u 9.21 as above; sin x = x (1 - x^2 / 6)
    assert abs(y[31] / 1e-4 - 1) < (3 * 9.22 + 2) * U + 1e-8
    assert y[0] == math.sin(1) and y[32] == math.cos(1)


def test_both_dtypes_see_the_same_float32_angles():
    args = {"dim": 320, "flip_sin_to_cos": True, "freq_shift": 0}
    steps = np.arange(1000)
    narrow = F.timestep_embedding(steps, **args, dtype="float32")
    wide = F.timestep_embedding(steps, **args, dtype="float64")
    assert_within(narrow, wide, OTHERS * U * abs(wide))
    for kind in ("int32", "float32", "float64", "uint16"):
        assert np.array_equal(F.timestep_embedding(steps.astype(kind), **args, dtype="float32"),
                              narrow)


def rotated(x, positions, base, interleaved):
    """Each pair as a complex number times e^(i angle)."""
    L, D = x.shape[-2:]
    y = np.zeros(x.shape)
    for *lead, l in itertools.product(*map(range, x.shape[:-1])):
        for i in range(D // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + D // 2)
            angle = int(positions[l]) * math.pow(base, -2 * i / D)
            z = complex(x[(*lead, l, a)], x[(*lead, l, b)]) * cmath.exp(1j * angle)
            y[(*lead, l, a)], y[(*lead, l, b)] = z.real, z.imag
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(4, 2), (5, 6), (2, 3, 10), (2, 2, 1, 8)])
def test_rope_rotates(shape, interleaved, dtype):
    x = normal(shape, 1).astype(dtype)
    positions = np.array([0, 1, 5, 77, 1000])[:shape[-2]]
    options = {"base": 10000.0, "interleaved": interleaved}
    truth = rotated(x, positions, **options)
    bound = BOUNDS["rope"]((x.astype("float64"), positions), options, truth, PRECISIONS[dtype])
    # angles up to 1000 are float64, off by an ulp or two in the op and in the truth
    bound = bound + 4 * 1000 * 2.0**-52 * abs(x).max()
    assert_within(F.rope(x, positions, **options), truth, bound)


@given(seed=st.integers(0, 2**32 - 1), interleaved=st.booleans(), shift=st.integers(0, 50))
def test_rope_keeps_lengths_and_sees_only_distances(seed, interleaved, shift):
    q, k = normal((6, 8), seed).astype("float64"), normal((6, 8), seed + 1).astype("float64")
    options = {"base": 100.0, "interleaved": interleaved}
    here, there = np.arange(6), np.arange(6) + shift

    def scores(positions):
        return F.rope(q, positions, **options) @ F.rope(k, positions, **options).T

    size = np.linalg.norm(q, axis=-1)[:, None] * np.linalg.norm(k, axis=-1)
    # 8 products, 6 roundings of the rotations and 2 of angles up to 60, all in float64
    slack = (8 + 6 + 4 * 60) * 2.0**-53
    assert_within(scores(there), scores(here), slack * size)
    rotated = F.rope(q, there, **options)
    lengths = np.linalg.norm(q, axis=-1)
    assert_within(np.linalg.norm(rotated, axis=-1), lengths, 20 * 2.0**-53 * lengths)
    assert np.array_equal(F.rope(q, np.zeros(6, "int64"), **options), q)
