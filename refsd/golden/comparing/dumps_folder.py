"""Which files of a folder hold a candidate's tensors, by their endings, and what kind each is."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.golden.comparing.dumps import (
    DTYPES,
    SHORT,
    Dump,
    Listing,
    dtype_name,
    npy,
    npz,
    size_of,
)
from refsd.golden.comparing.dumps_index import indexed, safetensors
from refsd.golden.comparing.dumps_polygraphy import ENDING as JSON
from refsd.golden.comparing.dumps_polygraphy import is_polygraphy, polygraphy

INDEX, MANIFEST = "index.json", "manifest.json"
RAW = (".bin", ".raw", *(f".{name}" for name in (*DTYPES, *SHORT)))
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ENDINGS = (".npy", ".npz", ".safetensors", *RAW)


def tensors_in(path: Path, dtype: str | None) -> Listing:
    """The tensors of a folder or of one file, and what cannot be read of it. None is read.

    dtype is what a raw file's numbers are where neither index nor file name says it. Raises
    UsageError where there is nothing to compare, ModelError where nothing of it can be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder. Give what the port wrote")
    listing = Listing()
    if path.is_dir():
        _folder(path, listing, dtype)
    elif path.name == INDEX:
        with listing.noting(path):
            indexed(path, listing)
    elif path.suffix.lower() == JSON:
        with listing.noting(path):
            polygraphy(path, listing)
    else:
        _file(path, path.stem, listing, dtype)
    if not listing.dumps and listing.troubles:
        raise ModelError(first_of([trouble.why for trouble in listing.troubles]))
    if not listing.dumps:
        if any(file.suffix.lower() in PICKLES for file in (path.iterdir() if path.is_dir() else
                                                           [path])):
            raise UsageError(f"{path}: pickles (.pt, .pth, .ckpt, .pkl) are not read, for loading "
                             "one can run any code. Save with safetensors.torch.save_file, or "
                             "numpy.savez")
        raise UsageError(
            f"{path}: no .npy, .npz, .safetensors, raw file or Polygraphy's JSON in this folder"
            if path.is_dir() else
            f"{path}: no tensors in it; give a folder, or a .npy, .npz, .safetensors, .bin, "
            f"{INDEX} or Polygraphy's .json file")
    return listing


def first_of(reasons: list[str]) -> str:
    """The first of some reasons, and how many there are besides."""
    more = len(reasons) - 1
    return reasons[0] + (f" ({more:,} more like this)" if more else "")


def _folder(path: Path, listing: Listing, dtype: str | None) -> None:
    """Every tensor under a folder; raw files that an index describes are left to it."""
    files = list(_walk(path, listing))
    described: set[str] = set()
    unclear = set()  # folders whose index cannot be read: nobody knows what their raw files are
    for file in (file for file in files if file.name == INDEX):
        inside = file.parent.relative_to(path).as_posix()
        unclear.add(file.parent)
        with listing.noting(file):
            described |= indexed(file, listing, "" if inside == "." else f"{inside}/")
            unclear.discard(file.parent)
    used = {os.path.normpath(dump.file) for dump in listing.dumps.values()}
    for file in files:
        plain = os.path.normpath(file)
        left = plain in used or file.suffix.lower() in RAW and (
            plain in described or file.parent in unclear)
        if file.name not in (INDEX, MANIFEST) and not left:
            _file(file, file.relative_to(path).with_suffix("").as_posix(), listing, dtype)
    for folder in (file for file in files if file.suffix.lower() in ENDINGS and file.is_dir()):
        if not any(Path(dump.file).is_relative_to(folder) for dump in listing.dumps.values()):
            with listing.noting(folder, folder.relative_to(path).with_suffix("").as_posix()):
                raise ModelError(f"{folder}: a folder, expected a file")


def _walk(path: Path, listing: Listing) -> Iterator[Path]:
    """Files and folders, sorted; links to folders are not followed, what is hidden is left out."""

    def refused(error: OSError) -> None:
        listing.refuse(error.filename, None, f"{error.filename}: cannot be read: {error.strerror}")

    for inside, folders, files in os.walk(path, onerror=refused):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(inside, name) for name in sorted([*folders, *files])
                    if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    """.DS_Store, the ._x.npy that macOS lays beside x.npy, checkpoints of notebooks, .git."""
    return name.startswith(".") or name == "__MACOSX"


def _file(path: Path, name: str, listing: Listing, dtype: str | None) -> None:
    """The tensors of one file; `name` is that of a file with a single one. Others hold none."""
    end = path.suffix.lower()
    if path.is_dir() or end not in ENDINGS and not (end == JSON and is_polygraphy(path)):
        return
    single = end == ".npy" or end in RAW
    with listing.noting(path, name if single else None):
        if path.is_symlink() and not path.exists():
            raise ModelError(f"{path}: a link to what is not there. Copy the file there")
        if end == ".npy":
            listing.add(name, npy(path))
        elif end == ".npz":
            npz(path, listing)
        elif end == ".safetensors":
            safetensors(path, listing)
        elif end == JSON:
            polygraphy(path, listing)
        else:
            listing.add(name, _raw(path, end[1:], dtype))


def _raw(path: Path, end: str, dtype: str | None) -> Dump:
    kind = dtype_name(end if end in SHORT or end in DTYPES else dtype or "float32")
    size, item = size_of(path), np.dtype(DTYPES[kind]).itemsize
    if size % item:
        raise ModelError(f"{path}: {size:,} bytes are not a whole number of {kind}. Write it "
                         "again, or name its dtype")
    return Dump(str(path), "", 0, None, kind, size)
