"""Walks over arrays of one shape: axes merged where memory allows, at most four a launch."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from refsd.numba_ops.cuda.array import DeviceArray, contiguous_strides

AXES = 4


class Walk(NamedTuple):
    """One launch: where each array begins, how many elements, sizes of the last three axes of four,
    and four steps for each array."""

    starts: tuple[int, ...]
    count: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]


def merged(shape: Sequence[int], *strides: Sequence[int]) -> list[list[int]]:
    """[size, a step in each array] of each axis, outermost first: as few axes as do.

    Their order is that of the first array's memory. Axes of size 1 go.
    """
    axes: list[list[int]] = []
    for axis in sorted(range(len(shape)), key=lambda axis: (-strides[0][axis], axis)):
        n, steps = shape[axis], [s[axis] for s in strides]
        if axes and axes[-1][1:] == [n * step for step in steps]:
            axes[-1] = [axes[-1][0] * n, *steps]
        elif n != 1:
            axes.append([n, *steps])
    return axes


def regrouped(shape: Sequence[int], strides: Sequence[int],
              wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Strides under which the same elements are seen in the wanted shape; None if there are none.

    Neighbours that lie as one axis are one; from the innermost on each gives its sizes away.
    """
    if 0 in shape:
        return contiguous_strides(wanted)
    axes: list[list[int]] = [[1, 1]]
    for n, step in zip(shape, strides):
        if axes[-1][1] == n * step:
            axes[-1] = [axes[-1][0] * n, step]
        elif n != 1:
            axes.append([n, step])
    found = []
    for n in reversed(wanted):
        while n != 1 and axes[-1][0] == 1:
            axes.pop()
        size, step = axes[-1]
        if size % n:
            return None
        found.append(step)
        axes[-1] = [size // n, step * n]
    return tuple(reversed(found))


def walks(axes: list[list[int]], arrays: int) -> Iterator[Walk]:
    """The launches that take all elements: one, but for more than four axes."""
    shortest = sorted(range(len(axes)), key=lambda i: axes[i][0])[:max(0, len(axes) - AXES)]
    outer = [axes[i] for i in shortest]
    inner = [axis for i, axis in enumerate(axes) if i not in shortest]
    inner = [[1] + [0] * arrays] * (AXES - len(inner)) + inner
    sizes, *steps = zip(*inner)
    for index in itertools.product(*(range(n) for n, *_ in outer)):
        starts = tuple(sum(i * axis[1 + k] for i, axis in zip(index, outer)) for k in range(arrays))
        yield Walk(starts, math.prod(sizes), sizes[1:], tuple(itertools.chain(*steps)))


def from_element(x: DeviceArray, start: int) -> DeviceArray:
    """x's memory from its element `start` on, as a kernel is given it."""
    if start == 0:
        return x
    return DeviceArray((max(0, x.span - start),), (1,), x.dtype, x.block, x.offset + start)


def walker(gpu: Any) -> Any:
    """place(i, n1, n2, n3) -> (i0, i1, i2, i3): where element i is along four axes."""
    uint32 = gpu.uint32

    def place(i, n1, n2, n3):
        if i < n3:  # always, for arrays without gaps: they have one axis
            return uint32(0), uint32(0), uint32(0), i
        above3 = uint32(i // n3)  # uint32, or Numba divides 64 bits
        above2 = uint32(above3 // n2)
        above1 = uint32(above2 // n1)
        return (above1, uint32(above2 - above1 * n1), uint32(above3 - above2 * n2),
                uint32(i - above3 * n3))

    return gpu.device(place)
