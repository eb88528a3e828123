"""What each op is in ONNX: standard operators of opset 21, one short function an op.

`on(operator, *inputs, **attributes)` adds a node and gives its result; inputs are Tensors, with
shape and dtype, and what `on` gave. In ONNX a row of softmax that is masked everywhere is NaN.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from refsd.graph.graph import Value
from refsd.ops.conv import pair, sides
from refsd.ops.resize import source_pixels
from refsd.registry import ops


class Tensor(NamedTuple):
    """A value in ONNX: its name there, and what refsd knows of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class On:
    """Adds nodes for one op at a time, whose result is to be `result`."""

    def __init__(self, add: Callable[..., Any], constant: Callable[[Any, Any], Any],
                 result: Value):
        self.add, self.constant, self.result = add, constant, result

    def __call__(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """The result of a new node; several in a list."""
        found = self.add(operator, inputs, outputs, attributes)
        return found[0] if outputs == 1 else found

    def cast(self, x: Any, dtype: str) -> Any:
        """x in another dtype."""
        from onnx import TensorProto

        return self("Cast", x, to=TensorProto.DataType.Value(data_type(dtype)))

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """The same elements in another shape, in which 0 is no axis of x."""
        return self("Reshape", x, self.constant(shape, "int64"), allowzero=int(0 in shape))


def data_type(dtype: str) -> str:
    """ONNX's name of a dtype."""
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())


def linear(on, x, weight, bias):
    y = on("MatMul", x, on("Transpose", weight, perm=[1, 0]))
    return y if bias is None else on("Add", y, bias)


def matmul(on, a, b):
    return on("MatMul", a, b)


def conv2d(on, x, weight, bias, *, stride, padding, dilation, groups, algorithm):
    (top, bottom), (left, right) = sides(padding)
    biases = [] if bias is None else [bias]
    return on("Conv", x, weight, *biases, strides=list(pair(stride)), group=groups,
              pads=[top, left, bottom, right], dilations=list(pair(dilation)))


def attention(on, q, k, v, *, heads, mask, causal):
    (N, L, C), (_, S, D) = q.shape, v.shape

    def split(x, length, width, order):
        return on("Transpose", on.reshape(x, (N, length, heads, width // heads)), perm=order)

    q, k = split(q, L, C, [0, 2, 1, 3]), split(k, S, C, [0, 2, 3, 1])
    q = on("Mul", q, on.constant(1 / math.sqrt(C // heads), v.dtype))
    scores = on("MatMul", q, k)
    if mask is not None:
        scores = on("Add", scores, mask)
    if causal:
        scores = on("Add", scores, on.constant(np.triu(np.full((L, S), -np.inf), 1), v.dtype))
    y = on("MatMul", on("Softmax", scores, axis=-1), split(v, S, D, [0, 2, 1, 3]))
    return on.reshape(on("Transpose", y, perm=[0, 2, 1, 3]), (N, L, D))


def group_norm(on, x, weight, bias, *, groups, eps):
    if x.dtype != "float64":
        return on("GroupNormalization", x, weight, bias, num_groups=groups, epsilon=eps)
    y = _standardize(on, on.reshape(x, (x.shape[0], groups, -1)), eps)
    column = (-1,) + (1,) * (len(x.shape) - 2)
    y = on("Mul", on.reshape(y, x.shape), on.reshape(weight, column))
    return on("Add", y, on.reshape(bias, column))


def layer_norm(on, x, weight, bias, *, eps):
    if x.dtype != "float64":
        scale = on.constant(np.ones(x.shape[-1:]), x.dtype) if weight is None else weight
        biases = [] if bias is None else [bias]
        return on("LayerNormalization", x, scale, *biases, axis=-1, epsilon=eps)
    y = _standardize(on, x, eps)
    y = y if weight is None else on("Mul", y, weight)
    return y if bias is None else on("Add", y, bias)


def _standardize(on, x, eps):
    """Of float64 as it is defined: ONNX's operators have eps, and may compute, in float32."""
    for _ in range(2):
        x = on("Sub", x, _mean(on, x))
    variance = _mean(on, on("Mul", x, x))
    return on("Div", x, on("Sqrt", on("Add", variance, on.constant(eps, "float64"))))


def _mean(on, x):
    return on("ReduceMean", x, on.constant([-1], "int64"), keepdims=1)


def rms_norm(on, x, weight, *, eps):
    root = on("Sqrt", on("Add", _mean(on, on("Mul", x, x)), on.constant(eps, x.dtype)))
    return on("Mul", on("Div", x, root), weight)


def silu(on, x):
    return on("Mul", x, on("Sigmoid", x))


def quick_gelu(on, x):
    return on("Mul", x, on("Sigmoid", on("Mul", x, on.constant(1.702, x.dtype))))


def gelu(on, x):
    y = on("Add", on("Erf", on("Mul", x, on.constant(math.sqrt(0.5), x.dtype))),
           on.constant(1, x.dtype))
    return on("Mul", on("Mul", x, on.constant(0.5, x.dtype)), y)


def gelu_tanh(on, x):
    cube = on("Mul", on("Mul", x, x), on("Mul", x, on.constant(0.044715, x.dtype)))
    y = on("Mul", on("Add", x, cube), on.constant(math.sqrt(2 / math.pi), x.dtype))
    y = on("Add", on("Tanh", y), on.constant(1, x.dtype))
    return on("Mul", on("Mul", x, on.constant(0.5, x.dtype)), y)


def geglu(on, x):
    hidden, gate = on("Split", x, outputs=2, axis=-1, num_outputs=2)
    return on("Mul", hidden, gelu(on, Tensor(gate, on.result.shape, x.dtype)))


def softmax(on, x, *, axis):
    return on("Softmax", x, axis=axis)


def embedding(on, ids, weight):
    return on("Gather", weight, on.cast(ids, "int64"), axis=0)


def gather(on, x, index):
    index = on.reshape(on.cast(index, "int64"), (*index.shape, 1))
    return on("GatherND", x, index, batch_dims=1)


def timestep_embedding(on, timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    half, N = dim // 2, timesteps.shape[0]
    # The float32 frequencies, as the op has them: of angles so small that none goes round.
    small = ops()["timestep_embedding"].definition(
        np.array([2.0**-20]), dim=2 * half, flip_sin_to_cos=False, freq_shift=freq_shift,
        dtype="float64")
    frequencies = np.arctan2(small[:, :half], small[:, half:]) * 2.0**20
    times = on.reshape(on.cast(timesteps, "float32"), (N, 1))
    angles = on.cast(on("Mul", times, on.constant(frequencies, "float32")), str(dtype))
    parts = [on("Sin", angles), on("Cos", angles)]
    if flip_sin_to_cos:
        parts.reverse()
    if dim % 2:
        parts.append(on.constant(np.zeros((N, 1)), str(dtype)))
    return on("Concat", *parts, axis=1)


def rope(on, x, positions, *, base, interleaved):
    half = x.shape[-1] // 2
    steps = on.constant(float(base) ** (-np.arange(half) / half), "float64")
    angles = on("Mul", on.reshape(on.cast(positions, "float64"), (*positions.shape, 1)), steps)
    cos, sin = (on.cast(on(f, angles), x.dtype) for f in ("Cos", "Sin"))
    apart = (*x.shape[:-1], half, 2) if interleaved else (*x.shape[:-1], 2, half)
    axis = len(apart) - (1 if interleaved else 2)
    a, b = (on.reshape(part, (*x.shape[:-1], half)) for part in on(
        "Split", on.reshape(x, apart), outputs=2, axis=axis, num_outputs=2))
    turned = [on("Sub", on("Mul", a, cos), on("Mul", b, sin)),
              on("Add", on("Mul", a, sin), on("Mul", b, cos))]
    column = tuple(1 if i == axis else n for i, n in enumerate(apart))
    return on.reshape(on("Concat", *(on.reshape(part, column) for part in turned), axis=axis),
                      x.shape)


def upsample_nearest(on, x, *, height, width):
    """Whole ratios as Resize; others by the op's own pixels, whose ratio is rounded to float32."""
    if height % x.shape[2] == 0 == width % x.shape[3]:
        return _resize(on, x, height, width, mode="nearest", nearest_mode="floor",
                       coordinate_transformation_mode="asymmetric")
    rows, columns = source_pixels(x.shape[2], height), source_pixels(x.shape[3], width)
    y = on("Gather", x, on.constant(rows, "int64"), axis=2)
    return on("Gather", y, on.constant(columns, "int64"), axis=3)


def upsample_bilinear(on, x, *, height, width, align_corners):
    return _resize(on, x, height, width, mode="linear", coordinate_transformation_mode=(
        "align_corners" if align_corners else "half_pixel"))


def _resize(on, x, height, width, **how):
    sizes = on.constant((*x.shape[:2], height, width), "int64")
    return on("Resize", x, None, None, sizes, **how)


def to_tokens(on, x):
    N, C, H, W = x.shape
    return on("Transpose", on.reshape(x, (N, C, H * W)), perm=[0, 2, 1])


def to_image(on, x, *, height, width):
    N, C = x.shape[0], x.shape[-1]
    x = on("Transpose", on.reshape(x, (N, height * width, C)), perm=[0, 2, 1])
    return on.reshape(x, (N, C, height, width))


def concat(on, arrays, *, axis):
    return on("Concat", *arrays, axis=axis)


def slice(on, x, *, axis, start, stop):
    return on("Slice", x, *(on.constant([n], "int64") for n in (start, stop, axis)))


def pad(on, x, *, widths):
    return on("Pad", x, on.constant([w[side] for side in (0, 1) for w in widths], "int64"))


def transpose(on, x, *, axes):
    return on("Transpose", x, perm=[axis % len(x.shape) for axis in axes])


def reshape(on, x, *, shape):
    return on.reshape(x, on.result.shape)


def group_norm_silu(on, x, weight, bias, *, groups, eps):
    return silu(on, group_norm(on, x, weight, bias, groups=groups, eps=eps))


def linear_add(on, x, weight, addend, bias):
    return on("Add", linear(on, x, weight, bias), addend)


def linear_geglu(on, x, weight, bias):
    return geglu(on, Tensor(linear(on, x, weight, bias), None, x.dtype))


def conv2d_add(on, x, weight, addend, bias, *, stride, padding, dilation, groups, algorithm):
    y = conv2d(on, x, weight, bias, stride=stride, padding=padding, dilation=dilation,
               groups=groups, algorithm=algorithm)
    return on("Add", y, addend)


def upsample_conv2d(on, x, weight, bias, *, height, width, stride, padding, dilation, groups,
                    algorithm):
    x = upsample_nearest(on, x, height=height, width=width)
    return conv2d(on, x, weight, bias, stride=stride, padding=padding, dilation=dilation,
                  groups=groups, algorithm=algorithm)


def clamp(on, x, *, low, high):
    return on("Clip", x, on.constant(low, x.dtype), on.constant(high, x.dtype))


def _pair(operator):
    def counterpart(on, a, b):
        return on(operator, a, b if isinstance(b, Tensor) else on.constant(b, a.dtype))
    return counterpart


def _map(operator):
    return lambda on, x: on(operator, x)


COUNTERPARTS = {function.__name__: function for function in (
    linear, matmul, conv2d, attention, group_norm, layer_norm, rms_norm, silu, quick_gelu, gelu,
    gelu_tanh, geglu, softmax, embedding, gather, timestep_embedding, rope, upsample_nearest,
    upsample_bilinear, to_tokens, to_image, concat, slice, pad, transpose, reshape, clamp,
    group_norm_silu, linear_add, linear_geglu, conv2d_add, upsample_conv2d)}
COUNTERPARTS |= {name: _pair(name.title()) for name in ("add", "sub", "mul", "div")}
COUNTERPARTS |= {name: _map(name.title()) for name in ("exp", "sqrt", "tanh")}
