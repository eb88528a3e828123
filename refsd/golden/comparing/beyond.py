"""How many elements of a tensor are further off than they may be, and where they lie."""

from typing import Any

import numpy as np

Box = list[tuple[int, int]]


def beyond(golden: np.ndarray, got: np.ndarray, allowed: Any) -> np.ndarray:
    """Where |got - golden| > allowed, or one of the two is not finite and not met by its like."""
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64"))
        same = (got == golden) | (np.isnan(got) & np.isnan(golden))
        return ~same & ~(error <= allowed)


def where(mask: np.ndarray) -> str:
    """The elements of a mask in words: how many of how many, and the smallest box around them.

    5 of 384 elements, in a row: [0, 1, 2, 0:5]. A row varies along one axis, a tile along several
    with at least half of its elements; elements further apart are only within their box.
    """
    count = int(mask.sum())
    if not count:
        return ""
    box = _box(mask)
    inside = int(np.prod([stop - start for start, stop in box], dtype=object))
    lengths = [stop - start for start, stop in box]
    said = f"{count:,} of {mask.size:,} elements"
    if count == 1:
        return f"{said}, at {tuple(start for start, _ in box)}"
    if inside == mask.size:
        return said if count < mask.size else f"all {count:,} elements"
    shape = "in a row:" if sum(n > 1 for n in lengths) == 1 else (
        "in a tile:" if 2 * count >= inside else "within")
    return f"{said}, {shape} [{', '.join(map(_side, box, mask.shape))}]"


def _box(mask: np.ndarray) -> Box:
    found = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        found.append((int(line[0]), int(line[-1]) + 1))
    return found


def _side(side: tuple[int, int], size: int) -> str:
    """One axis of a box, as NumPy's indices are written."""
    start, stop = side
    if stop - start == 1:
        return str(start)
    return ":" if stop - start == size else f"{start}:{stop}"
