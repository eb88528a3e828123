"""The measures against cases worked out by hand."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from refsd.errors import UsageError
from refsd.golden.comparing import metrics
from refsd.golden.comparing.metrics import measure, spacing

NAN, INF = math.nan, math.inf
ULP = 2.0**-23  # of float32 at 1


def of(golden, candidate, **options):
    return measure(np.array(golden, "float32"), np.array(candidate, "float32"), **options)


# errors 0, 1, 2, 0 against 1, 2, 4, 8
BY_HAND = of([[1, 2], [4, 8]], [[1, 3], [2, 8]])


@pytest.mark.parametrize("name, value", [
    ("count", 4),
    ("max_abs", 2), ("max_abs_index", (1, 0)),
    ("max_rel", 0.5), ("max_rel_index", (0, 1)),
    # one unit at 2 is 2 ulp(1), at 4 it is 4 ulp(1): 1 / 2 of 2^23 both times, the first is named
    ("max_ulp", 2.0**22), ("max_ulp_index", (0, 1)),
    ("rms", math.sqrt(5 / 4)),
    ("nmse", 5 / 85),
    ("cosine", 79 / math.sqrt(85 * 78)),  # 1 + 6 + 8 + 64; 1 + 9 + 4 + 64
    # deviations (-2.75, -1.75, .25, 4.25) and (-2.5, -.5, -1.5, 4.5)
    ("pcc", 26.5 / math.sqrt(28.75 * 29)),
    ("needed", 2 / 5),  # 1 / (1 + 2) and 2 / (1 + 4)
    ("nonfinite", 0), ("nonfinite_index", None), ("nan_both", 0), ("inf_sign", 0),
    ("zero_sign", 0),
])
def test_by_hand(name, value):
    found = getattr(BY_HAND, name)
    # at most 4 roundings of float64 in any of these
    assert found == value or abs(found - value) <= 4 * 2.0**-53 * abs(value)


def test_equal_tensors():
    found = of([1, 2, 3], [1, 2, 3])
    assert (found.max_abs, found.max_rel, found.max_ulp, found.rms, found.nmse, found.needed) == (
        0,) * 6
    assert found.pcc == found.cosine == 1
    assert of([1, 2, 3], [1, 2, 3 + 2 * ULP]).cosine < 1


@pytest.mark.parametrize("golden, candidate, nonfinite, nan_both, inf_sign, zero_sign, index", [
    ([NAN, 1], [NAN, 1], 0, 1, 0, 0, None),
    ([1, 2, 3], [1, NAN, 3], 1, 0, 0, 0, (1,)),
    ([1, NAN], [1, 0], 1, 0, 0, 0, (1,)),
    ([INF, -INF], [INF, -INF], 0, 0, 0, 0, None),
    ([INF, 1], [-INF, 1], 1, 0, 1, 0, (0,)),
    ([1, INF], [1, 3e38], 1, 0, 0, 0, (1,)),
    ([0.0, 1], [-0.0, 1], 0, 0, 0, 1, None),
    ([INF, 1], [NAN, 1], 1, 0, 0, 0, (0,)),
])
def test_what_is_not_finite_is_counted_and_not_averaged(golden, candidate, nonfinite, nan_both,
                                                        inf_sign, zero_sign, index):
    found = of(golden, candidate)
    assert (found.nonfinite, found.nan_both, found.inf_sign, found.zero_sign) == (
        nonfinite, nan_both, inf_sign, zero_sign)
    assert found.nonfinite_index == index
    assert found.max_abs == 0 and found.rms == 0


def test_an_error_beside_a_nan_is_still_seen():
    found = of([NAN, 1, 2], [NAN, 1, 5])
    assert (found.max_abs, found.max_abs_index, found.rms) == (3, (2,), math.sqrt(9 / 2))


def test_correlation_does_not_see_scale_and_offset_and_does_not_exist_for_constants():
    found = of([1, 2, 3], [7, 9, 11])  # 2 x + 5
    assert found.pcc == pytest.approx(1, abs=1e-15) and found.nmse > 1
    assert of([0.1] * 7, [1, 2, 3, 4, 5, 6, 7]).pcc is None
    assert of([0, 0], [0, 0]).cosine is None and of([0, 0], [0, 0]).nmse == 0
    assert of([0, 0], [0, 1]).nmse == INF and of([0, 0], [0, 1]).max_rel == INF


@pytest.mark.parametrize("x, format, unit", [
    (1.0, "float32", ULP), (1.999, "float32", ULP), (2.0, "float32", 2 * ULP),
    (-3.0, "float32", 2 * ULP), (0.0, "float32", 2.0**-149), (1e-42, "float32", 2.0**-149),
    (1.0, "fp16", 2.0**-10), (1.0, "bf16", 2.0**-7), (1.0, "float64", 2.0**-52),
    (2.0**-24, "float16", 2.0**-24), (1.0, "int8", ULP),
])
def test_units_in_the_last_place(x, format, unit):
    assert spacing(np.array(x), format) == unit


def test_units_of_neighbouring_numbers():
    x = np.float32(0.7)
    for steps in (1, 3):
        y = x
        for _ in range(steps):
            y = np.nextafter(y, np.float32(1))
        assert measure(np.array([x]), np.array([y])).max_ulp == steps
    assert of([1], [1 + 2.0**-7], format="bfloat16").max_ulp == 1


def test_pieces_give_what_the_whole_gives(monkeypatch):
    random = np.random.default_rng(1)
    golden = random.standard_normal((7, 11, 13)).astype("float32") + 100
    candidate = golden + random.standard_normal(golden.shape).astype("float32")
    candidate[3, 2, 1] = NAN
    whole = measure(golden, candidate)
    monkeypatch.setattr(metrics, "PIECE", 17)
    pieces = measure(golden, candidate)
    for name, value in whole.as_json().items():
        # sums of about 1000 numbers in another order: 1000 roundings of float64 at most, twice
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=2e3 * 2.0**-53), (
            name, value)


def test_integers_and_empty_and_scalar_tensors():
    found = measure(np.array([3, 250], "uint8"), np.array([5, 249], "uint8"))
    assert (found.max_abs, found.max_abs_index) == (2, (0,))
    assert of([], []).count == 0 and of([], []).max_abs_index is None
    assert of(1.0, 2.0).max_abs_index == ()


def test_json_can_hold_it():
    found = of([0, 1], [1, 1]).as_json()
    assert json.loads(json.dumps(found, allow_nan=False))["max_rel"] == "inf"


def test_shapes_must_agree():
    with pytest.raises(UsageError, match=r"candidate is \(3,\), the golden tensor \(2,\)"):
        of([1, 2], [1, 2, 3])


def test_memory_does_not_grow_with_the_tensor():
    x = np.ones(1 << 21, "float32")  # 16 MB in float64, of which a dozen are made
    tracemalloc.start()
    measure(x, x)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 12 * 8 * metrics.PIECE  # 24 MB, whatever the tensor
