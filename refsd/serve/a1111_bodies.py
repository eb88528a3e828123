"""Fields of A1111's bodies, one by one."""

import re
from collections.abc import Mapping
from typing import Any

from refsd.arguments import as_integer, as_number, shown
from refsd.errors import UsageError
from refsd.rules import Rule, only

Fixed = Mapping[str, tuple[tuple[Any, ...], str]]  # what a field may be, None first, and why
NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?")


def require(body: Mapping[str, Any], fixed: Fixed) -> None:
    """Refuse fields that are not as they are where nobody sets them."""
    for name, (allowed, why) in fixed.items():
        if wanted := only(*allowed)(body.get(name)):
            raise UsageError(f"{name} is {shown(body[name])}: {why}; leave it out"
                             + wanted.replace("None or", ", or give", 1).removeprefix("None"))


def as_said(value: Any) -> Any:
    """The number of a text that is one, which A1111 reads too; all else as it is."""
    if not isinstance(value, str) or not NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def field(body: Mapping[str, Any], name: str, default: Any, rule: Rule) -> Any:
    """A field, or its default, as the rule wants it; UsageError names it."""
    value = body.get(name, default)
    if type(default) in (int, float):
        value = as_said(value)
        whole = as_integer(value) if type(default) is int else None
        value = next((each for each in (whole, as_number(value)) if each is not None), value)
    if wanted := rule(value):
        raise UsageError(f"{name} is {shown(body[name])}; give {wanted}")
    return value
