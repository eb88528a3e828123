"""Ops that move data: every element is compared, and nothing may be rounded."""

import itertools

import numpy as np
import pytest
from op_table import normal

from refsd import functional as F

DTYPES = ("float32", "float64")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 7, 3, 1), (0, 3, 2, 2)])
def test_to_tokens_reads_row_by_row(shape):
    x = normal(shape, 1)
    y = F.to_tokens(x)
    N, C, H, W = shape
    assert y.shape == (N, H * W, C)
    for n, c, i, j in itertools.product(*map(range, shape)):
        assert y[n, i * W + j, c] == x[n, c, i, j]
    assert np.array_equal(F.to_image(y, height=H, width=W), x)


def test_to_image_of_one_vector_is_one_pixel():
    x = normal((2, 3), 1)
    assert np.array_equal(F.to_image(x, height=1, width=1), x[:, :, None, None])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_concat(axis):
    a, b, c = (normal((2, 3, 4), seed) for seed in (1, 2, 3))
    y = F.concat([a, b, c], axis=axis)
    size = a.shape[axis]
    for part, expected in enumerate((a, b, c)):
        rows = range(part * size, (part + 1) * size)
        assert np.array_equal(np.take(y, rows, axis=axis), expected)
    assert y.size == 3 * a.size
    assert np.array_equal(F.concat((a,), axis=axis), a)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("start, stop", [(0, 0), (0, 2), (1, 2), (2, 2)])
def test_slice(axis, start, stop):
    x = normal((2, 3, 4), 1)
    y = F.slice(x, axis=axis, start=start, stop=stop)
    assert np.array_equal(y, np.take(x, range(start, stop), axis=axis))


def test_pad_puts_zeros_around():
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert F.pad(x, widths=((0, 1), (2, 0))).tolist() == [[0, 0, 1, 2], [0, 0, 3, 4], [0] * 4]
    assert np.array_equal(F.pad(x, widths=[(0, 0), [0, 0]]), x)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_transpose(axes):
    x = normal((2, 3, 4), 1)
    y = F.transpose(x, axes=axes)
    for i in np.ndindex(x.shape):
        assert y[tuple(i[a] for a in axes)] == x[i]


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (6, 4), (24,), [2, 1, 12]])
def test_reshape_counts_row_by_row(shape):
    x = normal((2, 3, 4), 1)
    y = F.reshape(x, shape=shape)
    assert y.shape == tuple(shape)
    assert [y[i] for i in np.ndindex(y.shape)] == [x[i] for i in np.ndindex(x.shape)]
    assert F.reshape(x[:0], shape=(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_is_moved_as_it_is(dtype):
    """NaNs with their payload, infinities, subnormals, negative zero."""
    raw = np.random.default_rng(0).integers(0, 256, 4 * 6 * 8, dtype="uint8")
    x = raw.view(dtype).reshape(1, 4, -1, 2)
    bits = sorted(raw.view(f"u{np.dtype(dtype).itemsize}").tolist())
    H = x.shape[2]
    tokens = F.to_tokens(x)
    for y in (tokens, F.to_image(tokens, height=H, width=2), F.concat([x], axis=0),
              F.slice(x, axis=1, start=0, stop=4), F.transpose(x, axes=(3, 2, 1, 0)),
              F.reshape(x, shape=(H, 8)),
              F.pad(x, widths=((0, 0),) * 4), F.upsample_nearest(x, height=H, width=2),
              F.embedding(np.arange(4), x[0].reshape(4, -1)), F.gather(tokens, np.array([3]))):
        moved = sorted(np.ascontiguousarray(y).view(f"u{x.itemsize}").ravel().tolist())
        assert moved == bits if y.size == x.size else set(moved) <= set(bits)
