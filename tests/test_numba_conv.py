"""The CPU kernel of conv2d against the float64 reference, inside derived bounds."""

import math
import os
import subprocess
import sys

import bounds
import numba
import numpy as np
import op_table
import pytest

import refsd.ops
from refsd.numba_ops.cpu import conv, conv_fft, conv_gemm, conv_winograd, winograd_transforms
from refsd.numba_ops.cpu.winograd_weights import S, T, kernel_4, kernel_6
from refsd.numba_ops.memory import flat

WINOGRAD = {"winograd2": 4, "winograd4": 6}
DIMENSIONS = {"winograd2": (kernel_4, winograd_transforms.into_4, winograd_transforms.out_of_4),
              "winograd4": (kernel_6, winograd_transforms.into_6, winograd_transforms.out_of_6)}
IN_CHILD = bool(os.environ.get("REFSD_SIMD_BYTES"))


def draw(shape, kernel, *, bias=True, dtype="float32", seed=0):
    """x (N, C, H, W), weight and bias; the values are float32's, C may be more than I."""
    random = np.random.default_rng(seed)
    made = [random.standard_normal(s).astype("f4") for s in (shape, kernel, kernel[:1])]
    return [a.astype(dtype) for a in made[:3 if bias else 2]]


def matrices(name):
    """G, B^T and A^T, column by column, from the functions that the kernels are made of."""
    def matrix(function, n):
        return np.array([function.py_func(*row) for row in np.eye(n)]).T

    return [matrix(f, n) for f, n in zip(DIMENSIONS[name], (3, WINOGRAD[name], WINOGRAD[name]))]


def bound(args, options, truth, name, precision):
    """How far a result may lie from the truth; docs/kernels-conv.md derives the one of Winograd."""
    if name not in WINOGRAD:
        return bounds.conv2d(args, options | {"algorithm": name}, truth, precision)
    x, weight, *bias = args
    G, B, A = (abs(m) for m in matrices(name))
    n, m = len(B), len(A)
    (top, bottom), (left, right) = refsd.ops.conv.sides(options.get("padding", 0))
    groups, N, (O, I, _, _) = options.get("groups", 1), len(x), weight.shape
    Ho, Wo = truth.shape[2:]
    down, across = -(-Ho // m), -(-Wo // m)
    x = np.pad(abs(x), ((0, 0), (0, 0), (top, bottom + m), (left, right + m)))
    tiles = np.lib.stride_tricks.sliding_window_view(x, (n, n), axis=(2, 3))
    tiles = tiles[:, :, ::m, ::m][:, :, :down, :across]
    V = np.einsum("ai,zcyxij,bj->abzcyx", B, tiles, B, optimize=True)
    U = np.einsum("au,ocuv,bv->aboc", G, abs(weight), G, optimize=True)
    M = np.concatenate([np.einsum("aboc,abzcyx->abzoyx", u, v, optimize=True) for u, v in
                        zip(np.split(U, groups, axis=2), np.split(V, groups, axis=3))], axis=3)
    size = np.einsum("ia,abzoyx,jb->zoyixj", A, M, A, optimize=True)
    size = size.reshape(N, O, down * m, across * m)[:, :, :Ho, :Wo]
    if bias:
        size = size + abs(bias[0])[:, None, None]
    # 2 of G g G^T, 4 in each direction there and back, the chain of I products, the bias.
    return bounds.gamma(2 + 8 + I + 1 + 8 + 1, precision) * size


def check(args, name, **options):
    """conv2d by the algorithm `name` against the reference in float64. Returns the result."""
    precision = bounds.PRECISIONS[str(args[0].dtype)]
    exact = [np.asarray(a, "float64") for a in args]
    truth = refsd.ops.conv.conv2d(*exact, **options, algorithm="im2col")
    y = conv.conv2d(*args, **options, algorithm=name)
    assert y.dtype == args[0].dtype
    allowed = bound(exact, options, truth, name, precision)
    if precision.u == 2.0**-53:  # then the truth errs too
        allowed = allowed + bound(exact, options, truth, "im2col", precision)
    bounds.assert_within(y, truth, allowed, f"{name} {args[0].shape} {args[1].shape} {options}")
    if name != "fft":
        # n roundings of random signs add up to sqrt(n) u instead of n u (Higham and Mary 2019).
        roundings = args[1][0].size + 1
        assert bounds.rms(y - truth) <= bounds.rms(allowed) / math.sqrt(roundings)
    return y


SIZES = [(1, 1), (2, 3), (4, 4), (5, 8), (7, 13), (17, 6), (14, 15), (33, 9)]
CHANNELS = [(1, 1), (3, 5), (4, 32), (16, 16), (17, 31), (32, 33), (65, 64), (16, 97)]


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4", "fft"])
def test_sizes_around_multiples_of_vectors_and_tiles(name):
    for i, ((H, W), (C, O)) in enumerate(zip(SIZES * 2, CHANNELS + CHANNELS[::-1])):
        check(draw((1 + i % 2, C, H, W), (O, C, 3, 3), bias=i % 3 > 0, seed=i), name,
              padding=((1, 1), (i % 2, 2)))


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4"])
def test_sums_in_pieces_and_blocks(name):
    """More channels than one piece of a sum, more tiles than one block, more than one span."""
    check(draw((1, 1040, 3, 4), (5, 1040, 3, 3)), name, padding=1)
    check(draw((1, 1031, 3, 4), (5, 1031, 3, 3)), name, padding=1)  # a prime: pieces are uneven
    check(draw((2, 64, 61, 50), (33, 64, 3, 3)), name, padding=1)


@pytest.mark.parametrize("seed", range(40 if not IN_CHILD else 10))
def test_every_option(seed):
    random = np.random.default_rng(seed)
    groups, I = int(random.choice([1, 1, 2, 3])), int(random.choice([1, 2, 5, 16, 17]))
    O, kh, kw = groups * int(random.choice([1, 3, 8, 40])), *random.choice([1, 2, 3, 5], 2)
    stride, dilation = (tuple(int(n) for n in random.integers(1, 4, 2)) for _ in range(2))
    padding = tuple(tuple(int(n) for n in random.integers(0, 4, 2)) for _ in range(2))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for d, k, p in zip(dilation, (kh, kw), padding)]
    H, W = (int(n) for n in least + random.integers(0, 14, 2))
    args = draw((int(random.integers(1, 3)), groups * I, H, W), (O, I, kh, kw), seed=seed)
    for name in ("im2col", "fft"):
        check(args, name, stride=stride, padding=padding, dilation=dilation, groups=groups)


def test_options_in_their_other_forms():
    args = draw((1, 4, 9, 8), (6, 4, 3, 3))
    for options in ({"stride": 2}, {"stride": [1, 2], "padding": [0, 2]}, {"dilation": (2, 1)},
                    {"padding": 2}, {}):
        check(args, "im2col", **options)


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd_in_groups(name):
    check(draw((2, 36, 9, 10), (40, 18, 3, 3)), name, padding=1, groups=2)


@pytest.mark.parametrize(("C", "O"), [(1, 1), (40, 40), (33, 33), (8, 24)])
def test_depthwise(C, O):
    for options in ({"padding": 1}, {"stride": 2, "padding": 2, "dilation": (1, 2)}):
        check(draw((2, C, 9, 11), (O, 1, 3, 3)), "im2col", groups=C, **options)


def test_one_by_one():
    for shape in [(1, 5, 1, 1), (2, 33, 3, 3), (2, 16, 8, 9)]:
        args = draw(shape, (37, shape[1], 1, 1))
        check(args, "im2col")
        check(args, "im2col", stride=2)
        check(args, "im2col", padding=1)


def test_no_copy_without_padding():
    """A dense channels-last picture is read where it lies."""
    check(draw((2, 24, 9, 30), (20, 24, 3, 3)), "im2col")
    x = op_table.lay_out(draw((2, 24, 9, 30), (1,))[0], "channels_last")
    plan = conv_gemm._plan(24, (20, 24, 3, 3), (2, 7, 28, 20), (1, 1), ((0, 0), (0, 0)), (1, 1), 4)
    memory, _ = conv_gemm._lay_out(x, plan, (1, 1), ((0, 0), (0, 0)))
    assert np.shares_memory(memory, x)


def test_pictures_without_pixels():
    for name in ("im2col", "winograd2", "winograd4", "fft"):
        check(draw((1, 16, 0, 2), (3, 16, 3, 3)), name, padding=2)


@pytest.mark.parametrize("layout", op_table.LAYOUTS)
@pytest.mark.parametrize("name", ["im2col", "winograd4", "fft"])
def test_layouts_in_memory(name, layout):
    """Strides of all kinds, read-only, unaligned; `window` has NaNs around it."""
    args = [op_table.lay_out(a, layout) for a in draw((2, 16, 9, 10), (33, 16, 3, 3))]
    before = [a.copy() for a in args]
    y = check(args, name, padding=1)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    for a, b in zip(args, before):
        np.testing.assert_array_equal(a, b)


def test_a_slice_of_the_channels_is_read_without_a_copy():
    x = op_table.lay_out(draw((1, 48, 9, 10), (1,))[0], "channels_last")[:, 16:32]
    assert np.shares_memory(conv_winograd.as_pixels(x)[0], x)
    for name in ("im2col", "winograd2", "winograd4"):
        check([x, draw((1,), (5, 16, 3, 3))[1]], name, padding=1)


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4", "fft"])
def test_float64(name):
    for shape, kernel in [((2, 17, 9, 10), (33, 17, 3, 3)), ((1, 8, 13, 4), (8, 8, 3, 3))]:
        check(draw(shape, kernel, dtype="float64"), name, padding=1)
    if name == "im2col":
        check(draw((1, 9, 7, 8), (9, 1, 3, 3), dtype="float64"), name, padding=1, groups=9)


class _Poisoned:
    """numpy with an `empty` that is full of NaNs and has NaNs before and behind it."""

    def __init__(self):
        self.around = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        size = math.prod(shape) if isinstance(shape, tuple) else shape
        whole = np.full(size + 128, np.nan, dtype)
        self.around += [whole[:64], whole[-64:]]
        return whole[64:-64].reshape(shape)


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4", "fft"])
def test_all_is_written_and_nothing_else(name, monkeypatch):
    numpy = _Poisoned()
    monkeypatch.setattr(conv, "np", numpy)
    for module in (conv_gemm, conv_winograd, conv_fft):
        monkeypatch.setattr(module, "aligned_empty", numpy.empty)
    calls = [((2, 17, 9, 10), (37, 17, 3, 3), {"padding": 1}),
             ((1, 32, 4, 5), (16, 32, 3, 3), {"padding": ((0, 3), (2, 1))}),
             ((1, 6, 8, 9), (4, 3, 3, 3), {"padding": 1, "groups": 2})]
    if name == "im2col":  # the zeros left of a line that does not exist any more
        calls.append(((1, 4, 3, 9), (6, 4, 1, 33), {"padding": 16}))
    for shape, kernel, options in calls:
        check(draw(shape, kernel), name, **options)
    assert len(numpy.around) >= 6
    assert all(np.isnan(a).all() for a in numpy.around)


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4", "fft"])
def test_same_bits_for_any_number_of_threads_and_in_any_batch(name):
    args = draw((3, 40, 19, 21), (70, 40, 3, 3))
    whole = conv.conv2d(*args, padding=1, algorithm=name)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(conv.conv2d(*args, padding=1, algorithm=name), whole)
    finally:
        numba.set_num_threads(before)
    for n in range(3):
        alone = conv.conv2d(args[0][n:n + 1], *args[1:], padding=1, algorithm=name)
        np.testing.assert_array_equal(alone, whole[n:n + 1])


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4"])
def test_nan_and_infinity_come_through(name):
    """One bad pixel spoils its window (with Winograd its tiles), an infinite bias its channel."""
    x, weight, bias = draw((1, 16, 12, 12), (3, 16, 3, 3))
    x[0, 5, 0, 0], bias[1] = np.nan, np.inf
    y = conv.conv2d(x, weight, bias, padding=1, algorithm=name)
    assert np.isnan(y[0, :, :2, :2]).all()
    assert np.isfinite(y[0, 0, 4:, 4:]).all()
    assert np.isposinf(y[0, 1, 4:, 4:]).all()


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograds_matrices(name):
    """A^T [(G g) * (B^T d)] is the correlation of d and g, and float32 holds A and B exactly."""
    G, B, A = matrices(name)
    for k in range(3):
        shift = A @ (np.diag(G[:, k]) @ B)
        np.testing.assert_allclose(shift, np.eye(len(A), len(B), k), atol=1e-15)
    for m in (A, B):
        np.testing.assert_array_equal(m.astype("f4"), m)


def test_coefficients_in_the_functions_are_exact_in_float32():
    P, Q, PP, QQ = (getattr(winograd_transforms, n) for n in ("P", "Q", "PP", "QQ"))
    used = np.array([P, Q, PP, QQ, PP * QQ, PP + QQ, P * PP, Q * QQ])
    np.testing.assert_array_equal(used.astype("f4"), used)
    assert (S, T) == (2 * PP * (PP - QQ), 2 * QQ * (QQ - PP))


def test_weights_are_packed_once_and_forgotten_with_the_weight():
    x, weight = draw((1, 16, 8, 8), (16, 16, 3, 3), bias=False)
    before = refsd_prepared()
    conv.conv2d(x, weight, padding=1, algorithm="winograd4")
    assert refsd_prepared() == before  # a weight that may change is packed at every call
    weight.flags.writeable = False
    conv.conv2d(x, weight, padding=1, algorithm="winograd4")
    made = refsd_prepared() - before
    conv.conv2d(x, weight, padding=1, algorithm="winograd4")
    assert refsd_prepared() - before == made
    columns = -(-16 // conv_winograd.panel_width(x.dtype)) * conv_winograd.panel_width(x.dtype)
    assert made == 36 * 16 * columns * 4
    del weight
    assert refsd_prepared() == before


def refsd_prepared():
    from refsd.numba_ops.memory import prepared_bytes

    return prepared_bytes()


def test_flat_memory_of_a_broadcast_picture():
    x = np.broadcast_to(np.float32(2), (2, 3, 4, 5))
    assert flat(x.transpose(0, 2, 3, 1)).size == 1


@pytest.mark.parametrize(("result", "kernel", "options", "name"), [
    ((2, 64, 64, 320), (320, 320, 3, 3), {}, "winograd4"),
    ((2, 32, 32, 640), (640, 1920, 3, 3), {}, "winograd4"),
    ((2, 16, 16, 1280), (1280, 1280, 3, 3), {}, "winograd2"),
    ((2, 8, 8, 1280), (1280, 1280, 3, 3), {}, "im2col"),
    ((1, 512, 512, 3), (3, 128, 3, 3), {}, "im2col"),
    ((2, 32, 32, 320), (320, 320, 3, 3), {"stride": (2, 2)}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"dilation": (1, 2)}, "im2col"),
    ((2, 64, 64, 320), (320, 32, 3, 3), {"groups": 10}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 1, 1), {}, "im2col"),
    ((2, 64, 64, 64), (64, 64, 7, 7), {}, "im2col"),
    ((2, 64, 64, 64), (64, 64, 15, 15), {}, "fft"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"algorithm": "fft"}, "fft"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"policy": conv.Policy(exact=True)}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"policy": conv.Policy(memory=0)}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 3, 3),
     {"policy": conv.Policy(exact=True), "algorithm": "winograd4"}, "winograd4"),
])
def test_the_choice_of_an_algorithm(result, kernel, options, name):
    choice = conv.choose(result, kernel, **options)
    assert (choice.algorithm, bool(choice.why)) == (name, True)
    assert conv.choose((7, *result[1:]), kernel, **options) == choice


def test_the_policy_reaches_the_kernel():
    args = draw((1, 16, 9, 9), (16, 16, 3, 3))
    fast, plain = (conv.conv2d(*args, padding=1, algorithm=a) for a in ("winograd4", "im2col"))
    assert (fast != plain).any()
    np.testing.assert_array_equal(conv.conv2d(*args, padding=1), fast)
    with conv.conv2d_policy(exact=True):
        np.testing.assert_array_equal(conv.conv2d(*args, padding=1), plain)
    np.testing.assert_array_equal(conv.conv2d(*args, padding=1), fast)


def test_narrower_machines():
    """This file again, with vectors of other widths; float64 would be compiled again: not that."""
    if IN_CHILD:
        return  # this is that other run
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k",
               "not float64"]
    children = [subprocess.Popen(command, env=os.environ | {"REFSD_SIMD_BYTES": width}, text=True,
                                 stdout=subprocess.PIPE) for width in ("16", "32")]
    for child in children:
        output, _ = child.communicate()
        assert child.returncode == 0, output[-2000:]
