"""Golden packs that were altered, forged or are too large: refused in one line, before any harm."""

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from golden_format_samples import files, reseal, tamper, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import file_of, refused

from refsd.errors import ModelError, UsageError
from refsd.golden.packs import manifest as manifest_module
from refsd.golden.packs.manifest import Entry, Manifest, read_manifest, write_manifest
from refsd.golden.packs.pack import Pack

NAME = "unet/000/conv_in"
SHARD = "tensors-00000.safetensors"


def entry(manifest, name=NAME):
    return next(row for row in manifest["tensors"] if row["name"] == name)


def put(path, value):
    """A change that puts a value at a path of the manifest, or of the entry NAME after "entry"."""
    def change(manifest):
        *way, last = path
        place = manifest
        for step in way:
            place = entry(manifest) if step == "entry" else place[step]
        place[last] = value
    return change


# Each is sealed with the right hash, so that the manifest's own rules answer. What a rule refuses
# tests/test_rules.py shows; here each key has one.
FORGED = {
    "a shape of 2^62 numbers": (put(["entry", "shape"], [2**31, 2**31]), "conv_in"),
    "a shape of petabytes": (put(["entry", "shape"], [2**47]), "conv_in"),
    "a negative size": (put(["entry", "shape"], [-2, 4, 6, 5]), "shape"),
    "a dtype that is code": (put(["entry", "dtype"], "object"), "dtype"),
    "another dtype": (put(["entry", "dtype"], "float16"), "bundle altered", "conv_in"),
    "an unknown key of an entry": (put(["entry", "exec"], "x"), "unknown key 'exec'"),
    "an unknown key": (put(["exec"], "x"), "unknown key 'exec'"),
    "an offset": (put(["entry", "offset"], -8), "unknown key 'offset'"),
    "a missing key": (lambda m: m.pop("recipe"), "missing key 'recipe'"),
    "a missing key of an entry": (lambda m: entry(m).pop("sha256"), "missing key 'sha256'"),
    "a file of a petabyte": (put(["files", SHARD, "bytes"], 1 << 50), "bundle altered", SHARD),
    "a file of negative size": (put(["files", SHARD, "bytes"], -8), "files"),
    "a file with a path": (put(["files", "../x"], {"sha256": "0" * 64, "bytes": 0}), "files"),
    "a shard with a path": (put(["entry", "shard"], "../" + SHARD), "shard"),
    "a shard that is no file of it": (put(["entry", "shard"], "x.safetensors"), "files"),
    "a shard that is no shard": (put(["entry", "shard"], "index.tsv"), "bundle altered: index.tsv"),
    "a name with a path": (put(["entry", "name"], "../../x"), "name"),
    "a name twice": (put(["entry", "name"], "tokens/000/ids"), "appears twice"),
    "an order that is none": (put(["entry", "index"], 7), "index"),
    "an input that is not there": (put(["entry", "inputs"], {"x": "tensor:y"}), "'y'"),
    "an input that is a path": (put(["entry", "inputs"], {"x": "/etc/passwd"}), "inputs"),
    "a hash that is none": (put(["entry", "sha256"], "z" * 64), "sha256"),
    "a tolerance below 0": (put(["entry", "tolerance"], {"float32": {"worst": -1e-9}}),
                            "tolerance"),
    "a tolerance in words": (put(["entry", "tolerance"], {"float32": {"worst": "1 %"}}),
                             "tolerance"),
    "a tolerance that is true": (put(["entry", "tolerance"], {"float32": True}), "tolerance"),
    "statistics of another kind": (put(["entry", "stats"], {"min": 0}), "stats"),
    "a recipe that is a list": (put(["recipe"], [1]), "recipe"),
    "versions that are numbers": (put(["versions"], {"numpy": 2}), "versions"),
    "a checkpoint of nothing": (put(["checkpoints"], [{"percent": 0, "step": 0, "tensor": "y"}]),
                                "'y'"),
    "a kind that is none": (put(["kind"], "weights"), "kind"),
    "nesting without end": (put(["model"], {"a": [[[[[[[[[[]]]]]]]]]]}), "model"),
    "a schema of the future": (put(["schema"], 2), "schema is 2", "newer refsd"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_manifests_are_refused_without_allocating(sample, case):
    change, *words = FORGED[case]
    tamper(sample, change)

    def use():
        with Pack.open(sample) as pack:
            pack.read(NAME)

    tracemalloc.start()
    refused(use, *words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the largest claim is 2^64 bytes; parsing and messages take 1 MB


@pytest.mark.parametrize("text, word", [
    (b'"worst": NaN', "NaN"), (b'"worst": Infinity', "Infinity"),
    (b'"worst": -Infinity', "Infinity"),
    (b'"worst": 1e999', "tolerance"), (b'"worst": 1, "worst": 2', "appears twice"),
    (b'"worst": ' + b"9" * 5000, "JSON"), (b'"worst": ' + b"[" * 100_000, "JSON"),
    (b'"worst": "\xff"', "UTF-8"), (b'"worst": ' + b"9" * 30, "tolerance"),
])
def test_json_that_is_none(sample, text, word):
    path = sample / "manifest.json"
    data = path.read_bytes().replace(b'"worst": 1e-05', text)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (sample / "SHA256SUMS").write_text(f"{digest}  manifest.json\n")
    refused(lambda: Pack.open(sample), word)


def forge_shard(folder, header, body=b""):
    """Another shard in place of the first, sealed."""
    data = file_of(header, body)
    (folder / SHARD).write_bytes(data)
    tamper(folder, lambda manifest: manifest["files"][SHARD].update(
        bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def test_shards_with_impossible_offsets(sample):
    for offsets, shape in (((-8, 0), [2]), ((0, 1 << 60), [1 << 58]), ((8, 0), [2]),
                           ((1 << 62, (1 << 62) + 8), [2])):
        header = {NAME: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
        forge_shard(sample, header, b"\0" * 8)
        with Pack.open(sample) as pack:
            name = next(name for name, e in pack.entries.items() if e.shard == SHARD)
            refused(lambda: pack.read(name), f"bundle altered: {SHARD}")  # noqa: B023  used at once


@pytest.mark.parametrize("file", ["manifest.json", "SHA256SUMS", "index.tsv", SHARD,
                                  "tensors-00001.safetensors"])
def test_one_flipped_bit_anywhere_is_found_and_named(sample, file):
    data = (sample / file).read_bytes()
    draw = random.Random(45)
    places = {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(60))}
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        (sample / file).write_bytes(flipped)
        try:
            with Pack.open(sample) as pack:
                found = [fault for fault in pack.verify() if fault.kind == "altered"]
            text = " ".join(fault.sentence for fault in found)
        except ModelError as error:
            text = str(error)
        assert "bundle altered: " in text and file in text, f"byte {place}: {text}"


def test_reading_an_altered_tensor_names_it(sample):
    with Pack.open(sample) as pack:
        whole = {name: pack.read(name).tobytes() for name in pack.entries}
    for path in sorted(sample.glob("*.safetensors")):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with Pack.open(sample) as pack:
        bad = {fault.name for fault in pack.verify()}
        altered = bad & set(tensors())
        assert len(altered) == len(list(sample.glob("*.safetensors")))  # the last of each shard
        for name in pack.entries:
            if name in altered:
                refused(lambda: pack.read(name), f"bundle altered: {name} ")  # noqa: B023
            else:
                assert pack.read(name).tobytes() == whole[name]


@pytest.mark.parametrize("file", ["SHA256SUMS", "index.tsv", SHARD])
def test_missing_and_cut_files_are_named(sample, file):
    data = (sample / file).read_bytes()
    (sample / file).write_bytes(data[:-1])
    refused(lambda: Pack.open(sample), "bundle altered: ", file)
    (sample / file).unlink()
    refused(lambda: Pack.open(sample), f"bundle altered: {file} is missing")
    (sample / file).symlink_to("/dev/zero")
    refused(lambda: Pack.open(sample), file, "not an ordinary file")


def test_what_is_missing_in_a_shard_or_too_much(sample, caplog):
    header = {"other": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    forge_shard(sample, header, b"\0" * 8)
    (sample / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING), Pack.open(sample) as pack:
        assert "'notes.txt' is not part of the pack" in caplog.text
        faults = {(fault.name, fault.kind) for fault in pack.verify()}
        inside = {name for name, e in pack.entries.items() if e.shard == SHARD}
        assert faults == {("other", "extra"), ("notes.txt", "extra"),
                          *((name, "missing") for name in inside)}
        refused(lambda: pack.read(min(inside)), f"bundle altered: {min(inside)} is missing")
        refused(lambda: pack.read("unet/000/conv_im"), "did you mean unet/000/conv_in?",
                error=UsageError)


def test_a_pack_older_than_this_refsd(sample, monkeypatch):
    monkeypatch.setattr(manifest_module, "SCHEMA", 2)
    refused(lambda: Pack.open(sample), "schema is 1, this refsd reads 2", "pack anew")


def test_no_pack_at_all(tmp_path):
    refused(lambda: Pack.open(tmp_path / "none"), "no such pack")
    refused(lambda: Pack.open(tmp_path), "no golden pack")
    (tmp_path / "manifest.json").write_text('{"schema": 9}')
    refused(lambda: Pack.open(tmp_path), "schema is 9", "newer refsd")
    (tmp_path / "manifest.json").write_text('{"name": "some other program\'s"}')
    refused(lambda: Pack.open(tmp_path), "schema is None")
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    refused(lambda: Pack.open(tmp_path), "not an ordinary file")


READER = """
import re, sys
from refsd.golden.packs.pack import Pack

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

with Pack.open(sys.argv[1]) as pack:
    opened = peak()
    names = list(pack.entries)
    for name in names[::200]:
        assert pack.read(name).nbytes == 5 << 20
    print(len(names), opened, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_thousand_tensors_of_50_gb_are_read_in_bounded_memory(tmp_path):
    count, size = 10_000, 5 << 20
    zeros = hashlib.sha256(bytes(size)).hexdigest()
    names = [f"unet/{i:03d}/mid_block.{j}" for i in range(100) for j in range(100)]
    header = json.dumps({name: {"dtype": "F32", "shape": [size // 4],
                                "data_offsets": [i * size, (i + 1) * size]}
                         for i, name in enumerate(names)}).encode()
    total = 8 + len(header) + count * size
    (tmp_path / SHARD).write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        os.truncate(tmp_path / SHARD, total)
    except OSError as error:
        pytest.skip(f"no sparse file of 50 GB here: {error}")
    nothing = hashlib.sha256(b"").hexdigest()
    (tmp_path / "index.tsv").write_bytes(b"")
    manifest = Manifest(
        kind="run", title="", recipe={}, model={}, versions={}, machine={}, checkpoints=[],
        # nobody hashes 50 GB here: a file's hash is compared by verify() alone
        files={"index.tsv": {"bytes": 0, "sha256": nothing},
               SHARD: {"bytes": total, "sha256": nothing}},
        invariants=[], tensors=[
            Entry(name, "add", "unet", i, (size // 4,), "float32", {}, {}, i, SHARD, zeros,
                  {"min": 0.0, "max": 0.0, "mean": 0.0, "l2": 0.0, "nan": 0, "inf": 0})
            for i, name in enumerate(names)])
    (tmp_path / "manifest.json").write_bytes(write_manifest(manifest))
    reseal(tmp_path)
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True,
                          text=True, check=True, cwd=Path(__file__).parents[1])
    read, opened, peak = map(float, done.stdout.split())
    assert read == count
    # MB: Python with NumPy takes 35, the table of 5 MB about five times that as objects
    assert opened < 100
    assert peak - opened < 4 * 5 + 10  # the tensor and its copies, the shard's header


def test_files_are_only_read(sample):
    before = files(sample)
    with Pack.open(sample) as pack:
        pack.verify()
    assert files(sample) == before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["../x", "tensor:x", "weight:unet.x", "C:x", "a\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3), max_leaves=6)


def places(value, way=()):
    """The way to every value in a JSON value."""
    yield way
    for key in value if isinstance(value, dict) else range(len(value)) if (
            isinstance(value, list)) else ():
        yield from places(value[key], (*way, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_taken_or_refused_with_a_reason(original, data):
    manifest = json.loads((original / "manifest.json").read_bytes())
    *way, last = data.draw(st.sampled_from([way for way in places(manifest) if way]))
    put(way + [last], data.draw(VALUES))(manifest)
    text = json.dumps(manifest).encode()
    try:
        found = read_manifest(text)
    except ModelError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:  # what is taken is what refsd itself would have written
        assert json.loads(write_manifest(found)) == manifest
