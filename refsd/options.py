"""The kinds of options that ops have, as data: what they take, and how messages and exports put it.

`takes(value, sizes)` decides; sizes holds the shapes of the call's tensors and the options before.
`types` are the names under which contracts export the forms of a value (docs/porting.md).
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any


def is_int(value: Any) -> bool:
    """Whether a value is an integer (Python's or NumPy's) and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is Python's int or float. NumPy's float64 would widen float32 arrays."""
    return type(value) in (int, float)


class Option:
    """What all kinds share. `facts` go into exported contracts beside the types."""

    types: tuple[str, ...] = ()
    words = ""

    def takes(self, value: Any, sizes: Mapping[str, Any]) -> bool:
        """Whether the option may have this value in such a call."""
        raise NotImplementedError

    def wanted(self, sizes: Mapping[str, Any]) -> str:
        """What may be given, in words."""
        return self.words

    def facts(self) -> dict[str, Any]:
        """Bounds or choices, for programs."""
        return {}


class Integer(Option):
    """An integer of at least `least`; Python's, or NumPy's of any width."""

    types = ("integer",)

    def __init__(self, least: int):
        self.least, self.words = least, f"an integer >= {least}"

    def takes(self, value, sizes):
        return is_int(value) and value >= self.least

    def facts(self):
        return {"minimum": self.least}


class Number(Option):
    """A Python number, finite unless declared otherwise, above a limit if there is one."""

    types = ("number",)

    def __init__(self, above: float | None = None, finite: bool = True):
        self.above, self.finite = above, finite
        self.words = f"a {'finite ' if finite else ''}Python number" + (
            "" if above is None else f" > {above}")

    def takes(self, value, sizes):
        return is_number(value) and (math.isfinite(value) or not self.finite) and (
            self.above is None or value > self.above)

    def facts(self):
        return {"minimum": None} if self.above is None else {"above": self.above}


class Flag(Option):
    """True or False: any other value would be a guess at what was meant."""

    types, words = ("boolean",), "True or False"

    def takes(self, value, sizes):
        return isinstance(value, bool)


class Choice(Option):
    """One of some words."""

    types = ("string",)

    def __init__(self, *choices: str):
        self.choices = choices
        self.words = " or ".join((", ".join(choices[:-1]), choices[-1]))

    def takes(self, value, sizes):
        return isinstance(value, str) and value in self.choices

    def facts(self):
        return {"choices": list(self.choices)}


class FloatType(Choice):
    """The name of a dtype, or NumPy's own object for it."""

    def takes(self, value, sizes):
        return str(value) in self.choices


class Pair(Option):
    """An integer of at least `least` for both directions, or (vertical, horizontal)."""

    types = ("integer", "pair")

    def __init__(self, least: int):
        self.least, self.words = least, f"an integer >= {least} or a pair of them"

    def takes(self, value, sizes):
        both = value if isinstance(value, (tuple, list)) else (value, value)
        return len(both) == 2 and all(is_int(n) and n >= self.least for n in both)

    def facts(self):
        return {"minimum": self.least}


class Sides(Pair):
    """An integer, (vertical, horizontal), or ((top, bottom), (left, right)), all at least 0."""

    types = ("integer", "pair", "pairs")

    def __init__(self):
        super().__init__(0)
        self.words = ("an integer >= 0, a pair of them, or two pairs: "
                      "((top, bottom), (left, right))")

    def takes(self, value, sizes):
        pairs = isinstance(value, (tuple, list)) and len(value) == 2 and all(
            isinstance(side, (tuple, list)) and super(Sides, self).takes(side, sizes)
            for side in value)
        return pairs or super().takes(value, sizes)


class Axis(Option):
    """An axis of a tensor, negative ones counted from its end."""

    types = ("integer",)

    def __init__(self, of: str):
        self.of, self.words = of, f"an axis of {of}"

    def takes(self, value, sizes):
        rank = len(sizes[self.of])
        return is_int(value) and -rank <= value < rank

    def wanted(self, sizes):
        rank = len(sizes[self.of])
        return f"{self.words}, which has {rank}: " + (
            f"{-rank} to {rank - 1}" if rank else "none")

    def facts(self):
        return {"axis_of": self.of}


class Axes(Option):
    """All axes of a tensor in some order."""

    types = ("one an axis",)

    def __init__(self, of: str):
        self.of, self.words = of, f"an order of the axes of {of}"

    def takes(self, value, sizes):
        return isinstance(value, (list, tuple)) and all(map(is_int, value)) and (
            sorted(value) == list(range(len(sizes[self.of]))))

    def wanted(self, sizes):
        return f"{self.words}, 0 to {len(sizes[self.of]) - 1}"


class Sizes(Option):
    """A size of at least 0 for each axis of the result."""

    types, words = ("sizes",), "a list of integers >= 0"

    def takes(self, value, sizes):
        return isinstance(value, (list, tuple)) and all(is_int(n) and n >= 0 for n in value)


class Widths(Option):
    """A pair (before, after) of integers of at least 0 for each axis of a tensor."""

    types = ("pair an axis",)

    def __init__(self, of: str):
        self.of, self.words = of, f"a pair (before, after) of integers >= 0 for each axis of {of}"

    def takes(self, value, sizes):
        return isinstance(value, (list, tuple)) and 0 < len(value) == len(sizes[self.of]) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2
            and all(is_int(n) and n >= 0 for n in pair) for pair in value)

    def wanted(self, sizes):
        return f"{self.words} {tuple(sizes[self.of])}"
