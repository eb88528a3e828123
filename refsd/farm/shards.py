"""--shard I/N: units dealt to N machines, by cost, the same wherever it is done."""

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[int], parts: int) -> list[list[int]]:
    """The indices of each part: the costliest first, each to the part that has least to do so far.

    Of equal ones the first. Two parts' sums are then apart by at most one unit's cost, and the
    largest is at most 4/3 of the least that any dealing gives (Graham 1969). Costs are integers,
    whose sums all machines agree on.
    """
    heap = [(0, part) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        total, part = heap[0]
        dealt[part].append(index)
        heapq.heapreplace(heap, (total + costs[index], part))
    return [sorted(part) for part in dealt]
