"""Which tolerance a tensor is held to, and why."""

import numpy as np
import pytest
from golden_compare_samples import NETWORK, X, changed_at, opened

from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack, Writer
from refsd.ops.conv import conv2d


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
    assert opened(tmp_path, {"unet/000/x": X + 1}).first.status == "open"


def test_the_smallest_numbers_may_be_off_by_one(tmp_path):
    """e^-93 is subnormal in float32: whatever its roundings, they are of whole units of 2^-149."""
    x = np.array([[0, -93, -1, -50]], "float32")
    share = np.exp(x.astype("float64")) / np.exp(x.astype("float64")).sum()
    with Writer(tmp_path / "p", recipe={}, model={}, kind="ops") as writer:
        writer.add("ops/softmax/a:x", x, stage="ops")
        writer.add("ops/softmax/a", share, op="softmax", stage="ops", options={"axis": -1},
                   inputs={"x": "tensor:ops/softmax/a:x"})
    near = np.float32(share) + np.array([[0, 1.5 * 2.0**-149, 0, 0]]).astype("float32")
    found = opened(tmp_path, {"ops/softmax/a": near})
    assert found.counts == {"given": 1, "explained": 1}
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
