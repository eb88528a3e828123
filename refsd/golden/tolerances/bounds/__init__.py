"""What a correct port's result may differ by, derived: the worst case and what chance makes.

docs/tolerances.md has the formulas and where they come from.
"""

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import UsageError
from refsd.golden.tolerances.bounds import (
    attention,
    conv,
    elementwise,
    fused,
    fused_linear,
    linear,
    norm,
)
from refsd.golden.tolerances.bounds.elementwise import between_ends, of_kind
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.formats import rounding, uncertainty
from refsd.golden.tolerances.precision import PRECISIONS, arithmetic_of, quantile
from refsd.kinds import Movement
from refsd.registry import ops

# Of a million correct results one tensor may have an element outside its likely bound.
CONFIDENCE = 1 - 1e-6
WEIGHTS = ("weight", "bias")  # the parameters that come from a checkpoint
# Ops whose kind is not enough.
MODELS = (elementwise.MODELS | linear.MODELS | conv.MODELS | norm.MODELS | attention.MODELS
          | fused.MODELS | fused_linear.MODELS)


def error_model(op: str) -> ErrorModel | None:
    """The error model of an op: by its name, or what its kind makes. None where none is derived."""
    declared = ops().get(op)
    model = MODELS.get(op) or (declared and of_kind(declared))
    if model is not None and model.input_error is None:
        model = model._replace(input_error=functools.partial(between_ends, declared))
    return model


def moves_data(op: str) -> bool:
    """Whether an op computes nothing."""
    return op in ops() and isinstance(ops()[op].kind, Movement)


class Bound(NamedTuple):
    """How far each element may be off (arrays like the result).

    worst: whatever the roundings. likely: at the confidence, for the whole tensor. deviation: the
    root of the error's variance, or of an upper limit of it.
    """

    worst: np.ndarray
    likely: np.ndarray
    deviation: np.ndarray


def bound(op: str, inputs: Any, options: dict[str, Any], truth: np.ndarray, *,
          format: str = "float32", accumulate: str = "float32", confidence: float = CONFIDENCE,
          given: bool | Collection[str] = (), algorithm: str | None = None) -> Bound:
    """What |port - truth| may be when a port in `format` is given exactly these inputs.

    op and options as in refsd.functional; inputs: the arguments in order, or by name; truth: the
    op's result on them in float64. Inputs and weights are rounded to the format first, but for
    those in `given` (True: all but weight and bias), which are taken as they are. Sums are made in
    `accumulate`. algorithm: of a convolution ("im2col", "winograd2", "winograd4", "fft"), by
    default what the options or the reference choose. Elements that are not finite in the truth have
    the bound 0: a port must have them too. Raises UsageError for what does not exist.
    """
    if error_model(op) is None:
        raise UsageError(f"there is no bound for {op!r}; give one of "
                         f"{', '.join(name for name in ops() if error_model(name))}")
    how = arithmetic_of(format, accumulate)
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}; give a number between 0 and 1")
    names = positional(op)
    args = [inputs.get(n) for n in names] if isinstance(inputs, dict) else list(inputs)
    while args and args[-1] is None:
        args.pop()
    if given is True:
        given = [name for name in names if name not in WEIGHTS]
    if algorithm is not None:
        options = options | {"algorithm": algorithm}

    wide = [_wide(arg) for arg in args]
    options = {name: _wide(value) for name, value in options.items()}
    truth = np.asarray(truth, "float64")
    factor = quantile(2 * truth.size, confidence)  # inputs and sums, each on its own
    with np.errstate(all="ignore"):
        perturbations = [_perturbation(name, arg, how, name in given)
                         for name, arg in zip(names, wide)]
        return _combine(op, wide, options, truth, perturbations, how, factor)


def positional(op: str) -> list[str]:
    """The names of an op's tensors that are no options."""
    return [p.name for p in ops()[op].signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]


def input_error(op: str, args: list, options: dict[str, Any], truth: np.ndarray,
                perturbations: list, factor: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The worst case and the variance of what inputs make that are off by up to `perturbations`.

    None where none is. At random each input's error has the variance perturbation^2 / 3,
    independent of the others.
    """
    if not any(np.any(error) for errors in perturbations
               for error in (errors if isinstance(errors, list) else [errors])):
        return None
    found = error_model(op).input_error(args, options, truth, perturbations, factor)
    return found if isinstance(found, tuple) else (found, found * found / 3)


def _combine(op, args, options, truth, perturbations, how, factor):
    """The roundings of the formula, what the inputs' make, and that of the result."""
    y = np.where(np.isfinite(truth), truth, 0.0)
    worst, likely, variance = _of_formula(op, args, options, y, perturbations, how, factor)
    of_inputs = input_error(op, args, options, y, perturbations, factor) if truth.size else None
    if of_inputs is not None:
        # Roundings of inputs and of sums are independent of each other: variances add up.
        worst, variance = worst + of_inputs[0], variance + of_inputs[1]
        likely = np.fmin(likely + np.fmin(of_inputs[0], factor * np.sqrt(of_inputs[1])),
                         factor * np.sqrt(variance))
    if how.own_rounding and (how.tensors.block or not moves_data(op)):
        # The result that is rounded may lie in the binade above.
        last, often = (rounding(np.minimum(abs(y) + b, how.tensors.largest), how.tensors)
                       for b in (worst, likely))
        worst, likely, variance = worst + last, likely + often, variance + often * often / 3
    bad = ~np.isfinite(truth)
    return Bound(*(np.where(bad, 0.0, np.nan_to_num(b, nan=np.inf, posinf=np.inf))
                   for b in (worst, np.fmin(likely, worst), np.sqrt(variance))))


def _of_formula(op, args, options, y, perturbations, how, factor):
    """(worst, likely, variance) of the roundings inside the op."""
    model, p = error_model(op), how.sums
    stored = {"stored": PRECISIONS[how.tensors.name]} if (
        model.composed and how.own_rounding and not how.tensors.block) else {}
    largest = args if model.convex else _enlarged(args, perturbations)
    worst = np.zeros(y.shape) + model.worst_of_ports(largest, options, y, p, **stored)
    variance = worst * worst / 3
    # In sums so long that a term may vanish beside the sum errors do not average out.
    if model.terms and max(model.terms(args, options)) * p.u >= 1:
        variance = worst * worst
    elif model.variance and y.size:
        chance = model.variance(args, options, y, p, factor, **stored)
        # Below the normal numbers a rounding is no smaller with the result: up to tiny / 2.
        variance = np.fmin(variance, chance + p.tiny**2)
    return worst, np.fmin(worst, factor * np.sqrt(variance)), variance


def _wide(value):
    """Arrays of floats in float64, in lists too; all else as it is."""
    if isinstance(value, list):
        return [_wide(v) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype("float64", copy=False)
    return value


def _perturbation(name, arg, how, given):
    """How far rounding to the format takes an argument at most."""
    if isinstance(arg, list):
        return [_perturbation(name, a, how, given) for a in arg]
    if isinstance(arg, float):  # a constant, which the port may keep as it keeps tensors
        return uncertainty(np.float64(arg), how.tensors)[()]
    if not isinstance(arg, np.ndarray) or arg.dtype.kind != "f":
        return np.float64(0)
    if given:
        return np.zeros(arg.shape)
    matrix = name == "weight" and arg.ndim > 1
    return uncertainty(arg, how.matrices if matrix else how.tensors, axis=0 if matrix else None)


def _enlarged(args, perturbations):
    """Arguments at their largest: the sums' own errors are those of the rounded inputs."""
    return [arg + np.sign(arg) * error if isinstance(arg, np.ndarray) and arg.dtype.kind == "f"
            and np.any(error) else arg for arg, error in zip(args, perturbations)]
