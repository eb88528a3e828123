"""Damaged, dangerous and changing files: each is refused in one line that names it."""

import json
import math
import os
import pickle
import re
import tracemalloc

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import GOOD, entry, file_of, refused

from refsd.errors import ModelError, UsageError
from refsd.weights import read_safetensors, reader, write_safetensors
from refsd.weights.files import read_foreign_object, read_json
from refsd.weights.header import read_header
from refsd.weights.reader import nonfinite, read_tensors


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


DAMAGED = {
    "1 empty": (b"", "not a safetensors file (0 bytes)"),
    "1 seven bytes": (b"\0" * 7, "not a safetensors file (7 bytes)"),
    "1 only a length": (b"\2" + b"\0" * 7, "not a safetensors file"),
    "2 header longer than the file": (file_of(b"{}", length=1000), "1,000 bytes", "incomplete"),
    "2 header of 2^63": (file_of(b"{}", length=1 << 63), "at most 100,000,000"),
    "2 header of 2^64 - 1": (file_of(b"{}", length=(1 << 64) - 1), "at most 100,000,000"),
    "3 not JSON": (file_of(b"{no json here}"), "not valid JSON"),
    "3 deep nesting": (file_of(b'{"a":' + b"[" * 5000), "nested too deeply"),
    "3 deeper nesting": (file_of(b'{"a":' + b"[" * 1_000_000), "nested too deeply"),
    "3 a list": (file_of(b"[1, 2]"), "expected an object"),
    "3 not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8"),
    "3 NaN": (file_of(b'{"a": NaN}'), "NaN is not a JSON number"),
    "3 an integer of 5000 digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "4 bytes after the end": (GOOD + b"\0", "1 bytes after the last tensor"),
    "5 overlap": (
        file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
        "'b' overlaps another",
    ),
    "5 the same place twice": (file_of({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
    "5 gap": (file_of({"a": entry(offsets=(4, 12))}, b"\0" * 12), "'a' leaves a gap"),
    "5 begin after end": (file_of({"a": entry(offsets=(8, 0))}, b"\0" * 8), "'a'", "8 to 0"),
    "5 negative offset": (file_of({"a": entry(offsets=(-8, 0))}, b"\0" * 8), "'a'", "offsets"),
    "5 fractional offset": (file_of({"a": entry(offsets=(0, 8.0))}, b"\0" * 8), "offsets"),
    "5 three offsets": (file_of({"a": entry(offsets=(0, 4, 8))}, b"\0" * 8), "offsets"),
    "5 true as a size": (file_of({"a": entry(shape=(2, True))}, b"\0" * 8), "shape"),
    "5 negative dimension": (file_of({"a": entry(shape=(-2,))}, b"\0" * 8), "'a'", "[-2]"),
    "5 dimension of 2^62": (file_of({"a": entry(shape=(1 << 62, 4))}, b"\0" * 8), "cannot lie"),
    "5 product of 2^64": (file_of({"a": entry(shape=(1 << 32, 1 << 32))}, b"\0" * 8), "cannot"),
    "5 empty, but of 2^63": (
        file_of({"a": entry(shape=(0, 1 << 63), offsets=(0, 0))}), "'a'", "no array",
    ),
    "5 empty, but of 2^64": (
        file_of({"a": entry("U8", (1 << 32, 0, 1 << 32), (0, 0))}), "'a'", "no array",
    ),
    "5 a million dimensions": (file_of({"a": entry(shape=[1] * 1_000_000)}, b"\0" * 4), "shape"),
    "5 wrong length": (file_of({"a": entry(shape=(3,))}, b"\0" * 8), "'a'", "cannot lie"),
    "5 unknown dtype": (file_of({"a": entry("F99")}, b"\0" * 8), "'a'", "unknown dtype 'F99'"),
    "5 dtype a list": (file_of({"a": entry(["F32"])}, b"\0" * 8), "unknown dtype"),
    "5 entry a number": (file_of({"a": 7}, b"\0" * 8), "'a' needs exactly"),
    "5 entry without dtype": (file_of({"a": {"shape": [], "data_offsets": [0, 0]}}), "exactly"),
    "5 entry with more": (file_of({"a": entry(run="this")}, b"\0" * 8), "'a' needs exactly"),
    "5 metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "6 duplicate key": (
        file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 8),
        "'a' appears twice",
    ),
    "6 duplicate field": (
        file_of(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "'dtype' appears twice",
    ),
    "12 zip": (b"PK\x03\x04" + b"\0" * 100, "pickle", "can run any code"),
    "12 pickle": (pickle.dumps({"a": 1}, protocol=2) + b"\0" * 100, "pickle", "Convert it"),
    "12 newer pickle": (pickle.dumps({"a": 1}, protocol=5) + b"\0" * 100, "pickle"),
    "a web page": (b"<!DOCTYPE html><html>404", "a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "not a safetensors file"),
}


@pytest.mark.parametrize("content, words", [(c, w) for c, *w in DAMAGED.values()], ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, content, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refused(lambda: read_safetensors(path), str(path), *words)


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_file_cut_short_is_refused(tmp_path, sixteenth):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[: len(GOOD) * sixteenth // 16])
    refused(lambda: read_safetensors(path), str(path))
    if sixteenth == 15:
        refused(lambda: read_safetensors(path), "Is the download incomplete?", "28 bytes")


@pytest.mark.parametrize("length", [1 << 63, 150_000_000])
def test_a_false_header_length_allocates_nothing(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(b"{}", length=length))
    os.truncate(path, 200_000_000)  # sparse: takes no disk
    tracemalloc.start()
    refused(lambda: read_safetensors(path), f"{length:,}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_verdict_on_damaged_headers_is_the_librarys(tmp_path_factory, data):
    """One byte of the header changed: what we accept, the library accepts, with the same bytes."""
    where = data.draw(st.integers(8, len(GOOD) - 29))
    raw = bytearray(GOOD)
    raw[where] = data.draw(st.sampled_from(b'0123456789-"[]{},:. eFIUabc\\\x00\xff'))
    raw = bytes(raw)
    path = tmp_path_factory.mktemp("h") / "x.safetensors"
    path.write_bytes(raw)
    try:
        theirs = {name: bytes(tensor["data"]) for name, tensor in safetensors.deserialize(raw)}
    except safetensors.SafetensorError:
        # Python reads the integer -0 as 0
        if b"-0" not in raw:
            refused(lambda: read_header(path), str(path))
        return
    try:
        ours = read_safetensors(path)
    except ModelError as error:
        # stricter: duplicate keys, exactly three fields; F8_E8M0 and FNUZ have no place here
        assert re.search("twice|exactly|F8_E8M0|FNUZ", str(error)), error
    else:
        assert {name: array.tobytes() for name, array in ours.items()} == theirs


@pytest.mark.parametrize("dtype, size", [("F8_E8M0", 1), ("F8_E4M3FNUZ", 1), ("F8_E5M2FNUZ", 1),
                                         ("C64", 8)])  # fmt: skip
def test_types_without_a_place_here_are_refused_with_advice(tmp_path, dtype, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"w": entry(dtype, (1,), (0, size))}, b"\0" * size))
    refused(lambda: read_safetensors(path), str(path), f"'w' is {dtype}", "Convert", "F8_E4M3")


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "m.pth", "m.bin", "m.pkl", "M.CKPT"])
def test_pickles_are_refused_by_name_without_being_opened(tmp_path, monkeypatch, name):
    path, canary = tmp_path / name, tmp_path / "canary"
    path.write_bytes(pickle.dumps(Bomb(str(canary))))
    monkeypatch.setattr("refsd.weights.header.open_file", lambda path: pytest.fail("opened"))
    refused(lambda: read_safetensors(path), str(path), "can run any code", "docs/checkpoints.md")
    assert not canary.exists()


def test_a_pickle_renamed_is_refused_without_being_run(tmp_path):
    path, canary = tmp_path / "m.safetensors", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Bomb(str(canary)), protocol=4))
    refused(lambda: read_safetensors(path), str(path), "pickle")
    assert not canary.exists()
    pickle.loads(path.read_bytes()).close()
    assert canary.exists()  # the canary sings when it is run


def test_a_file_cut_between_header_and_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    header = read_header(path)
    os.truncate(path, len(GOOD) - 10)
    refused(lambda: read_tensors(header), str(path), "changed while it was read")


def test_a_file_cut_while_a_tensor_is_read_is_refused(tmp_path, monkeypatch):
    """With the file mapped into memory this would kill the process (SIGBUS)."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"w": np.zeros(1 << 20, np.float32)})
    monkeypatch.setattr(reader, "_check_unchanged", lambda header, file: os.truncate(path, 1 << 20))
    refused(lambda: read_safetensors(path), str(path), "ended inside tensor 'w'")


def test_a_file_replaced_or_overwritten_while_loading_is_refused(tmp_path):
    path, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    for change in (lambda: os.replace(other, path), path.unlink):
        path.write_bytes(GOOD)
        other.write_bytes(GOOD)
        header = read_header(path)
        change()
        refused(lambda header=header: read_tensors(header), str(path))
    path.write_bytes(GOOD)
    header = read_header(path)
    os.utime(path, ns=(0, header.identity[3] + 1))
    refused(lambda: read_tensors(header), str(path), "changed while it was read")


def test_a_file_written_to_while_a_tensor_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    read = reader._read

    def read_and_touch(file, header, *rest):
        os.utime(path, ns=(0, header.identity[3] + 1))
        return read(file, header, *rest)

    monkeypatch.setattr(reader, "_read", read_and_touch)
    refused(lambda: read_safetensors(path), str(path), "changed while it was read")


def test_what_is_no_ordinary_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")  # nobody writes: opening must not wait
    refused(lambda: read_header(tmp_path / "pipe.safetensors"), "not an ordinary file")
    refused(lambda: read_header(tmp_path), "expected a file")
    refused(lambda: read_header(tmp_path / "none.safetensors"), "no such file")
    refused(lambda: read_header("/dev/zero"), "not an ordinary file")
    refused(lambda: read_header("a\0b"), "not a file name", error=UsageError)


@pytest.mark.parametrize(
    "values, bad",
    [([1, 2], False), ([1, np.nan], True), ([np.inf, 1], True), ([1, -np.inf], True), ([], False)],
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nonfinite(values, bad, dtype):
    assert nonfinite(np.array(values, dtype)) == bad
    assert not nonfinite(np.array([1, 2], "i4"))


def test_nan_weights_are_named(caplog):
    tensors = {"a": np.ones(3), "b.weight": np.array([1, np.nan])}
    reader.warn_nonfinite(tensors, "model/unet")
    assert "model/unet: NaN or infinite weights in b.weight" in caplog.text


# Small JSON files.


@pytest.mark.parametrize(
    "content, word",
    [
        (b"{", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": Infinity}', "Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff{}", "not UTF-8"),
        (b" " * (1 << 20) + b"{}", "at most 1,048,576"),
        (b"", "not valid JSON"),
    ],
)
def test_odd_json_is_refused(tmp_path, content, word):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(lambda: read_json(path), str(path), word)


@pytest.mark.parametrize(
    "content, found",
    [
        (b'{"a": -Infinity, "b": Infinity}', {"a": -math.inf, "b": math.inf}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'\xef\xbb\xbf{"a": 1e400}', {"a": math.inf}),
    ],
)
def test_foreign_json_is_read_as_python_reads_it(tmp_path, content, found):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert read_foreign_object(path) == found
    assert read_foreign_object(path) == json.loads(content.decode("utf-8-sig"))


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b"\xff{}", b"[]", b"", b"[1" + b"0" * 9999]
)
def test_foreign_json_has_limits_too(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(lambda: read_foreign_object(path), str(path))
