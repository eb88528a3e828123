"""Results and workspaces come from one allocator, which can be replaced."""

import threading

import numpy as np
import pytest
from agreement_cases import calls
from numba_agreement import run
from op_table import OPS, arrays_in
from test_ops_properties import VIEWS

from refsd.numba_ops import memory, workspace


@pytest.fixture
def blocks():
    """What the allocator of the test has handed out, every byte 255."""
    blocks = []

    def allocate(size):
        blocks.append(memory.allocate_from_pool(size))
        blocks[-1][:] = 255
        return blocks[-1]

    with memory.allocating_with(allocate):
        yield blocks
    assert memory._allocator.get() is memory.allocate_from_pool


@pytest.mark.parametrize("name", sorted(set(OPS) - VIEWS))
def test_every_result_lies_in_what_it_gives(blocks, name):
    """Small ones too."""
    args, options = calls(name)[0].build("float32")
    y = run(name, args, options)
    assert any(np.may_share_memory(y, block) for block in blocks)
    assert not any(np.may_share_memory(y, array) for array in arrays_in((args, options)))


def test_workspaces_do_too_and_begin_at_a_vector(blocks):
    with workspace.workspace(np.float32, 5, 7) as arrays:
        assert [array.size for array in arrays] == [5, 7] and len(blocks) == 1
        assert all(np.isnan(array).all() for array in arrays)
        assert all(np.may_share_memory(array, blocks[0]) for array in arrays)
        assert all(array.ctypes.data % memory.WIDTH == 0 for array in arrays)


def test_zeros_are_zeros_there(blocks):
    assert not memory.zeros((2, 3), np.float64).any() and len(blocks) == 1
    assert not memory.fill_up(None, 3, np.dtype("f4")).any() and len(blocks) == 2


def test_it_is_replaced_for_one_python_thread(blocks):
    thread = threading.Thread(target=lambda: memory.aligned_empty(3, np.float32))
    thread.start()
    thread.join()
    assert blocks == []
