"""Calls for checks that need more than a hard size: batches, random sums, weights, refusals."""

import numpy as np
from agreement_cases import call
from op_table import normal, options_of, within

from refsd.contracts import Spec
from refsd.examples import calls, with_tensors, with_values
from refsd.kinds import Map, Pair
from refsd.registry import ops


def _n(*shape, seed=1, scale=1.0):
    return normal(shape, seed, scale)


def _photos(seed, channels=48):
    return np.moveaxis(_n(3, 65, 31, channels, seed=seed), -1, 1)


def _tokens(width, seed=1):
    return _n(3, 700, width, seed=seed)


def batches(name):
    """Calls on a batch of three, of more than one task, and what in them has the batch axis."""
    op = ops()[name]
    if name in BATCHES:
        return BATCHES[name]()
    if isinstance(op.kind, Map):
        return [(call(within(op.kind, _photos(1)), **options_of(op)), {0})]
    if isinstance(op.kind, Pair):
        return [(call(_photos(1), _photos(2)), {0, 1})]
    return from_example(op)


def from_example(op):
    """The op's first example with a batch of three, if its first letter is one of the result's."""
    batched = {tensor.name for tensor in op.contract.tensors
               if tensor.letters[:1] == op.contract.result[:1]}
    if not batched:
        return []
    filled = with_values(op, with_tensors(calls(op)[0], lambda name, spec: Spec(
        (3, *spec.shape[1:]), spec.dtype) if name in batched else spec), 1)
    return [(call(*filled.inputs.values(), **filled.options),
             {i for i, name in enumerate(filled.inputs) if name in batched})]


def _convolutions():
    algorithms = [(40, {"algorithm": name}) for name in ("auto", "im2col", "winograd2", "fft")]
    for channels, more in [*algorithms, (20, {"groups": 2}), (1, {"groups": 40})]:
        features = 40 if channels == 1 else 70
        yield call(_n(3, 40, 19, 21), _n(features, channels, 3, 3, seed=2), _n(features),
                   padding=1, **more), {0}
    yield call(_n(3, 40, 19, 21), _n(70, 40, 1, 1, seed=2), _n(70)), {0}
    yield call(_n(3, 40, 19, 21), _n(70, 40, 3, 3, seed=2), stride=2), {0}


def _attentions():
    yield call(_n(3, 300, 60), _n(3, 290, 60, seed=2), _n(3, 290, 60, seed=3), heads=3,
               mask=_n(3, 1, 300, 290)), {0, 1, 2, "mask"}
    yield call(_n(3, 77, 64), _n(3, 77, 64, seed=2), _n(3, 77, 64, seed=3), heads=2,
               causal=True), {0, 1, 2}


BATCHES = {
    "linear": lambda: [(call(_n(3, *rows, 200), _n(117, 200, seed=2), _n(117)), {0})
                       for rows in [(157,), (5,), ()]],
    "matmul": lambda: [(call(_n(3, 157, 200), _n(3, 200, 117, seed=2)), {0, 1})],
    "conv2d": _convolutions, "attention": _attentions,
    "group_norm": lambda: [(call(_photos(1), *_n(2, 48), groups=4, eps=1e-5), {0})],
    "layer_norm": lambda: [(call(_tokens(40), *_n(2, 40), eps=1e-5), {0})],
    "rms_norm": lambda: [(call(_tokens(40), _n(40), eps=1e-5), {0})],
    "geglu": lambda: [(call(_tokens(82)), {0})],
    "softmax": lambda: [(call(_tokens(41), axis=-1), {0})],
    "embedding": lambda: [(call(np.arange(2400).reshape(3, 800) % 99, _n(99, 41)), {0})],
    "gather": lambda: [(call(_tokens(41), np.array([3, 699, 0])), {0, 1})],
    "timestep_embedding": lambda: [(call(np.array([3, 999, 500]), dim=320, flip_sin_to_cos=True,
                                        freq_shift=0, dtype="float32"), {0})],
    "rope": lambda: [(call(_tokens(42), np.arange(700), base=1e4, interleaved=False), {0})],
    "upsample_nearest": lambda: [(call(_photos(1), height=130, width=62), {0})],
    "upsample_bilinear": lambda: [(call(_photos(1), height=99, width=64, align_corners=True), {0})],
    "to_tokens": lambda: [(call(_photos(1)), {0})],
    "to_image": lambda: [(call(_tokens(41), height=28, width=25), {0})],
    "concat": lambda: [(call([_photos(1), _photos(2, 17)], axis=1), {0})],
    "slice": lambda: [(call(_photos(1), axis=1, start=3, stop=40), {0})],
    "pad": lambda: [(call(_photos(1), widths=((0, 0), (0, 0), (1, 2), (0, 1))), {0})],
    "transpose": lambda: [(call(_photos(1), axes=(0, 2, 3, 1)), {0})],
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
    "matmul": lambda: [call(_n(5, 40), _n(40, 37, seed=2))],
    "conv2d": _weighted_conv2d,
}

# op: calls that its data make the op refuse
REFUSALS = {
    "embedding": [((np.array([0, 3, -1]), normal((4, 3), 1)), {}),
                  ((np.array([[4]], "uint8"), normal((4, 3), 1)), {})],
    "gather": [((normal((2, 5, 3), 1), np.array([0, 5])), {}),
               ((normal((2, 5, 3), 1), np.array([-1, 0], "int32")), {})],
}
