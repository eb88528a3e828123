"""What the formulas leave unchanged, or move along, on every backend: definitions and kernels.

Whole numbers make sums exact: there the tolerance is 0 if an algorithm only adds, multiplies and
halves. Powers of two scale every rounding alike: there the bits are the same. Elsewhere two results
differ by the derived bounds of both.
"""

import numpy as np
import pytest
from agreement_bounds import worst
from bounds import BOUNDS, PRECISIONS, assert_within
from op_table import normal

from refsd import functional as F
from refsd.backends import BACKENDS
from refsd.registry import use

HERE = [name for name, backend in BACKENDS.items() if backend.device == "cpu"]
pytestmark = pytest.mark.parametrize("backend", HERE)
ALGORITHMS = ("im2col", "winograd2", "winograd4", "fft")
HALVING = ("im2col", "winograd2")  # F(4x4) divides by 3 and the FFT multiplies by roots of unity


def run(backend, name, *args, **options):
    with use(backend):
        return getattr(F, name)(*args, **options)


def bound(backend, name, args, options):
    """How far the backend's float32 result may be from the exact one."""
    wide = [a.astype("float64") for a in args]
    truth = run("numpy", name, *wide, **options)
    if backend == "numpy":
        return BOUNDS[name](wide, options, truth, PRECISIONS["float32"])
    return worst(name, wide, options, truth, PRECISIONS["float32"])


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-5, 6, shape).astype("float32")


@pytest.mark.parametrize("outputs", [3, 17])  # few have a kernel of their own
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_convolution_is_linear_in_pictures_and_in_weights(algorithm, outputs, backend):
    x, z = integers(0, 2, 16, 9, 10), integers(1, 2, 16, 9, 10)
    weight, other = integers(2, outputs, 16, 3, 3), integers(3, outputs, 16, 3, 3)
    for both, first, second in (((2 * x - 3 * z, weight), (x, weight), (z, weight)),
                                ((x, 2 * weight - 3 * other), (x, weight), (x, other))):
        options = {"padding": 1, "algorithm": algorithm}
        together, one, two = (run(backend, "conv2d", *args, **options).astype("float64")
                              for args in (both, first, second))
        allowed = 0 if algorithm in HALVING else sum(
            n * bound(backend, "conv2d", args, options)
            for n, args in ((1, both), (2, first), (3, second)))
        assert_within(together, 2 * one - 3 * two, allowed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_convolution_of_a_moved_picture_is_moved(algorithm, backend):
    """By any number of pixels, as long as nothing reaches the border."""
    x, weight = np.zeros((1, 16, 12, 12), "float32"), integers(1, 17, 16, 3, 3)
    x[:, :, 2:6, 1:5] = integers(0, 1, 16, 4, 4)
    options = {"padding": 1, "algorithm": algorithm}
    y = run(backend, "conv2d", x, weight, **options)
    for shift in ((1, 0), (0, 1), (3, 5), (4, 4)):
        moved = np.roll(x, shift, (2, 3))
        allowed = 0 if algorithm in HALVING else bound(
            backend, "conv2d", (moved, weight), options) + np.roll(
            bound(backend, "conv2d", (x, weight), options), shift, (2, 3))
        assert_within(run(backend, "conv2d", moved, weight, **options),
                      np.roll(y, shift, (2, 3)).astype("float64"), allowed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_convolution_lets_powers_of_two_pass(algorithm, backend):
    x, weight = normal((1, 16, 9, 10), 0), normal((17, 16, 3, 3), 1)
    options = {"padding": 1, "algorithm": algorithm}
    y = run(backend, "conv2d", x, weight, **options)
    scaled = run(backend, "conv2d", 4096 * x, weight / 128, **options)
    np.testing.assert_array_equal(scaled, 32 * y)


def qkv(seed):
    """(2, 19, 24) each, in eighths, so that adding whole numbers to them is exact."""
    return [np.round(8 * normal((2, 19, 24), seed + i)) / 8 for i in range(3)]


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_of_tokens_in_another_order(heads, backend):
    q, k, v = qkv(0)
    order, options = np.random.default_rng(5).permutation(19), {"heads": heads}
    y = run(backend, "attention", q, k, v, **options)
    moved = run(backend, "attention", q[:, order], k[:, order], v[:, order], **options)
    allowed = bound(backend, "attention", (q, k, v), options)[:, order]
    assert_within(moved, y[:, order].astype("float64"), 2 * allowed)
    assert (moved != y).any()


def test_attention_forgets_what_all_keys_share_and_keeps_what_all_values_share(backend):
    """q (k + c) = q k + q c, the same for all keys; weights add up to 1, so v + c gives y + c."""
    q, k, v = qkv(3)
    shared = np.random.default_rng(6).integers(-3, 4, 24).astype("float32")
    options = {"heads": 3}
    y = run(backend, "attention", q, k, v, **options).astype("float64")
    allowed = bound(backend, "attention", (q, k, v), options)
    for args, moved in (((q, k + shared, v), y), ((q, k, v + shared), y + shared)):
        assert_within(run(backend, "attention", *args, **options), moved,
                      allowed + bound(backend, "attention", args, options))


NORMS = {"layer_norm": ((2, 5, 24), {}), "rms_norm": ((2, 5, 24), {}),
         "group_norm": ((2, 24, 3, 5), {"groups": 4})}


def norm_call(name, eps=2.0**-20):
    """x in eighths, the parameters that the norm has, its options."""
    shape, options = NORMS[name]
    parameters = [normal((24,), 1), normal((24,), 2)][:1 if name == "rms_norm" else 2]
    return np.round(8 * normal(shape, 0)) / 8, parameters, options | {"eps": eps}


@pytest.mark.parametrize("power", [-6, 9])
@pytest.mark.parametrize("name", NORMS)
def test_norms_forget_the_scale(name, power, backend):
    """To the bit for powers of two, if eps scales with the variance; for no other eps."""
    x, parameters, options = norm_call(name)
    y = run(backend, name, x, *parameters, **options)
    x = x * np.float32(2.0**power)
    scaled = run(backend, name, x, *parameters, **options | {"eps": 2.0 ** (2 * power - 20)})
    np.testing.assert_array_equal(scaled, y)
    assert (run(backend, name, x, *parameters, **options) != y).any()


@pytest.mark.parametrize("name", ["layer_norm", "group_norm"])
def test_norms_forget_the_mean(name, backend):
    x, parameters, options = norm_call(name)
    y = run(backend, name, x, *parameters, **options).astype("float64")
    allowed = bound(backend, name, (x, *parameters), options)
    assert_within(run(backend, name, x - 37, *parameters, **options), y,
                  allowed + bound(backend, name, (x - 37, *parameters), options))


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_numbers_in_another_order(name, backend):
    """Features with their parameters; of a group all pixels."""
    x, parameters, options = norm_call(name)
    y = run(backend, name, x, *parameters, **options)
    allowed = 2 * bound(backend, name, (x, *parameters), options)
    order = np.random.default_rng(4).permutation(24 if name != "group_norm" else 15)
    if name != "group_norm":
        got = run(backend, name, x[..., order], *(p[order] for p in parameters), **options)
        assert_within(got, y[..., order].astype("float64"), allowed[..., order])
        return
    pixels = x.reshape(2, 24, 15)[..., order].reshape(x.shape)
    got = run(backend, name, pixels, *parameters, **options).reshape(2, 24, 15)
    assert_within(got, y.reshape(2, 24, 15)[..., order].astype("float64"),
                  allowed.reshape(2, 24, 15)[..., order])
