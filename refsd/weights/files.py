"""Files of a model, opened with care: ordinary files only, JSON up to a limit.

Formats of refsd's own, and headers of safetensors, are read to the letter of JSON (`read_object`).
What other programs write is read as Python's json reads it (`read_foreign_object`).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from refsd.errors import ModelError, RefsdError, ResourceError, UsageError, damaged

MAX_CONFIG = 1 << 20


def open_file(path: str | Path, *, error: type[RefsdError] = ModelError) -> BinaryIO:
    """An ordinary file, opened unbuffered for reading.

    Raises `error` when there is none, ResourceError when the system refuses to open it.
    """
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115  returned
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path or 'the name is empty'}: no such file"
                    + (". Is the model complete?" if error is ModelError else "")) from None
    except IsADirectoryError:
        raise error(f"{path}: a folder, expected a file") from None
    except OSError as why:
        raise ResourceError(f"{path}: cannot be read: {why.strerror}. See who may read "
                            "it") from None
    except ValueError:  # a NUL in the name
        raise UsageError(f"{str(path)[:200]!r}: not a file name; give one") from None
    if not os.path.isfile(file.fileno()):
        file.close()
        raise error(f"{path}: not an ordinary file; give one")
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe without waiting for its writer, so that it can be refused."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str | Path, *, limit: int, error: type[RefsdError] = ModelError) -> bytes:
    """The bytes of a file of at most `limit` bytes; `error` when it is longer."""
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: {size:,} bytes, at most {limit:,} are allowed for this file")
        found = b""
        # read() takes memory for all that it is asked for: not for the limit, but for the file
        while (wanted := min(limit, max(size, len(found) + 65536)) + 1 - len(found)) > 0 and (
                part := file.read(wanted)):
            found += part
    if len(found) > limit:
        raise error(f"{path}: grew beyond {limit:,} bytes while it was read; try again when "
                    "nothing writes to it")
    return found


def read_text(path: str | Path, *, limit: int) -> str:
    """The text of a small UTF-8 file; raises as `read_bytes`, ModelError when it is not UTF-8."""
    return _decoded(read_bytes(path, limit=limit), path)


def _decoded(data: bytes, where: str | Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(f"{where}: not UTF-8 text (byte {error.start})") from None


def parse_json(text: str, where: str | Path) -> object:
    """JSON as Python values. Refused with ModelError: duplicate keys, NaN, nesting without end."""
    strict = {"object_pairs_hook": _no_duplicates, "parse_constant": _no_constant}
    return _loaded(text, where, **strict)


def _loaded(text, where, **strict):
    try:
        return json.loads(text, **strict)
    except RecursionError:
        raise damaged(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, an integer of too many digits, the two below
        raise damaged(f"{where}: not valid JSON: {' '.join(str(error).split())}") from None


def read_json(path: str | Path, *, limit: int = MAX_CONFIG) -> object:
    """The parsed content of a small JSON file; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit=limit), path)


def read_object(path: str | Path, *, limit: int = MAX_CONFIG) -> dict:
    """The JSON object of a small file; raises as `read_json`, ModelError for another value."""
    return parse_object(read_bytes(path, limit=limit), path)


def parse_foreign(data: bytes, where: str | Path, *, pairs: Callable | None = None) -> object:
    """JSON in bytes as Python's json reads it, which wrote most of the ecosystem's.

    NaN and infinities are numbers, the last of two equal keys counts (or `pairs` says); a byte
    order mark, which Windows' editors put first, is no content. ModelError for no JSON.
    """
    return _loaded(_decoded(data, where).removeprefix("\ufeff"), where, object_pairs_hook=pairs)


def read_foreign(path: str | Path, *, limit: int = MAX_CONFIG) -> object:
    """The content of another program's JSON file; raises as `read_bytes` and `parse_foreign`."""
    return parse_foreign(read_bytes(path, limit=limit), path)


def read_foreign_object(path: str | Path, *, limit: int = MAX_CONFIG) -> dict:
    """The JSON object of another program's file; raises as `read_foreign`."""
    return as_object(read_foreign(path, limit=limit), path)


def parse_object(data: bytes, where: str | Path) -> dict:
    """The JSON object that bytes hold. ModelError: not UTF-8, as `parse_json`, another value."""
    return as_object(parse_json(_decoded(data, where), where), where)


def as_object(found: object, where: str | Path) -> dict:
    """What is a JSON object; ModelError for another value."""
    if not isinstance(found, dict):
        raise ModelError(f"{where}: a JSON {type(found).__name__}, expected an object")
    return found


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice[:200]!r} appears twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
