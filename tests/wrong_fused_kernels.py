"""More of wrong_kernels.py: mistakes that only fused ops make, each of them with what it fuses."""

import numpy as np
from wrong_kernels import LANES, copied, wrong

from refsd import ops
from refsd.half import is_half


@wrong("group_norm_silu")
def the_last_lanes_are_not_activated(real):
    def group_norm_silu(x, weight, bias, *, groups, eps):
        y = copied(real(x, weight, bias, groups=groups, eps=eps))
        first = x.shape[1] - x.shape[1] % LANES
        y[:, first:] = ops.norm.group_norm(x, weight, bias, groups=groups, eps=eps)[:, first:]
        return y

    return group_norm_silu


@wrong("group_norm_silu")
def the_sigmoid_is_of_the_input(real):
    def group_norm_silu(x, weight, bias, *, groups, eps):
        with np.errstate(over="ignore"):
            return ops.norm.group_norm(x, weight, bias, groups=groups, eps=eps) * (
                ops.activation._sigmoid(x))

    return group_norm_silu


@wrong("conv2d_add")
def one_images_addend_for_all(real):
    def conv2d_add(x, weight, addend, bias=None, **options):
        return real(x, weight, addend[:1] if addend.ndim == 4 else addend, bias, **options)

    return conv2d_add


@wrong("conv2d_add")
def the_last_lanes_have_no_addend(real):
    def conv2d_add(x, weight, addend, bias=None, **options):
        y = copied(real(x, weight, addend, bias, **options))
        first = len(weight) - len(weight) % LANES
        y[:, first:] = real(x, weight, np.zeros_like(addend), bias, **options)[:, first:]
        return y

    return conv2d_add


@wrong("conv2d_add", "layouts")
def an_addend_lies_as_the_result(real):
    def conv2d_add(x, weight, addend, bias=None, **options):
        if addend.ndim == 4 and addend.flags.c_contiguous:
            N, O, H, W = addend.shape
            addend = addend.reshape(N, H, W, O).transpose(0, 3, 1, 2)
        return real(x, weight, addend, bias, **options)

    return conv2d_add


@wrong("conv2d_add")
def products_of_halves_are_rounded_before_the_sum(real):
    def conv2d_add(x, weight, addend, bias=None, **options):
        if not is_half(x.dtype):
            return real(x, weight, addend, bias, **options)
        return real(x, weight, np.zeros_like(addend), bias, **options) + addend

    return conv2d_add


@wrong("upsample_conv2d")
def zeros_around_are_the_borders_pixels(real):
    def upsample_conv2d(x, weight, bias=None, *, height, width, padding=0, **options):
        x = ops.resize.upsample_nearest(x, height=height, width=width)
        x = np.pad(x, ((0, 0), (0, 0), *ops.conv.sides(padding)), mode="edge")
        H, W = x.shape[2:]
        return real(x, weight, bias, height=H, width=W, **options)

    return upsample_conv2d


@wrong("upsample_conv2d")
def every_pixel_is_there_twice(real):
    def upsample_conv2d(x, weight, bias=None, *, height, width, **options):
        rows, columns = (np.minimum(np.arange(n) // 2, m - 1)
                         for n, m in ((height, x.shape[2]), (width, x.shape[3])))
        return real(x[:, :, rows[:, None], columns], weight, bias, height=height, width=width,
                    **options)

    return upsample_conv2d
