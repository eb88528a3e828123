"""Which tolerance a tensor of a candidate is held to, and how much of it the error takes."""

from typing import Any, NamedTuple

import numpy as np

from refsd.golden.comparing.metrics import Metrics
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import TENSOR, references
from refsd.golden.tolerances.bounds import CONFIDENCE, bound
from refsd.golden.tolerances.bounds_conv import fits_winograd
from refsd.golden.tolerances.bounds_worst import WORST_OF_PORTS
from refsd.golden.tolerances.formats import FORMATS, format_named, uncertainty
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
    tensor, or a number.
    """

    kind: str
    size: Any
    note: str = ""

    @property
    def is_rms(self) -> bool:
        """Whether it holds for the root mean square instead of each element."""
        return self.kind == "spread"


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
        return Limit("spread", float(spread["rms"]), note)
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
    """How many times the limit an error is, at which index, and which two numbers are there."""

    times: float
    at: tuple[int, ...] | None


def excess(golden: np.ndarray, got: np.ndarray, limit: Limit, metrics: Metrics) -> Excess:
    """The largest |error| / limit. What is not finite is judged elsewhere, and no error here."""
    if limit.is_rms:
        return Excess(_times(metrics.rms, limit.size), metrics.max_abs_index)
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64"))
        error[~np.isfinite(error)] = 0
        times = np.where(error > 0, error / limit.size, 0)
    if not times.size:
        return Excess(0.0, None)
    at = int(np.argmax(times))
    return Excess(float(times.ravel()[at]),
                  tuple(int(i) for i in np.unravel_index(at, golden.shape)))


def _times(error: float, size: float) -> float:
    return error / size if size else np.inf if error else 0.0
