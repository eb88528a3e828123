"""Golden packs: what is written is what is read, always the same bytes, and nothing is believed."""

import math
import os
import shutil
import subprocess
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from golden_format_samples import files, fill, tensors, write, writer
from weights_samples import refused

from refsd.errors import ResourceError, UsageError
from refsd.golden.packs.manifest import Entry, Manifest, read_manifest, write_manifest
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.rules import is_file_name, is_name
from refsd.golden.packs.shards import sha256, statistics

SHARD = "tensors-00000.safetensors"


def stored(array, keywords):
    """What a pack is to hold: float64 rounded, unless it is kept."""
    array = np.asarray(array)
    rounded = array.dtype == np.float64 and not keywords.get("keep")
    return array.astype(np.float32) if rounded else array


def test_a_pack_gives_back_what_was_added_in_its_order(sample):
    with Pack.open(sample) as pack:
        assert list(pack.entries) == list(tensors())
        for index, (name, (array, keywords)) in enumerate(tensors().items()):
            found, entry, wanted = pack.read(name), pack.entries[name], stored(array, keywords)
            assert found.dtype == wanted.dtype and found.shape == wanted.shape == entry.shape
            assert found.tobytes() == wanted.tobytes()
            assert (entry.index, entry.op) == (index, keywords.get("op"))
            assert (entry.stage, entry.step) == (keywords["stage"], keywords.get("step"))
            assert entry.nbytes == wanted.nbytes and entry.note == keywords.get("note", "")
        assert pack.entries["unet/000/conv_in"].options == {"padding": [1, 1], "groups": 1}
        assert pack.manifest.checkpoints == [
            {"percent": 50, "step": 1, "tensor": "denoise/000/guided"}]
        assert pack.verify() == []


def test_the_safetensors_library_reads_the_shards(sample):
    found = {}
    for path in sorted(sample.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    assert found.keys() == tensors().keys()
    for name, (array, keywords) in tensors().items():
        assert found[name].tobytes() == stored(array, keywords).tobytes()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_reads_the_list(sample):
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=sample,
                          capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == len(list(sample.iterdir())) - 1


def test_every_number_lies_at_a_multiple_of_its_size(sample):
    for line in (sample / "index.tsv").read_text().splitlines():
        _, dtype, _, _, start, _, _ = line.split("\t")
        assert int(start) % np.dtype(dtype).itemsize == 0, line


def test_the_same_tensors_give_the_same_bytes_however_they_lie_in_memory(sample, tmp_path):
    def another_layout(array):
        array = np.asarray(array)
        wide = np.zeros((*array.shape, 2), array.dtype.newbyteorder(">"))
        wide[..., 0] = array
        return np.asarray(wide[..., 0])

    write(tmp_path / "again", found={name: (another_layout(array), keywords)
                                     for name, (array, keywords) in tensors().items()})
    assert files(tmp_path / "again") == files(sample)


@pytest.mark.parametrize("how", ["error", "killed"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9, 10])
def test_a_recording_that_is_interrupted_goes_on_to_the_same_bytes(sample, tmp_path, count, how):
    folder, found = tmp_path / "again", list(tensors().items())
    if how == "error":
        with pytest.raises(ZeroDivisionError), writer(folder) as pack:
            fill(pack, found[:count])
            raise ZeroDivisionError
        assert (folder / "unfinished.jsonl").exists()
    else:
        pack = writer(folder)  # nothing is closed: the process is gone
        fill(pack, found[:count])
    refused(lambda: Pack.open(folder), "interrupted")
    with writer(folder, resume=True) as pack:
        held = sum(pack.holds(name) for name, _ in found)
        assert held == count if how == "error" else held <= count
        fill(pack, found)  # what is held is compared and passed over
    assert files(folder) == files(sample)


def test_what_was_torn_or_damaged_is_recorded_again(sample, tmp_path):
    folder, found = tmp_path / "again", list(tensors().items())
    fill(writer(folder), found)  # killed with two shards on disk or more
    assert (folder / "tensors-00001.safetensors").exists()
    journal = (folder / "unfinished.jsonl").read_bytes()
    (folder / "unfinished.jsonl").write_bytes(journal[:-20])  # killed in the middle of a line
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])
    (folder / f".{SHARD}.0123abcd.tmp").write_bytes(b"in the middle of a file")
    with writer(folder, resume=True) as pack:
        assert not any(pack.holds(name) for name in tensors())
        fill(pack, found)
    assert files(folder) == files(sample)


def test_a_recording_of_something_else_is_not_continued(tmp_path):
    fill(writer(tmp_path / "a"), list(tensors().items())[:4])
    other = {"prompt": "a cube"}
    refused(lambda: writer(tmp_path / "a", resume=True, recipe=other), "another recipe",
            error=UsageError)
    refused(lambda: writer(tmp_path / "a", resume=True, shard_bytes=1), "another shard_bytes",
            error=UsageError)
    refused(lambda: writer(tmp_path / "a"), "not empty", error=UsageError)
    whole = (tmp_path / "a" / "unfinished.jsonl").read_bytes()
    no_size = whole.split(b"\n")[1].replace(b"bytes", b"size")
    for row in (b"[]", b"{}", b'{"shard": "../x"}', no_size):
        (tmp_path / "a" / "unfinished.jsonl").write_bytes(whole + row + b"\n")
        refused(lambda: writer(tmp_path / "a", resume=True), "unfinished.jsonl: line")
    (tmp_path / "a" / "unfinished.jsonl").write_bytes(whole)
    with writer(tmp_path / "a", resume=True) as pack:
        name = next(iter(tensors()))
        assert pack.holds(name)
        refused(lambda: pack.add(name, np.zeros(3), stage="tokens"), "other values",
                error=UsageError)
        pack.close()
    refused(lambda: writer(tmp_path / "a", resume=True), "finished", error=UsageError)


def test_a_full_disk_is_said_and_the_recording_goes_on_when_there_is_room(
        sample, tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    def record():
        with writer(tmp_path / "again", resume=True) as pack:
            monkeypatch.setattr(os, "replace", full)
            fill(pack, tensors().items())

    refused(record, "No space left on device", error=ResourceError)
    monkeypatch.undo()
    with writer(tmp_path / "again", resume=True) as pack:
        fill(pack, tensors().items())
    assert files(tmp_path / "again") == files(sample)


def test_a_link_in_the_folder_is_never_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    fill(writer(tmp_path / "a"), list(tensors().items())[:4])
    for name in (SHARD, "index.tsv", "manifest.json", "SHA256SUMS"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
        (tmp_path / "a" / name).symlink_to(tmp_path / "mine")
    with writer(tmp_path / "a", resume=True) as pack:
        fill(pack, tensors().items())
    assert not any(path.is_symlink() for path in (tmp_path / "a").iterdir())

    pack = writer(tmp_path / "b")
    (tmp_path / "b" / "unfinished.jsonl").unlink()
    (tmp_path / "b" / "unfinished.jsonl").symlink_to(tmp_path / "mine")
    refused(lambda: fill(pack, tensors().items()), "unfinished.jsonl", error=ResourceError)
    assert (tmp_path / "mine").read_text() == "mine"


def test_recording_holds_one_shard_in_memory(tmp_path):
    rows = np.zeros((256, 1024), "f4")  # 1 MB; 64 of them in shards of 4
    tracemalloc.start()
    with writer(tmp_path / "big", shard_bytes=4 << 20) as pack:
        for i in range(64):
            rows[0, 0] = i
            pack.add(f"unet/{i:03d}/x", rows, stage="unet", step=i)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the open shard, the next tensor, and 1 MB in float64 with its square, finite flags and sums
    assert peak < (4 + 1 + 3 * 8 + 1) << 20
    with Pack.open(tmp_path / "big") as pack:
        assert len(pack.manifest.files) == 17 and pack.read("unet/063/x")[0, 0] == 63


MISUSE = {
    "a name with a path": ({"name": "../x"}, "'../x'"),
    "a name that ends in a dot": ({"name": "unet/conv."}, "name"),
    "a name that exists": ({"name": "unet/000/a"}, "added twice"),
    "an input that is not there": ({"inputs": {"x": "tensor:unet/000/b"}}, "added before it"),
    "an input that is no reference": ({"inputs": {"x": "unet/000/a"}}, "inputs"),
    "an option that is no JSON": ({"options": {"dtype": np.dtype("f4")}}, "options"),
    "an option that is infinite": ({"options": {"eps": math.inf}}, "options"),
    "a tolerance that is NaN": ({"tolerance": {"float32": {"worst": math.nan}}}, "tolerance"),
    "a tolerance below 0": ({"tolerance": {"float32": {"worst": -1.0}}}, "tolerance"),
    "objects": ({"array": np.array([None])}, "object"),
    "complex numbers": ({"array": np.zeros(2, complex)}, "complex128"),
    "a stage that is no word": ({"stage": "U-Net"}, "stage"),
    "a step below 0": ({"step": -1}, "step"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_the_maker_hears_of_mistakes_at_once(tmp_path, case):
    change, word = MISUSE[case]
    given = {"name": "unet/000/b", "array": np.zeros(2), "stage": "unet", "step": 0, **change}
    with writer(tmp_path / "a") as pack:
        pack.add("unet/000/a", np.zeros(2), stage="unet", step=0)
        refused(lambda: pack.add(given.pop("name"), given.pop("array"), **given), word,
                error=UsageError)
        refused(lambda: pack.checkpoint(25, "unet/000/c", step=1), "no tensor", error=UsageError)
        refused(lambda: pack.invariant("x", math.nan, limit=1), "value", error=UsageError)
    with Pack.open(tmp_path / "a") as pack:
        assert list(pack.entries) == ["unet/000/a"]


def test_float64_is_rounded_to_nearest(tmp_path):
    draw = np.random.default_rng(3)
    x = np.concatenate([draw.standard_normal(1000) * 10.0 ** draw.integers(-50, 45, 1000),
                        [1 + 2.0**-24, 1 + 3 * 2.0**-24, 2.0**-150, -0.0]])
    with writer(tmp_path / "a") as pack:
        pack.add("a", x, stage="decode")
    with Pack.open(tmp_path / "a") as pack:
        found = pack.read("a")
    up, down = np.nextafter(found, np.float32(np.inf)), np.nextafter(found, np.float32(-np.inf))
    finite = np.isfinite(found) & np.isfinite(up) & np.isfinite(down)
    error = np.abs(found.astype("f8") - x)[finite]
    assert (error <= np.abs(up.astype("f8") - x)[finite]).all()
    assert (error <= np.abs(down.astype("f8") - x)[finite]).all()
    assert (np.abs(x[~finite]) > 3.4e38).all() and finite.sum() > 900
    assert found[-4:].tolist() == [1.0, 1 + 2.0**-22, 0.0, 0.0] and np.signbit(found[-1])


def test_statistics_are_those_of_exact_sums():
    draw = np.random.default_rng(5)
    x = (draw.standard_normal(3_000_001) * 10.0 ** draw.integers(-3, 3, 3_000_001)).astype("f4")
    x[[5, 1_500_000]], x[[6, 7, 3_000_000]] = np.nan, [np.inf, -np.inf, np.inf]
    finite = x[np.isfinite(x)].astype("f8")
    found = statistics(x)
    assert (found["nan"], found["inf"]) == (2, 3)
    assert (found["min"], found["max"]) == (finite.min(), finite.max())
    # 3,000,000 / 256 terms a column, each sum rounded: n u sum |x|, and the division
    allowed = 11_720 * 2.0**-53 * math.fsum(np.abs(finite)) / finite.size
    assert abs(found["mean"] - math.fsum(finite) / finite.size) <= allowed
    assert found["l2"] == pytest.approx(math.sqrt(math.fsum(finite**2)), rel=11_722 * 2.0**-53)
    zero = statistics(np.array([-0.0], "f4"))
    assert zero["min"].hex() == zero["max"].hex() == "0x0.0p+0"
    nothing = {"min": None, "max": None, "mean": None, "l2": None}
    assert statistics(np.zeros((0, 3), "f4")) == {**nothing, "nan": 0, "inf": 0}
    assert statistics(np.array([np.nan, np.inf])) == {**nothing, "nan": 1, "inf": 1}
    large = statistics(np.array([1e308, 1e308, 1e200]))
    assert (large["max"], large["mean"], large["l2"]) == (1e308, None, None)


def test_names_of_tensors_and_files():
    for name in ("unet/003/down_blocks.0.resnets.0.conv1", "text/000/x", "decode/a.add.2", "x",
                 "unet/000/conv_in:x", "unet/000/up.concat:tensors.1", "conv2d/odd-channels_1=3"):
        assert is_name(name), name
    for name in ("", "/x", "x/", "a//b", "a/../b", "..", ".", "a/.", "a.", "a./b", ".a", "a b",
                 "a\\b", "a\0", "a\n", "x" * 301, "é", "a:b:c", "a:", "C:/x", 3, None):
        assert not is_name(name), name
    for name in ("../x", "/x", "a/b", "a\\b", "C:x", "x.", "x\0", "CON", "nul.txt", "Com1.bin", "",
                 ".hidden", "x" * 101, "a..b"):
        assert not is_file_name(name), name
    assert is_file_name("tensors-00012.safetensors") and is_file_name("console.txt")


def test_a_manifest_survives_its_own_writing(sample):
    data = (sample / "manifest.json").read_bytes()
    manifest = read_manifest(data)
    assert write_manifest(manifest) == data
    assert isinstance(manifest, Manifest) and isinstance(manifest.tensors[0], Entry)
    assert data.isascii() and data.count(b"\n") == len(manifest.tensors) + 13


def test_hashes_are_of_little_endian_bytes_in_c_order():
    x = np.arange(6, dtype="f4").reshape(2, 3)
    assert sha256(x) == sha256(x.astype(">f4")) == sha256(np.asfortranarray(x))
    assert sha256(x) != sha256(x.T)
