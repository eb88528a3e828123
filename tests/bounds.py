"""How far a result may lie from the exact one, and the assertion of it.

`BOUNDS[op](args, options, truth, precision)` is the worst case of refsd's own kernels, element by
element; the formulas are those of refsd.golden.tolerances.bounds.
"""

import math

import numpy as np

from refsd.golden.tolerances.bounds import error_model
from refsd.golden.tolerances.bounds.conv import conv2d
from refsd.golden.tolerances.precision import PRECISIONS as ALL
from refsd.golden.tolerances.precision import Precision, gamma
from refsd.kinds import EXP, OTHERS
from refsd.registry import ops

BOUNDS = {name: error_model(name).worst for name in ops()}
# What refsd computes in.
PRECISIONS = {name: ALL[name] for name in ("float32", "float64")}
__all__ = ["BOUNDS", "EXP", "OTHERS", "PRECISIONS", "Precision", "assert_within", "conv2d",
           "gamma", "rms"]


def assert_within(got, truth, bound, what=""):
    """|got - truth| <= bound in every element; equal infinities and NaNs in the same places pass.

    Returns the largest share of the bound that was used.
    """
    got, truth = np.asarray(got), np.asarray(truth)
    assert got.shape == truth.shape, f"{what}: shape {got.shape}, wanted {truth.shape}"
    bound = np.broadcast_to(np.asarray(bound, "float64"), truth.shape)
    assert not np.isnan(bound).any(), f"{what}: the bound itself is NaN"

    same = (got == truth) | (np.isnan(got) & np.isnan(truth))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype("float64") - truth)
    error = np.where(same, 0, np.where(np.isnan(error), math.inf, error))
    if np.any(error > bound):
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(error > bound, error / bound, 0)
        i = np.unravel_index(np.argmax(share), truth.shape)
        raise AssertionError(
            f"{what}: at {tuple(int(n) for n in i)} got {got[i]!r}, truth {truth[i]!r}: error "
            f"{error[i]:.3g}, allowed {bound[i]:.3g}; {int((error > bound).sum())} of {error.size} "
            "elements are outside")
    used = error[bound > 0] / bound[bound > 0]
    return float(used.max()) if used.size else 0.0


def rms(error):
    """The root of the mean square."""
    return math.sqrt(float(np.mean(np.square(np.asarray(error, "float64")))))
