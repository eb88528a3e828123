"""Ctrl-C and SIGTERM: the first ends the work between two ops, the second ends the process."""

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refsd.atomic import drafts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0  # seconds after which Stopped is raised again


class Stopped(KeyboardInterrupt):
    """The user (or the system) asked to stop; `signum` says how."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Stopped; another one exits at once.

    Python runs a signal's handler between two byte codes of the main thread, so never inside an op.
    The second signal must not wait for that: a thread learns of it through the wake-up pipe.
    Python drops what is raised in __del__, in a weak reference's callback, and in one that C code
    calls, as Numba's compiler does: so Stopped is raised again until the block ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    request = _Request()
    before = {signum: signal.signal(signum, request.stop) for signum in SIGNALS}
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    show, sys.unraisablehook = sys.unraisablehook, _without_stops(sys.unraisablehook)
    threading.Thread(target=_wait, args=(read, request), daemon=True).start()
    try:
        yield
        if request.signum is not None:
            raise Stopped(request.signum)
    finally:
        sys.unraisablehook = show
        signal.set_wakeup_fd(previous)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(write)


class _Request:
    """What was asked for, and when Stopped was raised for it last."""

    def __init__(self):
        self.signum, self.raised = None, 0.0

    def stop(self, signum: int, frame: Any) -> None:
        self.signum, self.raised = signum, time.monotonic()
        raise Stopped(signum)

    def was_lost(self) -> bool:
        return self.signum is not None and time.monotonic() - self.raised >= PATIENCE


def _without_stops(show):
    """Show what Python drops, but not Stopped, which comes again."""
    return lambda dropped: isinstance(dropped.exc_value, Stopped) or show(dropped)


def _wait(read: int, request: _Request) -> None:
    """Wait for two signals, or for the end of the pipe."""
    seen = 0
    while seen < 2:
        if select.select([read], [], [], PATIENCE if seen else None)[0]:
            byte = os.read(read, 1)
            if not byte:
                os.close(read)
                return
            seen += byte[0] in SIGNALS
        elif request.was_lost():
            seen -= 1  # the same one comes through the pipe again
            _thread.interrupt_main(request.signum)
    for path in list(drafts):
        path.unlink(missing_ok=True)
    os._exit(128 + byte[0])
