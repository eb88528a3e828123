"""Where the CPU kernels that move data leave it: views where memory allows, channels last."""

import numpy as np
import pytest
from numba_agreement import KERNELS, agree
from op_table import LAYOUTS, normal, with_layout

from refsd.half import HALVES
from refsd.numba_ops.cpu import conv_gemm, layout
from refsd.numba_ops.memory import layout_copies
from refsd.numba_ops.weights import pack_weight


def channels_last(*shape, seed=1):
    return with_layout(normal(shape, seed), "channels_last")


def has_channels_last(x):
    return np.moveaxis(x, 1, -1).flags.c_contiguous


def test_tokens_of_a_picture_are_a_view_and_back():
    x = channels_last(2, 5, 4, 3)
    tokens = KERNELS["to_tokens"](x)
    assert np.shares_memory(tokens, x) and tokens.flags.c_contiguous
    back = KERNELS["to_image"](tokens, height=4, width=3)
    assert np.shares_memory(back, x) and back.strides == x.strides
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_contiguous_wherever_the_picture_lies(layout):
    x = with_layout(normal((2, 5, 4, 3), 1), layout)
    tokens = KERNELS["to_tokens"](x)
    assert tokens.flags.c_contiguous and tokens.flags.aligned
    image = KERNELS["to_image"](with_layout(normal((2, 12, 5), 1), layout), height=4, width=3)
    assert has_channels_last(image) and image.flags.aligned


def test_slices_and_turned_arrays_are_views():
    x = channels_last(2, 5, 4, 3)
    assert np.shares_memory(KERNELS["slice"](x, axis=1, start=1, stop=3), x)
    assert np.shares_memory(KERNELS["transpose"](x, axes=(0, 2, 3, 1)), x)


def test_axes_are_split_and_merged_in_place_where_they_lie_as_one():
    x, before = channels_last(2, 6, 4, 3), layout_copies()
    assert np.shares_memory(KERNELS["reshape"](x, shape=(2, 3, 2, 4, 3)), x)
    assert np.shares_memory(KERNELS["reshape"](x, shape=(2, 6, 12)), x)
    assert layout_copies() == before
    KERNELS["reshape"](x, shape=(2, 72))
    assert layout_copies() == before + 1


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("layouts", [("channels_last", "channels_last"), ("channels_last", "C"),
                                     ("C", "channels_last"), ("C", "C"), ("reversed", "strided"),
                                     ("fortran", "unaligned"), ("readonly", "broadcast")])
def test_concat_lies_as_its_first_array(axis, layouts):
    shape = [3, 17, 5, 4]
    first = normal(shape, 1)
    shape[axis] += 16
    second = normal(shape, 2)
    y = agree("concat", ([with_layout(first, layouts[0]), with_layout(second, layouts[1])],),
              {"axis": axis})
    assert has_channels_last(y) == (layouts[0] == "channels_last")


def test_pictures_have_their_channels_last():
    x = channels_last(2, 37, 8, 9)
    size = {"height": 16, "width": 31}
    for y in (KERNELS["upsample_nearest"](x, **size),
              KERNELS["upsample_bilinear"](x, **size, align_corners=False),
              KERNELS["pad"](x, widths=((0, 0), (0, 0), (1, 1), (0, 1))),
              KERNELS["group_norm"](x, *normal((2, 37), 2), groups=37, eps=1e-6),
              KERNELS["conv2d"](x, normal((5, 37, 3, 3), 2), padding=1)):
        assert has_channels_last(y)


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_nothing_but_copies(dtype):
    """Bits stay as they are, those of NaNs and of -0 too; of halves all."""
    bits = "u4" if dtype == "float32" else "u2"
    x = np.arange(2**16, dtype=bits) * np.array(13421773).astype(bits)  # odd: all 2^16 of u2
    x = np.moveaxis(x.view(HALVES.get(dtype, dtype)).reshape(2, 16, 16, 128), -1, 1)
    both, matrix = KERNELS["concat"]([x, x], axis=1), np.ascontiguousarray(x).reshape(256, 256)
    for y in (both[:, :128], both[:, 128:], KERNELS["upsample_nearest"](x, height=16, width=16),
              KERNELS["pad"](x, widths=((0, 0),) * 4), padded_for_a_convolution(x),
              KERNELS["to_image"](KERNELS["to_tokens"](x), height=16, width=16)):
        np.testing.assert_array_equal(y.view(bits), x.view(bits))
    for y in (pack_weight(matrix), KERNELS["embedding"](np.arange(256), matrix)):
        np.testing.assert_array_equal(y.view(bits), matrix.view(bits))


def padded_for_a_convolution(x):
    """What is inside of the zeros that implicit GEMM puts around a picture, (N, C, H, W)"""
    N, C, H, W = x.shape
    ones, padding = (1, 1), ((1, 1), (1, 1))
    plan = conv_gemm.plan_of(C, (8, C, 3, 3), (N, H, W, 8), ones, padding, ones, x.itemsize)
    with conv_gemm._padded_copy(x, (H, W), plan, ones, padding) as (copy, image):
        pixels = copy[:N * image].view(x.dtype).reshape(N, H + 2, W + 1, plan.step).copy()
    return np.moveaxis(pixels[:, 1:-1, 1:, :C], -1, 1)


@pytest.mark.parametrize("size, by_kernel", [(7, []), (8, [8])])
def test_small_arrays_are_copied_by_numpy(monkeypatch, size, by_kernel):
    copied, copy = [], layout._copy
    monkeypatch.setattr(layout, "ALONE", 8)
    monkeypatch.setattr(layout, "_copy", lambda *args: copied.append(args[3]) or copy(*args))
    x = normal((size,), 1)
    np.testing.assert_array_equal(KERNELS["concat"]([x, x[:1]], axis=0), np.append(x, x[0]))
    assert copied == by_kernel
