"""Rows, times and rotations in lockstep."""

import math

import numpy as np
import pytest
from cuda_agreement import DTYPES, VIEWS, agree, run
from op_table import normal

from refsd import functional as F
from refsd import registry
from refsd.half import HALVES
from refsd.numba_ops.cuda.array import DeviceArray, copies, to_device
from refsd.registry import use

TIMES = np.array([0, 1, 37, 500, 998, 999])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", [None, *VIEWS])
def test_rows_are_taken_to_the_bit(images, dtype):
    """Of all widths, which decide how many bytes are moved at once."""
    for width in (1, 2, 3, 4, 8, 12):
        for ids in (np.array([[3, 0, 6], [6, 6, 1]]), np.array([2], "u1"), np.zeros((0, 3), int)):
            agree("embedding", [ids, normal((7, width), 1)], {}, dtype, images)
        agree("gather", [normal((3, 5, width), 1), np.array([4, 0, 2], "int32")], {}, dtype, images)


def test_an_index_outside_is_refused_wherever_it_lies():
    table = to_device(normal((7, 4), 1))
    with use("cuda"):
        for ids in (np.array([0, 7]), np.array([-1, 2]), to_device(np.array([0, 7]))):
            with pytest.raises(IndexError, match="embedding: indices run from"):
                F.embedding(ids, table)
        with pytest.raises(IndexError, match="gather: indices run from 5"):
            F.gather(to_device(normal((1, 5, 4), 1)), np.array([5]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_timestep_embedding(dtype):
    for times in (TIMES, (TIMES * 0.99).astype("f4"), TIMES.astype("f8"), TIMES[:0]):
        for dim, flip, shift in [(8, True, 0), (7, False, 1), (64, True, 0), (3, False, 0.5)]:
            agree("timestep_embedding", [times], {"dim": dim, "flip_sin_to_cos": flip,
                                                  "freq_shift": shift, "dtype": dtype}, dtype)


def test_times_of_the_device_are_not_copied():
    """A captured step has them in its memory; the frequencies are made once."""
    options = {"dim": 16, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": "float32"}
    times = to_device(np.float32([999, 3]))
    with use("cuda"):
        F.timestep_embedding(times, **options)
        before = dict(copies)
        y = F.timestep_embedding(times, **options)
        assert copies == before
        F.timestep_embedding(np.array([999, 3]), **options)
    assert copies == {**before, "to_device": before["to_device"] + 1}
    assert isinstance(y, DeviceArray)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_beside_multiples_of_a_quarter_turn(dtype):
    """Where sin or cos is next to 0, the error is still relative to it."""
    turns = np.arange(1, 640) * (math.pi / 2)
    times = np.concatenate([turns, np.nextafter(turns.astype("f4"), np.float32(1e9))]).astype("f4")
    agree("timestep_embedding", [times[::17]], {"dim": 2, "flip_sin_to_cos": False, "freq_shift": 0,
                                                "dtype": dtype}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(interleaved, dtype):
    for shape in [(2, 3, 8), (5, 6), (2, 2, 3, 4), (0, 4), (3, 0)]:
        for images in (None, *VIEWS):
            agree("rope", [normal(shape, 1), np.arange(shape[-2]) * 7],
                  {"base": 500.0, "interleaved": interleaved}, dtype, images)


def test_nan_stays_where_it_is():
    x = normal((2, 3, 8), 1)
    x[1, 2, 3] = np.nan
    for interleaved, others in [(True, 2), (False, 7)]:
        options = {"base": 500.0, "interleaved": interleaved}
        y = run("rope", [x, np.arange(3)], options)
        assert set(zip(*np.nonzero(np.isnan(y)))) == {(1, 2, 3), (1, 2, others)}
    bits = np.arange(0x7F80, 0x7FC0, dtype="u2").reshape(8, 8).view(HALVES["bfloat16"])
    for name, args in [("embedding", [np.arange(8), bits]),
                       ("gather", [bits[None], np.array([3])])]:
        expected = registry.ops()[name].definition(*args)
        assert run(name, args, {}).tobytes() == expected.tobytes()
