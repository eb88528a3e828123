"""More of wrong_kernels.py: matrix products, convolution and attention."""

import numba
import numpy as np
from wrong_kernels import LANES, copied, wrong

from refsd import ops
from refsd.quantized import Quantized


@wrong("linear")
def one_product_too_few(real):
    def linear(x, weight, bias=None):
        weight = weight.copy()
        weight[:, -1] = 0
        return real(x, weight, bias)

    return linear


@wrong("linear")
def no_bias_in_the_last_panel(real):
    def linear(x, weight, bias=None):
        if bias is not None:
            bias = bias.copy()
            bias[len(bias) // (2 * LANES) * 2 * LANES:] = 0
        return real(x, weight, bias)

    return linear


@wrong("linear", "fair_errors")
def weights_in_half_precision(real):
    return lambda x, weight, bias=None: real(
        x, weight.astype("float16").astype(weight.dtype), bias)


@wrong("linear", "bits")
def few_rows_are_summed_the_other_way_round(real):
    def linear(x, weight, bias=None):
        if x.size > 4 * x.shape[-1]:
            return real(x, weight, bias)
        return real(x[..., ::-1], weight[:, ::-1], bias)

    return linear


@wrong("linear_add")
def no_addend_behind_the_last_whole_panel(real):
    def linear_add(x, weight, addend, bias=None):
        whole = len(weight) // (2 * LANES) * 2 * LANES
        left = np.where(np.arange(len(weight)) < whole, addend, addend.dtype.type(0))
        return real(x, weight, left, bias)

    return linear_add


@wrong("linear_add")
def the_addend_of_the_first_row_for_all(real):
    return lambda x, weight, addend, bias=None: real(x, weight, np.broadcast_to(
        addend.reshape(-1, addend.shape[-1])[:1], addend.shape), bias)


@wrong("linear_add", "layouts")
def the_addend_is_read_as_contiguous(real):
    """Behind a view's first element the memory of the array that it is a view of, row by row."""
    def linear_add(x, weight, addend, bias=None):
        whole = addend
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if whole.dtype == addend.dtype and whole.size > addend.size:
            addend = whole.ravel(order="K")[:addend.size].reshape(addend.shape)
        return real(x, weight, addend, bias)

    return linear_add


@wrong("linear_add")
def the_addend_is_the_result(real):
    def linear_add(x, weight, addend, bias=None):
        y = real(x, weight, addend, bias)
        if addend.flags.writeable:
            addend[...] = y
        return y

    return linear_add


@wrong("linear_geglu")
def the_gate_comes_first(real):
    def linear_geglu(x, weight, bias=None):
        swap = np.roll(np.arange(len(weight)), len(weight) // 2)
        return real(x, weight[swap], None if bias is None else bias[swap])

    return linear_geglu


@wrong("linear_geglu")
def a_gate_begins_at_a_whole_panel(real):
    """Right where half of the outputs are whole panels."""
    def linear_geglu(x, weight, bias=None):
        half = len(weight) // 2
        first = -(-half // (2 * LANES)) * 2 * LANES
        order = np.minimum(first + np.arange(half), 2 * half - 1)
        order = np.concatenate([np.arange(half), order])
        return real(x, weight[order], None if bias is None else bias[order])

    return linear_geglu


@wrong("linear_geglu")
def the_gate_has_the_hidden_ones_bias(real):
    def linear_geglu(x, weight, bias=None):
        return real(x, weight, None if bias is None else np.tile(bias[:len(bias) // 2], 2))

    return linear_geglu


@wrong("linear_geglu", "small_weights")
def the_gate_has_the_hidden_ones_scale(real):
    def linear_geglu(x, weight, bias=None):
        if isinstance(weight, Quantized) and weight.scale is not None:
            scale = np.tile(weight.scale[:len(weight) // 2], 2)
            weight = Quantized(weight.values, scale, weight.dtype)
        return real(x, weight, bias)

    return linear_geglu


@wrong("matmul", "fair_errors")
def results_are_cut_off_and_not_rounded(real):
    def matmul(a, b):
        exact = np.matmul(a.astype("f8"), b.astype("f8"))
        y = exact.astype(a.dtype)
        return np.where(abs(y) > abs(exact), np.nextafter(y, y.dtype.type(0)), y)

    return matmul


@wrong("linear", "changed_weights")
def panels_of_a_weight_that_changed(real):
    made = {}

    def linear(x, weight, bias=None):
        return real(x, made.setdefault(id(weight), weight.copy()), bias)

    return linear


@wrong("matmul", "bits")
def each_thread_has_a_share_of_the_sum(real):
    def matmul(a, b):
        K, threads = a.shape[-1], numba.get_num_threads()
        cuts = [K * t // threads for t in range(threads + 1)]
        parts = [np.matmul(a[..., i:j], b[..., i:j, :]) for i, j in zip(cuts, cuts[1:])]
        return sum(parts[1:], parts[0])

    return matmul


@wrong("conv2d", "bits")
def an_algorithm_for_one_picture(real):
    def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1,
               algorithm="auto"):
        if len(x) == 1 and algorithm == "auto":
            algorithm = "im2col"
        return real(x, weight, bias, stride=stride, padding=padding, dilation=dilation,
                    groups=groups, algorithm=algorithm)

    return conv2d


@wrong("conv2d")
def padding_on_the_other_side(real):
    def conv2d(x, weight, bias=None, *, padding=0, **options):
        (top, bottom), (left, right) = ops.conv.sides(padding)
        return real(x, weight, bias, padding=((bottom, top), (right, left)), **options)

    return conv2d


@wrong("conv2d", "not_numbers")
def zeros_are_skipped(real):
    """0 NaN is 0, as in a kernel that looks for zeros in its input."""
    def conv2d(x, weight, bias=None, **options):
        return real(np.nan_to_num(x, nan=0), weight, bias, **options)

    return conv2d


@wrong("attention")
def the_mask_is_ignored(real):
    return lambda q, k, v, *, heads, mask=None, causal=False: real(
        q, k, v, heads=heads, causal=causal)


@wrong("attention")
def causal_sees_one_key_too_many(real):
    def attention(q, k, v, *, heads, mask=None, causal=False):
        if causal:
            later = np.triu(np.ones((q.shape[1], k.shape[1]), bool), 2)
            mask = np.where(later, -np.inf, 0 if mask is None else mask).astype(q.dtype)
        return real(q, k, v, heads=heads, mask=mask)

    return attention


@wrong("attention")
def a_query_that_sees_nothing_gives_nan(real):
    def attention(q, k, v, *, heads, mask=None, causal=False):
        y = copied(real(q, k, v, heads=heads, mask=mask, causal=causal))
        y[(y == 0).all(axis=-1)] = np.nan
        return y

    return attention
