"""Which algorithm computes a convolution, why, and what the others would cost. Nothing is computed.

conv2d is the one op that has several algorithms. A backend's rule for choosing is a pure function
of shapes and options; here it is asked, and its answer put beside the costs of all.
"""

import math
from typing import Any, NamedTuple

from refsd.backends import find_backend
from refsd.contracts import Output, itemsize
from refsd.errors import UsageError
from refsd.ops.conv import conv2d_algorithm, pair, sides
from refsd.registry import active_backend, exact_wanted, ops, use

ALGORITHMS = ("im2col", "winograd2", "winograd4", "fft")
TILES = {"winograd2": 4, "winograd4": 6}  # pixels along a tile's side, three taps included


class Cost(NamedTuple):
    """What an algorithm would take for a convolution; None where it cannot compute it.

    `multiplications` are those between transformed pictures and weights: the transforms' own come
    on top. `weight_bytes` are the weights as it wants them: those of im2col a pipeline on the numba
    backend holds in place of the checkpoint's, FFT's it keeps for one size, all others are made in
    every call.
    """

    algorithm: str
    multiplications: int | None
    weight_bytes: int | None


class Explanation(NamedTuple):
    """The algorithm that is taken, the reason in words, the result's shape and cost, all costs."""

    backend: str
    exact: bool
    algorithm: str
    why: str
    output: Output
    costs: tuple[Cost, ...]


def explain_conv2d(x: Any, weight: Any, *, backend: str = "auto", exact: bool = False,
                   **options: Any) -> Explanation:
    """How F.conv2d(x, weight, **options) would be computed; x and weight may be contracts.Spec.

    Raises UsageError for shapes and options that the op refuses.

    >>> from refsd.contracts import Spec
    >>> x, weight = Spec((1, 64, 64, 64), "float32"), Spec((64, 64, 15, 15), "float32")
    >>> explain_conv2d(x, weight, backend="numpy", padding=7).algorithm
    'fft'
    """
    with use(backend, exact=exact):
        algorithm, why, result = _choice(x, weight, **options)
        costs = tuple(_cost(name, x, weight, result.shape, **options) for name in ALGORITHMS)
        return Explanation(active_backend(), exact_wanted(), algorithm, why, result, costs)


def chosen(op: str, inputs: dict[str, Any], options: dict[str, Any]) -> str | None:
    """The algorithm that an op takes here and now, by name; None for ops that have only one."""
    if op != "conv2d":
        return None
    return _choice(inputs["x"], inputs["weight"], **options)[0]


def _choice(x, weight, **options):
    """Name, reason and inferred result under the active backend, exactness and policy."""
    result = ops()["conv2d"].contract(x, weight, None, **options)
    stride, dilation = (pair(options.get(name, 1)) for name in ("stride", "dilation"))
    algorithm = options.get("algorithm", "auto")
    N, O, Ho, Wo = result.shape
    choice = find_backend(active_backend()).conv2d_choice(
        (N, Ho, Wo, O), tuple(weight.shape), stride=stride, dilation=dilation,
        groups=options.get("groups", 1), algorithm=algorithm, dtype=x.dtype)
    return choice.algorithm, choice.why, result


def _cost(name, x, weight, result, *, stride=1, padding=0, dilation=1, groups=1, algorithm="auto"):
    try:
        conv2d_algorithm(weight, stride=stride, dilation=dilation, algorithm=name)
    except UsageError:
        return Cost(name, None, None)
    (N, O, Ho, Wo), (_, I, kh, kw) = result, weight.shape
    reach = [d * (k - 1) + 1 for d, k in zip(pair(dilation), (kh, kw))]
    extent = [n + sum(pad) for n, pad in zip(x.shape[2:], sides(padding))]

    if name == "im2col":
        tiles, places, kept = Ho * Wo, kh * kw, kh * kw
    else:
        size = (TILES[name],) * 2 if name in TILES else _fft_tile(extent, reach)
        tiles = math.prod(-(-(n - r + 1) // (s - r + 1)) for n, r, s in zip(extent, reach, size))
        # A complex number is two, a product of them four; half of a real spectrum tells the rest.
        spectrum = size[0] * (size[1] // 2 + 1)
        places, kept = (size[0] * size[1],) * 2 if name in TILES else (4 * spectrum, 2 * spectrum)
    rows = find_backend(active_backend()).conv2d_rows(name, O, groups, weight.dtype)
    return Cost(name, N * tiles * places * O * I, rows * I * kept * itemsize(weight.dtype))


def _fft_tile(extent, reach):
    from refsd.numba_ops.cpu.conv_fft import tile_size  # the reference's tiles are the same

    return tile_size(extent, reach)
