"""What a mistake looks like: which known wrong version gives the candidate's numbers.

With an op's inputs the wrong versions are computed (comparing.variants) and compared with the
candidate: then the answer is nearly certain. Without, the candidate is fitted to the golden tensor:
a scale, an offset, a permutation, a shift (comparing.fits). A finding carries the share of the
squared error that it explains; where nothing explains the error, nothing is said.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import RefsdError
from refsd.golden.comparing import fits
from refsd.golden.comparing.siblings import siblings
from refsd.golden.comparing.variants import ACTIVATIONS, variants
from refsd.golden.comparing.variants_chain import Link, through
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording import names
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.golden.recording.replay import TENSOR, arrays_of, raise_to_float64, replay, weights
from refsd.golden.tolerances.formats import FORMATS, format_named, round_to
from refsd.registry import ops

# A wrong version must explain so much of the squared error: nine tenths, so that the rounding of a
# short format beside a small mistake does not hide it, and no chance likeness passes.
SHARE = 0.9
# A version without fitted numbers that leaves no more of it goes before all that have some: those
# take up the roundings of a port's constants too (alpha_bar, say), and so leave a hair less still.
CERTAIN = 1 - 1e-6
LARGE = 1 << 25  # elements; to look into more would take gigabytes


@dataclass(frozen=True)
class Finding:
    """A reason by its stable key, for people, and the share of the squared error it explains."""

    reason: str
    sentence: str
    confidence: float


class Guess(NamedTuple):
    """A wrong version: what it would have given, in the shape of the candidate.

    fitted: how many numbers of it were fitted to the candidate; own: where it has the candidate's
    own elements (a mask), which say nothing for it.
    """

    reason: str
    sentence: str
    array: np.ndarray
    fitted: int = 0
    own: np.ndarray | None = None


def diagnose(entry: Entry, golden: np.ndarray, candidate: np.ndarray,
             inputs: Mapping[str, Any] | None = None, *, format: str = "float32",
             previous: np.ndarray | None = None,
             upstream: Mapping[str, tuple[Entry, Mapping[str, Any]]] | None = None,
             factors: Iterable[float] = (),
             chain: tuple[Link, Mapping[str, Link]] | None = None,
             others: Iterable[tuple[str, np.ndarray]] = ()) -> list[Finding]:
    """The reasons that explain why the candidate is not the golden tensor, the best first.

    golden: what the entry's op gives in float64 on these inputs (without inputs: the pack's
    tensor). inputs: the op's, by parameter. previous: the same tensor one step earlier. upstream:
    the op that made an input, and its own inputs, where a mistake may be that it was left out.
    factors: scaling factors of the model, besides those of Stable Diffusion. chain: the op with its
    inputs, and the ops before it that the port did not dump, by name. others: by name, what layers
    with other weights make of the same input. format: what the port computes in.
    """
    golden, candidate = np.asarray(golden), np.asarray(candidate)
    if candidate.shape != golden.shape:
        return _ranked(_of_shape(golden, candidate), candidate)
    truth, got = golden.astype("float64"), candidate.astype("float64")
    finite = np.isfinite(truth) & np.isfinite(got)
    findings = [Finding(*finding) for finding in (*fits.bits(golden, candidate),
                                                  *fits.nonfinite(truth, got))]
    if not finite.any() or _squares(truth, got, finite) == 0:
        return findings
    exchanged = (Guess("swapped_weights", f"it is what {name} should be: the weights have changed "
                       "places", array) for name, array in others)
    guesses = itertools.chain(_guesses(
        entry, truth, got, inputs, previous, upstream, factors, chain), exchanged)
    with np.errstate(all="ignore"):
        scores = [_scored(guess, truth, got, finite) for guess in guesses]
    findings += _ranked(scores, got[finite])
    return findings or _rounding(truth, got, finite, format_named(format).name)


def _guesses(entry, truth, got, inputs, previous, upstream, factors, chain) -> Iterator[Guess]:
    """Every wrong version that is known, the most specific first."""
    if not got.any():
        yield Guess("zeros", "all its numbers are 0: it may never have been written", got)
    if previous is not None and previous.shape == truth.shape:
        yield Guess("stale", "it is the tensor of the step before", previous.astype("float64"))
    if inputs:
        wide = {name: raise_to_float64(value) for name, value in inputs.items()}
        for guess in variants(entry, wide, truth, got, upstream or {}):
            if np.shape(guess[2]) == truth.shape:
                yield Guess(*guess)
    if chain is not None:
        yield from (Guess(*guess) for guess in through(*chain))
    yield from (Guess(*guess) for guess in fits.same_shape(entry, truth, got, factors))


class _Score(NamedTuple):
    """A guess without its array: there are many, and they may be large."""

    reason: str
    sentence: str
    left: float  # the mean squared error that is not explained
    share: float
    fitted: int


def _scored(guess: Guess, truth: np.ndarray | None, got: np.ndarray,
            finite: np.ndarray) -> _Score:
    """What a guess leaves of the error truth - got (without a truth: of all that the guess is).

    Each number that was fitted takes an element's error away without explaining it. So the mean is
    over the rest: more freedom alone does not make a guess better.
    """
    judged, fitted = finite, guess.fitted
    if guess.own is not None:
        judged, fitted = finite & ~guess.own, fitted + int(guess.own.sum())
    array = np.asarray(guess.array, "float64")
    left = _squares(array, got, judged)
    error = _squares(array, np.zeros_like(got), judged) if truth is None else (
        _squares(truth, got, judged))
    share = 1 - left / error if error > 0 else 0.0
    return _Score(guess.reason, guess.sentence,
                  left / max(int(judged.sum()) - guess.fitted, 1), share, fitted)


def _of_shape(golden: np.ndarray, candidate: np.ndarray) -> list[_Score]:
    """Candidates of another shape, against the golden tensor brought to it in every known way."""
    got = candidate.astype("float64")
    with np.errstate(all="ignore"):
        return [_scored(Guess(*guess), None, got, np.isfinite(got))
                for guess in fits.other_shape(golden.astype("float64"), got)]


def _squares(a: np.ndarray, b: np.ndarray, finite: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        total = float(((a[finite] - b[finite]) ** 2).sum())
    return total if np.isfinite(total) else np.inf


def _ranked(scores: Iterable[_Score], got: np.ndarray) -> list[Finding]:
    """Each reason once, those that explain enough, the best first.

    Among those that leave equally little, the plainest: the one with the fewest fitted numbers, of
    these the one tried first (the most specific). Equal is what differs by less than the rounding
    of the candidate's own numbers, or by a factor of two. Where one without fitted numbers is
    certain, the others are not asked.
    """
    scores = [score for score in scores if score.share >= SHARE]
    if any(score.share >= CERTAIN and not score.fitted for score in scores):
        scores = [score for score in scores if not score.fitted]
    if not scores:
        return []
    got = got[np.isfinite(got)].astype("float64")
    unit = FORMATS[grid(got)].unit
    noise = float((got * got).mean()) * unit**2
    tie = 2 * min(score.left for score in scores) + noise
    best = {}
    # stable: what is alike stays in the order in which it was tried
    for score in sorted(scores, key=lambda score: (
            max(score.left, tie), score.fitted if score.left <= tie else 0)):
        best.setdefault(score.reason, Finding(score.reason, score.sentence, float(score.share)))
    return list(best.values())


def grid(x: np.ndarray) -> str:
    """The shortest of bfloat16, float16 and float32 that holds every finite number of x."""
    x = np.asarray(x, "float64").ravel()
    x = x[np.isfinite(x)]
    for name in ("bfloat16", "float16"):
        if x.size and np.array_equal(round_to(x, name), x):
            return name
    return "float32"


def _rounding(truth, got, finite, format) -> list[Finding]:
    """All numbers are those of a shorter format, and no further off than that explains."""
    truth, got = truth[finite], got[finite]
    name = grid(got)
    size, error = np.sqrt((truth**2).mean()), np.sqrt(((truth - got) ** 2).mean())
    # a few roundings in a row, as between an op's input and its output
    few = name != format and name != "float32" and error <= 4 * FORMATS[name].unit * size
    if not few or grid(truth) == name:
        return []
    nearest = round_to(truth, name)
    short = {"bfloat16": "bf16", "float16": "fp16"}[name]
    cut = _truncated(truth, nearest, name)
    left = float(((got - cut) ** 2).sum())
    if left < 0.1 * float(((got - nearest) ** 2).sum()):
        return [Finding("truncated", f"all numbers are those of {name}, cut off towards zero "
                        "instead of rounded to the nearest", 1.0)]
    share = float((got == nearest).mean())
    return [Finding(f"{short}_rounding", f"all numbers are those of {name}: it was rounded or "
                    "computed in it" + (" (the golden numbers, rounded, are equal)" if share == 1
                                        else ""), max(share, SHARE))]


def _truncated(truth, nearest, name):
    """Towards zero: the nearest number, or the one before it where that is beyond the truth."""
    beyond = np.abs(nearest) > np.abs(truth)
    step = 2.0 ** (1 - FORMATS[name].bits) * 2.0 ** np.floor(np.log2(np.maximum(
        np.abs(truth), FORMATS[name].tiny)))
    return np.where(beyond, nearest - np.sign(nearest) * step, nearest)


class Evidence:
    """Reasons for one candidate's mistakes, from the pack and from what the candidate dumped."""

    def __init__(self, pack: Any, candidate: Any, model: Any = None):
        self.pack, self.candidate, self._weight = pack, candidate, weights(pack, model)
        factor = pack.manifest.model.get("scaling_factor")
        self._factors = (factor,) if type(factor) is float and factor > 0 else ()

    def findings(self, entry: Entry, golden: np.ndarray, got: np.ndarray,
                 format: str) -> tuple[tuple[Finding, ...], str]:
        """What the mistake looks like, the likeliest first, and why its op could not be computed.

        That may be a model that is not here; then the tensor is only fitted to the golden one.
        """
        if golden.size > LARGE:
            return (), ""
        inputs, doubt, truth = None, "", golden
        try:
            inputs = self.inputs(entry)
        except RefsdError as error:
            doubt = str(error)
        if inputs is not None and got.shape == golden.shape:
            try:
                truth = np.asarray(replay(entry, inputs))
            except (IndexError, RefsdError) as error:  # ids that are in no table, say
                doubt, inputs = f"it does not take the port's own inputs ({error})", None
        upstream = self.upstream(entry) if inputs is not None else None
        earlier = step_before(entry)
        previous = self.pack.read(earlier) if earlier in self.pack.entries else None
        return tuple(diagnose(entry, truth, got, inputs, format=format, factors=self._factors,
                              previous=previous, upstream=upstream, others=siblings(
                                  self.pack, entry, inputs, self._weight))), doubt

    def inputs(self, entry: Entry) -> dict[str, Any] | None:
        """The op's inputs, the candidate's own where it dumped them; None if it is no op.

        Raises a RefsdError if one cannot be read, such as the weights of a model that is not here.
        """
        if not entry.inputs or entry.op not in ops() and entry.op not in PIPELINE_OPS:
            return None
        return arrays_of(entry, tensor=self._tensor, weight=self._weight)

    def _tensor(self, name: str) -> np.ndarray:
        shape = self.pack.entries[name].shape
        own = self.candidate.read(name, shape)
        usable = own is not None and own.shape == shape and np.isfinite(own).all()
        return own if usable else self.pack.read(name)

    def upstream(self, entry: Entry) -> dict[str, tuple[Entry, Mapping[str, Any]]]:
        """The ops that made this one's inputs, with their own inputs."""
        makers = {}
        for name, value in entry.inputs.items():
            if isinstance(value, str) and value.startswith(TENSOR):
                source = self.pack.entries[value.removeprefix(TENSOR)]
                inputs = self.inputs(source) if source.op in ACTIVATIONS else None
                if inputs is not None:
                    makers[name] = source, inputs
        return makers


def step_before(entry: Entry) -> str:
    """The name of the same tensor one step earlier; empty in the first step."""
    path = entry.name.removeprefix(names.full(entry.stage, entry.step, ""))
    return names.full(entry.stage, entry.step - 1, path) if entry.step else ""
