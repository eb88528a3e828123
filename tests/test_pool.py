"""Memory of large results is taken again, but never while an array still uses it."""

import errno
import logging
import mmap
import os
import resource
import subprocess
import sys
import threading
from multiprocessing import get_context

import numpy as np
import pytest

from refsd.numba_ops import memory, pool

SIZE = pool.LEAST


def address(array):
    return array.__array_interface__["data"][0]


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture
def arena(monkeypatch):
    """Forty pieces' room, in place of the process's."""
    found = pool.Arena(40 * SIZE)
    monkeypatch.setattr(pool, "_arena", found)
    return found


def test_memory_that_nobody_uses_is_taken_again(arena):
    first = pool.take(SIZE)
    place = address(first)
    assert pool.idle_bytes() == 0
    del first
    assert pool.idle_bytes() == SIZE
    assert address(pool.take(SIZE)) == place


def test_a_view_keeps_its_memory(arena):
    whole = memory.empty((SIZE, 2), "float32")
    view = whole[10:20, 1]
    view[:] = 7
    del whole
    assert pool.idle_bytes() == 0
    other = memory.empty((SIZE // 8, 2), "float32")
    other[:] = 0
    assert (view == 7).all() and not np.shares_memory(view, other)


def test_free_neighbours_become_one(arena):
    for order in ([0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2]):
        pieces = [pool.take(SIZE) for _ in range(4)]
        first = address(pieces[0])
        for i in order:
            pieces[i] = None
        whole = pool.take(3 * SIZE)
        assert address(whole) == first and address(pieces[3]) == first + 3 * SIZE
        del whole, pieces
    assert arena.take(0) is not None and len(arena.free_list) == 1


def test_the_smallest_free_block_that_holds_it(arena):
    pieces = [pool.take(n * SIZE) for n in (3, 1, 2, 1)]
    large, small = address(pieces[0]), address(pieces[2])
    pieces[0] = pieces[2] = None
    two = pool.take(2 * SIZE)
    three = pool.take(3 * SIZE)
    assert (address(two), address(three)) == (small, large)
    assert address(pool.take(SIZE)) == address(pieces[3]) + SIZE


def test_pieces_begin_at_a_line_and_have_their_size(arena):
    pieces = [pool.take(SIZE + n) for n in (1, 64, 0)]
    assert [piece.size for piece in pieces] == [SIZE + 1, SIZE + 64, SIZE]
    starts = [address(piece) for piece in pieces]
    assert np.diff(starts).tolist() == [SIZE + 64, SIZE + 64]
    assert not any(start % 64 for start in starts)


def test_what_does_not_fit_is_numpys(arena):
    there = pool.take(10 * SIZE)
    other = pool.take(31 * SIZE)
    other[:] = 1
    first = address(there)
    assert not first <= address(other) < first + 40 * SIZE
    del other
    assert pool.idle_bytes() == 0
    assert address(pool.take(30 * SIZE)) == first + 10 * SIZE


def test_too_much_idle_memory_goes_back_to_the_system(arena, monkeypatch):
    large, small = pool.take(12 * SIZE), pool.take(SIZE)
    large[:] = small[:] = 7
    before = resident()
    del large
    monkeypatch.setattr(pool, "MOST_IDLE", 11 * SIZE)
    again = pool.take(SIZE)  # 11 are idle with it: that is not too much
    assert before - resident() < SIZE and (again == 7).all()
    del again
    pool.shrink(12 * SIZE - 1)
    assert before - resident() > 10 * SIZE
    assert (small == 7).all() and not pool.take(12 * SIZE).any()


def test_behind_the_last_piece_nothing_is_idle_once_given_back(arena):
    first, second = pool.take(SIZE), pool.take(SIZE)
    second[:] = 1
    del second
    pool.shrink(0)
    assert pool.idle_bytes() == 0
    del first
    pool.shrink(0)
    assert pool.idle_bytes() == 0


def test_what_was_given_back_is_idle_no_more(arena, monkeypatch):
    """Below a piece that lives: it was counted as idle, and given back, at every later call."""
    given_back = []

    class Told:
        def madvise(self, *how, memory=arena.memory):
            given_back.append(how[1:])
            memory.madvise(*how)

    monkeypatch.setattr(arena, "memory", Told())
    monkeypatch.setattr(pool, "MOST_IDLE", 6 * SIZE)
    pieces = [pool.take(4 * SIZE), pool.take(SIZE), pool.take(4 * SIZE), pool.take(SIZE)]
    pieces[0] = pieces[2] = None
    assert pool.idle_bytes() == 8 * SIZE
    small = pool.take(SIZE)  # 7 are idle beside it
    assert given_back == [(SIZE, 3 * SIZE), (5 * SIZE, 4 * SIZE)] and pool.idle_bytes() == 0
    others = [pool.take(SIZE) for _ in range(3)]
    assert len(given_back) == 2 and pool.idle_bytes() == 0
    del small, others
    assert pool.idle_bytes() == 4 * SIZE
    middle = pool.take(2 * SIZE)
    assert pool.idle_bytes() == 2 * SIZE
    del middle, pieces
    assert pool.idle_bytes() == 6 * SIZE


def test_a_system_without_huge_pages_pools_as_well(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *how):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(pool.mmap, "mmap", Refusing)
    assert pool.Arena(4 * SIZE).take(SIZE).size == SIZE
    assert pool._reserve() is not None


def test_memory_that_cannot_be_pooled_is_spoken_of(monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(pool.mmap, "mmap", refuse)
    with caplog.at_level(logging.INFO, "refsd"):
        assert pool._reserve() is None
    assert caplog.messages == ["results are not pooled: [Errno 12] Cannot allocate memory"]


def test_small_pieces_are_numpys(arena):
    small = pool.take(SIZE - 1)
    del small
    assert pool.idle_bytes() == 0


def test_without_an_arena_all_is_numpys(monkeypatch):
    monkeypatch.setattr(pool, "_arena", None)
    piece = pool.take(2 * SIZE)
    piece[:] = 1
    pool.shrink(0)
    pool.trim()
    assert piece.size == 2 * SIZE and pool.idle_bytes() == 0


def test_results_are_writable_and_start_at_a_vector():
    for _ in range(2):
        y = memory.empty((3, SIZE), "float64")
        assert y.flags.writeable and address(y) % memory.WIDTH == 0
        del y


def test_two_threads_never_get_the_same_memory(arena):
    wrong = []

    def work(number):
        for i in range(200):
            mine = pool.take(SIZE * (1 + i % 2))
            mine[::4096] = number
            if not (mine[::4096] == number).all():
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and arena.take(40 * SIZE) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_takes_memory_though_a_thread_of_its_parent_was_taking(arena):
    with arena.lock:
        child = get_context("fork").Process(target=pool.take, args=(SIZE,))
        child.start()
        child.join(20)
    child.kill()
    assert child.exitcode == 0


def test_where_address_space_is_limited_none_is_reserved():
    code = ("import resource; limit = 2**36; "
            "resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY)); "
            "from refsd.numba_ops import pool; print(pool._arena)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
