"""A port's tensors against a golden pack, one at a time, in the order of execution."""

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.beyond import beyond, where
from refsd.golden.comparing.candidate_files import first_of
from refsd.golden.comparing.dumps import Dump
from refsd.golden.comparing.errormap import error_map
from refsd.golden.comparing.evidence import Evidence
from refsd.golden.comparing.fits import places
from refsd.golden.comparing.layouts import layout
from refsd.golden.comparing.limits import Accepted, Excess, Limit, excess, limit_of, of_winograd
from refsd.golden.comparing.metrics import Metrics, measure
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.comparing.verdicts import (
    DTYPE,
    EQUAL,
    EXPLAINED,
    GIVEN,
    MISSING,
    OPEN,
    SHAPE,
    UNREADABLE,
    WRONG,
    AtLeast,
    Comparison,
    Verdict,
)
from refsd.golden.packs.manifest import Entry

# How many failing tensors are looked into: in a run all that follows the first is its consequence.
DIAGNOSES = {"run": 3, "ops": 20}
# A candidate's tensor may be larger than the golden one by its padding; this much is still read.
# One row in tiles of 32 x 32 takes 1024 numbers for one.
PADDED, SMALL = 4, 1 << 22


def compare(pack: Any, candidate: Any, *, format: str | Iterable[str] = "float32",
            only: Iterable[str] = (), accepted: Accepted | None = None, model: Any = None,
            whole: bool = False, at_least: AtLeast | None = None, maps: bool = False,
            on_tensor: Callable[[int, int], None] | None = None) -> Comparison:
    """Compare every tensor of an open Pack with its counterpart in an open Candidate.

    format: what the port computes in, or several with PATTERN=NAME for some names or ops; only:
    patterns of names (any fits; none: all); accepted: a tolerance in place of the derived ones;
    model: where the weights are, for the reasons of mistakes; whole: a missing tensor fails;
    at_least: how many are to be there; maps: keep an error map of each tensor that differs;
    on_tensor(done, all) is called along the way. Two tensors are in memory at a time, and those of
    one op where a mistake is looked into.

    Raises UsageError when nothing can be compared, ModelError when that is because of damage.
    """
    formats, only = Formats(format, pack.entries), tuple(only)
    entries = [entry for entry in pack.entries.values()
               if not only or any(fnmatch.fnmatchcase(entry.name, one) for one in only)]
    if not entries:
        raise UsageError(f"{pack.path}: no tensor fits {', '.join(only)}. See refsd golden info")
    judge = _Judge(pack, candidate, formats, accepted, model, maps)
    verdicts = []
    for place, entry in enumerate(entries):
        verdicts.append(judge(entry))
        if on_tensor is not None:
            on_tensor(place + 1, len(entries))
    unread = _unread(candidate, verdicts, bool(only))
    found = Comparison(str(pack.path), candidate.where, formats.name, verdicts,
                       candidate.extra(pack.entries), whole, unread,
                       (*candidate.remarks(pack.entries), *(
                           f"--only {one!r} fits no tensor of the pack" for one in only
                           if not any(fnmatch.fnmatchcase(e.name, one) for e in entries))))
    if not found.compared:
        raise _nothing(found, candidate)
    return replace(found, wanted=at_least.of(found.expected) if at_least else 0)


def _unread(candidate: Any, verdicts: list[Verdict], partly: bool) -> tuple[str, ...]:
    """Why files cannot be read that no verdict speaks of.

    Where only a part is compared, of those only what may hold a tensor that is missing.
    """
    told = {note for verdict in verdicts if verdict.status == UNREADABLE for note in verdict.notes}
    lacking = any(verdict.status == MISSING for verdict in verdicts)
    return tuple(trouble.why for trouble in candidate.troubles if trouble.why not in told and (
        not partly or trouble.name is None and lacking))


def _nothing(found: Comparison, candidate: Any) -> Exception:
    """The error where no tensor could be compared."""
    reasons = [note for v in found.verdicts for note in v.notes] + list(found.unread)
    if reasons:
        return ModelError(first_of(reasons))
    first = found.verdicts[0].entry.name
    own = candidate.names()
    return UsageError(f"{candidate.where}: none of the {len(found.verdicts):,} tensors is there. "
                      f"The pack has {first!r}"
                      + (f", the candidate {own[0][:200]!r}" if own else "")
                      + "; give a name map" + "".join(f". {one}" for one in found.remarks[:1]))


class _Judge:
    """Verdicts on a candidate's tensors, one after the other."""

    def __init__(self, pack: Any, candidate: Any, formats: Formats, accepted: Accepted | None,
                 model: Any, maps: bool):
        self.pack, self.candidate, self.formats, self.accepted = pack, candidate, formats, accepted
        self.evidence = Evidence(pack, candidate, formats.default.name, model)
        self.maps, self.left = maps, DIAGNOSES[pack.manifest.kind]

    def __call__(self, entry: Entry) -> Verdict:
        info = self.candidate.info(entry.name, entry.shape)
        if info is None:
            return self._absent(entry)
        verdict = Verdict(entry, SHAPE, info.dtype, info.shape or ())
        if _is_too_large(info, entry):
            return replace(verdict, notes=(f"{info.bytes:,} bytes, far more than its shape takes: "
                                           "not read",))
        got = self.candidate.read(entry.name, entry.shape)
        if got is None:
            return self._absent(entry)
        golden = self.pack.read(entry.name)
        verdict = replace(verdict, shape=got.shape, notes=_notes(
            entry, info, got, self.formats.of(entry).name))
        if got.shape == entry.shape:
            verdict = self._judged(verdict, golden, got)
        if verdict.bad and self.left:
            self.left -= 1
            self.evidence.trouble, self.evidence.format = "", verdict.format or (
                self.formats.of(entry).name)
            found = self.evidence.findings(entry, golden, got)
            doubt = self.evidence.trouble and (
                f"the op could not be computed to see why: {self.evidence.trouble}",)
            verdict = replace(verdict, findings=found, notes=verdict.notes + (doubt or ()))
        return verdict

    def _absent(self, entry: Entry) -> Verdict:
        """Not there, or there and not to be read."""
        why = self.candidate.trouble(entry.name)
        if why:
            return Verdict(entry, UNREADABLE, notes=(why,))
        # NAME:PARAMETER is what an op is given, made by nothing that a port computes.
        return Verdict(entry, GIVEN if entry.op is None and ":" in entry.name else MISSING)

    def _judged(self, verdict: Verdict, golden: np.ndarray, got: np.ndarray) -> Verdict:
        format, network = (one.name for one in self.formats.kept(verdict.entry, got))
        metrics = measure(golden, got, format=format)
        limit = limit_of(self.pack, verdict.entry, golden, format=format, network=network,
                         accepted=self.accepted)
        notes = verdict.notes + _curious(metrics)
        found = Excess(0.0, metrics.max_abs_index)
        if limit is not None:
            found = excess(golden, got, limit, metrics)
            notes += (limit.note,) if limit.note and found.times else ()
        if found.times > 1 and limit.kind == "op":
            tiles = of_winograd(self.pack, verdict.entry, golden, format)
            if tiles is not None and excess(golden, got, tiles, metrics).times <= 1:
                found = excess(golden, got, tiles, metrics)
                notes += ("explained as Winograd's algorithm, not as plain sums of products",)
        status = _status(golden, got, metrics, limit, found.times)
        at = metrics.nonfinite_index if metrics.nonfinite else found.at
        here = (float(golden[at]), float(got[at])) if at is not None else (0.0, 0.0)
        return replace(
            self._counted(verdict, golden, got, limit) if status == WRONG else verdict,
            status=status, metrics=metrics, kind=found.kind,
            format=network if limit and limit.is_rms else format,
            times=math.inf if metrics.nonfinite else found.times, at=at, golden_there=here[0],
            found_there=here[1], notes=notes,
            map=error_map(golden, got) if self.maps and status != EQUAL else None)

    def _counted(self, verdict: Verdict, golden: np.ndarray, got: np.ndarray,
                 limit: Limit | None) -> Verdict:
        """With the elements that are beyond what each may be off by."""
        mask = beyond(golden, got, math.inf if limit is None else limit.of_elements)
        return replace(verdict, beyond=int(mask.sum()), where=where(mask))


def _status(golden, got, metrics: Metrics, limit: Limit | None, times: float) -> str:
    """The same kind of number, finite where it should be, and within the limit."""
    if (golden.dtype.kind == "f") != (got.dtype.kind == "f"):
        return DTYPE
    if metrics.nonfinite:
        return WRONG
    if metrics.max_abs == 0:
        return EQUAL
    if limit is None or times > 1 and limit.kind == "likely":
        return OPEN
    return EXPLAINED if times <= 1 else WRONG


def _is_too_large(info: Dump, entry: Entry) -> bool:
    """Reading it would take far more memory than the golden tensor does."""
    return info.bytes > max(SMALL, PADDED * 8 * math.prod(entry.shape))


def _notes(entry: Entry, info: Dump, got: np.ndarray, format: str) -> tuple[str, ...]:
    """What an engineer should know and what by itself is no mistake."""
    found = []
    if info.dtype not in (entry.dtype, format):
        found.append(f"dtype {info.dtype}, the golden tensor is {entry.dtype}")
    if got.shape != entry.shape:
        found.append(f"shape {got.shape}, the golden tensor is {entry.shape}")
        if info.said is not None:
            stored = layout(info.layout).physical(entry.shape)
            found.append(f"its index gives the shape {info.said} with the layout {info.layout}; it "
                         f"is to give the logical one, {entry.shape}, or {stored} as it is stored")
    elif info.shape not in (None, entry.shape) and _without_ones(info) == _without_ones(entry):
        found.append(f"shape {info.shape}, the golden tensor is {entry.shape}")
    return tuple(found)


def _without_ones(tensor: Dump | Entry) -> list[int]:
    return [n for n in tensor.shape if n != 1]


def _curious(metrics: Metrics) -> tuple[str, ...]:
    """What measures do not see."""
    found = []
    if metrics.nan_both:
        found.append(f"NaN in both in {places(metrics.nan_both)}")
    if metrics.inf_sign:
        found.append(f"infinities of the other sign in {places(metrics.inf_sign)}")
    if metrics.nonfinite:
        found.append(f"NaN or infinity that the other has not in {places(metrics.nonfinite)}")
    if metrics.zero_sign:
        found.append(f"-0.0 for 0.0, or the reverse, in {places(metrics.zero_sign)}")
    return tuple(found)
