"""What memory plans (refsd.graph) ask of this backend: where results come from, and how to tell."""

from refsd.numba_ops.memory import allocate_from_pool, allocating_with

__all__ = ["allocate_from_pool", "allocating_with"]
