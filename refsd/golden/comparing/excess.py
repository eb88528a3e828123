"""How far a tensor is from what it should be, in units of what it may differ by, and where."""

import math
from typing import Any, NamedTuple

import numpy as np

from refsd.golden.tolerances.formats import Format


class Excess(NamedTuple):
    """The largest |error| / allowed, its index, the error's root mean square, whether what is
    allowed tells right from wrong (`informative`), and how many elements are beyond it, and where.
    """

    times: float
    at: tuple[int, ...] | None
    rms: float
    informative: bool = True
    beyond: int = 0
    where: str = ""

    @property
    def within(self) -> bool:
        """Whether the tensor is within its tolerance."""
        return self.informative and self.times <= 1


def excess(got: np.ndarray, truth: np.ndarray, allowed: Any, format: Format,
           informative: bool = True) -> Excess:
    """How far `got` is from the truth, which it may differ from by `allowed` everywhere.

    The same infinity or NaN in both is no error, nor is an infinity where the truth is beyond the
    format's range; another one is infinitely wrong.
    """
    got, truth = np.asarray(got, "float64"), np.asarray(truth, "float64")
    if not truth.size:
        return Excess(0.0, None, 0.0, informative)
    with np.errstate(all="ignore"):
        error = np.abs(got - truth)
        over = np.isinf(got) & (np.sign(got) == np.sign(truth)) & (
            np.abs(truth) + allowed >= format.largest)
        error[(got == truth) | (np.isnan(got) & np.isnan(truth)) | over] = 0
        error[np.isnan(error)] = math.inf
        times = np.where(error > 0, error / allowed, 0)
    worst = int(np.argmax(times))
    at = tuple(int(i) for i in np.unravel_index(worst, truth.shape))
    mask = times > 1
    pattern = (int(mask.sum()), where(mask)) if mask.any() else ()
    return Excess(float(times.ravel()[worst]), at, rms(error, 0.0), informative, *pattern)


def rms(a: np.ndarray, b: Any) -> float:
    """The root of the mean of (a - b)^2, infinite where a NaN or infinity is in it."""
    with np.errstate(all="ignore"):
        error = np.asarray(a, "float64") - b
        mean = float(np.mean(error * error)) if error.size else 0.0
    return math.sqrt(mean) if math.isfinite(mean) else math.inf


def is_informative(allowed: np.ndarray, truth: np.ndarray, loose: bool) -> bool:
    """Whether a bound tells right from wrong: it is finite, and not above the tensor's own size.

    loose: it was carried through ops that are judged together, or takes the worst of many
    roundings in a row. That of a single op on its own inputs is what it is, whatever cancels there.
    """
    finite = np.isfinite(truth)
    allowed = np.broadcast_to(allowed, truth.shape)[finite]
    if not np.isfinite(allowed).all():
        return False
    return not loose or rms(allowed, 0.0) <= rms(truth[finite], 0.0)


def first_lost(got: np.ndarray, truth: np.ndarray, format: Format) -> tuple[int, ...] | None:
    """Where the port has first a NaN or an infinity that the op did not have to make."""
    with np.errstate(all="ignore"):
        over = np.isinf(got) & (np.sign(got) == np.sign(truth)) & (np.abs(truth) >= format.largest)
    bad = ~np.isfinite(got) & np.isfinite(truth) & ~over
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None


def ratio(error: float, limit: float) -> float:
    """error / limit; no error is none of any limit."""
    return error / limit if limit else math.inf if error else 0.0


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
    lengths = [stop - start for start, stop in box]
    inside = math.prod(lengths)
    text = f"{count:,} of {mask.size:,} elements"
    if count == 1:
        return f"{text}, at {tuple(start for start, _ in box)}"
    if inside == mask.size:
        return text if count < mask.size else f"all {count:,} elements"
    shape = "in a row:" if sum(n > 1 for n in lengths) == 1 else (
        "in a tile:" if 2 * count >= inside else "within")
    return f"{text}, {shape} [{', '.join(map(_side, box, mask.shape))}]"


def _box(mask: np.ndarray) -> list[tuple[int, int]]:
    sides = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        sides.append((int(line[0]), int(line[-1]) + 1))
    return sides


def _side(side: tuple[int, int], size: int) -> str:
    """One axis of a box, as NumPy's indices are written."""
    start, stop = side
    if stop - start == 1:
        return str(start)
    return ":" if stop - start == size else f"{start}:{stop}"
