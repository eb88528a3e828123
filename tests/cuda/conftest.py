"""Every test here runs on Python in lockstep, unless it says otherwise."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests have

from refsd.numba_ops.cuda import device, lockstep


@pytest.fixture(autouse=True)
def on_lockstep(monkeypatch):
    """A device for each test."""
    monkeypatch.setenv("REFSD_CUDA", "lockstep")
    device.current.cache_clear()
    yield
    device.current.cache_clear()


@pytest.fixture(params=[1, -1], ids=["forwards", "backwards"])
def order(request, monkeypatch):
    """Warps run in one order, and in the other."""
    monkeypatch.setattr(lockstep, "order", request.param)
