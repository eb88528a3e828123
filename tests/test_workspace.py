"""Memory that kernels work in: kept from call to call, shared by nobody, given back on demand."""

import numpy as np
import pytest

from refsd import registry
from refsd.numba_ops import workspace as module
from refsd.numba_ops.simd import WIDTH
from refsd.numba_ops.workspace import kept_bytes, workspace


@pytest.fixture(autouse=True)
def nothing_kept():
    module.release()
    yield
    module.release()


def test_arrays_are_aligned_and_do_not_touch():
    with workspace("float32", 5, 0, 2**20) as arrays:
        assert [(a.size, str(a.dtype)) for a in arrays] == [
            (5, "float32"), (0, "float32"), (2**20, "float32")]
        for i, array in enumerate(arrays):
            assert array.size == 0 or array.ctypes.data % WIDTH == 0
            array[:] = i
        assert [set(a.tolist()) for a in arrays] == [{0.0}, set(), {2.0}]


def test_a_smaller_one_takes_the_same_memory():
    with workspace("float32", 1000) as (first,):
        pass
    kept = kept_bytes()
    with workspace("float64", 100) as (second,):
        assert np.shares_memory(first, second)
        assert kept_bytes() == 0
    assert kept_bytes() == kept >= first.nbytes


def test_two_at_once_have_their_own_and_the_larger_is_kept():
    with workspace("float32", 10) as (small,), workspace("float32", 1000) as (large,):
        assert not np.shares_memory(small, large)
    assert large.nbytes <= kept_bytes() < large.nbytes + 1000


def test_what_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST", 4000)
    with workspace("float32", 1000):
        pass
    assert kept_bytes() == 0


def test_an_error_gives_it_back():
    with pytest.raises(KeyError), workspace("float32", 10):
        raise KeyError
    assert kept_bytes() > 0


def test_the_registry_has_it_released():
    with workspace("float32", 10):
        pass
    registry.release("numba")
    assert kept_bytes() == 0
