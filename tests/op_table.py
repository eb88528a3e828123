"""How to draw a call of an op: by its kind, as written here, or from its examples.

`OPS[name]` is a Hypothesis strategy of `Call`s that the op's contract accepts and that have finite
results. Shapes, values' scale and place in memory are drawn; the values come from a seeded
generator (drawing them one by one would be slow and would teach nothing).
"""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refsd import examples
from refsd.kinds import Map, Pair
from refsd.registry import ops


class Values(NamedTuple):
    """What an array will hold, before its dtype is known. ints stay ints."""

    data: np.ndarray
    layout: str


class Call(NamedTuple):
    """The arguments of one call. `build` makes arrays of a dtype; the values are float32's."""

    args: tuple
    options: dict[str, Any]

    def build(self, dtype: str) -> tuple[tuple, dict[str, Any]]:
        """args and options with real arrays, laid out in memory as drawn."""

        def make(value):
            if isinstance(value, list):
                return [make(v) for v in value]
            if not isinstance(value, Values):
                return value
            data = value.data
            data = data.astype(dtype) if data.dtype.kind == "f" else data
            return lay_out(data, value.layout)

        options = {name: make(value) for name, value in self.options.items()}
        if "dtype" in options:
            options["dtype"] = dtype
        return tuple(make(value) for value in self.args), options


LAYOUTS = ("C", "fortran", "channels_last", "strided", "reversed", "window", "readonly",
           "unaligned", "broadcast")


def lay_out(data: np.ndarray, layout: str) -> np.ndarray:
    """The same values elsewhere in memory ("broadcast" repeats the first along axis 0)."""
    if layout == "fortran" and data.ndim:
        return np.asfortranarray(data)
    if layout == "channels_last" and data.ndim > 2:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(data, 1, -1)), -1, 1)
    if layout == "strided" and data.ndim:
        wide = np.full((*data.shape[:-1], 2 * data.shape[-1]), _poison(data), data.dtype)
        wide[..., ::2] = data
        return wide[..., ::2]
    if layout == "reversed" and data.ndim:
        back = (slice(None, None, -1),) * data.ndim
        return np.ascontiguousarray(data[back])[back]
    if layout == "window" and data.ndim:
        guarded = np.full([n + 2 for n in data.shape], _poison(data), data.dtype)
        inside = guarded[(slice(1, -1),) * data.ndim]
        inside[...] = data
        return inside
    if layout == "readonly":
        data = data.copy()
        data.flags.writeable = False
        return data
    if layout == "unaligned" and data.ndim:
        raw = np.zeros(data.nbytes + 1, "uint8")
        shifted = raw[1:].view(data.dtype).reshape(data.shape)
        shifted[...] = data
        return shifted
    if layout == "broadcast" and data.ndim and data.shape[0]:
        return np.broadcast_to(data[:1], data.shape)
    return data


def _poison(data):
    return np.nan if data.dtype.kind == "f" else np.iinfo(data.dtype).max


def arrays_in(value):
    """All arrays in a call's arguments."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays_in(item)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))


def memory_of(array):
    """The whole buffer an array is a view of: what lies around and between its elements too."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# Sizes: 1, primes, multiples of SIMD widths and their neighbours; sometimes nothing at all.
small = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9])
sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33])
layouts = st.sampled_from(LAYOUTS)
scales = st.sampled_from([1e-3, 1.0, 30.0])
seeds = st.integers(0, 2**32 - 1)


def normal(shape, seed, scale=1.0, mean=0.0):
    """Values of float32, kept as such."""
    generator = np.random.Generator(np.random.Philox(seed))
    return np.asarray(generator.standard_normal(shape) * scale + mean, "float32")


@st.composite
def floats(draw, shape, scale=None, mean=0.0):
    """An array of normally distributed values."""
    scale = draw(scales) if scale is None else scale
    return Values(normal(shape, draw(seeds), scale, mean), draw(layouts))


@st.composite
def indices(draw, shape, below):
    generator = np.random.Generator(np.random.Philox(draw(seeds)))
    kind = draw(st.sampled_from(["int64", "int32", "uint8", "uint64"]))
    return Values(generator.integers(0, below, shape).astype(kind), draw(layouts))


@st.composite
def shapes(draw, least=0, most=4, zero=True):
    """Any number of axes; one in ten shapes is empty."""
    shape = draw(st.lists(small, min_size=least, max_size=most))
    if zero and shape and draw(st.integers(0, 9)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    return tuple(shape)


def within(kind, x):
    """Values in the domain of a map."""
    return np.asarray((abs(x) if kind.low >= 0 else x).clip(kind.low, kind.high))


def options_of(op):
    """The options of its first example."""
    return examples.calls(op)[0].options


@st.composite
def mapped(draw, op):
    x = draw(floats(draw(shapes())))
    return Call((x._replace(data=within(op.kind, x.data)),), options_of(op))


@st.composite
def example(draw, op):
    call = examples.with_values(op, draw(st.sampled_from(examples.calls(op))), draw(seeds))
    return Call(*values_of((tuple(call.inputs.values()), call.options), draw(layouts)))


def values_of(value, layout="C"):
    """Arguments with Values in the place of all arrays."""
    if isinstance(value, np.ndarray):
        return Values(value, layout)
    if isinstance(value, dict):
        return {name: values_of(item, layout) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(values_of(item, layout) for item in value)
    return value


@st.composite
def paired(draw, divides):
    shape = draw(shapes())
    a = draw(floats(shape))
    if draw(st.booleans()):
        number = draw(st.sampled_from([2, -3, 0.5, 0.1, -1.7, 1e-3]))
        return Call((a, number), {})
    other = tuple(draw(st.sampled_from([n, 1])) for n in shape)
    b = draw(floats(other[draw(st.integers(0, len(other))):]))
    if divides:
        b = b._replace(data=np.where(abs(b.data) < 1e-4, np.float32(0.5), b.data))
    return Call((a, b), {})


@st.composite
def clamp(draw):
    low, high = sorted(draw(st.tuples(*[st.sampled_from([-30, -1.5, -0.1, 0, 0.3, 20])] * 2)))
    return Call((draw(floats(draw(shapes()))),), {"low": low, "high": high})


@st.composite
def geglu(draw):
    x = draw(floats((*draw(shapes(most=3)), 2 * draw(sizes))))
    return Call((x,), {})


@st.composite
def softmax(draw):
    shape = draw(shapes(least=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape = tuple(n or 1 if i == axis % len(shape) else n for i, n in enumerate(shape))
    return Call((draw(floats(shape)),), {"axis": axis})


@st.composite
def linear(draw):
    K, features = draw(sizes), draw(sizes)
    args = [draw(floats((*draw(shapes(most=3)), K))), draw(floats((features, K)))]
    bias = draw(st.sampled_from(["given", "none", "absent"]))
    if bias != "absent":
        args.append(draw(floats((features,))) if bias == "given" else None)
    return Call(tuple(args), {})


@st.composite
def matmul(draw):
    M, K, N = draw(sizes), draw(sizes), draw(sizes)
    batch = draw(shapes(most=2))
    other = tuple(draw(st.sampled_from([n, 1])) for n in batch)
    other = other[draw(st.integers(0, len(other))):]
    return Call((draw(floats((*batch, M, K))), draw(floats((*other, K, N)))), {})


@st.composite
def conv2d(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, features = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    algorithm = draw(st.sampled_from(["auto", "im2col", "fft", "winograd2", "winograd4"]))
    options: dict[str, Any] = {"algorithm": algorithm, "groups": groups}
    kh, kw = 3, 3
    stride = dilation = (1, 1)
    if not algorithm.startswith("winograd"):
        kh, kw = draw(st.sampled_from([(1, 1), (3, 3), (1, 4), (5, 2), (7, 7)]))
        stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
        options["stride"] = draw(st.sampled_from([stride, list(stride), stride[0]]))
        options["dilation"] = draw(st.sampled_from([dilation, dilation[0]]))
        dilation = dilation if isinstance(options["dilation"], tuple) else (dilation[0],) * 2
    (top, bottom), (left, right) = draw(st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * 2))
    options["padding"] = draw(st.sampled_from([((top, bottom), (left, right)), (top, left), top]))
    (top, bottom), (left, right) = _sides(options["padding"])
    height = max(1, dilation[0] * (kh - 1) + 1 - top - bottom) + draw(st.integers(0, 9))
    width = max(1, dilation[1] * (kw - 1) + 1 - left - right) + draw(st.integers(0, 9))
    args = [draw(floats((draw(st.integers(1, 2)), channels, height, width))),
            draw(floats((features, channels // groups, kh, kw)))]
    if draw(st.booleans()):
        args.append(draw(floats((features,))))
    return Call(tuple(args), options)


def _sides(padding):
    if isinstance(padding, int):
        return ((padding,) * 2,) * 2
    if isinstance(padding[0], int):
        return (padding[0],) * 2, (padding[1],) * 2
    return padding


@st.composite
def attention(draw):
    heads, d, dv = draw(st.sampled_from([1, 2, 3])), draw(small), draw(small)
    N, L, S = draw(st.integers(0, 2)), draw(st.sampled_from([0, 1, 2, 5, 8, 17])), draw(sizes)
    options: dict[str, Any] = {"heads": heads}
    if draw(st.booleans()):
        options["causal"] = draw(st.booleans())
        S = max(1, L) if options["causal"] else S
        L = S if options["causal"] else L
    if draw(st.booleans()):
        shape = tuple(draw(st.sampled_from([n, 1])) for n in (N, heads, L, S))
        mask = draw(floats(shape[draw(st.integers(0, 4)):]))
        hidden = np.random.Generator(np.random.Philox(draw(seeds))).random(mask.data.shape) < 0.3
        data = np.where(hidden, -np.inf, mask.data) if draw(st.booleans()) else mask.data
        options["mask"] = mask._replace(data=np.asarray(data, "float32"))
    q, k, v = (draw(floats((N, n, heads * w), scale=1.0)) for n, w in ((L, d), (S, d), (S, dv)))
    return Call((q, k, v), options)


@st.composite
def group_norm(draw):
    groups = draw(st.integers(1, 4))
    channels = groups * draw(st.integers(1, 4))
    x = draw(floats((draw(st.integers(0, 2)), channels, *draw(shapes(1, 2, zero=False))),
                    mean=draw(st.sampled_from([0.0, 100.0]))))
    return Call((x, draw(floats((channels,))), draw(floats((channels,)))),
                {"groups": groups, "eps": draw(eps)})


eps = st.sampled_from([1e-6, 1e-5, 1e-3])


@st.composite
def layer_norm(draw):
    K = draw(sizes)
    x = draw(floats((*draw(shapes(most=3)), K), mean=draw(st.sampled_from([0.0, 100.0]))))
    return Call((x, draw(floats((K,))), draw(floats((K,)))), {"eps": draw(eps)})


@st.composite
def rms_norm(draw):
    K = draw(sizes)
    x = draw(floats((*draw(shapes(most=3)), K)))
    return Call((x, draw(floats((K,)))), {"eps": draw(eps)})


@st.composite
def embedding(draw):
    rows, width = draw(sizes), draw(sizes)
    return Call((draw(indices(draw(shapes(most=3)), rows)), draw(floats((rows, width)))), {})


@st.composite
def gather(draw):
    N, L, D = draw(st.integers(0, 5)), draw(sizes), draw(sizes)
    return Call((draw(floats((N, L, D))), draw(indices((N,), L))), {})


@st.composite
def timestep_embedding(draw):
    steps = draw(indices((draw(st.integers(0, 5)),), 200))
    if draw(st.booleans()):
        steps = steps._replace(data=(steps.data * 4.99).astype("float32"))
    return Call((steps,), {
        "dim": draw(st.sampled_from([2, 3, 5, 16, 31, 320])),
        "flip_sin_to_cos": draw(st.booleans()), "freq_shift": draw(st.sampled_from([0, 0.5, -1])),
        "dtype": "float32"})


@st.composite
def rope(draw):
    L, D = draw(sizes), 2 * draw(sizes)
    x = draw(floats((*draw(shapes(most=2)), L, D)))
    return Call((x, draw(indices((L,), 200))), {
        "base": draw(st.sampled_from([10000, 500000.0, 3.5])), "interleaved": draw(st.booleans())})


@st.composite
def image(draw):
    return draw(floats((draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(sizes),
                        draw(sizes))))


@st.composite
def resize(draw, **more):
    options = {"height": draw(sizes), "width": draw(sizes)}
    return Call((draw(image()),), options | {name: draw(value) for name, value in more.items()})


@st.composite
def to_image(draw):
    N, C, height, width = draw(st.integers(0, 2)), draw(small), draw(small), draw(small)
    if draw(st.booleans()):
        return Call((draw(floats((N, C))),), {"height": 1, "width": 1})
    return Call((draw(floats((N, height * width, C))),), {"height": height, "width": width})


@st.composite
def concat(draw):
    shape = draw(shapes(least=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    i = axis % len(shape)
    arrays = [draw(floats((*shape[:i], draw(st.integers(0, 4)), *shape[i + 1:])))
              for _ in range(draw(st.integers(1, 4)))]
    return Call((arrays,), {"axis": axis})


@st.composite
def slice_(draw):
    shape = draw(shapes(least=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, shape[axis])] * 2)))
    return Call((draw(floats(shape)),), {"axis": axis, "start": start, "stop": stop})


@st.composite
def pad(draw):
    shape = draw(shapes(least=1))
    widths = tuple(draw(st.tuples(*[st.integers(0, 3)] * 2)) for _ in shape)
    return Call((draw(floats(shape)),), {"widths": widths})


@st.composite
def transpose(draw):
    shape = draw(shapes())
    axes = draw(st.permutations(range(len(shape))))
    return Call((draw(floats(shape)),), {"axes": tuple(axes)})


WRITTEN = {
    "linear": linear(),
    "matmul": matmul(),
    "conv2d": conv2d(),
    "attention": attention(),
    "group_norm": group_norm(),
    "layer_norm": layer_norm(),
    "rms_norm": rms_norm(),
    "geglu": geglu(),
    "softmax": softmax(),
    "embedding": embedding(),
    "gather": gather(),
    "timestep_embedding": timestep_embedding(),
    "rope": rope(),
    "upsample_nearest": resize(),
    "upsample_bilinear": resize(align_corners=st.booleans()),
    "to_tokens": image().map(lambda x: Call((x,), {})),
    "to_image": to_image(),
    "concat": concat(),
    "slice": slice_(),
    "pad": pad(),
    "transpose": transpose(),
    "clamp": clamp(),
}


def _strategy(op):
    if op.name in WRITTEN:
        return WRITTEN[op.name]
    if isinstance(op.kind, Map):
        return mapped(op)
    return paired(op.kind.divides) if isinstance(op.kind, Pair) else example(op)


OPS: dict[str, st.SearchStrategy[Call]] = {name: _strategy(op) for name, op in ops().items()}
