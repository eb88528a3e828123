"""More of wrong_kernels.py: mistakes with bfloat16 and float16 that float32 knows nothing of."""

import functools

import numpy as np
from numba_agreement import halves_of
from wrong_kernels import copied, wrong

from refsd import ops
from refsd.half import is_half, to_float32, to_half


def _of_halves(make):
    """Wrong for halves only."""
    def made(real):
        spoiled = make(real)

        def kernel(x, *others, **options):
            return (spoiled if is_half(x.dtype) else real)(x, *others, **options)

        return kernel

    made.__name__ = make.__name__
    return made


def _changed(change):
    """Right but for what change(y) does to the result."""
    @functools.wraps(change)
    def made(real):
        def kernel(*args, **options):
            y = copied(real(*args, **options))
            change(y)
            return y

        return kernel

    return made


def _wrong_where_tested(op):
    """As wrong(op), of a kernel that is no product: not every process tests it with halves."""
    return wrong(op) if halves_of(op) else lambda make: make


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


@wrong("linear")
@_of_halves
def the_last_row_is_what_the_call_before_left(real):
    """A tile's sums that nothing has written to: scratch memory of an earlier call."""
    left = []

    def linear(x, weight, bias=None):
        y = copied(real(x, weight, bias))
        rows, n = y.reshape(-1, y.shape[-1]), min([y.shape[-1], *map(len, left[-1:])])
        row = rows[-1].copy() if len(rows) else rows.ravel()
        if left and len(rows):
            rows[-1, :n] = left[-1][:n]
        left.append(to_float32(row))
        return y

    return linear


@wrong("linear")
@_of_halves
def results_are_rounded_twice(real):
    """To float16 on the way to bfloat16: what comes near the middle of two goes the wrong way."""
    def linear(x, weight, bias=None):
        wide = real(*(None if a is None else to_float32(a) for a in (x, weight, bias)))
        return to_half(to_float32(to_half(wide, "float16")), x.dtype)

    return linear


@wrong("linear", "extremes")
@_of_halves
@_changed
def what_is_below_the_normal_numbers_is_flushed(y):
    """Of bfloat16 the level "dot" may do it, of float16 none."""
    y[abs(to_float32(y)) < (2.0**-14 if y.dtype == np.float16 else 2.0**-126)] = 0


@wrong("linear", "not_numbers")
@_of_halves
@_changed
def rounding_makes_a_nan_an_infinity(y):
    y[np.isnan(y)] = np.inf


@wrong("linear", "extremes")
@_of_halves
@_changed
def numbers_beyond_float16_are_infinite(y):
    """Multiplied as float16, stored as bfloat16."""
    y[abs(to_float32(y)) > 65504] = np.inf


@wrong("matmul")
@_of_halves
def the_two_of_a_pair_are_swapped_on_the_right(real):
    def matmul(a, b):
        K = a.shape[-1] // 2 * 2
        return real(a, b[..., [*(np.arange(K) ^ 1), *range(K, a.shape[-1])], :])

    return matmul


@wrong("matmul")
@_of_halves
def sums_of_eight_are_kept_as_halves(real):
    def matmul(a, b):
        total = real(a[..., :8], b[..., :8, :])
        for k in range(8, a.shape[-1], 8):
            total = total + real(a[..., k:k + 8], b[..., k:k + 8, :])
        return total

    return matmul


@wrong("conv2d")
@_of_halves
def the_two_of_a_pair_of_channels_are_swapped(real):
    def conv2d(x, weight, bias=None, **options):
        I = weight.shape[1] // 2 * 2
        order = [*(np.arange(I) ^ 1), *range(I, weight.shape[1])]
        return real(x, weight[:, order], bias, **options)

    return conv2d


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


@_wrong_where_tested("layer_norm")
@_of_halves
def the_mean_is_rounded_to_a_half(real):
    def layer_norm(x, weight=None, bias=None, *, eps):
        wide, weight, bias = map(to_float32, (x, weight, bias))
        d = wide - to_float32(to_half(wide.mean(axis=-1, keepdims=True), x.dtype))
        root = np.sqrt((d * d).mean(axis=-1, keepdims=True) + np.float32(eps))
        return to_half(d / root * weight + bias, x.dtype)

    return layer_norm


@_wrong_where_tested("silu")
@_of_halves
def the_sigmoid_is_rounded_to_a_half(real):
    def silu(x):
        wide = to_float32(x)
        return to_half(wide * to_float32(to_half(ops.activation._sigmoid(wide), x.dtype)), x.dtype)

    return silu
