"""The rules of a golden pack's manifest: which keys there are, and what each may hold."""

import math
import re
from functools import partial
from typing import Any

from refsd import arguments
from refsd.rules import (
    Rule,
    each,
    integer,
    matching,
    only,
    optional,
    record,
    table,
    text,
    that,
)

SCHEMA = 1
KINDS = ("run", "ops")
DTYPES = {  # NumPy's name -> safetensors' name
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
STATS = ("min", "max", "mean", "l2", "nan", "inf")

PART = r"[A-Za-z0-9_=+-]+(?:\.[A-Za-z0-9_=+-]+)*"
NAME = re.compile(rf"(?=.{{1,300}}\Z){PART}(?:/{PART})*(?::[A-Za-z0-9_]+(?:\.[0-9]+)?)?")
FILE = re.compile(r"(?=.{1,100}\Z)[A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # Windows' own
WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
HASH = re.compile(r"[0-9a-f]{64}")
REFERENCE = re.compile(rf"tensor:{NAME.pattern}|weight:{PART}")

shown = partial(arguments.shown, most=120)


def is_plain(value: Any, depth: int = 8) -> bool:
    """Whether a value is what JSON can hold: finite numbers, no tuples, not nested without end."""
    if isinstance(value, dict):
        return depth > 0 and all(type(k) is str and is_plain(v, depth - 1)
                                 for k, v in value.items())
    if isinstance(value, list):
        return depth > 0 and all(is_plain(v, depth - 1) for v in value)
    return value is None or type(value) in (bool, str) or is_number(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    if type(value) is int:
        return abs(value) < 1 << 64
    return type(value) is float and math.isfinite(value)


def is_file_name(name: Any) -> bool:
    """Whether a text is a harmless name of a file in a flat folder, on every system."""
    return (type(name) is str and FILE.fullmatch(name) is not None
            and DEVICES.fullmatch(name) is None)


def is_name(name: Any) -> bool:
    """Whether a text is a tensor's name: STAGE/STEP/PATH, or that and :PARAMETER."""
    return type(name) is str and NAME.fullmatch(name) is not None


def _is_reference(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_reference(item) for item in value)
    if isinstance(value, str):
        return REFERENCE.fullmatch(value) is not None
    return value is None or type(value) is bool or is_number(value)


def _is_tolerance(value: Any, depth: int = 4) -> bool:
    """Numbers that are finite and not negative, in tables within tables; None: no bound."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_tolerance(v, depth - 1) for v in value.values())
    return depth < 4 and (value is None or (is_number(value) and value >= 0)
                          or (type(value) is str and WORD.fullmatch(value) is not None))


_plain = that(lambda value: isinstance(value, dict) and is_plain(value), "an object of JSON")
_number = that(is_number, "a finite number")
_name = that(is_name, "a tensor's name such as unet/003/conv_in")
_file = that(is_file_name, "a plain file name")
_word = matching(WORD, "a word such as unet")
_strings = table(text(1000), "an object of strings")
_hash = matching(HASH, "64 hexadecimal digits")
_stats = dict.fromkeys(STATS, optional(_number)) | dict.fromkeys(("nan", "inf"),
                                                                  integer(0, 1 << 62))
FILE_RULES: dict[str, Rule] = {"sha256": _hash, "bytes": integer(0, 1 << 62)}
CHECKPOINT_RULES: dict[str, Rule] = {
    "percent": integer(0, 100), "step": integer(0, 10**6), "tensor": _name}
INVARIANT_RULES: dict[str, Rule] = {
    "name": text(200), "tensor": optional(_name), "value": _number, "limit": _number}
MANIFEST_RULES: dict[str, Rule] = {
    "schema": only(SCHEMA),
    "kind": only(*KINDS),
    "title": text(1000),
    "recipe": _plain,
    "model": _plain,
    "versions": _strings,
    "machine": _strings,
    "files": that(lambda value: isinstance(value, dict) and all(map(is_file_name, value))
                  and not table(record(FILE_RULES), "")(value),
                  "plain file names, each with sha256 and bytes"),
    "checkpoints": each(record(CHECKPOINT_RULES)),
    "invariants": each(record(INVARIANT_RULES)),
    "tensors": that(lambda value: isinstance(value, list), "a list"),
}
ENTRY_RULES: dict[str, Rule] = {
    "name": _name,
    "op": optional(_word),
    "stage": _word,
    "step": optional(integer(0, 10**6)),
    "shape": each(integer(0, (1 << 48) - 1), 0, 32),
    "dtype": only(*DTYPES),
    "options": _plain,
    "inputs": table(that(_is_reference, "a reference"), "references by parameter"),
    "index": integer(0, 10**9),
    "shard": _file,
    "sha256": _hash,
    "stats": record(_stats),
    "tolerance": that(_is_tolerance, "tables of finite numbers that are not negative, or null"),
    "note": text(2000),
}
