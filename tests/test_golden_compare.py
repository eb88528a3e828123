"""Verdicts: what is right, wrong, open, missing, and what the mistake looks like."""

import json
import math
import re

import numpy as np
import pytest
from golden_compare_samples import (
    IDS,
    NETWORK,
    SPREAD,
    B,
    W,
    X,
    Y,
    changed_at,
    compared,
    opened,
    right,
    verdict,
)
from scipy.special import fdtri

from refsd.errors import UsageError
from refsd.golden.comparing import compare as module
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.excess import beyond, where
from refsd.golden.comparing.limits import Accepted, _peak
from refsd.golden.comparing.report import sentence, what_is_wrong
from refsd.golden.packs.pack import Writer


def test_a_right_port(pack, tmp_path):
    found = compared(pack, tmp_path)
    assert found.first is None and found.counts == {
        "equal": 2, "explained": 2, "given": 3, "missing": 1}
    assert [v.entry.name for v in found.verdicts] == list(pack.entries)
    assert verdict(found, "unet/000/proj").kind == "op"
    assert verdict(found, "unet/000/mid_block").kind == "spread"
    # 5e-4 everywhere, give or take a rounding of float32 numbers below 4
    assert verdict(found, "unet/000/mid_block").times == pytest.approx(0.5, abs=4 * 2**-24 / 1e-3)
    assert sentence(found) == ("All 4 tensors are within the tolerance of float32, 2 of them "
                               "bit-exact; 1 of the pack's 5 is missing from the candidate.")


def test_an_op_on_inputs_of_the_pack_is_held_to_its_own_bound(pack, tmp_path):
    """16 products: lambda sqrt(n) u |x||w|, some 1e-6 here. 1e-4 is not explained in float32."""
    wrong = Y.copy()
    wrong[3, 2] += 1e-4
    found = compared(pack, tmp_path, **{"unet/000/proj": wrong})
    first = found.first
    assert (first.entry.name, first.status, first.kind, first.at) == (
        "unet/000/proj", "wrong", "op", (3, 2))
    assert 3 < first.times < 1000
    said = sentence(found)
    assert said.startswith("unet/000/proj (linear) is the first tensor that is wrong: at (3, 2) it "
                           f"is {float(wrong[3, 2]):.8g} where {float(Y[3, 2]):.8g} is right; ")
    assert said.endswith("times what float32 rounding allows for this op (too far off: 1 of 80 "
                         "elements, at (3, 2)).")
    found = compared(pack, tmp_path, format="bf16", **{"unet/000/proj": wrong})
    assert verdict(found, "unet/000/proj").status == "explained"
    assert found.counts["open"] == 1, "the spread is not known in bf16"


def test_the_reason_is_in_the_sentence(pack, tmp_path):
    found = compared(pack, tmp_path, **{"unet/000/proj": X @ W.T})
    assert [f.reason for f in found.first.findings][0] == "missing_bias"
    assert re.search(r"It looks like missing_bias: the bias was not added "
                     r"\(explains (99\.99|100) % of the error\)\.$", sentence(found))


def test_a_network_is_held_to_its_spread(pack, tmp_path):
    found = compared(pack, tmp_path, **{"unet/000/mid_block": NETWORK * np.float32(1.01)})
    assert found.first.entry.name == "unet/000/mid_block" and found.first.findings[0].reason == (
        "scale")
    assert "its rms error is 9." in sentence(found) or "its rms error is 1" in sentence(found)
    assert "what a right port in float32 differs by at this place" in sentence(found)


def test_a_single_wrong_element_is_wrong_however_many_are_right(tmp_path):
    """4 runs, confidence 0.9999: 5.23 times the largest error that was seen, here 2e-3."""
    assert _peak(4, 0.9999) == pytest.approx(5.23, abs=0.01)
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", NETWORK, op="block", stage="unet", step=0, tolerance={
            "float32": {"spread": {"rms": 1e-3, "max": 2e-3, "runs": 4, "confidence": 0.9999}}})
    for by, status in ((5.2, "explained"), (5.3, "wrong")):
        wrong = changed_at(NETWORK, (1, 2, 3, 4), NETWORK[1, 2, 3, 4] + np.float32(2e-3 * by))
        (found,) = opened(tmp_path, {"unet/000/x": wrong}).verdicts
        assert found.status == status, by
    assert (found.kind, found.at, found.beyond) == ("largest", (1, 2, 3, 4), 1)
    assert found.where == "1 of 384 elements, at (1, 2, 3, 4)"
    assert "that is 1.01 times what any element of a right port in float32 differs by at this " in (
        what_is_wrong(found, "float32"))


def test_a_race_in_one_element_of_a_convolution(tmp_path):
    """Off by 1 where right ports differ by up to 0.119: of the root mean square that is a sixth."""
    x = np.random.default_rng(6).standard_normal((2, 64, 16, 16)).astype("float32")
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/conv1", x, op="block", stage="unet", step=0, tolerance={
            "bfloat16": {"spread": {"rms": 0.0326, "max": 0.119, "runs": 4, "confidence": 0.9999}}})
    wrong = changed_at(x, (1, 40, 3, 5), x[1, 40, 3, 5] + np.float32(1))
    found = opened(tmp_path, {"unet/000/conv1": wrong}, format="bf16")
    assert found.verdicts[0].metrics.rms < 0.0326 / 5
    assert "(too far off: 1 of 32,768 elements, at (1, 40, 3, 5))" in sentence(found)


@pytest.mark.parametrize("runs, confidence", [(2, 0.9999), (4, 0.9999), (8, 0.99), (4, 0.9)])
def test_one_element_alone_stays_within_the_limit_of_its_runs(runs, confidence):
    """An element of its own: what runs + 1 normal errors give, as often as the confidence says."""
    random = np.random.default_rng(runs)
    seen, new = np.abs(random.standard_normal((runs, 40_000))), np.abs(
        random.standard_normal(40_000))
    factor = fdtri(1, runs, confidence) ** 0.5  # of errors in one direction, as these have
    share = float((new <= seen.max(axis=0) * factor * _peak(runs, confidence)).mean())
    assert share >= confidence - 4 * ((1 - confidence) / 40_000) ** 0.5


@pytest.mark.parametrize("places, said", [
    ((0, 0, 0, 0), "1 of 384 elements, at (0, 0, 0, 0)"),
    (np.s_[0, 1, 2, :5], "5 of 384 elements, in a row: [0, 1, 2, 0:5]"),
    (np.s_[:, 1, 2, 3], "2 of 384 elements, in a row: [:, 1, 2, 3]"),
    (np.s_[1, 3, :, :], "48 of 384 elements, in a tile: [1, 3, :, :]"),
    (np.s_[1, :, :4, :3], "48 of 384 elements, in a tile: [1, :, 0:4, 0:3]"),
    (np.s_[1, 0, ::7, ::5], "4 of 384 elements, within [1, 0, :, :]"),
    (np.s_[::1, ::3, ::7, ::5], "16 of 384 elements"),
    (np.s_[:], "all 384 elements"),
])
def test_where_wrong_elements_lie(places, said):
    got = NETWORK.copy()
    got[places] += 1
    assert where(beyond(NETWORK, got, 0.5)) == said
    got[places] = np.nan
    assert where(beyond(NETWORK, got, np.inf)) == said


def test_without_a_tolerance_nothing_is_called_right_or_wrong(pack, tmp_path):
    found = compared(pack, tmp_path, **{"unet/000/conv_out": 2 * NETWORK + np.float32(1e-6)})
    assert found.first.status == "open"
    assert "the pack has no tolerance of float32 for it" in sentence(found)
    assert compared(pack, tmp_path, **{"unet/000/conv_out": 2 * NETWORK}).first is None


def test_an_accepted_tolerance_takes_the_place_of_the_derived_ones(pack, tmp_path):
    # 1e-6 is added to numbers below 8, where float32 is off by up to 2^-22 more
    changed = {"unet/000/conv_out": 2 * NETWORK + np.float32(1e-6)}
    assert compared(pack, tmp_path, accepted=Accepted(2e-3), **changed).first is None
    found = compared(pack, tmp_path, accepted=Accepted(0, 1e-9), **changed)
    assert found.first.entry.name == "unet/000/proj" and found.first.kind == "accepted"
    assert "times the tolerance that was given" in sentence(found)


def test_what_no_op_made_is_exact(pack, tmp_path):
    found = compared(pack, tmp_path, **{"tokens/000/ids": IDS + [[0, 1, 0]]})
    assert found.first.entry.name == "tokens/000/ids" and found.first.at == (0, 1)
    assert found.first.times == math.inf and "it is 321 where 320 is right" in sentence(found)
    found = compared(pack, tmp_path, **{"tokens/000/ids": IDS.astype("int32")})
    assert found.first is None
    assert verdict(found, "tokens/000/ids").notes == (
        "dtype int32, the golden tensor is int64",)


def test_integers_given_as_floats_are_a_mistake_though_they_are_equal(pack, tmp_path):
    found = compared(pack, tmp_path, **{"tokens/000/ids": IDS.astype("float32")})
    assert found.first.status == "dtype"
    assert sentence(found) == "tokens/000/ids holds float32, wanted int64."


def test_only_some_and_missing_ones(pack, tmp_path):
    found = compared(pack, tmp_path, only=["tokens/*", "unet/*/proj"])
    assert [v.entry.name for v in found.verdicts] == ["tokens/000/ids", "unet/000/proj"]
    assert found.extra == []
    found = compared(pack, tmp_path, only=["tokens/*", "unet/*/prj"])
    assert found.ok and found.remarks == ("--only 'unet/*/prj' fits no tensor of the pack",)
    found = compared(pack, tmp_path, whole=True)
    assert sentence(found) == "unet/000/conv_out (block) is missing from the candidate."
    assert not found.ok
    assert compared(pack, tmp_path, whole=True, **{"unet/000/conv_out": 2 * NETWORK}).ok
    with pytest.raises(UsageError, match="no tensor fits unet/002"):
        compared(pack, tmp_path, only=["unet/002/*"])


def test_extra_ones_and_none_at_all(pack, tmp_path):
    np.savez(tmp_path / "x.npz", mine=X, **right())
    with Candidate.open(tmp_path / "x.npz") as candidate:
        assert compare(pack, candidate).extra == ["mine"]
    np.savez(tmp_path / "y.npz", mine=X)
    with Candidate.open(tmp_path / "y.npz") as candidate, pytest.raises(
            UsageError, match="none of the 8 tensors is there. The pack has 'tokens/000/ids', the "
                              "candidate 'mine'; give a name map"):
        compare(pack, candidate)


def test_a_layout_that_is_given_is_undone(pack, tmp_path):
    data = np.ascontiguousarray(NETWORK.transpose(0, 2, 3, 1))
    found = compared(pack, tmp_path, layout="nhwc", **{"unet/000/mid_block": data})
    assert verdict(found, "unet/000/mid_block").status == "equal"


def test_axes_of_one_are_no_mistake(pack, tmp_path):
    found = compared(pack, tmp_path, **{"unet/000/proj": Y[None, None]})
    assert verdict(found, "unet/000/proj").status == "equal"
    assert verdict(found, "unet/000/proj").notes == (
        "shape (1, 1, 5, 16), the golden tensor is (5, 16)",)


def test_an_index_with_a_shape_that_is_neither_is_told_which_it_may_give(pack, tmp_path):
    (tmp_path / "x.bin").write_bytes(NETWORK.tobytes())
    (tmp_path / "index.json").write_text(json.dumps({"tensors": {"unet/000/mid_block": {
        "file": "x.bin", "shape": [2, 4, 6, 8], "dtype": "float32", "layout": "nhwc"}}}))
    with Candidate.open(tmp_path) as candidate:
        found = verdict(compare(pack, candidate), "unet/000/mid_block")
    assert found.status == "shape" and found.notes[1] == (
        "its index gives the shape (2, 4, 6, 8) with the layout nhwc; it is to give the logical "
        "one, (2, 4, 8, 6), or (2, 8, 6, 4) as it is stored")


SPECIAL = np.array([[np.nan, np.inf, 0.0, 1.0]], "float32")

# golden tensor, candidate, status, what is said
FAULTS = {
    "NaN for a number": (NETWORK, changed_at(NETWORK, (1, 2, 3, 4), np.nan), "wrong",
                         "looks like nan: NaN where the golden number is none"),
    "an infinity for a number": (NETWORK, changed_at(NETWORK, (1, 2, 3, 4), np.inf), "wrong",
                                 "looks like overflow: infinite"),
    "zero for NaN": (SPECIAL, changed_at(SPECIAL, (0, 0), 0), "wrong",
                     "looks like nan_masked: a finite number where the golden one is NaN"),
    "the infinity's sign": (SPECIAL, changed_at(SPECIAL, (0, 1), -np.inf), "wrong",
                            "looks like inf_sign: an infinity of the other sign"),
    "a NaN hidden as zero": (NETWORK, changed_at(NETWORK, (1, 2, 3, 4), 0), "wrong",
                             "looks like nan_masked: 1 of 384 numbers are exactly 0, the first at "
                             r"\(1, 2, 3, 4\)"),
    "integers": (NETWORK, np.rint(NETWORK).astype("int32"), "dtype", "holds int32, wanted float32"),
    "NHWC": (NETWORK, NETWORK.transpose(0, 2, 3, 1), "shape",
             r"has the shape 2 x 8 x 6 x 4, wanted 2 x 4 x 8 x 6. It looks like nhwc: .*--layout "
             "NHWC"),
    "the scaling factor": (NETWORK, NETWORK * np.float32(0.18215), "wrong",
                           "looks like missing_scaling_factor: .*0.18215"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_hint(tmp_path, name):
    golden, wrong, status, said = FAULTS[name]
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", golden, op="block", stage="unet", step=0,
                   tolerance={"float32": {"spread": {"rms": 1e-5, "max": 1}}})
    found = opened(tmp_path, {"unet/000/x": wrong})
    assert found.first.status == status
    assert re.search(said, sentence(found)), sentence(found)


def test_equal_specials_are_equal_and_named(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", SPECIAL, op="block", stage="unet", step=0)
    found = opened(tmp_path, {"unet/000/x": changed_at(SPECIAL, (0, 2), -0.0)})
    assert found.first is None and found.verdicts[0].notes == (
        "NaN in both in 1 place", "-0.0 for 0.0, or the reverse, in 1 place")


def test_the_scaling_factor_of_the_model(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={"scaling_factor": 0.4}) as writer:
        writer.add("decode/x", NETWORK, op="block", stage="decode")
    first = opened(tmp_path, {"decode/x": NETWORK * np.float32(0.4)}).first
    assert first.findings[0].reason == "missing_scaling_factor"


def test_without_the_model_the_reason_is_fitted_and_that_is_said(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={"name": "/gone"}) as writer:
        writer.add("unet/000/a:x", X, stage="unet", step=0)
        writer.add("unet/000/a", Y, op="linear", stage="unet", step=0, inputs={
            "x": "tensor:unet/000/a:x", "weight": "weight:unet.a.weight",
            "bias": "weight:unet.a.bias"}, tolerance=SPREAD)
    first = opened(tmp_path, {"unet/000/a": Y - B}).first
    assert first.findings[0].reason == "missing_bias"  # one constant for each channel
    assert first.notes[0].startswith("the op could not be computed to see why: the pack was made "
                                     "with the model '/gone'")


def test_inputs_that_the_op_does_not_take_end_nothing(tmp_path):
    """Token ids beyond the table: the ids are wrong, and so is what was made of them."""
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("tokens/000/ids", IDS % 16, stage="tokens", step=0)
        writer.add("text/000/e:weight", W, stage="text", step=0)
        writer.add("text/000/e", W[IDS % 16], op="embedding", stage="text", step=0, inputs={
            "ids": "tensor:tokens/000/ids", "weight": "tensor:text/000/e:weight"})
    found = opened(tmp_path, {"tokens/000/ids": IDS, "text/000/e": W[:3][None]})
    assert [v.status for v in found.verdicts] == ["wrong", "given", "wrong"]
    assert "it does not take the port's own inputs" in found.verdicts[2].notes[-1]


@pytest.mark.parametrize("format, dtype, noted", [
    ("bf16", "float32", False), ("fp16", "float16", False), ("fp16", "float64", True),
    ("float32", "float16", True), ("tf32", "float32", False)])
def test_the_type_of_the_format_is_not_worth_a_note(pack, tmp_path, format, dtype, noted):
    found = compared(pack, tmp_path, format=format, **{
        "unet/000/mid_block": NETWORK.astype(dtype)})
    assert bool(verdict(found, "unet/000/mid_block").notes) == noted or "spread" in (
        verdict(found, "unet/000/mid_block").notes[0])


def test_the_step_before_is_recognised(pack, tmp_path):
    found = compared(pack, tmp_path, **{"unet/001/conv_out": 2 * NETWORK})
    assert found.first.findings[0].reason == "stale"


def test_what_would_take_too_much_memory_is_not_read(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 1000)
    found = compared(pack, tmp_path, **{"unet/000/proj": np.zeros((500, 160), "float32")})
    assert found.first.status == "shape" and found.first.notes == (
        "320,000 bytes, far more than its shape takes: not read",)


def test_few_tensors_are_looked_into(tmp_path):
    """In a run what fails after the first fails because of it."""
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        for i in range(5):
            writer.add(f"unet/00{i}/x", NETWORK, stage="unet", step=i, op="block")
    found = opened(tmp_path, {f"unet/00{i}/x": -NETWORK for i in range(5)})
    assert [bool(v.findings) for v in found.verdicts] == [True, True, True, False, False]
