"""torch works on two threads, as the machines that these comparisons are planned for."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
