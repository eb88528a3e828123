"""Comparing candidates with packs: verdicts, reasons, reports, the command, memory."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import chaos
import numpy as np
import pytest

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden import compare as module
from refsd.golden.candidate import Candidate
from refsd.golden.compare import compare
from refsd.golden.errormap import error_map
from refsd.golden.limits import Accepted
from refsd.golden.pack import Pack, Writer
from refsd.golden.report import as_json, markdown, sentence, text
from refsd.ops.conv import conv2d

RANDOM = np.random.default_rng(4)
X, W, B = (RANDOM.standard_normal(shape).astype("float32") for shape in ((5, 16), (16, 16), (16,)))
Y = (X.astype("float64") @ W.T.astype("float64") + B).astype("float32")
IDS = np.array([[49406, 320, 49407]])
# Four right ports would be off by about 1e-3 in the network's tensor.
SPREAD = {"float32": {"likely": 1e-6, "spread": {"rms": 1e-3, "max": 4e-3, "runs": 4,
                                                 "confidence": 0.99}}}
NETWORK = RANDOM.standard_normal((2, 4, 8, 6)).astype("float32")


def write_pack(folder, kind="run"):
    about = {"recipe": {}, "model": {}, "kind": kind}
    with Writer(folder, **about) as pack:
        pack.add("tokens/000/ids", IDS, stage="tokens", step=0)
        pack.add("unet/000/proj:x", X, stage="unet", step=0)
        pack.add("unet/000/proj:weight", W, stage="unet", step=0)
        pack.add("unet/000/proj:bias", B, stage="unet", step=0)
        pack.add("unet/000/proj", Y, op="linear", stage="unet", step=0,
                 inputs={n: f"tensor:unet/000/proj:{n}" for n in ("x", "weight", "bias")})
        pack.add("unet/000/mid_block", NETWORK, op="block", stage="unet", step=0,
                 tolerance=SPREAD)
        pack.add("unet/000/conv_out", 2 * NETWORK, op="block", stage="unet", step=0)
        pack.add("unet/001/conv_out", 3 * NETWORK, op="block", stage="unet", step=1,
                 tolerance=SPREAD)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack") / "p")


@pytest.fixture
def pack(folder):
    with Pack.open(folder) as found:
        yield found


def right():
    """What a port without a mistake could give."""
    return {"tokens/000/ids": IDS, "unet/000/proj": np.nextafter(Y, np.float32(9)),
            "unet/000/mid_block": NETWORK + np.float32(5e-4), "unet/001/conv_out": 3 * NETWORK}


def compared(pack, tmp_path, *, file="c.npz", dtype=None, **options):
    """The comparison of the candidate that `right` makes, with some of its tensors changed."""
    changed = {key: options.pop(key) for key in list(options) if "/" in key}
    arrays = {**right(), **changed}
    np.savez(tmp_path / file, **{key: a for key, a in arrays.items() if a is not None})
    with Candidate.open(tmp_path / file, layout=options.pop("layout", None)) as candidate:
        return compare(pack, candidate, **options)


def verdict(found, name):
    return next(v for v in found.verdicts if v.entry.name == name)


def test_a_right_port(pack, tmp_path):
    found = compared(pack, tmp_path)
    assert found.first is None and found.counts == {
        "equal": 2, "explained": 2, "missing": 4}
    assert [v.entry.name for v in found.verdicts] == list(pack.entries)
    assert verdict(found, "unet/000/proj").kind == "op"
    assert verdict(found, "unet/000/mid_block").kind == "spread"
    # 5e-4 everywhere, give or take a rounding of float32 numbers below 4
    assert verdict(found, "unet/000/mid_block").times == pytest.approx(0.5, abs=4 * 2**-24 / 1e-3)
    assert sentence(found) == ("All 4 tensors are explained by float32 rounding, 2 of them equal "
                               "to the bit; 4 of the pack's are missing from the candidate.")


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
    assert "times what float32 rounding explains for this op." in said
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


def test_a_format_without_a_spread_is_held_to_a_coarser_ones(tmp_path):
    """Every rounding of float16 is within one of bfloat16; of int8 and bfloat16 neither is."""
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", NETWORK, op="block", stage="unet", step=0, tolerance={
            "float32": {"spread": {"rms": 1e-6, "max": 1}},
            "bfloat16": {"spread": {"rms": 1e-2, "max": 1}}})
        writer.add("unet/000/y", NETWORK, op="block", stage="unet", step=0, tolerance={
            "float16": {"spread": None}, "bfloat16": {"spread": {"rms": 1e-2, "max": 1}}})
    wrong = NETWORK + np.float32(5e-3)
    np.savez(tmp_path / "c.npz", **{"unet/000/x": wrong, "unet/000/y": wrong})
    found = {}
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        for format in ("float32", "float16", "bfloat16", "int8"):
            found[format] = compare(pack, candidate, format=format).verdicts
    assert {format: v[0].status for format, v in found.items()} == {
        "float32": "wrong", "float16": "explained", "bfloat16": "explained", "int8": "open"}
    assert found["float16"][0].notes == (
        "held to the spread of bfloat16: the pack has none of float16",)
    assert found["bfloat16"][0].notes == () and found["float16"][1].status == "open"


@pytest.mark.parametrize("odd", [{"float32": 3}, {"float32": {"likely": "much", "spread": 2}},
                                 {"float32": {"spread": {"rms": "little", "max": 1}}},
                                 {"word": {"spread": {"rms": 1, "max": 1}}}])
def test_a_tolerance_that_makes_no_sense_is_none(tmp_path, odd):
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", X, op="block", stage="unet", step=0, tolerance=odd)
    np.savez(tmp_path / "c.npz", **{"unet/000/x": X + 1})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        assert compare(pack, candidate).first.status == "open"


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
    found = compared(pack, tmp_path, whole=True)
    assert found.first.entry.name == "unet/000/proj:x"
    assert sentence(found).startswith("unet/000/proj:x is missing from the candidate. 3 more of 4")
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


def changed_at(x, place, value):
    x = x.copy()
    x[place] = value
    return x


SPECIAL = np.array([[np.nan, np.inf, 0.0, 1.0]], "float32")

# ROBUSTNESS row 46: golden tensor, candidate, status, what is said
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
    "half": (NETWORK, NETWORK.astype("float16"), "wrong", "looks like fp16_rounding"),
    "NHWC": (NETWORK, NETWORK.transpose(0, 2, 3, 1), "shape",
             r"has the shape 2 x 8 x 6 x 4, wanted 2 x 4 x 8 x 6. It looks like nhwc: .*--layout "
             "NHWC"),
    "NHWC's bytes": (NETWORK, NETWORK.transpose(0, 2, 3, 1).reshape(2, 4, 8, 6), "wrong",
                     "looks like nhwc: it looks like NHWC that was dumped as if it were NCHW"),
    "transposed": (NETWORK, NETWORK.swapaxes(2, 3), "shape", "looks like transposed"),
    "a crop": (NETWORK, NETWORK[..., 1:], "shape", "looks like off_by_one: it is a crop"),
    "a shift": (NETWORK, np.roll(NETWORK, 1, axis=3), "wrong",
                r"looks like off_by_one: it is moved by \+1 along axis 3"),
    "the scaling factor": (NETWORK, NETWORK * np.float32(0.18215), "wrong",
                           "looks like missing_scaling_factor: .*0.18215"),
    "an offset": (NETWORK, NETWORK + np.float32(0.5), "wrong",
                  r"looks like offset: it is the golden tensor and \+0.5 everywhere"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_hint(tmp_path, name):
    golden, wrong, status, said = FAULTS[name]
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", golden, op="block", stage="unet", step=0,
                   tolerance={"float32": {"spread": {"rms": 1e-5, "max": 1}}})
    np.savez(tmp_path / "c.npz", **{"unet/000/x": wrong})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        found = compare(pack, candidate)
    assert found.first.status == status
    assert re.search(said, sentence(found)), sentence(found)


def test_equal_specials_are_equal_and_named(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("unet/000/x", SPECIAL, op="block", stage="unet", step=0)
    np.savez(tmp_path / "c.npz", **{"unet/000/x": changed_at(SPECIAL, (0, 2), -0.0)})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        found = compare(pack, candidate)
    assert found.first is None and found.verdicts[0].notes == (
        "NaN in both in 1 place", "-0.0 for 0.0, or the reverse, in 1 place")


def test_the_smallest_numbers_may_be_off_by_one(tmp_path):
    """e^-93 is subnormal in float32: whatever its roundings, they are of whole units of 2^-149."""
    x = np.array([[0, -93, -1, -50]], "float32")
    share = np.exp(x.astype("float64")) / np.exp(x.astype("float64")).sum()
    with Writer(tmp_path / "p", recipe={}, model={}, kind="ops") as writer:
        writer.add("ops/softmax/a:x", x, stage="ops")
        writer.add("ops/softmax/a", share, op="softmax", stage="ops", options={"axis": -1},
                   inputs={"x": "tensor:ops/softmax/a:x"})
    near = np.float32(share) + np.array([[0, 1.5 * 2.0**-149, 0, 0]]).astype("float32")
    np.savez(tmp_path / "c.npz", **{"ops/softmax/a": near})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        found = compare(pack, candidate)
    assert found.counts == {"missing": 1, "explained": 1}
    assert found.verdicts[1].metrics.max_ulp >= 1


def test_a_convolution_by_winograds_tiles_is_explained_and_said_to_be_one(tmp_path):
    random = np.random.default_rng(3)
    given = {"x": random.standard_normal((1, 64, 16, 16)).astype("float32"),
             "weight": random.standard_normal((8, 64, 3, 3)).astype("float32")}
    wide = [array.astype("float64") for array in given.values()]
    with Writer(tmp_path / "p", recipe={}, model={}, kind="ops") as writer:
        for name, array in given.items():
            writer.add(f"ops/conv2d/a:{name}", array, stage="ops")
        writer.add("ops/conv2d/a", conv2d(*wide, padding=1), op="conv2d", stage="ops",
                   options={"padding": 1}, inputs={n: f"tensor:ops/conv2d/a:{n}" for n in given})
    by_tiles = conv2d(*given.values(), padding=1, algorithm="winograd4")
    for candidate, status in ((by_tiles, "explained"), (1.0001 * by_tiles, "wrong")):
        np.savez(tmp_path / "c.npz", **{"ops/conv2d/a": candidate.astype("float32")})
        with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as opened:
            found = compare(pack, opened).verdicts[-1]
        assert found.status == status
        assert any("Winograd's" in note for note in found.notes) == (status == "explained")


def test_a_byte_may_be_the_next_only_where_the_picture_is_at_the_middle_of_two(tmp_path):
    picture = np.linspace(0, 1, 999, dtype="float32").reshape(1, 9, 37, 3)
    picture[0, 0, 0, 0] = (100.5 + 1e-4) / 255
    pixels = np.rint(255 * picture.astype("float64")).astype("uint8")
    spread = {"float32": {"spread": {"rms": 1e-6, "max": 3e-6}}}  # 255 x is off by 8e-4
    with Writer(tmp_path / "p", recipe={}, model={}) as writer:
        writer.add("picture/image", picture, op="block", stage="picture", tolerance=spread)
        writer.add("picture/pixels", pixels, op="to_bytes", stage="picture",
                   inputs={"x": "tensor:picture/image"})

    def first(candidate):
        np.savez(tmp_path / "c.npz", **{"picture/image": picture, "picture/pixels": candidate})
        with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as opened:
            return compare(pack, opened).first

    assert first(changed_at(pixels, (0, 0, 0, 0), 100)) is None
    assert first(changed_at(pixels, (0, 0, 0, 0), 99)).times == 2
    assert first(changed_at(pixels, (0, 1, 0, 0), pixels[0, 1, 0, 0] + 1)).at == (0, 1, 0, 0)
    cut = first(np.floor(255 * picture).astype("uint8"))
    assert cut.kind == "bytes" and cut.findings[0].reason == "truncated"


def test_the_scaling_factor_of_the_model(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={"scaling_factor": 0.4}) as writer:
        writer.add("decode/x", NETWORK, op="block", stage="decode")
    np.savez(tmp_path / "c.npz", **{"decode/x": NETWORK * np.float32(0.4)})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        assert compare(pack, candidate).first.findings[0].reason == "missing_scaling_factor"


def test_without_the_model_the_reason_is_fitted_and_that_is_said(tmp_path):
    with Writer(tmp_path / "p", recipe={}, model={"name": "/gone"}) as writer:
        writer.add("unet/000/a:x", X, stage="unet", step=0)
        writer.add("unet/000/a", Y, op="linear", stage="unet", step=0, inputs={
            "x": "tensor:unet/000/a:x", "weight": "weight:unet.a.weight",
            "bias": "weight:unet.a.bias"}, tolerance=SPREAD)
    np.savez(tmp_path / "c.npz", **{"unet/000/a": Y - B})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        first = compare(pack, candidate).first
    assert first.findings[0].reason == "missing_bias"  # one constant for each channel
    assert first.notes[0].startswith("the op could not be computed to see why: the pack was made "
                                     "with the model '/gone'")


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
    np.savez(tmp_path / "c.npz", **{f"unet/00{i}/x": -NETWORK for i in range(5)})
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "c.npz") as candidate:
        found = compare(pack, candidate)
    assert [bool(v.findings) for v in found.verdicts] == [True, True, True, False, False]


def test_error_maps():
    golden, got = np.zeros((2, 3, 200, 130)), np.zeros((2, 3, 200, 130))
    got[1, 2, 199, 0], got[0, 0, 0, 129] = -3, np.nan
    found = error_map(golden, got)
    assert found.values.shape == (64, 64) and found.axes == (2, 3)
    assert found.values[63, 0] == 3 and np.isnan(found.values[0, 63])
    assert np.nansum(found.values) == 3
    assert error_map(np.zeros(5), np.ones(5)).values.tolist() == [[1] * 5]
    assert error_map(np.zeros((7, 2, 5)), np.ones((7, 2, 5))).axes == (0, 2)
    assert error_map(np.array(1.0), np.array(2.0)) is None
    assert error_map(np.array([np.inf, 1]), np.array([np.inf, 1])).values.tolist() == [[0, 0]]


# Reports


@pytest.fixture
def failing(pack, tmp_path):
    wrong = {"unet/000/proj": X @ W.T, "unet/000/mid_block": changed_at(
        NETWORK, (0, 0, 0, 0), np.nan), "<b>`|mine": X}
    return compared(pack, tmp_path, maps=True, **{k: v for k, v in wrong.items() if "/" in k})


def test_text(failing):
    lines = list(text(failing))
    assert lines[0] == sentence(failing)
    table = {line.split()[-1]: line.split() for line in lines[3:lines.index("", 2)]}
    assert table["unet/000/proj"][0] == "WRONG" and "unet/001/conv_out" not in table
    assert any(line.startswith("unet/001") is False and "unet/001/conv_out" in line
               for line in text(failing, everything=True))
    # a likeness is cut off, never rounded up to one
    assert table["unet/000/proj"][7] < "1.0"


def test_json(failing):
    found = json.loads(json.dumps(as_json(failing), allow_nan=False))
    assert (found["ok"], found["first"], found["schema"]) == (False, "unet/000/proj", 1)
    by_name = {one["name"]: one for one in found["tensors"]}
    proj = by_name["unet/000/proj"]
    assert proj["status"] == "wrong" and not proj["ok"] and proj["op"] == "linear"
    assert proj["findings"][0]["reason"] == "missing_bias"
    assert proj["metrics"]["count"] == 80 and proj["metrics"]["max_abs"] == pytest.approx(
        float(np.abs(B).max()), abs=1e-5)
    assert by_name["unet/000/mid_block"]["times"] == "inf"
    assert by_name["unet/000/conv_out"]["metrics"] is None


def test_markdown(failing):
    page = markdown(failing)
    assert "| WRONG |" in page and "## `unet/000/proj`" in page
    cells = {line.count("|") - line.count("\\|") for line in page.splitlines() if line[:1] == "|"}
    assert cells == {12}


def test_junit(failing, tmp_path):
    from refsd.golden.junit import junit

    root = ElementTree.fromstring(junit(failing))
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("8", "2", "4")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    failure = cases["unet/000/proj"].find("failure")
    assert failure.get("type") == "wrong" and "missing_bias" in failure.get("message")
    assert cases["unet/000/conv_out"].find("skipped") is not None
    assert cases["tokens/000/ids"].find("failure") is None


class Page(HTMLParser):
    """What a browser would load or run, and whether every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                self.loads.append(value)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html(failing):
    from refsd.golden.html import page

    found = Page()
    found.feed(page(failing))
    assert found.open == [] and sentence(failing) in found.text
    assert len(found.loads) == 2 and all(one.startswith("data:image/png;base64,")
                                         for one in found.loads)


def test_names_from_elsewhere_are_only_text(pack, tmp_path):
    """A candidate's names may be anything; so may its path."""
    from refsd.golden.html import page
    from refsd.golden.junit import junit

    evil = "<script>alert(1)</script>\x00\x1b]0;`|\n\ud800"
    odd = tmp_path / "a <i>&'`|"
    odd.mkdir()
    np.savez(odd / "c.npz", **right())
    with Candidate.open(odd / "c.npz") as candidate:
        found = compare(pack, candidate)
    found.extra.append(evil)
    html = page(found)
    Page().feed(html)
    assert "<script>alert" not in html and "\x00" not in html and "\x1b" not in html
    html.encode("utf-8")
    ElementTree.fromstring(junit(found))
    assert "<script>" not in "\n".join(text(found)).replace("extra: <script>", "")
    assert "\x1b" not in "\n".join(text(found))
    assert evil not in markdown(found)


def test_colours_cover_six_powers_of_ten():
    from refsd.golden.html import colours

    pixels = colours(np.array([[1.0, 1e-3, 0.0, np.nan]]))
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 4, 3)
    assert pixels[0, 0].tolist() == [252, 255, 164] and pixels[0, 3].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [190, 55, 110] and pixels[0, 2].tolist() == [13, 8, 60]


# The command


@pytest.fixture
def run(capsys):
    def command(*args):
        code = main(["golden", "compare", *map(str, args)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    place = tmp_path_factory.mktemp("candidates")
    np.savez(place / "right.npz", **right())
    np.savez(place / "wrong.npz", **{**right(), "unet/000/proj": X @ W.T})
    np.savez(place / "object.npz", a=np.array([None]))
    return place


def test_the_command_says_yes_and_no(run, folder, candidates, tmp_path):
    code, out, err = run(folder, candidates / "right.npz")
    assert (code, err) == (0, "") and out.startswith("All 4 tensors are explained")
    reports = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    code, out, err = run(folder, candidates / "wrong.npz", *(
        word for path in reports for word in ("--report", path)))
    assert code == 1 and "It looks like missing_bias" in out
    assert err.count("refsd: wrote") == 4
    assert json.loads(reports[0].read_text())["first"] == "unet/000/proj"
    assert ElementTree.parse(reports[2]).getroot().tag == "testsuites"
    code, out, err = run(folder, candidates / "wrong.npz", "--json", "--only", "tokens/*")
    assert code == 0 and json.loads(out)["counts"] == {"equal": 1}
    code, out, err = run(folder, candidates / "wrong.npz", "--accept-tolerance", "9,0.5")
    assert code == 0, err


@pytest.mark.parametrize("args, code, said", [
    (["object.npz"], 3, "pickled Python objects"),
    (["none.npz"], 2, "no such file or folder"),
    (["right.npz", "--report", "x.pdf"], 2, "ends in none of .json, .md, .xml, .html"),
    (["right.npz", "--report", "/nowhere/x.json"], 4, "its folder does not exist"),
    (["right.npz", "--accept-tolerance", "nan"], 2, "give ABS or ABS,REL"),
    (["right.npz", "--accept-tolerance", "1,2,3"], 2, "give ABS or ABS,REL"),
    (["right.npz", "--format", "fp15"], 2, "did you mean fp1"),
    (["right.npz", "--layout", "CHWN"], 2, "layout 'CHWN' is not one of"),
    (["right.npz", "--map", "none.json"], 2, "name map: none.json: no such file"),
])
def test_refusals(run, folder, candidates, args, code, said):
    got, out, err = run(folder, candidates / args[0], *args[1:])
    assert got == code and said in err and err.count("\n") == 1 and out == ""


# Memory: ROBUSTNESS row 48


MEASURE = """
import resource, sys
from refsd.golden.candidate import Candidate
from refsd.golden.compare import compare
from refsd.golden.pack import Pack
import refsd.golden.bounds, refsd.ops
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with Pack.open(sys.argv[1]) as pack, Candidate.open(sys.argv[2]) as candidate:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = compare(pack, candidate)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.counts)
"""


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """16 tensors of 2 MB, twice. The size of a pack does not matter, only that of its tensors."""
    shape, count = (2, 512, 512), 16
    zeros = np.zeros(shape, "float32")
    with Writer(tmp_path / "p", recipe={}, model={}, shard_bytes=1 << 20) as writer:
        for i in range(count):
            writer.add(f"unet/{i:03d}/x", zeros, stage="unet", step=i, op="block")
    for i in range(count):
        place = tmp_path / "c" / "unet" / f"{i:03d}"
        place.mkdir(parents=True)
        with open(place / "x.f32", "wb") as file:
            file.truncate(zeros.nbytes)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "p", tmp_path / "c"],
                          capture_output=True, text=True, env=chaos.environment(), check=True)
    grown, counts = done.stdout.split(" ", 1)
    assert counts.strip() == "{'equal': 16}"
    # two tensors of 2 MB, the bytes that are hashed, and a dozen pieces of 2 MB in float64
    assert int(grown) * 1024 < 16 * zeros.nbytes < 2 * count * zeros.nbytes
