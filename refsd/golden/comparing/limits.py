"""Which tolerance a tensor of a candidate is held to, and how much of it the error takes."""

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf, erfc, fdtri

from refsd.golden.comparing.metrics import Metrics
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import TENSOR, references
from refsd.golden.tolerances.bounds import CONFIDENCE, bound
from refsd.golden.tolerances.bounds_conv import fits_winograd
from refsd.golden.tolerances.bounds_worst import WORST_OF_PORTS
from refsd.golden.tolerances.formats import FORMATS, format_named, uncertainty
from refsd.golden.tolerances.spread import CONFIDENCE as SPREAD_CONFIDENCE
from refsd.golden.tolerances.spread import RUNS, SKETCH
from refsd.golden.tolerances.stage_bounds import STAGE_BOUNDS, stage_bound


class Accepted(NamedTuple):
    """A tolerance that the user chose: |error| <= absolute + relative |golden|."""

    absolute: float
    relative: float = 0.0


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
    wide = np.abs(golden.astype("float64")) if accepted or entry.op is None else None
    if accepted is not None:
        return Limit("accepted", accepted.absolute + accepted.relative * wide)
    if entry.op is None:
        return Limit("given", uncertainty(wide, format) if golden.dtype.kind == "f" else 0.0)
    spread, note = spread_of(entry, network or format)
    if spread:
        return Limit("spread", float(spread["rms"]), note, _largest(spread))
    if entry.op == "to_bytes" and not _is_given(pack, entry):
        return _bytes(pack, entry, format, network or format)
    if _is_given(pack, entry):
        return Limit("op", _derived(pack, entry, golden, format))
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


def _largest(spread: dict[str, Any]) -> float:
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


def _is_given(pack: Any, entry: Entry) -> bool:
    """Whether the op's inputs are tensors that no op made: then a port has the very same."""
    if entry.op not in WORST_OF_PORTS and entry.op not in STAGE_BOUNDS:
        return False
    return all(name.startswith(TENSOR) and pack.entries[name.removeprefix(TENSOR)].op is None
               for value in entry.inputs.values() for name in references(value))


def of_winograd(pack: Any, entry: Entry, golden: np.ndarray, format: str) -> Limit | None:
    """The limit of a convolution on given inputs by Winograd's tiles, where they can compute it."""
    if entry.op != "conv2d" or not _is_given(pack, entry) or not fits_winograd(
            _read(pack, entry.inputs["weight"]), entry.options):
        return None
    return Limit("op", _derived(pack, entry, golden, format, algorithm="winograd4"))


def _read(pack: Any, value: Any) -> Any:
    """An input that is a tensor of the pack, a list of such, or a plain value."""
    if isinstance(value, list):
        return [_read(pack, one) for one in value]
    return pack.read(value.removeprefix(TENSOR)) if isinstance(value, str) else value


def _derived(pack: Any, entry: Entry, golden: np.ndarray, format: str,
             algorithm: str | None = None) -> np.ndarray:
    format = format_named(format).name
    inputs = {name: _read(pack, value) for name, value in entry.inputs.items()}
    if entry.op in STAGE_BOUNDS:
        return stage_bound(entry.op, inputs, entry.options, golden, format) + _kept(golden)
    options = dict(entry.options)
    if inputs.get("mask") is not None:  # an option of the op, an input of the entry
        options["mask"] = inputs.pop("mask")
    return bound(entry.op, inputs, options, golden, format=format,
                 confidence=CONFIDENCE, algorithm=algorithm).likely + _kept(golden)


def _kept(golden: np.ndarray) -> np.ndarray | float:
    """The golden numbers are float64 rounded to what they are kept in."""
    if golden.dtype != np.float32:
        return 0.0
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(golden), np.spacing(np.abs(golden)).astype("float64") / 2, 0)


class Excess(NamedTuple):
    """How many times the limit an error is, at which index.

    kind: the limit's, or "largest" where it is its largest that is exceeded.
    """

    times: float
    at: tuple[int, ...] | None
    kind: str = ""


def excess(golden: np.ndarray, got: np.ndarray, limit: Limit, metrics: Metrics) -> Excess:
    """The largest |error| / limit. What is not finite is judged elsewhere, and no error here."""
    if limit.is_rms:
        times, peak = _times(metrics.rms, limit.size), _times(metrics.max_abs, limit.largest)
        kind = "largest" if peak > 1 >= times else limit.kind
        return Excess(peak if kind == "largest" else times, metrics.max_abs_index, kind)
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64"))
        error[~np.isfinite(error)] = 0
        times = np.where(error > 0, error / limit.size, 0)
    if not times.size:
        return Excess(0.0, None, limit.kind)
    at = int(np.argmax(times))
    return Excess(float(times.ravel()[at]),
                  tuple(int(i) for i in np.unravel_index(at, golden.shape)), limit.kind)


def _times(error: float, size: float) -> float:
    return error / size if size else np.inf if error else 0.0
