"""The ops on the CPU, one file a family: importing this declares all kernels of "numba"."""

from refsd import ops  # noqa: F401  a kernel is declared for an op that must be there
from refsd.numba_ops.cpu import (  # noqa: F401
    activation,
    arithmetic,
    attention,
    conv,
    embedding,
    layout,
    linear,
    norm,
    resize,
)
from refsd.numba_ops.cpu.conv import choose_here as conv2d_choice  # noqa: F401  see registry.offered
from refsd.numba_ops.memory import layout_copies  # noqa: F401  the same
from refsd.numba_ops.pool import trim as release  # noqa: F401  the same
from refsd.numba_ops.threads import count as threads_in_use  # noqa: F401  the same
from refsd.numba_ops.warmup import make_ready  # noqa: F401  the same
from refsd.numba_ops.weights import lay_out_all as lay_out  # noqa: F401  the same
