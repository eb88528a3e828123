"""The rules of a golden pack's manifest: which keys there are, and what each may hold."""

import math
import re
from collections.abc import Callable
from typing import Any

from refsd.errors import ModelError

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

# A rule is a test and, in words, what it wants.
Rule = tuple[Callable[[Any], bool], str]


def check(found: Any, rules: dict[str, Rule], where: str) -> None:
    """Exactly these keys, each with a value that its rule takes."""
    if not isinstance(found, dict):
        raise ModelError(f"{where}: got {shown(found)}, expected an object")
    wrong = [key for key in rules if key not in found] or [key for key in found if key not in rules]
    if wrong:
        unknown = wrong[0] in found
        raise ModelError(f"{where}: {'unknown' if unknown else 'missing'} key {shown(wrong[0])}")
    for key, (rule, wanted) in rules.items():
        if not rule(found[key]):
            raise ModelError(f"{where}: {key} is {shown(found[key])}, expected {wanted}")


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


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


def is_file_name(text: Any) -> bool:
    """Whether a text is a harmless name of a file in a flat folder, on every system."""
    return (type(text) is str and FILE.fullmatch(text) is not None
            and DEVICES.fullmatch(text) is None)


def is_name(text: Any) -> bool:
    """Whether a text is a tensor's name: STAGE/STEP/PATH, or that and :PARAMETER."""
    return type(text) is str and NAME.fullmatch(text) is not None


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _matching(pattern: re.Pattern) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and pattern.fullmatch(value) is not None


def _optional(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _table(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(
        type(k) is str and len(k) <= 100 and rule(v) for k, v in value.items())


def _text(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and len(value) <= limit


def _is_shape(value: Any) -> bool:
    return (isinstance(value, list) and len(value) <= 32
            and all(type(n) is int and 0 <= n < 1 << 48 for n in value))


def _is_reference(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(one, list) and _is_reference(one) for one in value)
    if isinstance(value, str):
        return REFERENCE.fullmatch(value) is not None
    return value is None or type(value) is bool or is_number(value)


def _is_stats(value: Any) -> bool:
    return (isinstance(value, dict) and set(value) == set(STATS)
            and all(type(value[k]) is int and value[k] >= 0 for k in ("nan", "inf"))
            and all(value[k] is None or is_number(value[k]) for k in ("min", "max", "mean", "l2")))


def _is_tolerance(value: Any, depth: int = 4) -> bool:
    """Numbers that are finite and not negative, in tables within tables; None: no bound."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_tolerance(v, depth - 1) for v in value.values())
    return depth < 4 and (value is None or (is_number(value) and value >= 0)
                          or (type(value) is str and WORD.fullmatch(value) is not None))


def _rows(rules: dict[str, Rule]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(
        isinstance(row, dict) and set(row) == set(rules)
        and all(rule(row[key]) for key, (rule, _) in rules.items()) for row in value)


_plain: Rule = (lambda value: isinstance(value, dict) and is_plain(value), "an object of JSON")
_strings: Rule = (_table(_text(1000)), "an object of strings")
_hash: Rule = (_matching(HASH), "64 hexadecimal digits")
FILES: dict[str, Rule] = {"sha256": _hash, "bytes": (_integer(0, 1 << 62), "a size")}
CHECKPOINT: dict[str, Rule] = {
    "percent": (_integer(0, 100), "0 to 100"), "step": (_integer(0, 10**6), "a step"),
    "tensor": (is_name, "a tensor's name")}
INVARIANT: dict[str, Rule] = {
    "name": (_text(200), "a text"), "tensor": (_optional(is_name), "a tensor's name"),
    "value": (is_number, "a number"), "limit": (is_number, "a number")}
MANIFEST: dict[str, Rule] = {
    "schema": (_integer(SCHEMA, SCHEMA), str(SCHEMA)),
    "kind": (lambda value: value in KINDS, " or ".join(KINDS)),
    "title": (_text(1000), "a text"),
    "recipe": _plain,
    "model": _plain,
    "versions": _strings,
    "machine": _strings,
    "files": (lambda value: isinstance(value, dict) and all(map(is_file_name, value)) and all(
        isinstance(v, dict) and _rows(FILES)([v]) for v in value.values()),
        "plain file names, each with sha256 and bytes"),
    "checkpoints": (_rows(CHECKPOINT), "a list of percent, step and tensor"),
    "invariants": (_rows(INVARIANT), "a list of name, tensor, value and limit"),
    "tensors": (lambda value: isinstance(value, list), "a list"),
}
ENTRY: dict[str, Rule] = {
    "name": (is_name, "a tensor's name such as unet/003/conv_in"),
    "op": (_optional(_matching(WORD)), "the name of an op, or null"),
    "stage": (_matching(WORD), "a word such as unet"),
    "step": (_optional(_integer(0, 10**6)), "0 to 1,000,000, or null"),
    "shape": (_is_shape, "a list of sizes"),
    "dtype": (lambda value: type(value) is str and value in DTYPES, "one of " + ", ".join(DTYPES)),
    "options": _plain,
    "inputs": (_table(_is_reference), "references by parameter"),
    "index": (_integer(0, 10**9), "a place"),
    "shard": (is_file_name, "a plain file name"),
    "sha256": _hash,
    "stats": (_is_stats, ", ".join(STATS) + " as finite numbers or null"),
    "tolerance": (_is_tolerance, "tables of finite numbers that are not negative, or null"),
    "note": (_text(2000), "a text"),
}
