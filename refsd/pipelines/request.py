"""What may be asked of a pipeline, checked before anything is computed."""

import difflib
import math
from typing import Any

from refsd.errors import ResourceError, UsageError

MAX_SIDE = 4096
MAX_PICTURES = 1000
OUTPUT_TYPES = ("pil", "np", "latent")


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number from low to high; UsageError names the field and the range."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and (
        math.isfinite(value) and low <= value <= high)
    if not good:
        raise UsageError(f"{name} is {value!r}; give a number from {low:g} to {high:g}")
    return value


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from low to high; UsageError names the field and the range."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; give an integer from {low} to {high}")
    return int(value)


def check_side(name: str, value: Any, factor: int) -> int:
    """A width or height in pixels: a multiple of the VAE's downscale, up to MAX_SIDE."""
    good = hasattr(value, "__index__") and not isinstance(value, bool) and (
        factor <= value <= MAX_SIDE and value % factor == 0)
    if not good:
        raise UsageError(f"{name} is {value!r}; give a multiple of {factor} from {factor} to "
                         f"{MAX_SIDE}")
    return int(value)


def check_prompts(name: str, value: Any) -> list[str]:
    """One prompt or a list of them, as a list."""
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(
            isinstance(p, str) for p in prompts):
        raise UsageError(f"{name} is a {type(value).__name__}; give a string or a list of strings")
    return list(prompts)


def check_output_type(value: Any) -> str:
    """pil, np or latent"""
    return check_choice("output_type", value, OUTPUT_TYPES)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """One of the choices, else a UsageError that suggests the nearest."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"{name} is {value!r}; {hint}give one of {', '.join(choices)}")
    return value


def refuse_unknown(function: str, names: Any, known: Any) -> None:
    """Raise UsageError for the first name that is not known, with the nearest that is."""
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
        raise UsageError(f"{function} has no argument {name!r}; {hint}")


def check_memory(needed: int, available: int | None, what: str) -> None:
    """Refuse what cannot fit, before it starts; unknown available memory passes."""
    if available is not None and needed > available:
        raise ResourceError(f"{what} needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} "
                            "GiB are free: ask for smaller or fewer pictures")
