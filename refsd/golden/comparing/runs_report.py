"""Runs against each other in words: for people (text, a sheet for other files) and for programs."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from refsd.golden.comparing.dumps_folder import first_of
from refsd.golden.comparing.runs import Runs, RunVerdict
from refsd.golden.comparing.sheet import Sheet
from refsd.golden.comparing.verdicts import Status

SCHEMA, SHOWN = 1, 20
LEGEND = {
    "height": "what is allowed is one rounding to the format, or to the type of the dump without "
              "one; or twice the spread where that is more",
    "elements": "how many of the tensor's have other bits in any run than in the first; any NaN is "
                "as good as another",
    "max ulp": "the largest difference in units of the last place: 1 is the step to the next "
               "number of the format",
    "spread": "the root mean square of the difference over the spread of the golden tensor, which "
              "is what a right port differs from it by; two right ports are within 2",
    "in": "which runs differ from the first, where there are more than two",
    "inputs": "same: all that the op reads has the same bits in every run, so that the difference "
              "is its own",
}
COLUMNS = ("verdict", "elements", "max abs", "at", "max ulp", "spread", "inputs", "in",
           "tensor")


def sentence(result: Runs) -> str:
    """The answer in one sentence or a few: the first tensor that differs, where and how far, how
    many others do, and what cannot be read or is not in every run."""
    unread = f"{first_of(list(result.unread)).rstrip('.')}. " if result.unread else ""
    count, differing = len(result.verdicts), result.differing
    if not differing:
        runs = "both" if len(result.runs) == 2 else f"all {len(result.runs)}"
        which = f"All {count:,} tensors have" if count > 1 else "The one tensor has"
        return f"{unread}{which} the same bits in {runs} runs."
    first = result.first
    numbers = [v for v in differing if v.status != Status.MISSING]
    missing = len(differing) - len(numbers)
    absent = "" if not missing else (
        f" {missing:,} of all {count:,} {'is' if missing == 1 else 'are'} not in every run.")
    if not numbers:
        return f"{unread}{what_differs(first)}{absent if missing > 1 else ''}"
    rest = len(numbers) - 1
    if first.status == Status.WITHIN:
        return (f"{unread}{rest + 1:,} of {count:,} tensors {'differ' if rest else 'differs'}, all "
                f"within the rounding of {result.format}. {what_differs(first, as_first=True)}"
                f"{absent}")
    most = max(numbers, key=_relative)
    far = "" if most is first or not math.isfinite(_relative(most)) else (
        f", the most {most.name}, by {_short(_relative(most))} of its size")
    also = "" if not rest else (f" {rest:,} more of {count:,} "
                                f"{'differs' if rest == 1 else 'differ'} too{far}.")
    return f"{unread}{what_differs(first, as_first=True)}{also}{absent}"


def what_differs(verdict: RunVerdict, as_first: bool = False) -> str:
    """One tensor that differs, for the person who is to find out why."""
    entry = verdict.entry
    name = entry.name if entry.op in (None, "block") else f"{entry.name} ({entry.op})"
    if verdict.status == Status.MISSING:
        return f"{name} is {verdict.notes[-1]}."
    if verdict.status == Status.UNREADABLE:
        return f"{name} cannot be read: {verdict.notes[0].rstrip('.')}."
    which = "is the first tensor that differs" if as_first else "differs"
    which += f" ({' and '.join(verdict.others)})" if verdict.of > 2 else ""
    if verdict.status in (Status.SHAPE, Status.DTYPE):
        return (f"{name} {which}: in {', '.join(verdict.others)} it holds {verdict.dtype} of the "
                f"shape {verdict.shape}.")
    if not verdict.beyond:
        return f"{name} {which}, in its type alone: {'; '.join(verdict.notes)}."
    return f"{name} {which}: {verdict.where}{_how_far(verdict)}.{_whose(verdict)}"


def _relative(verdict: RunVerdict) -> float:
    """The root mean square of the difference over that of the tensor."""
    return -math.inf if verdict.metrics is None else math.sqrt(verdict.metrics.nmse)


def _how_far(verdict: RunVerdict) -> str:
    metrics, (one, other) = verdict.metrics, verdict.values
    there = f"at {verdict.at} {_number(one)} became {_number(other)}"
    if metrics.nonfinite:
        return f", {metrics.nonfinite:,} of them not finite in one run only ({there})"
    if not verdict.units:
        return f" ({there})"
    if not metrics.max_abs:
        return f", in the sign of zeros ({there})"
    spread = "" if verdict.spread is None else (
        f", by {_short(verdict.spread)} of the spread in the root mean square")
    return f", by up to {_short(metrics.max_ulp)} ulp of {verdict.units} ({there}){spread}"


def _whose(verdict: RunVerdict) -> str:
    """Where the difference arose, as far as the pack and the dumps tell."""
    if verdict.entry.shard and verdict.entry.op is None:
        return " No op made it: the runs were not given the same."
    if verdict.is_own:
        return " All that it reads has the same bits: the difference is this op's own."
    unknown = [name for name, status in zip(verdict.entry.sources, verdict.inputs)
               if not status]
    if unknown and set(verdict.inputs) <= {"", Status.EQUAL}:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return (f" It arose in this op or in what was not dumped before it: "
                f"{', '.join(unknown[:3])}{more}.")
    return ""


def _number(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def row(verdict: RunVerdict) -> tuple[str, ...]:
    """A verdict as the texts of COLUMNS."""
    word, metrics = verdict.status.value, verdict.metrics
    word = {Status.OPEN: "DIFFERS", Status.WITHIN: "ok"}.get(verdict.status, word)
    if metrics is None:
        return (word, *[""] * (len(COLUMNS) - 2), verdict.name)
    inputs = "same" if verdict.is_own else ""
    return (word, f"{verdict.beyond:,}", _short(metrics.max_abs),
            ",".join(map(str, verdict.at or ())), _short(metrics.max_ulp) if verdict.units else "",
            "" if verdict.spread is None else _short(verdict.spread), inputs,
            ", ".join(verdict.others) if verdict.of > 2 else "", verdict.name)


def text(result: Runs, *, everything: bool = False) -> Iterator[str]:
    """Lines for a terminal: the sentence, a table of what differs (or of all), the rest."""
    yield sentence(result)
    shown = result.verdicts if everything else result.differing
    rows = [row(v) for v in (shown if everything else shown[:SHOWN])]
    if rows:
        yield ""
        columns = [column for column in zip(COLUMNS, *rows) if any(column[1:])]
        widths = [max(map(len, column)) for column in columns]
        for line in zip(*columns):
            yield "  ".join(part.ljust(width) for part, width in zip(line, widths)).rstrip()
        if len(rows) < len(shown):
            yield f"and {len(shown) - len(rows):,} more; --all shows every tensor, --json too"
    yield ""
    yield ", ".join(f"{n:,} {'differ' if status == Status.OPEN else status}"
                    for status, n in counts(result).items())
    own = [v.name for v in result.differing if v.is_own and v is not result.first]
    if own:
        more = f" and {len(own) - 5:,} more" if len(own) > 5 else ""
        yield f"on inputs of the same bits also: {', '.join(own[:5])}{more}"
    for verdict in shown:
        mine = f" (yours: {verdict.own_name})" if verdict.own_name != verdict.name else ""
        for note in verdict.notes:
            yield f"note: {verdict.name}{mine}: {note}"
    yield from (f"unreadable: {why}" for why in result.unread)
    yield from result.remarks


def counts(result: Runs) -> dict[str, int]:
    """How many tensors have each status, those that occur."""
    return dict(Counter(verdict.status.value for verdict in result.verdicts))


def as_json(result: Runs) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it (docs/golden-compare.md says what is what)."""
    differing = result.differing
    return {
        "schema": SCHEMA, "kind": "golden-same", "runs": list(result.runs),
        "pack": result.pack or None, "format": result.format, "ok": result.ok,
        "same": not differing and not result.unread, "sentence": sentence(result),
        "first": result.first.name if result.first else None,
        "own": [verdict.name for verdict in differing if verdict.is_own],
        "counts": counts(result), "unreadable": list(result.unread),
        "remarks": list(result.remarks),
        "tensors": [_plain(verdict) for verdict in result.verdicts],
    }


def _plain(verdict: RunVerdict) -> dict[str, Any]:
    metrics, values = verdict.metrics, verdict.values
    return {
        "name": verdict.name, "own_name": verdict.own_name, "op": verdict.entry.op,
        "status": verdict.status, "differing": verdict.beyond, "where": verdict.where,
        "runs": list(verdict.others), "at": None if verdict.at is None else list(verdict.at),
        "values": None if values is None else [v if math.isfinite(v) else str(v) for v in values],
        "units": verdict.units or None,
        "spread": verdict.spread if verdict.spread is None or math.isfinite(verdict.spread)
        else "inf",
        "same_inputs": verdict.is_own if verdict.inputs else None,
        "dtype": verdict.dtype or None, "shape": list(verdict.shape),
        "metrics": None if metrics is None else metrics.as_json(), "notes": list(verdict.notes),
    }


def sheet(result: Runs) -> Sheet:
    """All of it, for a file of any kind."""
    first, *others = result.runs
    return Sheet(
        kind="golden same", title="Runs against each other", pack=result.pack or first,
        candidate=", ".join(others if not result.pack else result.runs),
        format=result.format or "the same bits", ok=result.ok, sentence=sentence(result),
        verdicts=result.verdicts, failing=result.failing, columns=COLUMNS, legend=LEGEND, row=row,
        why=what_differs, whole=True, unread=result.unread, remarks=result.remarks)
