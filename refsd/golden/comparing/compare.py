"""A port's tensors against a golden pack, one at a time, in the order of execution."""

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.diagnose import Evidence
from refsd.golden.comparing.dumps import Dump, same_axes
from refsd.golden.comparing.dumps_folder import first_of
from refsd.golden.comparing.error_maps import error_maps
from refsd.golden.comparing.excess import Excess, beyond, excess, ratio, where
from refsd.golden.comparing.fits import places
from refsd.golden.comparing.given import ASSUMED, Given
from refsd.golden.comparing.layouts import layout
from refsd.golden.comparing.limits import Accepted, Limit, limit_of, op_limit
from refsd.golden.comparing.metrics import Metrics, measure
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.comparing.verdicts import (
    FAILING,
    AtLeast,
    Comparison,
    Status,
    Verdict,
    select,
)
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.formats import format_named

# How many failing tensors are looked into: in a run all that follows the first is its consequence.
DIAGNOSES = {"run": 3, "ops": 20}
# A candidate's tensor may be larger than the golden one by its padding; this much is still read.
# One row in tiles of 32 x 32 takes 1024 numbers for one.
PADDED, SMALL = 4, 1 << 22


def compare(pack: Any, candidate: Any, *, format: str | Iterable[str] = "float32",
            only: Iterable[str] = (), given: Iterable[str] = (), accepted: Accepted | None = None,
            model: Any = None, whole: bool = False, at_least: AtLeast | None = None,
            maps: bool = False, on_tensor: Callable[[int, int], None] | None = None) -> Comparison:
    """Compare every tensor of an open Pack with its counterpart in an open Candidate.

    format: what the port computes in, or several with PATTERN=NAME for some names or ops; only:
    patterns of names (any fits; none: all); given: those of tensors that the port was fed, which
    are not held to anything; accepted: a tolerance in place of the derived ones;
    model: where the weights are, for the reasons of mistakes; whole: a missing tensor fails;
    at_least: how many are to be there; maps: keep an error map of each tensor that differs;
    on_tensor(done, all) is called along the way. Two tensors are in memory at a time, and those of
    one op where a mistake is looked into.

    Raises UsageError when nothing can be compared, ModelError when damaged files are why.
    """
    formats, only = Formats(format, pack.entries), tuple(only)
    entries = select(pack, only)
    fed = Given(given, pack, candidate, formats)
    judge = GoldenJudge(pack, candidate, formats, accepted, model, maps, fed)
    verdicts = []
    for entry in entries:
        verdicts.append(judge(entry))
        if on_tensor is not None:
            on_tensor(len(verdicts), len(entries))
    vain = [f"--only {pattern!r} fits no tensor of the pack" for pattern in only
            if not any(fnmatch.fnmatchcase(entry.name, pattern) for entry in entries)]
    comparison = Comparison(
        str(pack.path), candidate.where, formats.name, verdicts, candidate.extra(pack.entries),
        whole, _unread(candidate, verdicts, bool(only)),
        (*candidate.remarks(pack.entries), *vain, *fed.remarks), given=fed.found())
    if not comparison.compared:
        raise _nothing(comparison, candidate)
    return replace(comparison, wanted=at_least.of(comparison.expected) if at_least else 0)


def _unread(candidate: Any, verdicts: list[Verdict], partly: bool) -> tuple[str, ...]:
    """Why files cannot be read that no verdict speaks of.

    Where only a part is compared, of those only what may hold a tensor that is missing.
    """
    reported = {note for verdict in verdicts if verdict.status == Status.UNREADABLE
                for note in verdict.notes}
    lacking = any(verdict.status == Status.MISSING for verdict in verdicts)
    return tuple(trouble.why for trouble in candidate.troubles if trouble.why not in reported and (
        not partly or trouble.name is None and lacking))


def _nothing(comparison: Comparison, candidate: Any) -> Exception:
    """The error where no tensor could be compared."""
    reasons = [note for v in comparison.verdicts if v.status != Status.EXTERNAL
               for note in v.notes] + list(comparison.unread)
    if reasons:
        return ModelError(first_of(reasons))
    first, count = comparison.verdicts[0].name, len(comparison.verdicts)
    own = candidate.names()
    if any(v.shape for v in comparison.verdicts if v.status == Status.EXTERNAL):
        return UsageError(f"{candidate.where}: nothing is left to compare: all of it that is in "
                          "the candidate is given. Give fewer patterns, or other names")
    none = "the one tensor is not" if count == 1 else f"none of the {count:,} tensors is"
    return UsageError(f"{candidate.where}: {none} there. The pack has {first!r}"
                      + (f", the candidate {own[0][:200]!r}" if own else "")
                      + "; give a name map"
                      + "".join(f". {remark}" for remark in comparison.remarks[:1]))


class GoldenJudge:
    """Verdicts on a candidate's tensors, each held to the golden one."""

    def __init__(self, pack: Any, candidate: Any, formats: Formats, accepted: Accepted | None,
                 model: Any, maps: bool, given: Given):
        self.pack, self.candidate, self.formats, self.accepted = pack, candidate, formats, accepted
        self.given = given
        self.evidence = Evidence(pack, candidate, model)
        self.maps, self.left = maps, DIAGNOSES[pack.manifest.kind]

    def __call__(self, entry: Entry) -> Verdict:
        info = self.candidate.info(entry.name, entry.shape)
        if info is None:
            return self._absent(entry)
        verdict = Verdict(entry, Status.SHAPE, info.dtype, info.shape or ())
        if info.bytes > max(SMALL, PADDED * 8 * math.prod(entry.shape)):
            return replace(verdict, notes=(f"{info.bytes:,} bytes, far more than its shape takes: "
                                           "not read",))
        got = self.candidate.read(entry.name, entry.shape)
        if got is None:
            return self._absent(entry)
        golden, format = self.pack.read(entry.name), self.formats.of(entry).name
        if (fed := self.given.of(entry, got, golden)) is not None:
            return replace(fed, dtype=info.dtype, format=format)
        verdict = replace(verdict, shape=got.shape, notes=_notes(entry, info, got, format))
        if got.shape == entry.shape:
            verdict = self._judge(verdict, golden, got)
        if verdict.bad and self.left:
            self.left -= 1
            findings, doubt = self.evidence.findings(entry, golden, got, verdict.format or format)
            doubts = (f"the op could not be computed to see why: {doubt}",) if doubt else ()
            verdict = replace(verdict, findings=findings, notes=verdict.notes + doubts)
        return verdict

    def _absent(self, entry: Entry) -> Verdict:
        """Not there, or there and not to be read."""
        why = self.candidate.trouble(entry.name)
        if why:
            return Verdict(entry, Status.UNREADABLE, notes=(why,))
        # NAME:PARAMETER is an external input, made by nothing that a port computes.
        if entry.name in self.given.names:
            return Verdict(entry, Status.EXTERNAL, notes=(ASSUMED,))
        external = entry.op is None and ":" in entry.name
        return Verdict(entry, Status.EXTERNAL if external else Status.MISSING)

    def _judge(self, verdict: Verdict, golden: np.ndarray, got: np.ndarray) -> Verdict:
        """The verdict on a tensor of the right shape."""
        format, network = (kept.name for kept in self.formats.kept(verdict.entry, got))
        metrics = measure(golden, got, format=format)
        limit = limit_of(self.pack, verdict.entry, golden, format=format, network=network,
                         accepted=self.accepted)
        error, kind, notes = self._held_to(limit, verdict.entry, golden, got, metrics, format)
        status = _status(golden, got, metrics, limit, error.times)
        if status == Status.WRONG:
            mask = beyond(golden, got, math.inf if limit is None else limit.of_elements)
            verdict = replace(verdict, beyond=int(mask.sum()), where=where(mask))
        at = metrics.nonfinite_index if metrics.nonfinite else error.at
        return replace(
            verdict, status=status, metrics=metrics, kind=kind,
            format=network if limit and limit.is_rms else format,
            times=math.inf if metrics.nonfinite else error.times, at=at,
            golden_there=0.0 if at is None else float(golden[at]),
            candidate_there=0.0 if at is None else float(got[at]),
            notes=(*verdict.notes, *_curious(metrics), *notes),
            maps=error_maps(golden, got) if self.maps and status in FAILING else ())

    def _held_to(self, limit: Limit | None, entry: Entry, golden: np.ndarray, got: np.ndarray,
                 metrics: Metrics, format: str) -> tuple[Excess, str, list[str]]:
        """How far beyond its limit a tensor is, beyond which kind of limit, and notes."""
        if limit is None:
            return Excess(0.0, metrics.max_abs_index, metrics.rms), "", []
        if limit.is_rms:
            times = ratio(metrics.rms, limit.size)
            peak = ratio(metrics.max_abs, limit.largest)
            kind, times = ("largest", peak) if peak > 1 >= times else (limit.kind, times)
            error = Excess(times, metrics.max_abs_index, metrics.rms)
            return error, kind, [limit.note] if limit.note and times else []
        error = excess(got, golden, limit.size, format_named(format))
        notes = [limit.note] if limit.note and error.times else []
        if error.times > 1 and limit.kind == "op":
            tiles = op_limit(self.pack, entry, golden, format, algorithm="winograd4")
            other = tiles and excess(got, golden, tiles.size, format_named(format))
            if other and other.within:
                return other, limit.kind, [*notes, "within the tolerance of Winograd's algorithm, "
                                           "not of plain sums of products"]
        return error, limit.kind, notes


def _status(golden: np.ndarray, got: np.ndarray, metrics: Metrics, limit: Limit | None,
            times: float) -> str:
    """The same kind of number, finite where it should be, and within the limit."""
    if (golden.dtype.kind == "f") != (got.dtype.kind == "f"):
        return Status.DTYPE
    if metrics.nonfinite:
        return Status.WRONG
    if metrics.max_abs == 0:
        return Status.EQUAL
    if limit is None or times > 1 and limit.kind == "likely":
        return Status.OPEN
    return Status.WITHIN if times <= 1 else Status.WRONG


def _notes(entry: Entry, info: Dump, got: np.ndarray, format: str) -> tuple[str, ...]:
    """What an engineer should know and what by itself is no mistake."""
    notes = []
    if info.dtype not in (entry.dtype, format):
        notes.append(f"dtype {info.dtype}, the golden tensor is {entry.dtype}")
    if got.shape != entry.shape:
        notes.append(f"shape {got.shape}, the golden tensor is {entry.shape}")
        if info.said is not None:
            stored = layout(info.layout).physical(entry.shape)
            notes.append(f"its index gives the shape {info.said} with the layout {info.layout}; it "
                         f"is to give the logical one, {entry.shape}, or {stored} as it is stored")
    elif info.shape not in (None, entry.shape) and same_axes(info.shape, entry.shape):
        notes.append(f"shape {info.shape}, the golden tensor is {entry.shape}")
    return tuple(notes)


def _curious(metrics: Metrics) -> list[str]:
    """What measures do not see."""
    counts = ((metrics.nan_both, "NaN in both in"),
              (metrics.inf_sign, "infinities of the other sign in"),
              (metrics.nonfinite, "NaN or infinity that the other has not in"),
              (metrics.zero_sign, "-0.0 for 0.0, or the reverse, in"))
    return [f"{what} {places(count)}" for count, what in counts if count]
