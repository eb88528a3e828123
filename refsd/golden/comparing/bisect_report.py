"""A bisection in words: for people (text, a sheet for other files) and for programs (JSON)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from refsd.golden.comparing.bisect import Bisection, allowance
from refsd.golden.comparing.error_maps import error_maps
from refsd.golden.comparing.given import said
from refsd.golden.comparing.html import MAPS
from refsd.golden.comparing.local_error import BAD
from refsd.golden.comparing.sheet import Sheet, share
from refsd.golden.comparing.verdicts import AtLeast, Status, Verdict

SCHEMA = 1
SHOWN = 20  # rows on a terminal
JUDGED = (Status.EQUAL, Status.WITHIN, *BAD)
COLUMNS = ("verdict", "x bound", "local rms", "inherited", "judged with", "tensor")
LEGEND = {
    "x bound": "the op's own error over what rounding allows it; up to 1 it is right",
    "own error": "the distance to what the op makes, in float64, of the inputs that the port had; "
                 "local rms is its root mean square",
    "inherited": "what earlier ops handed on to it: no mistake of this op",
    "judged with": "tensors that were not dumped, and were computed from what was: a mistake may "
                   "be in one of them as well",
    "spread": "what right ports of the whole network differ by at this place: runs of the "
              "reference with other roundings, measured when the pack was made. It judges where "
              "an op can not be computed again",
    "maps": "show the distance to the golden tensor: own and inherited error together",
}


class Answer(NamedTuple):
    """A bisection, with what is to be said beside it.

    unread: why files cannot be read; remarks: what is asked for in vain; extra: names of the
    candidate that mean nothing here; wanted: how many tensors are to be judged at least.
    """

    found: Bisection
    pack: str
    candidate: str
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    wanted: int = 0

    @classmethod
    def of(cls, found: Bisection, pack: Any, candidate: Any,
           at_least: AtLeast) -> "Answer":
        """The answer about an open Pack and an open Candidate, after they were looked at."""
        expected = sum(not _given(row) for row in found.rows)
        return cls(found, str(pack.path), candidate.where,
                   tuple(trouble.why for trouble in candidate.troubles),
                   (*candidate.remarks(pack.entries), *found.remarks),
                   tuple(candidate.extra(pack.entries)),
                   at_least.of(expected))

    @property
    def judged(self) -> int:
        """How many tensors it is known of whether they are right."""
        return sum(row.status in JUDGED for row in self.found.rows)

    @property
    def given(self) -> tuple[str, ...]:
        """Sentences about what the port was given."""
        return said(self.found.given, "what follows is judged on it")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, everything could be read, and enough was judged."""
        return self.found.first is None and not self.unread and self.judged >= self.wanted

    @property
    def sentence(self) -> str:
        """The bisection's, after what is too little."""
        few = "" if self.judged >= self.wanted else (
            f"Only {self.judged:,} tensor{'' if self.judged == 1 else 's'} could be judged, and "
            f"{self.wanted:,} are wanted. ")
        return few + self.found.sentence


def _given(row: Verdict) -> bool:
    """Declared so, or missing and an external input of an op (NAME:PARAMETER)."""
    return row.status == Status.EXTERNAL or (
        row.status == Status.MISSING and row.entry.op is None and ":" in row.name)


def as_json(answer: Answer) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it."""
    found = answer.found
    return {"schema": SCHEMA, "kind": "golden-bisect", "pack": answer.pack,
            "candidate": answer.candidate, "ok": answer.ok, "sentence": answer.sentence,
            "format": found.format, "judged": answer.judged,
            "first": None if found.first is None else _plain(found.first),
            "later": [row.name for row in found.later],
            "rows": [_plain(row) for row in found.rows],
            "given": list(answer.given), "unreadable": list(answer.unread),
            "remarks": list(answer.remarks), "extra": list(answer.extra)}


def _plain(row: Verdict) -> dict[str, Any]:
    """A verdict as JSON; what has no number is null."""
    finding = row.finding and {"reason": row.finding.reason, "sentence": row.finding.sentence,
                               "confidence": row.finding.confidence}
    numbers = {name: getattr(row, name) for name in ("times", "local", "inherited")}
    return {"name": row.name, "op": row.entry.op, "index": row.entry.index, "status": row.status,
            "format": row.format,
            **{name: n if math.isfinite(n) else None for name, n in numbers.items()},
            "at": row.at, "borrowed": list(row.borrowed), "computed": list(row.computed),
            "finding": finding, "note": "; ".join(row.notes)}


def sheet(answer: Answer) -> Sheet:
    """All of it, for a file of any kind."""
    rows = [replace(row, status=Status.EXTERNAL) if _given(row) else row
            for row in answer.found.rows]
    return Sheet(
        kind="golden bisect", title="Golden bisection", pack=answer.pack,
        candidate=answer.candidate, format=answer.found.format, ok=answer.ok,
        sentence=answer.sentence, verdicts=rows, failing=[row for row in rows if row.status in BAD],
        columns=COLUMNS, legend=LEGEND, row=_row, why=what_is_wrong,
        own=True, too_few=answer.judged < answer.wanted, given=answer.given,
        unread=answer.unread, remarks=answer.remarks, extra=answer.extra)


def with_maps(answer: Answer, pack: Any, candidate: Any) -> Answer:
    """The same, with maps of the errors of those that are bad."""
    drawn = {row.name for row in answer.found.bad[:MAPS]}
    rows = []
    for row in answer.found.rows:
        if row.name in drawn:
            got, golden = candidate.read(row.name, row.entry.shape), pack.read(row.name)
            if got is not None and got.shape == golden.shape:
                row = replace(row, maps=error_maps(golden, got))
        rows.append(row)
    return answer._replace(found=replace(answer.found, rows=rows))


def what_is_wrong(row: Verdict) -> str:
    """A bad verdict for the person who is to repair the port."""
    times = f"{row.times:.3g} times" if math.isfinite(row.times) else "infinitely far beyond"
    looks = "" if row.finding is None else (
        f" It looks like {row.finding.reason}: {row.finding.sentence} ({share(row.finding)}).")
    if row.status == Status.SUSPECT:
        return (f"{row.name} is {times} {allowance(row)} in {row.format}: an error "
                f"arose in it or before it. Dump the ops before it.{looks}")
    others = "" if not row.computed else (
        f", together with {', '.join(row.computed[:3])}"
        + (f" and {len(row.computed) - 3} more" if len(row.computed) > 3 else "")
        + " that {} not dumped,".format("were" if len(row.computed) > 1 else "was"))
    return (f"{row.name} ({row.entry.op or 'no op'}){others} is wrong on its own inputs: {times} "
            f"{allowance(row)}.{looks}")


def _row(row: Verdict) -> tuple[str, ...]:
    """A verdict as the texts of COLUMNS."""
    if row.status in (Status.MISSING, Status.EXTERNAL):
        return (row.status.value, *[""] * (len(COLUMNS) - 2), row.name)
    return (row.status.value, f"{row.times:.3g}", f"{row.local:.2g}", f"{row.inherited:.2g}",
            f"{len(row.computed)} computed" if row.computed else "", row.name)


def text(answer: Answer, *, everything: bool = False) -> Iterator[str]:
    """Lines for a terminal: the sentence, the table of what is wrong (or of all), the rest."""
    yield answer.sentence
    rows = answer.found.rows if everything else answer.found.bad
    if rows:
        yield ""
        yield f"{'':>6} {'status':<10}{'x bound':>10}{'local rms':>11}{'inherited':>11}  tensor"
    for row in rows if everything else rows[:SHOWN]:
        why = [] if row.finding is None else [row.finding.reason]
        why += row.notes
        why += [f"golden {', '.join(row.borrowed)} for its own"] if row.borrowed else []
        why += [f"with {', '.join(row.computed[:3])}" + (
            f" and {len(row.computed) - 3} more" if len(row.computed) > 3 else "") + " in it"] if (
            row.computed) else []
        yield (f"{row.entry.index:>6} {row.status:<10}{row.times:>10.3g}{row.local:>11.2g}"
               f"{row.inherited:>11.2g}  {row.name} ({row.entry.op or 'no op'})"
               + (f": {'; '.join(why)}" if why else ""))
    if len(rows) > SHOWN and not everything:
        yield f"and {len(rows) - SHOWN} more; --all shows every tensor, --json too"
    yield from (f"given: {line}" for line in answer.given)
    yield from (f"unreadable: {why}" for why in answer.unread)
    yield from answer.remarks
