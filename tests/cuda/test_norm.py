"""Norms and softmax in lockstep, every variant."""

import math

import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from op_table import normal

from refsd import functional as F
from refsd import registry
from refsd.numba_ops.cuda import norm, norm_groups, softmax
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.layout import copied

FAST = ("float32", "float16", "bfloat16")


def rows(name, K, dtype, count=6, mean=0.0, eps=1e-5):
    parameters = [normal((K,), 2), normal((K,), 3)][:1 if name == "rms_norm" else 2]
    return agree(name, [normal((count, K), K, mean=mean), *parameters], {"eps": eps}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_rows(name, dtype):
    """Of the plain kernel, and of registers: a warp, the lanes of one, some of its last eights."""
    for K in (1, 33, 1283, 8, 256, 264, 520, 1280):
        rows(name, K, dtype, count=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_means(dtype, order):
    for K in (33, 320):
        rows("layer_norm", K, dtype, mean=1e4)


@pytest.mark.parametrize("K", [320, 33])
def test_a_constant_row_leaves_the_bias(K):
    x = np.full((2, K), 3333.3, "float32")
    agree("layer_norm", [x, normal((K,), 1), normal((K,), 2)], {"eps": 1e-6})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [320, 33])
def test_a_layer_norm_without_weight_or_bias(K, dtype):
    for parameters in ([], [normal((K,), 2)]):
        agree("layer_norm", [normal((3, K), 1), *parameters], {"eps": 1e-6}, dtype)


GROUPED = [((2, 6, 5, 7), 2), ((1, 5, 3), 5), ((1, 513, 1, 2), 1), ((1, 6, 13, 15), 2),
           ((1, 2568, 1, 2), 2)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_one_block(dtype):
    """Of one warp and of eight, of threads for several pixels at once and of several channels."""
    for shape, groups in GROUPED:
        C, mean = shape[1], 1e4 if groups == 2 else 0.0
        agree("group_norm", [normal(shape, 1, mean=mean), normal((C,), 2), normal((C,), 3)],
              {"groups": groups, "eps": 1e-6}, dtype)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of few pixels, and no group too small for them."""
    monkeypatch.setattr(norm, "SMALL", 0)
    monkeypatch.setattr(norm_groups, "NUMBERS", 400)


@pytest.mark.parametrize("dtype", FAST)
def test_groups_by_pieces(dtype, order, small_pieces):
    for shape, groups, mean in [((2, 40, 3, 5), 4, 1e4), ((1, 648, 3, 1), 3, 3.0)]:
        assert norm.choose_group_norm(shape, groups, dtype).factory is norm_groups.apply_kernel
        C = shape[1]
        agree("group_norm", [normal(shape, 1, mean=mean), normal((C,), 2), normal((C,), 3)],
              {"groups": groups, "eps": 1e-6}, dtype)


def test_the_variance_between_pieces(small_pieces):
    x = normal((1, 16, 2, 25), 1, 1e-3)
    x[:, :, 1:] += 100
    agree("group_norm", [x, normal((16,), 2), normal((16,), 3)], {"groups": 2, "eps": 1e-6})
    for value in (3333.3, -1e6):  # nothing but the bias is left
        agree("group_norm", [np.full((1, 16, 2, 25), value, "float32"), normal((16,), 2),
                             normal((16,), 3)], {"groups": 2, "eps": 1e-6})


def test_an_infinite_weight(small_pieces):
    weight = normal((16,), 2)
    weight[3] = math.inf
    args = [normal((1, 16, 3, 5), 1), weight, normal((16,), 3)]
    y = run("group_norm", args, {"groups": 2, "eps": 1e-6})
    assert np.isinf(y[:, 3]).all() and np.isfinite(np.delete(y, 3, 1)).all()


def test_an_image_alone_has_the_bits_it_has_in_a_batch(small_pieces):
    x, parameters = normal((2, 40, 3, 5), 1), [normal((40,), 2), normal((40,), 3)]
    options = {"groups": 4, "eps": 1e-6}
    y = run("group_norm", [x, *parameters], options)
    assert np.array_equal(y[1:], run("group_norm", [x[1:], *parameters], options))
    x = normal((7, 264), 1)
    parameters = [normal((264,), 2), normal((264,), 3)]
    y = run("layer_norm", [x, *parameters], {"eps": 1e-5})
    assert np.array_equal(y[5:6], run("layer_norm", [x[5:6], *parameters], {"eps": 1e-5}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, order):
    agree("softmax", [normal((2, 9, 3), 1)], {"axis": 1}, dtype)
    for K in (1, 33, 256, 264, 2056):
        agree("softmax", [normal((2, K), K, 4.0)], {"axis": -1}, dtype)


def test_the_rows_of_a_large_picture():
    agree("softmax", [normal((1, 4104), 1, 4.0)], {"axis": -1})


@pytest.mark.parametrize("K", [20, 264])
def test_hidden_rows(K):
    x = normal((4, K), 1)
    x[1], x[2, 3:], x[3, 5] = -math.inf, -math.inf, math.nan
    y = run("softmax", [x], {"axis": -1})
    agree("softmax", [x[:3]], {"axis": -1})
    assert not y[1].any() and np.isnan(y[3]).all()


def test_views_lie_as_the_kernels_want_them():
    """A cut that does not begin at 16 bytes is copied, and counted."""
    x = normal((264 + 2,), 1)
    whole = to_device(x)
    before = copied["arrays"]
    with registry.use("cuda"):
        y = F.softmax(whole[1:265], axis=0).numpy()
    assert copied["arrays"] == before + 1
    assert np.array_equal(y, run("softmax", [x[1:265]], {"axis": 0}))


@pytest.mark.parametrize("name, options", [("group_norm", {"groups": 2}), ("layer_norm", {}),
                                           ("rms_norm", {})])
def test_weights_may_be_columns(name, options):
    """Views whose elements are not neighbours, as those of a transposed matrix."""
    shape = (2, 8, 3, 3) if options else (2, 8)
    x, columns = normal(shape, 1), normal((8, 2), 2)
    count, options = 1 if name == "rms_norm" else 2, {**options, "eps": 1e-6}
    views = list(to_device(columns).transpose((1, 0)))[:count]
    with registry.use("cuda"):
        y = getattr(F, name)(to_device(x), *views, **options).numpy()
    assert np.array_equal(y, run(name, [x, *columns.T[:count].copy()], options))


def test_which_kernel_says_why():
    for choice, word in [
            (norm.choose_group_norm((2, 320, 64, 64), 32, "float16"), "pieces"),
            (norm.choose_group_norm((2, 1280, 8, 8), 32, "float16"), "launch"),
            (norm.choose_group_norm((2, 4, 64, 64), 2, "float16"), "multiple of 8"),
            (norm.choose_group_norm((2, 320, 64, 64), 32, "float64"), "float64"),
            (norm.choose_layer_norm((2, 320), "bfloat16"), "registers"),
            (norm.choose_layer_norm((2, 1288), "bfloat16"), "do not fit"),
            (norm.choose_rms_norm((2, 33), "float32"), "8"),
            (softmax.choose_softmax(4096, "float16"), "block"),
            (softmax.choose_softmax(16392, "float16"), "do not fit"),
            (softmax.choose_softmax(80, "float16"), "warp")]:
        assert word in choice.why and choice.constants in choice.factory.each
