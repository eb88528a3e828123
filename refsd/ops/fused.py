"""Fused ops: each is the composition of the ops that it stands for, in one pass over memory.

Passes of refsd.graph put them in the place of these ops. Of halves a fused op rounds once, where
the ops one by one round each result.
"""

from refsd.kinds import call
from refsd.ops.activation import silu
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
