"""What became of each tensor of a comparison, and of the whole."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from refsd.golden.comparing.diagnose import Finding
from refsd.golden.comparing.metrics import Metrics
from refsd.golden.packs.manifest import Entry

EQUAL, EXPLAINED, WRONG, OPEN = "equal", "explained", "wrong", "open"
SHAPE, DTYPE, UNREADABLE = "shape", "dtype", "unreadable"
MISSING, GIVEN = "missing", "given"
FAILING = (WRONG, SHAPE, DTYPE, OPEN, UNREADABLE)
ABSENT = (MISSING, GIVEN, UNREADABLE)  # what could not be compared


@dataclass(frozen=True)
class Verdict:
    """What became of one tensor.

    status: "equal" (to the bit), "explained" (by the tolerance), "wrong" (beyond it, or not
    finite where the golden number is), "open" (it differs, and the pack has no tolerance that says
    by how much it may), "shape", "dtype" (integers for floats or the reverse), "unreadable" (a
    note says why), "missing", "given" (an input of an op, which the port need not write). times:
    |error| / tolerance, the largest, at the index `at`, where the pack has golden_there and the
    candidate found_there. kind: which tolerance (refsd.golden.comparing.limits.Limit), or "largest"
    for that of a single element beside a spread, for ports in `format`. beyond: how many elements
    of a wrong tensor are further off than any may be, and where they lie.
    """

    entry: Entry
    status: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    metrics: Metrics | None = None
    kind: str = ""
    times: float = 0.0
    at: tuple[int, ...] | None = None
    golden_there: float = 0.0
    found_there: float = 0.0
    beyond: int = 0
    where: str = ""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    map: Any = None
    format: str = ""

    @property
    def bad(self) -> bool:
        """Whether it makes the comparison fail."""
        return self.status in FAILING


@dataclass(frozen=True)
class Comparison:
    """Verdicts in the order of execution, and the candidate's names that mean nothing here.

    unread: why files cannot be read that no verdict is about; they fail too. remarks: what the
    name map says in vain. wanted: how many tensors are to be compared at least.
    """

    pack: str
    candidate: str
    format: str
    verdicts: list[Verdict]
    extra: list[str]
    whole: bool = False  # whether missing tensors fail too
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    wanted: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing fails, everything could be read, and enough was compared."""
        return self.first is None and not self.unread and self.compared >= self.wanted

    @property
    def first(self) -> Verdict | None:
        """The first verdict that fails."""
        return next(iter(self.failing), None)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors have each status, those that occur."""
        found: dict[str, int] = {}
        for verdict in self.verdicts:
            found[verdict.status] = found.get(verdict.status, 0) + 1
        return found

    @property
    def failing(self) -> list[Verdict]:
        """The verdicts that fail."""
        return [v for v in self.verdicts if v.bad or self.whole and v.status == MISSING]

    @property
    def compared(self) -> int:
        """How many tensors were compared."""
        return sum(v.status not in ABSENT for v in self.verdicts)

    @property
    def expected(self) -> int:
        """How many tensors a port can write: all but the inputs that it was given."""
        return sum(v.status != GIVEN for v in self.verdicts)


class AtLeast(NamedTuple):
    """How many tensors are to be compared: a number, or a share of those a port can write."""

    count: int = 0
    share: float = 0.0

    def of(self, expected: int) -> int:
        """The number, out of so many."""
        return max(self.count, math.ceil(self.share * expected - 1e-9))
