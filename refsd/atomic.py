"""Files that appear whole or not at all: written beside their place, then renamed."""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refsd.errors import ResourceError, UsageError

drafts: set[Path] = set()  # being written, which nobody else may ever see


@contextmanager
def draft(path: str | Path) -> Iterator[Path]:
    """A new name beside a file; what is still there under it after the block is removed."""
    path = Path(path)
    # 60 characters of up to 4 bytes: names have at most 255 bytes
    name = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    drafts.add(name)
    try:
        yield name
    finally:
        drafts.discard(name)
        name.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A draft that takes the place of a file at the end of the block, if nothing was raised.

    A link of the file's name is replaced, never followed. Raises ResourceError.
    """
    with writing(path), draft(path) as name:
        yield name
        os.replace(name, path)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the system refuses inside the block is a ResourceError that names the path."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror or error}. Give another "
                            "place") from None


def empty_folder(path: str | Path) -> Path:
    """The folder, made if it is not there; UsageError unless it is empty."""
    path = Path(path)
    if path.is_file():
        raise ResourceError(f"{path}: is a file. Give a folder")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{path}: is not empty, and nothing in it is overwritten. Give a new "
                             "folder")
    return path


def write_file(path: str | Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file whole or not at all; gives its sha256 and bytes. Raises ResourceError."""
    digest, count = hashlib.sha256(), 0
    with replacing(path) as name, open(name, "xb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            count += len(part)
    return {"sha256": digest.hexdigest(), "bytes": count}
