"""Loaded by Dask into each worker of local:N."""

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the command, which ends the workers: a terminal sends it to all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
