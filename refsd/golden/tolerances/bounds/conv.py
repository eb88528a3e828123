"""Bounds of a convolution, by the algorithm that computes it: sums of products, Winograd, FFT."""

import functools
import math

import numpy as np

from refsd.golden.tolerances.bounds import linear
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma, running_sum
from refsd.ops import conv
from refsd.ops.conv_tiled import F2, F4

# B^T, G and A^T of the reference; a port with other points gives its own.
WINOGRAD = {"winograd2": F2, "winograd4": F4}
ALONE = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto"}


def direct(x, weight, options):
    """The definition on other arrays, without a bias."""
    plain = {name: options.get(name, ALONE[name]) for name in ALONE} | {"algorithm": "im2col"}
    return conv.conv2d(x, weight, **plain)


def _product(options):
    return functools.partial(direct, options=options)


def algorithm(weight, options):
    """The algorithm that the options name; "auto": the reference's choice."""
    options = ALONE | options
    return conv.conv2d_algorithm(weight, stride=options["stride"], dilation=options["dilation"],
                                 algorithm=options["algorithm"]).algorithm


def conv2d(args, options, y, p):
    """The worst case of the algorithm that the options name."""
    (x, weight), bias = args[:2], _column(linear.bias_of(args))
    name, terms = algorithm(weight, options), weight[0].size
    if name == "im2col":
        return linear.product_worst(_product(options), x, weight, bias, terms, terms + 1, p)
    of_bias = gamma(1, p) * (abs(y) + abs(bias))
    if name == "fft":
        x = np.pad(x, ((0, 0), (0, 0), *conv.sides(options.get("padding", 0))))
        return _fft(x, weight, options.get("groups", 1), y, p) + of_bias
    # Roundings along one path: two entries of G, 3 + 3 sums of G, n + n of B, n + n of A, channels.
    B, G, A = WINOGRAD[name]
    roundings = 2 + 6 + 4 * len(B) + weight.shape[1]
    return gamma(roundings, p) * winograd_size(x, weight, options, y, (B, G, A)) + of_bias


def _column(bias):
    """A bias as it is added to (N, O, H, W)"""
    return bias[:, None, None] if np.ndim(bias) else bias


def conv2d_variance(args, options, y, p, factor):
    """Of the algorithm that the options name; a bias is one more term."""
    (x, weight), bias = args[:2], _column(linear.bias_of(args))
    name, has_bias = algorithm(weight, options), np.ndim(bias) > 0
    if name == "im2col":
        return linear.product_variance(_product(options), x, weight, bias,
                                       weight[0].size + has_bias, y, p)
    last = p.u**2 / 3 * y * y if has_bias else 0
    if name == "fft":
        return fft_variance(x, weight, options, y - bias, p) + last
    return last + winograd_variance(x, weight, options, y - bias, p, WINOGRAD[name])


def of_conv2d(args, options, y, perturbations, factor):
    """As any product."""
    def product(a, b):
        return direct(a, b, options) if np.any(a) and np.any(b) else np.zeros_like(y)

    return linear.of_product(product, args, perturbations, _column)


def winograd_size(x, weight, options, y, matrices):
    """The transforms on absolute values: what the roundings along one path multiply."""
    B, G, A = (abs(np.asarray(m, "float64")) for m in matrices)
    d, g = _tiles(abs(x), options, y.shape, len(B)), abs(weight)
    products = _multiply(_both(G, g), _both(B, d), options, lambda u, v: u @ v)
    return _assemble(_both(A, products), y.shape)


def winograd_variance(x, weight, options, y, p, matrices):
    """Random roundings of Winograd's algorithm with the matrices B^T, G, A^T, stage by stage.

    A stage multiplies what came before by squared entries, and adds u^2 / 3 of the square of each
    partial sum it makes: no more than its terms' squares times their number.
    """
    B, G, A = (np.asarray(m, "float64") for m in matrices)
    x, weight = np.asarray(x, "float64"), np.asarray(weight, "float64")
    d = _tiles(x, options, y.shape, len(B))
    V, of_V = _transform(B, d, p)
    U, of_U = _transform(G, weight, p)
    C = weight.shape[1]
    products = _multiply(U, V, options, lambda u, v: u @ v)
    squares = _multiply(U * U, V * V, options, lambda u, v: u @ v)
    of_M = running_sum(C, squares, products, p)
    of_M += _multiply(of_U, V * V, options, lambda u, v: u @ v)
    of_M += _multiply(U * U, of_V, options, lambda u, v: u @ v)
    _, of_y = _transform(A, products, p, of_M)
    return _assemble(of_y, y.shape) + p.u**2 / 3 * y * y


def _transform(M, x, p, variance=None):
    """M x M^T over the last two axes, and its variance."""
    S, terms = M * M, (M != 0).sum(axis=1)[:, None]
    rounding = p.u**2 / 3
    once = M @ x
    of_once = rounding * (terms + 1) * (S @ (x * x)) + (0 if variance is None else S @ variance)
    of_all = of_once @ S.T + rounding * (once * once) @ S.T * (terms.T + 1)
    return once @ M.T, of_all


def _both(M, x):
    return M @ x @ M.T


def _tiles(x, options, shape, n):
    """Overlapping tiles n x n of the padded picture.   -> (N, C, down, across, n, n)"""
    (top, bottom), (left, right) = conv.sides(options.get("padding", 0))
    step = n - 2
    down, across = math.ceil(shape[2] / step), math.ceil(shape[3] / step)
    H, W = x.shape[2] + top + bottom, x.shape[3] + left + right
    more = (down * step + 2 - H, across * step + 2 - W)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom + more[0]), (left, right + more[1])))
    tiles = np.lib.stride_tricks.sliding_window_view(x, (n, n), axis=(2, 3))
    return tiles[:, :, ::step, ::step]


def _multiply(U, V, options, product):
    """For each position in a tile, output by input channels times input channels by tiles."""
    groups = options.get("groups", 1)
    (O, I, n, _), N, (down, across) = U.shape, len(V), V.shape[2:4]
    U = U.reshape(groups, O // groups, I, n, n).transpose(0, 3, 4, 1, 2)
    V = V.reshape(N, groups, I, down, across, n, n).transpose(1, 5, 6, 2, 0, 3, 4)
    M = product(U, V.reshape(groups, n, n, I, -1))
    M = M.reshape(groups, n, n, O // groups, N, down, across)
    return M.transpose(4, 0, 3, 5, 6, 1, 2).reshape(N, O, down, across, n, n)


def _assemble(tiles, shape):
    """Tiles m x m side by side, cut to the result's shape."""
    N, O, down, across, m, _ = tiles.shape
    y = tiles.swapaxes(3, 4).reshape(N, O, down * m, across * m)
    return y[:, :, :shape[2], :shape[3]]


def _fft(x, weight, groups, y, p):
    """A transform of P x Q has an error of at most 10 u log2(P Q) in the 2-norm (see the docs)."""
    N, (O, I) = len(x), weight.shape[:2]
    rho = gamma(10 * 2 * math.log2(_longest(x)), p)
    x, weight = x.reshape(N, groups, 1, I, -1), weight.reshape(1, groups, O // groups, I, -1)
    x1, x2 = (np.linalg.norm(x, ord=n, axis=-1) for n in (1, 2))
    w1, w2 = (np.linalg.norm(weight, ord=n, axis=-1) for n in (1, 2))
    size = ((2 * rho + gamma(3 * I + 3, p)) * w1 * x2 + rho * w2 * x1).sum(axis=-1)
    return size.reshape(N, O, 1, 1) + np.zeros_like(y)


def _longest(x):
    return 1.25 * max(64, 4 * max(x.shape[2:]))


def fft_variance(x, weight, options, y, p):
    """Random roundings of both transforms, of the products, and of the way back.

    A butterfly makes a number of 4 roundings and two rounded constants: a variance of 6 / 3 u^2 of
    its square, log2(P Q) times in a row. White errors of relative variance r in a spectrum of
    pictures with mean square m become, times a kernel's spectrum, an error of r m |w|^2 at each
    pixel; m is at most max |x|^2 whatever the tiles. Products have 4 roundings, and sums over the
    channels (C + 1) / 6 (complex: twice) of the squares, as any running sum.
    """
    groups = options.get("groups", 1)
    N, (O, I) = len(x), weight.shape[:2]
    transform = 2 * 2 * math.log2(_longest(x)) * p.u**2
    largest = np.max(x * x, axis=(2, 3)).reshape(N, groups, 1, I)
    squares = (weight * weight).sum(axis=(2, 3)).reshape(1, groups, O // groups, I)
    sizes = (largest * squares).sum(axis=-1).reshape(N, O, 1, 1)
    back = transform * np.max(y * y, axis=(2, 3), keepdims=True)
    return (2 * transform + p.u**2 / 3 * (4 + (I + 1) / 3)) * sizes + back + p.u**2 / 3 * y * y


def fits_winograd(weight, options):
    """Whether F(2x2, 3x3) and F(4x4, 3x3) can compute a convolution."""
    pairs = [np.broadcast_to(options.get(name, 1), 2).tolist() for name in ("stride", "dilation")]
    return weight.shape[2:] == (3, 3) and pairs == [[1, 1], [1, 1]]


MODELS = {"conv2d": ErrorModel(conv2d, of_conv2d, conv2d_variance,
                               lambda args, options: (args[1][0].size,), product=True)}
