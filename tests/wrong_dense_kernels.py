"""More of wrong_kernels.py: matrix products, convolution and attention."""

import numba
import numpy as np
from wrong_kernels import LANES, copied, wrong

from refsd import ops
from refsd.half import is_half, to_float32, to_half


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


def _of_halves(make):
    """Wrong for halves only."""
    def made(real):
        spoiled = make(real)

        def kernel(x, *others, **options):
            return (spoiled if is_half(x.dtype) else real)(x, *others, **options)

        return kernel

    made.__name__ = make.__name__
    return made


@wrong("linear")
@_of_halves
def the_two_of_a_pair_are_swapped(real):
    def linear(x, weight, bias=None):
        K = x.shape[-1] // 2 * 2
        order = [*(np.arange(K) ^ 1), *range(K, x.shape[-1])]
        return real(x[..., order], weight, bias)

    return linear


@wrong("linear")
@_of_halves
def the_half_of_the_last_pair_is_dropped(real):
    def linear(x, weight, bias=None):
        K = x.shape[-1] // 2 * 2
        return real(x[..., :K], weight[:, :K], bias)

    return linear


@wrong("linear", "not_numbers")
@_of_halves
def what_follows_an_odd_row_is_multiplied_by_zero(real):
    def linear(x, weight, bias=None):
        y, following = real(x, weight, bias), np.roll(x[..., :1], -1, axis=0)
        with np.errstate(invalid="ignore"):
            return y + following * x.dtype.type(0) if x.shape[-1] % 2 else y

    return linear


@wrong("linear")
@_of_halves
def sums_on_the_way_are_rounded_to_halves(real):
    def linear(x, weight, bias=None):
        K = x.shape[-1] // 2
        first = real(x[..., :K], weight[:, :K])
        return to_half(to_float32(first) + real(to_float32(x[..., K:]),
                                                to_float32(weight[:, K:]), bias), x.dtype)

    return linear


@wrong("linear")
@_of_halves
def results_are_cut_off_to_halves(real):
    def linear(x, weight, bias=None):
        wide = real(*(None if a is None else to_float32(a) for a in (x, weight, bias)))
        return (wide.view("u4") >> 16).astype("u2").view(x.dtype)

    return linear


@wrong("linear")
@_of_halves
def a_bias_is_added_to_rounded_sums(real):
    def linear(x, weight, bias=None):
        y = real(x, weight)
        return y if bias is None else y + bias

    return linear


def _of_unmasked_halves(make):
    """Wrong for halves, if nothing is masked."""
    def made(real):
        spoiled = make(real)

        def attention(q, k, v, *, heads, mask=None, causal=False):
            if is_half(q.dtype) and mask is None and not causal and q.size:
                return spoiled(q, k, v, heads)
            return real(q, k, v, heads=heads, mask=mask, causal=causal)

        return attention

    made.__name__ = make.__name__
    return made


@wrong("attention")
@_of_unmasked_halves
def the_key_without_a_partner_is_dropped(real):
    def attention(q, k, v, heads):
        S = max(1, k.shape[1] // 2 * 2)
        return real(q, k[:, :S], v[:, :S], heads=heads)

    return attention


@wrong("attention")
@_of_unmasked_halves
def the_key_without_a_partner_counts_twice(real):
    def attention(q, k, v, heads):
        if k.shape[1] % 2:
            k, v = (np.concatenate([x, x[:, -1:]], axis=1) for x in (k, v))
        return real(q, k, v, heads=heads)

    return attention


@wrong("attention")
@_of_unmasked_halves
def the_values_of_two_keys_are_swapped(real):
    def attention(q, k, v, heads):
        S = v.shape[1] // 2 * 2
        return real(q, k, v[:, [*(np.arange(S) ^ 1), *range(S, v.shape[1])]], heads=heads)

    return attention


@wrong("attention")
@_of_unmasked_halves
def the_two_of_a_pair_of_a_query_are_swapped(real):
    def attention(q, k, v, heads):
        d = q.shape[2] // heads
        return real(q[..., np.arange(q.shape[2]) ^ 1] if d % 2 == 0 else q, k, v, heads=heads)

    return attention


@wrong("attention")
@_of_unmasked_halves
def rounded_weights_over_the_sum_of_others(real):
    def attention(q, k, v, heads):
        if q.shape[2] // heads % 2:
            return real(q, k, v, heads=heads)
        dtype, (q, k, v) = q.dtype, (ops.attention._split_heads(to_float32(x), heads)
                                     for x in (q, k, v))
        scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = to_float32(to_half(weights, "bfloat16")) @ v / weights.sum(axis=-1, keepdims=True)
        N, heads, L, e = y.shape
        return to_half(y.swapaxes(1, 2).reshape(N, L, heads * e), dtype)

    return attention


@wrong("conv2d")
@_of_halves
def the_half_of_the_last_pair_of_channels_is_dropped(real):
    def conv2d(x, weight, bias=None, **options):
        weight = weight.copy()
        weight[:, weight.shape[1] // 2 * 2:] = 0
        return real(x, weight, bias, **options)

    return conv2d


@wrong("conv2d")
@_of_halves
def taps_are_added_up_in_halves(real):
    def conv2d(x, weight, bias=None, **options):
        first, others = weight.copy(), weight.copy()
        first[..., 1:], others[..., :1] = 0, 0
        return real(x, first, None, **options) + real(x, others, bias, **options)

    return conv2d


@wrong("conv2d", "bits")
@_of_halves
def an_image_alone_is_widened(real):
    def conv2d(x, weight, bias=None, **options):
        if len(x) > 1:
            return real(x, weight, bias, **options)
        wide = (None if a is None else to_float32(a)[..., ::-1] for a in (x, weight))
        return to_half(real(*wide, bias, **options)[..., ::-1], x.dtype)

    return conv2d
