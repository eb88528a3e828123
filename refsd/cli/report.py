"""What the command line says: results on stdout, everything else on stderr, one line each."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from refsd.errors import ModelError, RefsdError, ResourceError, UsageError

CODES = {UsageError: "usage", ModelError: "model", ResourceError: "resource"}


def one_line(text: str, limit: int = 2000) -> str:
    """Text of any origin as one harmless line: control characters escaped, cut at `limit`."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return shown if len(text) <= limit else f"{shown} ... ({len(text) - limit:,} characters more)"


def gib(count: int) -> str:
    """Bytes for reading."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**29 else f"{count / 2**20:,.1f} MiB"


def result(text: str) -> None:
    """A line of the answer, on stdout."""
    _write(sys.stdout, text)


def result_json(value: Any) -> None:
    """The answer as JSON in plain ASCII, on stdout."""
    _write(sys.stdout, json.dumps(value, indent=2))


def answer(as_json: bool, value: Any, *lines: str) -> int:
    """The answer in either form; gives the exit code of what went well."""
    if as_json:
        result_json(value)
    else:
        for line in lines:
            result(one_line(line))
    return 0


def note(text: str) -> None:
    """A line about the work, on stderr."""
    _write(sys.stderr, text)


def _write(stream: Any, text: str) -> None:
    """print() to a None stream would go to stdout; a closed one is not an error here."""
    if stream is not None:
        encoding = stream.encoding or "utf-8"
        line = text.encode(encoding, "backslashreplace").decode(encoding)
        print(line, file=stream, flush=True)


def describe(error: Exception) -> tuple[str, int, str]:
    """The short name, the exit code and the message of an error."""
    if isinstance(error, RefsdError):
        name = next((name for kind, name in CODES.items() if isinstance(error, kind)), "error")
        return name, error.exit_code, str(error)
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if isinstance(error, MemoryError) or no_thread:  # a thread needs 8 MB for its stack
        return "resource", 4, "out of memory. Ask for a smaller picture, or free some"
    if isinstance(error, OSError):
        where = error.filename or "reading or writing failed"
        return "resource", 4, f"{where}: {error.strerror or error}"
    return "internal", 70, (f"{type(error).__name__}: {error}. This is a bug in refsd: please "
                            "report it with what -v shows")


def fail(code: str, exit_code: int, message: str, *, as_json: bool) -> int:
    """Say what went wrong, the same way for every error; gives the exit code."""
    message = one_line(message)
    line = f"refsd: error: {message}"
    if not as_json:
        note(line)
        return exit_code
    try:
        result_json({"error": {"code": code, "exit_code": exit_code, "message": message}})
    except BrokenPipeError:
        raise
    except OSError:  # stdout itself is what failed
        note(line)
    return exit_code


class Warnings(logging.Handler):
    """The library's warnings, each said once as `refsd: warning: ...` and kept in `said`.

    Of blocks within one another the innermost hears them; of other threads too, unless they are
    `apart`.
    """

    _apart: ContextVar["Warnings | None"] = ContextVar("apart", default=None)

    def __init__(self, *, show: bool):
        super().__init__(logging.WARNING)
        self.show, self.said = show, []

    def emit(self, record: logging.LogRecord) -> None:
        (self._apart.get() or self).say(record.getMessage())

    @contextmanager
    def apart(self) -> Iterator["Warnings"]:
        """Within the block the warnings of this thread are heard by this one, whoever listens."""
        token = self._apart.set(self)
        try:
            yield self
        finally:
            self._apart.reset(token)

    def say(self, message: str) -> None:
        """One warning, unless it was said before."""
        message = one_line(message)
        if message not in self.said:
            self.said.append(message)
            if self.show:
                note(f"refsd: warning: {message}")

    def __enter__(self) -> "Warnings":
        self._logger, self._shown = logging.getLogger("refsd"), warnings.showwarning
        self._outer = [other for other in self._logger.handlers if isinstance(other, Warnings)]
        for other in self._outer:
            self._logger.removeHandler(other)
        self._logger.addHandler(self)
        self._propagate, self._logger.propagate = self._logger.propagate, False
        warnings.showwarning = lambda message, *details: self.say(str(message))
        return self

    def __exit__(self, *error: Any) -> None:
        self._logger.removeHandler(self)
        for other in self._outer:
            self._logger.addHandler(other)
        self._logger.propagate = self._propagate
        warnings.showwarning = self._shown
