"""Fused ops against explicit formulas, and the kernels against the ops one by one.

Where a kernel computes a fused op in the order in which it computes its ops, float32 has the very
bits of these, which are tested for all they are by themselves.
"""

import math

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within
from numba_agreement import same_bits
from op_table import normal

from refsd import functional as F
from refsd.half import to_float32, to_half
from refsd.numba_ops import memory
from refsd.registry import use


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_add_adds_to_each_sum(lead, bias, dtype):
    x, weight, b, addend = (integers(i, *shape) for i, shape in enumerate([
        (*lead, 5), (3, 5), (3,), (*lead, 3)]))
    y = F.linear_add(*(a.astype(dtype) for a in ((x, weight, addend, b) if bias else
                                                 (x, weight, addend))))
    for row in np.ndindex(lead):
        expected = [sum(map(math.prod, zip(x[row].tolist(), w.tolist()))) + bias * int(b[o])
                    + int(addend[row][o]) for o, w in enumerate(weight)]
        assert y[row].tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_geglu_gates_the_first_half(bias, dtype):
    x, weight, b = (normal(shape, i).astype(dtype) for i, shape in enumerate([
        (4, 5), (6, 5), (6,)]))
    args = (x, weight, b) if bias else (x, weight)
    truth = np.empty((4, 3))
    for i, o in np.ndindex(4, 3):
        h, g = (math.fsum([*(float(p) * float(q) for p, q in zip(x[i], weight[n])),
                           float(b[n]) * bias]) for n in (o, o + 3))
        truth[i, o] = h * g * (1 + math.erf(g / math.sqrt(2))) / 2
    # fsum rounds once, but its terms are rounded products: as large as the bound of float64
    wide = [a.astype("float64") for a in args]
    bound = sum(BOUNDS["linear_geglu"](wide, {}, truth, PRECISIONS[p]) for p in (dtype, "float64"))
    assert_within(F.linear_geglu(*args), truth, bound)


def test_group_norm_silu_is_the_formula():
    """Pixel by pixel in Python's floats; two images of two groups of different means."""
    x = normal((2, 6, 3, 2), 1) + np.float32([0, 5]).reshape(2, 1, 1, 1)
    x[:, 3:] *= 4
    weight, bias = normal((6,), 2), normal((6,), 3)
    truth = np.empty(x.shape)
    for n in range(2):
        for group in (range(3), range(3, 6)):
            values = [float(x[n, c, i, j]) for c in group for i in range(3) for j in range(2)]
            mean = math.fsum(values) / 18
            root = math.sqrt(math.fsum((v - mean)**2 for v in values) / 18 + 0.1)
            for c in group:
                h = (x[n, c].astype(float) - mean) / root * float(weight[c]) + float(bias[c])
                truth[n, c] = h / (1 + np.exp(-h))
    for dtype in ("float32", "float64"):
        args = [a.astype(dtype) for a in (x, weight, bias)]
        wide = [a.astype("f8") for a in args]
        bound = BOUNDS["group_norm_silu"](wide, {"groups": 2, "eps": 0.1}, truth, PRECISIONS[dtype])
        y = F.group_norm_silu(*args, groups=2, eps=0.1)
        assert_within(y, truth, bound + 2.0**-50, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_silu_has_the_bits_of_its_ops(dtype):
    """Of halves: those of float32, rounded once."""
    x, weight, bias = (a if dtype == "float32" else to_half(a, dtype) for a in (
        normal((2, 40, 9, 7), 1, 3), normal((40,), 2), normal((40,), 3)))
    options = {"groups": 4, "eps": 1e-5}
    with use("numba"):
        y = F.group_norm_silu(x, weight, bias, **options)
        one_by_one = F.silu(F.group_norm(*map(to_float32, (x, weight, bias)), **options))
    same_bits(y, one_by_one if dtype == "float32" else to_half(one_by_one, dtype))


WHOLE = np.random.default_rng(1)


def _loops(x, weight, bias, addend, size, padding):
    """The sums, in whole numbers; x enlarged by the rule that pixel i is that of i H / height."""
    N, C, H, W = x.shape
    O, _, kh, kw = weight.shape
    (height, width), (top, left) = size, padding
    y = np.zeros((N, O, height + 2 * top - kh + 1, width + 2 * left - kw + 1), int)
    for n, o, i, j in np.ndindex(y.shape):
        total = bias[o]
        for c, u, v in np.ndindex(weight.shape[1:]):
            row, column = i + u - top, j + v - left
            if 0 <= row < height and 0 <= column < width:
                total += weight[o, c, u, v] * x[n, c, row * H // height, column * W // width]
        y[n, o, i, j] = total
    return y + addend


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)])
def test_sums_of_whole_numbers_are_exact(backend, kernel):
    """conv2d_add with every form of an addend; upsample_conv2d by ratios that floats hold."""
    x, weight, bias = (WHOLE.integers(-4, 5, shape) for shape in (
        (2, 3, 4, 6), (5, 3, *kernel), (5,)))
    H, W = 4 + 2 - kernel[0] + 1, 6 + 4 - kernel[1] + 1
    with use(backend):
        for shape in [(2, 5, H, W), (2, 5, 1, 1), (1, 5, 1, 1), (5, 1, 1), (2, 1, H, 1), (W,), ()]:
            addend = WHOLE.integers(-9, 10, shape)
            args = [a.astype("f4") for a in (x, weight, addend, bias)]
            y = F.conv2d_add(*args, padding=(1, 2), algorithm="im2col")
            np.testing.assert_array_equal(y, _loops(x, weight, bias, addend, (4, 6), (1, 2)))
        for size in [(8, 12), (4, 3), (7, 6), (2, 24)]:
            args = [a.astype("f4") for a in (x, weight, bias)]
            y = F.upsample_conv2d(*args, height=size[0], width=size[1], padding=(1, 2),
                                  algorithm="im2col")
            np.testing.assert_array_equal(y, _loops(x, weight, bias, 0, size, (1, 2)))


# C, H, W, O, the kernel's size, options: one for every way in which the kernel computes
WAYS = {"implicit GEMM": (16, 9, 10, 33, 3, {"stride": 2}), "Winograd 4": (32, 25, 26, 40, 3, {}),
        "Winograd 2, in groups": (36, 9, 10, 40, 3, {"groups": 2, "algorithm": "winograd2"}),
        "product": (24, 5, 6, 16, 1, {"padding": 0}), "narrow": (16, 9, 9, 4, 3, {}),
        "depthwise": (24, 9, 9, 24, 3, {"groups": 24}),
        "FFT": (8, 20, 17, 9, 7, {"algorithm": "fft"})}


@pytest.mark.parametrize("way", WAYS)
def test_convolutions_have_the_bits_of_their_ops(way):
    """float32; and of a half upsample_conv2d, which computes what its ops do."""
    C, H, W, O, k, more = WAYS[way]
    options = {"padding": 1} | more
    x, weight = normal((2, C, H, W), 1), normal((O, C // options.get("groups", 1), k, k), 2)
    bias = normal((O,), 3)
    with use("numba"):
        y = F.conv2d(x, weight, bias, **options)
        for shape in (y.shape, (2, O, 1, 1), (1, 1, *y.shape[2:])):
            addend = normal(shape, 4)
            same_bits(F.conv2d_add(x, weight, addend, bias, **options), F.add(y, addend), way)
        for dtype in ("float32", "bfloat16"):
            args = [a if dtype == "float32" else to_half(a, dtype) for a in (x, weight, bias)]
            large = F.upsample_nearest(args[0], height=2 * H, width=W + 3)
            same_bits(F.upsample_conv2d(*args, height=2 * H, width=W + 3, **options),
                      F.conv2d(large, *args[1:], **options), way)


def test_no_enlarged_picture_is_made():
    """Of 96 x 96 pixels of 64 channels: what is allocated is less than it, beside the result."""
    sizes = []

    def allocate(size):
        sizes.append(size)
        return memory.allocate_from_pool(size)

    x, weight = normal((1, 64, 48, 48), 1), normal((16, 64, 3, 3), 2)
    with use("numba"), memory.allocating_with(allocate):
        F.upsample_conv2d(x, weight, height=96, width=96, padding=1)
    assert sizes and max(sizes) < 12e6 and 4 * 64 * 96 * 96 not in sizes


def test_an_addend_in_channels_last_memory_is_not_copied():
    x, weight = normal((2, 32, 26, 25), 1), normal((40, 32, 3, 3), 2)
    residual = np.moveaxis(normal((2, 26, 25, 40), 3), -1, 1)
    x, before = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), None
    with use("numba"):
        F.conv2d_add(x, weight, residual, padding=1)  # the weight is packed, and counted
        before = memory.layout_copies()
        F.conv2d(x, weight, padding=1)
        of_weight = memory.layout_copies() - before
        for addend in (residual, residual[:, :, :1, :1], residual[0, :, 0, 0].reshape(40, 1, 1)):
            before = memory.layout_copies()
            F.conv2d_add(x, weight, addend, padding=1)
            assert memory.layout_copies() - before == of_weight
