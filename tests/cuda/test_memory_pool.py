"""The pool of a GPU's memory, and what belongs to a graph."""

import pytest

from refsd.numba_ops.cuda.pool import LEAST, Arena, NoMemory, Pool, size_class


class Memory:
    """A driver's memory of so many bytes, whose addresses are never used twice."""

    def __init__(self, room):
        self.room, self.next, self.given, self.log = room, 1, {}, []

    def allocate(self, size):
        if sum(self.given.values()) + size > self.room:
            raise NoMemory
        self.next += 1
        self.given[self.next] = size
        self.log.append(size)
        return self.next

    def release(self, address):
        self.log.append(-self.given.pop(address))


@pytest.fixture
def memory():
    return Memory(1 << 20)


@pytest.fixture
def pool(memory):
    return Pool(memory.allocate, memory.release)


def test_size_classes():
    """At least what is asked for, at most an eighth more, eight to a power of two, each its own."""
    sizes = [*range(1, 5000), (1 << 30) - 1, 1 << 30, (1 << 30) + 1, 123456789]
    for size in sizes:
        given = size_class(size)
        assert size <= given <= max(LEAST, size * 9 / 8) and size_class(given) == given
    assert size_class(0) == LEAST
    assert len({size_class(n) for n in range(1 << 20, 1 << 21)}) == 9


def test_what_is_freed_is_given_again(pool, memory):
    first = pool.take(1024)
    pool.give(first, 1024)
    assert pool.take(1024) == first and pool.take(1024) != first
    pool.take(2048)
    assert memory.log == [1024, 1024, 2048]
    assert (pool.held, pool.used) == (4096, 4096)


def test_a_full_memory_is_tidied_once(pool, memory):
    kept, freed = pool.take(1 << 19), pool.take(1 << 18)
    pool.give(freed, 1 << 18)
    pool.take(3 << 17)
    assert memory.log[-2:] == [-(1 << 18), 3 << 17] and kept in memory.given
    with pytest.raises(NoMemory):
        pool.take(1 << 18)
    assert pool.held == pool.used == sum(memory.given.values())


def test_a_graph_has_memory_of_its_own(pool, memory):
    addresses = [pool.take(1024) for _ in range(3)]
    for address in addresses:
        pool.give(address, 1024)
    arena = Arena(pool)
    first, second = arena.take(1024), arena.take(1024)
    arena.give(first, 1024)
    assert arena.take(1024) == first  # used again within the graph
    arena.give(first, 1024)
    assert pool.take(1024) not in (first, second)  # by nobody else
    assert arena.held == 2048 and not arena.missing
    arena.close()
    assert pool.take(1024) == first
    arena.give(second, 1024)  # somebody had it longer than the graph lived
    assert pool.take(1024) == second and len(memory.log) == 3


def test_a_graph_notes_what_is_missing(pool, memory):
    arena = Arena(pool)
    assert [arena.take(512), arena.take(1024)] == [0, 0]
    arena.give(0, 512)
    assert arena.missing == [512, 1024] and not memory.log
    arena.close()
    assert pool.used == pool.held == 0
