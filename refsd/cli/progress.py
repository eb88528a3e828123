"""How far a picture is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refsd.cli import report

QUIET_SECONDS = 30  # between two lines where there is no terminal


class Progress:
    """Told of every step of one picture, or of whatever `each` is; writes to stderr only."""

    def __init__(self, total: int, label: str, *, show: bool, done: int = 0, each: str = "step"):
        self.total, self.label, self.show, self.each = total, label, show, each
        self.done, self.before, self.started = done, done, time.monotonic()
        self.last_line = self.started
        self.bar = None
        if show and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit=each, leave=False, file=sys.stderr,
                            initial=done)

    def step(self, *_: Any) -> None:
        """One more step is done: a callback_on_step_end, which changes nothing."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            return
        now = time.monotonic()
        if self.show and now - self.last_line >= QUIET_SECONDS and self.done < self.total:
            self.last_line = now
            each = (now - self.started) / (self.done - self.before)
            left = each * (self.total - self.done)
            report.note(f"refsd: {self.label}: {self.each} {self.done} of {self.total}, "
                        f"{left:.0f} s left")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Without the bar within the block, where something else is written to the terminal."""
        if self.bar is not None:
            self.bar.clear()
        yield
        if self.bar is not None:
            self.bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()
