"""Packs as one file, .zip or .tar.zst: written with the same bytes each time, read with suspicion.

Only plain files of a flat folder come out, into an empty folder, and not more bytes than an archive
of that size may hold. Everything else is refused before it is written: paths, links, devices,
names that mean something to a system, names that appear twice.
"""

import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from refsd.atomic import empty_folder, replacing
from refsd.errors import ModelError, ResourceError, UsageError, damaged
from refsd.golden.packs.manifest import MAX_MANIFEST, read_manifest
from refsd.golden.packs.rules import is_file_name, shown
from refsd.golden.packs.writer import MANIFEST, SUMS
from refsd.weights.files import open_file, read_bytes

SUFFIXES = (".zip", ".tar.zst")
MAX_FILES = 100_000
# Unpacked, an archive may take so many times its own bytes, or LITTLE if that is more. Floats are
# packed 1.1 to 1, a manifest 20 to 1; zeros, which bombs are made of, 1000 to 1 and beyond.
RATIO, LITTLE = 100, 16 << 20
MAX_WINDOW = 1 << 27  # bytes that unpacking .zst may hold
CHUNK = 1 << 20
# What zipfile raises for damaged files, besides its own BadZipFile.
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error,
              UnicodeDecodeError)
ZERO_DATE = (1980, 1, 1, 0, 0, 0)


class Member(NamedTuple):
    """One file of an archive: its name in the pack, its size, and what gives its bytes."""

    name: str
    size: int
    source: BinaryIO


def pack_up(folder: str | Path, file: str | Path) -> None:
    """Write the pack in a folder as one .zip or .tar.zst, in place of an older one.

    A .zip is not compressed: its bytes follow from the pack alone. Those of a .tar.zst follow from
    the pack and the version of Zstandard. Raises UsageError for another suffix, ModelError for what
    is no pack, ResourceError when it cannot be written.
    """
    folder, file = Path(folder), Path(file)
    if not str(file).endswith(SUFFIXES):
        raise UsageError(f"{file}: the name of an archive is to end in {' or '.join(SUFFIXES)}")
    manifest = read_manifest(read_bytes(folder / MANIFEST, limit=MAX_MANIFEST),
                             f"{folder / MANIFEST}")
    names = sorted([MANIFEST, SUMS, *manifest.files])
    link = next((name for name in names if (folder / name).is_symlink()), None)
    if link is not None:
        raise ModelError(f"{folder}: {link} is a link. A pack has none; copy the file itself")
    write = _write_zip if file.suffix == ".zip" else _write_tar_zst
    with replacing(file) as draft:
        write(folder, names, draft)


def _write_zip(folder: Path, names: list[str], draft: Path) -> None:
    with zipfile.ZipFile(draft, "x") as archive:
        for name in names:
            with open_file(folder / name) as source:
                info = zipfile.ZipInfo(name, ZERO_DATE)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                info.file_size = os.fstat(source.fileno()).st_size
                with archive.open(info, "w", force_zip64=info.file_size >= 1 << 31) as target:
                    shutil.copyfileobj(source, target, CHUNK)


def _write_tar_zst(folder: Path, names: list[str], draft: Path) -> None:
    packer = _zstandard().ZstdCompressor(level=3, write_checksum=True)
    with (open(draft, "xb") as file, packer.stream_writer(file, closefd=False) as target,
          tarfile.open(fileobj=target, mode="w|", format=tarfile.GNU_FORMAT) as archive):
        for name in names:
            with open_file(folder / name) as source:
                info = tarfile.TarInfo(name)
                info.size = os.fstat(source.fileno()).st_size
                archive.addfile(info, source)


def unpack(file: str | Path, folder: str | Path) -> None:
    """Unpack a .zip or .tar.zst of a pack into an empty folder; nothing is written elsewhere.

    The files may lie in one folder inside the archive. Raises ModelError for an archive that is
    damaged, unsafe, or larger than it may be, ResourceError when it cannot be written.
    """
    file, folder = Path(file), empty_folder(folder)
    with open_file(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        magic = opened.read(4)
        opened.seek(0)
        if magic[:2] == b"PK":
            members, damage = _zip_members(opened, file, size), ZIP_DAMAGE
        elif magic == b"\x28\xb5\x2f\xfd":
            members = _tar_members(opened, file, size)
            damage = (_zstandard().ZstdError, tarfile.TarError)
        else:
            raise ModelError(f"{file}: neither a zip nor a Zstandard file. Give a pack's folder, "
                             ".zip or .tar.zst")
        try:
            _write_members(members, file, folder)
        except damage as error:
            raise damaged(f"{file}: bundle altered: the archive is damaged "
                          f"({error})") from None
        except OSError as error:
            raise ResourceError(f"{folder}: {file} cannot be unpacked there: "
                                f"{error.strerror or error}. Give another place") from None


def _write_members(members: Iterator[Member], file: Path, folder: Path) -> None:
    seen: set[str] = set()
    for name, size, source in members:
        if name.lower() in seen:
            raise damaged(f"{file}: {shown(name)} appears twice in the archive")
        if len(seen) == MAX_FILES:
            raise ModelError(f"{file}: more than {MAX_FILES:,} files in the archive. "
                             "Unpack it yourself if you trust it")
        seen.add(name.lower())  # some systems take Name and name for the same
        with open(folder / name, "xb") as target:
            while size:
                part = source.read(min(size, CHUNK))
                if not part:
                    raise ModelError(f"{file}: bundle altered: {name} ends too early. Fetch it "
                                     "again")
                target.write(part)
                size -= len(part)


def _plain_name(path: str, root: list[str], file: Path) -> str:
    """The file name in a member's path, which may have one folder before it, the same for all."""
    parts = path.removeprefix("./").split("/")
    root.append("/".join(parts[:-1]))
    if len(parts) > 2 or not all(map(is_file_name, parts)) or root[-1] != root[0]:
        raise ModelError(f"{file}: {shown(path)} in the archive is not a plain file name; "
                         "expected the files of one flat folder")
    return parts[-1]


def _check_size(total: int, archive: int, file: Path) -> None:
    limit = max(LITTLE, RATIO * archive)
    if total > limit:
        raise ModelError(f"{file}: the archive has {archive:,} bytes and claims {total:,} unpacked,"
                         f" at most {limit:,} are believed. Unpack it yourself if you trust it")


def _zip_members(opened: BinaryIO, file: Path, size: int) -> Iterator[Member]:
    with zipfile.ZipFile(opened) as archive:
        root: list[str] = []
        members = [(_zip_name(info, root, file), info) for info in archive.infolist()
                 if not info.is_dir()]
        _check_size(sum(info.file_size for _, info in members), size, file)
        for name, info in members:
            with archive.open(info) as source:
                yield Member(name, info.file_size, source)
                source.read(1)  # the end of the member: zipfile compares its checksum there


def _zip_name(info: zipfile.ZipInfo, root: list[str], file: Path) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ModelError(f"{file}: {shown(info.filename)} in the archive is a link or a device, "
                         "expected plain files")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(f"{file}: {shown(info.filename)} in the archive is encrypted or packed in "
                         "an unusual way, expected stored or deflated")
    return _plain_name(info.orig_filename, root, file)


def _tar_members(opened: BinaryIO, file: Path, size: int) -> Iterator[Member]:
    unpacker = _zstandard().ZstdDecompressor(max_window_size=MAX_WINDOW)
    root: list[str] = []
    total = 0
    with unpacker.stream_reader(opened, read_across_frames=True, closefd=False) as stream:
        stream = _Limited(stream, size, file)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                total += info.size
                _check_size(total, size, file)
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    yield Member(_plain_name(info.name, root, file), info.size,
                                 archive.extractfile(info))
                elif not info.isdir():
                    raise ModelError(f"{file}: {shown(info.name)} in the archive is a link or a "
                                     "device, expected plain files")
        while stream.read(CHUNK):  # the end of the stream: Zstandard compares its checksum there
            pass


class _Limited:
    """A stream that gives as many bytes as an archive of its size may hold; headers count too."""

    def __init__(self, stream: Any, archive: int, file: Path):
        self._stream, self._archive, self._file, self._read = stream, archive, file, 0

    def read(self, count: int) -> bytes:
        """Up to so many bytes."""
        part = self._stream.read(count)
        self._read += len(part)
        _check_size(self._read, self._archive, self._file)
        return part


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ResourceError(".tar.zst needs the package zstandard: pip install refsd[golden]. "
                            "A folder or a .zip needs nothing") from None
    return zstandard
