"""Verdicts on a port's tensors: the error of each op on the inputs that the port gave it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.comparing.accumulated import Accumulated, Shown
from refsd.golden.comparing.diagnose import Finding, diagnose, step_before
from refsd.golden.comparing.excess import Excess, excess, first_lost, is_informative, ratio, rms
from refsd.golden.comparing.given import Given
from refsd.golden.comparing.limits import Accepted, spread_of, takes_tiles
from refsd.golden.comparing.port_formats import Formats, tensors
from refsd.golden.comparing.port_inputs import Inputs, OpInputs
from refsd.golden.comparing.variants_chain import Link
from refsd.golden.comparing.verdicts import Status, Verdict
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.golden.tolerances.bounds import error_model
from refsd.golden.tolerances.bounds.pipeline import PIPELINE_BOUNDS
from refsd.golden.tolerances.formats import rounding, uncertainty

# Mistakes that can be as small as rounding in a bad order: what looks like one of them is one.
SMALL = ("wrong_eps", "biased_variance")
# Of all false alarms that the confidence allows, the part that all errors together may raise.
ALARM = 1e-3
TOGETHER = "by all its elements together"
NEAR = 30  # times its bound: what is further off and like no wrong version is none of the small
DIAGNOSED = 20  # wrong ops that are looked into; the rest is mostly the same mistake
BAD = (Status.WRONG, Status.SUSPECT)


class LocalErrorJudge:
    """Verdicts on a port's tensors, each held to what its op makes of the port's own inputs.

    Entries come in the order of execution.
    """

    def __init__(self, pack: Any, candidate: Any, formats: Formats, model: Any, confidence: float,
                 accepted: Accepted | None = None, given: Given | None = None):
        self.pack, self.candidate, self.formats = pack, candidate, formats
        self.accepted, self.given = accepted, given or Given((), pack, candidate, formats)
        self.inputs = Inputs(pack, candidate, formats, model, confidence, self.given.names)
        self.accumulated = Accumulated(formats, (1 - confidence) * ALARM)
        self._seen: set[str] = set()
        self._diagnosed, self._bad = 0, False

    def __call__(self, entry: Entry) -> Verdict:
        got = self.candidate.read(entry.name, entry.shape)
        if got is None and entry.name not in self.given.names:
            return Verdict(entry, Status.MISSING)
        golden = self.pack.read(entry.name)
        if (fed := self.given.of(entry, got, golden)) is not None:
            return replace(fed, format=self.formats.of(entry).name)
        if got.shape != entry.shape:
            verdict = Verdict(entry, Status.WRONG, times=math.inf,
                              findings=self._why(entry, got, golden),
                              notes=(f"its shape is {got.shape}, not {entry.shape}",))
        else:
            verdict = self._judge(entry, got, golden)
            self._seen.add(entry.name)
        self._bad = self._bad or verdict.status in BAD
        return replace(verdict, format=self.formats.of(entry).name,
                       kind="" if self.accepted is None else "accepted")

    def _judge(self, entry: Entry, got: np.ndarray, golden: np.ndarray) -> Verdict:
        if entry.op not in (None, "block") and entry.inputs:
            return self._op(entry, got, golden)
        if entry.op is None:
            return self._copy(entry, got, golden, "what it is given differs")
        alias = next((name for name in self.inputs.aliases(entry) if name in self._seen), None)
        if alias is not None:
            original = self.candidate.read(alias, entry.shape)
            return self._copy(entry, got, original, f"not the port's own {alias}")
        maker = self.inputs.maker(entry)
        if maker is not None:
            return replace(self._op(maker, got, golden),
                           entry=replace(maker, name=entry.name, index=entry.index))
        return self._network(entry, got, golden)

    def _op(self, entry: Entry, got: np.ndarray, golden: np.ndarray) -> Verdict:
        """The op again, on the port's inputs."""
        try:
            inputs, truth, error, cast = self._again(entry, got)
        except (IndexError, UsageError) as refusal:
            return Verdict(entry, Status.OPEN,
                           notes=(f"not to be computed on the port's own inputs: {refusal}",))
        if not error.within and self._same(entry, got, golden).within:
            # As of a pack itself: its inputs were rounded on their way there, and may cancel.
            return Verdict(entry, Status.WITHIN, local=error.rms, notes=("the golden result",))
        notes = [f"given the golden {', '.join(inputs.assumed)}"] if inputs.assumed else []
        notes += [cast] if cast else []
        findings: tuple[Finding, ...] = ()
        if error.times > 1 and (model := error_model(entry.op)) and model.variance:
            error, note, findings = self._look_again(entry, got, truth, inputs, error)
            notes += [note] if note else []
        if not error.within:
            other, note = self._other_inputs(entry, got, inputs)
            if other is not None:
                return _verdict(entry, Status.WITHIN, other, borrowed=inputs.borrowed,
                                notes=(note,))
            if inputs.borrowed:
                return self._network(entry, got, golden, inputs.borrowed)
        verdict = _verdict(entry, Status.WITHIN if error.within else Status.WRONG, error,
                           notes=tuple(notes), inherited=rms(truth, golden),
                           borrowed=inputs.borrowed, computed=inputs.computed)
        if self.accepted is None and (inputs.computed and error.within or not error.informative):
            verdict = self._by_spread(verdict, got, golden, truth, error.informative)
        if verdict.status == Status.WITHIN:
            shown = self._together(entry, got, truth, inputs)
            return verdict if shown is None else replace(
                verdict, status=Status.WRONG, times=shown.times, at=None,
                findings=(shown.finding,), notes=(*verdict.notes, TOGETHER))
        if verdict.status != Status.WRONG:
            return verdict
        findings = findings or self._why(entry, got, truth, inputs)
        if not findings and error.times < NEAR:
            shown = self._together(entry, got, truth, inputs)
            findings = () if shown is None else (shown.finding,)
        return replace(verdict, findings=findings)

    def _together(self, entry: Entry, got: np.ndarray, truth: np.ndarray,
                  inputs: OpInputs) -> Shown | None:
        """The small mistake that all errors together are, on inputs that are the port's own."""
        if self.accepted is not None or inputs.borrowed or inputs.size is None:
            return None
        with np.errstate(all="ignore"):
            return self.accumulated(Link(entry, inputs.values, inputs.makers, truth), inputs.links,
                                    got, inputs.size)

    def _again(self, entry: Entry, got: np.ndarray, *,
               compute: bool = True) -> tuple[OpInputs, np.ndarray, Excess, str]:
        """The inputs, the op's result on them, how far the port's is from it, and a note.

        Inputs with more digits than the format has are taken as they are, or rounded to it before
        the op, as the port's result says.
        """
        with np.errstate(all="ignore"):  # a port's NaN and infinities go through
            inputs = self.inputs.of(entry, compute=compute)
            truth = np.asarray(replay(entry, inputs.values))
            error = self._excess(entry, got, truth, inputs)
            rounded = None if error.within else self.inputs.rounded(entry, inputs)
            if rounded is not None:
                other = np.asarray(replay(entry, rounded.values))
                nearer = self._excess(entry, got, other, rounded)
                if nearer.within or nearer.informative and nearer.times < error.times:
                    format = tensors(self.formats.of(entry))
                    return rounded, other, nearer, f"its inputs rounded to {format.name} first"
                inputs.exact = replace(inputs)
        return inputs, truth, error, ""

    def _excess(self, entry: Entry, got: np.ndarray, truth: np.ndarray, inputs: OpInputs,
                **how: Any) -> Excess:
        """How far the port's result is from the op's on these inputs; how: as limits.allowed.

        What is handed to ops of a coarser format may be kept in that: it is recognised by numbers
        that are all of it, and rounded once more.
        """
        if self.accepted is not None:
            return excess(got, truth, self.accepted.of(truth), self.formats.of(entry))
        own, allowed = self.formats.of(entry), self.inputs.allowed(entry, inputs, truth, **how)
        inputs.size = inputs.size if how else allowed
        format, _ = self.formats.kept(entry, got)
        if format != own and truth.dtype.kind == "f":
            with np.errstate(all="ignore"):
                allowed = allowed + rounding(np.abs(truth) + allowed, format)
        loose = bool(inputs.computed) or entry.op in PIPELINE_BOUNDS or how.get("cast", False)
        return excess(got, truth, allowed, format, is_informative(allowed, truth, loose))

    def _other_inputs(self, entry: Entry, got: np.ndarray,
                      inputs: OpInputs) -> tuple[Excess | None, str]:
        """Inputs that a right port may have had where its result is not right on those tried.

        Some rounded before the op and some not, by other rules than to nearest; or the golden ones
        where it dumped none, since it was fed them.
        """
        if inputs.exact is not None and entry.op not in PIPELINE_BOUNDS:
            with np.errstate(all="ignore"):
                truth = np.asarray(replay(entry, inputs.exact.values))
            error = self._excess(entry, got, truth, inputs.exact, cast=True)
            if error.within:
                return error, "some of its inputs rounded first"
        if inputs.computed:
            fed, _, error, _ = self._again(entry, got, compute=False)
            if error.within:
                return error, f"given the golden {', '.join((*fed.assumed, *fed.borrowed))}"
        return None, ""

    def _by_spread(self, verdict: Verdict, got: np.ndarray, golden: np.ndarray,
                   truth: np.ndarray, informative: bool) -> Verdict:
        """Ops that are judged together, or without a bound that tells right from wrong.

        They are held to the spread as well: a right port's own error there is below what the whole
        network spreads, and so is all of its error, where nothing before is wrong.
        """
        entry = verdict.entry
        at = first_lost(got, truth, self.formats.of(entry))
        if at is not None:
            return replace(verdict, status=Status.WRONG, times=math.inf, at=at)
        limit, note = self._spread(entry)
        if limit is None:
            blind = "the bound says nothing here: dump an op between" if verdict.computed else (
                "the bound says nothing here, and the pack has no spread to judge it by")
            return verdict if informative else replace(
                verdict, status=Status.OPEN, times=0.0, at=None, notes=(blind,))
        own, whole = ratio(verdict.local, limit), ratio(rms(got, golden), limit)
        notes = (*verdict.notes, "by the spread", *filter(None, [note]))
        if own > 1 and whole > 1:
            return replace(verdict, status=Status.WRONG, times=own, notes=notes)
        if whole > 1 and not self._bad:
            return replace(verdict, status=Status.SUSPECT, times=whole, notes=notes)
        return verdict if informative else replace(
            verdict, status=Status.WITHIN, times=min(own, whole), at=None, notes=notes)

    def _spread(self, entry: Entry) -> tuple[float | None, str]:
        """The root mean square that a right port's error stays below at this tensor."""
        spread, note = spread_of(entry, self.formats.up_to(entry).name)
        return (float(spread["rms"]), note) if spread else (None, "")

    def _look_again(self, entry: Entry, got: np.ndarray, truth: np.ndarray, inputs: OpInputs,
                    first: Excess) -> tuple[Excess, str, tuple[Finding, ...]]:
        """Sums that are off by more than a random order makes likely: what else they are within.

        Winograd's algorithm, or an order that is worse than a random one, unless a mistake that is
        as small is what they look like: then that is the finding.
        """
        tiles = takes_tiles(entry, inputs.values)
        looks = [("winograd4", False, "by the bound of Winograd's tiles")] if tiles else []
        looks += [(None, True, "with sums in an order worse than a random one")]
        looks += [("winograd4", True, "by Winograd's tiles, in a bad order")] if tiles else []
        for algorithm, any_order, note in looks:
            error = self._excess(entry, got, truth, inputs, algorithm=algorithm,
                                 any_order=any_order)
            if error.within:
                findings = self._findings(entry, got, truth, inputs) if any_order else ()
                if findings and findings[0].reason in SMALL:
                    return first, "", findings
                return error, note, ()
        return first, "", ()

    def _copy(self, entry: Entry, got: np.ndarray, truth: np.ndarray, note: str) -> Verdict:
        """The same numbers again, as far as the format holds them."""
        error = self._same(entry, got, truth)
        if error.within:
            return _verdict(entry, Status.WITHIN, error)
        return _verdict(entry, Status.WRONG, error, notes=(note,),
                        findings=self._why(entry, got, truth))

    def _same(self, entry: Entry, got: np.ndarray, truth: np.ndarray) -> Excess:
        """How far it is from the same numbers, rounded to the format or to that of a reader."""
        if self.accepted is not None:
            return excess(got, truth, self.accepted.of(truth), self.formats.of(entry))
        errors = []
        for format in (tensors(self.formats.of(entry)), *self.formats.casts(entry)):
            allowed = uncertainty(truth, format) if truth.dtype.kind == "f" else 0.0
            errors.append(excess(got, truth, allowed, format))
        return min(errors, key=lambda error: error.times)

    def _network(self, entry: Entry, got: np.ndarray, golden: np.ndarray,
                 borrowed: tuple[str, ...] = ()) -> Verdict:
        """Own and inherited error together, against what the network up to here may spread."""
        verdict = Verdict(entry, Status.OPEN, inherited=rms(got, golden), borrowed=borrowed)
        error = self._same(entry, got, golden)
        if self.accepted is not None:
            status = Status.WITHIN if error.within else Status.SUSPECT
            return replace(verdict, status=status, times=error.times, at=error.at)
        if error.within:
            return replace(verdict, status=Status.WITHIN, notes=("the golden result",))
        limit, note = self._spread(entry)
        if limit is None:
            return replace(verdict, notes=(f"no {self.formats.up_to(entry).name} spread in the "
                                           "pack to judge it by",))
        times = ratio(verdict.inherited, limit)
        return replace(verdict, status=Status.WITHIN if times <= 1 else Status.SUSPECT, times=times,
                       notes=(note,) if note else ())

    def _why(self, entry: Entry, got: np.ndarray, truth: np.ndarray,
             inputs: OpInputs | None = None) -> tuple[Finding, ...]:
        """What the mistake looks like, for as many as are looked into."""
        self._diagnosed += 1
        return self._findings(entry, got, truth, inputs) if self._diagnosed <= DIAGNOSED else ()

    def _findings(self, entry: Entry, got: np.ndarray, truth: np.ndarray,
                  inputs: OpInputs | None) -> tuple[Finding, ...]:
        earlier = step_before(entry)
        previous = self.candidate.read(earlier, entry.shape) if earlier else None
        chain = (Link(entry, inputs.values, inputs.makers, truth), inputs.links) if (
            inputs and inputs.links) else None
        return tuple(diagnose(entry, truth, got, inputs and inputs.values,
                              format=self.formats.of(entry).name, previous=previous,
                              upstream=inputs and inputs.upstream, chain=chain,
                              others=self.inputs.siblings(entry, inputs)))


def _verdict(entry: Entry, status: str, error: Excess, **more: Any) -> Verdict:
    found = (error.beyond, error.where) if status == Status.WRONG else (0, "")
    return Verdict(entry, status, times=error.times, at=error.at, local=error.rms,
                   beyond=found[0], where=found[1], **more)
