"""Golden packs as .zip and .tar.zst: the same bytes each time, and nothing outside the folder."""

import io
import random
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from golden_format_samples import files
from weights_samples import refused

from refsd.__main__ import main
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.packs import archive
from refsd.golden.packs.archive import pack_up, unpack
from refsd.golden.packs.pack import Pack

try:
    import zstandard
except ImportError:
    zstandard = None
needs_zstandard = pytest.mark.skipif(zstandard is None, reason="needs zstandard (refsd[golden])")
KINDS = [".zip", pytest.param(".tar.zst", marks=needs_zstandard)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_holds_the_pack_with_the_same_bytes_each_time(sample, tmp_path, kind):
    one, two = tmp_path / f"one{kind}", tmp_path / f"two{kind}"
    pack_up(sample, one)
    (sample / "notes.txt").write_text("not part of the pack")
    for path in sample.iterdir():
        path.touch()
    pack_up(sample, two)
    assert one.read_bytes() == two.read_bytes()
    unpack(one, tmp_path / "out")
    (sample / "notes.txt").unlink()
    assert files(tmp_path / "out") == files(sample)
    with Pack.open(one) as pack, Pack.open(sample) as folder:
        for name in folder.entries:
            assert pack.read(name).tobytes() == folder.read(name).tobytes()
        assert pack.verify() == []
        temporary = pack.folder
    assert not temporary.exists()


def zip_of(path, members):
    """A zip of (name or ZipInfo, bytes), with names as they are given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            if isinstance(name, str):
                info = zipfile.ZipInfo("x")
                info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
                name = info
            file.writestr(name, data)


def tar_of(path, members, form=tarfile.GNU_FORMAT):
    """A .tar.zst of (name or TarInfo, bytes)."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=form) as file:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    path.write_bytes(zstandard.ZstdCompressor().compress(plain.getvalue()))


def build(path, members):
    (zip_of if path.suffix == ".zip" else tar_of)(path, members)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["pack/", "./"])
def test_a_folder_inside_is_fine(sample, tmp_path, kind, prefix):
    path = tmp_path / f"a{kind}"
    build(path, [(prefix + name, data) for name, data in files(sample).items()])
    with Pack.open(path) as pack:
        assert pack.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_two_folders_are_no_pack(sample, tmp_path, kind):
    path = tmp_path / f"a{kind}"
    build(path, [(f"{name[0]}/{name}", data) for name, data in files(sample).items()])
    refused(lambda: Pack.open(path), "not a plain file name")


@needs_zstandard
def test_headers_about_headers_are_passed_over(sample, tmp_path):
    members = []
    for name, data in files(sample).items():
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.pax_headers = len(data), 1.5, {"comment": "x" * 300}
        members.append((info, data))
    tar_of(tmp_path / "a.tar.zst", members, tarfile.PAX_FORMAT)
    with Pack.open(tmp_path / "a.tar.zst") as pack:
        assert pack.verify() == []


NAMES = ["../outside", "/tmp/refsd-outside", "a/../../outside", "a/b/c", "..", "C:\\outside", "C:x",
         "..\\outside", "\\\\host\\share\\x", "outside.", "outside ", "CON", "nul.json", ".hidden",
         "a//b", "x" * 101, "ä"]


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder_or_mean_something(tmp_path, kind, name):
    path, inside = tmp_path / f"a{kind}", tmp_path / "in" / "side"
    build(path, [(name, b"evil")])
    inside.mkdir(parents=True)
    before = everything(tmp_path)
    refused(lambda: unpack(path, inside), str(path), "plain file")
    assert everything(tmp_path) == before and not Path("/tmp/refsd-outside").exists()


def test_a_nul_in_a_name(tmp_path):
    path = tmp_path / "a.zip"
    zip_of(path, [("manifest.json#../x", b"evil")])
    path.write_bytes(path.read_bytes().replace(b"manifest.json#", b"manifest.json\0"))
    refused(lambda: unpack(path, tmp_path / "out"), str(path))
    assert everything(tmp_path / "out") == []


@needs_zstandard
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
                                  tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    info = tarfile.TarInfo("manifest.json")
    info.type, info.linkname = kind, "/etc/passwd"
    tar_of(tmp_path / "a.tar.zst", [(info, b"")])
    refused(lambda: unpack(tmp_path / "a.tar.zst", tmp_path / "out"), "a link or a device")
    assert everything(tmp_path / "out") == []


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(tmp_path, mode):
    info = zipfile.ZipInfo("manifest.json")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    zip_of(tmp_path / "a.zip", [(info, b"/etc/passwd")])
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "a link or a device")
    assert everything(tmp_path / "out") == []


def test_links_in_a_folder(sample, tmp_path):
    (tmp_path / "mine").write_bytes((sample / "index.tsv").read_bytes())
    (sample / "index.tsv").unlink()
    (sample / "index.tsv").symlink_to(tmp_path / "mine")
    refused(lambda: Pack.open(sample), "index.tsv is not an ordinary file")
    refused(lambda: pack_up(sample, tmp_path / "a.zip"), "index.tsv is a link")


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_appear_twice_are_refused(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    build(path, [("manifest.json", b"{}"), ("Manifest.json", b"[]")])
    refused(lambda: unpack(path, tmp_path / "out"), "appears twice")


def test_a_bomb_is_refused_before_it_is_written(tmp_path):
    zip_of(tmp_path / "a.zip", [("manifest.json", bytes(64 << 20))])
    assert (tmp_path / "a.zip").stat().st_size < 100_000
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "67,108,864 unpacked")
    assert everything(tmp_path / "out") == []
    # and one that says less than it holds: what it says is all that comes out
    data = (tmp_path / "a.zip").read_bytes()
    honest, lie = struct.pack("<L", 64 << 20), struct.pack("<L", 9)
    (tmp_path / "a.zip").write_bytes(data.replace(honest, lie))
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "lies"), "damaged")
    assert (tmp_path / "lies" / "manifest.json").stat().st_size <= 9


@needs_zstandard
@pytest.mark.parametrize("size", [1 << 33, 1 << 50, 1 << 70])
def test_a_tar_that_claims_petabytes(tmp_path, size):
    info = tarfile.TarInfo("manifest.json")
    info.size = size
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "a.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    refused(lambda: unpack(tmp_path / "a.tar.zst", tmp_path / "out"), f"{size:,} unpacked")
    assert everything(tmp_path / "out") == []


@needs_zstandard
def test_a_bomb_in_a_header_about_headers(tmp_path):
    info = tarfile.TarInfo("manifest.json")
    info.pax_headers = {"comment": "x" * (32 << 20)}
    tar_of(tmp_path / "a.tar.zst", [(info, b"")], tarfile.PAX_FORMAT)
    refused(lambda: unpack(tmp_path / "a.tar.zst", tmp_path / "out"), "at most 16,777,216")
    assert everything(tmp_path / "out") == []


@needs_zstandard
def test_a_tar_of_negative_size_and_a_window_of_gigabytes(tmp_path):
    info = tarfile.TarInfo("manifest.json")
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 12  # -1, and the checksum of it
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    (tmp_path / "a.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(bytes(data)))
    refused(lambda: unpack(tmp_path / "a.tar.zst", tmp_path / "out"), "ends too early")
    wide = zstandard.ZstdCompressionParameters(window_log=29)
    packer = zstandard.ZstdCompressor(compression_params=wide)
    stream = packer.compressobj()
    (tmp_path / "a.tar.zst").write_bytes(stream.compress(bytes(4096)) + stream.flush())
    refused(lambda: unpack(tmp_path / "a.tar.zst", tmp_path / "wide"), "damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_archives_that_are_cut_or_altered(sample, tmp_path, kind):
    path = tmp_path / f"a{kind}"
    pack_up(sample, path)
    data, draw = path.read_bytes(), random.Random(43)

    def noticed(damaged):
        """Whether it is refused; a date or a checksum at the end may change and no tensor does."""
        path.write_bytes(damaged)
        try:
            with Pack.open(path) as pack:
                assert pack.verify() == [] and files(pack.folder) == files(sample)
        except ModelError as error:
            assert str(path) in str(error)
            return True
        return False

    assert all(noticed(data[:cut]) for cut in range(4, len(data) - 64, len(data) // 16))
    flipped = []
    for _ in range(120):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        flipped.append(noticed(damaged))
    assert sum(flipped) > 60


def test_what_is_no_archive(sample, tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(b"\x89PNG....")
    refused(lambda: Pack.open(tmp_path / "a.zip"), "neither a zip nor a Zstandard file")
    (tmp_path / "a.zip").write_bytes(b"")
    refused(lambda: Pack.open(tmp_path / "a.zip"), "neither a zip nor a Zstandard file")
    refused(lambda: pack_up(sample, tmp_path / "a.tar.gz"), ".zip or .tar.zst", error=UsageError)
    refused(lambda: pack_up(sample, tmp_path / "none" / "a.zip"), "cannot be written",
            error=ResourceError)
    refused(lambda: unpack(tmp_path / "a.zip", sample), "not empty", error=UsageError)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    refused(lambda: pack_up(sample, tmp_path / "a.tar.zst"), "refsd[golden]", error=ResourceError)
    assert not list(tmp_path.glob(".*.tmp")) and not list(tmp_path.glob("*.zst"))


def test_encrypted_and_odd_members_are_refused(sample, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("manifest.json", b"{}")
    refused(lambda: unpack(path, tmp_path / "out"), "stored or deflated")
    zip_of(path, [("manifest.json", b"{}")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(lambda: unpack(path, tmp_path / "out"), "encrypted")


def test_too_many_files_and_a_full_disk(sample, tmp_path, monkeypatch):
    pack_up(sample, tmp_path / "a.zip")
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "more than 3 files")
    shutil.rmtree(tmp_path / "out")
    monkeypatch.undo()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "open", full, raising=False)
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "No space left",
            error=ResourceError)


def test_the_command_line_packs_up(sample, tmp_path, capsys):
    path = str(tmp_path / "a.zip")
    assert main(["golden", "export", str(sample), "-o", path, "--to", "pack"]) == 0
    assert main(["golden", "info", path, "--verify"]) == 0
    assert "every file and tensor is as it was made" in capsys.readouterr().out
    assert main(["golden", "export", path, "-o", str(tmp_path / "a.tgz"), "--to", "pack"]) == 2
    assert ".zip or .tar.zst" in capsys.readouterr().err
    assert main(["golden", "export", path, "-o", path, "--to", "pack", "--only", "x"]) == 2
