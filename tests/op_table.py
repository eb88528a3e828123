"""How to draw a call of an op: as it is declared, or as written here.

`OPS[name]` is a Hypothesis strategy of `Call`s that the op's contract accepts and that have finite
results. Shapes, values' scale and place in memory are drawn; the values come from a seeded
generator (drawing them one by one would be slow and would teach nothing).
"""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from refsd import examples
from refsd.half import HALVES, is_half
from refsd.kinds import Map, Pair
from refsd.options import Axes, Axis, Flag, Integer, Widths
from refsd.registry import ops
from refsd.shapes import Refusal, names, sizes_of


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
            data = data.astype(HALVES.get(dtype, dtype)) if is_float(data.dtype) else data
            return with_layout(data, value.layout)

        options = {name: make(value) for name, value in self.options.items()}
        if "dtype" in options:
            options["dtype"] = dtype
        return tuple(make(value) for value in self.args), options


LAYOUTS = ("C", "fortran", "channels_last", "strided", "reversed", "window", "readonly",
           "unaligned", "broadcast")


def with_layout(data: np.ndarray, layout: str) -> np.ndarray:
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
    return np.nan if is_float(data.dtype) else np.iinfo(data.dtype).max


def is_float(dtype):
    """Also bfloat16, which NumPy does not count among them."""
    return dtype.kind == "f" or is_half(dtype)


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
def declared(draw, op):
    """A call by the op's declaration: any size for a letter, options of their kinds."""
    options = dict(draw(st.sampled_from(examples.calls(op))).options)
    letters = {"...": draw(shapes(most=3))}
    letters |= {name: draw(sizes) for tensor in op.contract.tensors
                for name in names(tensor.letters) if name not in op.contract.options}
    inputs = {}
    for tensor in op.contract.tensors:
        lead = letters["..."] if not inputs else draw(broadcasting(letters["..."]))
        inputs[tensor.name] = draw(argument(op, tensor, letters | {"...": lead}))
    present = {name: value.data for name, value in inputs.items() if isinstance(value, Values)}
    for name, option in op.contract.options.items():
        value = options.get(name, op.signature.parameters[name].default)
        options[name] = draw(drawn(option, value, present))
    call = Call(tuple(inputs.values())[:draw(st.integers(required(op), len(inputs)))], options)
    args, options = call.build("float32")
    assume(accepted(op, args, options))
    return call


@st.composite
def broadcasting(draw, shape):
    """A shape that broadcasts to this one."""
    shape = tuple(draw(st.sampled_from([n, 1])) for n in shape)
    return shape[draw(st.integers(0, len(shape))):]


@st.composite
def argument(draw, op, tensor, letters):
    """An array as declared, or a number or None where the op takes it."""
    shape = sizes_of(tensor.letters, letters)
    if tensor.kind != "float":
        x = draw(indices(shape, letters.get(tensor.below) or int(tensor.below or 64)))
        real = tensor.kind == "real" and draw(st.booleans())
        return x._replace(data=(x.data * 0.99).astype("float32")) if real else x
    if op.signature.parameters[tensor.name].default is None and draw(st.booleans()):
        return None
    if tensor.form == "number" and draw(st.booleans()):
        return draw(st.sampled_from([2, -3, 0.5, 0.1, -1.7, 1e-3]))
    x = draw(floats(shape))
    if isinstance(op.kind, Map):
        return x._replace(data=within(op.kind, x.data))
    if isinstance(op.kind, Pair) and op.kind.divides:
        return x._replace(data=np.where(abs(x.data) < 1e-4, np.float32(0.5), x.data))
    return x


def drawn(option, value, arrays):
    """Values of an option; one of the examples' where its kind does not say enough."""
    if isinstance(option, Flag):
        return st.booleans()
    if isinstance(option, Integer):
        return sizes.filter(lambda n: n >= option.least)
    if isinstance(option, (Axis, Axes, Widths)):
        rank = arrays[option.of].ndim
        assume(rank or isinstance(option, Axes))
        pair = st.tuples(*[st.integers(0, 3)] * 2)
        return {Axis: st.integers(-rank, rank - 1), Axes: st.permutations(range(rank)).map(tuple),
                Widths: st.tuples(*[pair] * rank)}[type(option)]
    return st.just(value)


def required(op):
    return sum(op.signature.parameters[tensor.name].default is not None
               for tensor in op.contract.tensors)


def accepted(op, args, options):
    try:
        op.contract(*args, **options)
    except Refusal:
        return False
    return True


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


@st.composite
def conv2d_add(draw):
    (x, weight, *bias), options = draw(conv2d())
    args, given = Call((x, weight), options).build("float32")
    shape = tuple(draw(st.sampled_from([n, 1])) for n in ops()["conv2d"].contract(
        *args, **given).shape)
    addend = draw(floats(shape[draw(st.integers(0, 4)):]))
    return Call((x, weight, addend, *bias), options)


@st.composite
def upsample_conv2d(draw):
    """Enlarged, made smaller or kept, by any ratio; x is what conv2d would see, made smaller."""
    (x, *others), options = draw(conv2d())
    height, width = x.data.shape[2:]
    assume(height * width > 0)
    rows, columns = draw(st.integers(1, height + 2)), draw(st.integers(1, width + 2))
    small = draw(floats((*x.data.shape[:2], rows, columns)))
    return Call((small, *others), {"height": height, "width": width, **options})


def _sides(padding):
    if isinstance(padding, int):
        return ((padding,) * 2,) * 2
    if isinstance(padding[0], int):
        return (padding[0],) * 2, (padding[1],) * 2
    return padding


@st.composite
def linear_add(draw):
    rows, K, out = draw(shapes(most=3)), draw(sizes), draw(sizes)
    args = [draw(floats((*rows, K))), draw(floats((out, K))), draw(floats((*rows, out)))]
    return Call((*args, *[draw(floats((out,)))] * draw(st.integers(0, 1))), {})


@st.composite
def linear_geglu(draw):
    """Of scales whose product of two sums float16 holds."""
    rows, K, out = draw(shapes(most=3)), draw(sizes), draw(sizes)
    args = [draw(floats(shape, scale=draw(st.sampled_from([1e-3, 1.0]))))
            for shape in ((*rows, K), (2 * out, K), (2 * out,))]
    return Call(tuple(args[:draw(st.integers(2, 3))]), {})


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
def reshape(draw):
    """Neighbours merged at random, then some of them split, and a 1 somewhere."""
    shape = draw(shapes())
    merged = list(shape)
    while len(merged) > 1 and draw(st.booleans()):
        i = draw(st.integers(1, len(merged) - 1))
        merged[i - 1:i + 1] = [merged[i - 1] * merged[i]]
    split = [part for n in merged for part in draw(st.sampled_from(
        [(n,)] + [(d, n // d) for d in range(2, n) if n % d == 0]))]
    split.insert(draw(st.integers(0, len(split))), 1)
    return Call((draw(floats(shape)),), {"shape": draw(st.sampled_from([tuple(split), merged]))})


WRITTEN = {"linear_add": linear_add(), "linear_geglu": linear_geglu(),
           "conv2d": conv2d(), "attention": attention(),
           "group_norm": group_norm(),
           "to_image": to_image(), "concat": concat(), "slice": slice_(),
           "reshape": reshape(), "group_norm_silu": group_norm(),
           "conv2d_add": conv2d_add(), "upsample_conv2d": upsample_conv2d()}
OPS: dict[str, st.SearchStrategy[Call]] = {
    name: WRITTEN[name] if name in WRITTEN else declared(op) for name, op in ops().items()}
