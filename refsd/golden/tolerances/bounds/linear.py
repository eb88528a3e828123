"""Bounds of matrix products, and of whatever else is bilinear: sums of K products and a bias."""

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma, running_sum


def product_worst(product, a, b, bias, n, roundings, p):
    """The op on absolute values, whatever the order of its sums (Higham 2002, section 3.1)."""
    return gamma(roundings, p) * (product(abs(a), abs(b)) + abs(bias)) + n * p.tiny


def product_variance(product, a, b, bias, n, y, p):
    """Running sums of the op's products, of which n make an element."""
    return running_sum(max(1, n), product(a * a, b * b) + bias * bias, y, p)


def of_product(product, args, perturbations, column=lambda bias: bias):
    """Of any bilinear product: (|a| + da) (|b| + db) - |a| |b|, and the squares without the last.

    column: makes a bias broadcast against the result.
    """
    (a, b), (da, db, *more) = (abs(arg) for arg in args[:2]), perturbations
    worst = product(a, db) + product(da, b + db)
    a2, b2, da2, db2 = a * a, b * b, da * da, db * db
    variance = (product(a2 + da2, db2) + product(da2, b2)) / 3
    if more and np.ndim(more[0]):
        of_bias = column(more[0])
        worst, variance = worst + of_bias, variance + of_bias * of_bias / 3
    return worst, variance


def bias_of(args):
    """The third argument, or 0"""
    return 0 if len(args) < 3 or args[2] is None else args[2]


def matmul(args, options, y, p):
    """K products and K - 1 sums"""
    K = args[0].shape[-1]
    return product_worst(np.matmul, *args, 0, K, K, p)


def matmul_variance(args, options, y, p, factor):
    return product_variance(np.matmul, *args, 0, args[0].shape[-1], y, p)


def of_matmul(args, options, y, perturbations, factor):
    return of_product(np.matmul, args, perturbations)


def linear(args, options, y, p):
    """the bias is one more term"""
    K = args[1].shape[1]
    return product_worst(_linear, *args[:2], bias_of(args), K, K + 1, p)


def linear_variance(args, options, y, p, factor):
    bias = bias_of(args)
    return product_variance(_linear, *args[:2], bias, args[1].shape[1] + np.ndim(bias), y, p)


def of_linear(args, options, y, perturbations, factor):
    return of_product(_linear, args, perturbations)


def _linear(x, weight):
    return x @ weight.T


MODELS = {
    "matmul": ErrorModel(matmul, of_matmul, matmul_variance,
                         lambda args, options: (args[0].shape[-1],), product=True),
    "linear": ErrorModel(linear, of_linear, linear_variance,
                         lambda args, options: (args[1].shape[1],), product=True),
}  # fmt: skip
