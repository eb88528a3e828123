"""Ctrl-C and SIGTERM: the first ends the work between two ops, the second ends the process."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refsd.atomic import drafts

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The user (or the system) asked to stop; `signum` says how."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Stopped once; another one exits at once.

    Python runs a signal's handler between two byte codes of the main thread, so never inside an op.
    The second signal must not wait for that: a thread learns of it through the wake-up pipe.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {signum: signal.signal(signum, _stop) for signum in SIGNALS}
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_exit_at_the_second, args=(read,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(write)


def _stop(signum: int, frame: Any) -> None:
    raise Stopped(signum)


def _exit_at_the_second(read: int) -> None:
    """Wait for two signals, or for the end of the pipe."""
    seen = 0
    while seen < 2 and (byte := os.read(read, 1)):
        seen += byte[0] in SIGNALS
    if seen == 2:
        for path in list(drafts):
            path.unlink(missing_ok=True)
        os._exit(128 + byte[0])
    os.close(read)
