"""Rules for the values of JSON, and objects that are checked against a table of them.

A rule is a function of a value: "" for one that fits it, else what it wanted, in words.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from refsd.arguments import shown
from refsd.errors import ModelError

Rule = Callable[[Any], str]


def check(values: Any, rules: Mapping[str, Rule], where: str, *, optional: Collection[str] = (),
          error: type[Exception] = ModelError) -> None:
    """Exactly these keys, of which `optional` may be missing, each with a value that fits."""
    if not isinstance(values, Mapping):
        raise error(f"{where}: got {shown(values, 120)}, expected an object")
    for key in rules:
        if key not in values and key not in optional:
            raise error(f"{where}: missing key {key!r}; write it")
    for key, value in values.items():
        if key not in rules:
            raise error(f"{where}: unknown key {shown(key, 120)}, expected {', '.join(rules)}")
        if wanted := rules[key](value):
            raise error(f"{where}: {key} is {shown(value, 120)}, expected {wanted}")


def check_schema(schema: Any, version: int, where: str, what: str, *,
                 error: type[Exception] = ModelError) -> None:
    """The version of one of refsd's own formats, which is an integer and this one."""
    if type(schema) is not int or schema != version:
        newer = type(schema) is int and schema > version
        raise error(f"{where}: schema is {shown(schema)}, this refsd reads {version}. "
                    + ("Use a newer refsd" if newer else f"Make {what} anew"))


def that(fits: Callable[[Any], bool], wanted: str) -> Rule:
    """What fulfils a condition."""
    return lambda value: "" if fits(value) else wanted


def anything(value: Any) -> str:
    """Any value."""
    return ""


def integer(low: float, high: float) -> Rule:
    """An integer between two limits, both included."""
    return that(lambda value: type(value) is int and low <= value <= high,
                f"an integer from {low} to {high}")


def number(low: float, high: float) -> Rule:
    """A number between two limits, both included; NaN is none."""
    return that(lambda value: type(value) in (int, float) and low <= value <= high,
                f"a number from {low:g} to {high:g}")


def text(most: int) -> Rule:
    """A string of so many characters."""
    return that(lambda value: type(value) is str and len(value) <= most,
                f"a text of at most {most} characters")


def matching(pattern: re.Pattern, wanted: str) -> Rule:
    """A string that is all of a pattern."""
    return that(lambda value: type(value) is str and pattern.fullmatch(value) is not None, wanted)


def only(*allowed: Any) -> Rule:
    """One of these values; True is not 1."""
    return that(lambda value: any(value == a and (type(value) is bool) == (type(a) is bool)
                                  for a in allowed), " or ".join(repr(a) for a in allowed))


boolean = only(True, False)


def optional(rule: Rule) -> Rule:
    """None, or what fits the rule."""
    return lambda value: "" if value is None else rule(value)


def each(rule: Rule, least: int = 0, most: int = 10**9) -> Rule:
    """A list of so many values that fit."""
    size = "a list" + (f" of {least} to {most} values" if most < 10**9 else " of some" * least)

    def wanted(value):
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            return size
        return next((f"each of {why}" for item in value if (why := rule(item))), "")

    return wanted


def table(rule: Rule, words: str, **own: Rule) -> Rule:
    """An object of values that fit, in words; some keys may have rules of their own."""

    def wanted(value):
        if not isinstance(value, dict):
            return words
        wrong = (key for key, item in value.items()
                 if type(key) is not str or len(key) > 100 or own.get(key, rule)(item))
        return next((f"{words} (wrong: {shown(key)})" for key in wrong), "")

    return wanted


def record(rules: Mapping[str, Rule]) -> Rule:
    """An object of exactly these keys, with values that fit."""
    return that(lambda value: isinstance(value, dict) and value.keys() == rules.keys()
                and not any(rule(value[key]) for key, rule in rules.items()),
                f"an object of {', '.join(rules)}")


def or_empty(rule: Rule) -> Rule:
    """An empty object, or what fits the rule."""
    return lambda value: "" if value == {} else (wanted := rule(value)) and (
        f"{wanted}, or an empty one")


def as_kind(value: Any, default: Any) -> Any:
    """The value as JSON could have said it too: null for false, 0 and 1, 1000.0 for 1000.

    diffusers takes null for false wherever the default is true or false (its own converter writes
    "upcast_attention": null). Numbers of NumPy and torch become Python's.
    """
    if hasattr(value, "dtype"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [as_kind(item, default) for item in value]
    if isinstance(default, bool):
        return bool(value) if value is None or value in (0, 1) else value
    if type(value) is float and value.is_integer() and not isinstance(default, float):
        return int(value)
    return value
