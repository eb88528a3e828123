"""What a section is given: whether this is a rehearsal, how long it has, and guards and clocks."""

import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

from refsd.errors import UsageError
from refsd.numba_ops.cuda.device import current


class Work:
    """One section's run. In a rehearsal sizes are small and times mean nothing."""

    def __init__(self, rehearse: bool, seconds: float):
        self.rehearse, self.until = rehearse, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until this section is stopped."""
        return self.until - time.monotonic()

    def guarded(self, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row that a function makes, or one that says what went wrong."""
        if self.left() < 0:
            return {"skipped": "no time was left"}
        try:
            return function()
        except UsageError as problem:
            known = "has no kernel" in str(problem)  # yet: it is neither right nor wrong
            return {"skipped" if known else "red": one_line(problem)}
        except Exception as problem:  # the other rows shall still be made
            traceback.print_exc()
            return {"red": one_line(problem)}

    def seconds(self, run: Callable[[], Any], finish: Callable[[], None] | None = None,
                rounds: int = 5, budget: float = 2.0) -> list[float]:
        """Of one call, by rounds: each is as many calls as take a tenth of the budget or so.

        finish() waits for the device; by default for ours.
        """
        finish = finish or current().synchronize
        if self.rehearse:
            rounds, budget = 1, 0.0
        run()
        finish()
        begun = time.perf_counter()
        run()
        finish()
        once = max(time.perf_counter() - begun, 1e-6)
        times = max(1, min(1000, round(budget / rounds / once)))
        found = []
        for _ in range(rounds):
            begun = time.perf_counter()
            for _ in range(times):
                run()
            finish()
            found.append((time.perf_counter() - begun) / times)
        return found


def one_line(problem: BaseException) -> str:
    """What it was, for a row."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"


def middle(samples: list[float]) -> float:
    """The median."""
    return statistics.median(samples)
