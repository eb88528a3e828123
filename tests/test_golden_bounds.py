"""The bounds of ports: they hold, they are tight, and what they are made of is right.

`python -m pytest -s tests/test_golden_bounds.py` prints how much of each bound is used.
"""

import math

import agreement_bounds
import numpy as np
import pytest
from agreement_cases import calls
from numba_agreement import run, truth_of
from op_table import normal

from refsd.errors import UsageError
from refsd.golden.tolerances import tolerance
from refsd.golden.tolerances.bounds import Bound, bound, conv, moves_data
from refsd.golden.tolerances.bounds.pipeline import pipeline_bound
from refsd.golden.tolerances.formats import FORMATS, round_to
from refsd.golden.tolerances.precision import PRECISIONS, gamma, quantile, running_sum
from refsd.kinds import EXP, Map
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.registry import op, ops, watch

P = PRECISIONS["float32"]
OPS = ops()
HALVES = ("float16", "bfloat16", "tf32", "fp8_e5m2", "bfloat8_b", "int8")


def some(name, most):
    """At most so many of the hard calls of an op, spread over all of them."""
    found = [call.build("float32") for call in calls(name)]
    found = [(args, options) for args, options in found
             if all(a.size for a in args if isinstance(a, np.ndarray))]
    return found[::max(1, math.ceil(len(found) / most))]


def shares(got, truth, found):
    """The largest |error| / bound, likely and worst; 0 where the truth is not finite."""
    with np.errstate(all="ignore"):
        error = np.where(np.isfinite(truth), abs(got.astype("float64") - truth), 0)
        return [float(np.max(np.where(error > 0, error / b, 0))) for b in (found[1], found[0])]


@pytest.fixture
def cpu_winograd(monkeypatch):
    """The CPU backend's Winograd has other points than the reference."""
    for name in agreement_bounds.WINOGRAD:
        G, B, A = agreement_bounds.matrices(name)
        monkeypatch.setitem(conv.WINOGRAD, name, (B, G, A))


def test_kernels_stay_within_and_come_near(cpu_winograd):
    """float32: 1 % to 100 % of the likely bound for nine cases in ten, and 100 % for all."""
    rows, near = [], []
    for name in OPS:
        found = []
        for args, options in some(name, 8):
            truth, _ = truth_of(name, args, options)
            kind = (agreement_bounds.algorithm(args, options, truth.shape)
                    if name in agreement_bounds.CONVOLUTIONS else None)
            allowed = bound(name, args, options, truth, algorithm=kind)
            if not allowed.worst.any():
                assert moves_data(name), f"{name}: a bound of 0"
                continue
            likely, worst = shares(run(name, args, options), truth, allowed)
            assert likely <= 1 and worst <= 1, f"{name} {[np.shape(a) for a in args]}: {likely}"
            found.append(likely)
        if found:
            near += [share >= 0.01 for share in found]
            rows.append(f"{name:<20}{len(found):>4} cases{min(found):>9.3f}{np.median(found):>9.3f}"
                        f"{max(found):>9.3f}")
    print("\nshare of the likely bound: smallest, median, largest\n" + "\n".join(rows)
          + f"\n{np.mean(near):.1%} of {len(near)} cases between 1 % and 100 %")
    assert np.mean(near) >= 0.9


@pytest.mark.parametrize("format", HALVES)
@pytest.mark.parametrize("name", OPS)
def test_a_port_in_a_format_stays_within(name, format):
    """A port that rounds inputs and weights, computes in float32, and rounds the result."""
    names = list(OPS[name].signature.parameters)
    for args, options in some(name, 3):
        stored = [rounded(a, n, format) for a, n in zip(args, names)]
        if name == "timestep_embedding":
            stored = args  # times are not activations
        options = {k: rounded(v, k, format) for k, v in options.items()} | (
            {"algorithm": "im2col"} if name in agreement_bounds.CONVOLUTIONS else {})
        with np.errstate(over="ignore", invalid="ignore"):
            y = OPS[name].definition(*stored, **options)
            y = y if format == "int8" else round_to(y, format)
        truth, _ = truth_of(name, args, options)
        allowed = bound(name, args, options, truth, format=format)
        # Beyond the largest number (and inputs that overflow) is no matter of rounding.
        kept = np.isfinite(y) & (abs(truth) < FORMATS[format].largest / 2)
        likely, worst = shares(y[kept], truth[kept], [b[kept] for b in allowed]) if (
            kept.any()) else (0, 0)
        assert likely <= 1 and worst <= 1, f"{[np.shape(a) for a in args]} {options}"
        assert (allowed.likely <= allowed.worst).all()


def rounded(value, name, format):
    if isinstance(value, list):
        return [rounded(v, name, format) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    matrix = name == "weight" and value.ndim > 1
    if format == "int8" and not matrix:
        return value
    return round_to(value, format, axis=0 if matrix else None)


def test_the_likely_bound_notices_what_the_worst_does_not():
    """Products in tf32 are outside the likely bound of float32."""
    x, w = normal((4, 1280), 1), normal((24, 1280), 2)
    truth = x.astype("f8") @ w.T.astype("f8")
    y = (round_to(x, "tf32") @ round_to(w, "tf32").T).astype("f4")
    found = bound("linear", (x, w), {}, truth)
    likely, worst = shares(y, truth, found)
    assert likely > 1 > worst


def test_given_inputs_are_not_rounded_again():
    x, w = normal((5, 64), 1), normal((7, 64), 2)
    truth = x.astype("f8") @ w.T
    whole = bound("linear", {"x": x, "weight": w, "bias": None}, {}, truth, format="bfloat16")
    given = bound("linear", [x, w], {}, truth, format="bfloat16", given=True)
    both = bound("linear", [x, w], {}, truth, format="bfloat16", given=("x", "weight"))
    assert (both.likely < given.likely).all() and (given.likely < whole.likely).all()
    stored = [round_to(x, "bfloat16"), round_to(w, "bfloat16")]
    of_stored = bound("linear", stored, {}, stored[0].astype("f8") @ stored[1].T, format="bfloat16")
    # What is left is the roundings of the result, half a spacing of up to 2^-8 of it, and float32.
    assert (of_stored.worst <= 2.0**-8 * 1.01 * abs(stored[0] @ stored[1].T) + 1e-3).all()


def test_sums_in_the_format_itself_allow_more():
    x, w = normal((5, 64), 1), normal((7, 64), 2)
    truth = x.astype("f8") @ w.T
    fine, coarse = (bound("linear", [x, w], {}, truth, format="float16", accumulate=a)
                    for a in ("float32", "float16"))
    assert (coarse.likely > fine.likely).all() and np.isfinite(coarse.worst).all()
    y = np.zeros((5, 7), "f2")
    for k in range(64):
        y += np.outer(x[:, k].astype("f2"), w[:, k].astype("f2"))
    likely, _ = shares(y, truth, coarse)
    assert 0.01 < likely <= 1
    with pytest.raises(UsageError, match="accumulate is 'int8'"):
        bound("linear", [x, w], {}, truth, accumulate="int8")


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_latents_with_a_shift_stay_within_and_come_near(format):
    """Also where x / s and the shift cancel, and the bound of a quotient would not hold."""
    x = np.concatenate([normal((4096,), 3), -1.5305 * 0.5 + 1e-4 * normal((4096,), 4)])
    options = {"scaling_factor": 1.5305, "shift_factor": 0.5}
    x = round_to(x, format).astype("float64")
    truth = x / 1.5305 + 0.5
    quotient = round_to(x / float(round_to(np.array(1.5305), format)), format)
    error = abs(round_to(quotient + 0.5, format).astype("float64") - truth)
    found = pipeline_bound("unscale_latents", {"latents": x}, options, truth, format)
    assert 0.05 < (error / found).max() <= 1
    plain = pipeline_bound("unscale_latents", {"latents": x}, {"scaling_factor": 1.5305}, truth,
                           format)
    assert (error > plain).any()


def test_a_sum_that_stagnates_has_its_worst_case_only():
    """1000 ones in bfloat16: from 256 on nothing is added, which no chance averages out."""
    x, w = np.ones((1, 1000), "f4"), np.ones((1, 1000), "f4")
    found = bound("linear", [x, w], {}, np.array([[1000.0]]), format="bfloat16",
                  accumulate="bfloat16")
    assert found.likely[0, 0] >= 1000 - 256


def test_stagnation_asks_for_the_length_of_the_sums():
    """A group of 300 numbers in two channels: its mean may stagnate in bfloat16 (256)."""
    x, one = normal((1, 2, 150), 1), np.ones(2, "f4")
    options = {"groups": 1, "eps": 1e-5}
    truth, _ = truth_of("group_norm", (x, one, one), options)
    found = bound("group_norm", (x, one, one), options, truth, accumulate="bfloat16", given=True)
    np.testing.assert_allclose(found.deviation, found.worst, rtol=1e-6)  # no chance averages out


def test_a_new_map_is_bounded_by_what_it_declares(monkeypatch):
    """x sigmoid(x) / 2 + x / 2, in a module of a user: no bound is written for it by name."""
    monkeypatch.setattr("refsd.registry._ops", dict(OPS))
    monkeypatch.setattr("refsd.registry._kernels", {})

    @op("x (...) -> (...)", Map(roundings=EXP + 6, curvature=1), flops="6 * size")
    def half_silu(x):
        """x (sigmoid(x) + 1) / 2.   any shape -> the same"""
        return x * ((1 / (1 + np.exp(-x)) + 1) / 2)

    x = normal((999,), 1, 3)
    truth = half_silu(x.astype("f8"))
    assert max(shares(half_silu(x), truth, bound("half_silu", [x], {}, truth))) <= 1
    stored = round_to(x, "bfloat16")
    y = round_to(half_silu(stored), "bfloat16")
    likely, worst = shares(y, truth, bound("half_silu", [x], {}, truth, format="bfloat16"))
    assert 0.1 < likely <= 1 and worst <= 1


def test_running_sums_of_random_orders():
    """The formula is the mean over orders: for three terms all six can be written down."""
    z, orders = np.array([3.0, -1.0, 5.0]), [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1),
                                             (2, 1, 0)]
    partial = np.mean([np.sum(np.cumsum(z[list(o)])**2) for o in orders])
    wanted = P.u**2 / 3 * (partial + np.sum(z * z))
    got = running_sum(3, np.sum(z * z), z.sum(), P, orders=1)
    assert math.isclose(got, wanted, rel_tol=1e-12)


def test_outliers_take_three_times_the_mean_over_orders():
    """The largest and its opposite, first and last of 1000: all sums between are the largest."""
    z = np.zeros(1000)
    z[0], z[-1] = 1, -1
    worst = P.u**2 / 3 * np.sum(np.cumsum(z)**2)
    assert 0.99 < running_sum(1000, 2.0, 0.0, P) / worst < 1.01
    z[-1] = 0
    worst = P.u**2 / 3 * np.sum(np.cumsum(z)**2)
    assert 1 < running_sum(1000, 1.0, 1.0, P) / worst < 1.51


def test_a_mean_over_a_picture_with_a_bright_half():
    """What a running float32 sum of 30000 numbers above, then as many below the mean, does to it"""
    x = np.repeat(np.float32([1.1, -0.9]), 30000)[None] * (1 + normal((1, 60000), 1, 0.01))
    one, zero = np.ones(60000, "f4"), np.zeros(60000, "f4")
    truth, _ = truth_of("layer_norm", (x, one, zero), {"eps": 1e-6})
    mean = np.cumsum(x[0], dtype="f4")[-1] / np.float32(60000)
    d = x - mean
    y = d / np.sqrt(np.mean(d * d) + np.float32(1e-6))
    likely, _ = shares(y, truth, bound("layer_norm", (x, one, zero), {"eps": 1e-6}, truth))
    assert 0.01 < likely <= 1


def test_gamma_and_quantile():
    assert math.isclose(gamma(3, P), (1 - P.u)**-3 - 1, rel_tol=1e-6)
    assert np.isfinite(gamma(10**6, PRECISIONS["bfloat16"]))
    # 2 n exp(-lambda^2 / 2) = 1 - confidence
    assert math.isclose(2 * 50 * math.exp(-quantile(50, 0.99)**2 / 2), 0.01)


def test_confidence_and_refusals():
    x, w = normal((5, 640), 1), normal((7, 640), 2)
    truth = x.astype("f8") @ w.T
    low, high = (bound("linear", [x, w], {}, truth, confidence=c) for c in (0.9, 0.999999))
    assert isinstance(low, Bound) and (low.likely < high.likely).all()
    np.testing.assert_array_equal(low.worst, high.worst)
    for wrong, message in [({"confidence": 1}, "confidence is 1"), ({"format": "x"}, "format is")]:
        with pytest.raises(UsageError, match=message):
            bound("linear", [x, w], {}, truth, **wrong)
    with pytest.raises(UsageError, match="no bound for 'conv3d'"):
        bound("conv3d", [x, w], {}, truth)


def test_not_finite_truth_leaves_no_room():
    x = np.array([1.0, math.inf, math.nan])
    found = bound("silu", [x], {}, np.array([0.73, math.inf, math.nan]))
    assert found.worst[0] > 0 and not found.worst[1:].any() and not found.likely[1:].any()


def test_every_op_has_bounds_in_every_format():
    for name in OPS:
        args, options = calls(name)[0].build("float32")
        truth, _ = truth_of(name, args, options)
        for format in FORMATS:
            found = bound(name, args, options, truth, format=format)
            assert all(b.shape == truth.shape and (b >= 0).all() for b in found), (name, format)


def test_the_numbers_of_an_entry():
    x, w = normal((1, 8, 6, 6), 1), normal((4, 8, 3, 3), 2)
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "algorithm": "auto"}
    truth, _ = truth_of("conv2d", (x, w), options)
    found = tolerance.of("conv2d", {"x": x, "weight": w, "bias": None}, options, truth)
    assert set(found) == {"float32", "float16", "bfloat16", "int8"}
    allowed = bound("conv2d", (x, w), options, truth, format="bfloat16")
    assert found["bfloat16"]["likely"] == tolerance.rounded(allowed.likely.max())
    assert found["bfloat16"]["rms"] == tolerance.rounded(math.sqrt(np.mean(allowed.likely**2)))
    likely = [found["float32"][a]["likely"] for a in ("winograd2", "winograd4")]
    assert likely[0] < likely[1]
    halved = tolerance.of("conv2d", {"x": x, "weight": w, "bias": None},
                          options | {"stride": 2}, truth[:, :, ::2, ::2])
    assert "winograd2" not in halved["float32"]
    assert tolerance.of("embedding", {"ids": np.arange(3), "weight": w[0, 0]}, {},
                        np.asarray(w[0, 0], "f8"))["float32"]["worst"] == 0
    assert tolerance.of("to_bytes", {}, {}, np.zeros(3, "uint8")) == {}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_real_picture_stays_within(backend, cpu_winograd):
    """Activations are no random draw. One op of each shape of a step of the bundled model."""
    pipe = StableDiffusionPipeline.from_pretrained(backend=backend, dtype="float32")
    done, near = set(), []

    def look(op, inputs, options, output):
        if moves_data(op):
            return
        key = op, *(np.shape(value) for value in inputs.values())
        if key in done:
            return
        done.add(key)
        args = [value for value in inputs.values() if value is not None]
        truth, _ = truth_of(op, args, options)
        kind = None
        if op == "conv2d":
            kind = "im2col" if backend == "numpy" else agreement_bounds.algorithm(
                args, options, truth.shape)
        likely, worst = shares(output, truth, bound(op, args, options, truth, algorithm=kind))
        assert likely <= 1 and worst <= 1, f"{key} {options}: {likely:.3g}"
        near.append(likely >= 0.01)

    with watch(look):
        pipe("a red cone", num_inference_steps=1, generator=1, height=64, width=64)
    assert np.mean(near) >= 0.9 and len(near) > 90
