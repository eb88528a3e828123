"""Transposing in registers: every size up to a square of vectors, and nothing written beyond."""

import numpy as np
import pytest
from numba_agreement import DTYPES

from refsd.numba_ops import transpose
from refsd.numba_ops.jit import jit
from refsd.numba_ops.simd import WIDTH


@jit
def all_lanes(x, at, step, rows, columns, out, out_at, out_step):
    transpose.transpose(x, at, step, rows, columns, out, out_at, out_step)


@jit
def wanted_lanes(x, at, step, rows, columns, out, out_at, out_step):
    transpose.transpose_masked(x, at, step, rows, columns, out, out_at, out_step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["all lanes", "wanted lanes"])
def test_rows_become_columns(name, dtype):
    n = WIDTH // np.dtype(dtype).itemsize
    x = np.arange(3 + n * (n + 4), dtype=dtype)
    square = x[3:].reshape(n, n + 4)
    for rows in {1, n // 2, n - 1, n}:
        for columns in {1, n // 2, n - 1, n}:
            out = np.full((n + 1) * (n + 7), -1, dtype)
            wanted = out.copy()
            places = wanted[5:][:n * (n + 7)].reshape(n, n + 7)
            if name == "all lanes":
                lines = np.minimum(np.arange(n), rows - 1)  # behind the last row it is repeated
                places[:columns, :n] = square[lines, :columns].T
                all_lanes(x, 3, n + 4, rows, columns, out, 5, n + 7)
            else:
                places[:columns, :rows] = square[:rows, :columns].T
                wanted_lanes(x, 3, n + 4, rows, columns, out, 5, n + 7)
            np.testing.assert_array_equal(out, wanted)
