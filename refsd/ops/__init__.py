"""The definitions: every op once, as NumPy that reads like its formula, one short file a family."""

from refsd.ops import (
    activation,
    arithmetic,
    attention,
    conv,
    embedding,
    fused,
    layout,
    linear,
    norm,
    resize,
)

__all__ = ["activation", "arithmetic", "attention", "conv", "embedding", "fused", "layout",
           "linear", "norm", "resize"]
