"""W8A8: products of int8 activations by int8 weights, what they are and how kernels make them."""

import numpy as np
import pytest
import tiny
from numba_agreement import masked, poisoned, same_bits
from weights_samples import refused

import refsd
from refsd import functional as F
from refsd.errors import UsageError
from refsd.numba_ops.cpu import linear, linear_int8
from refsd.numba_ops.levels import INT8
from refsd.numba_ops.tile import ROWS
from refsd.numba_ops.weights import pack_all
from refsd.quantized import W8A8, Quantized, quantize, round_tokens
from refsd.registry import use, watch
from refsd.weights import load_checkpoint

EPS = 2.0**-24  # of rounding to float32
# Around tiles (14 rows, 32 columns), quads of k, and blocks of sums that float32 holds (1024).
SIZES = [(5, 7, 3), (1, 1, 1), (ROWS, 128, 32), (2 * ROWS + 1, 257, 64), (33, 40, 97),
         (3, 2050, 33), (600, 64, 160), (ROWS - 1, 3, 31), (17, 1025, 32), (40, 20, 65)]
KERNELS = [("numba", "float32", taps) for taps in ((), (1, 1))]
LEVELS = ["float32", *{INT8} - {"float32"}]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def leaf_of(array, kind=W8A8):
    """As pipelines place it."""
    tensors = {"layer.weight": kind(*quantize(array), "float32", "unet.layer.weight")}
    pack_all(tensors)
    return tensors["layer.weight"]


def exact(x, leaf, bias=None):
    """What the op stands for, from Python's integers, and the bound of a kernel's roundings.

    One of the sum, one of the two scales' product, one of their product, one of the bias's sum.
    """
    q, scale = tokens_of(x)
    sums = (q.astype("i8") @ leaf.values.reshape(len(leaf), -1).astype("i8").T).astype("f8")
    product = sums * scale * leaf.scale.astype("f8")
    y = product if bias is None else product + bias
    return y, 3 * EPS * (1 + EPS)**2 * np.abs(product) + EPS * np.abs(y) + 2.0**-149


def tokens_of(x):
    """(integers, scales) of the rows of x, one number after the other."""
    q, scales = np.zeros(x.shape, int), np.zeros((len(x), 1))
    for row, out, scale in zip(x, q, scales):
        step = max(np.float32(np.abs(row).max()) / np.float32(127), 2.0**-100)
        unit = 2.0**(np.floor(np.log2(step)) - 15)  # of the last of 16 significant bits
        scale[0] = np.ceil(step / unit) * unit
        out[:] = [round(float(np.float32(v) / np.float32(scale[0]))) for v in row]
    return q, scales


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    monkeypatch.setattr(linear_int8, "INT8", request.param)
    return request.param


def check_product(x, leaf, bias):
    with use("numba"), poisoned():
        y = F.linear(x, leaf, bias)
    truth, bound = exact(x, leaf, bias)
    assert y.dtype == np.float32
    assert (np.abs(y - truth) <= bound).all(), np.abs(y - truth).max()
    return y


# -- the definition


def test_a_token_errs_by_half_a_step_of_its_own():
    x = draw(40, 33) * 10.0 ** np.linspace(-27, 30, 40, dtype="f4")[:, np.newaxis]
    q, scale = tokens_of(x)
    np.testing.assert_array_equal(round_tokens(x, -1), q * scale)  # both of 24 bits: exact
    assert (np.abs(x - q * scale) <= scale * (0.5 + 127 * EPS)).all() and abs(q).max() == 127
    np.testing.assert_array_equal(round_tokens(x.astype("f8"), -1), q * scale)
    np.testing.assert_array_equal(round_tokens(x.T.copy(), 0), (q * scale).T)
    assert (round_tokens(np.array([[0, -0.0], [1e-44, 0]], "f4"), -1) == 0).all()
    assert round_tokens(np.zeros((3, 0), "f4"), -1).shape == (3, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**127])
def test_a_token_that_int8_cannot_stand_for_is_nan(bad, level):
    x = draw(20, 40)
    x[7, 39] = bad
    leaf = leaf_of(draw(5, 40, seed=1))
    with np.errstate(all="ignore"):
        for y in (round_tokens(x, -1), *(linear_on(b, x, leaf) for b in ("numpy", "numba"))):
            assert np.isnan(y[7]).all() and np.isfinite(np.delete(y, 7, axis=0)).all()


def linear_on(backend, x, leaf):
    with use(backend):
        return F.linear(x, leaf)


@pytest.mark.parametrize("shape", [(33, 20), (33, 20, 1, 1), (20, 20, 3, 3)])
def test_an_op_is_the_op_on_rounded_activations(shape):
    leaf, bias, x = leaf_of(draw(*shape)), draw(shape[0], seed=2), draw(2, 20, 9, 8, seed=1)

    def call(x, weight):
        if len(shape) == 2:
            return F.linear(np.moveaxis(x, 1, -1), weight, bias.astype(x.dtype))
        return F.conv2d(x, weight, bias.astype(x.dtype), padding=shape[-1] // 2)

    for backend in ("numpy", "numba"):
        for dtype in ("float32", "float64"):
            if (backend, dtype, shape[2:]) in KERNELS:
                continue  # which have other roundings: below
            weight = W8A8(leaf.values, leaf.scale, dtype)
            with use(backend):
                np.testing.assert_array_equal(
                    call(x.astype(dtype), weight),
                    call(round_tokens(x.astype(dtype), 1), weight.dense()))


def test_only_what_its_op_multiplies_is_rounded():
    leaf, x, seen = leaf_of(draw(20, 20)), draw(9, 20, seed=1), []
    for backend in ("numpy", "numba"):
        with use(backend), watch(lambda op, inputs, *others: seen.append(inputs)):
            y = F.linear(x, leaf)
            for other in (F.linear(x=x, weight=leaf), F.linear(x, weight=leaf, bias=None)):
                np.testing.assert_array_equal(other, y)
            np.testing.assert_array_equal(F.add(x, leaf[:9]), x + leaf.dense()[:9])
            np.testing.assert_array_equal(F.mul(leaf, 2.0), leaf.dense() * np.float32(2))
            ids = np.array([3, 1])
            np.testing.assert_array_equal(F.embedding(ids, leaf), leaf.dense()[ids])
        assert all(inputs["x"] is x and inputs["weight"] is leaf for inputs in seen[:3])
        seen.clear()


# -- kernels


@pytest.mark.parametrize("M, K, N", SIZES)
def test_sums_are_exact_on_every_level(monkeypatch, M, K, N):
    x, leaf = draw(M, K), leaf_of(draw(N, K, seed=1))
    for bias in (draw(N, seed=2), None):
        results = []
        for name in LEVELS:
            monkeypatch.setattr(linear_int8, "INT8", name)
            results.append(check_product(x, leaf, bias))
        same_bits(results[-1], results[0])


@pytest.mark.parametrize("M, K, N", SIZES)
def test_fused_layers_have_the_bits_of_their_ops(level, M, K, N):
    """Those of F.linear, whose rows are right (above), added to or gated afterwards."""
    x, leaf, bias, addend = draw(M, K), leaf_of(draw(N, K, seed=1)), draw(N, seed=2), draw(M, N)
    wide, biases = leaf_of(draw(2 * N, K, seed=3)), draw(2 * N, seed=4)
    for with_bias in (False, True):
        b, two = (bias, biases) if with_bias else (None, None)
        with use("numba"):
            with poisoned():
                added, gated = F.linear_add(x, leaf, addend, b), F.linear_geglu(x, wide, two)
            same_bits(added, F.add(F.linear(x, leaf, b), addend))
            same_bits(gated, F.geglu(F.linear(x, wide, two)))
            strided = np.asfortranarray(addend)
            same_bits(F.linear_add(x, leaf, strided, b), added)


def test_the_largest_sums(level):
    """5120 x 127 x 127 of one sign, beyond what float32 counts."""
    x, w = np.full((15, 5120), 127, "f4"), np.full((33, 5120), -127, "f4")
    x[3], w[5], x[4, 0], x[5, ::2] = -127, 127, 126, -127
    check_product(x, leaf_of(w), None)


def test_the_same_bits_alone_in_a_batch_for_any_threads_and_any_memory(level):
    x, leaf, bias = draw(120, 72), leaf_of(draw(70, 72, seed=1)), draw(70, seed=2)
    whole = check_product(x, leaf, bias)
    with use("numba"):
        same_bits(F.linear(x[50], leaf, bias), whole[50])
        same_bits(F.linear(x.reshape(2, 3, 20, 72)[:, 1:2], leaf, bias),
                  whole.reshape(2, 3, 20, 70)[:, 1:2])
        same_bits(F.linear(np.asfortranarray(x), leaf, bias), whole)
        same_bits(F.linear(x, W8A8(leaf.values.copy(), leaf.scale), bias), whole)
        image = x.reshape(2, 12, 5, 72).transpose(0, 3, 1, 2)
        kernel = leaf_of(draw(70, 72, seed=1).reshape(70, 72, 1, 1))
        for array in (image, image.copy()):
            same_bits(F.conv2d(array, kernel, bias).transpose(0, 2, 3, 1).reshape(120, 70), whole)
        with masked(1):
            same_bits(F.linear(x, leaf, bias), whole)


# -- mistakes


def two_of_a_quad_are_swapped(x, w):
    order = np.arange(x.shape[1]) ^ (1 if x.shape[1] % 2 == 0 else 0)
    return x[:, order], w, 0


def the_last_quad_is_dropped(x, w):
    return x[:, :-1], w[:, :-1], 0


def the_shift_to_unsigned_stays(x, w):
    return x, w, 128


def the_shift_is_128_too_small(x, w):
    return x, w, -1


def one_value_in_a_thousand_is_a_step_off(x, w):
    x = x.copy()
    x[::7, 3] += np.where(x[::7, 3] > 0, -1, 1)
    return x, w, 0


def sums_saturate_at_16_bits(x, w):
    """As vpmaddubsw does, of unsigned by signed."""
    products = x[:, np.newaxis] * (w + 128)
    pairs = np.clip(products[..., 0::2] + products[..., 1::2], -2**15, 2**15 - 1)
    return pairs.sum(axis=-1) - 128 * x.sum(axis=1, keepdims=True)


WRONG_SUMS = [two_of_a_quad_are_swapped, the_last_quad_is_dropped, the_shift_to_unsigned_stays,
              the_shift_is_128_too_small, one_value_in_a_thousand_is_a_step_off,
              sums_saturate_at_16_bits]
WRONG_SCALES = {
    "the scale of the channel before": lambda s, w: (s, np.roll(w, 1)),
    "the scale of the token before": lambda s, w: (np.roll(s, 1, axis=0), w),
    "one scale for all tokens": lambda s, w: (s * 0 + s.max(), w),
    "scales in bfloat16": lambda s, w: (s, (w.view("u4") & 0xFFFF0000).view("f4")),
}


@pytest.mark.parametrize("mistake", [*WRONG_SUMS, *WRONG_SCALES], ids=lambda m: getattr(
    m, "__name__", m))
def test_a_wrong_kernel_is_noticed(monkeypatch, mistake):
    def multiply(x, weight, bias, y, addend):
        q, s = tokens_of(x.reshape(-1, x.shape[-1]))
        w, t = weight.values.astype(int), weight.scale
        if mistake in WRONG_SCALES:
            s, t = WRONG_SCALES[mistake](s, t)
            sums = q @ w.T
        elif mistake is sums_saturate_at_16_bits:
            sums = mistake(q, w)
        else:
            q, w, more = mistake(q, w)
            sums = q @ w.T + more * q.sum(axis=1, keepdims=True)
        y[...] = sums * (s * t) + (0 if bias is None else bias)

    x, leaf, bias = draw(20, 64), leaf_of(draw(40, 64, seed=1)), draw(40, seed=2)
    monkeypatch.setattr(linear, "multiply_tokens", multiply)
    with pytest.raises(AssertionError):
        check_product(x, leaf, bias)


# -- models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


def test_a_model_of_dtype_int8_has_such_matrices(folder):
    held, plain = (load_checkpoint(folder, dtype=dtype, weights="int8")
                   for dtype in ("int8", "float32"))
    kinds = set()
    for part, component in held.items():
        for name, leaf in component.tensors.items():
            other = plain[part].tensors[name]
            linear = len(other.shape) == 2 and "embeddings" not in name
            same = other.shape[2:] == (1, 1) and "shortcut" not in name
            wanted = W8A8 if linear or same else type(other)
            assert type(leaf) is wanted and leaf.dtype == np.float32, name
            np.testing.assert_array_equal(leaf.dense(), other.dense())
            kinds.add((type(leaf), leaf.ndim))
    assert kinds == {(W8A8, 2), (W8A8, 4), (Quantized, 2), (Quantized, 4), (type(other), 1)}
    shortcuts = [leaf for name, leaf in held["unet"].tensors.items() if "shortcut.weight" in name]
    assert shortcuts and not any(isinstance(leaf, W8A8) for leaf in shortcuts)
    same = load_checkpoint(folder, dtype="int8")["unet"].tensors
    assert all(type(same[name]) is type(leaf) for name, leaf in held["unet"].tensors.items())
    for form in ("float32", "bfloat16", "as-is"):
        refused(lambda form=form: load_checkpoint(folder, dtype="int8", weights=form),
                f"{form} is not what dtype int8 multiplies", error=UsageError)


def test_it_draws_on_both_backends(folder):
    found = [refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend, dtype="int8")(
        "a red cat", 16, 16, 2, generator=1, output_type="latent").images
        for backend in ("numpy", "numba")]
    assert found[0].dtype == np.float32
    plain = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numba", weights="int8")(
        "a red cat", 16, 16, 2, generator=1, output_type="latent").images
    assert not np.array_equal(found[1], plain)
    # Backends agree but where a number on the edge of a step is rounded the other way.
    np.testing.assert_allclose(*found, rtol=0, atol=np.abs(found[0] - plain).max())
