"""Trouble with one file or one tensor of a candidate is told, and the others are compared."""

import io
import json
import os
import pickle
import socket
import struct
import warnings
import zipfile

import numpy as np
import pytest
from golden_compare_samples import IDS, NETWORK, right

from refsd.__main__ import main
from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.report import as_json, sentence
from refsd.golden.packs.pack import Pack

BAD = "unet/001/conv_out"  # the golden tensor whose counterpart cannot be read


@pytest.fixture
def good(tmp_path):
    """A candidate of which everything but BAD can be read."""
    for name, array in right().items():
        if name != BAD:
            path = tmp_path / "c" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    (tmp_path / "c" / "unet" / "001").mkdir(exist_ok=True)
    return tmp_path / "c"


def npy(shape, descr="<f4", data=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + data


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(members, method=zipfile.ZIP_STORED):
    """An archive of pairs of a name and its bytes, or of a dict of them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def claiming(size):
    """An archive of one compressed array of zeros whose directory claims `size` bytes unpacked."""
    data = bytearray(zipped({BAD: npy((1 << 20,), data=bytes(1 << 22))}, zipfile.ZIP_DEFLATED))
    entry = data.index(b"PK\x01\x02") + 24
    data[entry:entry + 4] = size.to_bytes(4, "little")
    return bytes(data)


def safetensors(entries, data):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


class Harm:
    """Running any code at all while it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


HARM = saved(np.array([Harm()], dtype=object), allow_pickle=True)
WHOLE = saved(3 * NETWORK)
PLAIN = (3 * NETWORK).tobytes()
ENTRY = {"dtype": "F32", "shape": [2, 4, 8, 6], "data_offsets": [0, len(PLAIN)]}

# file, its bytes, what is said. All of them hold BAD, or would if they could be read.
FILES = {
    "empty": (f"{BAD}.npy", b"", "not a readable .npy"),
    "cut in the header": (f"{BAD}.npy", WHOLE[:40]),
    "cut in the numbers": (f"{BAD}.npy", WHOLE[:-1], "claims"),
    "numbers after the end": (f"{BAD}.npy", WHOLE + b"\0", "claims"),
    "pickled objects": (f"{BAD}.npy", HARM, "pickled Python objects, and loading those can run"),
    "a pickle": (f"{BAD}.npy", pickle.dumps(Harm()), "not a readable .npy"),
    "code for a header": (f"{BAD}.npy", header("__import__\n"), "not a readable .npy"),
    "a header without an end": (f"{BAD}.npy", b"\x93NUMPY\x01\x00\xff\xff{"),
    "another version": (f"{BAD}.npy", b"\x93NUMPY\x09\x00\x04\x00{}  ", "version (9, 0)"),
    "zeros": (f"{BAD}.npy", bytes(256)),
    "text": (f"{BAD}.npy", b"1.0 2.0\n"),
    "a pointer of Git LFS": (f"{BAD}.npy", b"version https://git-lfs.github.com/spec/v1\n"),
    "absurdly large": (f"{BAD}.npy", npy((1 << 40, 1 << 40)),
                       "which are not the 0 bytes"),
    "absurdly long": (f"{BAD}.npy", npy((0, 1 << 62)), "claims"),
    "NaN elements": (f"{BAD}.npy", header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (nan,)}\n")),
    "negative elements": (f"{BAD}.npy", npy((-2,), data=bytes(8)), "claims"),
    "complex": (f"{BAD}.npy", npy((2,), "<c8", bytes(16)), "plain numbers"),
    "strings": (f"{BAD}.npy", npy((2,), "<U2", bytes(16)), "plain numbers"),
    "records": (f"{BAD}.npy", npy((2,), [("a", "<f4")], bytes(8)), "plain numbers"),
    "dates": (f"{BAD}.npy", npy((1,), "<M8[s]", bytes(8))),
    "an unknown type": (f"{BAD}.npy", npy((2,), "<q9", bytes(16))),
    "an array that is a zip": (f"{BAD}.npy", zipped({"x": WHOLE})),
    "an archive cut short": ("all.npz", zipped({BAD: WHOLE})[:-30],
                             "not a readable .npz archive"),
    "an empty archive file": ("all.npz", b""),
    "an archive that is an array": ("all.npz", WHOLE),
    "a bad member": ("all.npz", zipped({BAD: WHOLE[:99]}),
                     "not a readable .npy"),
    "a pickled member": ("all.npz", zipped({BAD: HARM}), "pickled"),
    "a zip bomb": ("all.npz", claiming(4_000_000_000),
                   "would unpack to 4,000,000,000 bytes; at most 1,073,741,824"),
    "a member larger than it claims": ("all.npz", claiming(1000), "not a readable .npy file: Bad"),
    "a member twice": ("all.npz", zipped([(BAD, WHOLE), (BAD, WHOLE)]), "Leave one of them out"),
    "safetensors, empty": ("all.safetensors", b""),
    "safetensors, no JSON": ("all.safetensors", struct.pack("<Q", 9) + b'{"a": [1,'),
    "safetensors, one entry outside": ("all.safetensors", safetensors(
        {BAD: ENTRY | {"data_offsets": [8, 8 + len(PLAIN)]}}, PLAIN)),
    "safetensors, one shape wrong": ("all.safetensors", safetensors(
        {BAD: ENTRY | {"shape": [2, 4, 8, 7]}}, PLAIN)),
    "safetensors, one type unknown": ("all.safetensors", safetensors(
        {BAD: ENTRY | {"dtype": "F3"}}, PLAIN)),
    "safetensors, 8-bit floats without a zero": ("all.safetensors", safetensors(
        {BAD: {"dtype": "F8_E4M3FNUZ", "shape": [4], "data_offsets": [0, 4]}}, bytes(4))),
    "raw, half a number": (f"{BAD}.f32", PLAIN[:-2]),
    "an index that is no JSON": ("index.json", b'{"tensors": {'),
    "an index without tensors": ("index.json", json.dumps({BAD: {}}).encode()),
    "an index, one entry without file": ("index.json", json.dumps({"tensors": {
        BAD: {"file": "none.bin", "shape": [1], "dtype": "float32"}}}).encode()),
    "an index, one entry that is none": ("index.json", json.dumps({"tensors": {
        BAD: 3}}).encode()),
}


def compared(network, candidate, **options):
    with Pack.open(network) as pack, Candidate.open(candidate) as found:
        return compare(pack, found, **options)


def told(found):
    """That exactly one thing is in trouble, and the three others are right; gives the sentence."""
    assert not found.ok
    assert found.counts.get("equal", 0) + found.counts.get("explained", 0) == 3
    bad = found.counts.get("unreadable", 0)
    assert bad + len(found.unread) == 1, (found.counts, found.unread)
    assert as_json(found)["ok"] is False
    return sentence(found)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_read_beside_good_ones(network, good, kind):
    name, data, *why = FILES[kind]
    (good / name).write_bytes(data)
    said = told(compared(network, good))
    assert all(part in said for part in (name, str(good), *why)), said
    # what it may hold is not asked for
    assert compared(network, good, only=["tokens/*", "unet/000/mid_block"]).ok


def test_a_tensor_that_cannot_be_read_beside_good_ones_in_its_file(network, tmp_path):
    arrays = {name: saved(array) for name, array in right().items()}
    arrays[BAD] = arrays[BAD][:50]
    (tmp_path / "a.npz").write_bytes(zipped(arrays))
    assert "unet/001/conv_out (block) cannot be read: " in told(
        compared(network, tmp_path / "a.npz"))

    entries, data = {}, b""
    for name, array in right().items():
        kind = {"int64": "I64", "float32": "F32"}[array.dtype.name]
        entries[name] = {"dtype": kind, "shape": list(array.shape),
                         "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    entries[BAD]["shape"][0] = -2
    (tmp_path / "a.safetensors").write_bytes(safetensors(entries, data))
    assert "cannot be {'dtype': 'F32', 'shape': [-2, 4, 8, 6]" in told(
        compared(network, tmp_path / "a.safetensors"))

    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "all.bin").write_bytes(data)
    index = {name: {"file": "all.bin", "offset": one["data_offsets"][0], "shape": one["shape"],
                    "dtype": right()[name].dtype.name, "largest": float("nan")}
             for name, one in entries.items()}
    (tmp_path / "i" / "index.json").write_text("\ufeff" + json.dumps({"tensors": index}))
    for path in (tmp_path / "i", tmp_path / "i" / "index.json"):
        assert "needs file, shape, dtype" in told(compared(network, path))


@pytest.mark.parametrize("kind", ["folder", "link", "loop", "pipe", "socket"])
def test_what_is_no_file_beside_good_ones(network, good, kind):
    path = good / f"{BAD}.npy"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(good / "gone.npy")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    assert f"{BAD}.npy" in told(compared(network, good))


@pytest.mark.parametrize("name", [f"{BAD}.npy", "unet/001"])
def test_what_one_may_not_read_beside_good_ones(network, good, name, monkeypatch):
    """root may read everything: the system's answer to others is given to it."""
    np.save(good / f"{BAD}.npy", 3 * NETWORK)

    def refusing(call):
        def ask(path, *args):
            if str(path) == str(good / name):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args)

        return ask

    for call in (os.open, os.scandir):
        monkeypatch.setattr(os, call.__name__, refusing(call))
    assert "Permission denied" in told(compared(network, good))


def test_two_tensors_of_a_name_beside_good_ones(network, good):
    np.save(good / f"{BAD}.npy", 3 * NETWORK)
    np.savez(good / "more.npz", **{BAD: 3 * NETWORK})
    assert "Leave one of them out" in told(compared(network, good))
    (good / "more.npz").unlink()
    np.savez(good / "more.npz", **{"unet.1.conv_out": 3 * NETWORK})
    assert compared(network, good).ok  # the one that is written exactly so
    (good / f"{BAD}.npy").rename(good / "unet__001__conv_out.npy")
    assert "could both be 'unet/001/conv_out'" in told(compared(network, good))


def test_a_file_that_nobody_asked_for_fails_too_but_ends_nothing(network, good):
    (good / "mine.npy").write_bytes(b"")
    found = compared(network, good)
    assert told(found).startswith(f"{good}/mine.npy: not a readable .npy file: ")
    assert found.counts["missing"] == 2 and "All 3 tensors are within" in sentence(found)
    assert compared(network, good, only=["tokens/*"]).ok


UNRELATED = [
    ".DS_Store", "Thumbs.db", "desktop.ini", "README.md", "log.txt", "run.log", "picture.png",
    "model.pt", "export.json", "manifest.json", "SHA256SUMS", "notes", "._ids.npy", ".ids.npy.swp",
    "ids.npy~", "ids.npy.tmp", "__MACOSX/._ids.npy", ".ipynb_checkpoints/ids.npy", ".git/x.bin",
]


def test_files_that_are_no_tensors_are_left_alone(network, good):
    for name in UNRELATED:
        (good / name).parent.mkdir(exist_ok=True)
        (good / name).write_bytes(b"\0\1")
    with zipfile.ZipFile(good / "more.npz", "w") as archive:
        archive.writestr(f"{BAD}.npy", WHOLE)
        archive.writestr("__MACOSX/unet/001/._conv_out.npy", b"\0\5\x16\7")
        archive.writestr("notes.txt", b"")
    found = compared(network, good)
    assert found.ok and found.extra == [] and found.counts["equal"] == 2


def test_where_nothing_can_be_read_the_reason_is_the_answer(network, tmp_path, capsys):
    (tmp_path / "c").mkdir()
    for name in ("a.npy", "b.npy"):
        (tmp_path / "c" / name).write_bytes(b"")
    with pytest.raises(ModelError, match=r"a\.npy: not a readable .*\(1 more like this\)"):
        compared(network, tmp_path / "c")
    np.save(tmp_path / "c" / "mine.npy", IDS)  # nor of any use
    with pytest.raises(ModelError, match="not a readable"):
        compared(network, tmp_path / "c")
    assert main(["golden", "compare", str(network), str(tmp_path / "c")]) == 3
    assert main(["golden", "bisect", str(network), str(tmp_path / "c" / "a.npy")]) == 3
    capsys.readouterr()


@pytest.mark.parametrize("end", [".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_alone_are_refused_with_a_hint(tmp_path, end):
    (tmp_path / f"a{end}").write_bytes(pickle.dumps([1]))
    for path in (tmp_path, tmp_path / f"a{end}"):
        with pytest.raises(UsageError, match="pickles .* can run any code. Save with safetensors"):
            Candidate.open(path)


def test_the_command_says_it_and_fails(network, good, tmp_path, capsys):
    (good / f"{BAD}.npy").write_bytes(b"")
    (good / "mine.npy").write_bytes(b"")
    reports = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    assert main(["golden", "compare", str(network), str(good), *(
        word for path in reports for word in ("--report", str(path)))]) == 1
    out = capsys.readouterr().out
    assert out.startswith("unet/001/conv_out (block) cannot be read: ")
    assert "1 unreadable" in out and f"\nunreadable: {good}/mine.npy: " in out
    for path in reports:
        assert "mine.npy" in path.read_text(), path.suffix
