"""Memory that kernels work in."""

import numpy as np
import pytest

from refsd.numba_ops import pool
from refsd.numba_ops.simd import WIDTH
from refsd.numba_ops.workspace import workspace


def test_arrays_are_aligned_and_do_not_touch():
    with workspace("float32", 5, 0, 2**20) as arrays:
        assert [(a.size, str(a.dtype)) for a in arrays] == [
            (5, "float32"), (0, "float32"), (2**20, "float32")]
        for i, array in enumerate(arrays):
            assert array.size == 0 or array.ctypes.data % WIDTH == 0
            array[:] = i
        assert [set(a.tolist()) for a in arrays] == [{0.0}, set(), {2.0}]


def test_two_at_once_have_their_own():
    with workspace("float32", 10) as (small,), workspace("float32", 2**20) as (large,):
        assert not np.shares_memory(small, large)


@pytest.mark.parametrize("fault", [None, KeyError])
def test_it_goes_back_to_the_pool(monkeypatch, fault):
    monkeypatch.setattr(pool, "_arena", pool.Arena(2**24))
    try:
        with workspace("float32", 2**20):
            if fault is not None:
                raise fault
    except KeyError:
        assert fault is KeyError
    assert pool.idle_bytes() >= 2**22
