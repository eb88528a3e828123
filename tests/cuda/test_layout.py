"""Copies into a memory order, and the ops that move elements, to the bit."""

import itertools

import numpy as np
import pytest
from op_table import normal

from refsd.half import HALVES
from refsd.numba_ops.cuda import layout
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device

KINDS = ("uint8", "float16", "bfloat16", "float32", "int32", "float64", "int64")


def numbers(shape, dtype):
    """Different numbers, as far as the dtype has so many."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(HALVES.get(dtype, dtype))


@pytest.mark.parametrize("dtype", KINDS)
def test_any_view_is_copied_into_any_order(dtype):
    for shape in [(2, 8, 3, 4), (1, 8, 2, 16), (3, 5), (), (0, 3), (2, 0, 3)]:
        x = numbers(shape, dtype)
        for axes in itertools.islice(itertools.permutations(range(x.ndim)), 0, None, 5):
            view = to_device(x).transpose(axes)
            for order in (None, tuple(range(x.ndim))[::-1]):
                y = layout.ordered(view, order)
                assert y.is_contiguous(order)
                np.testing.assert_array_equal(y.numpy(), x.transpose(axes))


def test_more_than_four_axes_take_more_launches():
    x = numbers((2, 3, 2, 2, 3, 2), "float32")
    y = layout.ordered(to_device(x).transpose((5, 1, 3, 0, 4, 2)))
    np.testing.assert_array_equal(y.numpy(), x.transpose(5, 1, 3, 0, 4, 2))


@pytest.mark.parametrize(("width", "start", "unit"), [
    (16, 8, 16), (16, 4, 8), (16, 2, 4), (16, 1, 2), (12, 8, 8), (15, 8, 2)])
def test_the_largest_units_that_divide_all_are_moved(width, start, unit, monkeypatch):
    taken = []
    monkeypatch.setattr(layout, "launch", lambda factory, constants, *_: taken.append(constants))
    layout.ordered(to_device(numbers((3, 32), "float16")).part(1, start, start + width))
    assert taken == [(unit,)]


def test_what_lies_well_is_not_copied_and_copies_are_counted():
    x = to_device(normal((2, 3, 4, 5), 1), CHANNELS_LAST)
    before = layout.copied["arrays"], layout.copied["bytes"]
    assert layout.ordered(x, CHANNELS_LAST) is x
    assert layout.dense(x) == (x, CHANNELS_LAST)
    y, order = layout.dense(x.part(1, 1, 3))
    assert order == CHANNELS_LAST
    assert y.is_contiguous(order)
    assert (layout.copied["arrays"], layout.copied["bytes"]) == (before[0] + 1, before[1] + 4 * 80)
