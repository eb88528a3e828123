"""What the user sees while kernels are compiled: one line that counts, on stderr."""

import logging
import sys
import time
from typing import Any

from refsd.cli.report import note

QUIET_SECONDS = 10  # between two lines where there is no terminal


class Compiling(logging.Handler):
    """Shows what the logger "refsd.compiling" says: in place on a terminal, else now and then."""

    def __init__(self, *, show: bool):
        super().__init__(logging.INFO)
        self.show, self.shown, self.last = show, "", None
        self.in_place = sys.stderr is not None and sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"refsd: {record.getMessage()}"
        if not self.in_place:
            now = time.monotonic()
            if self.last is None or now - self.last >= QUIET_SECONDS:
                self.last = now
                note(line)
            return
        sys.stderr.write("\r" + line.ljust(len(self.shown)))
        sys.stderr.flush()
        self.shown = line

    def clear(self) -> None:
        """Take the line off the terminal again: what follows begins where it was."""
        if self.shown:
            sys.stderr.write("\r" + " " * len(self.shown) + "\r")
            sys.stderr.flush()
            self.shown = ""

    def __enter__(self) -> "Compiling":
        self._logger = logging.getLogger("refsd.compiling")
        self._before = self._logger.level
        if self.show:
            self._logger.addHandler(self)
            self._logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: Any) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)
        self.clear()
