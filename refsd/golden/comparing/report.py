"""A comparison in words: for people (text, a sheet for other files) and for programs (JSON)."""

import math
from collections.abc import Iterator
from typing import Any

from refsd.golden.comparing.diagnose import Finding
from refsd.golden.comparing.dumps_folder import first_of
from refsd.golden.comparing.given import said
from refsd.golden.comparing.sheet import Sheet, share
from refsd.golden.comparing.verdicts import Comparison, Status, Verdict, exactly

SCHEMA = 1
LEGEND = {
    "times": "the error over what is allowed; up to 1 a right port may be off so far",
    "allowed": "by the rounding of this op alone, element by element, where the op's inputs are in "
               "the pack; otherwise by the spread",
    "spread": "what right ports of the whole network differ by at this place: runs of the "
              "reference with other roundings, measured when the pack was made. The root mean "
              "square of the error is held to theirs, the largest error to their largest",
    "beyond": "how many elements are further off than any of them may be",
    "max ulp": "the largest error in units of the last place: 1 is the step to the next number of "
               "the format",
    "pcc": "correlation with the golden tensor; it decides nothing, as no factor and no offset "
           "changes it",
    "needed": "the t with which |error| <= t + t |golden| holds: rtol and atol of an allclose that "
              "would pass",
}
NOT_FINITE = ("nan", "overflow", "inf_sign")  # counted, not fitted
WORDS = {Status.WITHIN: "ok", Status.WRONG: "WRONG", Status.OPEN: "OPEN", Status.SHAPE: "SHAPE",
         Status.DTYPE: "DTYPE", Status.UNREADABLE: "UNREAD"}  # the others are their own
ALLOWED = {
    "accepted": "the tolerance that was given",
    "given": "what rounding to {format} allows",
    "op": "what {format} rounding allows for this op",
    "likely": "what {format} rounding allows for this op alone",
    "spread": "what a right port in {format} differs by at this place",
    "largest": "what any element of a right port in {format} differs by at this place",
    "bytes": "what right ports in {format} differ by at this pixel",
}


def sentence(result: Comparison) -> str:
    """The answer in one sentence: which tensor, where, how far off, and what it looks like.

    Where none is wrong: what could not be read, whether too few were compared, and how many were.
    """
    first = result.first
    unread = f"{_full_stop(first_of(list(result.unread)))} " if result.unread else ""
    if first is None:
        few = "" if result.compared >= result.wanted else (
            f"Only {result.compared:,} of {result.expected:,} tensors could be compared, and "
            f"{result.wanted:,} are wanted. ")
        return unread + few + _all_well(result)
    others = len(result.failing) - 1
    of = result.expected if result.whole else (
        result.compared + result.counts.get(Status.UNREADABLE, 0))
    rest = f" {others:,} more of {of:,} {'fail' if others > 1 else 'fails'} after it."
    return (what_is_wrong(first, result.format, as_first=True) + (rest if others else "")
            + (f" {unread}".rstrip() if unread else ""))


def _all_well(result: Comparison) -> str:
    equal, missing = result.counts.get(Status.EQUAL, 0), result.counts.get(Status.MISSING, 0)
    alone = result.compared == 1
    exact = "" if not equal else ", and bit-exact" if alone else f", {equal:,} of them bit-exact"
    verb = "is" if missing == 1 else "are"
    absent = "" if not missing else (
        f"; {missing:,} of the pack's {result.expected:,} {verb} missing from the candidate")
    return (("The one tensor compared is" if alone else f"All {result.compared:,} tensors are")
            + f" within the tolerance of {result.format}{exact}{absent}.")


def _full_stop(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def given(result: Comparison) -> tuple[str, ...]:
    """Sentences about what the port was given."""
    return said(result.given, "what follows is held to the pack all the same; refsd golden bisect "
                              "judges it on what was given")


def what_is_wrong(verdict: Verdict, format: str, *, as_first: bool = False) -> str:
    """One failing verdict for the person who is to repair the port.

    format: of the whole comparison; where the tensor's own is known, that is named.
    """
    entry, format = verdict.entry, verdict.format or format
    name = f"{entry.name} ({entry.op})" if entry.op else entry.name
    looks = _looks(verdict.findings)
    if verdict.status == Status.MISSING:
        return f"{name} is missing from the candidate."
    if verdict.status == Status.UNREADABLE:
        return f"{name} cannot be read: {_full_stop(verdict.notes[0])}"
    if verdict.status == Status.SHAPE:
        return (f"{name} has the shape {_shape(verdict.shape)}, wanted {_shape(entry.shape)}."
                f"{looks}")
    if verdict.status == Status.DTYPE:
        return f"{name} holds {verdict.dtype}, wanted {entry.dtype}.{looks}"
    metrics = verdict.metrics
    if metrics.nonfinite:
        return (f"{name} is {_number(verdict.candidate_there)} at {verdict.at} where "
                f"{_number(verdict.golden_there)} is right (so: {verdict.where})."
                f"{looks}")
    there = (f"at {verdict.at} it is {_number(verdict.candidate_there)} where "
             f"{_number(verdict.golden_there)} is right")
    if verdict.status == Status.OPEN:
        known = (f"the pack has no tolerance of {format} for it" if not verdict.kind else
                 f"{_times(verdict.times)} {ALLOWED[verdict.kind].format(format=format)}; what it "
                 "inherits from earlier ops is not known")
        return (f"{name} differs, and nothing tells whether it may: {there} ({known}). Run refsd "
                f"golden bisect, or make the pack with tolerances.{looks}")
    if not math.isfinite(verdict.times) and verdict.kind != "accepted":
        ulp = f", {metrics.max_ulp:.3g} in units of the last place" if entry.op else ""
        return (f"{name} is {'the first tensor that is wrong' if as_first else 'wrong'}: {there}; "
                f"{exactly(entry, format)}. It is off by up to {metrics.max_abs:.3g}{ulp}, in "
                f"{verdict.where}.{looks}")
    how = {"spread": "its rms error is ", "largest": "that is "}.get(verdict.kind, "")
    wrong = "the first tensor that is wrong" if as_first else "wrong"
    return (f"{name} is {wrong}: {there}; {how}"
            f"{_times(verdict.times)} {ALLOWED[verdict.kind].format(format=format)}"
            + (f" (too far off: {verdict.where})" if verdict.where else "") + f".{looks}")


def _looks(findings: tuple[Finding, ...]) -> str:
    if not findings:
        return ""
    first = findings[0]
    part = "" if first.reason in NOT_FINITE else f" ({share(first)})"
    return f" It looks like {first.reason}: {first.sentence}{part}."


def _times(times: float) -> str:
    return f"{times:.3g} times" if math.isfinite(times) else "infinitely far beyond"


def _number(value: float) -> str:
    return f"{value:.8g}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


def as_json(result: Comparison) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it (docs/golden-compare.md says what is what)."""
    first = result.first
    return {
        "schema": SCHEMA, "kind": "golden-compare", "pack": result.pack,
        "candidate": result.candidate, "format": result.format, "ok": result.ok,
        "sentence": sentence(result), "first": first.name if first else None,
        "counts": result.counts, "compared": result.compared, "expected": result.expected,
        "given": list(given(result)), "unreadable": list(result.unread),
        "remarks": list(result.remarks), "extra": result.extra,
        "tensors": [_verdict(verdict) for verdict in result.verdicts],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    entry, metrics = verdict.entry, verdict.metrics
    return {
        "name": entry.name, "op": entry.op, "index": entry.index, "status": verdict.status,
        "ok": not verdict.bad, "format": verdict.format or None,
        "tolerance": verdict.kind or None,
        "times": verdict.times if math.isfinite(verdict.times) else "inf",
        "at": None if verdict.at is None else list(verdict.at),
        "beyond": verdict.beyond, "where": verdict.where,
        "dtype": verdict.dtype or None, "shape": list(verdict.shape),
        "wanted": {"dtype": entry.dtype, "shape": list(entry.shape)},
        "metrics": None if metrics is None else metrics.as_json(),
        "findings": [vars(finding) for finding in verdict.findings],
        "notes": list(verdict.notes),
    }


COLUMNS = ("verdict", "times", "beyond", "max abs", "at", "max rel", "max ulp", "pcc", "needed",
           "tensor")


def row(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as the texts of COLUMNS."""
    metrics = verdict.metrics
    name = verdict.name
    if metrics is None:
        return (_word(verdict), *[""] * (len(COLUMNS) - 2), name)
    at = "" if metrics.max_abs_index is None else ",".join(map(str, metrics.max_abs_index))
    return (_word(verdict), _short(verdict.times) if verdict.kind else "",
            f"{verdict.beyond:,}" if verdict.beyond else "", _short(metrics.max_abs),
            at if metrics.max_abs else "", _short(metrics.max_rel), _short(metrics.max_ulp),
            _likeness(metrics.pcc), _short(metrics.needed), name)


def _word(verdict: Verdict) -> str:
    return WORDS.get(verdict.status, verdict.status.value)


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _likeness(value: float | None) -> str:
    """Nine digits, cut off: 1 is only said of 1."""
    return "" if value is None else f"{math.floor(value * 1e9) / 1e9:.9f}"


def sheet(result: Comparison) -> Sheet:
    """The whole comparison, for a file of any kind."""
    return Sheet(
        kind="golden compare", title="Golden comparison", pack=result.pack,
        candidate=result.candidate, format=result.format, ok=result.ok, sentence=sentence(result),
        verdicts=result.verdicts, failing=result.failing, columns=COLUMNS, legend=LEGEND, row=row,
        why=lambda verdict: what_is_wrong(verdict, result.format), whole=result.whole,
        too_few=result.compared < result.wanted, given=given(result), unread=result.unread,
        remarks=result.remarks, extra=result.extra)


def text(result: Comparison, *, everything: bool = False) -> Iterator[str]:
    """Lines for a terminal: the sentence, the table (failing tensors and a few before), the rest.

    everything: all tensors, those within their tolerance as well.
    """
    yield sentence(result)
    shown = result.verdicts if everything else _interesting(result)
    rows = [row(verdict) for verdict in shown if _is_there(verdict, result)]
    if rows:
        yield ""
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
        for line in (COLUMNS, *rows):
            yield "  ".join(part.ljust(width) for part, width in zip(line, widths)).rstrip()
    yield ""
    yield ", ".join(f"{count:,} {status}" for status, count in result.counts.items())
    for verdict in shown:
        for note in verdict.notes:
            yield f"note: {verdict.name}: {note}"
        for finding in verdict.findings[1:]:
            yield (f"also like: {verdict.name}: {finding.reason}, {finding.sentence} "
                   f"({share(finding)})")
    yield from (f"given: {line}" for line in given(result))
    yield from (f"unreadable: {why}" for why in result.unread[:5])
    if len(result.unread) > 5:
        yield f"unreadable: {len(result.unread) - 5:,} more"
    yield from result.remarks
    missing = [v.name for v in result.verdicts if v.status == Status.MISSING]
    for what, names in (("missing", missing), ("extra", result.extra)):
        if names:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            yield f"{what}: {', '.join(ascii(name)[1:-1][:200] for name in names[:5])}{more}"


def _is_there(verdict: Verdict, result: Comparison) -> bool:
    """Whether there is anything to show: what is missing only where that fails."""
    return verdict.status != Status.EXTERNAL and (result.whole or verdict.status != Status.MISSING)


def _interesting(result: Comparison) -> list[Verdict]:
    """The failing ones, at most 20, and the two compared before the first."""
    compared = [v for v in result.verdicts if _is_there(v, result)]
    bad = [i for i, v in enumerate(compared) if v.bad or v.status == Status.MISSING][:20]
    return [compared[i] for i in sorted({*bad, *range(max(bad[0] - 2, 0), bad[0])})] if bad else []
