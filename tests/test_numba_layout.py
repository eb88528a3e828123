"""The CPU kernels that move data or enlarge pictures: equal to the reference, channels last."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba_agreement import KERNELS, NARROW, agree, agree_on, run_again_with, same_for_all_threads
from op_table import LAYOUTS, lay_out, normal
from op_table import OPS as CALLS

NAMES = ("to_tokens", "to_image", "concat", "slice", "pad", "transpose", "upsample_nearest",
         "upsample_bilinear")


def channels_last(*shape, seed=1):
    return lay_out(normal(shape, seed), "channels_last")


def has_channels_last(x):
    return np.moveaxis(x, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25)
def test_any_call(name, data):
    agree_on(name, data.draw(CALLS[name]))


def test_tokens_of_a_picture_are_a_view_and_back():
    x = channels_last(2, 5, 4, 3)
    tokens = KERNELS["to_tokens"](x)
    assert np.shares_memory(tokens, x) and tokens.flags.c_contiguous
    back = KERNELS["to_image"](tokens, height=4, width=3)
    assert np.shares_memory(back, x) and back.strides == x.strides
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_contiguous_wherever_the_picture_lies(layout):
    x = lay_out(normal((2, 5, 4, 3), 1), layout)
    tokens = KERNELS["to_tokens"](x)
    assert tokens.flags.c_contiguous and tokens.flags.aligned
    image = KERNELS["to_image"](lay_out(normal((2, 12, 5), 1), layout), height=4, width=3)
    assert has_channels_last(image) and image.flags.aligned


def test_slices_and_turned_arrays_are_views():
    x = channels_last(2, 5, 4, 3)
    assert np.shares_memory(KERNELS["slice"](x, axis=1, start=1, stop=3), x)
    assert np.shares_memory(KERNELS["transpose"](x, axes=(0, 2, 3, 1)), x)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("layouts", [("channels_last", "channels_last"), ("channels_last", "C"),
                                     ("C", "channels_last"), ("C", "C"), ("reversed", "strided"),
                                     ("fortran", "unaligned"), ("readonly", "broadcast")])
def test_concat(axis, layouts):
    shape = [3, 17, 5, 4]
    first = normal(shape, 1)
    shape[axis] += 16
    second = normal(shape, 2)
    y = agree("concat", ([lay_out(first, layouts[0]), lay_out(second, layouts[1])],),
              {"axis": axis})
    assert has_channels_last(y) == (layouts[0] == "channels_last")


@pytest.mark.parametrize("channels", [(320, 640), (1, 1), (4, 5), (3, 33, 15)])
def test_concat_of_channels(channels):
    arrays = [channels_last(2, c, 9, 8, seed=c) for c in channels]
    assert has_channels_last(agree("concat", (arrays,), {"axis": 1}))


@pytest.mark.parametrize("layout", ["channels_last", "C", "window"])
@pytest.mark.parametrize("widths", [
    ((0, 0), (0, 0), (1, 1), (1, 1)), ((0, 0), (0, 0), (0, 1), (0, 1)),
    ((1, 0), (2, 3), (0, 0), (0, 0)), ((0, 0),) * 4])
def test_pad(layout, widths):
    agree("pad", (lay_out(normal((2, 19, 6, 5), 1), layout),), {"widths": widths})


@pytest.mark.parametrize("height, width", [(16, 18), (17, 31), (5, 5), (8, 9), (3, 100)])
@pytest.mark.parametrize("channels", [1, 4, 16, 37])
def test_enlarging(height, width, channels):
    x = channels_last(2, channels, 8, 9)
    size = {"height": height, "width": width}
    assert has_channels_last(agree("upsample_nearest", (x,), size))
    for align_corners in (False, True):
        y = agree("upsample_bilinear", (x,), size | {"align_corners": align_corners})
        assert has_channels_last(y)


def test_nothing_but_copies():
    """Bits stay as they are, those of NaNs and of -0 too."""
    x = np.arange(2 * 20 * 4 * 4, dtype="uint32") * 13421773
    x = np.moveaxis(x.view("float32").reshape(2, 4, 4, 20), -1, 1)
    both = KERNELS["concat"]([x, x], axis=1)
    for y in (both[:, :20], both[:, 20:], KERNELS["upsample_nearest"](x, height=4, width=4),
              KERNELS["pad"](x, widths=((0, 0),) * 4),
              KERNELS["to_image"](KERNELS["to_tokens"](x), height=4, width=4)):
        np.testing.assert_array_equal(y.view("uint32"), x.view("uint32"))


def test_the_same_bits_for_any_threads_and_any_place_in_the_batch():
    x = channels_last(3, 40, 30, 20)
    options = {"height": 61, "width": 33, "align_corners": False}
    batch = same_for_all_threads("upsample_bilinear", x, **options)
    for n in range(3):
        alone = KERNELS["upsample_bilinear"](x[n:n + 1], **options)
        np.testing.assert_array_equal(alone[0], batch[n])
    same_for_all_threads("concat", [x, x], axis=1)


@pytest.mark.parametrize("width", ["16", "32"])
def test_narrower_machines(width):
    if not NARROW:  # else this is that other run
        run_again_with(width, __file__, "enlarging or of_channels or nothing_but")
