"""safetensors files: what is read and written is exact, and takes the memory it should."""

import math
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import GOOD, entry, file_of, refused

from refsd import half as halves
from refsd.errors import ResourceError, UsageError
from refsd.half import HALVES, to_float32, to_half
from refsd.weights import memory, read_safetensors, write_safetensors
from refsd.weights.header import BYTES, TensorInfo, read_header
from refsd.weights.reader import warn_nonfinite


def test_a_good_file_is_read_as_it_lies(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    found = read_safetensors(path)
    assert list(found) == ["a", "b", "c"]
    body = GOOD[-28:]
    for name, dtype, shape, part in (
        ("a", "<f4", (2,), body[:8]),
        ("b", "<f2", (2, 3), body[8:20]),
        ("c", "<i8", (), body[20:]),
    ):
        assert found[name].dtype == dtype and found[name].shape == shape
        assert found[name].tobytes() == part
        assert found[name].flags.writeable and found[name].flags.owndata
    assert list(read_safetensors(path, names=["b"])) == ["b"]


def test_every_bfloat16_becomes_the_float32_with_its_bits(tmp_path):
    bits = np.arange(1 << 16, dtype="<u2")
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"w": entry("BF16", (1 << 16,), (0, 1 << 17))}, bits.tobytes()))
    found = read_safetensors(path)["w"]
    assert found.dtype == np.float32
    # bfloat16 is the upper half of a float32
    assert (found.view("u4") == bits.astype("u4") * 65_536).all()


def test_every_float16_becomes_the_float32_of_its_value(tmp_path):
    """sign (-1)^s, exponent e, mantissa m: m 2^-24 where e = 0, else (1024 + m) 2^(e - 25)."""
    bits = np.arange(1 << 16)
    s, e, m = bits >> 15, (bits >> 10) & 31, bits & 1023
    value = np.where(e == 0, m * 2.0**-24, (1024 + m) * 2.0 ** (e - 25)) * np.where(s, -1.0, 1.0)
    path = tmp_path / "x.safetensors"
    body = bits.astype("<u2").tobytes()
    path.write_bytes(file_of({"w": entry("F16", (1 << 16,), (0, 1 << 17))}, body))
    found = read_safetensors(path, dtype="float32")["w"]
    assert found.dtype == np.float32
    finite = e < 31
    assert (found[finite] == value[finite]).all()
    assert (np.signbit(found[finite]) == s[finite]).all()
    assert (np.isinf(found) == ((e == 31) & (m == 0))).all()
    assert (np.isnan(found) == ((e == 31) & (m > 0))).all()


@pytest.mark.parametrize("dtype, mantissa, bias", [("F8_E4M3", 3, 7), ("F8_E5M2", 2, 15)])
def test_every_8_bit_float_becomes_the_float32_of_its_value(tmp_path, dtype, mantissa, bias):
    """Each code by itself: sign, exponent and mantissa in Python's own numbers."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"w": entry(dtype, (16, 16), (0, 256))}, bytes(range(256))))
    found = read_safetensors(path)["w"]
    assert found.dtype == np.float32 and found.shape == (16, 16)
    assert read_safetensors(path, dtype="float64")["w"].dtype == np.float64
    infinite, top = dtype == "F8_E5M2", (1 << 7 - mantissa) - 1
    for code, value in enumerate(found.ravel().tolist()):
        sign, e, m = code >> 7, (code & 127) >> mantissa, code & ((1 << mantissa) - 1)
        assert math.copysign(1, value) == (-1) ** sign or math.isnan(value)
        if e == top and (infinite or m == (1 << mantissa) - 1):
            assert math.isinf(value) if infinite and m == 0 else math.isnan(value)
        else:
            size = m if e == 0 else m + (1 << mantissa)
            assert abs(value) == size * 2.0 ** (max(e, 1) - bias - mantissa)


def test_conversion_leaves_integers_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    found = read_safetensors(path, dtype="float64")
    assert [found[n].dtype for n in "abc"] == [np.float64, np.float64, np.int64]
    refused(lambda: read_safetensors(path, dtype="float8"), "float8", error=UsageError)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32", "F64", "F8_E5M2"])
def test_halves_stay_or_are_rounded_once(tmp_path, dtype, stored, caplog):
    """Those stored in the type keep their bits, NaNs too; the others are their float32, rounded."""
    size = BYTES[stored]
    body = np.arange(1 << 16, dtype="<u2").tobytes()
    path, shape = tmp_path / "x.safetensors", (len(body) // size,)
    path.write_bytes(file_of({"w": entry(stored, shape, (0, len(body)))}, body))

    found = read_safetensors(path, dtype=dtype)["w"]

    assert found.dtype == HALVES[dtype] and found.shape == shape
    if (stored, dtype) in (("BF16", "bfloat16"), ("F16", "float16")):
        assert found.tobytes() == body
    wide = read_safetensors(path)["w"]
    np.testing.assert_array_equal(to_float32(found), to_float32(to_half(wide, dtype)))
    warn_nonfinite({"w": found[np.isfinite(to_float32(found))], "h": np.ones(2, found.dtype)}, "x")
    assert not caplog.messages
    warn_nonfinite({"w": found, "v": np.array([1, np.inf], found.dtype)}, "x")
    assert caplog.messages == ["x: NaN or infinite weights in w, v"]
    assert memory.needed_bytes([
        TensorInfo(stored, (3,), 0, 3 * size)], dtype) == 2 * 3 * 2


arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(
        st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(spec=arrays, seed=st.integers(0, 1 << 32), flip=st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, spec, seed, flip):
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (dtype, shape) in spec.items():
        array = random.integers(0, 2, shape).astype(dtype)
        tensors[name] = array.T if flip else array
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    write_safetensors(path, tensors, {"seed": str(seed)})
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert (found[name] == array).all()
    assert read_header(path).metadata == {"seed": str(seed)}


def test_reading_takes_the_memory_of_the_file_and_converting_one_tensor_more(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {f"w{i}": np.zeros((256, 1024), np.float16) for i in range(32)})
    size, one = path.stat().st_size, 256 * 1024 * 2
    for dtype, limit in ((None, 1.1 * size), ("float32", 2.1 * size + one)):
        tracemalloc.start()
        read_safetensors(path, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= limit, (dtype, peak, size)


# Memory.


def test_needed_memory_counts_the_loaded_type():
    tensors = [TensorInfo("F16", (4,), 0, 8), TensorInfo("BF16", (2,), 8, 12)]
    assert memory.needed_bytes(tensors, None) == 8 + 8 + 8
    assert memory.needed_bytes(tensors, "float32") == 16 + 8 + 16
    assert memory.needed_bytes([TensorInfo("I64", (2,), 0, 16)], "float32") == 16 + 16
    eight = [TensorInfo("F8_E4M3", (2, 4), 0, 8)]
    assert memory.needed_bytes(eight, None) == memory.needed_bytes(eight, "float32") == 32 + 32
    assert memory.needed_bytes([], "float32") == 0


def test_too_little_memory_is_said_before_loading(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    refused(lambda: memory.check_memory(2 << 30, "model.safetensors"), "model.safetensors",
            "2.0 GiB", "1.0 GiB", error=ResourceError)  # fmt: skip
    memory.check_memory(2 << 30, "model.safetensors", force=True)
    memory.check_memory(1 << 30, "model.safetensors")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_memory(1 << 60, "model.safetensors")


# Writing.


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(lambda: write_safetensors(path, {"a": np.ones(2)}), str(path), "No space left",
            error=ResourceError)  # fmt: skip
    assert path.read_bytes() == GOOD and os.listdir(tmp_path) == ["x.safetensors"]


def test_unwritable_places_are_refused(tmp_path):
    path = tmp_path / "none" / "x.safetensors"
    refused(lambda: write_safetensors(path, {"a": np.ones(2)}), str(path), error=ResourceError)
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder"
    refused(lambda: write_safetensors(path, {"a": np.ones(2)}), str(path), error=ResourceError)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("array", [np.ones(2, complex), np.array([None]), np.array(["a"])])
def test_arrays_that_the_format_lacks_are_refused(tmp_path, array):
    path = tmp_path / "x.safetensors"
    refused(lambda: write_safetensors(path, {"w": array}), "'w' is", error=UsageError)
    assert not os.listdir(tmp_path)


def test_a_written_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_numbers_are_converted_piece_by_piece(tmp_path, monkeypatch, dtype):
    """Also the last few; and nothing as large as the tensor lies between file and result."""
    array, pieces, half = np.linspace(-9, 9, 60).reshape(4, 15).astype("f2"), [], halves.to_half

    def to_half(piece, dtype):
        pieces.append(piece.size)
        return half(piece, dtype)

    monkeypatch.setattr(halves, "PART", 16)
    monkeypatch.setattr(halves, "to_half", to_half)
    write_safetensors(tmp_path / "x.safetensors", {"x": array})
    found = read_safetensors(tmp_path / "x.safetensors", dtype=dtype)["x"]
    assert found.dtype == HALVES.get(dtype, dtype)
    np.testing.assert_array_equal(found, half(array, dtype) if dtype in HALVES else array)
    assert pieces == ([16, 16, 16, 12] if dtype in HALVES else [])
