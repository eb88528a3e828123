"""The ops as Numba kernels: cpu/ as vectors, with the same file names as refsd/ops/."""

from refsd.parallel import check_environment

check_environment()  # Numba reads it when it is imported
