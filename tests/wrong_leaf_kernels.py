"""More of wrong_kernels.py: weights in int8 and in two bytes, read wrongly."""

import numpy as np
from wrong_kernels import LANES, wrong

from refsd.half import is_half, to_float32, to_half
from refsd.quantized import Quantized

PANEL = 2 * LANES


def _read_as(make):
    """A kernel of x, weight, ... that of a small weight multiplies make(weight) instead."""
    def made(real):
        def kernel(x, weight, *others, **options):
            if isinstance(weight, Quantized):
                weight = make(weight)
            return real(x, weight, *others, **options)

        return kernel

    made.__name__ = make.__name__
    return made


def _scaled(weight, change):
    """The same with other scales."""
    scale = weight.scale
    return weight if scale is None else Quantized(weight.values, change(scale), weight.dtype)


@wrong("linear", "small_weights")
@_read_as
def the_scale_of_the_next_output(weight):
    return _scaled(weight, lambda scale: np.roll(scale, -1))


@wrong("conv2d", "small_weights")
@_read_as
def one_scale_for_all_outputs(weight):
    return _scaled(weight, lambda scale: np.full_like(scale, scale.max()))


@wrong("linear", "small_weights")
@_read_as
def scales_of_each_panel_are_those_of_the_first(weight):
    return _scaled(weight, lambda scale: scale[np.arange(scale.size) % PANEL])


@wrong("linear", "small_weights")
@_read_as
def behind_the_last_whole_panel_is_no_scale(weight):
    def change(scale):
        scale = scale.copy()
        scale[scale.size // PANEL * PANEL:] = 1
        return scale

    return _scaled(weight, change)


@wrong("linear", "small_weights")
@_read_as
def scales_in_half_precision(weight):
    return _scaled(weight, lambda scale: to_float32(to_half(scale, "bfloat16")))


@wrong("linear", "small_weights")
@_read_as
def the_sign_of_int8_is_lost(weight):
    if weight.scale is None:
        return weight
    return (weight.values.view("u1") * weight.scale[:, None]).astype(weight.dtype)


@wrong("linear", "small_weights")
@_read_as
def the_last_row_of_the_panel_is_not_packed(weight):
    dense = weight.dense().copy()
    dense[:, -1] = 0
    return dense


@wrong("linear", "small_weights")
@_read_as
def a_slice_of_the_panel_before(weight):
    """What is packed stays for the next panel."""
    dense = weight.dense().copy()
    dense[PANEL:2 * PANEL] = dense[:len(dense[PANEL:2 * PANEL])]
    return dense


@wrong("linear", "small_weights")
@_read_as
def the_first_slice_of_a_deep_panel_stays(weight):
    dense = weight.dense().copy()
    dense[:, 1280:2560] = dense[:, :dense[:, 1280:2560].shape[1]]
    return dense


@wrong("conv2d", "small_weights")
@_read_as
def the_first_channels_of_all_taps_stay(weight):
    dense = weight.dense().copy()
    dense[:, 16:32] = dense[:, :dense[:, 16:32].shape[1]]
    return dense


@wrong("linear", "small_weights")
@_read_as
def bfloat16_is_read_as_float16(weight):
    if str(weight.values.dtype) != "bfloat16":
        return weight
    return Quantized(weight.values.view("f2"), None, weight.dtype)


@wrong("conv2d", "small_weights")
@_read_as
def values_are_cut_off_to_the_models_dtype(weight):
    if not is_half(weight.dtype) or weight.scale is None:
        return weight
    shape = (-1, 1, 1, 1)
    wide = weight.values * weight.scale.reshape(shape)
    near = to_half(wide, weight.dtype)
    away = abs(to_float32(near)) > abs(wide)
    bits = near.view("u2") - away.astype("u2")
    return bits.view(near.dtype)


@wrong("linear", "small_weights")
def sums_are_scaled_and_not_weights(real):
    """Right but for the roundings: other bits than the array's."""
    def linear(x, weight, bias=None):
        scale = getattr(weight, "scale", None)
        if scale is None or x.dtype != np.float32:
            return real(x, weight, bias)
        y = real(x, Quantized(weight.values, np.ones_like(scale), weight.dtype)) * scale
        return y if bias is None else y + bias

    return linear


@wrong("embedding", "small_weights")
def each_row_has_the_scale_of_its_place(real):
    def embedding(ids, weight):
        if getattr(weight, "scale", None) is None:
            return real(ids, weight)
        places = np.arange(ids.size).reshape(ids.shape) % len(weight)
        scale = weight.scale[places][..., None]
        return (weight.values[ids] * scale).astype(weight.dtype)

    return embedding
