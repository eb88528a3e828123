"""Halves: widened and rounded in one place; every op of them is the float32 op, rounded once."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refsd
from refsd import examples
from refsd import functional as F
from refsd.golden.tolerances.formats import round_to
from refsd.half import HALVES, PART, is_half, to_float32, to_half
from refsd.leaf import Weight
from refsd.registry import dispatch, kernel, kernels, op, ops, use, watch
from refsd.shapes import Refusal

CALLS = [pytest.param(op, call, id=f"{op.name}-{i}")
         for op in ops().values() for i, call in enumerate(examples.calls(op))]

kernels("exp")  # imports all that a test's own declarations shall not outlive


def halved(value, dtype):
    """The same, float32 arrays rounded; in lists too."""
    if type(value) is list:
        return [halved(item, dtype) for item in value]
    is_float = str(getattr(value, "dtype", "")) == "float32"
    return to_half(value, dtype) if is_float else value


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("op, call", CALLS)
def test_an_op_of_halves_is_that_of_float32_rounded_once(op, call, dtype):
    inputs, options = examples.with_values(op, call, 0)
    inputs = {name: halved(value, dtype) for name, value in inputs.items()}
    options = {name: halved(value, dtype) for name, value in options.items()}
    wide = [{name: to_float32(value) for name, value in part.items()} for part in (inputs, options)]
    if "dtype" in options:
        options["dtype"] = dtype
    expected = getattr(F, op.name)(*wide[0].values(), **wide[1])

    with use("numpy"):
        result = getattr(F, op.name)(*inputs.values(), **options)

    assert result.dtype == HALVES[dtype] == np.dtype(op.contract(
        *inputs.values(), **options).dtype)
    np.testing.assert_array_equal(result.view("u2"), to_half(expected, dtype).view("u2"))


def test_no_definition_knows_of_halves():
    sources = (Path(refsd.__file__).parent / "ops").glob("*.py")
    assert [path.name for path in sources
            if re.search("bfloat16|float16|ml_dtypes|refsd.half", path.read_text())] == []


def test_many_float16_are_widened_as_few_are():
    every = np.arange(2**16, dtype="u2").view("f2")
    finite = np.resize(every[np.isfinite(every)], 3 * PART + 5)  # and some in the last part
    for x in (finite, finite[::-1], finite.reshape(1, -1), np.concatenate([every, finite]),
              np.resize(every, 2 * PART)[::2]):
        wide = to_float32(x)
        assert wide.dtype == "f4" and wide.shape == x.shape and wide.flags.writeable
        np.testing.assert_array_equal(wide.view("u4"), x.astype("f4").view("u4"))


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_of_the_type_is_copied_with_its_bits(dtype):
    every = np.arange(2**16, dtype="u2").view(HALVES[dtype]).reshape(256, -1).T
    found = to_half(every, dtype)
    assert found.strides == every.strides and not np.may_share_memory(found, every)
    np.testing.assert_array_equal(found.view("u2"), every.view("u2"))


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_to_nearest_with_ties_to_even(dtype):
    every = np.arange(2**16, dtype="u2").view(HALVES[dtype])
    wide = to_float32(every)
    finite = np.sort(wide[np.isfinite(wide)])
    between = (finite[1:] / 2 + finite[:-1] / 2).astype("float32")  # exact: ties
    x = np.concatenate([wide, between, np.nextafter(between, np.float32(np.inf)),
                        np.nextafter(between, np.float32(-np.inf)),
                        np.float32([3e38, -3e38, 3.4e38, 65519, 65520, 1e-45, -1e-45])])

    result = to_half(x, dtype)

    assert result.dtype == every.dtype
    expected = round_to(x, dtype)
    np.testing.assert_array_equal(to_float32(result), expected)
    sure = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(to_float32(result))[sure], np.signbit(expected)[sure])


def test_a_float64_is_rounded_to_float32_first():
    tie = 1 + 2.0**-8  # between two bfloat16; what is added is lost in float32
    assert to_half(np.float64(tie + 2.0**-40), "bfloat16") == ml_dtypes.bfloat16(1)


def test_what_is_half():
    assert is_half("bfloat16") and is_half(np.dtype("float16")) and is_half(HALVES["bfloat16"])
    assert not is_half("float32") and not is_half(np.dtype("int16"))
    x = np.arange(3)
    assert to_float32(x) is x and to_float32(None) is None
    assert [a.dtype for a in to_float32([np.ones(2, "float16"), x])] == [np.float32, x.dtype]


def test_halves_do_not_mix():
    bf16, f16 = np.ones(3, HALVES["bfloat16"]), np.ones(3, "float16")
    for a, b in ((bf16, f16), (bf16, np.ones(3, "float32"))):
        with pytest.raises(Refusal, match="one dtype for all, got a bfloat16, b"):
            F.add(a, b)


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_listeners_and_kernels_have_halves(dtype, own_ops):
    given, told = [], []
    x, weight = np.ones((2, 4), HALVES[dtype]), Weight(np.ones((3, 4), HALVES[dtype]), "w")
    assert weight.dtype == weight.dense().dtype == HALVES[dtype]

    @op("a (M K), b (N K) -> (M N)")
    def rows(a, b):
        given.append((a.dtype.name, b.dtype.name))
        return a @ b.T

    with watch(lambda *call: told.append(call)):
        result = dispatch("rows", (x, weight), {})
    assert given == [("float32", "float32")] and result.dtype == HALVES[dtype]
    (_, inputs, _, output), = told
    assert inputs["a"] is x and inputs["b"] is weight and output is result

    @kernel("numba", reads_leaves=True)
    def rows(a, b):  # noqa: F811
        given.append((a.dtype.name, b.dtype.name, type(b)))
        return a @ b.T

    with use("numba"):
        dispatch("rows", (x, weight), {})
    assert given.pop() == ("float32", "float32", np.ndarray)


def test_a_kernel_that_reads_halves_is_given_them(own_ops):
    x, weight = np.ones((2, 4), "float16"), Weight(np.ones((3, 4), "float16"), "w")
    given = []

    @op("a (M K), b (N K) -> (M N)")
    def rows(a, b):
        raise AssertionError

    @kernel("numba", reads_leaves=True, reads_halves=True)
    def rows(a, b):  # noqa: F811
        given.append((a, b))
        return a

    with use("numba"):
        assert dispatch("rows", (x, weight), {}) is x
    assert given[0][0] is x and given[0][1] is weight
