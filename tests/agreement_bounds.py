"""What a backend's errors are held to: worst cases, and what random rounding makes of sums.

The worst cases are those of bounds.py, but for the CPU backend's Winograd transforms, which have
other points than the reference's.
"""

import math

import bounds
import numpy as np

from refsd.golden.tolerances.bounds import elementwise, error_model
from refsd.golden.tolerances.precision import PRECISIONS
from refsd.half import HALVES
from refsd.numba_ops.cpu import conv, winograd_transforms
from refsd.numba_ops.cpu.winograd_weights import kernel_4, kernel_6
from refsd.numba_ops.levels import BFLOAT16
from refsd.ops.conv import sides
from refsd.registry import ops

WINOGRAD = {"winograd2": 4, "winograd4": 6}
DIMENSIONS = {"winograd2": (kernel_4, winograd_transforms.into_4, winograd_transforms.out_of_4),
              "winograd4": (kernel_6, winograd_transforms.into_6, winograd_transforms.out_of_6)}
CONVOLUTIONS = ("conv2d", "conv2d_add", "upsample_conv2d")
DOTS = ("linear", "linear_add", "linear_geglu", "matmul", *CONVOLUTIONS, "attention")  # by "dot"
LEAST = 2.0**-126  # the smallest normal float32, and bfloat16
ALONE = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto"}


def worst(name, args, options, truth, precision, of_weights=2):
    """The largest error that each element may have. of_weights: roundings of G g G^T."""
    if name == "conv2d_add":
        x, weight, addend, *bias = args
        of_product = worst("conv2d", [x, weight, *bias], options, truth - addend, precision,
                           of_weights)
        return of_product + bounds.gamma(1, precision) * (abs(truth) + of_product)
    if name == "upsample_conv2d":
        name, args, options = "conv2d", *enlarged(args, options)
    if name != "conv2d":
        return bounds.BOUNDS[name](args, options, truth, precision)
    chosen = algorithm(args, options, truth.shape)
    if chosen in WINOGRAD:
        return _winograd(args, options, truth, chosen, precision, of_weights)
    return bounds.conv2d(args, options | {"algorithm": chosen}, truth, precision)


def of_dtype(name, args, options, truth, dtype, products=None):
    """The same for results of a dtype. Halves: the bound of float32, and one rounding of it all.

    products, how halves are multiplied: "widened" to float32; by "dot" products of a processor; by
    the "matrix" units of a GPU, which take attention's weights as halves. None: as this CPU does.
    """
    if dtype not in HALVES:
        return worst(name, args, options, truth, PRECISIONS[dtype])
    if name in CONVOLUTIONS:
        options = options | {"algorithm": algorithm(args, options, truth.shape, dtype)}
    # Weights are transformed in float32, each direction with five roundings: a product, two sums,
    # a product by a rounded constant.
    sums = worst(name, args, options, truth, PRECISIONS["float32"], of_weights=10)
    p = PRECISIONS[dtype]
    if products is None:
        products = "dot" if dtype == "bfloat16" and BFLOAT16 == "dot" else "widened"
    in_pairs = name == "attention" and args[0].shape[2] // options["heads"] % 2 == 0
    if name == "attention" and (products == "matrix" or products == "dot" and in_pairs):
        sums = sums + _of_rounded_weights(args, options, truth, sums, p)
    if products == "dot":
        sums = sums + _flushed(name, args, options, truth)
    return sums + p.u * (abs(truth) + sums) + p.tiny


def _flushed(name, args, options, truth):
    """What AVX512-BF16 takes for 0: inputs below the normal, and so each of the sums on the way."""
    if name not in DOTS:
        return 0.0
    if name == "linear_geglu":
        h = ops()["linear"].definition(*args)
        return elementwise.of_geglu([h], {}, truth, [_flushed("linear", args, options, h)], 1.0)
    name = "linear" if name == "linear_add" else name
    if name == "conv2d_add":
        x, weight, _, *bias = args
        name, args = "conv2d", [x, weight, *bias]
    if name == "upsample_conv2d":
        name, args, options = "conv2d", *enlarged(args, options)
    products = args[:3] if name == "attention" else args[:2]
    lost = [np.where(abs(arg) < LEAST, abs(arg), 0) for arg in products]
    inputs, _ = error_model(name).input_error(products, options, truth, lost, 1.0)
    if name == "attention":  # a score is off by e, a weight by e^(2 e)
        q, k, v = args
        largest = abs(v).max(axis=1, keepdims=True, initial=0)
        return inputs + (k.shape[1] + 2 * q.shape[2] * largest) * LEAST
    terms = args[0].shape[-1] if name == "matmul" else math.prod(args[1].shape[1:])
    return inputs + terms * LEAST


def _of_rounded_weights(args, options, truth, sums, p):
    """Weights p_j (1 + d_j), |d_j| <= u, over their own sum, are off by the deviations they weigh.

    sum_j p_j d_j (v_j - y) / (1 + sum_j p_j d_j) is at most u / (1 - u) sum_j p_j |v_j - y|, which
    by Jensen is at most the root of sum_j p_j v_j^2 - y^2: 0 where all values are the same. The
    p_j are float32's, as far off as `sums` has it, and so are y and v_j - y.

    What is rounded is w_j = p_j / max p, and of a w_j below the normal numbers up to t, half of the
    smallest number, whatever is left of it: sum_j t |v_j - y| besides, over a sum that t makes no
    smaller than 1 - u - S t, for the largest w_j is 1.
    """
    q, k, v = args
    S = k.shape[1]
    squares = ops()["attention"].definition(q, k, v * v, **options)
    deviations = np.sqrt(np.maximum(squares - truth * truth, 0)) + 3 * sums
    distances = abs(v).sum(axis=1, keepdims=True) + S * (abs(truth) + sums)
    t = p.tiny / 2
    return (p.u * deviations + t * distances) / (1 - p.u - S * t)


def algorithm(args, options, result, dtype="float32"):
    """The algorithm of conv2d that the CPU backend takes for a result (N, O, H', W')."""
    options = ALONE | options
    N, O, Ho, Wo = result
    stride, dilation = (tuple(np.broadcast_to(options[k], 2).tolist())
                        for k in ("stride", "dilation"))
    return conv.choose((N, Ho, Wo, O), args[1].shape, stride=stride, dilation=dilation,
                       groups=options["groups"], algorithm=options["algorithm"],
                       dtype=dtype).algorithm


def enlarged(args, options):
    """upsample_conv2d's arguments and options as conv2d's."""
    options = dict(options)
    to = {name: options.pop(name) for name in ("height", "width")}
    return [ops()["upsample_nearest"].definition(args[0], **to), *args[1:]], options


def matrices(name):
    """G, B^T and A^T, column by column, from the functions that the kernels are made of."""
    def matrix(function, n):
        return np.array([function.py_func(*row) for row in np.eye(n)]).T

    return [matrix(f, n) for f, n in zip(DIMENSIONS[name], (3, WINOGRAD[name], WINOGRAD[name]))]


def _winograd(args, options, truth, name, precision, of_weights=2):
    """The transforms on absolute values, times the roundings on one path: docs/kernels-conv.md"""
    x, weight, bias = (*args, None)[:3]
    G, B, A = (abs(m) for m in matrices(name))
    n, m = len(B), len(A)
    (top, bottom), (left, right) = sides(options.get("padding", 0))
    groups, N, (O, I, _, _) = options.get("groups", 1), len(x), weight.shape
    Ho, Wo = truth.shape[2:]
    down, across = -(-Ho // m), -(-Wo // m)
    x = np.pad(abs(x), ((0, 0), (0, 0), (top, bottom + m), (left, right + m)))
    tiles = np.lib.stride_tricks.sliding_window_view(x, (n, n), axis=(2, 3))
    tiles = tiles[:, :, ::m, ::m][:, :, :down, :across]
    V = np.einsum("ai,zcyxij,bj->abzcyx", B, tiles, B, optimize=True)
    U = np.einsum("au,ocuv,bv->aboc", G, abs(weight), G, optimize=True)
    M = np.concatenate([np.einsum("aboc,abzcyx->abzoyx", u, v, optimize=True) for u, v in
                        zip(np.split(U, groups, axis=2), np.split(V, groups, axis=3))], axis=3)
    size = np.einsum("ia,abzoyx,jb->zoyixj", A, M, A, optimize=True)
    size = size.reshape(N, O, down * m, across * m)[:, :, :Ho, :Wo]
    if bias is not None:
        size = size + abs(bias)[:, None, None]
    return bounds.gamma(_roundings(I, of_weights), precision) * size


def _roundings(channels, of_weights=2):
    """Of G g G^T, 4 in each direction there and back, the chain of products, the bias."""
    return of_weights + 8 + channels + 1 + 8 + 1


def typical(name, args, options, truth, precision):
    """The root mean square that the errors of a dot-like op may have, on random arguments.

    Roundings are independent of each other: a rounding of s has a variance of at most u^2 s^2 / 3,
    and variances add up. A running sum of K products of variance v has partial sums of variance
    k v, so u sqrt(v K (K + 1) / 6) in all; sums in pieces or in a tree have less. The bias counts
    as one more term.
    """
    if name == "attention":
        return _of_attention(args, options, precision)
    if name == "conv2d":
        chosen = algorithm(args, options, truth.shape)
        if chosen in WINOGRAD:
            # n roundings, each of at most u times the bound's `size`: sqrt(n) u instead of n u.
            allowed = _winograd(args, options, truth, chosen, precision)
            return bounds.rms(allowed) / math.sqrt(_roundings(args[1].shape[1]))
        if chosen == "fft":
            # The same, with the roundings of both transforms and of the products.
            allowed = worst(name, args, options, truth, precision)
            return bounds.rms(allowed) / math.sqrt(3 * args[1].shape[1])
    K = math.prod(args[1].shape[1:]) if name != "matmul" else args[0].shape[-1]
    variance = np.mean(np.square(args[0])) * np.mean(np.square(args[1]))
    if len(args) > 2:
        K, variance = K + 1, max(variance, np.mean(np.square(args[2])))
    return precision.u * math.sqrt(variance * K * (K + 1) / 6)


def common(name, args, options, truth, precision):
    """How far all errors together may lie to one side: 0, if no rounding is common to all.

    The FFT's constants (cos and sin of its angles, 1 / size) are rounded once for all values: up
    to u of the result in each stage of three transforms.
    """
    if name != "conv2d" or algorithm(args, options, truth.shape) != "fft":
        return 0.0
    longest = 1.25 * max(64, 4 * max(args[0].shape[2:]))  # as in bounds.py
    return precision.u * 3 * 2 * math.log2(longest) * bounds.rms(truth)


def _of_attention(args, options, p):
    """sum_j p_j v_j where each p_j is off by what its score, e^, and the sums make it off.

    A score is a sum of d products (and is scaled: two roundings), e^ allows EXP, both sums over
    the S keys are relative to sqrt(sum p_j^2) times the spread of v.
    """
    q, k, v = args
    heads, S = options["heads"], k.shape[1]
    d = q.shape[-1] // heads
    q, k = (t.reshape(*t.shape[:2], heads, -1).swapaxes(1, 2) for t in (q, k))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(d)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = e / e.sum(axis=-1, keepdims=True)
    spread = math.sqrt(np.mean(np.sum(weights * weights, axis=-1)) * np.mean(v * v))
    of_scores = math.sqrt((d + 1) * (d + 2) / 6 / d) * bounds.rms(q) * bounds.rms(k)
    depth = bounds.rms(scores.max(axis=-1, keepdims=True) - scores)  # the shift is rounded as well
    return p.u * spread * (of_scores + depth + bounds.EXP + 3 + 2 * math.sqrt(S / 3))
