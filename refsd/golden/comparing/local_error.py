"""Verdicts on a port's tensors: the error of each op on the inputs that the port gave it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.comparing.diagnose import Finding, diagnose
from refsd.golden.comparing.port_inputs import Given, Inputs
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.golden.tolerances.bounds_conv import fits_winograd
from refsd.golden.tolerances.bounds_likely import VARIANCE
from refsd.golden.tolerances.formats import Format, uncertainty

EXPLAINED, WRONG, SUSPECT, MISSING, OPEN = "explained", "wrong", "suspect", "missing", "open"
# Mistakes that can be as small as rounding in a bad order: where one explains it, it is one.
SMALL = ("wrong_eps", "biased_variance")
DIAGNOSED = 20  # wrong ops that are looked into; the rest is mostly the same mistake


@dataclass(frozen=True)
class Verdict:
    """One tensor: is what its op did explained by rounding?

    status: "explained"; "wrong" (its own error, on its own inputs, is beyond the bound); "suspect"
    (its error is beyond what the network spreads, its own or inherited); "missing" from the port;
    "open" (nothing to judge it by). times: the largest |error| / bound, at index `at`. local and
    inherited are root mean squares. borrowed: inputs for which golden ones had to stand in;
    computed: tensors that the port did not dump, and that were computed from what it did.
    """

    name: str
    op: str | None
    index: int
    status: str
    times: float = 0.0
    at: tuple[int, ...] | None = None
    local: float = 0.0
    inherited: float = 0.0
    borrowed: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    finding: Finding | None = None
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether something is not explained."""
        return self.status in (WRONG, SUSPECT)


class Judge:
    """judge(entry) is the Verdict on an entry; they are asked for in the order of execution."""

    def __init__(self, pack: Any, candidate: Any, format: Format, model: Any, confidence: float):
        self.pack, self.candidate, self.format = pack, candidate, format
        self.inputs = Inputs(pack, candidate, format, model, confidence)
        self._seen: set[str] = set()
        self._diagnosed = 0

    def __call__(self, entry: Entry) -> Verdict:
        got = self.candidate.read(entry.name, entry.shape)
        if got is None:
            return Verdict(entry.name, entry.op, entry.index, MISSING)
        if got.shape != entry.shape:
            return self._misshapen(entry, got)
        row = self._judge(entry, got, self.pack.read(entry.name))
        self._seen.add(entry.name)
        return row

    def _judge(self, entry: Entry, got: np.ndarray, golden: np.ndarray) -> Verdict:
        if entry.op not in (None, "block") and entry.inputs:
            return self._op(entry, got, golden)
        if entry.op is None:
            return self._copy(entry, got, golden, "what it is given differs")
        twin = next((name for name in self.inputs.twins(entry) if name in self._seen), None)
        if twin is not None:
            original = self.candidate.read(twin, entry.shape)
            return self._copy(entry, got, original, f"not the port's own {twin}")
        maker = self.inputs.maker(entry)
        if maker is not None:
            return replace(self._op(maker, got, golden), name=entry.name, index=entry.index)
        return self._network(entry, got, golden)

    def _op(self, entry: Entry, got: np.ndarray, golden: np.ndarray) -> Verdict:
        """The op again, on the port's inputs."""
        try:
            with np.errstate(all="ignore"):  # a port's NaN and infinities go through
                given = self.inputs.of(entry)
                truth = np.asarray(replay(entry, given.values))
        except (IndexError, UsageError) as error:
            return Verdict(entry.name, entry.op, entry.index, OPEN,
                           note=f"the op does not take the port's own inputs: {error}")
        times, at, local = excess(got, truth, self.inputs.allowed(entry, given, truth), self.format)
        if times > 1 and self._same(got, golden)[0] <= 1:
            # As of a pack itself: its inputs were rounded on their way there, and may cancel.
            return Verdict(entry.name, entry.op, entry.index, EXPLAINED, local=local,
                           note="the golden result")
        notes = [f"given the golden {', '.join(given.assumed)}"] if given.assumed else []
        finding = None
        if times > 1 and entry.op in VARIANCE:
            (times, at, local), note, finding = self._look_again(entry, got, truth, given,
                                                                 (times, at, local))
            notes += [note] if note else []
        if times > 1 and given.borrowed:
            return self._network(entry, got, golden, given.borrowed)
        row = Verdict(entry.name, entry.op, entry.index, EXPLAINED if times <= 1 else WRONG, times,
                      at, local, rms(truth, golden), given.borrowed, given.computed,
                      note="; ".join(notes))
        if times <= 1:
            return row
        return replace(row, finding=finding or self._why(entry, got, truth, given))

    def _look_again(self, entry: Entry, got: np.ndarray, truth: np.ndarray, given: Given,
                    first: tuple) -> tuple[tuple, str, Finding | None]:
        """Sums that are off by more than a random order makes likely: what else explains them.

        Winograd's algorithm, or an order that is worse than a random one, unless a mistake that is
        as small is what they look like: then that is the finding.
        """
        wino = entry.op == "conv2d" and fits_winograd(given.values["weight"], entry.options)
        looks = [("winograd4", False, "by the bound of Winograd's tiles")] if wino else []
        looks += [(None, True, "with sums in an order worse than a random one")]
        looks += [("winograd4", True, "by Winograd's tiles, in a bad order")] if wino else []
        for algorithm, any_order, note in looks:
            found = excess(got, truth, self.inputs.allowed(
                entry, given, truth, algorithm=algorithm, any_order=any_order), self.format)
            if found[0] <= 1:
                looks_like = self._finding(entry, got, truth, given) if any_order else None
                if looks_like is not None and looks_like.reason in SMALL:
                    return first, "", looks_like
                return found, note, None
        return first, "", None

    def _copy(self, entry: Entry, got: np.ndarray, truth: np.ndarray, note: str) -> Verdict:
        """The same numbers again, as far as the format holds them."""
        times, at, local = self._same(got, truth)
        row = Verdict(entry.name, entry.op, entry.index, EXPLAINED, times, at, local)
        return row if times <= 1 else replace(row, status=WRONG, note=note,
                                              finding=self._why(entry, got, truth))

    def _same(self, got: np.ndarray, truth: np.ndarray) -> tuple:
        """excess of what is to be the same numbers, rounded to the format."""
        # int8 is a format of weights: the activations are float32.
        kind = "float32" if self.format.name == "int8" else self.format
        allowed = uncertainty(truth, kind) if truth.dtype.kind == "f" else 0.0
        return excess(got, truth, allowed, self.format)

    def _network(self, entry: Entry, got: np.ndarray, golden: np.ndarray,
                 borrowed: tuple[str, ...] = ()) -> Verdict:
        """Own and inherited error together, against what the network up to here may spread."""
        row = Verdict(entry.name, entry.op, entry.index, OPEN, inherited=rms(got, golden),
                      borrowed=borrowed)
        spread = entry.tolerance.get(self.format.name, {}).get("spread")
        if spread is None:
            return replace(row, note=f"no {self.format.name} spread in the pack to judge it by")
        times = row.inherited / spread["rms"] if spread["rms"] else math.inf * row.inherited
        return replace(row, status=EXPLAINED if times <= 1 else SUSPECT, times=times)

    def _misshapen(self, entry: Entry, got: np.ndarray) -> Verdict:
        golden = self.pack.read(entry.name)
        return Verdict(entry.name, entry.op, entry.index, WRONG, math.inf,
                       finding=self._why(entry, got, golden),
                       note=f"its shape is {got.shape}, not {entry.shape}")

    def _why(self, entry: Entry, got: np.ndarray, truth: np.ndarray,
             given: Given | None = None) -> Finding | None:
        self._diagnosed += 1
        return self._finding(entry, got, truth, given) if self._diagnosed <= DIAGNOSED else None

    def _finding(self, entry: Entry, got: np.ndarray, truth: np.ndarray,
                 given: Given | None) -> Finding | None:
        before = None
        if entry.step:
            path = entry.name.split("/", 2)[2]
            before = self.candidate.read(f"{entry.stage}/{entry.step - 1:03d}/{path}", entry.shape)
        found = diagnose(entry, truth, got, inputs=None if given is None else given.values,
                         format=self.format.name, previous=before,
                         upstream=None if given is None else given.upstream)
        return next(iter(found), None)


def excess(got: np.ndarray, truth: np.ndarray, allowed: Any,
           format: Format) -> tuple[float, tuple[int, ...] | None, float]:
    """The largest |got - truth| / allowed, its index, and the root mean square of the error.

    The same infinity or NaN in both is no error, nor is an infinity where the truth is beyond the
    format's range; another one is infinitely wrong.
    """
    got, truth = np.asarray(got, "float64"), np.asarray(truth, "float64")
    if not truth.size:
        return 0.0, None, 0.0
    with np.errstate(all="ignore"):
        error = np.abs(got - truth)
        over = np.isinf(got) & (np.sign(got) == np.sign(truth)) & (
            np.abs(truth) + allowed >= format.largest)
        error[(got == truth) | (np.isnan(got) & np.isnan(truth)) | over] = 0
        error[np.isnan(error)] = math.inf
        times = np.where(error > 0, error / allowed, 0)
    place = int(np.argmax(times))
    at = tuple(int(i) for i in np.unravel_index(place, truth.shape))
    return float(times.ravel()[place]), at, rms(error, 0.0)


def rms(a: np.ndarray, b: Any) -> float:
    """The root of the mean of (a - b)^2, infinite where a NaN or infinity is in it."""
    with np.errstate(all="ignore"):
        error = np.asarray(a, "float64") - b
        mean = float(np.mean(error * error)) if error.size else 0.0
    return math.sqrt(mean) if math.isfinite(mean) else math.inf
