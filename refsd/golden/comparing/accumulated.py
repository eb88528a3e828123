"""Mistakes too small for any one element to show: what all errors of a tensor say together.

A wrong eps moves a number by less than its rounding, but it moves thousands, each in a direction
that is known. docs/tolerances.md (All errors together) derives both tests.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln, logsumexp, stdtr

from refsd.golden.comparing.diagnose import Finding
from refsd.golden.comparing.excess import rms
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.comparing.variants import variants
from refsd.golden.comparing.variants_chain import LINKS, Link, again, before, instead, wide
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.bounds import bound, error_model, positional
from refsd.golden.tolerances.emulate import Emulator
from refsd.golden.tolerances.formats import Format, round_to, rounding

# The mistakes of an op that can be as small as that, and how many versions each has.
NORM = {"wrong_eps": 8, "biased_variance": 1}
PRODUCT = {"missing_bias": 2, "int8_weights": 1}
SMALL = {"group_norm": NORM, "layer_norm": NORM, "rms_norm": {"wrong_eps": 7},
         "geglu": {"gelu_tanh": 1}, "gelu": {"gelu_tanh": 1}, "gelu_tanh": {"gelu_erf": 1},
         "linear": PRODUCT, "conv2d": PRODUCT}
# Variants from which on none is small: what comes then takes long.
LONG = ("wrong_groups", "flipped_kernel", "transposed_weight", "wrong_padding")
DOUBT = 4.0  # standard deviations from which on something is suspected
DRAWS, MORE = 24, 256  # right ports that are emulated then, and where that makes it certain
# Ops of a chain (a block, and no text encoder before each attention), its multiplications, and
# numbers of all emulated ports: more would take seconds for each version of each op, and gigabytes.
LONGEST, LARGE, LARGE_DRAWS = 32, 1 << 31, 1 << 25


class Shown(NamedTuple):
    """The version that a port's errors are.

    chance: that a right port's are as much like it; times: the distance from what a right port may
    have over the least that is told from chance.
    """

    finding: Finding
    chance: float
    times: float = 0.0


class Accumulated:
    """Asks whether the errors of a tensor, each within its bound, are a small wrong version's.

    alarm: how probable it may be that one tensor of a right port is called wrong.
    """

    def __init__(self, formats: Formats, alarm: float):
        self.formats, self.alarm = formats, alarm

    def __call__(self, last: Link, links: Mapping[str, Link], got: np.ndarray,
                 allowed: np.ndarray) -> Shown | None:
        """The version, if it can hardly be chance.

        last: the op with its inputs; links: the ops before it that were computed, by name. allowed:
        what each element may be off by.
        """
        chain = [*sorted(links.values(), key=lambda link: link.entry.index), last]
        small = [link for link in chain if link.entry.op in SMALL]
        if not small or got.dtype.kind != "f" or len(chain) > LONGEST or (
                sum(map(_work, chain)) > LARGE):
            return None
        case, shown = _Case(last, links, got, allowed, self.formats), []
        for link in small:
            doubtful: set[str] = set()
            for reason, _, array in _versions(link, every=case.short):
                if reason not in doubtful and case.suspects(link, array):
                    doubtful.add(reason)
            if doubtful:
                shown += [case.judged(link, *version) for version in _versions(link)
                          if version[0] in doubtful]
        # By their projection, and by the roundings of two kinds of weights.
        tried = sum(sum(SMALL[link.entry.op].values()) for link in small) * (3 if case.short else 1)
        certain = [found for found in shown if found.chance * tried <= self.alarm]
        if not certain:
            return None
        best = max(certain, key=lambda found: found.finding.confidence)
        # As of normal errors, whose logarithm of chance goes with the square.
        return best._replace(times=math.sqrt(
            math.log(max(best.chance, 1e-300)) / math.log(self.alarm / tried)))


def _versions(link: Link, every: bool = True) -> Iterator[tuple[str, str, np.ndarray]]:
    """The small wrong versions of an op: reason, sentence, and what it would have given.

    Or the first for each reason: the others move the result in about the same direction.
    """
    left = dict(SMALL[link.entry.op])
    for reason, sentence, array, *_ in variants(link.entry, wide(link), link.truth, link.truth, {}):
        if left.get(reason, 0):
            left[reason] = left[reason] - 1 if every else 0
            yield reason, sentence, array
        if not any(left.values()) or reason in LONG:
            return


def _work(link: Link) -> int:
    """Multiplications of an op, about."""
    model = error_model(link.entry.op)
    if model is None or not model.terms:
        return link.truth.size
    args = [wide(link).get(name) for name in positional(link.entry.op)]
    return link.truth.size * max(model.terms(args, link.entry.options))


class _Case:
    """One tensor of a port, and how much it is like wrong versions."""

    def __init__(self, last, links, got, allowed, formats):
        self.last, self.links, self.formats = last, links, formats
        self._draws: list[np.ndarray] = []
        self.got = got.astype("float64")
        use = np.isfinite(self.got) & np.isfinite(last.truth) & (allowed > 0) & np.isfinite(allowed)
        self.scale = np.where(use, 1 / np.where(use, allowed, 1.0)**2, 0.0)
        self.error = np.where(use, self.got - last.truth, 0.0)
        kept, _ = formats.kept(last.entry, got)
        self.short = len(links) <= LINKS
        self.stored = kept if kept.unit > 2.0**-24 and self.short else None

    def moved(self, link: Link, array: np.ndarray) -> np.ndarray:
        """What the tensor would be moved by, if a link had given this array."""
        end = array if link is self.last else instead(self.last, self.links, link.entry.name,
                                                      array)
        return np.where(self.scale > 0, end - self.last.truth, 0.0)

    def suspects(self, link: Link, array: np.ndarray) -> bool:
        """Whether the errors go along with a version: as if those of each channel were one."""
        moved = self.moved(link, array)
        channel = 1 if moved.ndim == 4 else moved.ndim - 1
        parts = (moved * self.scale * self.error).sum(
            axis=tuple(axis for axis in range(moved.ndim) if axis != channel))
        doubt = min(DOUBT, 0.7 * math.sqrt(parts.size))  # all of few channels are no more
        return abs(parts.sum()) > doubt * math.sqrt((parts * parts).sum()) or (
            self._by_roundings(moved) < math.exp(-DOUBT * DOUBT / 2))

    def judged(self, link: Link, reason: str, sentence: str, array: np.ndarray) -> Shown:
        """How probable it is that a right port's errors are as much like a version."""
        text = sentence if link is self.last else before(link, sentence)
        if rms(array, link.truth) < _inside(link):
            return Shown(Finding(reason, text, 0.0), 1.0)
        moved = np.where(self.once, self.moved(link, array), 0.0)
        left = ((self.error - moved)**2 * self.scale).sum()
        share = 1 - left / (self.error**2 * self.scale).sum()
        return Shown(Finding(reason, text, max(0.0, float(share))),
                     min(self._by_projection(moved), self._by_roundings(moved)))

    def _by_projection(self, moved: np.ndarray) -> float:
        """<error, version> against that of emulated right ports: Student's t.

        1 where the errors are nearer to another size of the mistake.
        """
        along, chance = moved * self.scale, 1.0
        size, found = (along * moved).sum(), (along * self.error).sum()
        if not size / 3 < found < 3 * size:
            return 1.0
        for count in (DRAWS, MORE):
            if count * moved.size > LARGE_DRAWS:
                break
            draws = [(along * draw).sum() for draw in self.draws(count)]
            found = (along * self.got).sum() - np.mean(draws)
            if not size / 2 < found < 2 * size:
                return 1.0
            deviation = np.std(draws, ddof=1) * math.sqrt(1 + 1 / count)
            chance = float(stdtr(count - 1, -found / deviation)) if deviation else 1.0
            if chance > math.exp(-DOUBT * DOUBT / 2):
                break
        return chance

    def _by_roundings(self, moved: np.ndarray) -> float:
        """Which of two neighbouring numbers it is, where the version would be rounded to the other.

        Of a port that rounds once, at the end: elsewhere it has the nearest numbers.
        """
        return min((self._flips(ties, moved) for ties in self.centres), default=1.0)

    def _flips(self, ties: "_Ties", moved: np.ndarray) -> float:
        """The chance of the flips; 1 if it moves a number far, or leaves most unexplained."""
        size, up = np.abs(moved), moved > 0
        there = size > np.where(up, ties.above, ties.below)
        other = size > np.where(up, ties.below, ties.above)
        forth, back = there & ~other, other & ~there
        n, m = int(forth.sum()), int(back.sum())
        went = int((ties.side[forth] == np.sign(moved[forth])).sum())
        came = int((ties.side[back] == -np.sign(moved[back])).sum())
        elsewhere = np.count_nonzero(ties.side[(moved != 0) & ~forth])
        if went <= n / 2 or elsewhere > went or np.count_nonzero(there & other) > n / 2:
            return 1.0
        return _hypergeometric(went, n, m, went + came)

    @cached_property
    def once(self) -> np.ndarray:
        """Without repetitions: what both samples of a batch have errs the same way in both."""
        once = np.zeros(self.got.size, bool)
        once[np.unique(self.last.truth, return_index=True)[1]] = True
        return once.reshape(self.got.shape)

    @cached_property
    def centres(self) -> list["_Ties"]:
        """Of the right result by exact weights, and by rounded ones."""
        if self.stored is None:
            return []
        return [_Ties.of(centre, self.got, self.stored) for centre in (
            self.last.truth, self._replayed(lambda entry: _Rounded(self.formats.of(entry).name)))]

    def draws(self, count: int) -> list[np.ndarray]:
        """Right ports' results, by emulation on the same inputs."""
        for seed in range(len(self._draws), count):
            emulators: dict[str, Emulator] = {}

            def how(entry, emulators=emulators, seed=seed):
                name = self.formats.of(entry).name
                return emulators.setdefault(name, _Emulated(name, seed=seed))

            self._draws.append(self._replayed(how))
        return self._draws[:count]

    def _replayed(self, how: Callable[[Entry], Emulator]) -> np.ndarray:
        def compute(entry, values):
            ordered = {name: values[name] for name in (*positional(entry.op), *values)
                       if values.get(name) is not None}
            return how(entry)(entry.op, ordered, entry.options, None)

        return again(self.last, self.links, {}, compute)


class _Ties(NamedTuple):
    """How far numbers are from where they would be rounded to the next, up and down.

    side: where a port has a larger one than the nearest (1), a smaller one (-1), or it (0).
    """

    above: np.ndarray
    below: np.ndarray
    side: np.ndarray

    @classmethod
    def of(cls, centre: np.ndarray, got: np.ndarray, format: Format) -> "_Ties":
        right = round_to(centre, format)
        half = rounding(right, format)
        # Below a power of two numbers lie closer: there is no telling with one half.
        half = np.where(np.frexp(right)[0] % 0.5 == 0, np.inf, half)
        return cls(right + half - centre, centre - right + half, np.sign(got - right))


class _Emulated(Emulator):
    """Weights are stored in the format or not, each by chance: ports keep norms' in float32."""

    def weight(self, name: str, leaf: Any) -> Any:
        return super().weight(name, leaf) if self._random.random() < 0.5 else leaf


class _Rounded(Emulator):
    """Nothing is rounded but weights."""

    def result(self, op: str, args: list, options: dict, y: np.ndarray) -> np.ndarray:
        return y


def _inside(link: Link) -> float:
    """The root mean square of what sums in float32 may be off by in an op, all in one direction."""
    values = wide(link)
    options = link.entry.options | {name: value for name, value in values.items()
                                    if name not in positional(link.entry.op)}
    return rms(bound(link.entry.op, values, options, link.truth, format="float32",
                     given=True).likely, 0.0)


def _hypergeometric(k: int, n: int, m: int, draws: int) -> float:
    """P(at least k of n and the rest of m) for so many draws of n + m without replacement."""
    i = np.arange(k, min(n, draws) + 1)

    def choose(a, b):
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    i = i[draws - i <= m]
    return float(np.exp(logsumexp(choose(n, i) + choose(m, draws - i)) - choose(n + m, draws)))
