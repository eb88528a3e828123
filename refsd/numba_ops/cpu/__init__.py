"""The ops on the CPU, one file a family: importing this declares all kernels of "numba"."""

import refsd.numba_ops.settings  # noqa: F401  before Numba

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
    norm_groups,
    resize,
)
