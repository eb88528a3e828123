"""Fused ops: each is the composition of the ops that it stands for, in one pass over memory.

Passes of refsd.graph put them in the place of these ops. Of halves a fused op rounds once, where
the ops one by one round each result.
"""

from refsd.contracts import need
from refsd.kinds import call
from refsd.ops import conv
from refsd.ops.activation import geglu, silu
from refsd.ops.arithmetic import add
from refsd.ops.conv import conv2d
from refsd.ops.linear import linear
from refsd.ops.norm import EPS, IN_GROUPS, group_norm
from refsd.ops.resize import PIXELS, upsample_nearest
from refsd.options import Integer
from refsd.registry import op


@op("x (N C ...), weight (C), bias (C) -> (N C ...)", flops="12 * size", groups=Integer(1), eps=EPS,
    rules=IN_GROUPS,
    examples=[call((2, 6, 4, 3), (6,), (6,), groups=3, eps=1e-5),
              call((1, 4, 5), (4,), (4,), groups=1, eps=1e-6)])
def group_norm_silu(x, weight, bias, *, groups, eps):
    """silu(group_norm(x)).   x (N, C, ...), weight and bias (C,) -> (N, C, ...)

    >>> import numpy as np
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> group_norm_silu(x, np.ones(2), np.zeros(2), groups=2, eps=1e-9).round(4)  # of -1 and 1
    array([[[-0.2689,  0.7311],
            [-0.2689,  0.7311]]])
    """
    return silu(group_norm(x, weight, bias, groups=groups, eps=eps))


@op("x (... K), weight (out K), addend (... out), bias (out) -> (... out)",
    flops="2 * size * K + size",
    rules={"addend[:-1] == x[:-1]": "addend {addend} has other rows than x {x}"},
    examples=[call((2, 3, 8), (5, 8), (2, 3, 5), (5,)), call((7, 4), (3, 4), (7, 3))])
def linear_add(x, weight, addend, bias=None):
    """x W^T + b + addend.   x (..., K), weight (out, K), addend (..., out), bias (out,)

    >>> import numpy as np
    >>> x, weight = np.array([1.0, 2.0]), np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> linear_add(x, weight, np.array([0.5, 0.25]), np.array([0.0, 100.0]))
    array([  1.5 , 111.25])
    """
    return add(linear(x, weight, bias), addend)


@op("x (... K), weight (2*out K), bias (2*out) -> (... out)", flops="4 * size * K + 6 * size",
    examples=[call((2, 3, 8), (10, 8), (10,)), call((7, 4), (6, 4))])
def linear_geglu(x, weight, bias=None):
    """h gelu(g) where x W^T + b = [h | g].   x (..., K), weight (2 out, K), bias (2 out,)

    >>> import numpy as np
    >>> linear_geglu(np.array([1.0]), np.array([[7.0], [100.0]]), np.array([0.0, 0.0]))
    array([700.])
    """
    return geglu(linear(x, weight, bias))


def _sizes_of_sum(x, weight, addend, bias, stride, padding, dilation, groups, algorithm):
    sizes = conv.result_sizes("conv2d_add", x.shape[2:], weight, stride, padding, dilation,
                              algorithm)
    result = (x.shape[0], weight.shape[0], *sizes.values())
    need(len(addend.shape) <= 4 and all(
        n in (1, m) for n, m in zip(addend.shape[::-1], result[::-1])), "conv2d_add",
        f"addend {tuple(addend.shape)} does not broadcast to the result {result}")
    return sizes


@op("x (N C H W), weight (O C//groups kH kW), addend (...), bias (O) -> (N O Ho Wo)",
    flops=conv.FLOPS + " + size", infer=_sizes_of_sum, **conv.OPTIONS, rules=conv.RULES,
    examples=[call((1, 4, 6, 5), (8, 4, 3, 3), (1, 8, 6, 5), (8,), padding=1),
              call((2, 4, 7, 6), (6, 4, 3, 3), (2, 6, 1, 1), (6,), padding=1),
              call((1, 5, 4, 3), (3, 5, 1, 1), (1, 3, 4, 3)),
              call((1, 6, 5, 8), (4, 3, 3, 3), (1, 4, 5, 8), groups=2, padding=1)])
def conv2d_add(x, weight, addend, bias=None, *, stride=1, padding=0, dilation=1, groups=1,
               algorithm="auto"):
    """conv2d(x, weight, bias) + addend, which broadcasts to it, as a residual or the time does.

    x (N, C, H, W), weight (O, C / groups, kH, kW), addend (N, O, H', W') or with axes of 1,
    bias (O,) -> (N, O, H', W'). The options are conv2d's.

    >>> import numpy as np
    >>> conv2d_add(np.ones((1, 1, 1, 2)), np.full((1, 1, 1, 1), 3.0), np.array([0.5, 0.25]))
    array([[[[3.5 , 3.25]]]])
    """
    y = conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
               algorithm=algorithm)
    return add(y, addend)


def _sizes_of_enlarged(x, weight, bias, height, width, stride, padding, dilation, groups,
                       algorithm):
    return conv.result_sizes("upsample_conv2d", (height, width), weight, stride, padding, dilation,
                             algorithm)


@op("x (N C H W), weight (O C//groups kH kW), bias (O) -> (N O Ho Wo)", flops=conv.FLOPS,
    infer=_sizes_of_enlarged, height=Integer(1), width=Integer(1), **conv.OPTIONS,
    rules=PIXELS | conv.RULES,
    examples=[call((1, 4, 3, 4), (8, 4, 3, 3), (8,), height=6, width=8, padding=1),
              call((2, 3, 5, 3), (4, 3, 3, 3), height=9, width=7, padding=1),
              call((1, 6, 3, 4), (4, 3, 3, 3), height=6, width=8, groups=2, padding=1)])
def upsample_conv2d(x, weight, bias=None, *, height, width, stride=1, padding=0, dilation=1,
                    groups=1, algorithm="auto"):
    """conv2d(upsample_nearest(x, height, width), weight, bias).   (N, C, H, W) -> (N, O, H', W')

    The options are conv2d's.

    >>> import numpy as np
    >>> x, weight = np.array([[[[1.0, 2.0]]]]), np.ones((1, 1, 1, 2))
    >>> upsample_conv2d(x, weight, height=1, width=4)  # of 1 1 2 2
    array([[[[2., 3., 4.]]]])
    """
    return conv2d(upsample_nearest(x, height=height, width=width), weight, bias, stride=stride,
                  padding=padding, dilation=dilation, groups=groups, algorithm=algorithm)
