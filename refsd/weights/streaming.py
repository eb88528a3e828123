"""Weights that are in memory while they are used: read again from their files, and dropped.

Leaves come and go in groups. With "component" a group is a whole network: the networks of a model
share the memory of the largest. With "block" it is some leaves that are used one after the other;
which group follows on which is what happened last time, at first what `arrange` was told. One
thread reads those that follow into a queue of so many bytes while kernels run, and ends when it is
full. It reads alone: a kernel waits for the slowest of its threads, of which there are as many as
processors. So weights are converted and laid out on all threads, when they are asked for. A group
that was not expected is read where it is asked for, and the queue begins anew there.

What is read is made by the code that loads models otherwise, so it has the same bits. Files were
checked when the model was loaded, and have to be the same still: they are read, never mapped.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import numpy as np

from refsd.errors import RefsdError, ResourceError, UsageError
from refsd.half import HALVES
from refsd.leaf import Away, Weight
from refsd.weights.checkpoint import Component, held_as, iter_leaves
from refsd.weights.forms import item_bytes
from refsd.weights.memory import check_memory
from refsd.weights.passing import passing_bytes
from refsd.weights.plan import Plan
from refsd.weights.reader import warn_nonfinite

MODES = ("component", "block")
BLOCK = 16 << 20  # bytes of a group of leaves that come and go together
AHEAD = 48 << 20  # bytes that are read before they are asked for


def check_offload(mode: Any) -> str | None:
    """One of MODES; None, which "none" is too, keeps all weights in memory."""
    if mode not in (None, "none", *MODES):
        raise UsageError(f"offload is {mode!r}; give none, auto, {' or '.join(MODES)}")
    return None if mode == "none" else mode


def most_bytes(mode: str | None, sizes: Iterable[Sequence[int]]) -> int:
    """The most that is in memory at once of networks whose leaves have these sizes.

    In blocks the one in use, what is read ahead, and what was cancelled and is still being read.
    """
    sizes = [tuple(each) for each in sizes]
    if mode is None:
        return sum(map(sum, sizes))
    if mode == "component":
        return max(map(sum, sizes), default=0)
    largest = max((max(each, default=0) for each in sizes), default=0)
    return min(sum(map(sum, sizes)), max(BLOCK, largest) + max(AHEAD, largest))


class Group:
    """Leaves that come and go together. `reads`: those used last time; `size`: bytes that wait."""

    def __init__(self, part: str, leaves: Sequence[Away]):
        self.part, self.names = part, [leaf.name for leaf in leaves]
        self.reads = self.names
        self.size = sum(leaf.waiting_bytes for leaf in leaves)


class _Reading:
    """A group that the thread is reading; what is cancelled is thrown away when it is there."""

    def __init__(self, group: Group):
        self.group, self.cancelled = group, False


class Streamer:
    """Where the weights of a model come from while it is used.

    backend: `place` puts each leaf as kernels read it, `release` gives memory back.
    listener(name, bytes, begun, ended), if there is one, hears of every group that was read, in
    nanoseconds of time.perf_counter_ns.
    """

    def __init__(self, mode: str, backend: Any):
        self.mode, self.backend = mode, backend
        self.listener: Callable[[str, int, int, int], None] | None = None
        self._parts: dict[str, tuple[Plan, str | None, str | None]] = {}
        self._groups: dict[str, Group] = {}
        self._next: dict[Group, Group] = {}
        self._looked_at: set[str] = set()
        self._group: Group | None = None  # the one in use, and its leaves
        self._leaves: dict[str, Weight] = {}
        self._used: dict[str, None] = {}
        self._queue: deque[tuple[Group, dict[str, Weight]]] = deque()
        self._failed: tuple[Group, Exception] | None = None
        self._begin_anew()
        _streamers.add(self)

    def _begin_anew(self) -> None:
        """Without a thread, as after a fork."""
        self._turn, self._state = threading.RLock(), threading.Condition()
        self._thread: threading.Thread | None = None
        self._reading: _Reading | None = None

    def components(self, plans: Mapping[str, Plan], *, weights: str | None, dtype: str,
                   force: bool) -> dict[str, Component]:
        """Networks of leaves that are away, held as `load` does; ResourceError for too little room.
        """
        found = {part: self._component(part, plan, weights, dtype) for part, plan in plans.items()}
        needed = most_bytes(self.mode, [[leaf.loaded_bytes for leaf in component.tensors.values()]
                                        for component in found.values()])
        check_memory(needed, next(iter(plans.values())).source, force=force)
        return found

    def _component(self, part: str, plan: Plan, weights: str | None, dtype: str) -> Component:
        form, dtype = held_as(part, plan.config, weights, dtype)
        self._parts[part] = plan, form, dtype
        leaves = {}
        for name, shape in plan.shapes.items():
            count, wide = int(np.prod(shape)), np.dtype(HALVES.get(dtype, dtype))
            stored, of = plan.sources[name].info.dtype, form if len(shape) > 1 else None
            (*_, waiting), _ = passing_bytes(count, stored, of, dtype)
            leaves[name] = Away(f"{part}.{name}", tuple(shape), wide,
                                count * item_bytes(of, stored, dtype), waiting, self)
        self.arrange(part, leaves.values())
        return Component(plan.config, leaves, plan.source)

    def arrange(self, part: str, leaves: Iterable[Away]) -> None:
        """Have a network's groups follow the order in which its layers are used."""
        groups, room = [[]], BLOCK
        for _, layer in groupby(leaves, lambda leaf: leaf.name.rpartition(".")[0]):
            layer = list(layer)
            room -= sum(leaf.loaded_bytes for leaf in layer)
            if self.mode == "block" and groups[-1] and room < 0:
                groups.append([])
                room = BLOCK - sum(leaf.loaded_bytes for leaf in layer)
            groups[-1] += layer
        made = [Group(part, found) for found in groups]
        self._groups |= {name: group for group in made for name in group.names}
        self._next |= dict(zip(made, [*made[1:], made[0]]))

    def present_bytes(self) -> int:
        """The memory of the leaves that are there now, in use or read ahead."""
        with self._state:
            groups = [self._leaves, *(leaves for _, leaves in self._queue)]
            return sum(leaf.nbytes for leaves in groups for leaf in [*leaves.values()])

    def fetch(self, leaf: Away) -> Weight:
        """The leaf in memory. ResourceError where it cannot be read."""
        with self._turn:
            group = self._groups[leaf.name]
            if group is not self._group:
                self._go_to(group)
            found = self._leaves.get(leaf.name)
            if found is None:  # which the last call did without
                found = self._read(group, [leaf.name])[leaf.name]
            self._used[leaf.name] = None
            self._leaves[leaf.name] = found
            return found

    def _go_to(self, group: Group) -> None:
        """Drop the group in use, and have this one in its place."""
        with self._state:
            if self._group is not None:
                self._group.reads = [*self._used]
                self._next[self._group] = group
            self._group, self._leaves, self._used = None, {}, {}
            leaves = self._expected(group)
        if leaves is None:
            if self.mode == "component":
                self.backend.release()
            leaves = self._read(group, group.reads)
        else:
            self._place(leaves, [*leaves])
        with self._state:
            self._group, self._leaves, self._used = group, leaves, {}
            if self.mode == "block" and not self._is_reading():
                reading = self._begin()
                if reading is not None:
                    self._start(reading)

    def _start(self, reading: _Reading) -> None:
        """Begin to read ahead; where no thread can begin, each group is read when it is asked for.
        """
        self._thread = threading.Thread(target=self._read_ahead, args=(reading,),
                                        name="refsd weights")
        with suppress(RuntimeError):
            self._thread.start()

    def _is_reading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _expected(self, group: Group) -> dict[str, Weight] | None:
        """What was read ahead of a group, waited for if need be; None if it was not expected."""
        while self._queue and self._queue[0][0] is not group:
            self._queue.popleft()
        reading = self._reading
        if not self._queue and reading is not None and reading.group is not group:
            reading.cancelled, self._reading = True, None
        while not self._queue and self._reading is not None and self._is_reading():
            self._state.wait(1)
        if not self._is_reading():
            self._reading = None
        failed, self._failed = self._failed, None
        if self._queue:
            return self._queue.popleft()[1]
        if failed is not None and failed[0] is group:
            raise _unreadable(failed[1])
        return None

    def _read_ahead(self, reading: _Reading | None) -> None:
        """The thread: read what follows until the queue is full."""
        while reading is not None:
            leaves, error = None, None
            try:
                leaves = self._read(reading.group, reading.group.reads, reading)
            except Exception as problem:  # is raised where the group is asked for
                error = problem
            with self._state:
                if self._reading is reading:
                    self._reading = None
                    if error is None:
                        self._queue.append((reading.group, leaves))
                    else:
                        self._failed = reading.group, error
                    self._state.notify_all()
            leaves = None  # they are the queue's
            reading = self._begin()

    def _begin(self) -> _Reading | None:
        """The next group to read ahead; None, and the end of the thread, where there is none."""
        with self._state:
            groups = [group for group, _ in self._queue]
            last = groups[-1] if groups else self._group
            following = None if last is None else self._next.get(last)
            full = sum(group.size for group in groups)
            if (following in (None, self._group, *groups) or self._failed is not None
                    or groups and full + following.size > AHEAD
                    or not threading.main_thread().is_alive()):
                self._thread = None
                return None
            self._reading = _Reading(following)
            return self._reading

    def _place(self, leaves: dict[str, Weight], names: Iterable[str]) -> None:
        """Convert leaves and lay them out as kernels read them, one after the other."""
        for name in names:
            placed = {name: leaves.pop(name)}
            self.backend.place(placed, passing=True)
            # a backend may have left converting to us
            leaves[name] = placed.pop(name).made(self.backend.empty)

    def _read(self, group: Group, names: Sequence[str],
              reading: _Reading | None = None) -> dict[str, Weight]:
        """Leaves by their names, one after the other; as kernels read them if they wait for it."""
        plan, form, dtype = self._parts[group.part]
        begun, found, start = time.perf_counter_ns(), {}, len(group.part) + 1
        try:
            for name, leaf in iter_leaves(
                    group.part, plan, dtype=dtype, weights=form, empty=self.backend.empty,
                    names=[name[start:] for name in names], later=True):
                if reading is not None and reading.cancelled:
                    break
                if leaf.name not in self._looked_at:
                    self._looked_at.add(leaf.name)
                    warn_nonfinite({name: leaf}, plan.source)
                found[leaf.name] = leaf
                del leaf  # its memory is not the placed one's
                if reading is None:
                    self._place(found, [*found][-1:])
        except (RefsdError, OSError) as problem:
            if reading is None:
                raise _unreadable(problem) from problem
            raise
        if self.listener is not None and found:
            size = sum(leaf.nbytes for leaf in found.values())
            self.listener(names[0].rpartition(".")[0], size, begun, time.perf_counter_ns())
        return found


def _unreadable(error: Exception) -> Exception:
    """What whoever computes is told, who has nothing to do with files."""
    if not isinstance(error, (RefsdError, OSError)):
        return error
    said = f"weights that were to be read while they are used: {error}"
    return ResourceError(said if isinstance(error, RefsdError) else f"{said}. Try again")


def _after_fork() -> None:
    for streamer in _streamers:
        streamer._begin_anew()


_streamers: weakref.WeakSet = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
