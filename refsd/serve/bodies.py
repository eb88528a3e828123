"""Bodies of requests: JSON that is an object, read strictly."""

import json
import math
from typing import Any

from starlette.requests import Request

from refsd.arguments import shown
from refsd.serve.refusals import Refused

DEPTH = 32
DIGITS = 30  # of a whole number: 2^64 has 20
VALUES = 100_000  # brackets, colons and commas, which are quickly counted


class _Bad(ValueError):
    """What is wrong with a document, for the one who wrote it."""


async def read_json(request: Request) -> dict[str, Any]:
    """The object in a request's body. Raises Refused (400)."""
    return parse_object(await request.body())


def parse_object(content: bytes) -> dict[str, Any]:
    """The object in a document of JSON (RFC 8259), where each name occurs once.

    Raises Refused (400) for all else: no UTF-8, NaN, numbers beyond float64 or of more than
    DIGITS digits, half a surrogate pair, values DEPTH deep or too many to be a request.
    """
    try:
        if not content:
            raise _Bad("is empty")
        if sum(map(content.count, (b"[", b"{", b":", b","))) > VALUES:
            raise _Bad(f"has more than {VALUES:,} values")
        value = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_constant,
                           parse_int=_whole, parse_float=_float)
        if not isinstance(value, dict):
            raise _Bad(f"is {shown(value)}")
        _check(value, DEPTH)
    except UnicodeDecodeError:
        fault = "is not UTF-8"
    except RecursionError:
        fault = f"is more than {DEPTH} levels deep"
    except json.JSONDecodeError as error:
        fault = f"is no JSON: {error}"
    except _Bad as error:
        fault = str(error)
    else:
        return value
    raise Refused(400, "json", f"the body {fault}; give one object of JSON")


def _object(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Bad(f"has {shown(twice)} twice in one object")
    return found


def _constant(word):
    raise _Bad(f"holds {word}, which is no number of JSON")


def _whole(text):
    if len(text) > DIGITS:
        raise _Bad(f"holds a number of {len(text):,} digits")
    return int(text)


def _float(text):
    value = float(text)
    if not math.isfinite(value):
        raise _Bad(f"holds {text[:40]}, which is too large for a number")
    return value


def _check(value, left):
    """Look at all texts, `left` levels deep."""
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value)
    elif isinstance(value, (dict, list)):
        if not left:
            raise _Bad(f"is more than {DEPTH} levels deep")
        for each in value:
            _check(each, left - 1)
        for each in value.values() if isinstance(value, dict) else ():
            _check(each, left - 1)


def _check_text(value):
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"holds half a character, {ascii(value[error.start])}") from None
