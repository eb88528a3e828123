"""The CPU kernel of conv2d: its algorithms, which of them is taken, and what is kept."""

import numpy as np
import op_table
import pytest
from agreement_bounds import WINOGRAD, matrices
from numba_agreement import agree

from refsd.numba_ops.cpu import conv, conv_gemm, conv_narrow, conv_winograd, winograd_transforms
from refsd.numba_ops.cpu.winograd_weights import S, T
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.memory import flat
from refsd.numba_ops.tile import LEAST_ROWS, ROWS, rows_of_tiles
from refsd.registry import use


def draw(shape, kernel, *, bias=True, seed=0):
    """x (N, C, H, W), weight and bias; C may be more than the weight's I."""
    made = [op_table.normal(s, seed + i) for i, s in enumerate((shape, kernel, kernel[:1]))]
    return made[:3 if bias else 2]


def check(args, name, **options):
    """conv2d by the algorithm `name` against the reference."""
    return agree("conv2d", args, options | {"algorithm": name})


@pytest.mark.parametrize("name", ["im2col", "winograd2", "winograd4"])
def test_sums_in_pieces_and_blocks(name):
    """More channels than one piece of a sum, more tiles than one block, more than one span."""
    check(draw((1, 1040, 3, 4), (5, 1040, 3, 3)), name, padding=1)
    check(draw((1, 1031, 3, 4), (5, 1031, 3, 3)), name, padding=1)  # a prime: pieces are uneven
    check(draw((2, 64, 61, 50), (33, 64, 3, 3)), name, padding=1)


def test_no_copy_without_padding():
    """A dense channels-last picture is read where it lies."""
    check(draw((2, 24, 9, 30), (20, 24, 3, 3)), "im2col")
    x = op_table.with_layout(draw((2, 24, 9, 30), (1,))[0], "channels_last")
    result = (2, 7, 28, 20)
    plan = conv_gemm.plan_of(24, (20, 24, 3, 3), result, (1, 1), ((0, 0), (0, 0)), (1, 1), 4)
    with conv_gemm._padded_copy(x, (9, 30), plan, (1, 1), ((0, 0), (0, 0))) as (memory, _):
        assert np.shares_memory(memory, x)


def test_a_slice_of_the_channels_is_read_without_a_copy():
    x = op_table.with_layout(draw((1, 48, 9, 10), (1,))[0], "channels_last")[:, 16:32]
    assert np.shares_memory(conv_winograd.as_pixels(x)[0], x)
    for name in ("im2col", "winograd2", "winograd4"):
        check([x, draw((1,), (5, 16, 3, 3))[1]], name, padding=1)


@pytest.mark.parametrize("outputs", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [16, 31, 320])
def test_few_outputs(channels, outputs):
    """Lines that are no multiple of four pixels, channels that are no multiple of a vector."""
    assert conv_narrow.is_narrow((outputs, channels, 3, 3), 1, "f4")
    x, weight, bias = draw((2, channels, 7, 10), (outputs, channels, 3, 3))
    check([x, weight, bias], "im2col", padding=1)
    check([x, weight], "im2col", stride=(2, 3), padding=((0, 2), (3, 1)), dilation=(1, 2))
    check([op_table.with_layout(x, "channels_last")[:, :, ::2], weight, bias], "im2col", padding=2)


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


def test_flat_memory_of_a_broadcast_picture():
    x = np.broadcast_to(np.float32(2), (2, 3, 4, 5))
    assert flat(x.transpose(0, 2, 3, 1)).size == 1


def test_tiles_share_rows_evenly():
    for count in range(1, 10 * ROWS):
        rows, tiles = rows_of_tiles(count), -(-count // ROWS)
        assert LEAST_ROWS <= rows <= ROWS and tiles * rows >= count
        assert rows == LEAST_ROWS or tiles * (rows - 1) < count


@pytest.mark.parametrize(("result", "kernel", "options", "name"), [
    ((2, 64, 64, 320), (320, 320, 3, 3), {}, "winograd4"),
    ((2, 32, 32, 640), (640, 1920, 3, 3), {}, "winograd4"),
    ((2, 16, 16, 1280), (1280, 1280, 3, 3), {}, "winograd2"),
    ((2, 16, 16, 1280), (1280, 1280, 3, 3), {"dtype": "bfloat16"}, "winograd4"),
    ((2, 16, 16, 1280), (1280, 1280, 3, 3), {"dtype": "float16", "exact": True}, "im2col"),
    ((2, 8, 8, 1280), (1280, 1280, 3, 3), {}, "winograd2"),
    ((2, 8, 8, 1280), (1280, 1280, 3, 3), {"dtype": "float16"}, "winograd2"),
    ((2, 8, 8, 1280), (1280, 1280, 3, 3), {"dtype": "bfloat16"},
     "im2col" if BFLOAT16 == "dot" else "winograd2"),
    ((2, 7, 9, 1280), (1280, 1280, 3, 3), {}, "im2col"),
    ((1, 512, 512, 3), (3, 128, 3, 3), {}, "im2col"),
    ((2, 32, 32, 320), (320, 320, 3, 3), {"stride": (2, 2)}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"dilation": (1, 2)}, "im2col"),
    ((2, 64, 64, 320), (320, 32, 3, 3), {"groups": 10}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 1, 1), {}, "im2col"),
    ((2, 64, 64, 64), (64, 64, 7, 7), {}, "im2col"),
    ((2, 64, 64, 64), (64, 64, 15, 15), {}, "fft"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"algorithm": "fft"}, "fft"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"exact": True}, "im2col"),
    ((2, 64, 64, 320), (320, 320, 3, 3), {"exact": True, "algorithm": "winograd4"}, "winograd4"),
])
def test_the_choice_of_an_algorithm(result, kernel, options, name):
    choice = conv.choose(result, kernel, **options)
    assert (choice.algorithm, bool(choice.why)) == (name, True)
    assert conv.choose((7, *result[1:]), kernel, **options) == choice


def test_exact_mode_reaches_the_kernel():
    args = draw((1, 16, 9, 9), (16, 16, 3, 3))
    fast, plain = (conv.conv2d(*args, padding=1, algorithm=a) for a in ("winograd2", "im2col"))
    assert (fast != plain).any()
    np.testing.assert_array_equal(conv.conv2d(*args, padding=1), fast)
    with use("numba", exact=True):
        np.testing.assert_array_equal(conv.conv2d(*args, padding=1), plain)
    np.testing.assert_array_equal(conv.conv2d(*args, padding=1), fast)


@pytest.mark.parametrize("name", WINOGRAD)
def test_weights_transformed_before_or_piece_by_piece_have_the_same_bits(name, monkeypatch):
    """One block of tiles, several in one span, several spans; sums of two pieces and of one."""
    for channels in (40, 200):
        args = draw((2, channels, 15, 13), (130, channels, 3, 3))
        one_block = check(args, name, padding=1)
        with monkeypatch.context() as patch:
            for constant in ("MOST_MR_TILES", "L3_BLOCK_BYTES"):
                patch.setattr(conv_winograd, constant, 1)
                several = conv.conv2d(*args, padding=1, algorithm=name)
                np.testing.assert_array_equal(several, one_block)
