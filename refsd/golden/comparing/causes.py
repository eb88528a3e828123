"""Which failing tensors are the cause of others: a page has one section for each."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from refsd.golden.comparing.verdicts import Status, Verdict


class Cause(NamedTuple):
    """A failing tensor, and those that fail after it and read it, also by others in between."""

    verdict: Verdict
    followers: list[Verdict]


def causes(verdicts: Iterable[Verdict], failing: Sequence[Verdict], *,
           own: bool = False) -> list[Cause]:
    """The failing tensors, each once, in the order of execution.

    A tensor follows from the first one it reads that fails, or that follows from one and was not
    dumped. What is within its tolerance hands on nothing. Where the pack does not say what a
    tensor was made of (blocks), it follows from the last cause. own: a wrong tensor is so
    on its own inputs, and a cause, whatever failed before it. The
    first NaN or infinity is one too.
    """
    fails = {id(verdict) for verdict in failing}
    found: list[Cause] = []
    behind: dict[str, Cause | None] = {}  # a tensor's name -> what made it wrong
    for verdict in verdicts:
        entry = verdict.entry
        reads = [behind[name] for name in entry.sources if behind.get(name)]
        cause = next(iter(reads), None)
        if id(verdict) not in fails:
            behind[entry.name] = cause if verdict.status == Status.MISSING else None
            continue
        if cause is None and entry.op == "block" and not entry.inputs and found:
            cause = found[-1]
        if cause is None or own and verdict.status == Status.WRONG or (
                _is_lost(verdict) and not _is_lost(cause.verdict)):
            found.append(cause := Cause(verdict, []))
        else:
            cause.followers.append(verdict)
        behind[entry.name] = cause
    return found


def _is_lost(verdict: Verdict) -> bool:
    """Whether it has a NaN or an infinity where there is to be a number."""
    return verdict.metrics is not None and verdict.metrics.nonfinite > 0
