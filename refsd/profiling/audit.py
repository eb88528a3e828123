"""How near the numbers of a generation come to where float16 and bfloat16 end.

What is seen is what ops are given and what they give; sums within an op are of float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refsd.dense import to_dense
from refsd.half import HALVES, to_float32
from refsd.leaf import layer_of


class Format(NamedTuple):
    """largest: its largest number. Magnitudes from `infinite` on round to infinity, those up to
    `zero` to 0."""

    largest: float
    infinite: float
    zero: float


def _format(dtype: np.dtype) -> Format:
    info = ml_dtypes.finfo(dtype)
    largest = float(info.max)
    step = math.ldexp(float(info.eps), math.frexp(largest)[1] - 1)  # between the largest two
    return Format(largest, largest + step / 2, float(info.smallest_subnormal) / 2)


FORMATS = {name: _format(HALVES[name]) for name in ("float16", "bfloat16")}


class Extent(NamedTuple):
    """Of some numbers: the largest magnitude, how many are not 0, and of these how many become 0
    in each format."""

    largest: float
    others: int
    vanishing: dict[str, int]


class Overflow(NamedTuple):
    """The first number that a format does not hold: `what` is the output or an input's name."""

    op: str
    layer: str
    what: str
    largest: float
    inputs: dict[str, float]


@dataclass
class Row:
    """An op of a layer, over all its calls: magnitudes, and the output's numbers that vanish."""

    op: str
    layer: str
    calls: int = 0
    inputs: float = 0.0
    output: float = 0.0
    others: int = 0
    vanishing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMATS, 0))

    @property
    def largest(self) -> float:
        return max(self.inputs, self.output)

    def headroom(self, name: str) -> float:
        """A format's largest number over the largest here: below 1 it overflows."""
        return FORMATS[name].largest / self.largest if self.largest else math.inf

    def underflow(self, name: str) -> float:
        """The share of the output's numbers other than 0 that become 0."""
        return self.vanishing[name] / max(self.others, 1)


class Audit:
    """A listener: `with refsd.watch(audit): pipe(...)`. Draw in float32, which holds them all.

    An op without parameters belongs to the layer before it, as in refsd.profiling.profile.
    `first` has the first overflow of each format that has one.
    """

    def __init__(self):
        self.first: dict[str, Overflow] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._weights: dict[Any, Extent] = {}
        self._layer = ""

    def __call__(self, op: str, inputs: dict, options: dict, output: Any) -> None:
        self._layer = layer_of(inputs) or self._layer
        row = self._rows.setdefault((self._layer, op), Row(op, self._layer))
        given = {name: max((self._extent(array).largest for array in _arrays(value)), default=0.0)
                 for name, value in (inputs | options).items()}
        found = extent(output)
        row.calls += 1
        row.inputs = max(row.inputs, *given.values(), 0.0)
        row.output = max(row.output, found.largest)
        row.others += found.others
        for name, format in FORMATS.items():
            row.vanishing[name] += found.vanishing[name]
            if name not in self.first and max(found.largest, *given.values()) >= format.infinite:
                beyond = [key for key, value in given.items() if value >= format.infinite]
                what = beyond[0] if beyond else "output"
                self.first[name] = Overflow(op, self._layer, what, given.get(what, found.largest),
                                            {key: value for key, value in given.items() if value})

    def _extent(self, array: Any) -> Extent:
        """Of a leaf, which never changes, once."""
        key = getattr(array, "identity", None)
        if key is None:
            return extent(array)
        if key not in self._weights:
            self._weights[key] = extent(to_dense(array))
        return self._weights[key]

    @property
    def rows(self) -> list[Row]:
        """An op of a layer each, the nearest to the end first."""
        return sorted(self._rows.values(), key=lambda row: -row.largest)


def extent(array: Any) -> Extent:
    """The extent of an array; NaN counts as infinite, and integers as nothing."""
    if np.asarray(array).dtype.kind in "iub" or not array.size:
        return Extent(0.0, 0, dict.fromkeys(FORMATS, 0))
    sizes = np.abs(to_float32(array))
    largest = float(sizes.max())
    vanishing = {name: int(np.count_nonzero((sizes <= format.zero) & (sizes > 0)))
                 for name, format in FORMATS.items()}
    return Extent(math.inf if math.isnan(largest) else largest, int(np.count_nonzero(sizes)),
                  vanishing)


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from _arrays(element)
    elif getattr(value, "shape", ()):
        yield value


def describe(audit: Audit, name: str) -> str:
    """One sentence on the first overflow of a format."""
    first = audit.first.get(name)
    if first is None:
        return f"{name}: nothing overflows"
    what = f"its {first.what}" if first.what == "output" else f"its input {first.what}"
    inputs = ", ".join(f"{key} {value:.3g}" for key, value in first.inputs.items())
    return (f"{name}: the first to overflow is {first.op} of {first.layer or 'no layer'}: {what} "
            f"reaches {first.largest:.3g}, the largest number is {FORMATS[name].largest:.3g} "
            f"(its inputs: {inputs})")
