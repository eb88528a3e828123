"""Layouts of other engines: where each element lies, and the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refsd.errors import UsageError
from refsd.golden.comparing.layouts import LAYOUTS, from_layout, layout, to_layout

SHAPES = st.lists(st.integers(1, 70), min_size=1, max_size=4).map(tuple).filter(
    lambda shape: np.prod(shape) < 20000)


def numbered(shape):
    """Every element is its own number, and none is 0, so that padding shows."""
    return 1 + np.arange(np.prod(shape), dtype="float32").reshape(shape)


@given(shape=SHAPES, name=st.sampled_from(list(LAYOUTS)))
def test_there_and_back_is_the_identity(shape, name):
    x = numbered(shape)
    data = to_layout(x, name)
    assert data.shape == layout(name).physical(shape) and data.flags.c_contiguous
    assert np.array_equal(from_layout(data, shape, name), x)
    assert np.array_equal(from_layout(data.reshape(-1), shape, name), x)
    # what is not the tensor is zeros
    assert np.array_equal(np.sort(data[data != 0]), x.reshape(-1))


def where(name, shape, index):
    """The place in memory of one element."""
    x = np.zeros(shape, "float32")
    x[index] = 1
    (place,) = np.flatnonzero(to_layout(x, name))
    return int(place)


# N, C, H, W = 2, 5, 3, 4 and the element n, c, h, w = 1, 4, 2, 3, by hand
@pytest.mark.parametrize("name, place", [
    ("NCHW", ((1 * 5 + 4) * 3 + 2) * 4 + 3),
    ("NHWC", ((1 * 3 + 2) * 4 + 3) * 5 + 4),
    ("HWIO", ((2 * 4 + 3) * 5 + 4) * 2 + 1),
    ("TRANSPOSED", ((1 * 5 + 4) * 4 + 3) * 3 + 2),
    ("NC4HW4", (((1 * 2 + 1) * 3 + 2) * 4 + 3) * 4 + 0),
    ("ROWS", 23 * 5 + 4),
    ("ROWS32", 23 * 32 + 4),
    ("TILE32", 23 * 32 + 4),
    ("FACE16", ((1 * 2 + 0) * 16 + 7) * 16 + 4),
])
def test_where_an_element_of_a_picture_lies(name, place):
    assert where(name, (2, 5, 3, 4), (1, 4, 2, 3)) == place


# Row 40, column 33 of a matrix of 77 x 64: the tile (1, 1) of 3 x 2, in it row 8, column 1.
@pytest.mark.parametrize("name, place", [
    ("ROWS", (1 * 77 + 40) * 64 + 33),
    ("ROWS32", (1 * 96 + 40) * 64 + 33),
    ("TILE32", ((1 * 3 + 1) * 2 + 1) * 1024 + 8 * 32 + 1),
    ("FACE16", ((1 * 3 + 1) * 2 + 1) * 1024 + 8 * 16 + 1),
])
def test_where_an_element_of_a_text_lies(name, place):
    assert where(name, (2, 77, 64), (1, 40, 33)) == place


def test_the_last_face_of_a_tile():
    assert where("FACE16", (32, 32), (17, 18)) == 3 * 256 + 1 * 16 + 2


def test_a_linear_weight_is_transposed_and_a_bias_is_not():
    x = numbered((2, 3))
    assert np.array_equal(to_layout(x, "HWIO"), [[1, 4], [2, 5], [3, 6]])
    assert np.array_equal(to_layout(numbered((3,)), "HWIO"), [1, 2, 3])


def test_any_case_of_the_name():
    assert layout("nhwc") is LAYOUTS["NHWC"]


def test_refusals_say_what_was_wanted():
    with pytest.raises(UsageError, match=r"'CHWN' is not one of: NCHW, NHWC"):
        layout("CHWN")
    with pytest.raises(UsageError, match=r"NC4HW4: 7 elements, but \(1, 3, 2, 2\) takes "
                                         r"1 x 1 x 2 x 2 x 4 = 16"):
        from_layout(np.zeros(7), (1, 3, 2, 2), "NC4HW4")
