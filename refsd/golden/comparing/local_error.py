"""Verdicts on a port's tensors: the error of each op on the inputs that the port gave it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.comparing.diagnose import Finding, diagnose
from refsd.golden.comparing.excess import Found, excess, lost, ratio, rms, says
from refsd.golden.comparing.limits import spread_of
from refsd.golden.comparing.port_formats import Formats, tensors
from refsd.golden.comparing.port_inputs import Given, Inputs
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.golden.tolerances.bounds_conv import fits_winograd
from refsd.golden.tolerances.bounds_likely import VARIANCE
from refsd.golden.tolerances.formats import rounding, uncertainty
from refsd.golden.tolerances.stage_bounds import STAGE_BOUNDS

EXPLAINED, WRONG, SUSPECT, MISSING, OPEN = "explained", "wrong", "suspect", "missing", "open"
# Mistakes that can be as small as rounding in a bad order: where one explains it, it is one.
SMALL = ("wrong_eps", "biased_variance")
DIAGNOSED = 20  # wrong ops that are looked into; the rest is mostly the same mistake


@dataclass(frozen=True)
class Verdict:
    """One tensor: is what its op did explained by rounding?

    status: "explained"; "wrong" (its own error, on its own inputs, is beyond the bound, or beyond
    what the whole network spreads); "suspect" (its error is beyond what the network spreads, its
    own or inherited); "missing" from the port; "open" (nothing to judge it by). times: the largest
    |error| / bound, at index `at`. local and inherited are root mean squares. borrowed: inputs for
    which golden ones had to stand in; computed: tensors that the port did not dump, and that were
    computed from what it did. format: what the port computes it in.
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
    format: str = ""

    @property
    def bad(self) -> bool:
        """Whether something is not explained."""
        return self.status in (WRONG, SUSPECT)


class Judge:
    """judge(entry) is the Verdict on an entry; they are asked for in the order of execution."""

    def __init__(self, pack: Any, candidate: Any, formats: Formats, model: Any, confidence: float):
        self.pack, self.candidate, self.formats = pack, candidate, formats
        self.inputs = Inputs(pack, candidate, formats, model, confidence)
        self._seen: set[str] = set()
        self._diagnosed, self._bad = 0, False

    def __call__(self, entry: Entry) -> Verdict:
        got = self.candidate.read(entry.name, entry.shape)
        if got is None:
            return Verdict(entry.name, entry.op, entry.index, MISSING)
        if got.shape != entry.shape:
            row = self._misshapen(entry, got)
        else:
            row = self._judge(entry, got, self.pack.read(entry.name))
            self._seen.add(entry.name)
        self._bad = self._bad or row.bad
        return replace(row, format=self.formats.of(entry).name)

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
            given, truth, found, door = self._again(entry, got)
        except (IndexError, UsageError) as error:
            return Verdict(entry.name, entry.op, entry.index, OPEN,
                           note=f"the op does not take the port's own inputs: {error}")
        if not found.explains and self._same(entry, got, golden).explains:
            # As of a pack itself: its inputs were rounded on their way there, and may cancel.
            return Verdict(entry.name, entry.op, entry.index, EXPLAINED, local=found.local,
                           note="the golden result")
        notes = [f"given the golden {', '.join(given.assumed)}"] if given.assumed else []
        notes += [door] if door else []
        finding = None
        if found.times > 1 and entry.op in VARIANCE:
            found, note, finding = self._look_again(entry, got, truth, given, found)
            notes += [note] if note else []
        if not found.explains:
            other, note = self._other_inputs(entry, got, given)
            if other is not None:
                return Verdict(entry.name, entry.op, entry.index, EXPLAINED, *other[:3],
                               borrowed=given.borrowed, note=note)
            if given.borrowed:
                return self._network(entry, got, golden, given.borrowed)
        row = Verdict(entry.name, entry.op, entry.index, EXPLAINED if found.explains else WRONG,
                      *found[:3], rms(truth, golden), given.borrowed, given.computed,
                      note="; ".join(notes))
        if given.computed and found.explains or not found.says:
            row = self._by_spread(entry, row, got, golden, truth, found.says)
        if row.status != WRONG:
            return row
        return replace(row, finding=finding or self._why(entry, got, truth, given))

    def _again(self, entry: Entry, got: np.ndarray, *,
               compute: bool = True) -> tuple[Given, np.ndarray, Found, str]:
        """The inputs, the op's result on them, how far the port's is from it, and a note.

        Inputs with more digits than the format has are taken as they are, or rounded to it at the
        op's door, as the port's result says.
        """
        with np.errstate(all="ignore"):  # a port's NaN and infinities go through
            given = self.inputs.of(entry, compute=compute)
            truth = np.asarray(replay(entry, given.values))
            found = self._found(entry, got, truth, given)
            rounded = None if found.explains else self.inputs.rounded(entry, given)
            if rounded is not None:
                other = np.asarray(replay(entry, rounded.values))
                nearer = self._found(entry, got, other, rounded)
                if nearer.explains or nearer.says and nearer.times < found.times:
                    format = tensors(self.formats.of(entry))
                    return rounded, other, nearer, f"its inputs rounded to {format.name} first"
                given.exact = replace(given)
        return given, truth, found, ""

    def _found(self, entry: Entry, got: np.ndarray, truth: np.ndarray, given: Given,
               **how: Any) -> Found:
        """How far the port's result is from the op's on these inputs, and what bounds say to it.

        What is handed to ops of a coarser format may be kept in that: it is recognised by numbers
        that are all of it, and rounded once more.
        """
        own, allowed = self.formats.of(entry), self.inputs.allowed(entry, given, truth, **how)
        format, _ = self.formats.kept(entry, got)
        if format != own and truth.dtype.kind == "f":
            with np.errstate(all="ignore"):
                allowed = allowed + rounding(np.abs(truth) + allowed, format)
        loose = bool(given.computed) or entry.op in STAGE_BOUNDS or how.get("cut", False)
        return Found(*excess(got, truth, allowed, format), says(allowed, truth, loose))

    def _other_inputs(self, entry: Entry, got: np.ndarray,
                      given: Given) -> tuple[Found | None, str]:
        """Inputs that a right port may have had instead of those that do not explain its result.

        Some rounded at the door and some not, by other rules than to nearest; or the golden ones
        where it dumped none, since it was fed them.
        """
        if given.exact is not None and entry.op not in STAGE_BOUNDS:
            with np.errstate(all="ignore"):
                truth = np.asarray(replay(entry, given.exact.values))
            found = self._found(entry, got, truth, given.exact, cut=True)
            if found.explains:
                return found, "some of its inputs rounded first"
        if given.computed:
            fed, _, found, _ = self._again(entry, got, compute=False)
            if found.explains:
                return found, f"given the golden {', '.join((*fed.assumed, *fed.borrowed))}"
        return None, ""

    def _by_spread(self, entry: Entry, row: Verdict, got: np.ndarray, golden: np.ndarray,
                   truth: np.ndarray, says: bool) -> Verdict:
        """Ops that are judged together, or a bound that says nothing: held to the spread as well.

        A right port's own error there is below what the whole network spreads, and so is all of
        its error, where nothing before is wrong. says: whether the bound says anything.
        """
        at = lost(got, truth, self.formats.of(entry))
        if at is not None:
            return replace(row, status=WRONG, times=math.inf, at=at)
        limit, note = self._spread(entry)
        if limit is None:
            blind = "the bound says nothing here: dump an op between" if row.computed else (
                "the bound says nothing here, and the pack has no spread to judge it by")
            return row if says else replace(row, status=OPEN, times=0.0, at=None, note=blind)
        own, whole = ratio(row.local, limit), ratio(rms(got, golden), limit)
        note = "; ".join(filter(None, (row.note, "by the spread", note)))
        if own > 1 and whole > 1:
            return replace(row, status=WRONG, times=own, note=note)
        if whole > 1 and not self._bad:
            return replace(row, status=SUSPECT, times=whole, note=note)
        return row if says else replace(row, status=EXPLAINED, times=min(own, whole), at=None,
                                        note=note)

    def _spread(self, entry: Entry) -> tuple[float | None, str]:
        """The root mean square that a right port's error stays below at this place."""
        spread, note = spread_of(entry, self.formats.up_to(entry).name)
        return (float(spread["rms"]), note) if spread else (None, "")

    def _look_again(self, entry: Entry, got: np.ndarray, truth: np.ndarray, given: Given,
                    first: Found) -> tuple[Found, str, Finding | None]:
        """Sums that are off by more than a random order makes likely: what else explains them.

        Winograd's algorithm, or an order that is worse than a random one, unless a mistake that is
        as small is what they look like: then that is the finding.
        """
        wino = entry.op == "conv2d" and fits_winograd(given.values["weight"], entry.options)
        looks = [("winograd4", False, "by the bound of Winograd's tiles")] if wino else []
        looks += [(None, True, "with sums in an order worse than a random one")]
        looks += [("winograd4", True, "by Winograd's tiles, in a bad order")] if wino else []
        for algorithm, any_order, note in looks:
            found = self._found(entry, got, truth, given, algorithm=algorithm, any_order=any_order)
            if found.explains:
                looks_like = self._finding(entry, got, truth, given) if any_order else None
                if looks_like is not None and looks_like.reason in SMALL:
                    return first, "", looks_like
                return found, note, None
        return first, "", None

    def _copy(self, entry: Entry, got: np.ndarray, truth: np.ndarray, note: str) -> Verdict:
        """The same numbers again, as far as the format holds them."""
        found = self._same(entry, got, truth)
        row = Verdict(entry.name, entry.op, entry.index, EXPLAINED, *found[:3])
        return row if found.explains else replace(row, status=WRONG, note=note,
                                                  finding=self._why(entry, got, truth))

    def _same(self, entry: Entry, got: np.ndarray, truth: np.ndarray) -> Found:
        """How far it is from the same numbers, rounded to the format or to that of a reader."""
        found = []
        for format in (tensors(self.formats.of(entry)), *self.formats.casts(entry)):
            allowed = uncertainty(truth, format) if truth.dtype.kind == "f" else 0.0
            found.append(Found(*excess(got, truth, allowed, format), True))
        return min(found, key=lambda one: one.times)

    def _network(self, entry: Entry, got: np.ndarray, golden: np.ndarray,
                 borrowed: tuple[str, ...] = ()) -> Verdict:
        """Own and inherited error together, against what the network up to here may spread."""
        row = Verdict(entry.name, entry.op, entry.index, OPEN, inherited=rms(got, golden),
                      borrowed=borrowed)
        if self._same(entry, got, golden).explains:
            return replace(row, status=EXPLAINED, note="the golden result")
        limit, note = self._spread(entry)
        if limit is None:
            return replace(row, note=f"no {self.formats.up_to(entry).name} spread in the pack to "
                           "judge it by")
        times = ratio(row.inherited, limit)
        return replace(row, status=EXPLAINED if times <= 1 else SUSPECT, times=times, note=note)

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
                         format=self.formats.of(entry).name, previous=before,
                         upstream=None if given is None else given.upstream)
        return next(iter(found), None)
