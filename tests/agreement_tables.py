"""Calls for checks that need more than a hard size: batches, random sums, weights, refusals."""

import numpy as np
from agreement_cases import call
from op_table import normal, options_of

from refsd.contracts import Spec
from refsd.examples import Call, with_values
from refsd.registry import ops
from refsd.shapes import names, sizes_of


def _n(*shape, seed=1, scale=1.0):
    return normal(shape, seed, scale)


def _photos(seed, channels=48):
    return np.moveaxis(_n(3, 65, 31, channels, seed=seed), -1, 1)


def _tokens(width, seed=1):
    return _n(3, 700, width, seed=seed)


# Of letters in declarations: more than one task, and no multiples of vectors and tiles.
SIZES = {"...": (3, 9001), "N": 3, "C": 48, "H": 65, "W": 31, "L": 3, "D": 42}


def batches(name):
    """Calls on a batch of three, of more than one task, and what in them has the batch axis."""
    return BATCHES[name]() if name in BATCHES else from_declaration(ops()[name])


def from_declaration(op):
    """One with letters of these sizes, if arrays begin with the first letter of the result."""
    tensors, options = op.contract.tensors, options_of(op)
    letters = {name: 41 for t in tensors for name in names(t.letters)} | SIZES | options
    filled = with_values(op, Call({t.name: Spec(
        sizes_of(t.letters, letters), "float32" if t.kind == "float" else "int64")
        for t in tensors}, options), 1)
    batched = {i for i, t in enumerate(tensors) if t.letters[:1] == op.contract.result[:1]}
    return [(call(*filled.inputs.values(), **options), batched)] if batched else []


def _convolutions():
    algorithms = [(40, {"algorithm": name}) for name in ("auto", "im2col", "winograd2", "fft")]
    for channels, more in [*algorithms, (20, {"groups": 2}), (1, {"groups": 40})]:
        features = 40 if channels == 1 else 70
        yield call(_n(3, 40, 19, 21), _n(features, channels, 3, 3, seed=2), _n(features),
                   padding=1, **more), {0}
    yield call(_n(3, 40, 19, 21), _n(70, 40, 1, 1, seed=2), _n(70)), {0}
    yield call(_n(3, 40, 19, 21), _n(70, 40, 3, 3, seed=2), stride=2), {0}


def _sums():
    """Of each of the convolutions: a residual, or one of an image, such as the time."""
    for i, (whole, batched) in enumerate(_convolutions()):
        (x, weight, *bias), options = whole.build("float32")
        shape = ops()["conv2d"].contract(x, weight, **options).shape
        addend = _n(*(shape if i % 2 else (*shape[:2], 1, 1)), seed=3)
        yield call(x, weight, addend, *bias, **options), batched | {2}


def _enlarged():
    for whole, batched in _convolutions():
        args, options = whole.build("float32")
        yield call(*args, height=38, width=40, **options), batched


def _attentions():
    yield call(_n(3, 300, 60), _n(3, 290, 60, seed=2), _n(3, 290, 60, seed=3), heads=3,
               mask=_n(3, 1, 300, 290)), {0, 1, 2, "mask"}
    yield call(_n(3, 77, 64), _n(3, 77, 64, seed=2), _n(3, 77, 64, seed=3), heads=2,
               causal=True), {0, 1, 2}


# Of an image: of many tiles, of one, and of so few that they alone are multiplied otherwise.
ROWS = [(157,), (5,), (4,), ()]
BATCHES = {
    "linear": lambda: [(call(_n(3, *rows, 200), _n(117, 200, seed=2), _n(117)), {0})
                       for rows in ROWS],
    "linear_add": lambda: [(call(_n(3, *rows, 200), _n(117, 200, seed=2),
                                 _n(3, *rows, 117, seed=3), _n(117)), {0, 2})
                           for rows in ROWS],
    "linear_geglu": lambda: [(call(_n(3, *rows, 200), _n(234, 200, seed=2), _n(234)), {0})
                             for rows in ROWS],
    "matmul": lambda: [(call(_n(3, 157, 200), _n(3, 200, 117, seed=2)), {0, 1})],
    "conv2d": _convolutions, "conv2d_add": _sums, "upsample_conv2d": _enlarged,
    "attention": _attentions,
    "group_norm": lambda: [(call(_photos(1), *_n(2, 48), groups=4, eps=1e-5), {0})],
    "group_norm_silu": lambda: [(call(_photos(1), *_n(2, 48), groups=4, eps=1e-5), {0})],
    "upsample_nearest": lambda: [(call(_photos(1), height=130, width=62), {0})],
    "upsample_bilinear": lambda: [(call(_photos(1), height=99, width=64, align_corners=True), {0})],
    "to_image": lambda: [(call(_tokens(41), height=28, width=25), {0})],
    "concat": lambda: [(call([_photos(1), _photos(2, 17)], axis=1), {0})],
    "slice": lambda: [(call(_photos(1), axis=1, start=3, stop=40), {0})],
    "pad": lambda: [(call(_photos(1), widths=((0, 0), (0, 0), (1, 2), (0, 1))), {0})],
    "transpose": lambda: [(call(_photos(1), axes=(0, 2, 3, 1)), {0})],
    "reshape": list,  # its option says how many images: none of them is alone in the same call
}  # fmt: skip


def _fair_conv2d():
    """One by one: 3136 sums of 320 products; two images by every algorithm."""
    yield call(_n(1, 320, 28, 28), _n(64, 320, 1, 1, seed=2), _n(64))
    for algorithm in ("im2col", "winograd2", "winograd4", "fft"):
        yield call(_n(2, 64, 16, 16), _n(48, 64, 3, 3, seed=2), _n(48), padding=1,
                   algorithm=algorithm)


FAIR = {
    "linear": lambda: [call(_n(512, 320), _n(256, 320, seed=2), _n(256)),
                       call(_n(300, 1280), _n(64, 1280, seed=2))],
    "matmul": lambda: [call(_n(2, 256, 320), _n(2, 320, 128, seed=2))],
    "conv2d": _fair_conv2d,
    "attention": lambda: [call(_n(2, 300, 80), _n(2, 400, 80, seed=2), _n(2, 400, 80, seed=3),
                               heads=2)],
}


def _weighted_conv2d():
    for algorithm in ("im2col", "winograd2", "winograd4", "fft"):
        yield call(_n(1, 16, 9, 8), _n(16, 16, 3, 3, seed=2), padding=1, algorithm=algorithm)
    yield call(_n(1, 16, 9, 8), _n(16, 16, 1, 1, seed=2))
    yield call(_n(1, 16, 9, 8), _n(16, 1, 3, 3, seed=2), groups=16)


WEIGHTED = {
    "linear": lambda: [call(_n(5, 40), _n(37, 40, seed=2), _n(37))],
    "linear_add": lambda: [call(_n(5, 40), _n(37, 40, seed=2), _n(5, 37), _n(37))],
    "linear_geglu": lambda: [call(_n(5, 40), _n(74, 40, seed=2), _n(74))],
    "matmul": lambda: [call(_n(5, 40), _n(40, 37, seed=2))],
    "conv2d": _weighted_conv2d,
}

# op: calls for small weights: more rows than a panel's slice, and more tiles than a task
SMALL = {"linear": lambda: [call(_n(601, 2600), _n(70, 2600, seed=2), _n(70))],
         "linear_add": lambda: [call(_n(601, 2600), _n(70, 2600, seed=2), _n(601, 70), _n(70))],
         "linear_geglu": lambda: [call(_n(601, 2600), _n(140, 2600, seed=2), _n(140))]}

# op: calls that its data make the op refuse
REFUSALS = {
    "embedding": [((np.array([0, 3, -1]), normal((4, 3), 1)), {}),
                  ((np.array([[4]], "uint8"), normal((4, 3), 1)), {})],
    "gather": [((normal((2, 5, 3), 1), np.array([0, 5])), {}),
               ((normal((2, 5, 3), 1), np.array([-1, 0], "int32")), {})],
}
