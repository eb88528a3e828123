"""A plugin of pytest: tests that compare ops run through the driver that pretends."""

import driver_standin

standin = driver_standin.attach()


def pytest_sessionfinish(session):
    """What went wrong behind the driver fails the run, and what it would have refused."""
    refused = driver_standin.counts()["refused"]
    if standin.faults or refused:
        print(refused, *standin.faults, sep="\n")
        session.exitstatus = 1
