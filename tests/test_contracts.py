"""Contracts: what they refuse and in which words, what they infer, what they count."""

import inspect
import math
import re

import numpy as np
import pytest

import refsd
from refsd import contracts, examples, kinds, registry
from refsd import functional as F
from refsd.backends import available_backends
from refsd.contracts import Spec
from refsd.errors import UsageError


def a(*shape, dtype="float32"):
    """A stand-in for an array."""
    return Spec(shape, dtype)


def ids(*shape):
    return Spec(shape, "int64")


X = a(2, 4, 6, 6)
ROW = {"eps": 1e-5}
GROUPS = {"groups": 2, "eps": 1e-5}
TIME = {"dim": 8, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": "float32"}
ROPE = {"base": 10000.0, "interleaved": True}
W = a(8, 4, 3, 3)

# op, arguments, options, and the whole message after the op's name: one for each kind of check, and
# for each rule. That every op makes all of its checks, test_golden_contracts.py shows.
ERRORS = [
    # arrays and dtypes: one voice for all ops
    ("silu", (None,), {}, "x has type NoneType, wanted an array"),
    ("add", (3, 2), {}, "a has type int, wanted an array"),
    ("silu", (np.ma.array([1.0], mask=[True]),), {},
     "x is a MaskedArray, wanted a plain array: np.asarray drops what is more"),
    ("exp", (np.ones((2, 2)).view(np.matrix),), {},
     "x is a matrix, wanted a plain array: np.asarray drops what is more"),
    ("concat", ([X, None],), {"axis": 0}, "arrays[1] has type NoneType, wanted an array"),
    ("gelu", (a(2, dtype="complex64"),), {},
     "x has dtype complex64, wanted bfloat16, float16, float32 or float64: convert it first"),
    ("matmul", (a(2, 2), a(2, 2, dtype="float64")), {},
     "one dtype for all, got a float32, b float64"),
    ("mul", (a(3), np.float64(2)), {}, "one dtype for all, got a float32, b float64"),
    ("embedding", (a(2), a(4, 3)), {}, "ids has dtype float32, wanted integers"),
    ("timestep_embedding", (a(2, dtype="complex64"),), TIME,
     "timesteps has dtype complex64, wanted integers or floats"),
    # shapes
    ("to_tokens", (a(2, 3, 4),), {}, "x has shape (2, 3, 4), wanted (N, C, H, W)"),
    ("sub", (a(2, 3), a(4)), {}, "shapes (2, 3) and (4,) do not broadcast: 3 against 4"),
    ("linear", (a(2, 3), a(4, 5)), {},
     "weight has shape (4, 5), wanted (out, K) where K = 3 (x (2, 3))"),
    ("linear_add", (a(2, 3), a(4, 3), a(1, 4)), {}, "addend (1, 4) has other rows than x (2, 3)"),
    ("matmul", (a(3), a(3, 2)), {}, "a has shape (3,), wanted (..., M, K)"),
    ("conv2d", (a(2, 320, 64, 64), a(640, 640, 3, 3)), {},
     "weight has shape (640, 640, 3, 3), wanted (O, C//groups, kH, kW) where C = 320 (x (2, "
     "320, 64, 64)), groups = 1"),
    ("conv2d", (X, a(9, 2, 3, 3)), {"groups": 2}, "9 output channels do not split into 2 groups"),
    ("conv2d", (a(1, 5, 4, 4), a(4, 2, 3, 3)), {"groups": 2},
     "5 input channels do not split into 2 groups"),
    ("conv2d", (X, W), {"dilation": 3},
     "the kernel 3 x 3 (dilation 3) does not fit into 6 x 6 pixels with padding 0"),
    ("conv2d", (a(0, 4, 6, 6), W), {}, "x (0, 4, 6, 6) or weight (8, 4, 3, 3) is empty"),
    ("conv2d", (X, W), {"groups": 0}, "groups is 0, wanted an integer >= 1"),
    ("conv2d", (X, W), {"stride": 1.5}, "stride is 1.5, wanted an integer >= 1 or a pair of them"),
    ("conv2d", (X, W), {"stride": (1, 0)},
     "stride is (1, 0), wanted an integer >= 1 or a pair of them"),
    ("conv2d", (X, W), {"dilation": (1, 2, 3)},
     "dilation is (1, 2, 3), wanted an integer >= 1 or a pair of them"),
    ("conv2d", (X, W), {"padding": True},
     "padding is True, wanted an integer >= 0, a pair of them, or two pairs: ((top, bottom), "
     "(left, right))"),
    ("conv2d", (X, W), {"padding": ((1, 1), (1, -1))},
     "padding is ((1, 1), (1, -1)), wanted an integer >= 0, a pair of them, or two pairs: "
     "((top, bottom), (left, right))"),
    ("conv2d", (X, W), {"algorithm": "magic"},
     "algorithm is 'magic', wanted auto, im2col, fft, winograd2 or winograd4"),
    ("conv2d", (X, W), {"algorithm": "winograd2", "stride": 2},
     "winograd2 computes 3 x 3 kernels with stride 1 and dilation 1, got 3 x 3, stride 2, "
     "dilation 1"),
    ("attention", (a(1, 5, 8), a(1, 7, 8), a(1, 7, 9)), {"heads": 2},
     "widths 8 (q, k) and 9 (v) do not split into 2 heads"),
    ("attention", (a(1, 5, 8), a(1, 0, 8), a(1, 0, 8)), {"heads": 2},
     "there are no keys: k has shape (1, 0, 8)"),
    ("attention", (a(1, 5, 0), a(1, 7, 0), a(1, 7, 8)), {"heads": 2},
     "q (1, 5, 0) has no features"),
    ("attention", (a(1, 5, 8), a(1, 7, 8), a(1, 7, 8)), {"heads": 2, "causal": True},
     "causal needs as many queries as keys, got 5, 7"),
    ("attention", (a(1, 5, 8), a(1, 7, 8), a(1, 7, 8)), {"heads": 2, "mask": a(7, 5)},
     "mask (7, 5) does not broadcast to (N, heads, L, S) = (1, 2, 5, 7)"),
    ("attention", (a(1, 5, 8), a(1, 5, 8), a(1, 5, 8)), {"heads": 2, "causal": 1},
     "causal is 1, wanted True or False"),
    ("group_norm", (a(2, 4), a(4), a(4)), GROUPS,
     "x (2, 4) has no axis of positions, wanted (N, C, ...)"),
    ("group_norm", (a(2, 5, 3), a(5), a(5)), GROUPS, "5 channels do not split into 2 groups"),
    ("group_norm", (X, a(4), a(4)), {"groups": 2, "eps": 0},
     "eps is 0, wanted a finite Python number > 0"),
    ("group_norm", (X, a(4), a(4)), {"groups": 2, "eps": np.float64(1e-5)},
     "eps is np.float64(1e-05), wanted a finite Python number > 0"),
    ("group_norm", (a(2, 4, 0), a(4), a(4)), GROUPS, "x (2, 4, 0) has empty groups"),
    ("conv2d_add", (X, W, a(2, 8, 4, 4)), {"padding": 1},
     "addend (2, 8, 4, 4) does not broadcast to the result (2, 8, 6, 6)"),
    ("conv2d_add", (X, W, a(1, 2, 8, 6, 6)), {"padding": 1},
     "addend (1, 2, 8, 6, 6) does not broadcast to the result (2, 8, 6, 6)"),
    ("conv2d_add", (X, a(9, 2, 3, 3), a(1)), {"groups": 2},
     "9 output channels do not split into 2 groups"),
    ("conv2d_add", (a(1, 5, 4, 4), a(4, 2, 3, 3), a(1)), {"groups": 2},
     "5 input channels do not split into 2 groups"),
    ("conv2d_add", (X, W, a(1)), {"dilation": 3},
     "the kernel 3 x 3 (dilation 3) does not fit into 6 x 6 pixels with padding 0"),
    ("conv2d_add", (a(0, 4, 6, 6), W, a(1)), {}, "x (0, 4, 6, 6) or weight (8, 4, 3, 3) is empty"),
    ("conv2d_add", (X, W, a(1)), {"algorithm": "winograd2", "stride": 2},
     "winograd2 computes 3 x 3 kernels with stride 1 and dilation 1, got 3 x 3, stride 2, "
     "dilation 1"),
    ("upsample_conv2d", (X, W), {"height": 2, "width": 9},
     "the kernel 3 x 3 (dilation 1) does not fit into 2 x 9 pixels with padding 0"),
    ("upsample_conv2d", (X, W), {"height": 0, "width": 9}, "height is 0, wanted an integer >= 1"),
    ("upsample_conv2d", (a(2, 4, 6, 0), W), {"height": 6, "width": 9},
     "x (2, 4, 6, 0) has no pixels"),
    ("upsample_conv2d", (X, a(9, 2, 3, 3)), {"height": 6, "width": 6, "groups": 2},
     "9 output channels do not split into 2 groups"),
    ("upsample_conv2d", (a(1, 5, 4, 4), a(4, 2, 3, 3)), {"height": 6, "width": 6, "groups": 2},
     "5 input channels do not split into 2 groups"),
    ("upsample_conv2d", (a(0, 4, 6, 6), W), {"height": 6, "width": 6},
     "x (0, 4, 6, 6) or weight (8, 4, 3, 3) is empty"),
    ("group_norm_silu", (a(2, 4), a(4), a(4)), GROUPS,
     "x (2, 4) has no axis of positions, wanted (N, C, ...)"),
    ("group_norm_silu", (a(2, 5, 3), a(5), a(5)), GROUPS, "5 channels do not split into 2 groups"),
    ("group_norm_silu", (X, a(4), a(4)), {"groups": 2, "eps": 0},
     "eps is 0, wanted a finite Python number > 0"),
    ("group_norm_silu", (a(2, 4, 0), a(4), a(4)), GROUPS, "x (2, 4, 0) has empty groups"),
    ("layer_norm", (a(2, 0), a(0), a(0)), ROW, "x (2, 0) has no features"),
    ("layer_norm", (a(2, 3), a(3), a(3)), {"eps": math.nan},
     "eps is nan, wanted a finite Python number > 0"),
    ("rms_norm", (a(2, 0), a(0)), ROW, "x (2, 0) has no features"),
    ("geglu", (a(2, 3),), {}, "x has shape (2, 3), wanted (..., 2*K)"),
    ("softmax", (a(2, 3),), {"axis": 2}, "axis is 2, wanted an axis of x, which has 2: -2 to 1"),
    ("softmax", (a(2, 0),), {"axis": -1}, "axis -1 of x (2, 0) is empty"),
    ("timestep_embedding", (ids(2),), TIME | {"dim": 4, "freq_shift": 2},
     "dim 4 with freq_shift 2 leaves no frequencies"),
    ("timestep_embedding", (ids(2),), TIME | {"dtype": "float8"},
     "dtype is 'float8', wanted bfloat16, float16, float32 or float64"),
    ("rope", (a(3, 5), ids(3)), ROPE, "x (3, 5) has an odd number of features"),
    ("upsample_bilinear", (a(1, 1, 0, 3),), {"height": 2, "width": 4, "align_corners": True},
     "x (1, 1, 0, 3) has no pixels"),
    ("upsample_nearest", (a(1, 1, 3, 0),), {"height": 2, "width": 4},
     "x (1, 1, 3, 0) has no pixels"),
    ("to_image", (a(1, 6, 4),), {"height": 2, "width": 2}, "6 tokens do not fill 2 x 2 pixels"),
    ("to_image", (a(6),), {"height": 2, "width": 3}, "x has shape (6,), wanted (N, L?, C)"),
    ("concat", ([],), {"axis": 0}, "arrays is no list of one array or more"),
    ("concat", ([a(2, 3), a(3, 3)],), {"axis": 1},
     "arrays[1] (3, 3) differs from arrays[0] (2, 3) outside axis 1"),
    ("concat", ([a(2, 3), a(2, 3)],), {"axis": 2},
     "axis is 2, wanted an axis of arrays, which has 2: -2 to 1"),
    ("slice", (a(2, 3),), {"axis": 1, "start": 2, "stop": 4},
     "2 to 4 is no part of axis 1 of x (2, 3)"),
    ("pad", (a(2, 3),), {"widths": ((0, 1),)},
     "widths is ((0, 1),), wanted a pair (before, after) of integers >= 0 for each axis of x "
     "(2, 3)"),
    ("transpose", (a(2, 3),), {"axes": (0, 0)},
     "axes is (0, 0), wanted an order of the axes of x, 0 to 1"),
    ("transpose", (a(2, 3),), {"axes": ("a", 0)},
     "axes is ('a', 0), wanted an order of the axes of x, 0 to 1"),
    ("layer_norm", (a(2, 3), None, a(3)), {"eps": 1e-6}, "bias is given without a weight: "
     "give both, the weight alone, or neither"),
    ("reshape", (a(2, 3),), {"shape": (2, 4)}, "x (2, 3) has not as many elements as (2, 4)"),
    ("reshape", (a(2, 3),), {"shape": (2, -1)}, "shape is (2, -1), wanted a list of integers >= 0"),
    ("reshape", (a(2, 3),), {"shape": 6}, "shape is 6, wanted a list of integers >= 0"),
    ("clamp", (a(3),), {"low": 2, "high": 1}, "low 2 is above high 1"),
]
IDS = [f"{name}: {message[:40]}" for name, _, _, message in ERRORS]


def arrays(value):
    """The same arguments with an array for every stand-in."""
    if isinstance(value, Spec):
        return np.ones(value.shape, value.dtype)
    if isinstance(value, list):
        return [arrays(item) for item in value]
    return value


@pytest.fixture(params=available_backends())
def backend(request):
    with refsd.use(request.param):
        yield request.param


@pytest.mark.parametrize("name, args, options, message", ERRORS, ids=IDS)
def test_every_backend_raises_the_same_error(backend, name, args, options, message, monkeypatch):
    """Through F with arrays and from the contract with stand-ins; and before anything runs."""
    ran = []
    monkeypatch.setitem(registry._kernels, (backend, name), lambda *a, **k: ran.append(a))
    options_of_arrays = {key: arrays(value) for key, value in options.items()}
    with pytest.raises(UsageError) as through_f:
        getattr(F, name)(*[arrays(v) for v in args], **options_of_arrays)
    with pytest.raises(UsageError) as from_contract:
        registry.ops()[name].contract(*args, **options)
    assert str(through_f.value) == str(from_contract.value) == f"{name}: {message}"
    assert isinstance(through_f.value, ValueError) and through_f.value.exit_code == 2
    assert "\n" not in str(through_f.value) and "0x" not in str(through_f.value)
    assert through_f.value.__cause__ is None and ran == []


def checks(contract):
    """Every check that one contract has and another may lack: its rules, and what infer asks."""
    yield from (("rule", rule) for rule in contract.rules)
    if contract.infer is not None:
        source = inspect.getsource(contract.infer)
        yield from (("need", check) for check in re.findall(r'check="([^"]+)"', source))


def test_every_rule_is_broken_by_a_case_above():
    """A new rule needs a line in ERRORS. What all contracts check is in the first lines."""
    broken = set()
    for name, args, options, _ in ERRORS:
        with pytest.raises(contracts.Refusal) as refusal:
            registry.ops()[name].contract(*args, **options)
        broken.add((name, *refusal.value.check[:2]))
    wanted = {(name, *check) for name, op in registry.ops().items()
              for check in checks(op.contract)}
    assert wanted <= broken
    kinds = {check[1] for check in broken}
    assert kinds == {"array", "plain", "list", "dtype", "one dtype", "shape", "broadcast", "option",
                     "rule", "need"}


# op, arguments, options, output shape, FLOPs (multiply and add are two) counted by hand
COUNTS = [
    # 2 x 3 rows, 5 outputs, 4 products and 4 sums each
    ("linear", (a(2, 3, 4), a(5, 4), a(5)), {}, (2, 3, 5), 2 * 3 * 5 * 4 * 2),
    ("linear_add", (a(2, 3, 4), a(5, 4), a(2, 3, 5), a(5)), {}, (2, 3, 5), 2 * 3 * 5 * (4 * 2 + 1)),
    # the 10 outputs as above, and 6 for each of the 5 that are left
    ("linear_geglu", (a(2, 3, 4), a(10, 4), a(10)), {}, (2, 3, 5), 2 * 3 * (10 * 4 * 2 + 5 * 6)),
    ("matmul", (a(7, 1, 2, 3), a(5, 3, 4)), {}, (7, 5, 2, 4), 7 * 5 * 2 * 4 * 3 * 2),
    # 64 x 64 pixels, 320 outputs, 320 x 9 products and sums each: 7.55 GFLOP
    ("conv2d", (a(1, 320, 64, 64), a(320, 320, 3, 3), a(320)), {"padding": 1},
     (1, 320, 64, 64), 7_549_747_200),
    ("conv2d", (X, a(8, 2, 3, 3)), {"groups": 2, "stride": (2, 1), "padding": ((0, 1), (2, 0))},
     (2, 8, 3, 6), 2 * 8 * 3 * 6 * 2 * 9 * 2),
    # 2 heads of 4: 5 x 7 scores of 4 products each, 5 steps of softmax, 5 x 8 sums of 7
    ("attention", (a(1, 5, 8), a(1, 7, 8), a(1, 7, 8)), {"heads": 2}, (1, 5, 8),
     2 * 5 * 7 * 8 + 5 * 2 * 5 * 7 + 2 * 5 * 7 * 8),
    # subtract, square, add, subtract for the means, divide, multiply, add, and the sum: 8
    ("group_norm", (X, a(4), a(4)), GROUPS, X.shape, 8 * 288),
    ("conv2d_add", (X, W, a(8, 1, 1), a(8)), {"padding": 1}, (2, 8, 6, 6),
     2 * 8 * 36 * (4 * 9 * 2 + 1)),
    ("upsample_conv2d", (X, W), {"height": 12, "width": 11, "padding": 1}, (2, 8, 12, 11),
     2 * 8 * 12 * 11 * 4 * 9 * 2),
    ("group_norm_silu", (X, a(4), a(4)), GROUPS, X.shape, (8 + 4) * 288),  # and 4 of silu
    ("layer_norm", (a(2, 3), a(3), a(3)), ROW, (2, 3), 8 * 6),
    ("rms_norm", (a(2, 3), a(3)), ROW, (2, 3), 5 * 6),
    ("geglu", (a(2, 6),), {}, (2, 3), 6 * 6),
    ("softmax", (a(2, 3),), {"axis": -1}, (2, 3), 5 * 6),
    ("embedding", (ids(2, 3), a(9, 4)), {}, (2, 3, 4), 0),
    ("gather", (a(2, 3, 4), ids(2)), {}, (2, 4), 0),
    ("timestep_embedding", (ids(3),), TIME, (3, 8), 3 * 24),
    ("rope", (a(2, 3, 4), ids(3)), ROPE, (2, 3, 4), 3 * 24),
    ("upsample_bilinear", (X,), {"height": 12, "width": 7, "align_corners": False},
     (2, 4, 12, 7), 11 * 2 * 4 * 12 * 7),
    ("slice", (a(2, 8),), {"axis": 1, "start": 2, "stop": 5}, (2, 3), 0),
]
# Only a part of these inputs is read: the rows picked, the piece cut out.
READ = {"embedding": 6 * 8 + 24 * 4, "gather": 2 * 8 + 8 * 4, "slice": 6 * 4}


def size(value):
    if isinstance(value, list):
        return sum(map(size, value))
    if isinstance(value, Spec):
        return math.prod(value.shape) * (8 if value.dtype == "int64" else 4)
    return 4 if isinstance(value, (int, float)) else 0


@pytest.mark.parametrize("name, args, options, shape, flops", COUNTS, ids=[c[0] for c in COUNTS])
def test_shape_flops_and_bytes(name, args, options, shape, flops):
    """Least traffic: what is read once, and the output written once."""
    found = registry.ops()[name].contract(*args, **options)
    read = READ.get(name, sum(map(size, args)))
    assert found == (shape, "float32", flops, read + math.prod(shape) * 4)
    assert all(type(n) is int for n in (*found.shape, found.flops, found.bytes))


@pytest.mark.parametrize("name", sorted(registry.ops()))
def test_counts_of_examples(name):
    """A map or a pair takes as many FLOPs for each result, movement none; others are in COUNTS."""
    op, per_result = registry.ops()[name], set()
    for call in examples.calls(op):
        output = op.contract(*call.inputs.values(), **call.options)
        results = math.prod(output.shape)
        per_result.add(output.flops / results)
        if op.contract.reads is None:
            masks = [value for value in call.options.values() if isinstance(value, Spec)]
            assert output.bytes == size([*call.inputs.values(), *masks]) + 4 * results
    if isinstance(op.kind, (kinds.Map, kinds.Pair)):
        assert len(per_result) == 1 and per_result.pop() in range(1, 100)
    elif isinstance(op.kind, kinds.Movement):
        assert per_result == {0}
    else:
        assert name in {count[0] for count in COUNTS}


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("float64", 8), ("float16", 2),
                                         ("int64", 8), ("uint8", 1), ("bool", 1),
                                         (np.dtype("int32"), 4), ("bfloat16", 2),
                                         ("float8_e4m3fn", 1), ("float8_e5m2fnuz", 1),
                                         ("complex64", 8)])
def test_itemsize(dtype, size):
    assert contracts.itemsize(dtype) == size


@pytest.mark.parametrize("dtype", sorted({str(np.dtype(c)) for c in "?bhilqBHILQefdFD"}))
def test_itemsize_is_numpys(dtype):
    assert contracts.itemsize(dtype) == np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", ["int4", "uint4", "float4_e2m1fn", "float6_e3m2fn", ">f4", "F32",
                                   "torch.float32", "datetime64[ns]", "<U8", "object", ""])
def test_no_size_is_guessed(dtype):
    with pytest.raises(UsageError, match=f"^dtype {re.escape(dtype)} has no known number of bytes"):
        contracts.itemsize(dtype)


def test_bytes_follow_the_dtype():
    narrow = registry.ops()["silu"].contract(a(5))
    wide = registry.ops()["silu"].contract(a(5, dtype="float64"))
    assert (narrow.bytes, wide.bytes) == (40, 80)


def test_numpy_integers_are_integers():
    x = np.ones((1, 2, 4, 4), "float32")
    weight = np.ones((2, 2, 3, 3), "float32")
    y = F.conv2d(x, weight, stride=np.int64(1), padding=(np.int32(1), np.uint8(1)))
    assert y.shape == (1, 2, 4, 4)
