"""The ops on a GPU, one file a family: importing this declares all kernels of "cuda"."""

from refsd import ops  # noqa: F401  a kernel is declared for an op that must be there
from refsd.numba_ops.cuda import (  # noqa: F401
    activation,
    arithmetic,
    attention,
    cast,
    conv,
    deviation,
    embedding,
    fill,
    layout,
    linear,
    norm,
    resize,
    softmax,
)
