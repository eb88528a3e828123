"""More of wrong_kernels.py: mistakes that only fused ops make, each of them with what it fuses."""

import numpy as np
from wrong_kernels import LANES, copied, wrong

from refsd import ops


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
