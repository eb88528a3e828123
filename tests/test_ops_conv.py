"""conv2d's four algorithms against explicit loops in whole numbers, identities, and slices.

With small integers every product and sum is exact in float32, so im2col must be equal; Winograd
F(2x2) only halves and quarters, which is exact too. F(4x4) divides by 6 and 24 and the FFT
multiplies by roots of unity: these two keep to their derived bounds.
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within, rms
from hypothesis import given
from hypothesis import strategies as st
from op_table import normal

from refsd import functional as F
from refsd.errors import UsageError
from refsd.ops import conv, conv_tiled

DTYPES = ("float32", "float64")
ALGORITHMS = ("im2col", "fft", "winograd2", "winograd4")


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-5, 6, shape)


def loops(x, weight, bias, stride, padding, dilation, groups):
    """The definition on lists of whole numbers; every option in its longest form."""
    N, C, H, W = x.shape
    O, I, kh, kw = weight.shape
    (top, bottom), (left, right) = padding
    Ho = (H + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    Wo = (W + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    x, weight = x.tolist(), weight.tolist()
    y = np.zeros((N, O, Ho, Wo), "int64")
    for n, o, i, j in itertools.product(range(N), range(O), range(Ho), range(Wo)):
        total = 0 if bias is None else int(bias[o])
        first = (o // (O // groups)) * I
        for c, u, v in itertools.product(range(I), range(kh), range(kw)):
            row = i * stride[0] + u * dilation[0] - top
            column = j * stride[1] + v * dilation[1] - left
            if 0 <= row < H and 0 <= column < W:
                total += weight[o][c][u][v] * x[n][first + c][row][column]
        y[n, o, i, j] = total
    return y


def check(x, weight, bias, dtype, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1),
          groups=1, algorithm="im2col", spelled=()):
    """conv2d with the options as `spelled` (or as they are) equals the loops."""
    truth = loops(x, weight, bias, stride, padding, dilation, groups)
    args = [a.astype(dtype) for a in (x, weight, bias) if a is not None]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
               "algorithm": algorithm} | dict(spelled)
    y = F.conv2d(*args, **options)
    assert y.dtype == dtype
    bound = 0
    if algorithm in ("fft", "winograd4"):
        wide = [a.astype("float64") for a in args]
        bound = BOUNDS["conv2d"](wide, options, truth.astype("float64"), PRECISIONS[dtype])
    assert_within(y, truth.astype("float64"), bound, f"conv2d {options}")


# every option alone, in both spellings, and some together
OPTIONS = {
    "plain": {},
    "stride 2": {"stride": (2, 2), "spelled": {"stride": 2}},
    "stride 3, 1": {"stride": (3, 1)},
    "stride 1, 2 as a list": {"stride": (1, 2), "spelled": {"stride": [1, 2]}},
    "padding 1": {"padding": ((1, 1), (1, 1)), "spelled": {"padding": 1}},
    "padding 2, 0": {"padding": ((2, 2), (0, 0)), "spelled": {"padding": (2, 0)}},
    "padding right and below": {"padding": ((0, 1), (0, 1))},
    "padding on four sides": {"padding": ((3, 0), (1, 2)),
                              "spelled": {"padding": [[3, 0], [1, 2]]}},
    "dilation 2": {"dilation": (2, 2), "spelled": {"dilation": 2}},
    "dilation 1, 3": {"dilation": (1, 3)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "VAE's halving": {"stride": (2, 2), "padding": ((0, 1), (0, 1)), "spelled": {"stride": 2}},
    "all together": {"stride": (2, 3), "padding": ((1, 2), (0, 3)), "dilation": (2, 1),
                     "groups": 2},
}
CASES = [
    pytest.param(algorithm, options, id=f"{algorithm} {name}")
    for algorithm in ALGORITHMS for name, options in OPTIONS.items()
    if not (algorithm.startswith("winograd") and ({"stride", "dilation"} & options.keys()))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm, options", CASES)
def test_conv2d_is_the_loops(algorithm, options, dtype):
    groups = options.get("groups", 1)
    x, weight = integers(0, 2, 4, 8, 7), integers(1, 4, 4 // groups, 3, 3)
    check(x, weight, integers(2, 4), dtype, algorithm=algorithm, **options)
    check(x, weight, None, dtype, algorithm=algorithm, **options)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (2, 2), (4, 1), (5, 5), (7, 7)])
@pytest.mark.parametrize("algorithm", ["im2col", "fft"])
def test_kernels_of_any_size(kernel, algorithm):
    x, weight = integers(0, 1, 2, 9, 8), integers(1, 3, 2, *kernel)
    check(x, weight, None, "float32", algorithm=algorithm)
    check(x, weight, None, "float32", algorithm=algorithm, stride=(2, 1),
          padding=((0, 2), (3, 0)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [(3, 3), (4, 5), (6, 6), (7, 10), (13, 3)])
def test_any_number_of_tiles(algorithm, size):
    check(integers(0, 2, 3, *size), integers(1, 2, 3, 3, 3), None, "float32", algorithm=algorithm)


@given(data=st.data())
def test_im2col_is_the_loops_for_any_options(data):
    groups = data.draw(st.integers(1, 3))
    kh, kw, sh, sw, dh, dw = (data.draw(st.integers(1, 3)) for _ in range(6))
    top, bottom, left, right, more_h, more_w = (data.draw(st.integers(0, 2)) for _ in range(6))
    H = max(1, dh * (kh - 1) + 1 - top - bottom) + more_h
    W = max(1, dw * (kw - 1) + 1 - left - right) + more_w
    I, O = data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 2))
    check(integers(0, 1, groups * I, H, W), integers(1, O, I, kh, kw), integers(2, O), "float32",
          stride=(sh, sw), padding=((top, bottom), (left, right)), dilation=(dh, dw), groups=groups)


def test_the_kernel_is_not_flipped_and_zeros_lie_outside():
    x = np.array([[[[1.0, 2.0, 3.0]]]])
    weight = np.array([[[[10.0, 100.0]]]])
    assert F.conv2d(x, weight).tolist() == [[[[210, 320]]]]
    padded = F.conv2d(x, weight, padding=((0, 0), (1, 0)))
    assert padded.tolist() == [[[[100, 210, 320]]]]


def shifted_sum(x, weight):
    """A larger convolution: one shifted copy of x a tap, in float64. No padding, stride 1."""
    kh, kw = weight.shape[2:]
    Ho, Wo = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    y = np.zeros((len(x), len(weight), Ho, Wo))
    for u, v in np.ndindex(kh, kw):
        part = x[:, None, :, u:u + Ho, v:v + Wo] * weight[None, :, :, u, v, None, None]
        y += part.sum(axis=2)
    return y


@pytest.mark.parametrize("size, kernel", [((150, 71), 9), ((65, 64), 7), ((200, 40), 31)])
def test_fft_tiles_overlap_without_a_seam(size, kernel):
    x, weight = integers(0, 1, 2, *size), integers(1, 2, 2, kernel, kernel)
    truth = shifted_sum(x, weight)
    args = [a.astype("float32") for a in (x, weight)]
    bound = BOUNDS["conv2d"]([a.astype("float64") for a in args], {"algorithm": "fft"}, truth,
                             PRECISIONS["float32"])
    assert_within(F.conv2d(*args, algorithm="fft"), truth, bound)
    # whole numbers: in float64 the nearest one is the answer, far outside any doubt
    wide = F.conv2d(x.astype("float64"), weight.astype("float64"), algorithm="fft")
    assert np.array_equal(np.rint(wide), truth)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_slices_of_rows_change_nothing(algorithm, monkeypatch):
    x, weight = integers(0, 2, 4, 23, 11), integers(1, 6, 2, 3, 3)
    x, weight = x.astype("float64"), weight.astype("float64")
    whole = F.conv2d(x, weight, padding=1, groups=2, algorithm=algorithm)
    for limit in (1, 3000, 20000):
        monkeypatch.setattr(conv, "SLICE_BYTES", limit)
        monkeypatch.setattr(conv_tiled, "SLICE_BYTES", limit)
        sliced = F.conv2d(x, weight, padding=1, groups=2, algorithm=algorithm)
        assert np.array_equal(np.rint(sliced * 2**20), np.rint(whole * 2**20))


def test_unrolled_windows_stay_small():
    # all windows at once would be 9 x 64 channels x 256 x 256 pixels: 151 MB
    x, weight = normal((1, 64, 256, 256), 0), normal((1, 64, 3, 3), 1)
    tracemalloc.start()
    F.conv2d(x, weight, padding=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the padded copy (17 MB), a slice and the one before it, the result (0.3 MB)
    assert peak < 18e6 + 2.1 * conv.SLICE_BYTES < 100e6


def test_identities():
    x, weight = integers(0, 2, 4, 9, 8).astype("float32"), integers(1, 6, 4, 3, 3).astype("float32")
    one = F.conv2d(x, weight)
    assert np.array_equal(F.conv2d(x, weight, stride=2), one[:, :, ::2, ::2])
    assert np.array_equal(F.conv2d(F.pad(x, widths=((0, 0), (0, 0), (1, 2), (0, 3))), weight),
                          F.conv2d(x, weight, padding=((1, 2), (0, 3))))
    spread = np.zeros((6, 4, 5, 5), "float32")
    spread[:, :, ::2, ::2] = weight
    assert np.array_equal(F.conv2d(x, spread), F.conv2d(x, weight, dilation=2))
    halves = [F.conv2d(x[:, :2], weight[:3, :2]), F.conv2d(x[:, 2:], weight[3:, :2])]
    assert np.array_equal(np.concatenate(halves, 1), F.conv2d(x, weight[:, :2], groups=2))
    by_pixel = F.linear(F.to_tokens(x), weight[:, :, 0, 0])
    assert np.array_equal(F.to_tokens(F.conv2d(x, weight[:, :, :1, :1])), by_pixel)
    moved = F.conv2d(np.roll(x, 1, axis=3), weight)
    assert np.array_equal(moved[..., 1:], one[..., :-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 2**32 - 1), pixels=st.integers(3, 12))
def test_convolution_is_linear(algorithm, seed, pixels):
    x, y = normal((1, 3, pixels, 5), seed), normal((1, 3, pixels, 5), seed + 1)
    weight, options = normal((2, 3, 3, 3), seed + 2), {"algorithm": algorithm}
    both = F.conv2d(x + y, weight, **options)
    apart = F.conv2d(x, weight, **options) + F.conv2d(y, weight, **options)
    wide = [a.astype("float64") for a in (abs(x) + abs(y), weight)]
    truth = apart.astype("float64")
    # the three convolutions, x + y (one rounding of each term), and the sum of the results
    bound = 3 * BOUNDS["conv2d"](wide, options, truth, PRECISIONS["float32"])
    assert_within(both, truth, bound)


def random_rms(algorithm, I):
    """The root mean square error that random roundings make, in units of u; values of variance 1.

    A sum of K such products has partial sums of variance k, each rounded with a variance of at most
    u^2 k / 3: K^2 u^2 / 6 in all (other orders of summation have less). Winograd's transforms
    scale variances by their squared entries, and add 8 + 4 n roundings of that size a product.
    The FFT's three transforms err by 6.7 u a stage (docs/tolerances.md), log2(72 x 72) stages.
    """
    if algorithm == "im2col":
        return 9 * I / np.sqrt(6)
    if algorithm == "fft":
        return np.sqrt(9 * I * 3 * 6.7**2 * np.log2(72 * 72) + 9 * I**2 / 3)
    B, G, A = (np.square(np.asarray(m, "float64")) for m in
               {"winograd2": conv_tiled.F2, "winograd4": conv_tiled.F4}[algorithm])
    n = len(B)
    gain = A @ ((G @ np.ones((3, 3)) @ G.T) * (B @ np.ones((n, n)) @ B.T)) @ A.T
    return np.sqrt(gain.mean() * (I**2 / 6 + I * (8 + 4 * n) / 3))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rounding_errors_are_random(algorithm):
    x, weight = normal((1, 320, 16, 16), 0), normal((32, 320, 3, 3), 1)
    truth = F.conv2d(x.astype("float64"), weight.astype("float64"), padding=1)
    error = F.conv2d(x, weight, padding=1, algorithm=algorithm) - truth
    assert rms(error) <= 2.0**-24 * random_rms(algorithm, 320)
    # The mean of n independent errors has the deviation rms / sqrt(n), of which 5 are allowed. The
    # 16 of one F(4x4) tile share their products, so only a sixteenth counts as independent.
    assert abs(error.mean()) <= 5 * rms(error) / np.sqrt(error.size / 16)


def test_the_choice_of_algorithm_explains_itself():
    small, large = np.empty((4, 4, 3, 3)), np.empty((4, 4, 7, 7))
    assert conv.conv2d_algorithm(small).algorithm == "im2col"
    assert "3 x 3" in conv.conv2d_algorithm(small).why
    assert conv.conv2d_algorithm(large).algorithm == "fft"
    assert "49 taps" in conv.conv2d_algorithm(large).why
    assert conv.conv2d_algorithm(large, algorithm="im2col") == ("im2col", "it was asked for")
    assert conv.conv2d_algorithm(small, stride=2, algorithm="fft").algorithm == "fft"
    for options in ({"stride": 2}, {"dilation": (1, 2)}):
        with pytest.raises(UsageError, match="winograd4 computes 3 x 3 kernels with stride 1"):
            conv.conv2d_algorithm(small, algorithm="winograd4", **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_forced_algorithm_is_the_one_that_runs(algorithm, monkeypatch):
    called = []
    for name in ALGORITHMS:
        real = getattr(conv, name)
        monkeypatch.setattr(conv, name, lambda *args, name=name, real=real:
                            called.append(name) or real(*args))
    F.conv2d(normal((1, 1, 5, 5), 0), normal((1, 1, 3, 3), 1), algorithm=algorithm)
    assert called == [algorithm]


def test_sums_are_made_in_short_runs():
    """The error is at most that of adding one product after the other, in runs of 128.

    Of all orders in which a run can be added up, one after the other errs most: an addition errs in
    the square by its sum, which grows with the number of its terms, and a chain has the largest
    sums. A BLAS may choose any order, and with fused products rounds less. Both means over n
    errors deviate by sqrt(2 / n), twice that together, of which 5 are allowed. Runs of 256 exceed
    it, and so do plain matrix products.
    """
    K, r = 2048, 128
    x, weight = normal((1, K, 32, 32), 5), normal((64, K, 1, 1), 6)
    truth = F.conv2d(x.astype("float64"), weight.astype("float64"))
    rows, columns = weight.reshape(64, K), x.reshape(K, 1024)
    chained = np.zeros((64, 1024), "float32")
    for k in range(0, K, r):
        run = rows[:, k, None] * columns[k]
        for i in range(k + 1, k + r):
            run += rows[:, i, None] * columns[i]
        chained += run
    allowed = 1 + 5 * math.sqrt(2 * 2 / truth.size)
    assert rms(F.conv2d(x, weight) - truth) ** 2 <= allowed * rms(
        chained.reshape(truth.shape) - truth) ** 2
