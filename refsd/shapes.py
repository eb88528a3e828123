"""Shapes in letters: how declarations of ops write them, matched with the sizes of arrays.

    "x (... K), weight (out K), bias (out) -> (... out)"

The same letter is the same size everywhere; `...` is any number of axes, which broadcast where
several arrays have them; "C//groups" is computed, "2*K" must be even, "L?" may be missing. A result
may have axes that the op's own function finds: "y...".
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.errors import UsageError


class Refusal(UsageError):
    """A call that a contract refuses. `check` names the check that failed, whatever the values."""

    def __init__(self, op: str, message: str, check: tuple):
        super().__init__(f"{op}: {message}")
        self.check = check


class Tensor(NamedTuple):
    """One array of a call, or a list of them, as declared: "weight (out K)".

    kind: "float", "int", or "real" (either). below: what indices lie below, a letter or a number.
    form: "tensor", "list", "number" (or a number in its place), "broadcast" (to these sizes).
    """

    name: str
    kind: str
    below: str
    form: str
    letters: tuple[str, ...]


def read(shapes: str) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """The tensors that a declaration names, in order, and the letters of the result.

    After a name ":int" is for indices and ":real" for either kind of number, "<V" says that they
    are below V; "[]" makes it a list, "|number" lets a Python number stand in its place, and "<="
    lets it broadcast to the sizes.
    """
    left, _, right = shapes.partition("->")
    return tuple(_tensor(*found) for found in re.findall(
        r"(\w+)(:int|:real)?(<\w+)?(\[\]|\|number)?( <=)? \(([^()]*)\)", left)), (
        tuple(right.strip(" ()").split()))


def _tensor(name, kind, below, form, broadcast, letters) -> Tensor:
    forms = {"": "tensor", "[]": "list", "|number": "number"}
    return Tensor(name, kind.strip(":") or "float", below.strip("<"),
                  "broadcast" if broadcast else forms[form], tuple(letters.split()))


def bind(letters: tuple, shape: tuple, sizes: dict[str, Any], op: str) -> bool:
    """Whether a shape fits the letters; those that are new are bound."""
    if "..." in letters:
        at = letters.index("...")
        end = len(shape) - (len(letters) - at - 1)
        if end < at:
            return False
        sizes["..."] = broadcast(op, sizes.get("...", ()), shape[at:end])
        letters, shape = letters[:at] + letters[at + 1:], shape[:at] + shape[end:]
    if len(shape) == len(letters) - 1 and any(letter.endswith("?") for letter in letters):
        missing = next(i for i, letter in enumerate(letters) if letter.endswith("?"))
        shape = (*shape[:missing], 1, *shape[missing:])
    if len(shape) != len(letters):
        return False
    for letter, size in zip(letters, shape):
        factor, times, letter = letter.rstrip("?").rpartition("*")
        if letter.isidentifier() and letter not in sizes and factor.isdigit() == bool(times):
            factor = int(factor or 1)
            if size % factor:
                return False
            sizes[letter] = size // factor
        elif value(factor + times + letter, sizes) != size:
            return False
    return True


def names(letters: tuple) -> list[str]:
    """The names in expressions of sizes: "C//groups" has two."""
    return list(dict.fromkeys(re.findall(r"[A-Za-z]\w*", " ".join(letters))))


def sizes_of(letters: tuple, sizes: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that letters stand for."""
    shape: list[int] = []
    for letter in letters:
        shape += sizes[letter] if letter.endswith("...") else [
            int(value(letter.rstrip("?"), sizes))]
    return tuple(shape)


def value(expression: str, sizes: Mapping[str, Any]) -> Any:
    """An expression of a declaration, which this project's own sources hold."""
    return eval(_compiled(expression), _BUILTINS, sizes)


_BUILTINS = {"__builtins__": {"prod": math.prod, "len": len, "min": min}}


@functools.cache
def _compiled(expression):
    return compile(expression, "<contract>", "eval")


def broadcast(op: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape two shapes broadcast to under NumPy's rules."""
    shape = []
    for i in range(max(len(a), len(b)), 0, -1):
        m = a[-i] if i <= len(a) else 1
        n = b[-i] if i <= len(b) else 1
        if m != n and m != 1 and n != 1:
            raise Refusal(op, f"shapes {tuple(a)} and {tuple(b)} do not broadcast: {m} against {n}",
                          ("broadcast",))
        shape.append(n if m == 1 else m)
    return tuple(shape)
