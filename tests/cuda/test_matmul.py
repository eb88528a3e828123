"""Matrix products in lockstep: batches that broadcast, views, what has no elements."""

import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from numba_agreement import require_near
from op_table import normal

from refsd.half import HALVES
from refsd.numba_ops.cuda import linear, linear_tiles, tiling
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.device import current


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_shapes(dtype, order):
    """By the plain kernel: widths are odd."""
    for a, b in [((2, 1, 5, 9), (2, 9, 17)), ((2, 9, 7), (1, 2, 7, 5)), ((2, 3, 0), (0, 4)),
                 ((0, 3, 2), (2, 3)), ((1, 1), (1, 1)), ((34, 3), (3, 33))]:
        agree("matmul", [normal(a, 1), normal(b, 2)], {}, dtype, images=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", [(0, 1, 2, 3), (0, 1, 3, 2), (1, 2, 0, 3)], ids=str)
def test_matrices_in_other_orders(dtype, images):
    """Of memory: the plain kernel reads them so, others read copies."""
    current().capability = 80
    agree("matmul", [normal((2, 2, 8, 24), 1), normal((2, 2, 24, 8), 2)], {}, dtype, images)


def test_tiles_of_a_batch(monkeypatch):
    """A launch a row of a batch's last axis, and those of a piece where it is long."""
    current().capability = 80
    monkeypatch.setattr(linear, "MOST_BATCHES", 2)
    for a, b in [((3, 8, 16), (3, 16, 8)), ((3, 1, 8, 16), (2, 16, 8)), ((3, 8, 16), (16, 8))]:
        agree("matmul", [normal(a, 1), normal(b, 2)], {}, "float16", images=None)


def test_a_transposed_view_is_read_where_it_lies(monkeypatch):
    """q k^T: k's rows are what the product wants."""
    current().capability = 80
    monkeypatch.setattr(linear, "ordered", None)
    q, k = (normal((2, 9, 16), seed).astype(np.float16) for seed in (1, 2))
    c = linear.matmul(to_device(q), to_device(k).transpose((0, 2, 1))).numpy()
    require_near(c, "matmul", [q, k.transpose(0, 2, 1)], {}, "float16", "widened")


def test_a_matrix_alone_has_the_bits_that_it_has_in_a_batch(monkeypatch):
    """Each sum in two pieces."""
    monkeypatch.setattr(tiling, "SHORTEST", 32)
    current().capability = 80
    a, b = (normal(shape, 1).astype(HALVES["bfloat16"]) for shape in ((2, 3, 64), (2, 64, 8)))
    assert linear.choose_matmul(a.shape, b.shape, "bfloat16", 80).pieces == 2
    together = run("matmul", [a, b], {})
    for i in range(2):
        assert run("matmul", [a[i], b[i]], {}).tobytes() == together[i].tobytes()


def test_what_is_chosen():
    choice = linear.choose_matmul((2, 4096, 512), (2, 512, 4096), "float16", 80)
    assert choice.factory is linear_tiles.ampere and choice.constants[1:3] == (128, 128)
    assert "1024 blocks on 108" in choice.why
