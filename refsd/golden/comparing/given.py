"""What a port was fed: tensors that are declared as given, and are never its error.

The port need not have made them, so that nothing they differ by is held against it. What follows is
computed from them; where they are not dumped, from the golden ones.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from refsd.golden.comparing.excess import excess, ratio, rms
from refsd.golden.comparing.port_formats import Formats, tensors
from refsd.golden.comparing.verdicts import Status, Verdict
from refsd.golden.packs.manifest import Entry
from refsd.golden.tolerances.formats import format_named, uncertainty

ASSUMED = "given and not dumped: taken to be the golden tensor"
HALVES = ("float16", "bfloat16")


class Given:
    """The tensors of a pack whose names fit one of the patterns.

    names: theirs, whether they are judged or not; remarks: the patterns that fit none.
    """

    def __init__(self, patterns: Iterable[str], pack: Any, candidate: Any, formats: Formats):
        self._pack, self._candidate, self._formats = pack, candidate, formats
        fitting = {pattern: fnmatch.filter(pack.entries, pattern) for pattern in patterns}
        self.names = frozenset(name for names in fitting.values() for name in names)
        self.remarks = tuple(f"--given {pattern!r} fits no tensor of the pack"
                             for pattern, names in fitting.items() if not names)
        self._found: dict[str, Verdict] = {}

    def of(self, entry: Entry, got: np.ndarray | None, golden: np.ndarray) -> Verdict | None:
        """What is said of a tensor that was given; None of others, and of one of another shape.

        beyond, where: the elements that no rounding of the golden tensor explains.
        """
        if entry.name not in self.names or got is not None and got.shape != entry.shape:
            return None
        if entry.name not in self._found:
            verdict = Verdict(entry, Status.EXTERNAL, notes=(ASSUMED,))
            self._found[entry.name] = verdict if got is None else self._held(verdict, got, golden)
        return self._found[entry.name]

    def _held(self, verdict: Verdict, got: np.ndarray, golden: np.ndarray) -> Verdict:
        """The verdict with how a tensor that was dumped differs from the golden one."""
        verdict = replace(verdict, dtype=str(got.dtype), shape=got.shape,
                          inherited=rms(got, golden), notes=("given: the golden tensor",))
        error = excess(got, golden, 0.0, format_named("float64"))
        if error.within:
            return verdict
        if (format := self._rounded_to(verdict.entry, got, golden)) is not None:
            return replace(verdict, notes=(f"given: the golden tensor, rounded to {format}",))
        share = ratio(verdict.inherited, rms(golden, 0.0))
        off = f"{100 * share:.3g} % of its size" if np.isfinite(share) else "infinitely much"
        note = (f"given: differs from the golden tensor by {off}, in {error.where}; at {error.at} "
                f"it is {got[error.at]:.6g} where {golden[error.at]:.6g} is golden")
        return replace(verdict, notes=(note,), beyond=error.beyond, where=error.where)

    def _rounded_to(self, entry: Entry, got: np.ndarray, golden: np.ndarray) -> str | None:
        """The format that it is the golden tensor's rounding to: the port's, or a half."""
        if golden.dtype.kind != "f":
            return None
        for format in (tensors(self._formats.of(entry)), *map(format_named, HALVES)):
            if not np.any(uncertainty(got, format)) and (
                    excess(got, golden, uncertainty(golden, format), format).within):
                return format.name
        return None

    def found(self) -> tuple[Verdict, ...]:
        """What is said of all of them, in the order of execution, of those not judged as well."""
        for entry in self._pack.entries.values():
            if entry.name in self.names and entry.name not in self._found:
                self.of(entry, self._candidate.read(entry.name, entry.shape),
                        self._pack.read(entry.name))
        return tuple(sorted(self._found.values(), key=lambda verdict: verdict.entry.index))


def said(given: Iterable[Verdict], what_follows: str) -> tuple[str, ...]:
    """Sentences: how many are as they should be, and each that is not.

    what_follows: how what reads one of those is judged.
    """
    given = list(given)
    absent = sum(verdict.notes == (ASSUMED,) for verdict in given)
    counts = ((sum(not verdict.beyond for verdict in given) - absent,
               "given as in the pack, or as a rounding of it"),
              (absent, "given and not dumped: taken to be as in the pack"))
    lines = [f"{count:,} {'tensor was' if count == 1 else 'tensors were'} {how}"
             for count, how in counts if count]
    return (*lines, *(f"{verdict.name} was {verdict.notes[0].replace('given:', 'given, and')}: "
                      f"{what_follows}" for verdict in given if verdict.beyond))
