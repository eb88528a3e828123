"""Which tolerance a tensor of a candidate is held to."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf, erfc, fdtri

from refsd.golden.packs.manifest import Entry, references
from refsd.golden.recording.replay import TENSOR, arrays_of, raise_to_float64
from refsd.golden.tolerances.bounds import (
    CONFIDENCE,
    WEIGHTS,
    bound,
    error_model,
    input_error,
    positional,
)
from refsd.golden.tolerances.bounds.conv import fits_winograd
from refsd.golden.tolerances.bounds.pipeline import PIPELINE_BOUNDS, pipeline_bound
from refsd.golden.tolerances.formats import FORMATS, format_named, uncertainty
from refsd.golden.tolerances.precision import quantile
from refsd.golden.tolerances.spread import CONFIDENCE as SPREAD_CONFIDENCE
from refsd.golden.tolerances.spread import RUNS, SKETCH


class Accepted(NamedTuple):
    """A tolerance that the user chose: |error| <= absolute + relative |golden|."""

    absolute: float
    relative: float = 0.0

    def of(self, truth: np.ndarray) -> np.ndarray:
        """What each element may be off by."""
        return self.absolute + self.relative * np.abs(truth.astype("float64"))


class Limit(NamedTuple):
    """What an error is held to.

    kind: "accepted" (the user's), "given" (no op made the tensor: only rounding to the format),
    "op" (derived for this op on inputs that the pack gives), "spread" (what right ports of the
    whole network differ by: a root mean square), "likely" (of the op alone; the inputs of a
    candidate's op are its own, so that more may be inherited), "bytes" (a byte more or less where
    the spread of the picture's number reaches across the middle of two). size: an array like the
    tensor, or a number. largest: beside a root mean square, what no element may exceed.
    """

    kind: str
    size: Any
    note: str = ""
    largest: float = np.inf

    @property
    def is_rms(self) -> bool:
        """Whether it holds for the root mean square instead of each element."""
        return self.kind == "spread"

    @property
    def of_elements(self) -> Any:
        """What each element is held to."""
        return self.largest if self.is_rms else self.size


def limit_of(pack: Any, entry: Entry, golden: np.ndarray, *, format: str,
             accepted: Accepted | None = None, network: str = "") -> Limit | None:
    """The tolerance of a tensor for ports in a format; None where nothing is known.

    network: the coarsest format of the ops up to there, where they are not all in the same.
    """
    if accepted is not None:
        return Limit("accepted", accepted.of(golden))
    if entry.op is None:
        wide = np.abs(golden.astype("float64"))
        return Limit("given", uncertainty(wide, format) if golden.dtype.kind == "f" else 0.0)
    spread, note = spread_of(entry, network or format)
    if spread:
        return Limit("spread", float(spread["rms"]), note, largest_of(spread))
    if has_external_inputs(pack, entry):
        return op_limit(pack, entry, golden, format)
    if entry.op == "to_bytes":
        return _bytes(pack, entry, format, network or format)
    stored = entry.tolerance.get(format_named(format).name)
    likely = stored.get("likely") if isinstance(stored, dict) else None
    return Limit("likely", likely + _kept(golden)) if type(likely) in (int, float) else None


def spread_of(entry: Entry, format: str) -> tuple[dict[str, Any] | None, str]:
    """What right ports in a format differ by, and a note where that is a coarser format's.

    A port whose every rounding is smaller is not further off: float16's are within bfloat16's.
    """
    wanted = format_named(format)
    known = {name: numbers["spread"] for name, numbers in entry.tolerance.items()
             if name in FORMATS and isinstance(numbers, dict) and "spread" in numbers}
    if wanted.name in known:  # null where the reference itself overflows in the format
        return _usable(known[wanted.name]), ""
    for name in sorted(known, key=lambda name: FORMATS[name].unit):
        coarser = FORMATS[name].unit >= wanted.unit and not FORMATS[name].block
        if coarser and not wanted.block and _usable(known[name]):
            return known[name], f"held to the spread of {name}: the pack has none of {wanted.name}"
    return None, ""


def _usable(spread: Any) -> dict[str, Any] | None:
    """A spread with its numbers: anybody may have written the pack."""
    good = isinstance(spread, dict) and all(type(spread.get(key)) in (int, float)
                                            for key in ("rms", "max"))
    return spread if good else None


def largest_of(spread: dict[str, Any]) -> float:
    """What no element of one more right run is off by, but with the probability 1 - confidence."""
    runs, confidence = spread.get("runs", RUNS), spread.get("confidence", SPREAD_CONFIDENCE)
    good = type(runs) is int and runs > 1 and type(confidence) is float and 0 < confidence < 1
    return spread["max"] * _peak(*(runs, confidence) if good else (RUNS, SPREAD_CONFIDENCE))


@functools.lru_cache
def _peak(runs: int, confidence: float) -> float:
    """How many times a spread's `max` an element of one more run may be off.

    max is the largest error of `runs` runs times a factor (spread.Errors.limit), which is at least
    that of errors in SKETCH directions. The worst case is a tensor in which one element alone has
    large errors, of a scale s that nobody knows: that all runs stay below m there and one more is
    beyond c m has, for normal errors, the probability erf(x)^runs erfc(c x), x = m / (s sqrt 2).
    c is the smallest for which that is at most 1 - confidence whatever x is. (Of several such
    elements one is more often beyond, but all runs of all of them are more rarely below m.)
    """
    x = np.geomspace(1e-3, 8, 1000)
    below = erf(x) ** runs
    low, high = 1.0, 1e6
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        beyond = float((below * erfc(middle * x)).max()) > 1 - confidence
        low, high = (middle, high) if beyond else (low, middle)
    return high / float(fdtri(SKETCH, runs * SKETCH, confidence)) ** 0.5


def _bytes(pack: Any, entry: Entry, format: str, network: str) -> Limit | None:
    """round(255 x) of numbers x that may differ by what their tensor spreads."""
    source = pack.entries[next(references(entry.inputs["x"])).removeprefix(TENSOR)]
    spread, note = spread_of(source, network)
    if not spread:
        return None
    exact = 255 * pack.read(source.name).astype("float64")
    to_middle = np.abs(exact - np.floor(exact) - 0.5)
    reach = 255 * spread["max"] + 256 * format_named(format).unit  # and 255 x is rounded
    return Limit("bytes", np.where(to_middle <= reach, np.ceil(reach), np.floor(reach)), note)


def has_external_inputs(pack: Any, entry: Entry) -> bool:
    """Whether the op's inputs are tensors that no op made: then a port has the very same."""
    if error_model(entry.op) is None and entry.op not in PIPELINE_BOUNDS:
        return False
    return all(name.startswith(TENSOR) and pack.entries[name.removeprefix(TENSOR)].op is None
               for value in entry.inputs.values() for name in references(value))


def op_limit(pack: Any, entry: Entry, golden: np.ndarray, format: str,
             algorithm: str | None = None) -> Limit | None:
    """The op's own, on the inputs that the pack has; None if the algorithm cannot compute it."""
    values = arrays_of(entry, tensor=pack.read, weight=None)
    if algorithm is not None and not takes_tiles(entry, values):
        return None
    return Limit("op", allowed(entry, values, golden, format=format_named(format).name,
                               confidence=CONFIDENCE, cast=True, algorithm=algorithm)
                 + _kept(golden))


def takes_tiles(entry: Entry, values: dict[str, Any]) -> bool:
    """Whether it is a convolution that Winograd's tiles can compute."""
    return entry.op == "conv2d" and fits_winograd(values["weight"], entry.options)


def allowed(entry: Entry, values: dict[str, Any], truth: np.ndarray, *, format: str,
            confidence: float, perturbations: dict[str, Any] | None = None,
            algorithm: str | None = None, any_order: bool = False,
            cast: bool = False) -> np.ndarray:
    """How far a right port's result of an entry's op may be from the truth on these inputs.

    perturbations: as error_of has them. cast: inputs with more digits than the format has may have
    been rounded to it, or not.

    The likely bound takes sums to run in a random order. A fixed one can be worse: channel by
    channel, partial sums drift away and come back. any_order adds what holds whatever the
    order (Higham and Mary 2019): n roundings u of at most the sum of |terms|, of random signs,
    are lambda sqrt(n / 3) u of it, where the worst case is n u.
    """
    if entry.op in PIPELINE_BOUNDS:
        return pipeline_bound(entry.op, values, entry.options, truth, format)
    both, carried, factor = _errors(entry, values, truth, format, confidence, perturbations or {},
                                    algorithm, cast)
    size = both.likely
    if any_order:
        # Of sums of several kinds the shortest; Winograd's are over the channels.
        count = (min(error_model(entry.op).terms(*_arguments(entry, values)[1:]))
                 if algorithm is None else values["weight"].shape[1])
        size = size + both.worst * min(1.0, factor / math.sqrt(3 * count))
    return _finite_or_all(size + factor * np.sqrt(carried))


def error_of(entry: Entry, values: dict[str, Any], truth: np.ndarray, *, format: str,
             confidence: float, perturbations: dict[str, Any]) -> np.ndarray:
    """The perturbation of an op's result that a later op computes with.

    A perturbation is sqrt(3) standard deviations of each number's error: what one that is spread
    evenly up to there has, as a rounding is. Variances add up from op to op. A bound at some
    confidence is made of them once, at the op that is judged: one made of each op's bound would
    grow by lambda at each, and be 1e40 times too large after a transformer block's 24.
    """
    both, carried, _ = _errors(entry, values, truth, format, confidence, perturbations, None, True)
    return _finite_or_all(np.sqrt(3 * (both.deviation**2 + carried)))


def _errors(entry, values, truth, format, confidence, perturbations, algorithm, cast):
    """The op's own bound, the variance of what perturbed inputs make of it, and lambda."""
    names, args, options = _arguments(entry, values)
    exact = [name for name in names
             if name not in WEIGHTS and (name in perturbations or not cast)]
    both = bound(entry.op, values, options, truth, format=format, given=exact,
                 confidence=confidence, algorithm=algorithm)
    factor, carried = quantile(truth.size, confidence), 0.0
    if perturbations:
        errors = [perturbations.get(name, _zeros_like(arg)) for name, arg in zip(names, args)]
        with np.errstate(all="ignore"):
            found = input_error(entry.op, args, options, np.nan_to_num(truth), errors, factor)
            carried = 0.0 if found is None else found[1]
    return both, carried, factor


def _arguments(entry, values):
    """The names of an op's tensors, these in float64, and its options.

    An option that is an array (a mask) is an input of the entry.
    """
    names = [name for name in positional(entry.op) if values.get(name) is not None]
    options = entry.options | {name: value for name, value in values.items()
                               if name not in names and value is not None}
    return names, [raise_to_float64(values[name]) for name in names], options


def _finite_or_all(size):
    """Infinite where it is too large for a number."""
    return np.where(np.isnan(size), np.inf, size)


def _zeros_like(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_zeros_like(member) for member in arg]
    return np.zeros(np.shape(arg))


def _kept(golden: np.ndarray) -> np.ndarray | float:
    """The golden numbers are float64 rounded to what they are kept in."""
    if golden.dtype != np.float32:
        return 0.0
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(golden), np.spacing(np.abs(golden)).astype("float64") / 2, 0)
