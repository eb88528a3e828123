"""What became of each tensor of a comparison, and of the whole."""

import fnmatch
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from refsd.errors import UsageError
from refsd.golden.comparing.diagnose import Finding
from refsd.golden.comparing.metrics import Metrics
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.bounds import moves_data


class Status(StrEnum):
    """What became of one tensor."""

    EQUAL = "equal"  # bit-exact
    WITHIN = "explained"  # within the tolerance
    WRONG = "wrong"  # beyond it, or not finite where the right number is
    SUSPECT = "suspect"  # beyond what the network spreads, by its own or an inherited error
    OPEN = "open"  # nothing tells whether it is right
    SHAPE = "shape"
    DTYPE = "dtype"  # integers for floats, or the reverse
    UNREADABLE = "unreadable"  # a note says why
    MISSING = "missing"
    EXTERNAL = "given"  # need not be made: declared so, or an external input that is missing


FAILING = (Status.WRONG, Status.SHAPE, Status.DTYPE, Status.OPEN, Status.UNREADABLE)
ABSENT = (Status.MISSING, Status.EXTERNAL, Status.UNREADABLE)  # what could not be compared


@dataclass(frozen=True)
class Verdict:
    """What became of one tensor, held to the golden one or to what its op makes of its own inputs.

    times: |error| / tolerance, the largest, at the index `at`, for ports in `format`.

    Held to the golden tensor: golden_there and candidate_there are the two numbers at `at`, kind is
    which tolerance (limits.Limit), or "largest" for that of a single element beside a spread.
    beyond: how many elements of a wrong tensor are further off than any may be, and where.

    On its own inputs: local and inherited are root mean squares of the op's own error and of what
    it was handed. borrowed: inputs for which golden ones had to stand in; computed: tensors that
    the port did not dump, and that were computed from what it did.
    """

    entry: Entry
    status: Status
    dtype: str = ""
    shape: tuple[int, ...] = ()
    metrics: Metrics | None = None
    kind: str = ""
    times: float = 0.0
    at: tuple[int, ...] | None = None
    golden_there: float = 0.0
    candidate_there: float = 0.0
    beyond: int = 0
    where: str = ""
    local: float = 0.0
    inherited: float = 0.0
    borrowed: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    maps: tuple[Any, ...] = ()
    format: str = ""

    @property
    def name(self) -> str:
        """The tensor's, in the pack."""
        return self.entry.name

    @property
    def finding(self) -> Finding | None:
        """What the mistake most looks like."""
        return next(iter(self.findings), None)

    @property
    def bad(self) -> bool:
        """Whether it makes a comparison with the golden tensors fail."""
        return self.status in FAILING


@dataclass(frozen=True)
class Comparison:
    """Verdicts in the order of execution, and the candidate's names that mean nothing here.

    unread: why files cannot be read that no verdict is about; they fail too. remarks: what is
    asked for in vain. wanted: how many tensors are to be compared at least. given: what is said of
    every tensor that was declared as given, compared here or not.
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
    given: tuple[Verdict, ...] = ()

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
        return dict(Counter(verdict.status.value for verdict in self.verdicts))

    @property
    def failing(self) -> list[Verdict]:
        """The verdicts that fail."""
        return [v for v in self.verdicts if v.bad or self.whole and v.status == Status.MISSING]

    @property
    def compared(self) -> int:
        """How many tensors were compared."""
        return sum(v.status not in ABSENT for v in self.verdicts)

    @property
    def expected(self) -> int:
        """How many tensors a port can write: all but the inputs that it was given."""
        return sum(v.status != Status.EXTERNAL for v in self.verdicts)


class AtLeast(NamedTuple):
    """How many tensors are to be compared: a number, or a share of those a port can write."""

    count: int = 0
    share: float = 0.0

    def of(self, expected: int) -> int:
        """The number, out of so many."""
        return max(self.count, math.ceil(self.share * expected - 1e-9))


def exactly(entry: Entry, format: str) -> str:
    """Why a right port in a format has a tensor's very numbers, where nothing is allowed."""
    if entry.op is None:
        return ("no port rounds whole numbers" if "int" in entry.dtype else
                f"a port in {format} holds this very number")
    if moves_data(entry.op):
        return f"{entry.op} copies numbers and rounds none"
    return f"no rounding of {format} reaches this place"


def select(pack: Any, only: tuple[str, ...]) -> list[Entry]:
    """The pack's entries whose names fit one of the patterns, all without any.

    Raises UsageError where none fits.
    """
    entries = [entry for entry in pack.entries.values()
               if not only or any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in only)]
    if not entries:
        raise UsageError(f"{pack.path}: no tensor fits {', '.join(only)}. See refsd golden info")
    return entries
