"""--audit: where numbers come near the ends of float16 and bfloat16, and whose weight does it."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import tiny

import refsd
from refsd import functional as F
from refsd.__main__ import main
from refsd.cli import auditing
from refsd.leaf import Weight
from refsd.profiling import Audit
from refsd.profiling.audit import FORMATS, describe, extent

LAYER = "vae.decoder.mid_block.resnets.0.conv1"


@pytest.mark.parametrize("name, dtype", [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_formats_end_where_their_rounding_does(name, dtype):
    """The float32 numbers beside each end, rounded."""
    end = FORMATS[name]
    ends = np.array([end.infinite, end.zero], "f4")
    with np.errstate(all="ignore"):
        rounded = np.array([np.nextafter(ends[0], ends[1]), ends[0]]).astype(dtype)
        small = np.array([ends[1], np.nextafter(ends[1], ends[0])]).astype(dtype)
    assert rounded[0] == end.largest and np.isinf(rounded[1])
    assert small[0] == 0 and small[1] == 2 * end.zero


def test_an_extent_counts_what_vanishes():
    numbers = np.array([0, 2.0**-25, -(2.0**-24), 3, -70000], "f4")
    assert extent(numbers) == (70000.0, 4, {"float16": 1, "bfloat16": 0})
    assert extent(numbers[:0]).largest == extent(np.arange(9)).largest == 0
    assert extent(np.array([1, np.nan], "f4")).largest == math.inf
    assert extent(np.array([3, 4], "f4").astype(ml_dtypes.bfloat16)).largest == 4


def test_ops_are_gathered_by_layer_the_worst_first():
    x, w = np.full((2, 3), 300, "f4"), Weight(np.full((4, 3), 100, "f4"), "unet.a.weight")
    small, audit = Weight(np.full((4, 4), 1e-30, "f4"), "unet.b.weight"), Audit()
    with refsd.watch(audit):
        for _ in range(2):
            F.silu(F.linear(x, w, None))
        F.linear(np.ones((1, 4), "f4"), small, None)
    first, second, third = audit.rows
    assert (first.op, first.layer, first.calls) == ("linear", "unet.a", 2)
    assert (first.inputs, first.output) == (300, 90000) and first.headroom("float16") < 1
    assert (second.op, second.layer) == ("silu", "unet.a")
    assert third.underflow("float16") == 1 and third.underflow("bfloat16") == 0
    assert audit.first.keys() == {"float16"}
    assert describe(audit, "bfloat16") == "bfloat16: nothing overflows"


def test_a_weight_is_looked_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr("refsd.profiling.audit.extent", lambda a: seen.append(a.shape) or extent(a))
    weight = Weight(np.ones((4, 3), "f4"), "unet.a.weight")
    with refsd.watch(Audit()):
        for _ in range(3):
            F.linear(np.ones((1, 3), "f4"), weight, None)
    assert seen.count((4, 3)) == 1 and seen.count((1, 3)) == seen.count((1, 4)) == 3


def test_a_weight_that_is_too_large_itself_is_named():
    audit = Audit()
    with refsd.watch(audit):
        F.linear(np.zeros((1, 2), "f4"), Weight(np.full((2, 2), 7e4, "f4"), "vae.x.weight"), None)
    assert "linear of vae.x: its input weight reaches 7e+04" in describe(audit, "float16")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """The tiny model, a weight of its VAE so large that float16 does not hold what it gives."""
    tensors = tiny.tensors("vae")
    tensors["decoder.mid_block.resnets.0.conv1.weight"] *= 60000 / np.abs(
        tensors["decoder.mid_block.resnets.0.conv1.weight"]).max()
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny", vae=tensors)


def test_the_weight_that_overflows_float16_is_named(overflowing, tmp_path, capfd):
    call = ["a cat", "-m", str(overflowing), "-s", "1", "--steps", "1", "-q", "--backend", "numpy"]
    assert main([*call, "-o", str(tmp_path / "x.png"), "--audit"]) == 0
    out = capfd.readouterr().out
    assert f"float16: the first to overflow is conv2d of {LAYER}: its output reaches" in out
    assert "bfloat16: nothing overflows; nothing becomes 0" in out
    table = out[out.index("headroom"):].splitlines()
    assert table[1].startswith(f"{LAYER} conv2d ")
    assert main([*call, "-o", str(tmp_path / "y.png"), "--audit", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["audit"]
    assert found["first"]["float16"]["layer"] == LAYER and "bfloat16" not in found["first"]
    assert found["rows"][0]["layer"] == LAYER and found["rows"][0]["headroom"]["float16"] < 1
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize("to_stdout", [True, False])
def test_it_is_shown_where_drawing_fails_too(capfd, to_stdout):
    with pytest.raises(ZeroDivisionError), auditing.auditing(True, show=True, to_stdout=to_stdout):
        F.silu(np.full((1, 2), 1e5, "f4"))
        raise ZeroDivisionError
    said = capfd.readouterr()
    shown = said.out if to_stdout else said.err
    assert "silu of no layer: its input x reaches 1e+05" in shown and said.out + said.err == shown
