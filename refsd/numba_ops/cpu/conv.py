"""Convolution: which algorithm computes it on a CPU, and the call of that algorithm.

`im2col` is implicit GEMM here (conv_gemm.py), `winograd2` and `winograd4` are conv_winograd.py,
`fft` is conv_fft.py. A 1 x 1 kernel is a linear layer of the pixels. All read
channels-last memory without a copy, and give channels-last results.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import numpy as np

from refsd.contracts import Spec
from refsd.dense import to_dense
from refsd.half import is_half, to_float32, to_half
from refsd.numba_ops.cpu.arithmetic import add
from refsd.numba_ops.cpu.conv_fft import fft
from refsd.numba_ops.cpu.conv_gemm import implicit_gemm
from refsd.numba_ops.cpu.conv_narrow import is_narrow, narrow
from refsd.numba_ops.cpu.conv_winograd import winograd
from refsd.numba_ops.cpu.linear import product
from refsd.numba_ops.cpu.resize import upsample_nearest
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.memory import count_copy, empty
from refsd.ops.conv import Choice, conv2d_algorithm, pair, sides
from refsd.quantized import W8A8
from refsd.registry import exact_wanted, kernel

NOTHING: Mapping[str, str] = MappingProxyType({})
_tuned: ContextVar[Mapping[str, str]] = ContextVar("refsd_conv2d_tuned", default=NOTHING)


@kernel("numba", reads_leaves=True, reads_halves=True)
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, algorithm="auto"):
    return _convolve(x, weight, bias, None, x.shape[2:], stride, padding, dilation, groups,
                     algorithm)


@kernel("numba", reads_leaves=True, reads_halves=True)
def conv2d_add(x, weight, addend, bias=None, *, stride=1, padding=0, dilation=1, groups=1,
               algorithm="auto"):
    return _convolve(x, weight, bias, to_dense(addend), x.shape[2:], stride, padding, dilation,
                     groups, algorithm)


@kernel("numba", reads_leaves=True, reads_halves=True)
def upsample_conv2d(x, weight, bias=None, *, height, width, stride=1, padding=0, dilation=1,
                    groups=1, algorithm="auto"):
    return _convolve(x, weight, bias, None, (height, width), stride, padding, dilation, groups,
                     algorithm)


def _convolve(x, weight, bias, addend, size, stride, padding, dilation, groups, algorithm):
    """w * x + bias + addend, x enlarged to `size`; or without either.   -> (N, O, H', W')"""
    (N, _, _, _), (O, _, kh, kw), (H, W) = x.shape, weight.shape, size
    (sh, sw), (dh, dw), pad = pair(stride), pair(dilation), sides(padding)
    Ho = (H + sum(pad[0]) - dh * (kh - 1) - 1) // sh + 1
    Wo = (W + sum(pad[1]) - dw * (kw - 1) - 1) // sw + 1
    y = empty((N, Ho, Wo, O), x.dtype)

    name = choose_here(y.shape, weight.shape, stride=(sh, sw), dilation=(dh, dw), groups=groups,
                       algorithm=algorithm, dtype=x.dtype).algorithm
    if name == "im2col":
        plain = (kh, kw, sh, sw, groups) == (1, 1, 1, 1, 1) and not np.any(pad)
        few = is_narrow(weight.shape, groups, x.dtype)
        name = "product" if plain else "narrow" if few else name
    alone = name in ("narrow", "fft")
    if size != x.shape[2:] and (alone or name == "product"):
        x = upsample_nearest(x, height=H, width=W)
    if addend is not None and alone:
        return _plus(addend, x, weight, bias, stride=stride, padding=padding, dilation=dilation,
                     groups=groups, algorithm="fft" if name == "fft" else "im2col")
    if isinstance(weight, W8A8) and name != "product":
        x = weight.meet(x)
    if addend is not None:
        addend = np.broadcast_to(addend, (N, O, Ho, Wo))
    if name in ("winograd2", "winograd4"):
        winograd(x, weight, bias, y, 4 if name == "winograd2" else 6, pad, groups, addend, size)
    elif name == "fft":
        fft(x, weight, bias, y, (sh, sw), pad, (dh, dw), groups)
    elif name == "product":
        rows = y.reshape(-1, O)
        product(x.transpose(0, 2, 3, 1), weight, bias, rows, _rows_like(rows, addend))
    elif name == "narrow":
        narrow(x, weight, bias, y, (sh, sw), pad, (dh, dw))
    else:
        implicit_gemm(x, weight, bias, y, (sh, sw), pad, (dh, dw), groups, addend, size)
    return y.transpose(0, 3, 1, 2)


def _rows_like(y, addend):
    """An addend (N, O, H, W) as rows of pixels, if there is one; a copy is counted."""
    if addend is None:
        return None
    rows = addend.transpose(0, 2, 3, 1).reshape(y.shape)
    if not np.may_share_memory(rows, addend):
        count_copy()
    return rows


def _plus(addend, x, weight, bias, **options):
    """conv2d and add, for what has no addend of its own; halves are rounded once."""
    wide = to_float32([x, weight, bias, addend])
    y = add(conv2d(*wide[:3], **options), wide[3])
    return to_half(y, x.dtype) if is_half(x.dtype) else y


def choose(result: tuple, kernel: tuple, *, stride: tuple = (1, 1), dilation: tuple = (1, 1),
           groups: int = 1, algorithm: str = "auto", exact: bool = False,
           dtype: Any = "float32", tuned: Mapping[str, str] = NOTHING) -> Choice:
    """The algorithm for an output (N, H', W', O) and a kernel (O, I, kH, kW), and why.

    `exact`: sums of products and nothing else. `dtype`: of halves, which `refsd tune` does not
    measure, the rounding hides what Winograd errs more. `tuned`: those that were measured, by
    shape_key(). It does not look at N: an image has the same bits alone and in a batch. What the
    rules rest on is measured in docs/kernels-conv.md.
    """
    (_, Ho, Wo, O), (_, I, kh, kw) = result, kernel
    if algorithm != "auto":
        return Choice(algorithm, "it was asked for")
    if exact:
        return Choice("im2col", "exact: sums of products and nothing else")
    half = is_half(dtype)
    known = tuned and not half and tuned.get(shape_key(result, kernel, stride, dilation, groups))
    if known:
        conv2d_algorithm(Spec(kernel, ""), stride=stride, dilation=dilation, algorithm=known)
        return Choice(known, "it was measured to be the fastest here")
    if kh * kw >= 225 and min(I, O) >= 32 and groups == 1:
        return Choice("fft", f"a {kh} x {kw} kernel has 225 taps or more: the transform's cost "
                      "does not grow with them")
    if (kh, kw, *stride, *dilation, groups) != (3, 3, 1, 1, 1, 1, 1):
        return Choice("im2col", "Winograd is for 3 x 3 kernels with stride, dilation and groups 1")
    if min(I, O) < 16:
        return Choice("im2col", f"{I} -> {O} channels: below 16 the transforms cost what they save")

    if Ho * Wo >= (12 * 12 if half else 24 * 24):
        return Choice("winograd4", "36 multiplications instead of 144 for 4 x 4 outputs")
    if BFLOAT16 == "dot" and str(dtype) == "bfloat16":
        return Choice("im2col", "two products of bfloat16 an instruction; below 12 x 12 outputs "
                      "transforming the weights costs what Winograd saves")
    if Ho * Wo >= 8 * 8:
        return Choice("winograd2", "16 multiplications instead of 36 for 2 x 2 outputs; below "
                      "24 x 24 outputs winograd4 saves little more, and errs more")
    return Choice("im2col", f"{Ho} x {Wo} outputs: below 8 x 8 transforming the weights costs what "
                  "Winograd saves")


def choose_here(result: tuple, kernel: tuple, **options: Any) -> Choice:
    """What `choose` says under the exactness and the policy that hold here and now."""
    return choose(result, kernel, exact=exact_wanted(), tuned=tuned_choices(), **options)


def shape_key(result: tuple, kernel: tuple, stride: tuple, dilation: tuple, groups: int) -> str:
    """A convolution's name in a table of choices; the number of images is not in it."""
    sizes = (result[1:3], kernel, stride, dilation)
    return " ".join(["x".join(map(str, size)) for size in sizes] + [str(groups)])


def tuned_choices() -> Mapping[str, str]:
    """The measured algorithms that hold here and now, by shape_key()."""
    return _tuned.get()


@contextmanager
def conv2d_policy(*, tuned: Mapping[str, str]) -> Iterator[None]:
    """Inside, take the algorithms that were measured: conv2d_policy(tuned=tuning.load()).

    Where sums of products are wanted, `refsd.use(..., exact=True)` says so, and overrules this.
    """
    token = _tuned.set(tuned)
    try:
        yield
    finally:
        _tuned.reset(token)
