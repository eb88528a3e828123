"""Attention by tiles in float32, in lockstep, and which kernel a call takes."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from cuda_agreement import agree, run
from numba_agreement import same_bits
from op_table import normal
from test_attention import qkv, spoils

from refsd.numba_ops.cuda import attention
from refsd.numba_ops.cuda.plan import AMPERE, TURING, Choice


@contextmanager
def forced(*constants):
    """Inside, attention takes this variant, which may be too small to be worth launching."""
    def choice(*_):
        return Choice(attention.attention_tiles, constants, "a test's")

    with mock.patch.object(attention, "choose_attention", choice):
        yield


@pytest.mark.parametrize("constants, heads, L, S, d, e, causal", [
    (("float32", 32, 1, 32), 2, 20, 37, 20, 12, False),
    (("float32", 32, 2, 32), 1, 35, 35, 16, 32, True),
    (("float32", 32, 1, 64), 1, 5, 65, 4, 68, False),
    (("float16", 64, 1, 32), 1, 17, 31, 24, 40, False),
    (("bfloat16", 32, 1, 32), 1, 3, 32, 8, 64, False)], ids=str)
def test_ragged_tiles(constants, heads, L, S, d, e, causal, order):
    with forced(*constants):
        agree("attention", qkv(1, L, S, heads * d, heads * e),
              {"heads": heads, "causal": causal}, constants[0])


@pytest.mark.parametrize("d, e, dtype", [(12, 12, "float32"), (8, 136, "bfloat16")])
def test_variants_that_are_launched(d, e, dtype):
    """The narrowest, and the widest in parts."""
    assert attention.choose_attention(d, e, dtype, False, TURING).factory.make.__name__ == (
        "attention_tiles")
    agree("attention", qkv(1, 3, 5, d, e), {"heads": 1}, dtype)


@pytest.mark.parametrize("shape", [(2, 2, 5, 37), (2, 1, 5, 1), (5, 37), (37,), ()])
def test_masks(shape):
    """Of numbers and -inf, a query that sees nothing, and the lowest number."""
    mask = np.asarray(np.where(normal(shape, 8) > 0.3, -math.inf, normal(shape, 7, 3)), "float32")
    if shape == (5, 37):
        mask[0], mask[1], mask[2, 3:] = -math.inf, np.finfo("float32").min, np.finfo("float32").min
    with forced("float32", 32, 1, 32):
        y = agree("attention", qkv(2, 5, 37, 8, 8), {"heads": 2, "mask": mask})
    if shape == (5, 37):
        assert not y[:, 0].any() and y[:, 1].all()


@pytest.mark.parametrize("L, S, options", [(3, 35, {}), (7, 7, {"causal": True}),
                                           (3, 35, {"mask": True})], ids=str)
def test_what_is_not_a_number_spoils_what_it_spoils_in_the_reference(L, S, options):
    with forced("float32", 32, 1, 32):
        spoils(L, S, 4, options, "float32")


def test_an_image_a_head_and_a_query_have_the_same_bits_alone():
    q, k, v = qkv(2, 18, 35, 16, 16)
    with forced("float32", 32, 1, 32):
        whole = run("attention", (q, k, v), {"heads": 2})
        for n, head, row in [(0, 1, 17), (1, 0, 3)]:
            part, columns = slice(n, n + 1), slice(8 * head, 8 * head + 8)
            args = q[part, row:row + 1, columns], k[part, :, columns], v[part, :, columns]
            same_bits(run("attention", args, {"heads": 1}), whole[part, row:row + 1, columns])


def test_scores_that_differ_by_hundreds():
    """The largest score rises from block to block: what was summed before vanishes."""
    q, k, v = qkv(1, 3, 70, 4, 4)
    k *= np.linspace(1, 400, 70, dtype="float32")[:, None]
    with forced("float32", 32, 1, 32):
        agree("attention", (q, k, v), {"heads": 1})
        agree("attention", (q, k[:, ::-1], v), {"heads": 1})


def test_which_kernel():
    """By widths, dtype, mask and capability alone."""
    flash, turing = "attention_flash", "attention_flash_turing"
    for call, expected in [
            ((40, 40, "float16", False, AMPERE), (flash, 40)),
            ((40, 40, "bfloat16", True, AMPERE), (flash, 64)),
            ((40, 48, "bfloat16", False, AMPERE), (flash, 64)),
            ((256, 8, "float16", False, AMPERE), (flash, 256)),
            ((160, 160, "float16", False, TURING), (turing, 160)),
            ((40, 40, "bfloat16", False, TURING), ("attention_tiles", 128)),
            ((40, 40, "float16", True, TURING), ("attention_tiles", 128)),
            ((512, 512, "float16", False, AMPERE), ("attention_tiles", 128)),
            ((160, 160, "float32", False, AMPERE), ("attention_tiles", 96)),
            ((512, 512, "float32", False, AMPERE), ("attention_tiles", 128)),
            ((80, 80, "float32", True, TURING), ("attention_tiles", 96)),
            ((44, 40, "float16", False, AMPERE), ("attention_plain",)),
            ((40, 6, "float32", False, AMPERE), ("attention_plain",)),
            ((40, 40, "float64", False, AMPERE), ("attention_plain",))]:
        choice = attention.choose_attention(*call)
        assert (choice.factory.make.__name__, *choice.constants[1:2]) == expected, call
        assert choice.why and choice.constants in choice.factory.each
