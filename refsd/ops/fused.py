"""Fused ops: each is the composition of the ops that it stands for, in one pass over memory.

Passes of refsd.graph put them in the place of these ops. Of halves a fused op rounds once, where
the ops one by one round each result.
"""

from refsd.kinds import call
from refsd.ops.activation import geglu, silu
from refsd.ops.arithmetic import add
from refsd.ops.linear import linear
from refsd.ops.norm import EPS, IN_GROUPS, group_norm
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
