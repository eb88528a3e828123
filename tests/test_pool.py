"""Memory of large results is taken again, but never while an array still uses it."""

import threading

import numpy as np
import pytest

from refsd.numba_ops import memory, pool

SIZE = pool.LEAST


@pytest.fixture(autouse=True)
def empty_pool():
    pool.shrink(0)
    yield
    pool.shrink(0)


def address(array):
    return array.ctypes.data


def test_memory_that_nobody_uses_is_taken_again():
    first = pool.take(SIZE)
    place = address(first)
    assert pool.idle_bytes() == 0
    del first
    assert pool.idle_bytes() == SIZE
    assert address(pool.take(SIZE)) == place


def test_a_view_keeps_its_memory():
    whole = memory.empty((SIZE, 2), "float32")
    view = whole[10:20, 1]
    view[:] = 7
    del whole
    assert pool.idle_bytes() == 0
    other = memory.empty((SIZE, 2), "float32")
    other[:] = 0
    assert (view == 7).all() and not np.shares_memory(view, other)


def test_what_waits_longest_goes_first(monkeypatch):
    monkeypatch.setattr(pool, "MOST_IDLE", 5 * SIZE)
    arrays = [pool.take(n * SIZE) for n in (1, 2, 1)]
    latest = address(arrays[2])
    while arrays:
        del arrays[0]
    assert pool.idle_bytes() == 4 * SIZE
    larger = pool.take(3 * SIZE)  # with it no more than 5: the oldest two have to go
    assert pool.idle_bytes() == SIZE and address(pool.take(SIZE)) == latest
    del larger


def test_a_size_above_the_limit_leaves_nothing_idle():
    first = pool.take(SIZE)
    del first
    huge = pool.take(pool.MOST_IDLE + 1)
    assert pool.idle_bytes() == 0 and huge.size == pool.MOST_IDLE + 1


def test_small_pieces_are_numpys():
    small = pool.take(SIZE - 1)
    del small
    assert pool.idle_bytes() == 0


def test_results_are_writable_and_start_at_a_vector():
    for _ in range(2):
        y = memory.empty((3, SIZE), "float64")
        assert y.flags.writeable and address(y) % memory.WIDTH == 0
        del y


def test_two_threads_never_get_the_same_memory():
    wrong = []

    def work(number):
        for _ in range(200):
            mine = pool.take(SIZE)
            mine[::4096] = number
            if not (mine[::4096] == number).all():
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
