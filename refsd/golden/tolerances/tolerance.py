"""What goes into an entry of a pack: how far a right port may be from its tensor, per format.

    {"float32": {"worst": .., "likely": .., "rms": .., "winograd4": {..}, "spread": {..}}, ..}

worst, likely: the largest bound of any element, given the op's exact inputs (tolerances.bounds);
rms: the root mean square of the likely ones; spread: what a whole run up to here may differ by
(refsd.golden.tolerances.spread). null where there is no bound.
"""

import math
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context
from typing import Any

import numpy as np

from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.bounds.conv import WINOGRAD, fits_winograd
from refsd.golden.tolerances.bounds.pipeline import PIPELINE_BOUNDS, pipeline_bound

FORMATS = ("float32", "float16", "bfloat16", "int8")
Number = float | None
DIGITS = 6  # of a bound: nobody needs more, and no two processors agree on all seventeen


def of(op: str, inputs: Mapping[str, Any], options: Mapping[str, Any], truth: np.ndarray, *,
       formats: Iterable[str] = FORMATS) -> dict[str, dict[str, Any]]:
    """The bounds of one tensor for each format, as numbers.

    inputs and options by name, as refsd.watch gives them; truth in float64. A convolution that
    Winograd's algorithm can compute has its bounds too, under the algorithm's name (in float32).
    Ops without a bound give {}.
    """
    truth = np.asarray(truth)
    if truth.dtype.kind != "f":
        return {}
    inputs, options = dict(inputs), dict(options)
    if op in PIPELINE_BOUNDS:
        return {name: _of_stage(op, inputs, options, truth, name) for name in formats}
    inputs |= {name: options.pop(name) for name in list(options)
               if isinstance(options[name], np.ndarray) and name not in ("mask",)}
    if "mask" in inputs:  # the recorder counts it among the inputs
        options["mask"] = inputs.pop("mask")
    found = {}
    for name in formats:
        found[name] = _numbers(*bound(op, inputs, options, truth, format=name)[:2])
        if name == "float32" and op == "conv2d" and fits_winograd(inputs["weight"], options):
            for algorithm in WINOGRAD:
                found[name][algorithm] = _numbers(*bound(
                    op, inputs, options, truth, format=name, algorithm=algorithm)[:2])
    return found


def _of_stage(op, inputs, options, truth, format):
    worst = pipeline_bound(op, inputs, options, truth, format)
    return _numbers(worst, worst)


def _numbers(worst: np.ndarray, likely: np.ndarray) -> dict[str, Number]:
    """The largest of both, and the root mean square of the likely bound."""
    if not worst.size:
        return {"worst": 0.0, "likely": 0.0, "rms": 0.0}
    return {"worst": rounded(np.max(worst)), "likely": rounded(np.max(likely)),
            "rms": rounded(math.sqrt(np.mean(np.square(likely))))}


def rounded(value: Any) -> Number:
    """A bound rounded up to DIGITS; None for infinity.

    Another processor's sums differ in the last digits of float64. They are rounded off to nearest
    first, so that a bound that is a short number (2^-12, 0.5) is the same one everywhere.
    """
    if not math.isfinite(value):
        return None
    return float(Context(DIGITS, ROUND_CEILING).create_decimal(f"{value:.{2 * DIGITS - 1}e}"))


def with_spread(tolerance: Mapping[str, Mapping[str, Any]], format: str,
                spread: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """A tolerance with one format's spread added (None: this run overflows in the format)."""
    found = {name: dict(numbers) for name, numbers in tolerance.items()}
    found.setdefault(format, {})["spread"] = None if spread is None else dict(spread)
    return found
