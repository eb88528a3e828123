"""torch works on as many threads as this process has of the two cores that there are to be."""

import os

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_deis_multistep


@pytest.fixture(autouse=True, scope="module")
def torch_threads():
    before = torch.get_num_threads()
    # Two processes with two threads each wait for each other: 175 s for what took 125 s.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(before)


def rounded(function):
    """`function` on tensors, each value the float nearest to the true one (in float32).

    Through float64: exact for sqrt; for exp and log an error needs a value within 1e-16 of a tie.
    """

    def nearest(x):
        x = x.numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            y = function(x.astype(np.float64))
        return torch.from_numpy(np.array(y, dtype=x.dtype))

    return nearest


@pytest.fixture
def nearest(monkeypatch):
    for name in ("sqrt", "exp", "log", "expm1"):
        wrapped = rounded(getattr(np, name))
        monkeypatch.setattr(torch, name, wrapped)
        monkeypatch.setattr(torch.Tensor, name, wrapped)
    power = torch.Tensor.__pow__

    def nearest_power(x, exponent):
        if exponent == 2:  # a product, also in torch
            return power(x, exponent)
        function = np.sqrt if exponent == 0.5 else lambda y: y**exponent
        return rounded(function)(x)

    monkeypatch.setattr(torch.Tensor, "__pow__", nearest_power)
    # UniPC's systems of two and three equations: the nearest float32 to their solution.
    solve = torch.linalg.solve
    monkeypatch.setattr(
        torch.linalg, "solve", lambda a, b: solve(a.double(), b.double()).to(a.dtype)
    )
    monkeypatch.setattr(scheduling_deis_multistep, "np", LikeNumPy())


class LikeNumPy:
    """NumPy for DEIS, which takes NumPy's float32 logarithm, not always the nearest, of tensors."""

    def __getattr__(self, name):
        return getattr(np, name)

    def log(self, x):
        return torch.log(x) if isinstance(x, torch.Tensor) else np.log(x)
