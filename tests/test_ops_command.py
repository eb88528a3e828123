"""refsd ops: the list, one op, and why a convolution takes its algorithm."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.fft

import refsd
from refsd import algorithms, registry
from refsd.__main__ import main
from refsd.backends import available_backends
from refsd.contracts import Spec
from refsd.leaf import Weight
from refsd.numba_ops import memory
from refsd.numba_ops.cpu import conv
from refsd.ops import conv_tiled
from refsd.ops.conv import conv2d as definition

ROOT = Path(refsd.__file__).parents[1]


def run(capfd, *args):
    capfd.readouterr()
    code = main(["ops", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def answer(capfd, *args):
    code, out, err = run(capfd, *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_list_has_every_op_on_every_backend(capfd):
    report = answer(capfd)
    assert [op["name"] for op in report] == list(registry.ops())
    for op in report:
        definition = registry.ops()[op["name"]].definition
        assert list(op["kernels"]) == available_backends()
        assert definition.__doc__.startswith(op["summary"]) and op["summary"]
        for where in op["kernels"].values():
            file, line = where.split(":")
            source = inspect.getblock((ROOT / file).read_text().splitlines(True)[int(line) - 1:])
            assert f"\ndef {op['name']}(" in "".join(source)
    text = run(capfd)[1]
    assert all(f"{op['name']}{op['signature']}   [" in text for op in report)


def test_an_op_in_full(capfd):
    report = answer(capfd, "show", "conv2d")
    assert report["contract"].startswith('@op("x (N C H W), weight (O C//groups kH kW)')
    text = run(capfd, "show", "conv2d")[1]
    for part in (report["contract"], report["signature"], *report["kernels"].values(),
                 "y[n,o,i,j] = b[o] + "):
        assert part in text
    assert str(ROOT) not in text


def test_why(capfd):
    """The numbers of this layer by hand: 64 x 64 outputs are 256 tiles of 4 x 4, twice."""
    shapes = ["conv2d", "2x320x64x64", "320x320x3x3", "--padding", "1"]
    report = answer(capfd, "why", *shapes)
    assert (report["backend"], report["algorithm"]) == ("numba", "winograd4")
    assert report["output"]["shape"] == [2, 320, 64, 64]
    costs = {cost["algorithm"]: cost for cost in report["costs"]}
    products = 320 * 320
    assert costs["im2col"]["multiplications"] == 2 * 64 * 64 * 9 * products
    assert costs["winograd2"]["multiplications"] == 2 * 1024 * 16 * products
    assert costs["winograd4"]["multiplications"] == 2 * 256 * 36 * products
    assert costs["winograd4"]["weight_bytes"] == 36 * products * 4

    text = run(capfd, "why", *shapes)[1]
    assert "winograd4 on numba: 36 multiplications instead of 144" in text
    assert "15.10 GFLOP" in text and "1,887,436,800" in text
    marked = [line.split()[0] for line in text.splitlines() if line.endswith("<-")]
    assert marked == ["winograd4"]


@pytest.mark.parametrize("options, algorithm, word", [
    (["--exact"], "im2col", "exact"),
    (["--backend", "numpy"], "im2col", "small"),
    (["--stride", "2"], "im2col", "stride"),
    (["--stride", "1x2"], "im2col", "stride"),
    (["--dilation", "2"], "im2col", "dilation"),
    (["--groups", "2"], "im2col", "groups"),
    (["--padding", "0x1x0x1"], "winograd4", "36 multiplications"),
])
def test_why_under_options(capfd, options, algorithm, word):
    kernel = "64x32x3x3" if "--groups" in options else "64x64x3x3"
    report = answer(capfd, "why", "conv2d", "1x64x32x32", kernel, *options)
    assert report["algorithm"] == algorithm and word in report["why"]
    fits = {cost["algorithm"] for cost in report["costs"] if cost["multiplications"] is not None}
    strided = {"--stride", "--dilation"} & set(options)
    assert fits == {"im2col", "fft"} | (set() if strided else {"winograd2", "winograd4"})


def test_why_on_a_gpu(capfd):
    """By its capability alone: tests/cuda/test_why.py launches what is said."""
    call = ["why", "group_norm", "2x320x64x64", "--groups", "32", "--backend", "cuda"]
    report = answer(capfd, *call, "--capability", "80", "--dtype", "float16")
    assert report["kernel"] == "norm_groups.apply_kernel" and report["capability"] == 80
    assert report["output"]["shape"] == [2, 320, 64, 64]
    text = run(capfd, *call, "--capability", "90")[1]
    assert text.startswith("norm_groups.apply_kernel(float32) on a GPU of capability 9.0: ")
    for call in (["attention", *["2x64x320"] * 3, "--masked"], ["softmax", "2x5x64"],
                 ["linear", "2x64x320", "320x320"], ["matmul", "2x64x320", "320x64"],
                 ["conv2d", "2x320x64x64", "320x320x3x3"], ["layer_norm", "2x64x320"],
                 ["rms_norm", "2x64x320"]):
        assert "on a GPU of capability 7.5: " in run(capfd, "why", *call, "--backend", "cuda",
                                                     "--capability", "75")[1]


@pytest.mark.parametrize("args, words", [
    (["shwo"], "did you mean show?"),
    (["show"], "OP is missing"),
    (["show", "conv3d"], "did you mean conv2d?"),
    (["show", "conv2d", "1x1"], "'1x1' is one too many"),
    (["why", "linear", "1x1", "1x1"], "only conv2d has a choice: ask about that"),
    (["why", "linear", "1x1", "1x1", "--capability", "80"], "give --backend cuda too"),
    (["why", "silu", "1x1", "--backend", "cuda", "--capability", "80"], "one kernel for all calls"),
    (["why", "linear", "1x4", "--backend", "cuda", "--capability", "80"], "of the arrays x, wei"),
    (["why", "conv2d", "1x1x8x8"], "KERNEL is missing"),
    (["why", "conv2d", "1x1x8x", "1x1x3x3"], "PICTURE is '1x1x8x'; give a shape"),
    (["why", "conv2d", "1x1x8x8", "1x2x3x3"], "conv2d: weight has shape (1, 2, 3, 3), wanted"),
    (["why", "conv2d", "1x1x8", "1x1x3x3"], "conv2d: x has shape (1, 1, 8), wanted (N, C, H, W)"),
    (["why", "conv2d", "1x1x2x2", "1x1x3x3"], "does not fit into 2 x 2 pixels"),
    (["why", "conv2d", "1x1x8x8", "1x1x3x3", "--stride", "0"], "wanted an integer >= 1"),
    (["why", "conv2d", "1x1x8x8", "1x1x3x3", "--padding", "1x1x1"], "give N or NxN or NxNxNxN"),
    (["why", "conv2d", "1x1x8x8", "1x1x3x3", "--backend", "cuda:7"], "is not one of: auto"),
])
def test_what_is_refused(capfd, args, words):
    code, out, err = run(capfd, *args)
    assert (code, out) == (2, "")
    assert err.startswith("refsd: error: ") and words in err and err.count("\n") == 1


def case(shape, kernel, **options):
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(s).astype("f4") for s in (shape, kernel))
    return x, weight, options


CASES = [
    case((2, 5, 21, 18), (7, 5, 3, 3), padding=1),
    case((1, 6, 9, 30), (40, 3, 3, 3), groups=2),
    case((1, 4, 40, 40), (4, 4, 7, 5), stride=2, padding=3),
    case((1, 33, 8, 8), (65, 33, 1, 1)),
    case((1, 8, 12, 12), (8, 1, 3, 3), groups=8),
    case((1, 3, 90, 70), (2, 3, 9, 9)),
]


@pytest.mark.parametrize("x, weight, options", CASES)
def test_the_bytes_are_what_the_kernels_keep(x, weight, options):
    report = algorithms.explain_conv2d(x, weight, backend="numba", **options)
    costs = {cost.algorithm: cost.weight_bytes for cost in report.costs}
    for name, wanted in costs.items():
        if wanted is not None:
            fresh = Weight(weight)  # packed anew, and kept
            conv.conv2d(x, fresh, **options, algorithm=name)
            kept = fresh.prepared_bytes
            # Winograd's are made of im2col's in every call. On top: alignment, one panel to read.
            wanted = wanted if name == "fft" else costs["im2col"]
            surplus = 64 * options.get("groups", 1) + 4 * memory.panel_width("f4")
            assert 0 <= kept - wanted <= surplus, name


class Counting(np.ndarray):
    """Counts the multiplications of matrix products in which it is the left, stacked matrix."""

    multiplications = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(i) for i in inputs]
        y = getattr(ufunc, method)(*plain, **options)
        # (groups, O, K) in im2col, (groups, P, Q, O, I) in the tiled ones; kernels have 4 axes.
        if ufunc is np.matmul and plain[0].ndim in (3, 5):
            Counting.multiplications += (4 if np.iscomplexobj(y) else 1) * y.size * (
                plain[0].shape[-1])
            return y
        return y.view(Counting)


@pytest.mark.parametrize("x, weight, options", CASES)
def test_the_multiplications_are_those_of_the_definitions(monkeypatch, x, weight, options):
    """The kernels have the same tiles; that they compute no more is for the benchmarks to show."""
    transform = scipy.fft.rfft2  # its result is a plain array
    for module in (scipy.fft, conv_tiled):  # wherever the definition takes it from
        monkeypatch.setattr(module, "rfft2", lambda a, **size: transform(
            np.asarray(a), **size).view(Counting), raising=False)
    for backend in ("numba", "numpy"):
        report = algorithms.explain_conv2d(x, weight, backend=backend, **options)
        for cost in report.costs:
            if cost.multiplications is not None:
                Counting.multiplications = 0
                definition(x, weight.view(Counting), **options, algorithm=cost.algorithm)
                assert Counting.multiplications == cost.multiplications, cost


def test_it_names_what_conv2d_takes(monkeypatch):
    """The explanation and the kernel ask the same rule with the same policy."""
    x, weight, options = CASES[0]
    wide = Spec((2, 64, 32, 32), "float32"), Spec((64, 64, 3, 3), "float32")
    with refsd.use("numba"):
        assert algorithms.chosen("conv2d", {"x": wide[0], "weight": wide[1]}, {}) == "winograd4"
        with refsd.use("numba", exact=True):
            assert algorithms.chosen("conv2d", {"x": wide[0], "weight": wide[1]}, {}) == "im2col"
    assert algorithms.chosen("silu", {"x": x}, {}) is None
    assert algorithms.explain_conv2d(*wide, backend="numba", exact=True).algorithm == "im2col"
    assert algorithms.explain_conv2d(*wide, algorithm="fft").why == "it was asked for"
