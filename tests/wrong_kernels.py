"""Wrong kernels, each with the check that must reject it: what the agreement suite is worth.

Maps and pairs have theirs by kind; every other op needs one here or in wrong_dense_kernels.py.
`make(real)` gives a function that stands in for the kernel `real` of the op. Most begin from the
right result and spoil it as a mistake in a vectorised kernel would.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refsd import ops, registry
from refsd.kinds import Map, Pair
from refsd.numba_ops import memory
from refsd.numba_ops.simd import WIDTH

LANES = WIDTH // 4


class Wrong(NamedTuple):
    """A mistake in the kernel of an op, and the check that notices it."""

    op: str
    check: str
    make: Callable[[Callable], Callable]


WRONG: dict[str, Wrong] = {}


def wrong(op: str, check: str = "cases"):
    """Declare make(real), which gives a wrong kernel of the op."""
    def declare(make):
        WRONG[f"{op}: {make.__name__.replace('_', ' ')}"] = Wrong(op, check, make)
        return make

    return declare


def copied(y):
    """The same result in poisoned memory of its own."""
    result = memory.empty_like(y)
    result[...] = y
    return result


def the_last_lanes_are_dropped(real):
    def kernel(*args, **options):
        right = real(*args, **options)
        y, whole = memory.empty_like(right), right.size - right.size % LANES
        memory.flat(y)[:whole] = memory.flat(right)[:whole]
        return y

    return kernel


def sixteen_bits_are_right(real):
    return lambda *args, **options: (y := real(*args, **options)) * y.dtype.type(1 + 2.0**-16)


def nan_counts_as_one(real):
    return lambda *args, **options: real(*(np.where(np.isnan(a), a.dtype.type(1), a)
                                           if isinstance(a, np.ndarray) else a for a in args),
                                         **options)


for name, op in registry.ops().items():
    if isinstance(op.kind, (Map, Pair)):
        for make, check in ((the_last_lanes_are_dropped, "cases"),
                            (sixteen_bits_are_right, "cases"), (nan_counts_as_one, "extremes")):
            wrong(name, check)(make)


@wrong("exp")
def one_element_past_the_end_is_written(real):
    def exp(x):
        y = copied(real(x))
        if y.size:
            np.lib.stride_tricks.as_strided(memory.flat(y), (y.size + 1,), (4,))[y.size] = 1
        return y

    return exp


@wrong("pad")
def a_line_of_zeros_is_not_written(real):
    def pad(x, *, widths):
        right = real(x, widths=widths)
        y = memory.empty(right.shape, right.dtype)
        y[..., :-1] = right[..., :-1]
        return y

    return pad


@wrong("add")
def an_input_is_the_result(real):
    def add(a, b):
        if isinstance(b, np.ndarray) and a.shape == b.shape and a.flags.writeable:
            a += b
            return a
        return real(a, b)

    return add


@wrong("div")
def float64_leaks_out(real):
    return lambda a, b: real(a, b) * np.float64(1)


@wrong("div", "extremes")
def by_the_reciprocal(real):
    def div(a, b):
        with np.errstate(all="ignore"):
            return a * np.asarray(1 / b, a.dtype)

    return div


@wrong("sqrt", "extremes")
def negative_numbers_count_as_zero(real):
    return lambda x: real(np.maximum(x, 0))


@wrong("exp", "extremes")
def numbers_below_the_normal_are_flushed(real):
    return lambda x: np.where(abs(y := real(x)) < 2.0**-126, x.dtype.type(0), y)


@wrong("gelu")
def tanh_in_place_of_erf(real):
    return ops.activation.gelu_tanh


@wrong("quick_gelu")
def a_constant_in_three_digits(real):
    return lambda x: x * ops.activation._sigmoid(1.7 * x)


@wrong("geglu")
def the_gate_comes_first(real):
    return lambda x: real(np.concatenate(np.split(x, 2, axis=-1)[::-1], axis=-1))


@wrong("softmax", "not_numbers")
def the_largest_is_not_nan(real):
    def softmax(x, *, axis):
        return real(np.where(np.isnan(x), -np.inf, x).astype(x.dtype), axis=axis)

    return softmax


@wrong("softmax")
def padding_counts_as_zeros(real):
    """The sum of the last, shorter vector has e^(0 - max) for each lane that is not there."""
    def softmax(x, *, axis):
        gap = -x.shape[axis] % LANES
        widths = [(0, gap if i == axis % x.ndim else 0) for i in range(x.ndim)]
        return real(np.pad(x, widths), axis=axis).take(range(x.shape[axis]), axis=axis)

    return softmax


@wrong("group_norm")
def eps_outside_the_root(real):
    def group_norm(x, weight, bias, *, groups, eps):
        grouped = x.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)
        d = grouped - grouped.mean(axis=-1, keepdims=True)
        normal = d / (np.sqrt((d * d).mean(axis=-1, keepdims=True)) + x.dtype.type(eps))
        column = (-1,) + (1,) * (x.ndim - 2)
        return normal.reshape(x.shape) * weight.reshape(column) + bias.reshape(column)

    return group_norm


@wrong("group_norm", "not_numbers")
def a_bad_number_spoils_the_other_groups(real):
    def group_norm(x, weight, bias, *, groups, eps):
        y = real(x, weight, bias, groups=groups, eps=eps)
        return y + 0 * x.mean()

    return group_norm


@wrong("layer_norm")
def eps_is_always_the_same(real):
    return lambda *args, eps: real(*args, eps=1e-5)


@wrong("layer_norm")
def the_variance_in_one_pass(real):
    """E x^2 - (E x)^2, in float32, of numbers with a mean of 10^4."""
    def layer_norm(x, weight=None, bias=None, *, eps):
        mean = x.mean(axis=-1, keepdims=True)
        variance = np.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0)
        return (x - mean) / np.sqrt(variance + x.dtype.type(eps)) * weight + bias

    return layer_norm


@wrong("rms_norm")
def the_mean_is_subtracted(real):
    return lambda x, weight, *, eps: real(x - x.mean(axis=-1, keepdims=True), weight, eps=eps)


@wrong("silu", "layouts")
def any_memory_is_read_as_contiguous(real):
    return lambda x: real(x.ravel(order="K").reshape(x.shape))


@wrong("upsample_nearest")
def rows_are_rounded_to_the_nearest(real):
    def upsample_nearest(x, *, height, width):
        rows, columns = (np.minimum(np.rint(np.arange(n) * m / n).astype(int), m - 1)
                         for n, m in ((height, x.shape[2]), (width, x.shape[3])))
        return x[:, :, rows[:, None], columns]

    return upsample_nearest


@wrong("upsample_nearest")
def a_crop_that_is_one_pixel_off(real):
    def upsample_nearest(x, *, height, width):
        return real(x, height=height + 1, width=width + 1)[:, :, 1:, 1:]

    return upsample_nearest


@wrong("upsample_bilinear")
def corners_are_always_aligned(real):
    return lambda x, *, height, width, align_corners: real(
        x, height=height, width=width, align_corners=True)


@wrong("concat")
def the_last_array_comes_first(real):
    return lambda arrays, *, axis: real(arrays[::-1], axis=axis)


@wrong("to_tokens")
def pixels_column_by_column(real):
    return lambda x: real(x.swapaxes(2, 3))


@wrong("slice")
def one_element_further(real):
    return lambda x, *, axis, start, stop: np.roll(x, -1, axis).take(range(start, stop), axis)


@wrong("transpose")
def axes_the_other_way_round(real):
    return lambda x, *, axes: real(x, axes=tuple(np.argsort(axes)))


@wrong("reshape", "layouts")
def elements_as_memory_has_them(real):
    return lambda x, *, shape: x.reshape(shape, order="A")


@wrong("to_image", "layouts")
def tokens_as_rows_of_pixels(real):
    def to_image(x, *, height, width):
        return x.reshape(len(x), x.shape[-1], height, width)

    return to_image


@wrong("rope")
def pairs_are_never_adjacent(real):
    return lambda x, positions, *, base, interleaved: real(
        x, positions, base=base, interleaved=False)


@wrong("timestep_embedding")
def sines_always_come_first(real):
    return lambda timesteps, *, flip_sin_to_cos, **options: real(
        timesteps, flip_sin_to_cos=False, **options)


@wrong("embedding", "refusals")
def rows_are_counted_from_the_end(real):
    return lambda ids, weight: weight[ids % len(weight)]


@wrong("gather", "refusals")
def rows_that_do_not_exist_are_named_otherwise(real):
    def gather(x, index):
        try:
            return real(x, index)
        except IndexError:
            raise IndexError("index out of range") from None

    return gather
