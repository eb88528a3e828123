"""The first op of a port that is wrong: its own error, apart from the one that it was handed.

Each op of a pack is computed again in float64 on the port's own inputs. What the port's result
differs by from that is the op's local error, which has a bound (tolerances.bounds);
the rest of its distance to the golden tensor was inherited from earlier ops:

    port - golden = (port - op(port's inputs)) + (op(port's inputs) - golden)

Where the port left no inputs, the two cannot be told apart. Then the tensor is held against what a
whole network may spread (refsd.golden.tolerances.tolerance), and the answer is a region, not an op.
"""

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from refsd import parallel
from refsd.errors import UsageError
from refsd.golden.comparing.given import Given
from refsd.golden.comparing.limits import Accepted
from refsd.golden.comparing.local_error import BAD, TOGETHER, LocalErrorJudge
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.comparing.verdicts import Status, Verdict, exactly, select
from refsd.golden.packs.manifest import Entry

# How sure a whole pack without a mistake is to pass. Each tensor is held to its share of the rest.
CONFIDENCE = 0.999
# Elements of the largest tensor from which on several threads are worth it: below, a product takes
# less time than its threads need to meet, and much less where other programs run.
LARGE = 1 << 22
FEW = 0.05  # the share of elements up to which it is said where they are: a race, or a tile


@dataclass(frozen=True)
class Bisection:
    """The first verdict that is bad, if any, and one for every tensor in the order of execution.

    given: what is said of every tensor that was declared as given, judged here or not; remarks:
    patterns that fit nothing.
    """

    first: Verdict | None
    rows: list[Verdict]
    format: str = "float32"
    good: Verdict | None = None  # the last that is within its tolerance before the first
    given: tuple[Verdict, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def bad(self) -> list[Verdict]:
        """The verdicts that are wrong or suspect."""
        return [row for row in self.rows if row.status in BAD]

    @property
    def later(self) -> list[Verdict]:
        """Further ops that are wrong, each on its own inputs."""
        return [row for row in self.rows if row.status == Status.WRONG and row is not self.first]

    @property
    def sentence(self) -> str:
        """The answer, for a person who is to repair the port."""
        judged = [row for row in self.rows
                  if row.status not in (Status.MISSING, Status.OPEN, Status.EXTERNAL)]
        if self.first is None:
            given = any(row.kind == "accepted" for row in judged)
            return _all_well(self.rows, judged, "" if given else self.format)
        row = self.first
        if row.status == Status.SUSPECT:
            since = "from the beginning" if self.good is None else f"after {self.good.name}"
            return (f"The first error beyond the tolerance of {row.format} arose {since}, "
                    f"in {row.name} or before it ({row.times:.3g} times "
                    f"{allowance(row)}); dump the ops between to know which.")
        why = "" if row.finding is None else f": {row.finding.sentence}"
        nothing = math.isinf(row.times) and math.isfinite(row.local) and row.at is not None
        exact = f" ({exactly(row.entry, row.format)})" if nothing and not row.computed else ""
        return (f"{row.name} (op {row.entry.op}, tensor {row.entry.index}){_also(row.computed)} is "
                f"the first that is wrong on its own inputs, {_times(row.times)} "
                f"{allowance(row)}{exact}{_in(row)}{why}")


def bisect(pack: Any, candidate: Any, *, format: str | Iterable[str] = "float32",
           only: Iterable[str] = (), given: Iterable[str] = (), accepted: Accepted | None = None,
           model: Any = None, confidence: float = CONFIDENCE,
           first_only: bool = False) -> Bisection:
    """Judge every tensor of an open Pack that an open Candidate has, one at a time.

    format: what the port computes in, or several with PATTERN=NAME for some names or ops; only:
    patterns of the names to judge (any fits; none: all), their inputs come from all of the dump;
    given: patterns of tensors that the port was fed: never wrong, and what follows is judged on
    them, or on the golden ones where they are not dumped;
    accepted: what an op's own error may be, in place of the derived bounds;
    model: where the weights are, if not where the pack says; confidence: how sure a right port is
    to pass as a whole; first_only stops at the first that is wrong. Raises ModelError if the
    weights are not those the pack was made with, UsageError for formats that make no sense and if
    the candidate has none of the tensors.
    """
    formats, only = Formats(format, pack.entries), tuple(only)
    for wanted in formats.all():
        if wanted.block and wanted.name != "int8":
            raise UsageError(f"format is {wanted.name}, in which neighbours share an exponent; "
                             "bisect has no bounds for that: take another, or int8 weights")
    entries = select(pack, only)
    each = 1 - (1 - confidence) / len(entries)
    fed = Given(given, pack, candidate, formats)
    judge = LocalErrorJudge(pack, candidate, formats, model, each, accepted, fed)
    largest = max(math.prod(entry.shape) for entry in pack.entries.values())
    with parallel.limited(1) if largest < LARGE else nullcontext():
        found = _judged(judge, entries, first_only, formats.name)
        vain = [f"--only {pattern!r} fits no tensor of the pack" for pattern in only
                if not fnmatch.filter(pack.entries, pattern)]
        return replace(found, given=fed.found(), remarks=(*fed.remarks, *vain))


def _judged(judge: LocalErrorJudge, entries: list[Entry], first_only: bool,
            format: str) -> Bisection:
    """Every entry's verdict, and which is the first that is bad."""
    rows, first, good = [], None, None
    for entry in entries:
        row = judge(entry)
        rows.append(row)
        if row.status in BAD and first is None:
            first = row
            if first_only:
                break
        if row.status == Status.WITHIN and first is None:
            good = row
    if all(row.status == Status.EXTERNAL for row in rows):
        raise UsageError("nothing is left to judge: all that is asked for is declared as given. "
                         "Give fewer patterns, or other names")
    if all(row.status in (Status.MISSING, Status.EXTERNAL) for row in rows):
        but = " but what it was given" if any(r.status == Status.EXTERNAL for r in rows) else ""
        none = f"none of the pack's {len(rows):,} tensors" if len(rows) > 1 else (
            f"no {rows[0].name}")
        raise UsageError(f"the port's dump has {none}{but}. Name its tensors as the pack does, or "
                         "give a name map")
    return Bisection(first, rows, format, good)


def _also(computed: tuple[str, ...]) -> str:
    """The ops that are judged together with the named one."""
    if len(computed) < 2:
        return f", with {computed[0]} that was not dumped," if computed else ""
    return f", with the {len(computed)} ops from {computed[0]} on that were not dumped,"


def allowance(row: Verdict) -> str:
    """What a row's error is held to."""
    if row.kind == "accepted":
        return "what was accepted"
    return ("what a right port differs by" if row.status == Status.SUSPECT else
            f"what {row.format} rounding allows")


def _in(row: Verdict) -> str:
    """How many elements are wrong and where, if it is few: all of them are no pattern."""
    if TOGETHER in row.notes:
        return f", {TOGETHER}"
    few = 0 < row.beyond <= FEW * math.prod(row.entry.shape)
    return f", in {row.where}" if few else ""


def _times(times: float) -> str:
    return f"{times:.3g} times" if math.isfinite(times) else "beyond"


def _why_open(rows: list[Verdict]) -> str:
    """What most of those that are open say."""
    notes = Counter(row.notes[0] for row in rows if row.status == Status.OPEN and row.notes)
    return f" ({notes.most_common(1)[0][0].rstrip('.')})" if notes else ""


def _all_well(rows: list[Verdict], judged: list[Verdict], format: str) -> str:
    missing, open_, fed = (sum(row.status == status for row in rows)
                           for status in (Status.MISSING, Status.OPEN, Status.EXTERNAL))
    counts = ((missing, "is" if missing == 1 else "are", "not in the port's dump"),
              (open_, "could", f"not be judged{_why_open(rows)}"),
              (fed, "was" if fed == 1 else "were", "given"))
    rest = [f"{count} {verb} {what}" for count, verb, what in counts if count]
    return (("The one tensor judged is within " if len(judged) == 1 else
             f"All of the {len(judged)} tensors judged are within ")
            + (f"the tolerance of {format}" if format else "what was accepted")
            + (f"; {', '.join(rest)}" if rest else "") + ".")
