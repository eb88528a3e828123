"""How far two tensors are apart, in the measures that people compare ports with.

All sums are made in float64, in pieces, so that a tensor of any size needs little memory beyond
itself. Numbers that are NaN or infinite are counted and never averaged: a helper that sets them to
zero first calls a broken tensor good.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.tolerances.formats import FORMATS, format_named

PIECE = 1 << 18  # elements looked at together: 2 MB in float64

Index = tuple[int, ...]


@dataclass(frozen=True)
class Metrics:
    """What `measure` found. Errors are over the elements that are finite in both tensors.

    max_abs and max_rel (and max_ulp, in units of the format's last place at the golden number) are
    the largest, each with its index; rms the root of the mean square error; nmse the sum of squared
    errors over that of the golden numbers; pcc Pearson's correlation and cosine the angle's, None
    where they do not exist (a constant tensor); needed the smallest t such that
    |error| <= t + t |golden| everywhere. nonfinite counts the elements where NaN or infinity is
    not met by the same, nan_both those where both are NaN, inf_sign infinities and zero_sign zeros
    of the other sign.
    """

    count: int
    max_abs: float
    max_abs_index: Index | None
    max_rel: float
    max_rel_index: Index | None
    max_ulp: float
    max_ulp_index: Index | None
    rms: float
    nmse: float
    pcc: float | None
    cosine: float | None
    needed: float
    nonfinite: int
    nonfinite_index: Index | None
    nan_both: int
    inf_sign: int
    zero_sign: int

    def as_json(self) -> dict[str, Any]:
        """The measures as JSON can hold them: infinity as a word, indices as lists."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def measure(golden: np.ndarray, candidate: np.ndarray, *, format: str = "float32") -> Metrics:
    """The measures of a candidate against the golden tensor of the same shape.

    `format` is the one whose units in the last place are counted. Raises UsageError when the shapes
    differ or there is no such format.
    """
    if golden.shape != candidate.shape:
        raise UsageError(f"compare: the candidate is {candidate.shape}, the golden tensor "
                         f"{golden.shape}; give two of one shape")
    shape, golden, candidate = golden.shape, golden.reshape(-1), candidate.reshape(-1)
    tally = _Tally(format, shape)
    with np.errstate(all="ignore"):
        for start, g, c in _pieces(golden, candidate):
            tally.first(start, g, c)
        for _, g, c in _pieces(golden, candidate):
            tally.second(g, c)
    return tally.result()


def spacing(x: np.ndarray, format: str) -> np.ndarray:
    """The distance of neighbouring numbers of the format around |x|: one unit in the last place.

    Formats whose numbers share a scale have no last place of their own: there it is float32's.
    """
    known = format_named(format)
    known = FORMATS["float32"] if known.block else known
    # without the sign and the significand, float64's bits are those of the power of two below |x|
    power = (np.asarray(x, "float64").view("uint64") & np.uint64(0x7FF << 52)).view("float64")
    return np.maximum(power, 2.0**known.least) * 2.0 ** (1 - known.bits)


def _pieces(golden: np.ndarray, candidate: np.ndarray) -> Iterator[tuple]:
    for start in range(0, golden.size, PIECE):
        part = slice(start, start + PIECE)
        yield start, golden[part].astype("float64"), candidate[part].astype("float64")


class _Largest:
    """The largest value so far and where it was."""

    def __init__(self):
        self.value, self.position = 0.0, None

    def see(self, start: int, values: np.ndarray) -> None:
        position = int(np.argmax(values))
        if self.position is None or values[position] > self.value:
            self.value, self.position = float(values[position]), start + position


class _Tally:
    """Two passes over the pieces: extremes and means first, then what is centred on the means."""

    def __init__(self, format: str, shape: tuple[int, ...]):
        self.format, self.shape = format, shape
        self.abs, self.rel, self.ulp = _Largest(), _Largest(), _Largest()
        self.count = self.finite = self.nonfinite = self.nan_both = 0
        self.inf_sign = self.zero_sign = 0
        self.bad_position = None
        self.needed = self.errors = self.golds = self.cands = self.products = 0.0
        self.gold_sum = self.cand_sum = 0.0
        self.centred = np.zeros(3)

    def first(self, start: int, g: np.ndarray, c: np.ndarray) -> None:
        self.count += g.size
        error, size = np.abs(c - g), np.abs(g)
        if not math.isfinite(float(error.sum())):  # then some element is not, or the sum overflows
            good = np.isfinite(g) & np.isfinite(c)
            self._count_nonfinite(start, g, c, good)
            g, c, error, size = (np.where(good, x, 0) for x in (g, c, error, size))
            self.finite -= int((~good).sum())
        self.finite += g.size
        self._count_zeros(g, c)
        self.abs.see(start, error)
        self.rel.see(start, np.divide(error, size, out=np.zeros_like(error), where=error > 0))
        self.ulp.see(start, error / spacing(size, self.format))
        self.needed = max(self.needed, float((error / (1 + size)).max()))
        self.errors += float(error @ error)
        self.golds, self.cands = self.golds + float(g @ g), self.cands + float(c @ c)
        self.products += float(g @ c)
        self.gold_sum += float(g.sum())
        self.cand_sum += float(c.sum())

    def _count_zeros(self, g, c):
        zeros = (g == 0) & (c == 0)
        if zeros.any():
            self.zero_sign += int((np.signbit(g[zeros]) != np.signbit(c[zeros])).sum())

    def _count_nonfinite(self, start, g, c, good):
        same = np.isnan(g) & np.isnan(c)
        both_inf = np.isinf(g) & np.isinf(c)
        bad = ~good & ~same & ~(both_inf & (g == c))
        self.nan_both += int(same.sum())
        self.inf_sign += int((both_inf & (g != c)).sum())
        self.nonfinite += int(bad.sum())
        if self.bad_position is None and bad.any():
            self.bad_position = start + int(np.argmax(bad))

    def second(self, g: np.ndarray, c: np.ndarray) -> None:
        if not self.finite:
            return
        finite = self.finite == self.count or np.isfinite(g) & np.isfinite(c)
        g, c = g - self.gold_sum / self.finite, c - self.cand_sum / self.finite
        if finite is not True:
            g, c = np.where(finite, g, 0), np.where(finite, c, 0)
        self.centred += (float(g @ g), float(c @ c), float(g @ c))

    def result(self) -> Metrics:
        n = max(self.finite, 1)
        return Metrics(
            count=self.count, max_abs=self.abs.value, max_abs_index=self._index(self.abs.position),
            max_rel=self.rel.value, max_rel_index=self._index(self.rel.position),
            max_ulp=self.ulp.value, max_ulp_index=self._index(self.ulp.position),
            rms=math.sqrt(self.errors / n),
            nmse=self.errors / self.golds if self.golds else math.inf if self.errors else 0.0,
            pcc=self._correlation(), cosine=self._cosine(self.golds, self.cands, self.products),
            needed=self.needed, nonfinite=self.nonfinite,
            nonfinite_index=self._index(self.bad_position), nan_both=self.nan_both,
            inf_sign=self.inf_sign, zero_sign=self.zero_sign)

    def _index(self, position: int | None) -> Index | None:
        return None if position is None else tuple(
            int(i) for i in np.unravel_index(position, self.shape))

    def _correlation(self) -> float | None:
        """None for a constant tensor: what subtracting its rounded mean leaves is no signal."""
        n = max(self.finite, 1)
        gold, cand, product = self.centred
        for spread, total in ((gold, self.gold_sum), (cand, self.cand_sum)):
            if spread <= n * (n * 2.0**-53 * total / n) ** 2:
                return None
        return self._cosine(gold, cand, product)

    def _cosine(self, gold: float, cand: float, product: float) -> float | None:
        """1 for equal tensors, whatever the roundings of the sums, and for no others."""
        size = math.sqrt(gold) * math.sqrt(cand)
        if not size:
            return None
        return min(product / size, math.nextafter(1, 0)) if self.errors else 1.0
