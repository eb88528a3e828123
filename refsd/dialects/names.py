"""Dialects by name, with options after commas: "a1111", "a1111,ensd=31337,pad=yes"."""

import difflib
from dataclasses import replace
from typing import Any

from refsd.dialects import DIALECTS, Dialect
from refsd.errors import UsageError

EMPHASES = ("original", "no-norm", "ignore", "none")  # A1111's names for what a weight does


def find(name: Any) -> Dialect:
    """A dialect by its name, or itself. Raises UsageError with a suggestion.

    >>> find("a1111,ensd=31337").step_seed
    31337
    """
    if isinstance(name, Dialect):
        return name
    first, *options = (part.strip() for part in str(name).split(","))
    if first not in DIALECTS:
        raise UsageError(f"compat is {str(name)[:40]!r}; {_near(first, DIALECTS)}")
    dialect, known = DIALECTS[first], OPTIONS.get(first, {})
    for option in options:
        key, _, value = option.partition("=")
        if key not in known:
            raise UsageError(f"compat {first}: no option {option[:40]!r}; " + (
                _near(key, known) if known else "it has none"))
        field, read = known[key]
        dialect = replace(dialect, **{field: read(f"compat {first}: {key}", value)})
    return dialect


def spelled(dialect: Dialect) -> str:
    """The name and the options that differ from the tool's own, as `find` reads them."""
    usual = DIALECTS.get(dialect.name, dialect)
    changed = [f"{key}={_worded(getattr(dialect, field))}"
               for key, (field, _) in OPTIONS.get(dialect.name, {}).items()
               if getattr(dialect, field) != getattr(usual, field)]
    return ",".join([dialect.name, *changed])


def _near(word, words):
    near = difflib.get_close_matches(word.lower(), words, 1)
    return (f"did you mean {near[0]}? Give" if near else "give") + f" one of {', '.join(words)}"


def _worded(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _seed(name, value):
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise UsageError(f"{name} is {value[:40]!r}; give an integer from 0 to 2^63 - 1")
    return number or None


def _yes(name, value):
    return _one_of("yes", "no")(name, value) == "yes"


def _one_of(*values):
    def read(name, value):
        if value not in values:
            raise UsageError(f"{name} is {value[:40]!r}; give one of {', '.join(values)}")
        return value

    return read


def _gpu(name, value):
    return {"cpu": None, "cuda": "cuda"}[_one_of("cpu", "cuda")(name, value)]


# A dialect's options: the field that each sets, and what reads its value.
OPTIONS = {
    "a1111": {"emphasis": ("emphasis", _one_of(*EMPHASES)), "ensd": ("step_seed", _seed),
              "pad": ("pad", _yes), "old-editing": ("old_editing", _yes)},
    "comfy": {"step-noise": ("step_rng", _gpu)},
}
