"""Walks over arrays of one shape: axes merged where memory allows, at most four a launch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

AXES = 4


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


def launches(axes: list[list[int]], arrays: int) -> Iterator[tuple[list[int], tuple, list]]:
    """What each launch needs of the axes: where each array begins, four sizes, the arrays' steps.

    One launch, but for more than four axes.
    """
    outer, inner = axes[:-AXES], axes[-AXES:]
    inner = [[1] + [0] * arrays] * (AXES - len(inner)) + inner
    sizes, *steps = zip(*inner)
    for index in itertools.product(*(range(n) for n, *_ in outer)):
        starts = [sum(i * axis[1 + k] for i, axis in zip(index, outer)) for k in range(arrays)]
        yield starts, sizes, steps


def walker(gpu: Any) -> Any:
    """place(i, n1, n2, n3) -> (i0, i1, i2, i3): where element i is along four axes."""
    uint32 = gpu.uint32

    def place(i, n1, n2, n3):
        above3 = uint32(i // n3)
        above2 = uint32(above3 // n2)
        above1 = uint32(above2 // n1)
        return (above1, uint32(above2 - above1 * n1), uint32(above3 - above2 * n2),
                uint32(i - above3 * n3))

    return gpu.device(place)
