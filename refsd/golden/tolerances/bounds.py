"""What a correct port's result may differ by, derived: the worst case and what chance makes.

docs/tolerances.md has the formulas and where they come from.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import UsageError
from refsd.golden.tolerances.bounds_likely import VARIANCE
from refsd.golden.tolerances.bounds_moved import MOVEMENT, moved
from refsd.golden.tolerances.bounds_worst import WORST_OF_PORTS
from refsd.golden.tolerances.formats import FORMATS, Format, format_named, rounding, uncertainty
from refsd.golden.tolerances.precision import PRECISIONS, Precision, quantile
from refsd.registry import ops

# Of a million correct results one tensor may have an element outside its likely bound.
CONFIDENCE = 1 - 1e-6
# Ports make these of several ops, each of which may store its result in the tensors' format.
COMPOSED = ("attention", "silu", "quick_gelu", "geglu")
WEIGHTS = ("weight", "bias")  # the parameters that come from a checkpoint


class Bound(NamedTuple):
    """How far each element may be off (arrays like the result).

    worst: whatever the roundings. likely: at the confidence, for the whole tensor. deviation: the
    root of the error's variance, or of an upper limit of it.
    """

    worst: np.ndarray
    likely: np.ndarray
    deviation: np.ndarray


class Arithmetic(NamedTuple):
    """How a port computes: its tensors' format, its matrices' and its sums'."""

    tensors: Format
    matrices: Format
    sums: Precision
    own_rounding: bool  # whether results are rounded from the sums' format to the tensors'


def arithmetic(format: str, accumulate: str = "float32") -> Arithmetic:
    """The Arithmetic of a port in a format. int8 is the format of its matrices alone.

    Sums are at least as fine as what goes in, unless they are made in the format itself.
    Raises UsageError for an unknown format, and for sums in blocks with a shared scale.
    """
    tensors = matrices = format_named(format)
    sums = format_named(accumulate)
    if sums.block:
        raise UsageError(f"accumulate is {accumulate!r}; give a format without shared scales: "
                         f"{', '.join(PRECISIONS)}")
    if tensors.name == "int8":
        tensors = FORMATS["float32"]
    if tensors.name == "float64":
        sums = tensors
    return Arithmetic(tensors, matrices, PRECISIONS[sums.name], sums.name != tensors.name)


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
    if op not in WORST_OF_PORTS:
        raise UsageError(f"there is no bound for {op!r}; ops: {', '.join(WORST_OF_PORTS)}")
    how = arithmetic(format, accumulate)
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}; give a number between 0 and 1")
    names = [p.name for p in ops()[op].signature.parameters.values()
             if p.kind is not p.KEYWORD_ONLY]
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
        moves = [_moves(name, arg, how, name in given) for name, arg in zip(names, wide)]
        return _combine(op, wide, options, truth, moves, how, factor)


def _combine(op, args, options, truth, moves, how, factor):
    p, y = how.sums, np.where(np.isfinite(truth), truth, 0.0)
    worst = np.zeros(truth.shape)
    if op in MOVEMENT:
        likely, variance = worst, worst
    else:
        stored = {"stored": PRECISIONS[how.tensors.name]} if (
            op in COMPOSED and how.own_rounding and not how.tensors.block) else {}
        worst = worst + WORST_OF_PORTS[op](_enlarged(op, args, moves), options, y, p, **stored)
        variance = worst * worst / 3
        if op in VARIANCE and truth.size:
            chance = VARIANCE[op](args, options, y, p, factor, **stored)
            # Below the normal numbers a rounding is no smaller with the result: up to tiny / 2.
            variance = np.fmin(variance, chance + p.tiny**2)
        if _stagnates(op, args, p):
            variance = worst * worst
        likely = np.fmin(worst, factor * np.sqrt(variance))
    found = moved(op, args, options, y, moves, factor) if truth.size else None
    if found is not None:
        # Roundings of inputs and of sums are independent of each other: variances add up.
        worst, variance = worst + found[0], variance + found[1]
        likely = np.fmin(likely + np.fmin(found[0], factor * np.sqrt(found[1])),
                         factor * np.sqrt(variance))
    if how.own_rounding and (op not in MOVEMENT or how.tensors.block):
        # The result that is rounded may lie in the binade above.
        last, often = (rounding(np.minimum(abs(y) + b, how.tensors.largest), how.tensors)
                       for b in (worst, likely))
        worst, likely, variance = worst + last, likely + often, variance + often * often / 3
    bad = ~np.isfinite(truth)
    return Bound(*(np.where(bad, 0.0, np.nan_to_num(b, nan=np.inf, posinf=np.inf))
                   for b in (worst, np.fmin(likely, worst), np.sqrt(variance))))


def _stagnates(op, args, p):
    """Sums so long that a term may vanish beside the sum: then errors do not average out."""
    if op not in VARIANCE:
        return False
    shape = args[1].shape if len(args) > 1 else args[0].shape
    terms = math.prod(shape[1:]) if op in ("linear", "conv2d") else shape[-2 if op == "matmul"
                                                                          else -1]
    return terms * p.u >= 1


def _wide(value):
    """Arrays of floats in float64, in lists too; all else as it is."""
    if isinstance(value, list):
        return [_wide(v) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype("float64", copy=False)
    return value


def _moves(name, arg, how, given):
    """How far rounding to the format takes an argument at most."""
    if isinstance(arg, list):
        return [_moves(name, a, how, given) for a in arg]
    if isinstance(arg, float):  # a constant, which the port may keep as it keeps tensors
        return uncertainty(np.float64(arg), how.tensors)[()]
    if not isinstance(arg, np.ndarray) or arg.dtype.kind != "f":
        return np.float64(0)
    if given:
        return np.zeros(arg.shape)
    matrix = name == "weight" and arg.ndim > 1
    return uncertainty(arg, how.matrices if matrix else how.tensors, axis=0 if matrix else None)


def _enlarged(op, args, moves):
    """Arguments at their largest: the sums' own errors are those of the rounded inputs.

    But for weights that add up to 1 whatever goes in.
    """
    if op in ("attention", "softmax"):
        return args
    return [arg + np.sign(arg) * move if isinstance(arg, np.ndarray) and arg.dtype.kind == "f"
            and np.any(move) else arg for arg, move in zip(args, moves)]
