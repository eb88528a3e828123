"""What a port wrote, found and read with suspicion, one tensor at a time."""

import json
import re

import numpy as np
import pytest

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.comparing.name_map import NameMap, loosely
from refsd.weights.writer import write_safetensors

X = np.arange(24, dtype="float32").reshape(1, 4, 2, 3)
BF16 = np.array([1.0, -2.5, 3.140625], "float32")  # all of them bfloat16 numbers


def bfloat16_bits(x):
    return (x.view("uint32") >> 16).astype("uint16")


def test_a_folder_of_every_kind(tmp_path):
    (tmp_path / "unet" / "000").mkdir(parents=True)
    np.save(tmp_path / "unet" / "000" / "conv_in.npy", X)
    np.save(tmp_path / "unet" / "000" / "turned.npy", np.asfortranarray(X))
    np.savez_compressed(tmp_path / "more.npz", **{"decode/conv_in": X.astype("float16")})
    write_safetensors(tmp_path / "st.safetensors", {"text/000/x": X.astype("float64")})
    (tmp_path / "raw.f16").write_bytes(X.astype("<f2").tobytes())
    (tmp_path / "half.bf16").write_bytes(bfloat16_bits(BF16).tobytes())
    (tmp_path / "notes.txt").write_text("not a tensor")
    with Candidate.open(tmp_path) as candidate:
        assert sorted(candidate.names()) == ["decode/conv_in", "half", "raw", "text/000/x",
                                             "unet/000/conv_in", "unet/000/turned"]
        for name, dtype in (("unet/000/conv_in", "float32"), ("decode/conv_in", "float16"),
                            ("text/000/x", "float64"), ("unet/000/turned", "float32")):
            assert candidate.info(name).dtype == dtype and candidate.info(name).shape == X.shape
            found = candidate.read(name)
            assert found.dtype == dtype and np.array_equal(found, X)
        assert candidate.read("raw").shape == (24,)
        assert np.array_equal(candidate.read("raw", (1, 4, 2, 3)), X)
        assert np.array_equal(candidate.read("half"), BF16)
        assert candidate.read("unet/000/conv_out") is None
        assert candidate.extra(["raw", "half", "unet/000/conv_in"]) == [
            "decode/conv_in", "text/000/x", "unet/000/turned"]


def test_bfloat16_as_numpy_keeps_that_of_ml_dtypes(tmp_path):
    np.save(tmp_path / "a.npy", bfloat16_bits(BF16).view("V2"))
    with Candidate.open(tmp_path / "a.npy") as candidate:
        assert candidate.info("a").dtype == "bfloat16"
        assert np.array_equal(candidate.read("a"), BF16)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i4", ">i8", ">u2"])
def test_numbers_of_a_big_endian_machine(tmp_path, dtype, kind):
    path = tmp_path / f"a.{kind}"
    np.save(path, X.astype(dtype)) if kind == "npy" else np.savez(path, a=X.astype(dtype))
    with Candidate.open(path) as candidate:
        found = candidate.read("a")
        assert candidate.info("a").dtype == found.dtype.name == np.dtype(dtype).name
        assert np.array_equal(found, X)


@pytest.mark.parametrize("short, name, codes", [
    ("F8_E4M3", "float8_e4m3fn", [0x38, 0xC4, 0x7E, 0x01]),  # 1, -3, 448, 2^-9
    ("F8_E5M2", "float8_e5m2", [0x3C, 0xC2, 0x7B, 0x01]),  # 1, -3, 57344, 2^-16
])
def test_8_bit_floats(tmp_path, short, name, codes):
    largest, least = {"F8_E4M3": (448, 2**-9), "F8_E5M2": (57344, 2**-16)}[short]
    text = json.dumps({"a": {"dtype": short, "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(codes))
    (tmp_path / "b.bin").write_bytes(bytes(codes))
    (tmp_path / "index.json").write_text(json.dumps({"tensors": {
        "b": {"file": "b.bin", "shape": [2, 2], "dtype": f"torch.{name}"}}}))
    with Candidate.open(tmp_path) as candidate:
        for own in "ab":
            found = candidate.read(own)
            assert candidate.info(own).dtype == name and found.dtype == "float32"
            assert found.tolist() == [[1, -3], [largest, least]]


def troubles(path, **options):
    """Why what cannot be read of a candidate cannot be, whether it is all of it or a part."""
    try:
        with Candidate.open(path, **options) as candidate:
            return [trouble.why for trouble in candidate.troubles]
    except ModelError as error:
        return [str(error)]


def index(folder, **entry):
    (folder / "index.json").write_text(json.dumps({"tensors": {"unet/000/x": entry}, "by": "me"}))


def test_raw_files_with_an_index(tmp_path):
    data = to_layout(X, "NHWC")
    (tmp_path / "all.bin").write_bytes(b"skip" + data.tobytes())
    index(tmp_path, file="all.bin", offset=4, shape=[1, 4, 2, 3], dtype="float32", layout="NHWC")
    for path in (tmp_path, tmp_path / "index.json"):
        with Candidate.open(path) as candidate:
            assert candidate.names() == ["unet/000/x"]
            assert np.array_equal(candidate.read("unet/000/x", X.shape), X)
            assert np.array_equal(candidate.read("unet/000/x"), data)


@pytest.mark.parametrize("name", ["NHWC", "HWIO", "TRANSPOSED", "NC4HW4", "ROWS", "ROWS32",
                                  "TILE32", "FACE16"])
def test_the_shape_of_an_index_may_be_the_logical_or_the_stored_one(tmp_path, name):
    data = to_layout(X, name)
    (tmp_path / "all.bin").write_bytes(data.tobytes() + bytes(4))
    for shape in (X.shape, data.shape, data.shape[1:] if data.shape[0] == 1 else data.shape):
        index(tmp_path, file="all.bin", shape=list(shape), dtype="float32", layout=name)
        with Candidate.open(tmp_path) as candidate:
            assert np.array_equal(candidate.read("unet/000/x", X.shape), X), shape


def test_a_shape_of_an_index_that_is_neither(tmp_path):
    (tmp_path / "all.bin").write_bytes(X.tobytes())
    index(tmp_path, file="all.bin", shape=[2, 12], dtype="float32", layout="NHWC")
    with Candidate.open(tmp_path) as candidate:
        assert candidate.read("unet/000/x", X.shape).shape == (2, 12)


@pytest.mark.parametrize("text", ["float32", "f32", "F32", "fp32", "torch.float32", "<f4",
                                  "Float32"])
def test_a_type_is_what_writers_call_it(tmp_path, text):
    (tmp_path / "all.bin").write_bytes(X.tobytes())
    index(tmp_path, file="all.bin", shape=list(X.shape), dtype=text)
    with Candidate.open(tmp_path) as candidate:
        assert np.array_equal(candidate.read("unet/000/x"), X)


@pytest.mark.parametrize("entry, why", [
    ({"file": "../secret.bin", "shape": [1], "dtype": "float32"}, "outside the index's folder"),
    ({"file": "/etc/passwd", "shape": [1], "dtype": "uint8"}, "outside the index's folder"),
    ({"file": "C:\\x.bin", "shape": [1], "dtype": "uint8"}, "outside the index's folder"),
    ({"file": "a.bin", "shape": [1 << 40, 1 << 40], "dtype": "float32"}, "takes bytes 0 to"),
    ({"file": "a.bin", "shape": [1 << 40, 0, 1 << 40], "dtype": "uint8"}, "no array can have"),
    ({"file": "a.bin", "shape": [9], "dtype": "uint8"}, "takes bytes 0 to 9, a.bin has 8"),
    ({"file": "a.bin", "shape": [2], "dtype": "uint8", "offset": -1}, "needs file, shape"),
    ({"file": "a.bin", "shape": [-2], "dtype": "uint8"}, "needs file, shape"),
    ({"file": "a.bin", "shape": [2.0], "dtype": "uint8"}, "needs file, shape"),
    ({"file": "a.bin", "shape": [2], "dtype": "object"}, "dtype 'object' is not one of"),
    ({"file": "a.bin", "shape": [2], "dtype": "uint8", "layout": "CHWN"}, "layout 'CHWN' is not"),
    ({"file": 3, "shape": [2], "dtype": "uint8"}, "needs file, shape"),
])
def test_an_index_that_cannot_be_true(tmp_path, entry, why):
    (tmp_path / "a.bin").write_bytes(bytes(8))
    index(tmp_path, **entry)
    assert re.search(why, troubles(tmp_path)[0])


@pytest.mark.parametrize("name", ["NHWC", "NC4HW4", "ROWS", "ROWS32", "TILE32", "FACE16"])
def test_a_layout_is_undone(tmp_path, name):
    np.save(tmp_path / "x.npy", to_layout(X, name))
    np.save(tmp_path / "flat.npy", to_layout(X, name).reshape(-1))
    with Candidate.open(tmp_path, layout=name.lower()) as candidate:
        assert np.array_equal(candidate.read("x", X.shape), X)
        assert np.array_equal(candidate.read("flat", X.shape), X)


def test_what_is_not_in_the_layout_is_left_as_it_is(tmp_path):
    """(1, 4, 2, 3) under NHWC would be (1, 2, 3, 4): these axes are plainly those of NCHW."""
    np.save(tmp_path / "x.npy", X)
    with Candidate.open(tmp_path, layout="NHWC") as candidate:
        assert np.array_equal(candidate.read("x", X.shape), X)


def test_loose_names():
    assert loosely("unet/003/conv_in") == loosely("./unet__3.conv_in") == "unet.3.conv_in"
    assert loosely("unet/000/a:x") == loosely("unet.0.a.x")
    assert loosely("unet/000/b10.0") != loosely("unet/000/b1.0")


def test_two_names_that_could_both_be_meant(tmp_path):
    np.savez(tmp_path / "a.npz", **{"unet.0.x": X, "unet__000__x": X})
    with Candidate.open(tmp_path / "a.npz") as candidate:
        assert candidate.read("unet/000/x") is None
        assert "could both be 'unet/000/x'" in candidate.trouble("unet/000/x")
        assert np.array_equal(candidate.read("unet.0.x"), X)  # written exactly so


def test_a_name_map(tmp_path):
    np.savez(tmp_path / "a.npz", first=X, step_3_out=2 * X)
    pairs = {"unet/000/conv_in": "first", "unet/00*/conv_out": "step_*_out"}
    (tmp_path / "map.json").write_text(json.dumps(pairs))
    for source in (pairs, tmp_path / "map.json"):
        with Candidate.open(tmp_path / "a.npz", name_map=source) as candidate:
            assert np.array_equal(candidate.read("unet/000/conv_in"), X)
            assert np.array_equal(candidate.read("unet/003/conv_out"), 2 * X)
            assert candidate.read("unet/004/conv_out") is None
    with pytest.raises(UsageError, match="no more \\* in the second"):
        NameMap.of({"a": "b*"})
    with pytest.raises(UsageError, match="name map: .*not valid JSON"):
        (tmp_path / "bad.json").write_text("{")
        NameMap.of(tmp_path / "bad.json")


def test_of_two_patterns_the_more_specific_one_decides_where_its_name_is_there(tmp_path):
    """`*` stands for dots too: `attentions.*` is also said of `attentions.0.norm`."""
    np.savez(tmp_path / "a.npz", **{"att_0": X, "att_0_norm": 2 * X, "att_1.norm": 3 * X})
    pairs = {"unet/*/attentions.*": "att_*", "unet/*/attentions.*.norm": "att_*_norm"}
    for order in (pairs, dict(reversed(pairs.items()))):
        one_star = {golden.replace("unet/*", "unet/000"): mine for golden, mine in order.items()}
        with Candidate.open(tmp_path / "a.npz", name_map=one_star) as candidate:
            assert candidate.find("unet/000/attentions.0") == "att_0"
            assert candidate.find("unet/000/attentions.0.norm") == "att_0_norm"
            assert candidate.find("unet/000/attentions.1.norm") == "att_1.norm"  # the next one
            assert candidate.find("unet/000/attentions.2.norm") is None


def test_what_a_map_says_in_vain(tmp_path):
    np.savez(tmp_path / "a.npz", first=X, step_3_out=X)
    golden = ["unet/000/conv_in", "unet/003/conv_out", "unet/004/conv_out"]
    pairs = {"unet/000/conv_in": "first", "unet/00*/conv_out": "step_*_out",
             "unet/000/conv_in2": "first", "unet/003/*": "out_*", "text/*": "*",
             "unet/*/conv_in": "fisrt"}
    with Candidate.open(tmp_path / "a.npz", name_map=pairs) as candidate:
        assert sorted(candidate.remarks(golden)) == [
            "name map: 'text/*' fits no name of the pack",
            "name map: 'unet/*/conv_in' leads to 'fisrt', which is not there",
            "name map: 'unet/000/conv_in2' fits no name of the pack",
            "name map: 'unet/003/*' leads to 'out_conv_out', which is not there"]


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        Candidate.open(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no \.npy"):
        Candidate.open(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match="no tensors in it"):
        Candidate.open(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="layout 'CHWN' is not one of"):
        Candidate.open(tmp_path, layout="CHWN", dtype="f32")
    with pytest.raises(UsageError, match="dtype 'f31' is not one of"):
        Candidate.open(tmp_path, dtype="f31")


def test_a_member_that_turns_out_to_be_damaged(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(2000))
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    with Candidate.open(path) as candidate:
        assert candidate.read("a") is None and "damaged: Bad CRC" in candidate.trouble("a")
        assert candidate.names() == [] and len(candidate.troubles) == 1


def test_a_file_that_shrinks(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with Candidate.open(tmp_path) as candidate:
        np.save(tmp_path / "a.npy", X[:, :1])
        assert candidate.read("a") is None and "ended early" in candidate.trouble("a")
