"""Recorded ops as ONNX test cases, read back by the onnx package."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from refsd.errors import UsageError
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.porting.onnx import export_onnx


def protos(folder):
    """Every tensor of a test_data_set by its own name, in the order of the files."""
    found = {}
    for kind in ("input", "output"):
        for path in sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb")):
            proto = onnx.TensorProto.FromString(path.read_bytes())
            found[proto.name] = numpy_helper.to_array(proto)
    return found


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.fixture
def pack(tmp_path):
    with Writer(tmp_path / "pack", recipe={}, model={}, kind="ops", title="For ONNX") as writer:
        writer.add("unet/000/conv_in:x", some(1, 4, 5, 5), stage="unet", step=0)
        writer.add("unet/000/conv_in", some(1, 8, 5, 5, seed=1), stage="unet", step=0, op="conv2d",
                   inputs={"x": "tensor:unet/000/conv_in:x", "weight": "weight:unet.conv_in.weight",
                           "bias": None}, options={"padding": 1})
        writer.add("unet/000/up.concat", some(1, 12, 5, 5, seed=2), stage="unet", step=0,
                   op="concat", options={"axis": 1}, inputs={"arrays": [
                       "tensor:unet/000/conv_in", "tensor:unet/000/conv_in:x"]})
        writer.add("unet/000/up", some(3), stage="unet", step=0, op="block")
    with Pack.open(tmp_path / "pack") as opened:
        yield opened


def weight(name):
    assert name == "unet.conv_in.weight"
    return some(8, 4, 3, 3, seed=3)


def test_cases_come_back(pack, tmp_path):
    names = export_onnx(pack, tmp_path / "out", read_weight=weight)
    assert names == ["unet/000/conv_in", "unet/000/up.concat"]
    folder = tmp_path / "out" / "unet__000__conv_in"
    found = protos(folder)
    assert list(found) == ["x", "weight", "result"]
    assert np.array_equal(found["x"], some(1, 4, 5, 5))
    assert np.array_equal(found["weight"], some(8, 4, 3, 3, seed=3))
    assert np.array_equal(found["result"], some(1, 8, 5, 5, seed=1))
    call = json.loads((folder / "call.json").read_text())
    assert (call["op"], call["inputs"], call["numbers"]) == (
        "conv2d", ["x", "weight"], {"bias": None})
    found = protos(tmp_path / "out" / "unet__000__up.concat")
    assert list(found) == ["arrays.0", "arrays.1", "result"]
    assert found["arrays.1"].shape == (1, 4, 5, 5)


def test_a_pack_without_ops_is_refused(pack, tmp_path):
    with pytest.raises(UsageError, match="no op is recorded in it under these names"):
        export_onnx(pack, tmp_path / "out", read_weight=weight, only=["*/up"])
    assert not (tmp_path / "out").exists()
