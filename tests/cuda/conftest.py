"""Every test here runs on Python in lockstep, unless it says otherwise.

With REFSD_TESTS_ON=device those that compare with the reference run on the GPU of this machine, and
the others not at all: `python -m benchmarks.gpu run` does that.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests have

from refsd.numba_ops.cuda import device, lockstep

ON_DEVICE = os.environ.get("REFSD_TESTS_ON") == "device"


def pytest_collection_modifyitems(config, items):
    """On a GPU: what compares with the reference, and warps run in the one order that they have."""
    def compares(item):
        chosen = getattr(item, "callspec", None)
        backwards = chosen is not None and chosen.params.get("order") == -1
        return hasattr(item.module, "agree") and not backwards

    if ON_DEVICE:
        config.hook.pytest_deselected(items=[item for item in items if not compares(item)])
        items[:] = filter(compares, items)


@pytest.fixture(autouse=True)
def on_lockstep(monkeypatch):
    """A device for each test."""
    if not ON_DEVICE:
        monkeypatch.setenv("REFSD_CUDA", "lockstep")
    device.current.cache_clear()
    yield
    device.current.cache_clear()


@pytest.fixture(params=[1, -1], ids=["forwards", "backwards"])
def order(request, monkeypatch):
    """Warps run in one order, and in the other."""
    monkeypatch.setattr(lockstep, "order", request.param)
