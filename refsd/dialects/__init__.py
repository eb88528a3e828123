"""Dialects: what diffusers, A1111 and ComfyUI make of the same prompt, seed and numbers.

A dialect is a record of choices that the stages are given. docs/dialects.md has the table of them
with its sources.
"""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from refsd.errors import UsageError

EMPHASES = ("original", "no-norm", "ignore", "none")  # A1111's names for what a weight does


@dataclass(frozen=True)
class Dialect:
    """How a tool reads and draws.

    syntax: whose prompts: "plain", "a1111" or "comfy". emphasis: what weights do ("lerp" is
    ComfyUI's). old_editing: A1111's first rule of when words change. pad: the shorter of the prompt
    and the negative prompt is filled up with empty chunks. skip_both: clip skip is for the negative
    prompt too. guide_below: guidance scales below 1 guide. rng: whose noise a seed makes. own_seed:
    picture i of a batch has a generator of its own, of seed + i. step_seed: what is added to the
    seed for the noise that samplers add in their steps, from new generators; None goes on with the
    first. step_rng: whose noise that is, if not `rng`'s. nearest: bytes are rounded, not cut.
    """

    name: str
    syntax: str
    emphasis: str = "none"
    old_editing: bool = False
    pad: bool = False
    skip_both: bool = True
    guide_below: bool = True
    rng: str = "torch-cpu"
    own_seed: bool = False
    step_seed: int | None = None
    step_rng: str | None = None
    nearest: bool = False

    def guides(self, scale: float) -> bool:
        """Whether the model is asked for the negative prompt too."""
        return scale > 1 or self.guide_below and scale != 1

    def spelled(self) -> str:
        """The name and the options that differ from the tool's own, as `find` reads them."""
        usual = DIALECTS[self.name]
        changed = [f"{key}={_worded(getattr(self, field))}"
                   for key, (field, _) in OPTIONS.get(self.name, {}).items()
                   if getattr(self, field) != getattr(usual, field)]
        return ",".join([self.name, *changed])


DIFFUSERS = Dialect("diffusers", "plain", skip_both=False, guide_below=False, nearest=True)
A1111 = Dialect("a1111", "a1111", emphasis="original", rng="cuda", own_seed=True)
COMFY = Dialect("comfy", "comfy", emphasis="lerp", step_seed=1)
DIALECTS = {dialect.name: dialect for dialect in (DIFFUSERS, A1111, COMFY)}


def find(name: Any) -> Dialect:
    """A dialect by its name, options after commas: "a1111", "a1111,ensd=31337,pad=yes".

    Raises UsageError with a suggestion.

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


# A dialect's options: the field that each sets, and what reads its value.
OPTIONS = {
    "a1111": {"emphasis": ("emphasis", _one_of(*EMPHASES)), "ensd": ("step_seed", _seed),
              "pad": ("pad", _yes), "old-editing": ("old_editing", _yes)},
    "comfy": {"step-noise": ("step_rng", _one_of("torch-cpu", "cuda"))},
}
