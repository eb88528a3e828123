"""What a comparison or a bisection found, as any kind of file puts it on paper."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from refsd.golden.comparing.diagnose import Finding
from refsd.golden.comparing.verdicts import Verdict


class Sheet(NamedTuple):
    """The answer, the verdicts in the order of execution, and how one becomes a row or a sentence.

    row(verdict) are the texts of `columns`, the tensor's name last; why(verdict) is for those that
    fail. legend: what the words mean; own: a wrong tensor is so on its own inputs, whatever it was
    handed; whole: missing tensors fail too; too_few: fewer than wanted could be judged;
    given: sentences about what the port was given.
    """

    kind: str
    title: str
    pack: str
    candidate: str
    format: str
    ok: bool
    sentence: str
    verdicts: Sequence[Verdict]
    failing: Sequence[Verdict]
    columns: tuple[str, ...]
    legend: dict[str, str]
    row: Callable[[Verdict], tuple[str, ...]]
    why: Callable[[Verdict], str]
    own: bool = False
    whole: bool = False
    too_few: bool = False
    given: Sequence[str] = ()
    unread: Sequence[str] = ()
    remarks: Sequence[str] = ()
    extra: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors have each status, those that occur."""
        return dict(Counter(verdict.status.value for verdict in self.verdicts))


def share(finding: Finding) -> str:
    """How much of the error a finding explains."""
    percent = math.floor(1e4 * finding.confidence) / 100
    return f"explains {percent:g} % of the error"
