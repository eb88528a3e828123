"""Faults in kernels of a thread an element, and in how numbers are read and written."""

import numpy as np
from cuda_agreement import agree
from faults import Fault
from op_table import normal
from test_layout import numbers

from refsd.numba_ops.cuda import layout
from refsd.numba_ops.cuda.array import to_device


def silu(dtype="float32"):
    """A last block that is not full."""
    agree("silu", [normal((257,), 1, 3.0)], {}, dtype)


def silu_of_halves():
    silu("bfloat16")


def copy():
    """A transposition, by units of four bytes."""
    x = numbers((3, 5, 2, 4), "float32")
    y = layout.ordered(to_device(x).transpose((3, 1, 0, 2)))
    np.testing.assert_array_equal(y.numpy(), x.transpose(3, 1, 0, 2))


FAULTS = [
    Fault("bound off by one", "activation", "if i < count:", "if i <= count:", silu),
    Fault("the last block left out", "activation", "(-(-x.size // THREADS),)",
          "(x.size // THREADS,)", silu),
    Fault("the sign of the exponent", "activation", "exp(-value)", "exp(value)", silu),
    Fault("a block's elements overlap", "activation", "* uint32(THREADS)", "* uint32(THREADS - 1)",
          silu),
    Fault("bits in the wrong half", "numbers", "<< uint32(16)", "<< uint32(15)", silu_of_halves),
    Fault("rounded towards zero", "numbers", "+ uint32(0x7FFF) + ", "+ ", silu_of_halves),
    Fault("a bound too late", "layout", "if i < count:", "if i <= count:", copy),
    Fault("steps of two axes swapped", "layout", "i1 * x1 + i2 * x2", "i1 * x2 + i2 * x1", copy),
    Fault("steps of the result for x's", "layout", "*x_steps, *y_steps", "*y_steps, *x_steps",
          copy),
    Fault("an axis not taken off", "strides", "uint32(above2 - above1 * n1)", "above2", copy),
]
