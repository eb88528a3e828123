"""The ops as Numba kernels: cpu/ as vectors, with the same file names as refsd/ops/."""
