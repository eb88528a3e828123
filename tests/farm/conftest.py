"""What holds for all tests of clusters."""

import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def own_environment():
    """Dask sets OMP_NUM_THREADS for its workers, in the process that starts them, and leaves it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
