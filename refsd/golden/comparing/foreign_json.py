"""JSON that other programs wrote, read as they write it."""

import json
from pathlib import Path
from typing import Any

from refsd.errors import ModelError


class Twice:
    """In place of the value of a key that an object has twice: nobody can say which is meant."""


def parse_foreign(data: bytes, where: str | Path) -> dict[str, Any]:
    """The JSON object that bytes hold; ModelError for anything else.

    Python's json writes NaN and Infinity, Windows' programs begin with a byte order mark: both
    are read. A key that appears twice has a Twice for its value.
    """
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_pairs)
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ModelError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{where}: not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{where}: a JSON {type(found).__name__}, expected an object")
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = Twice() if key in found else value
    return found
