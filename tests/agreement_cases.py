"""Calls that are hard for a vectorised kernel: sizes around vectors, tiles and blocks.

`calls(name)` gives the op's, the first of them large enough for any layout in memory to matter.
They are those of the op's kind, those written here, or its examples in many sizes: more of these
than of options, which op_table.py draws.
"""

import functools
import itertools
import math

import numpy as np
from op_table import Call, Values, accepted, normal, options_of, values_of, within

from refsd import examples
from refsd.contracts import Spec
from refsd.kinds import Map, Pair
from refsd.numba_ops.cpu.attention import KEYS, PANELS
from refsd.numba_ops.pointwise import BLOCK
from refsd.numba_ops.simd import WIDTH
from refsd.numba_ops.tile import ROWS, VECTORS
from refsd.registry import ops
from refsd.shapes import bind, sizes_of

# Around multiples of 4, 8, 16 and 32 (lanes, tiles), and primes.
WIDTHS = (33, 1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 47, 63, 64, 65, 127, 128, 131)
LENGTHS = (*WIDTHS, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 19)
COLUMNS = VECTORS * WIDTH // 4  # of a panel of float32
EPS = 1e-5


@functools.cache
def calls(name):
    """The op's hard calls, with the same values every time."""
    seeds = itertools.count(1)

    def values(*shape, scale=1.0, mean=0.0):
        return normal(shape, next(seeds), scale, mean)

    op = ops()[name]
    if name in WRITTEN:
        return tuple(WRITTEN[name](values))
    if isinstance(op.kind, Map):
        return tuple(_mapped(values, op))
    return tuple(_pairwise(values) if isinstance(op.kind, Pair) else swept(op))


def call(*args, **options):
    """A Call of arrays as they are; op_table.with_layout can put them elsewhere."""
    return Call(values_of(args), values_of(options))


def laid_out(call, layout):
    """The same call with all its arrays laid out in memory like that."""
    def moved(value):
        if isinstance(value, list):
            return [moved(v) for v in value]
        return value._replace(layout=layout) if isinstance(value, Values) else value

    return Call(tuple(map(moved, call.args)), {k: moved(v) for k, v in call.options.items()})


def _mapped(values, op):
    for shape in [(2, 5, 4, 7), (), (0, 3), *((n,) for n in LENGTHS)]:
        yield call(within(op.kind, values(*shape, scale=3 * op.kind.scale)), **options_of(op))


def swept(op):
    """The examples of an op, and each letter of its declaration in turn at every width."""
    for example in examples.calls(op):
        options = {name: op.signature.parameters[name].default
                   for name in op.contract.options} | example.options
        sizes = dict(options)
        for tensor in op.contract.tensors:
            if tensor.form == "tensor" and tensor.name in example.inputs:
                bind(tensor.letters, example.inputs[tensor.name].shape, sizes, op.name)
        letters = [letter for letter in sizes if letter not in (*options, "...")]
        for seed, (letter, width) in enumerate(itertools.product(letters, WIDTHS)):
            wide = examples.with_tensors(example, lambda name, spec: Spec(sizes_of(
                op.contract.tensor(name).letters, sizes | {letter: width}), spec.dtype))  # noqa: B023
            if accepted(op, wide.inputs.values(), wide.options):
                yield _filled(op, wide, seed)
        yield _filled(op, example, 0)


def _filled(op, example, seed):
    filled = examples.with_values(op, example, seed)
    return call(*filled.inputs.values(), **filled.options)


def _pairwise(values):
    yield call(values(2, 5, 4, 7), values(2, 5, 4, 7))
    for length in LENGTHS:
        yield call(values(2, length), values(2, length, mean=9.0))
        yield call(values(2, length), 0.1)
    for other in [(2, 5, 1, 1), (5, 1, 1), (1, 5, 1, 1), (1, 5, 4, 7), (7,), (2, 1, 1, 1),
                  (1, 1, 4, 1), (1,), ()]:
        yield call(values(2, 5, 4, 7), values(*other, mean=9.0))
        yield call(values(*other), values(2, 5, 4, 7, mean=9.0))
    # A bias for each channel of many rows.
    yield call(values(2, 33, 70, 41).transpose(0, 2, 3, 1), values(33, mean=9.0))


def _linear(values):
    for i, (M, K, N) in enumerate([
            (ROWS + 1, 129, COLUMNS + 1), (1, 1, 1), (ROWS - 1, 127, COLUMNS - 1),
            (ROWS, 128, COLUMNS), (2 * ROWS + 1, 257, 2 * COLUMNS), (5, 320, 17), (7, 31, 8),
            (3 * ROWS + 1, 16, 100), (2, 5, 3 * COLUMNS - 1), (101, 13, 9), (150, 384, 47),
            (1, 769, 2 * COLUMNS + 3), (3, 385, 70), (4, 41, COLUMNS)]):
        bias = [values(N)] if i % 3 else []
        yield call(values(M, K), values(N, K), *bias)
    yield call(values(2, 7, 40), values(37, 40), None)
    yield call(values(40), values(37, 40), values(37))
    yield call(values(3, 0, 4), values(5, 4), values(5))


def _linear_add(values):
    for (x, weight, *bias), _ in _linear(values):
        rows = x.data.shape[:-1]
        yield Call((x, weight, *values_of([values(*rows, len(weight.data))]), *bias), {})


def _linear_geglu(values):
    """Gates of up to 5, where gelu is neither 0 nor the gate itself."""
    for (x, weight, *bias), _ in _linear(values):
        scale = 0.5 / max(1, x.data.shape[-1])**0.5
        wide = [w and values(2 * len(w.data), *w.data.shape[1:], scale=s)
                for w, s in zip((weight, *bias), (scale, 1.0))]
        yield Call((x, *values_of(wide)), {})


def _matmul(values):
    for M, K, N in [(ROWS + 1, 129, COLUMNS + 1), (1, 1, 1), (ROWS, 128, COLUMNS), (5, 257, 3),
                    (2 * ROWS - 1, 31, 2 * COLUMNS - 1)]:
        yield call(values(M, K), values(K, N))
    yield call(values(2, 1, 5, 9), values(3, 9, 17))
    yield call(values(3, 9, 7), values(2, 3, 7, 5))
    yield call(values(2, 3, 0), values(0, 4))


def _conv2d(values):
    def conv(shape, kernel, bias=True, **options):
        return call(values(*shape), values(*kernel), *[values(kernel[0])] * bias, **options)

    sizes = [(9, 10), (1, 1), (2, 3), (4, 4), (5, 8), (7, 13), (17, 6), (33, 9)]
    channels = [(17, 33), (1, 1), (3, 5), (4, 32), (16, 16), (32, 33), (65, 64), (16, 97)]
    for name in ("im2col", "winograd2", "winograd4", "fft"):
        for i, ((H, W), (C, O)) in enumerate(zip(sizes, channels)):
            yield conv((1 + i % 2, C, H, W), (O, C, 3, 3), bias=i % 3 != 1, algorithm=name,
                       padding=((1, 1), (i % 2, 2)))
        yield conv((2, 36, 9, 7), (40, 18, 3, 3), algorithm=name, padding=1, groups=2)
        yield conv((1, 16, 0, 2), (3, 16, 3, 3), algorithm=name, padding=2)
    yield conv((2, 16, 16, 16), (16, 16, 3, 3), padding=1)  # the backend's own choice
    for (N, C, H, W), O in [((1, 5, 1, 1), 37), ((2, 33, 3, 3), 37), ((2, 16, 8, 9), 32)]:
        yield conv((N, C, H, W), (O, C, 1, 1))
        yield conv((N, C, H, W), (O, C, 1, 1), stride=2)
        yield conv((N, C, H, W), (O, C, 1, 1), padding=1)
    for C, O in [(40, 40), (1, 1), (33, 33), (8, 24)]:  # depthwise
        yield conv((2, C, 9, 11), (O, 1, 3, 3), groups=C, padding=1)
        yield conv((2, C, 9, 11), (O, 1, 3, 3), groups=C, stride=2, padding=2, dilation=(1, 2))
    yield conv((1, 4, 9, 8), (6, 4, 3, 3), stride=[1, 2], padding=[0, 2])
    yield conv((1, 4, 9, 8), (6, 4, 2, 5), dilation=(3, 1), padding=((0, 2), (3, 0)))
    yield conv((1, 4, 3, 9), (6, 4, 1, 33), padding=16)  # zeros left of a line past the last
    yield conv((2, 8, 40, 37), (9, 8, 15, 16), algorithm="fft", padding=7, stride=(2, 1))


def _conv2d_add(values):
    """Each of conv2d's with a residual, or what has some axes of 1 or fewer axes."""
    for i, ((x, weight, *bias), options) in enumerate(_conv2d(values)):
        args, given = Call((x, weight), options).build("float32")
        N, O, H, W = ops()["conv2d"].contract(*args, **given).shape
        shape = [(N, O, H, W), (N, O, 1, 1), (N, O, H, W), (1, O, 1, 1), (O, H, W), (N, 1, H, W),
                 (W,), ()][i % 8]
        yield Call((x, weight, values_of(values(*shape)), *bias), options)


def _upsample_conv2d(values):
    """Each of conv2d's of a picture enlarged to some odd size; windows fit into this one too."""
    for i, ((x, *others), options) in enumerate(_conv2d(values)):
        H, W = x.data.shape[2:]
        if H * W:
            yield Call((x, *others), {"height": (2 * H, H, 3 * H - 1)[i % 3],
                                      "width": (2 * W, W + 1, W)[i % 3], **options})


def _attention(values):
    def qkv(N, L, S, C, D):
        return values(N, L, C), values(N, S, C), values(N, S, D)

    hidden = normal((40, KEYS + 34), 99, 3.0)
    hidden[hidden > 1], hidden[3] = -math.inf, -math.inf
    yield call(*qkv(2, 40, KEYS + 34, 24, 12), heads=3, mask=hidden)
    for heads, d, e in [(1, 1, 1), (8, 40, 40), (1, 160, 160), (3, 64, 64), (2, 7, 29), (1, 17, 3)]:
        yield call(*qkv(2, 35, 77, heads * d, heads * e), heads=heads)
    for S in (1, ROWS - 1, ROWS, ROWS + 1, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS + 5):
        yield call(*qkv(1, 5, S, 16, 16), heads=2)
    yield call(*qkv(0, 0, 1, 1, 1), heads=1)
    edge = COLUMNS * PANELS
    for L in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, edge - 1, edge, edge + 1):
        yield call(*qkv(2, L, 20, 10, 10), heads=2)
    for L in (1, 2, 33, KEYS + 40):
        yield call(*qkv(2, L, L, 24, 24), heads=3, causal=True)
    for shape in [(2, 3, 17, 29), (2, 1, 17, 29), (3, 1, 29), (17, 1), (29,), ()]:
        yield call(*qkv(2, 17, 29, 12, 12), heads=3, mask=values(*shape, scale=3.0))
    # One weight for all keys but the first, other ones for other queries, and all values the same:
    # the largest below 2, where one bfloat16 more or less is further off than a rounding. Few keys
    # and small scores leave float32's own bound no room for it.
    k, q = np.zeros((1, 24, 2), "float32"), np.zeros((1, 150, 2), "float32")
    k[:, 1:, 0], q[..., 0] = -1, np.linspace(0, 2, 150)
    yield call(q, k, np.full((1, 24, 2), 255 / 128, "float32"), heads=1)


def _group_norm(values):
    for shape, groups in [((2, 36, 5, 7), 2), ((1, 40, 30, 29), 4), ((1, 128, 17, 20), 32),
                          ((3, 6, 1, 1), 3), ((1, 320, 3, 3), 32), ((1, 17, 50, 41), 1),
                          ((2, 5, 3), 5), ((2, 33, 8, 4), 3), ((1, 8, 100, 131), 4)]:
        for mean in (0.0, 3.0, 1e4):
            yield call(values(*shape, mean=mean), values(shape[1]), values(shape[1]),
                       groups=groups, eps=1e-6)
    x = values(1, 64, 64, 33, scale=1e-3)  # the variance lies between the blocks
    x[:, :, 32:] += 100
    yield call(x, values(64), values(64), groups=32, eps=1e-6)
    for value in (0.0, 3333.3, -1e6):  # nothing but the bias is left
        yield call(np.full((2, 32, 64, 33), value, "float32"), values(32), values(32), groups=4,
                   eps=1e-6)


def _row_norm(*, bias):
    def cases(values):
        for K in (*WIDTHS, 320, 1283):
            for mean in (0.0, 1e4):
                yield call(values(11, K, mean=mean), *[values(K) for _ in range(1 + bias)],
                           eps=EPS)
        yield call(values(2, 3, 5, 16), *[values(16) for _ in range(1 + bias)], eps=1e-3)
        yield call(np.full((9, 320), 3333.3, "float32"),
                   *[values(320) for _ in range(1 + bias)], eps=1e-6)

    return cases


def _layer_norm(values):
    yield from _row_norm(bias=True)(values)
    for K in WIDTHS:
        yield call(values(11, K), eps=EPS)
        yield call(values(11, K), values(K), eps=EPS)


def _softmax(values):
    yield call(values(5, 33, 6), axis=1)
    for K in (*WIDTHS, 320, 1283):
        yield call(values(11, K, scale=4.0), axis=-1)
    hidden = values(3, 20)
    hidden[1], hidden[2, 3:] = -math.inf, -math.inf
    yield call(hidden, axis=-1)


def _timestep_embedding(values):
    for dim in (320, 2, 3, 33):
        for flip, shift in [(True, 0), (False, 0.5)]:
            yield call(np.array([0, 1, 500, 999]), dim=dim, flip_sin_to_cos=flip, freq_shift=shift,
                       dtype="float32")
    yield call(np.array([0.5, 998.7], "float32"), dim=64, flip_sin_to_cos=True, freq_shift=0,
               dtype="float32")


def _concat(values):
    for C, axis in itertools.product(WIDTHS[::2], (1, -1)):
        shape = [2, 5, 3, 4]
        arrays = []
        for n in (C, 17, 3):
            shape[axis] = n
            arrays.append(values(*shape))
        yield call(arrays, axis=axis)


def _slice(values):
    for axis in (1, -1, 0):
        yield call(values(4, 17, 6, 5), axis=axis, start=1, stop=3)


def _pad(values):
    for C in WIDTHS:
        yield call(values(2, C, 4, 5), widths=((0, 0), (0, 0), (1, 1), (0, 1)))
    yield call(values(2, 19, 6, 5), widths=((1, 0), (2, 3), (0, 0), (0, 0)))


def _transpose(values):
    for axes in ((0, 2, 3, 1), (3, 2, 1, 0), (0, 1, 2, 3)):
        yield call(values(2, 17, 6, 5), axes=axes)


def _reshape(values):
    for shape in ((2, 17, 2, 3, 5), (34, 30), (1020,), (17, 60, 1)):
        yield call(values(2, 17, 6, 5), shape=shape)


WRITTEN = {
    "linear": _linear, "linear_add": _linear_add, "linear_geglu": _linear_geglu,
    "matmul": _matmul, "conv2d": _conv2d, "attention": _attention,
    "conv2d_add": _conv2d_add, "upsample_conv2d": _upsample_conv2d,
    "group_norm": _group_norm, "group_norm_silu": _group_norm, "layer_norm": _layer_norm,
    "rms_norm": _row_norm(bias=False), "softmax": _softmax,
    "timestep_embedding": _timestep_embedding, "concat": _concat, "slice": _slice, "pad": _pad,
    "transpose": _transpose, "reshape": _reshape,
}  # fmt: skip
