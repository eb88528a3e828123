"""Dumps of several runs of a port against each other: whether the bits are the same, where not.

The first run is what the others are held to. Each tensor of a dump is compared whole, under its
golden name where a pack and a name map say which that is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.comparing.dumps import dtype_name
from refsd.golden.comparing.error_maps import error_maps
from refsd.golden.comparing.excess import ratio, rms, where
from refsd.golden.comparing.limits import largest_of, spread_of
from refsd.golden.comparing.metrics import Metrics, measure
from refsd.golden.comparing.name_map import NameMap, Names
from refsd.golden.comparing.port_formats import tensors
from refsd.golden.comparing.run_dump import Place, Run
from refsd.golden.comparing.verdicts import FAILING, Status, Verdict
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.formats import format_named, rounding

FLOAT8 = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}  # as formats are called


@dataclass(frozen=True)
class RunVerdict(Verdict):
    """One tensor of all runs. `beyond` counts the elements whose bits differ in any of them from
    the first's, `metrics` are those of the run that is furthest off.

    own_name: the port's; units: of which format the last places are counted ("": of none); spread:
    the root mean square of the difference over the golden tensor's spread, None where there is
    none; values: the numbers at `at`, of the first run and of the one furthest off; others: the
    runs that differ, of so many; times: the difference over what the format's rounding explains,
    or without one that of the type; inputs: the statuses of what its op reads, "" for what no
    run dumped.
    """

    own_name: str = ""
    units: str = ""
    spread: float | None = None
    values: tuple[Any, Any] | None = None
    others: tuple[str, ...] = ()
    of: int = 2
    inputs: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether it is not the same bits in all runs."""
        return self.status != Status.EQUAL

    @property
    def is_own(self) -> bool:
        """Whether it differs though all that its op reads has the same bits."""
        return self.differs and bool(self.inputs) and set(self.inputs) == {Status.EQUAL}


class Runs(NamedTuple):
    """What became of each tensor, in the network's order (of a pack), or that of the first dump.

    format: in whose rounding differences may lie; None where the bits are to be the same.
    """

    runs: tuple[str, ...]
    pack: str
    format: str | None
    verdicts: list[RunVerdict]
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def differing(self) -> list[RunVerdict]:
        """The tensors that are not the same bits in all runs."""
        return [verdict for verdict in self.verdicts if verdict.differs]

    @property
    def failing(self) -> list[RunVerdict]:
        """Those that may not differ, and those that are not in every run."""
        return [v for v in self.verdicts if v.status in (*FAILING, Status.MISSING)]

    @property
    def first(self) -> RunVerdict | None:
        """The first that may not differ, else the first that does; of those in every run if any."""
        found = [*self.failing, *self.differing]
        return next((v for v in found if v.status != Status.MISSING), next(iter(found), None))

    @property
    def ok(self) -> bool:
        """Whether none fails and everything could be read."""
        return not self.failing and not self.unread


def same(paths: Sequence[str | Path], *, pack: Any = None, name_map: Any = None,
         dtype: str | None = None, format: str | None = None, maps: bool = False
         ) -> Runs:
    """Compare two or more dumps of a port, tensor by tensor.

    pack: an open Pack, for the network's order, golden names and spreads; name_map: as for
    Candidate; dtype: of raw files that do not say theirs; format: differences within its rounding
    are no failure; maps: keep an error map of each tensor that differs. Of each tensor two runs'
    are in memory at a time.

    Raises UsageError for fewer than two dumps, one given twice or with nothing in it, and a map
    without a pack; ModelError where nothing of a dump can be read.
    """
    if len(paths) < 2 or len({Path(path).resolve() for path in paths}) < len(paths):
        raise UsageError(f"{', '.join(map(str, paths)) or 'no dump'}: give two dumps or more, each "
                         "once, written by different runs")
    if name_map and pack is None:
        raise UsageError("a name map leads from the names of a pack; give the pack too, or leave "
                         "the map out: runs of the same port have the same names")
    if format is not None:
        format = format_named(format).name
    runs = [Run(path, pack, NameMap.of(name_map), dtype and dtype_name(dtype)) for path in paths]
    judge, places = _Judge(runs, format, maps), {}
    for run in reversed(runs):  # where the first run has it; behind those of the same place there
        places = {**run.places, **{k: place for k, place in places.items() if k not in run.places}}
    found = [judge(*item) for item in sorted(places.items(), key=lambda item: item[1].index)]
    reported = {note for verdict in found for note in verdict.notes}
    unread = {t.why: None for run in runs for t in run.listing.troubles if t.why not in reported}
    remarks = runs[0].map.remarks(pack.entries, Names(runs[0].listing.dumps)) if pack else []
    remarks += runs[0].order() if any(verdict.differs for verdict in found) else []
    for run in runs:
        run.reader.close()
    return Runs(tuple(map(str, paths)), str(pack.path) if pack else "", format, found,
                tuple(unread), tuple(remarks))


class _Judge:
    """Verdicts on the tensors of all runs, each held to the first run's."""

    def __init__(self, runs: list[Run], format: str | None, maps: bool):
        self.runs, self.format, self.maps = runs, format, maps
        self.found: dict[str, RunVerdict] = {}  # by the port's own names

    def __call__(self, key: tuple[bool, str], place: Place) -> RunVerdict:
        entry = place.entry or Entry(place.name, "block", place.name.rpartition("/")[0], None, (),
                                     "", {}, {}, 0, "", "", {})
        read = [self._input(name) for name in dict.fromkeys(entry.sources)]
        inputs = {"all": [f"tensor:{name}" for name, _ in read]} if read else {}
        verdict = RunVerdict(
            replace(entry, inputs=inputs), Status.EQUAL, own_name=place.own, of=len(self.runs),
            inputs=tuple(status for _, status in read))
        lacking = tuple(run.path for run in self.runs if key not in run.places)
        try:
            verdict = self._judged(verdict, key)
        except (ModelError, ResourceError) as error:
            verdict = replace(verdict, status=Status.UNREADABLE, notes=(str(error),))
        if lacking:
            status = verdict.status if verdict.status in FAILING else Status.MISSING
            verdict = replace(verdict, status=status, notes=(
                *verdict.notes, f"not in {', '.join(lacking)}"))
        self.found[place.own] = verdict
        return verdict

    def _input(self, golden: str) -> tuple[str, str]:
        """A tensor that an op reads, as it is called here, and what became of it; "" for one that
        no run has."""
        own = dict.fromkeys(own for run in self.runs for own in run.leads.get(golden, ()))
        found = [self.found[name] for name in own if name in self.found]
        bad = next((verdict for verdict in found if verdict.differs), next(iter(found), None))
        return (golden, "") if bad is None else (bad.name, bad.status)

    def _judged(self, verdict: RunVerdict, key: tuple[bool, str]) -> RunVerdict:
        """Held to the first run that has it; that of the run that is furthest off."""
        there = [(run, run.places[key]) for run in self.runs if key in run.places]
        (first, place), *others = there
        base, type_of = first.read(place), first.dtype(place)
        found = [replace(verdict, dtype=type_of, shape=base.shape)]
        everywhere = np.zeros(base.shape, bool)
        for run, place in others:
            got, dtype = run.read(place), run.dtype(place)
            one = replace(found[0], others=(run.path,))
            if got.shape != base.shape or (got.dtype.kind == "f") != (base.dtype.kind == "f"):
                kind = Status.SHAPE if got.shape != base.shape else Status.DTYPE
                one = replace(one, status=kind, dtype=dtype, shape=got.shape)
            else:
                mask = differing(base, got)
                everywhere |= mask
                notes = () if dtype == type_of else (f"{type_of} in {first.path}, {dtype} in "
                                                     f"{run.path}",)
                if notes or mask.any():
                    one = self._difference(replace(one, notes=notes), base, got, mask, type_of)
                else:
                    one = found[0]
            found.append(one)
        worst = max(found, key=_badness)
        if worst.status in (Status.SHAPE, Status.DTYPE) or not worst.differs:
            return worst
        return replace(worst, beyond=int(everywhere.sum()), where=where(everywhere),
                       others=tuple(run for one in found for run in one.others if one.differs))

    def _difference(self, verdict: RunVerdict, base: np.ndarray, got: np.ndarray, mask: np.ndarray,
                    dtype: str) -> RunVerdict:
        """How far two tensors are apart whose bits differ where the mask is set."""
        format = self.format or FLOAT8.get(dtype, dtype)
        units = tensors(format_named(format)).name if base.dtype.kind == "f" else ""
        metrics = measure(base, got, format=units or "float64")
        at = metrics.nonfinite_index if metrics.nonfinite else (
            metrics.max_ulp_index if units else metrics.max_abs_index)
        if mask.any() and not metrics.nonfinite and not metrics.max_abs:
            # zeros of another sign, or whole numbers that are the same in float64
            at = tuple(int(i) for i in np.argwhere(mask)[0])
        spread, largest = _spread(verdict.entry, format) if units and (
            base.shape == verdict.entry.shape) else (None, None)
        verdict = replace(
            verdict, metrics=metrics, units=units, at=at,
            values=None if at is None else (base[at].item(), got[at].item()),
            spread=None if spread is None else ratio(metrics.rms, spread),
            maps=error_maps(base, got) if self.maps else ())
        times = math.inf if not units or metrics.nonfinite else _times(base, metrics, units)
        if spread is not None and not metrics.nonfinite:
            # Each of two right ports is within the spread of the golden tensor: two within twice.
            times = min(times, max(ratio(metrics.rms, 2 * spread),
                                   ratio(metrics.max_abs, 2 * largest)))
        times = times if mask.any() else 0.0
        status = Status.OPEN if self.format is None else (
            Status.WITHIN if times <= 1 else Status.WRONG)
        return replace(verdict, status=status, times=times)


def _times(base: np.ndarray, metrics: Metrics, format: str) -> float:
    """The difference over what it can be of numbers that were rounded to a format in two ways.

    Each is moved by half a step or less, so that two are a step apart: in the root mean square,
    and nowhere by more than the largest number's step. (Held to its own step, a number near 0 that
    is a sum of larger ones would be wrong.)
    """
    step = 2 * rounding(base[np.isfinite(base)].astype("float64"), format_named(format))
    return max(ratio(metrics.rms, rms(step, 0.0)),
               ratio(metrics.max_abs, float(step.max(initial=0.0))))


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays of one shape differ in bits; any NaN is as good as another.

    Of arrays of two types: where they differ in value.
    """
    both = np.isnan(a) & np.isnan(b) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    if a.dtype != b.dtype or a.dtype.kind != "f":
        return (a != b) & ~both
    bits = f"u{a.dtype.itemsize}"
    return np.asarray((a.view(bits) != b.view(bits)) & ~both)


def _spread(entry: Entry, format: str) -> tuple[float | None, float | None]:
    """The root mean square of a golden tensor's spread, and what no element exceeds."""
    spread, _ = spread_of(entry, format)
    return (float(spread["rms"]), largest_of(spread)) if spread else (None, None)


ORDER = (Status.EQUAL, Status.WITHIN, Status.OPEN, Status.WRONG, Status.DTYPE, Status.SHAPE)


def _badness(verdict: RunVerdict) -> tuple[float, ...]:
    metrics: Metrics | None = verdict.metrics
    return (ORDER.index(verdict.status), *((metrics.nonfinite, metrics.max_abs) if metrics else ()))
