"""What the server says in its terminal: a line each, tracebacks of faults, no prompts."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from refsd.cli.report import note, one_line

WORDS = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}


class Terminal(logging.Handler):
    """Lines on stderr.

    Of a request's target what stands behind "?", which may be the token, is not said.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, if it can be: a full disk below a file of lines is no reason to end."""
        with suppress(OSError):
            note(line_of(record))
            if record.exc_info:
                note("".join(traceback.format_exception(*record.exc_info)).rstrip())


def line_of(record: logging.LogRecord) -> str:
    """What is said of it."""
    if record.name == "uvicorn.access":
        client, method, target, _, status = record.args
        return one_line(f"refsd: {client} {method} {target.partition('?')[0]} {status}")
    return one_line(f"refsd: {WORDS.get(record.levelno, '')}{record.getMessage().strip()}")


@contextmanager
def logged(*, verbose: bool) -> Iterator[None]:
    """Within the block the server's and uvicorn's loggers are heard, and by nobody else.

    Not by refsd.cli.report.Warnings, of which a job has one of its own while it is drawn.
    """
    levels = {"refsd.serve": logging.WARNING,
              "uvicorn.error": logging.WARNING if verbose else logging.ERROR,
              "uvicorn.access": logging.INFO if verbose else logging.CRITICAL,
              "asyncio": logging.ERROR}
    handler, before = Terminal(), []
    for name, level in levels.items():
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
