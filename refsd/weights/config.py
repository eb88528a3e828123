"""Small text files of a model: read with a size limit, parsed with no surprises."""

import json
import os
from pathlib import Path

from refsd.errors import ModelError, ResourceError

MAX_CONFIG = 1 << 20


def read_bytes(path: str | Path, *, limit: int) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    Raises ModelError when it is absent, longer, or no ordinary file; ResourceError when the
    system refuses to read it.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not os.path.isfile(descriptor):
                raise ModelError(f"{path}: not an ordinary file")
            found = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{path}: no such file. Is the model folder complete?") from None
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read: {error.strerror}") from None
    if len(found) > limit:
        raise ModelError(f"{path}: larger than the {limit:,} bytes allowed for this kind of file")
    return found


def read_text(path: str | Path, *, limit: int) -> str:
    """The text of a small UTF-8 file; raises as `read_bytes`, ModelError when it is not UTF-8."""
    try:
        return read_bytes(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8 text (byte {error.start})") from None


def parse_json(text: str | bytes, where: str | Path) -> object:
    """JSON as Python values. Refused with ModelError: duplicate keys, NaN, nesting without end."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ModelError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and the two below
        raise ModelError(f"{where}: not valid JSON: {_one_line(error)}") from None


def read_json(path: str | Path, *, limit: int = MAX_CONFIG) -> object:
    """The parsed content of a small JSON file; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit=limit), path)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:200]!r} appears twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
